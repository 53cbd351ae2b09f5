# Jobs that read whole rows: everything that needs a logsumexp, statistics of tokens.

cdef class LogSumExpJob(RowJob):
    """Finds the logsumexp of all classes but the target, from which `finish_row` makes the result.

    Class-major rows are reduced together, as many as share cache lines.
    """

    cdef bint is_class_major

    cdef double finish_row(self, int64_t row, const tl_row *logits, int64_t target, const tl_lse_acc *others,
                           tl_cancel *cancel) noexcept nogil:
        """The number of a row."""
        return 0

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row logits = self.row_at(row)
        cdef tl_lse_acc others
        tl_lse_row(backend, &logits, target, &others, cancel)
        return self.finish_row(row, &logits, target, &others, cancel)

    cdef bint has_overflowed(self, const tl_row *logits, int64_t target, const tl_lse_acc *others) noexcept nogil:
        """Whether log-odds are nan: scaled logits may have overflowed, so the row is reduced again by itself."""
        cdef double log_odds = 0
        if self.logit_scale > 1:
            log_odds = tl_log_odds_against(others, logits, tl_logit_at(backend, logits, target))
        return log_odds != log_odds

    def rows_at_once(self):
        return TL_ROWS_PER_CACHE_LINE(self.scores.dtype) if self.is_class_major else 1

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row logits[MAX_CLASS_MAJOR_ROWS]
        cdef tl_lse_acc others[MAX_CLASS_MAJOR_ROWS]
        cdef int64_t number[MAX_CLASS_MAJOR_ROWS]
        cdef int64_t targets[MAX_CLASS_MAJOR_ROWS]
        cdef int64_t row, target
        cdef int i, count
        cdef void *transposed = malloc(TL_TRANSPOSED_BYTES) if self.is_class_major else NULL
        if transposed == NULL:
            RowJob.run_range(self, start, stop, totals, cancel)
            return
        while start < stop:
            count = 0
            for row in range(start, min(stop, start + TL_ROWS_PER_CACHE_LINE(self.scores.dtype))):
                target = self.positions.target_of(row)
                if self.positions.is_unmasked(row, target) and self.accepts(row, target, totals):
                    logits[count], number[count], targets[count] = self.row_at(row), row, target
                    count += 1
                else:
                    self.mask_row(row)
            tl_lse_class_major(backend, logits, targets, count, transposed, others, cancel)
            for i in range(count):
                row, target = number[i], targets[i]
                if self.has_overflowed(&logits[i], target, &others[i]):
                    self.add(row, target, self.reduce_row(row, target, totals, cancel), totals)
                else:
                    self.add(row, target, self.finish_row(row, &logits[i], target, &others[i], cancel), totals)
            start += TL_ROWS_PER_CACHE_LINE(self.scores.dtype)
        free(transposed)


@cython.final
cdef class LogSumExp(LogSumExpJob):
    """The logsumexp of each row."""

    def __init__(self, Scores scores, Positions positions, numbers):
        self.set_up(scores, positions, numbers)
        self.is_class_major = scores.is_class_major()

    cdef double finish_row(self, int64_t row, const tl_row *logits, int64_t target, const tl_lse_acc *others,
                           tl_cancel *cancel) noexcept nogil:
        return tl_logsumexp_of(backend, logits, others, -1, NULL, cancel)


@cython.final
cdef class Softmax(LogSumExpJob):
    """Writes softmax or log_softmax of each row."""

    cdef View out
    cdef bint is_log, nontemporal_stores

    def __init__(self, Scores scores, Positions positions, numbers, bint is_log, out, int out_dtype):
        self.set_up(scores, positions, numbers)
        self.is_log, self.is_class_major = is_log, scores.is_class_major()
        open_view(&self.out, out, out_dtype, scores.axis, True)
        self.nontemporal_stores = self.out.buffer.len >= NONTEMPORAL_BYTES
        self.row_bytes *= 2

    def __dealloc__(self):
        PyBuffer_Release(&self.out.buffer)

    cdef double finish_row(self, int64_t row, const tl_row *logits, int64_t target, const tl_lse_acc *others,
                           tl_cancel *cancel) noexcept nogil:
        cdef tl_row out = row_at(&self.out, row)
        cdef tl_lse lse = tl_lse_finish(others, logits)
        cdef double logsumexp = tl_logsumexp(lse)
        if logsumexp - logsumexp != 0:
            tl_fill(&out, NAN)
        elif self.is_log:
            tl_log_softmax(backend, logits, lse, &out, self.nontemporal_stores, cancel)
        else:
            tl_softmax(backend, logits, lse, &out, self.nontemporal_stores, cancel)
        return logsumexp


