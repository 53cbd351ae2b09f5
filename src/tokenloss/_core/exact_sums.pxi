# Exact sums of numbers, and of the losses of each sequence of tokens.

cdef enum:
    MOMENTS_BLOCK = 2048  # values that are still in the first cache when their squares are added
    SEQUENCES_BETWEEN_CHECKS = 64  # for Ctrl-C: a check takes as long as a short sequence


cdef object integer_of_sum(tl_sum_kind kind, tl_superacc *sum):
    cdef unsigned char limbs[4 * MAX_LIMBS]
    cdef int count = tl_superacc_limbs(kind, sum, limbs)
    return int.from_bytes(limbs[:4 * count], "little", signed=True)


def moments(const double[::1] values):
    """Exact sums of the finite values in units of 2**-1074, of the others, and of the finite squares in 2**-2148."""
    cdef tl_superacc sum, squares
    cdef Py_ssize_t start = 0, count
    cdef tl_fp_state environment
    need_backend()
    memset(&sum, 0, sizeof(sum))
    memset(&squares, 0, sizeof(squares))
    with nogil:
        tl_fp_enter(&environment)  # subnormals are not flushed
        while start < values.shape[0]:
            count = min(values.shape[0] - start, <Py_ssize_t> MOMENTS_BLOCK)
            tl_superacc_add_many(backend, TL_SUM, &sum, &values[start], count)
            tl_superacc_add_many(backend, TL_SQUARES, &squares, &values[start], count)
            start += count
        tl_fp_leave(&environment)
    return integer_of_sum(TL_SUM, &sum), sum.special, integer_of_sum(TL_SQUARES, &squares)


def sum_of_products(const double[::1] a, const double[::1] b):
    """The exact sum of the products of the pairs that are finite, in units of 2**-2148."""
    cdef tl_superacc products
    cdef Py_ssize_t i
    memset(&products, 0, sizeof(products))
    with nogil:
        for i in range(min(a.shape[0], b.shape[0])):
            tl_superacc_add_product(&products, a[i], b[i])
    return integer_of_sum(TL_SQUARES, &products)


def starts_of_runs(const int64_t[::1] numbers, int64_t[::1] starts):
    """The number of runs of equal numbers; writes the starts of the first runs, as far as `starts` has room."""
    cdef int64_t i, count = 0, room = starts.shape[0]
    with nogil:
        for i in range(numbers.shape[0]):
            if i == 0 or numbers[i] != numbers[i - 1]:
                if count < room:
                    starts[count] = i
                count += 1
    return count


def sort_keys(uint64_t[::1] keys, uint64_t[::1] scratch):
    """Sort integers, by 11 bits at a time from the lowest ones on; several times as fast as by comparisons."""
    cdef int64_t counts[2048]
    cdef uint64_t *source
    cdef uint64_t *sorted
    cdef int64_t i, before, own, n = min(keys.shape[0], scratch.shape[0])
    cdef int shift
    if n == 0:
        return
    source, sorted = &keys[0], &scratch[0]
    with nogil:
        for shift in range(0, 64, 11):
            memset(counts, 0, sizeof(counts))
            for i in range(n):
                counts[source[i] >> shift & 2047] += 1
            if counts[source[0] >> shift & 2047] == n:
                continue
            before = 0
            for i in range(2048):
                own, counts[i] = counts[i], before
                before += own
            for i in range(n):
                sorted[counts[source[i] >> shift & 2047]] = source[i]
                counts[source[i] >> shift & 2047] += 1
            source, sorted = sorted, source
        if source != &keys[0]:
            memcpy(&keys[0], source, n * sizeof(uint64_t))


@cython.final
cdef class SequenceSums(Job):
    """Exact sums over each of many sequences of tokens, and over all of their tokens.

    Sequence i is made of the runs [first[i], first[i + 1]), and these of the tokens [start[run], stop[run]).
    """

    cdef const double[::1] nll, weight
    cdef const uint8_t[::1] mask, is_greedy
    cdef const int64_t[::1] first, start, stop
    cdef int64_t[::1] counts
    cdef double[::1] sums, weights
    cdef uint8_t[::1] all_greedy
    cdef tl_token_sums total

    def __init__(self, dict tokens, const int64_t[::1] first, const int64_t[::1] start, const int64_t[::1] stop,
                 dict results):
        # tokens and results are flat arrays by name, bool as uint8; tokens are None where not given
        need_backend()
        self.nll, self.weight = tokens["nll"], tokens["weight"]
        self.mask, self.is_greedy = tokens["mask"], tokens["is_greedy"]
        self.first, self.start, self.stop = first, start, stop
        self.counts, self.sums, self.weights, self.all_greedy = (
            results["count"], results["nll"], results["weight"], results["is_greedy"])
        self.rows = self.counts.shape[0]
        self.total.has_weights = self.weight is not None

    cdef double cost_of_row(self) noexcept:
        """Cost of the sums over a sequence of average length."""
        return SEQUENCE + self.nll.shape[0] * (TOKEN if self.weight is None else WEIGHTED_TOKEN) / max(self.rows, 1)

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_tokens tokens
        cdef tl_sequence sequence
        cdef tl_token_sums sums
        cdef int64_t i, run
        memset(&sums, 0, sizeof(sums))
        memset(&tokens, 0, sizeof(tokens))
        sums.has_weights = self.total.has_weights
        if self.nll.shape[0] > 0:
            tokens.nll = &self.nll[0]
            tokens.weight = &self.weight[0] if self.weight is not None else NULL
            tokens.mask = &self.mask[0] if self.mask is not None else NULL
            tokens.is_greedy = &self.is_greedy[0] if self.is_greedy is not None else NULL
        for i in range(start, stop):
            run = self.first[i]
            sequence = tl_sum_sequence(backend, &tokens, &self.start[run], &self.stop[run], self.first[i + 1] - run,
                                       &sums, cancel)
            self.counts[i], self.sums[i], self.weights[i] = sequence.count, sequence.nll, sequence.weight
            self.all_greedy[i] = sequence.count > 0 and sequence.greedy == sequence.count
            if i % SEQUENCES_BETWEEN_CHECKS == 0 and tl_canceled(cancel):
                return
        tl_token_sums_end(backend, &sums)
        with gil, cython.critical_section(self):
            tl_token_sums_merge(&self.total, &sums)

    def totals(self):
        """Exact sums over all tokens: `moments` of weight times nll and of the weights, `sum_of_products` of both."""
        cdef tl_token_sums *total = &self.total
        return (
            (integer_of_sum(TL_SUM, &total.nll), total.nll.special, integer_of_sum(TL_SQUARES, &total.nll_squares)),
            (integer_of_sum(TL_SUM, &total.weight), total.weight.special,
             integer_of_sum(TL_SQUARES, &total.weight_squares)),
            integer_of_sum(TL_SQUARES, &total.products),
        )
