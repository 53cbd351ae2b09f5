# Jobs that read whole rows: logsumexp, softmax, losses of logits and their gradients, statistics of tokens.

cdef struct Block:
    # rows that a job works on together: what the kernels need, and each row's number, class id and result
    tl_row_block rows
    int64_t number[BLOCK_ROWS]
    int64_t target[BLOCK_ROWS]
    double values[BLOCK_ROWS]
    bint is_row_alone  # whether `reduce_row` made it, which shifts a row where that helps


cdef class LogSumExpJob(RowJob):
    """Computes the logsumexp of all classes but the excluded one, from which `finish_block` makes the results.

    Blocks of rows are reduced together: short rows side by side, long class-major ones cache line by cache line.
    """

    cdef bint is_class_major
    cdef bint excludes_classes  # whether any row has an excluded class, such as its target
    cdef bint keeps_logits  # whether logits are read again after they were reduced
    cdef bint shifts  # whether a row that overflows once it is scaled is reduced again, less its maximum

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(8, 0.8)  # two passes, or two arrays

    cdef void finish_block(self, Block *block, const tl_block_lse *lse, Totals *totals,
                           tl_cancel *cancel) noexcept nogil:
        """Set the values of the wanted rows of a block, and write their other results."""

    cdef int64_t exclude(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """The excluded class of an unmasked row, -1 for none; MASKED if the row is not to be read."""
        return target

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """Reduce the wanted rows of a block, and finish them."""
        cdef tl_block_lse lse
        tl_lse_of_block(backend, &block.rows, False, &lse, cancel)
        if self.shifts and not block.is_row_alone:
            self.reduce_overflowed(block, &lse, totals, cancel)
        self.finish_block(block, &lse, totals, cancel)

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef Block block
        block.rows.row, block.rows.count, block.rows.class_major = self.row_at(row), 1, False
        block.is_row_alone = True
        block.rows.wanted, block.rows.scratch, block.rows.keeps_logits = 1, NULL, False
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
        """Reduce by themselves the rows whose log-odds are nan, since their scaled logits may have overflowed."""
        cdef int i
        for i in range(block.rows.count):
            if block.rows.wanted >> i & 1 and lse.odds.log_odds[i] != lse.odds.log_odds[i]:
                block.rows.wanted &= ~(<uint64_t> 1 << i)
                self.add(block.number[i], block.target[i],
                         self.reduce_row(block.number[i], block.target[i], totals, cancel), totals)

    cdef void load_block_targets(self, int64_t start, int count, int64_t *targets, Totals *totals) noexcept nogil:
        """Class ids of neighbouring rows, MASKED where they are masked or ignored; -1 where there are none."""
        cdef int i
        if not self.positions.by_class:
            for i in range(count):
                targets[i] = -1 if self.positions.is_unmasked(start + i, -1) else MASKED
        else:
            self.load_targets(start, count, targets, totals)

    cdef void load_block(self, int64_t start, int count, Block *block, Totals *totals,
                         tl_cancel *cancel) noexcept nogil:
        """Fill a block with the unmasked rows; with all rows if they are class-major, since they share cache lines."""
        cdef tl_row_block *rows = &block.rows
        cdef uint64_t wanted = 0
        cdef int i
        self.load_block_targets(start, count, block.target, totals)
        find_addresses(&self.scores.view, start, count, rows.data)
        for i in range(count):
            block.number[i], rows.excluded[i] = start + i, block.target[i]
        if self.excludes_classes and not self.positions.by_class:
            for i in range(count):
                if block.target[i] != MASKED:
                    rows.excluded[i] = self.exclude(start + i, block.target[i], totals, cancel)
        for i in range(count):
            wanted |= <uint64_t> (rows.excluded[i] != MASKED) << i
        rows.count, rows.wanted = count, wanted
        if wanted != ~(<uint64_t> 0) >> (BLOCK_ROWS - count):
            self.leave_out(block)

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
        return tl_row_block_bytes(self.scores.classes, self.is_class_major)

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef Block block
        cdef int count, most = tl_row_block_rows(self.scores.classes, self.is_class_major)
        block.rows.row, block.rows.class_major, block.is_row_alone = self.row_of_scores(), self.is_class_major, False
        block.rows.keeps_logits, block.rows.has_excluded = self.keeps_logits, self.excludes_classes
        block.rows.row.stride = self.scores.view.buffer.strides[self.scores.axis]
        block.rows.scratch = <char *> malloc(self.scratch_bytes())
        if block.rows.scratch == NULL:  # a single row needs none
            most, block.rows.class_major = 1, False
        while start < stop:
            count = <int> min(stop - start, most)
            self.load_block(start, count, &block, totals, cancel)
            if block.rows.wanted:
                self.reduce_block(&block, totals, cancel)
            self.add_block(&block, totals)
            start += count
        free(block.rows.scratch)

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
        self.is_class_major = scores.is_class_major()

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(5, 0.35)

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_block_lse lse
        tl_lse_of_block(backend, &block.rows, True, &lse, cancel)
        tl_logsumexp_of_block(backend, &block.rows, &lse, block.values, cancel)


@cython.final
cdef class Softmax(LogSumExpJob):
    """The softmax or log_softmax of each row."""

    cdef View out
    cdef bint is_log, nontemporal_stores

    def __init__(self, Scores scores, Positions positions, numbers, bint is_log, out, int out_dtype):
        self.set_up(scores, positions, numbers)
        self.is_log, self.is_class_major, self.keeps_logits = is_log, scores.is_class_major(), True
        open_view(&self.out, out, out_dtype, scores.axis, True)
        self.nontemporal_stores = self.out.buffer.len >= NONTEMPORAL_BYTES

    def __dealloc__(self):
        PyBuffer_Release(&self.out.buffer)

    cdef void finish_block(self, Block *block, const tl_block_lse *lse, Totals *totals,
                           tl_cancel *cancel) noexcept nogil:
        cdef tl_out_block out
        self.find_out_rows(&self.out, block, self.nontemporal_stores, &out)
        tl_softmax_of_block(backend, &block.rows, lse, self.is_log, &out, cancel)

    cdef void add_block(self, Block *block, Totals *totals) noexcept nogil:
        """Add nothing: the sum is not wanted."""


@cython.final
cdef class CrossEntropy(LogSumExpJob):
    """The cross-entropy of logits, for class ids or distributions, and its gradient if it is wanted: see loss.h."""

    cdef View grad
    cdef double label_smoothing, z_loss
    cdef double grad_divisor  # that of the mean loss, or 1
    cdef bint nontemporal_stores

    def __init__(self, Scores scores, Positions positions, numbers, tuple options, grad=None, int grad_dtype=0,
                 bint is_mean_grad=False):
        # options are those of `loss_options`; the gradient goes to `grad`, with `is_mean_grad` that of the mean loss
        self.set_up(scores, positions, numbers)
        self.label_smoothing, self.z_loss, self.logit_scale, self.softcap = options
        self.is_class_major, self.excludes_classes = scores.is_class_major(), True
        self.keeps_logits = grad is not None or self.label_smoothing != 0
        self.shifts = self.logit_scale > 1 and self.softcap == 0 and self.z_loss == 0
        self.grad_divisor = 1
        if grad is not None:
            open_view(&self.grad, grad, grad_dtype, scores.axis, True)
            self.nontemporal_stores = self.grad.buffer.len >= NONTEMPORAL_BYTES
            if is_mean_grad:
                self.grad_divisor = positions.mean_divisor()

    def __dealloc__(self):
        PyBuffer_Release(&self.grad.buffer)

    cdef double cost_of_row(self) noexcept:
        cdef double cost = self.cost_of_scores(8, 0.8) if is_given(&self.grad) else self.cost_of_scores(5, 0.35)
        return cost if self.positions.by_class else cost + cost_of_masses(self.positions)

    cdef tl_loss loss_at(self, int64_t row, int64_t target) noexcept nogil:
        """The target and the options of a row's loss."""
        cdef tl_loss loss
        loss.soft = self.positions.soft_target(row, self.label_smoothing)
        loss.target, loss.z_loss, loss.target_weight, loss.grad = target, self.z_loss, 1, NULL
        loss.grad_scale, loss.nontemporal_stores = 1, self.nontemporal_stores
        if target >= 0:
            loss.target_weight = self.positions.class_weight(target)
        return loss

    cdef int64_t exclude(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_loss loss
        cdef int64_t argmax, nonzero
        if target >= 0:
            return target
        loss = self.loss_at(row, target)
        argmax = tl_soft_target_argmax(backend, &loss.soft, self.scores.classes, &nonzero, cancel)
        return argmax if self.accepts_distribution(row, &loss.soft, argmax, nonzero, totals, cancel) else MASKED

    cdef void finish_block(self, Block *block, const tl_block_lse *lse, Totals *totals,
                           tl_cancel *cancel) noexcept nogil:
        if self.positions.by_class:
            self.finish_class_ids(block, lse, cancel)
        else:
            self.finish_distributions(block, lse, cancel)

    cdef void finish_class_ids(self, Block *block, const tl_block_lse *lse, tl_cancel *cancel) noexcept nogil:
        cdef tl_loss loss
        cdef tl_out_block grads
        cdef double weights[BLOCK_ROWS]
        cdef double grad_scales[BLOCK_ROWS]
        cdef int i
        if not self.keeps_logits and self.z_loss == 0 and not self.weighs_class_ids:
            for i in range(block.rows.count):
                block.values[i] = lse.odds.nll[i]
            return
        loss = self.loss_at(block.number[0], -1)
        if self.weighs_class_ids:
            for i in range(block.rows.count):
                weights[i] = 0
                if block.rows.excluded[i] >= 0:
                    weights[i] = self.positions.class_weight(block.rows.excluded[i])
        if is_given(&self.grad):
            self.find_out_rows(&self.grad, block, self.nontemporal_stores, &grads)
            self.find_grad_scales(block, grad_scales)
        tl_class_losses_of_block(backend, &block.rows, lse, &loss, weights if self.weighs_class_ids else NULL,
                                 grad_scales, &grads if is_given(&self.grad) else NULL, block.values, cancel)

    cdef void find_grad_scales(self, const Block *block, double *grad_scales) noexcept nogil:
        """Write the factors of the gradients of a block's rows: their weights over the divisor."""
        cdef double common_scale = 1 / self.grad_divisor
        cdef int i
        for i in range(BLOCK_ROWS):
            grad_scales[i] = common_scale
        if self.weighs_rows:
            for i in range(block.rows.count):
                grad_scales[i] = self.positions.sample_weight_of(block.number[i]) / self.grad_divisor

    cdef void finish_distributions(self, Block *block, const tl_block_lse *lse, tl_cancel *cancel) noexcept nogil:
        cdef tl_loss losses[BLOCK_ROWS]
        cdef tl_out_block grads
        cdef double grad_scales[BLOCK_ROWS]
        cdef int i
        for i in range(block.rows.count):
            losses[i] = self.loss_at(block.number[i], -1)
        if is_given(&self.grad):
            self.find_out_rows(&self.grad, block, self.nontemporal_stores, &grads)
            self.find_grad_scales(block, grad_scales)
            for i in range(block.rows.count):
                losses[i].grad_scale = grad_scales[i]
        tl_mass_losses_of_block(backend, &block.rows, lse, losses, &grads if is_given(&self.grad) else NULL,
                                block.values, cancel)

    cdef void mask_row(self, int64_t row) noexcept nogil:
        cdef tl_row grad
        if is_given(&self.grad):
            grad = row_at(&self.grad, row)
            tl_fill(&grad, 0)


@cython.final
cdef class ClassLogProbs(LogSumExpJob):
    """The log-probabilities of given classes of each row, of which the likeliest is the excluded class."""

    cdef View ids
    cdef readonly int64_t count  # given classes of a row
    cdef double[::1] log_probs

    def __init__(self, Scores scores, Positions positions, double logit_scale, double softcap, ids, log_probs):
        # class ids of each row of scores: int64, contiguous along the last axis, not to be changed by any thread
        self.set_up(scores, positions, None)
        self.logit_scale, self.softcap, self.log_probs = logit_scale, softcap, log_probs
        self.is_class_major, self.excludes_classes = scores.is_class_major(), True
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

    cdef void add_block(self, Block *block, Totals *totals) noexcept nogil:
        """Add nothing: the sum is not wanted."""


@cython.final
cdef class TokenStats(LogSumExpJob):
    """The columns of `token_scores`."""

    cdef double[::1] logsumexp, entropy, top_logprobs
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
        self.clip = new_clip(scores.kind == C_PROBS, 1e-12)  # as cross_entropy_loss
        self.is_class_major, self.excludes_classes, self.keeps_logits = scores.is_class_major(), True, True
        self.logsumexp, self.entropy = columns["logsumexp"], columns["entropy"]
        self.rank, self.argmax = columns["rank"], columns["argmax"]
        self.is_greedy, self.kept = columns["is_greedy"], columns["kept"]
        self.top_ids, self.top_logprobs = columns["top_ids"], columns["top_logprobs"]

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(15, 1)

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
        cdef double nll
        if self.scores.kind != C_LOGITS:
            nll = tl_load(address_of(view, row) + target * view.buffer.strides[view.axis], view.dtype)
            if tl_is_refused(&self.clip, nll):
                self.refuse(C_BAD_SCORE, row, target, nll, totals)
            tl_negative_log(backend, &self.clip, &nll, 1)
            token.nll = nll
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
        cdef tl_topk tops[BLOCK_ROWS]
        cdef uint64_t reduced
        cdef int i
        if self.top_k > 0:
            for i in range(block.rows.count):
                tops[i] = self.top_of(block.number[i])
        reduced = tl_token_stats_of_block(backend, &block.rows, tops if self.top_k > 0 else NULL, &tokens, cancel)
        for i in range(block.rows.count):
            if reduced >> i & 1:
                token.nll, token.logsumexp, token.entropy = tokens.nll[i], tokens.logsumexp[i], tokens.entropy[i]
                token.rank, token.argmax = tokens.rank[i], tokens.argmax[i]
                block.values[i] = self.checked(block.number[i], block.target[i], &token, totals)
            elif block.rows.wanted >> i & 1:
                block.values[i] = self.reduce_row(block.number[i], block.target[i], totals, cancel)

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row logits = self.row_at(row)
        cdef tl_token_stats token
        cdef tl_topk top = self.top_of(row)
        tl_token_stats_row(backend, &logits, target, &token, &top if self.top_k > 0 else NULL, cancel)
        if token.nll != token.nll and self.shift_if_overflowing(row, &logits):
            tl_token_stats_row(backend, &logits, target, &token, &top if self.top_k > 0 else NULL, cancel)
            token.logsumexp += logits.logit_scale * logits.shift
        return self.checked(row, target, &token, totals)


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