@cython.final
cdef class CrossEntropy(LogSumExpJob):
    """The cross-entropy of logits, for class ids or distributions, and its gradient if it is wanted: see loss.h."""

    cdef View grad
    cdef double label_smoothing, z_loss, grad_scale
    cdef bint nontemporal_stores

    def __init__(self, Scores scores, Positions positions, numbers, double logit_scale, double softcap,
                 double label_smoothing, double z_loss, grad=None, int grad_dtype=0, bint of_mean=False):
        # the gradient goes to `grad`, and is that of the mean loss if it is `of_mean`
        self.set_up(scores, positions, numbers)
        self.logit_scale, self.softcap, self.label_smoothing, self.z_loss = (
            logit_scale, softcap, label_smoothing, z_loss)
        self.is_class_major = positions.by_class and scores.is_class_major()
        if not positions.by_class:
            self.row_bytes += scores.classes * tl_itemsize(positions.targets_view.dtype)
        self.grad_scale = 1
        if grad is not None:
            open_view(&self.grad, grad, grad_dtype, scores.axis, True)
            self.nontemporal_stores = self.grad.buffer.len >= NONTEMPORAL_BYTES
            self.row_bytes *= 2
            if of_mean:
                self.grad_scale = positions.mean_factor()

    def __dealloc__(self):
        PyBuffer_Release(&self.grad.buffer)

    cdef tl_loss loss_at(self, int64_t row, int64_t target, tl_row *grad) noexcept nogil:
        """What the loss of a row depends on; its gradient's row is written to `grad`."""
        cdef tl_loss loss
        loss.soft = self.positions.soft_target(row, self.label_smoothing)
        loss.target, loss.z_loss, loss.target_weight, loss.grad = target, self.z_loss, 1, NULL
        loss.grad_scale, loss.nontemporal_stores = self.grad_scale, self.nontemporal_stores
        if target >= 0:
            loss.target_weight = self.positions.class_weight(target)
        if is_given(&self.grad):
            grad[0] = row_at(&self.grad, row)
            loss.grad = grad
        return loss

    cdef double finish_row(self, int64_t row, const tl_row *logits, int64_t target, const tl_lse_acc *others,
                           tl_cancel *cancel) noexcept nogil:
        cdef tl_row grad
        cdef tl_loss loss = self.loss_at(row, target, &grad)
        return tl_loss_of_class(backend, logits, &loss, others, cancel)

    cdef double loss_of_row(self, int64_t row, const tl_row *logits, int64_t target, Totals *totals,
                            tl_cancel *cancel) noexcept nogil:
        cdef tl_row grad
        cdef tl_loss loss
        cdef tl_lse_acc others
        cdef int64_t argmax, nonzero
        if target >= 0:
            tl_lse_row(backend, logits, target, &others, cancel)
            return self.finish_row(row, logits, target, &others, cancel)
        loss = self.loss_at(row, target, &grad)
        argmax = tl_soft_target_argmax(backend, &loss.soft, logits.count, &nonzero, cancel)
        if not self.accepts_distribution(row, &loss.soft, argmax, nonzero, totals, cancel):
            return 0
        return tl_loss_of_distribution(backend, logits, &loss, argmax, cancel)

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row logits = self.row_at(row)
        cdef double loss
        if self.z_loss == 0 and is_given(&self.grad):  # first, since the gradient may be written over the logits
            self.shift_if_overflowing(row, &logits)
        loss = self.loss_of_row(row, &logits, target, totals, cancel)
        if loss != loss and self.z_loss == 0 and not is_given(&self.grad) and self.shift_if_overflowing(row, &logits):
            loss = self.loss_of_row(row, &logits, target, totals, cancel)
        return loss

    cdef void mask_row(self, int64_t row) noexcept nogil:
        cdef tl_row grad
        if is_given(&self.grad):
            grad = row_at(&self.grad, row)
            tl_fill(&grad, 0)


