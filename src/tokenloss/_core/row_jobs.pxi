# Jobs that read whole rows: logsumexp, softmax, log-probabilities, statistics of tokens.

cdef struct Block:
    # rows that a job works on together: what the kernels need, and each row's number, class id and result
    tl_row_block rows
    int64_t number[BLOCK_ROWS]
    int64_t target[BLOCK_ROWS]
    double values[BLOCK_ROWS]
    bint is_row_alone  # whether its rows are to be reduced as they are: `reduce_row` shifts a row where that helps
    tl_masses masses  # of distributions
    tl_loss losses[BLOCK_ROWS]  # the options and the target of each row
    int n_with_options  # how many of these already have the options of the job


cdef class LogSumExpJob(RowJob):
    """Reduces the other classes of each row against its excluded class; `finish_block` makes the results of that.

    Blocks of rows are reduced together, short ones side by side. Rows that are neither contiguous nor in planes are
    copied first.
    """

    cdef bint is_class_major
    cdef bint copies  # whether rows of the scores are copied
    cdef int most_rows  # of a block
    cdef size_t copied_bytes[2]  # for copies of the scores' rows, and of those of another array; 0 for no copies
    cdef bint excludes_classes  # whether any row has an excluded class, such as its target
    cdef bint excludes_together  # whether `reduce_block` finds the excluded classes
    cdef bint keeps_logits  # whether logits are read again after they were reduced
    cdef bint skips_sum  # whether the sum of numbers is not wanted
    cdef bint shifts  # whether a row that overflows once it is scaled is reduced again, less its maximum
    cdef bint has_plain_rows  # whether `reduce_plain` is to find numbers without blocks
    cdef bint writes_other  # whether it writes rows of the other array
    cdef const View *other_view  # of another array whose rows it reads or writes, or that of the scores

    cdef int set_up(self, Scores scores, Positions positions, numbers) except -1:
        RowJob.set_up(self, scores, positions, numbers)
        self.is_class_major, self.copies = scores.view.in_planes, scores.view.is_copied
        self.find_copies(NULL)
        return 0

    cdef void find_copies(self, const View *other) noexcept:
        """Find how many rows a block has, and the bytes for copies of them, and of rows of another array if given."""
        cdef const View *views[2]
        cdef bint are_copied[2]
        cdef int64_t classes = self.scores.classes
        cdef int i, rows = tl_row_block_rows(classes, self.is_class_major)
        views[0], views[1] = &self.scores.view, other
        are_copied[0], are_copied[1] = self.copies, other != NULL and other.is_copied
        for i in range(2):
            if are_copied[i]:
                rows = min(rows, tl_copied_rows(classes, views[i].dtype, are_copied[0] + are_copied[1]))
        for i in range(2):
            self.copied_bytes[i] = rows * tl_copied_row(classes, views[i].dtype) + 64 if are_copied[i] and rows else 0
        self.most_rows = max(rows, 1)
        self.other_view = other if other != NULL else views[0]
        self.has_plain_rows = (
            not is_given(&self.positions.mask_view) and not are_copied[0] and not are_copied[1]
            and (views[0].is_uniform or views[0].run >= 16) and 1 <= classes <= FEW_CLASSES
            and (self.other_view.is_uniform or self.other_view.run >= 16)
        )

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(25, 1)  # two arrays

    cdef void finish_block(self, Block *block, const tl_block_lse *lse, Totals *totals,
                           tl_cancel *cancel) noexcept nogil:
        """Set the values of the wanted rows of a block, and write their other results."""

    cdef int64_t exclude(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """The excluded class of an unmasked row, -1 for none; MASKED if the row is not to be read."""
        return target

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """Reduce the wanted rows of a block, and finish them."""
        cdef tl_block_lse lse
        tl_odds_of_block(backend, &block.rows, &lse, cancel)
        if self.shifts and not block.is_row_alone:
            self.reduce_overflowed(block, &lse, totals, cancel)
        self.finish_block(block, &lse, totals, cancel)

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef Block block
        block.rows.row, block.rows.count, block.rows.class_major = self.row_at(row), 1, False
        block.is_row_alone, block.n_with_options, block.rows.are_copies = True, 0, False
        block.rows.wanted, block.rows.scratch, block.rows.keeps_logits, block.rows.has_masses = 1, NULL, False, False
        block.rows.data[0], block.number[0], block.target[0] = block.rows.row.data, row, target
        block.rows.excluded[0] = self.exclude(row, target, totals, cancel)
        if block.rows.excluded[0] == MASKED:
            return 0
        block.rows.has_excluded = block.rows.excluded[0] >= 0
        block.values[0] = 0
        if self.shifts:
            self.shift_if_overflowing(row, &block.rows.row)
        self.reduce_block(&block, totals, cancel)
        return block.values[0]

    cdef void reduce_overflowed(self, Block *block, const tl_block_lse *lse, Totals *totals,
                                tl_cancel *cancel) noexcept nogil:
        """Reduce by themselves the rows whose loss is nan, since their scaled logits may have overflowed."""
        cdef int i
        for i in range(block.rows.count):
            if block.rows.wanted >> i & 1 and lse.relative.nll[i] != lse.relative.nll[i]:
                block.rows.wanted &= ~(<uint64_t> 1 << i)
                self.add(block.number[i], block.target[i],
                         self.reduce_row(block.number[i], block.target[i], totals, cancel), totals)

    cdef int load_block_targets(self, int64_t start, int count, int64_t *targets, Totals *totals) noexcept nogil:
        """Class ids of neighbouring rows, MASKED where they are masked or ignored; -1 without class ids.

        Returns whether some may be MASKED.
        """
        cdef int i
        if self.positions.by_class:
            return self.load_targets(start, count, targets, totals) & TL_SOME_MASKED
        for i in range(count):
            targets[i] = -1
        if not is_given(&self.positions.mask_view):
            return TL_SOME_MASKED if self.excludes_classes and not self.excludes_together else 0
        for i in range(count):
            if not self.positions.is_unmasked(start + i, -1):
                targets[i] = MASKED
        return TL_SOME_MASKED

    cdef void load_block(self, int64_t start, int count, uint64_t wanted, Block *block, Totals *totals,
                         tl_cancel *cancel) noexcept nogil:
        """Fill a block with the wanted, unmasked rows; with all if they are class-major: they share cache lines."""
        cdef tl_row_block *rows = &block.rows
        cdef uint64_t every = ~(<uint64_t> 0) >> (BLOCK_ROWS - count)
        cdef int i, some_masked = self.load_block_targets(start, count, block.target, totals)
        find_addresses(&self.scores.view, start, count, rows.data)
        for i in range(count):
            block.number[i], rows.excluded[i] = start + i, block.target[i]
        if self.excludes_classes and not self.positions.by_class and not self.excludes_together:
            for i in range(count):
                if block.target[i] != MASKED:
                    rows.excluded[i] = self.exclude(start + i, block.target[i], totals, cancel)
        rows.count, rows.wanted = count, wanted & every
        for i in range(count if some_masked else 0):
            rows.wanted &= ~(<uint64_t> (rows.excluded[i] == MASKED) << i)
        if rows.wanted != every:
            self.leave_out(block)
        if self.copied_bytes[0] and rows.scratch != NULL:
            rows.row.dtype, rows.row.stride = self.scores.dtype, self.scores.view.buffer.strides[self.scores.axis]
            tl_copy_rows(backend, rows, rows.scratch + self.scratch_bytes())

    cdef void leave_out(self, Block *block) noexcept nogil:
        """Take unwanted rows out of a block, or, where rows share cache lines, only their excluded classes."""
        cdef tl_row_block *rows = &block.rows
        cdef int i, count = 0
        for i in range(rows.count):
            if block.target[i] == MASKED:
                self.mask_row(block.number[i])
            if rows.class_major:
                rows.excluded[i] = max(rows.excluded[i], -1)
            elif rows.wanted >> i & 1:
                block.number[count], block.target[count] = block.number[i], block.target[i]
                rows.data[count], rows.excluded[count] = rows.data[i], rows.excluded[i]
                count += 1
        if not rows.class_major:
            rows.count, rows.wanted = count, ~(<uint64_t> 0) >> (BLOCK_ROWS - count) if count else 0

    cdef size_t scratch_bytes(self) noexcept nogil:
        """The size of the scratch memory of a block."""
        return tl_row_block_bytes(self.scores.classes, self.is_class_major) * (2 if self.excludes_together else 1)

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef Block block
        cdef uint64_t wanted = 0
        cdef int count, pending = 0, most = self.most_rows
        block.rows.row, block.rows.class_major, block.is_row_alone = self.row_of_scores(), self.is_class_major, False
        block.rows.keeps_logits, block.rows.has_excluded = self.keeps_logits, self.excludes_classes
        block.rows.are_copies = False
        block.rows.row.stride = self.scores.view.buffer.strides[self.scores.axis]
        block.rows.scratch, block.n_with_options, block.rows.has_masses = NULL, 0, self.excludes_together
        while start < stop:
            if pending == 0:
                wanted, pending = ~(<uint64_t> 0), BLOCK_ROWS
                start += self.add_plain_rows(start, stop, &wanted, totals, cancel)
                if start == stop:
                    break
            if block.rows.scratch == NULL and (most > 1 or self.copied_bytes[0] or self.copied_bytes[1]):
                block.rows.scratch = <char *> malloc(self.scratch_bytes() + self.copied_bytes[0] + self.copied_bytes[1])
                if block.rows.scratch == NULL:  # a single row needs none
                    most, block.rows.class_major = 1, False
            count = <int> min(stop - start, most, pending)
            self.load_block(start, count, wanted, &block, totals, cancel)
            wanted, pending = wanted >> (count - 1) >> 1, pending - count
            if block.rows.wanted:
                self.reduce_block(&block, totals, cancel)
            if not self.skips_sum:
                self.add_block(&block, totals)
            start += count
        free(block.rows.scratch)

    cdef int64_t add_plain_rows(self, int64_t start, int64_t stop, uint64_t *wanted, Totals *totals,
                                tl_cancel *cancel) noexcept nogil:
        """Add the numbers of the first rows that need no block; return how many they are.

        Of the BLOCK_ROWS rows after these, those whose numbers were added as well are no longer wanted.
        """
        cdef const View *views[2]
        cdef tl_row rows[2]
        cdef int64_t at = start, count = 0, done = 0
        cdef char *planes = self.new_planes() if self.has_plain_rows else NULL
        views[0], views[1] = &self.scores.view, self.other_view
        if planes == NULL and self.planes_rows:
            return 0
        while self.has_plain_rows and at < stop and done == count:
            count = min(stop - at, self.even_rows(views[0], at), self.even_rows(views[1], at))
            rows[0], rows[1] = self.row_at(at), row_at(views[1], at)
            if planes != NULL:
                self.use_planes(views[0], at, count, planes, &rows[0])
                if self.writes_other:
                    self.use_planes(NULL, at, count, planes + PLANES_BYTES, &rows[1])
                elif views[1] != views[0]:
                    self.use_planes(views[1], at, count, planes + PLANES_BYTES, &rows[1])
            done = self.reduce_plain(at, count, rows, wanted, totals)
            if planes != NULL and self.writes_other:
                move_planes(views[1], at, done, planes + PLANES_BYTES, rows[1].stride, True)
            at += done
        free(planes)
        return at - start

    cdef int64_t reduce_plain(self, int64_t start, int64_t count, tl_row *rows, uint64_t *wanted,
                              Totals *totals) noexcept nogil:
        """The same of rows of both arrays that are evenly apart, as in their views; returns how many it reduced."""
        return 0

    cdef void take_planes(self, const View *other) noexcept:
        RowJob.take_planes(self, other)
        if self.planes_rows and not is_given(&self.positions.mask_view) and self.scores.classes <= FEW_CLASSES:
            self.has_plain_rows = True

    cdef void add_block(self, Block *block, Totals *totals) noexcept nogil:
        """As `add`, of the wanted rows of a block."""
        cdef int rows[BLOCK_ROWS]
        cdef double values[BLOCK_ROWS]
        cdef double weights[BLOCK_ROWS]
        cdef int64_t start = block.number[0]
        cdef int i, count = 0
        for i in range(block.rows.count):
            if block.rows.wanted >> i & 1:
                rows[count], values[count] = <int> (block.number[i] - start), block.values[i]
                if self.weighs_class_ids:
                    weights[count] = self.positions.class_weight(block.target[i])
                count += 1
        self.add_many(start, rows, values, weights if self.weighs_class_ids else NULL, count, totals)

    cdef void find_rows(self, const View *view, const Block *block, const char **addresses) noexcept nogil:
        """Write the addresses of the rows of a block in an array of the scores' shape."""
        cdef int64_t start = block.number[0]
        cdef int i, count = block.rows.count
        if block.number[count - 1] == start + count - 1:
            find_addresses(view, start, count, addresses)
        else:
            for i in range(count):
                addresses[i] = address_of(view, block.number[i])

    cdef void find_out_rows(self, const View *array, const Block *block, bint nontemporal_stores,
                            tl_out_block *out) noexcept nogil:
        """Describe the rows of a block in an array of the scores' shape that is written to."""
        out.row, out.nontemporal_stores = new_row(array.dtype, self.scores.classes), nontemporal_stores
        out.row.stride = array.buffer.strides[array.axis]
        self.find_rows(array, block, <const char **> out.data)


@cython.final
cdef class LogSumExp(LogSumExpJob):
    """The logsumexp of each row."""

    def __init__(self, Scores scores, Positions positions, numbers):
        self.set_up(scores, positions, numbers)
        self.take_planes(NULL)

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(12, 0.4)

    cdef int64_t reduce_plain(self, int64_t start, int64_t count, tl_row *rows, uint64_t *wanted,
                              Totals *totals) noexcept nogil:
        if self.numbers == NULL or self.scores.classes == 1:
            return 0
        return tl_lse_of_few(backend, rows, self.scores.view.row_stride, count, &self.numbers[start], wanted)

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        tl_logsumexp_of_block(backend, &block.rows, block.values, cancel)


@cython.final
cdef class Softmax(LogSumExpJob):
    """The softmax or log_softmax of each row."""

    cdef View out
    cdef bint is_log, nontemporal_stores

    def __init__(self, Scores scores, Positions positions, numbers, bint is_log, out, int out_dtype):
        self.set_up(scores, positions, numbers)
        self.is_log, self.copies = is_log, self.copies or self.is_class_major or 0 < scores.classes < 16
        self.is_class_major, self.skips_sum = False, True  # few rows are left by `add_plain_rows`
        self.find_copies(NULL)
        open_view(&self.out, out, out_dtype, scores.axis, True)
        self.nontemporal_stores = self.out.buffer.len >= NONTEMPORAL_BYTES
        self.has_plain_rows, self.other_view = True, &self.out  # kernels refuse rows of other layouts
        self.writes_other = True
        self.take_planes(&self.out)

    def __dealloc__(self):
        PyBuffer_Release(&self.out.buffer)

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(6, 0.4)

    cdef int64_t reduce_plain(self, int64_t start, int64_t count, tl_row *rows, uint64_t *wanted,
                              Totals *totals) noexcept nogil:
        cdef ptrdiff_t apart = self.scores.view.row_stride
        return tl_softmax_rows(backend, &rows[0], apart, count, self.is_log, &rows[1], self.out.row_stride)

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_out_block out
        self.find_out_rows(&self.out, block, self.nontemporal_stores, &out)
        tl_softmax_of_block(backend, &block.rows, self.is_log, &out, cancel)


@cython.final
cdef class ClassLogProbs(LogSumExpJob):
    """The log-probabilities of given classes of each row; the excluded class is its likeliest."""

    cdef View ids
    cdef readonly int64_t count  # given classes of a row
    cdef double[::1] log_probs

    def __init__(self, Scores scores, Positions positions, double logit_scale, double softcap, ids, log_probs):
        # class ids of each row of scores: int64, contiguous along the last axis, not to be changed by any thread
        self.set_up(scores, positions, None)
        self.logit_scale, self.softcap, self.log_probs = logit_scale, softcap, log_probs
        self.excludes_classes = self.skips_sum = True
        self.shifts = logit_scale > 1 and softcap == 0
        cdef int last = ids.ndim - 1
        open_view(&self.ids, ids, TL_INT64, last, False)
        self.count = self.ids.buffer.shape[last]
        if (PyTuple_GetSlice(ids.shape, 0, last) != scores.batch or self.log_probs.shape[0] != self.rows * self.count
                or self.ids.buffer.itemsize != 8 or self.count > 1 and self.ids.buffer.strides[last] != 8):
            raise ValueError("class ids or log-probabilities are those of other scores")

    def __dealloc__(self):
        PyBuffer_Release(&self.ids.buffer)

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(5 + self.count * NAMED_CLASS, 0.35)

    cdef int64_t exclude(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row logits = row_at(&self.scores.view, row)
        cdef int64_t likeliest = -1, good
        good = tl_likeliest_class(&logits, <const int64_t *> address_of(&self.ids, row), self.count, &likeliest, cancel)
        if good < self.count:
            self.refuse(C_BAD_TARGET, row, good, 0, totals)
        return likeliest if good == self.count > 0 else MASKED

    cdef void mask_row(self, int64_t row) noexcept nogil:
        cdef int64_t i
        for i in range(row * self.count, (row + 1) * self.count):
            self.log_probs[i] = NAN

    cdef void finish_block(self, Block *block, const tl_block_lse *lse, Totals *totals,
                           tl_cancel *cancel) noexcept nogil:
        cdef int64_t row
        cdef int i
        for i in range(block.rows.count):
            if block.rows.wanted >> i & 1:
                row = block.number[i]
                tl_class_log_probs(backend, &block.rows, lse, i, <const int64_t *> address_of(&self.ids, row),
                                   self.count, &self.log_probs[row * self.count], cancel)


@cython.final
cdef class TokenStats(LogSumExpJob):
    """The columns of `token_scores`."""

    cdef double[::1] logsumexp, entropy, top_logprobs
    cdef double[::1] confidence, brier, variance  # None where they are not wanted
    cdef bint has_moments, has_second_moments
    cdef int64_t[::1] rank, argmax, top_ids
    cdef uint8_t[::1] is_greedy, kept
    cdef int64_t top_k
    cdef tl_clip clip  # for scores of another kind than logits

    def __init__(self, Scores scores, Positions positions, nll, double logit_scale, double softcap, int64_t top_k,
                 dict columns):
        # columns are flat arrays by name, those of bool as uint8
        self.set_up(scores, positions, nll)
        self.need_class_ids()
        self.logit_scale, self.softcap, self.top_k = logit_scale, softcap, top_k
        self.clip = tl_new_clip(scores.kind == C_PROBS, 1e-12, scores.dtype)  # as cross_entropy_loss
        self.excludes_classes = self.keeps_logits = True
        self.logsumexp, self.entropy = columns["logsumexp"], columns["entropy"]
        self.rank, self.argmax = columns["rank"], columns["argmax"]
        self.is_greedy, self.kept = columns["is_greedy"], columns["kept"]
        self.top_ids, self.top_logprobs = columns["top_ids"], columns["top_logprobs"]

    def add_moments(self, confidence, brier, variance):
        """Set the flat columns of the largest probability, the Brier score, and the variance of log-probabilities."""
        self.check()
        self.has_moments, self.has_second_moments = True, brier is not None or variance is not None
        self.confidence, self.brier, self.variance = confidence, brier, variance
        for column in (confidence, brier, variance):
            if column is not None and column.size != self.rows:
                raise ValueError("moments are not one for each row")

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(40, 3 if self.has_second_moments else 1.2)

    cdef inline void write_moments(self, int64_t row, int64_t target, const tl_row *logits,
                                   const tl_token_stats *token, tl_cancel *cancel) noexcept nogil:
        """Write the moments of a row that is in a cache."""
        cdef tl_second_moments moments
        if self.confidence is not None:
            self.confidence[row] = NAN
            if token.argmax >= 0:
                self.confidence[row] = tl_probability_of(backend, logits, token.argmax, token.logsumexp)
        if not self.has_second_moments:
            return
        moments = tl_second_moments_of(backend, logits, token.logsumexp, cancel)
        if self.brier is not None:
            self.brier[row] = max(moments.squares + 1 - 2 * tl_probability_of(backend, logits, target,
                                                                              token.logsumexp), 0.0)
        if self.variance is not None:
            self.variance[row] = moments.variance

    cdef inline tl_topk top_of(self, int64_t row) noexcept nogil:
        """Room for the likeliest classes of a row, where they are written."""
        cdef tl_topk top
        top.most, top.count, top.candidates, top.value, top.id = self.top_k, 0, 0, NULL, NULL
        if self.top_k > 0:
            top.value, top.id = &self.top_logprobs[row * self.top_k], &self.top_ids[row * self.top_k]
        return top

    cdef inline double checked(self, int64_t row, int64_t target, tl_token_stats *token, Totals *totals) noexcept nogil:
        """As `write_token`, but first check the row's kind; of another kind than logits, the loss is as given."""
        cdef const View *view = &self.scores.view
        cdef double scores[BLOCK_ROWS]  # of the token only, and room for the group that kernels work on
        cdef double nll[BLOCK_ROWS]
        cdef double score
        if self.scores.kind != C_LOGITS:
            score = tl_load(address_of(view, row) + target * view.buffer.strides[view.axis], view.dtype)
            tl_set_score(&self.clip, scores, 0, score)
            if tl_negative_log(backend, &self.clip, scores, 1, nll):
                self.refuse(C_BAD_SCORE, row, target, score, totals)
            token.nll = nll[0]
            self.check_kind(self.scores, row, token.logsumexp, 0, totals)
        return self.write_token(row, target, token)

    cdef inline double write_token(self, int64_t row, int64_t target, const tl_token_stats *token) noexcept nogil:
        """Write the columns of a row but the loss, which is returned."""
        self.logsumexp[row], self.entropy[row] = token.logsumexp, token.entropy
        self.rank[row], self.argmax[row] = token.rank, token.argmax
        self.is_greedy[row], self.kept[row] = token.argmax == target, True
        return token.nll

    cdef void mask_row(self, int64_t row) noexcept nogil:
        cdef int64_t i
        self.numbers[row] = self.logsumexp[row] = self.entropy[row] = NAN
        self.rank[row] = self.argmax[row] = -1
        for i in range(row * self.top_k, (row + 1) * self.top_k):
            self.top_ids[i], self.top_logprobs[i] = -1, NAN

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """Reduce short rows side by side, and by themselves those that the kernel leaves."""
        cdef tl_token_block tokens
        cdef tl_token_stats token
        cdef tl_row logits
        cdef tl_topk tops[BLOCK_ROWS]
        cdef uint64_t reduced
        cdef int i
        if self.top_k > 0:
            for i in range(block.rows.count):
                tops[i] = self.top_of(block.number[i])
        reduced = tl_token_stats_of_block(backend, &block.rows, tops if self.top_k > 0 else NULL, &tokens, cancel)
        for i in range(block.rows.count):
            logits = tl_row_of_block(&block.rows, i)
            if reduced >> i & 1:
                token.nll, token.logsumexp, token.entropy = tokens.nll[i], tokens.logsumexp[i], tokens.entropy[i]
                token.rank, token.argmax = tokens.rank[i], tokens.argmax[i]
                block.values[i] = self.checked(block.number[i], block.target[i], &token, totals)
                if self.has_moments:
                    self.write_moments(block.number[i], block.target[i], &logits, &token, cancel)
            elif block.rows.wanted >> i & 1:
                block.values[i] = self.stats_of(logits, block.number[i], block.target[i], totals, cancel)

    cdef double stats_of(self, tl_row logits, int64_t row, int64_t target, Totals *totals,
                         tl_cancel *cancel) noexcept nogil:
        """Write the columns of a row that is reduced by itself; return its loss."""
        cdef tl_token_stats token
        cdef tl_topk top = self.top_of(row)
        tl_token_stats_row(backend, &logits, target, &token, &top if self.top_k > 0 else NULL, cancel)
        if token.nll != token.nll and self.shift_if_overflowing(row, &logits):
            tl_token_stats_row(backend, &logits, target, &token, &top if self.top_k > 0 else NULL, cancel)
        if self.has_moments:
            self.write_moments(row, target, &logits, &token, cancel)
        if logits.shift != 0:
            token.logsumexp += logits.logit_scale * logits.shift
        return self.checked(row, target, &token, totals)


@cython.final
cdef class TailDraws(RowJob):
    """The logsumexp of each row's classes without some given ones, and classes drawn from these others."""

    cdef const int64_t[:, ::1] excluded
    cdef const double[::1] maxima
    cdef const double[:, ::1] uniforms
    cdef double epsilon
    cdef int64_t[::1] supports
    cdef int64_t[:, ::1] drawn

    def __init__(self, Scores scores, Positions positions, log_masses, excluded, maxima, uniforms, double epsilon,
                 supports, drawn):
        # of each row: excluded classes in ascending order, negative ones for none, and the largest logit of the others
        self.set_up(scores, positions, log_masses)
        self.excluded, self.maxima, self.uniforms = excluded, maxima, uniforms
        self.epsilon, self.supports, self.drawn = epsilon, supports, drawn
        for array in (excluded, maxima, uniforms, supports, drawn):
            if len(array) != self.rows:
                raise ValueError("arrays do not have a row for each row of scores")
        if self.uniforms.shape[1] != self.drawn.shape[1]:
            raise ValueError("there is not a uniform for each draw")

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(200 + 300.0 * self.drawn.shape[1], 1)

    cdef void mask_row(self, int64_t row) noexcept nogil:
        cdef int64_t i
        self.supports[row] = 0
        for i in range(self.drawn.shape[1]):
            self.drawn[row, i] = -1

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row scores = self.row_at(row)
        cdef tl_tail tail
        cdef int64_t count = self.drawn.shape[1]
        tail.count = self.excluded.shape[1]
        tail.excluded = &self.excluded[row, 0] if tail.count > 0 else NULL
        tl_tail_of(backend, &scores, self.maxima[row], &tail, cancel)
        self.mask_row(row)
        if tail.support > 0 and tail.log_mass == tail.log_mass:
            self.supports[row] = tail.support
            if count > 0:
                tl_tail_draw(backend, &scores, &tail, self.epsilon, &self.uniforms[row, 0], count, &self.drawn[row, 0])
        return tail.log_mass


@cython.final
cdef class RowMaximum(RowJob):
    """The largest score of each row: reads at the speed of memory, which benchmarks measure the others by."""

    def __init__(self, Scores scores, Positions positions, numbers):
        self.set_up(scores, positions, numbers)

    cdef double cost_of_row(self) noexcept:
        return cost_of_bytes(self.scores.classes * tl_itemsize(self.scores.dtype))

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row scores = self.row_at(row)
        return tl_maximum(backend, &scores)