@cython.final
cdef class TokenStats(RowJob):
    """The columns of a token."""

    cdef double[::1] logsumexp, entropy, top_logprobs
    cdef int64_t[::1] rank, argmax, top_ids
    cdef uint8_t[::1] is_greedy, kept
    cdef int64_t top_k

    def __init__(self, Scores scores, Positions positions, nll, double logit_scale, double softcap, int64_t top_k,
                 dict columns):
        # columns are flat arrays by name, those of bool as uint8
        self.set_up(scores, positions, nll)
        self.need_class_ids()
        self.logit_scale, self.softcap, self.top_k = logit_scale, softcap, top_k
        self.logsumexp, self.entropy = columns["logsumexp"], columns["entropy"]
        self.rank, self.argmax = columns["rank"], columns["argmax"]
        self.is_greedy, self.kept = columns["is_greedy"], columns["kept"]
        self.top_ids, self.top_logprobs = columns["top_ids"], columns["top_logprobs"]

    cdef tl_topk top_of(self, int64_t row) noexcept nogil:
        """Room for the likeliest classes of a row, where they are written."""
        cdef tl_topk top
        top.most, top.count, top.value, top.id = self.top_k, 0, NULL, NULL
        if self.top_k > 0:
            top.value, top.id = &self.top_logprobs[row * self.top_k], &self.top_ids[row * self.top_k]
        return top

    cdef double write_token(self, int64_t row, int64_t target, const tl_token_stats *token) noexcept nogil:
        """Write all but the loss, and return that."""
        self.logsumexp[row], self.entropy[row] = token.logsumexp, token.entropy
        self.rank[row], self.argmax[row] = token.rank, token.argmax
        self.is_greedy[row], self.kept[row] = token.argmax == target, True
        return token.nll

    cdef void mask_row(self, int64_t row) noexcept nogil:
        """Write the values of masked rows that are not 0."""
        cdef int64_t i
        self.argmax[row] = -1
        for i in range(row * self.top_k, (row + 1) * self.top_k):
            self.top_ids[i] = -1

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row logits = self.row_at(row)
        cdef tl_token_stats token
        cdef tl_topk top = self.top_of(row)
        tl_token_stats_row(backend, &logits, target, &token, &top if self.top_k > 0 else NULL, cancel)
        if token.nll != token.nll and self.shift_if_overflowing(row, &logits):
            top = self.top_of(row)
            tl_token_stats_row(backend, &logits, target, &token, &top if self.top_k > 0 else NULL, cancel)
            token.logsumexp += logits.logit_scale * logits.shift
        return self.write_token(row, target, &token)


@cython.final
cdef class KLDivergence(RowJob):
    """KL(softmax(scores) || softmax(other)) of each row."""

    cdef Scores other

    def __init__(self, Scores scores, Positions positions, numbers, Scores other):
        self.set_up(scores, positions, numbers)
        if other.shape != scores.shape or not is_given(&other.view):
            raise ValueError("the other scores have another shape, or no array")
        self.other = other
        self.row_bytes += other.classes * tl_itemsize(other.dtype)

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row base = self.row_at(row), other = row_at(&self.other.view, row)
        if base.compute_dtype != other.compute_dtype:
            base.compute_dtype = other.compute_dtype = (
                TL_FLOAT64 if TL_FLOAT64 in (base.compute_dtype, other.compute_dtype) else TL_FLOAT32
            )
        return tl_kl_divergence(backend, &base, &other, cancel)


@cython.final
cdef class RowMaximum(RowJob):
    """The largest score of each row: reads at the speed of memory, which benchmarks measure the others by."""

    def __init__(self, Scores scores, Positions positions, numbers):
        self.set_up(scores, positions, numbers)

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row scores = self.row_at(row)
        return tl_maximum(backend, &scores)
