# The job of losses of logits and their gradients.

@cython.final
cdef class CrossEntropy(LogSumExpJob):
    """The cross-entropy of logits, for class ids or distributions, and its gradient if it is wanted: see loss.h."""

    cdef View grad
    cdef double label_smoothing, z_loss
    cdef double grad_divisor  # that of the mean loss, or 1
    cdef bint nontemporal_stores
    cdef bint is_plain  # whether `add_plain_rows` finds losses
    cdef double[FEW_CLASSES + 1] weight_after  # 0 for masked rows, then the weight of each class, if there are weights

    def __init__(self, Scores scores, Positions positions, numbers, tuple options, bint is_mean=False, grad=None,
                 int grad_dtype=0):
        # options are those of `loss_options`; the gradient goes to `grad`, with `is_mean` that of the mean loss
        cdef int i
        self.set_up(scores, positions, numbers)
        self.label_smoothing, self.z_loss, self.logit_scale, self.softcap = options
        self.is_class_major, self.excludes_classes = scores.is_class_major(), True
        self.keeps_logits = grad is not None or not positions.by_class
        self.sums_logits = positions.by_class and self.label_smoothing != 0 and not self.weighs_class_ids
        self.excludes_together = (not positions.by_class and not positions.is_integer
                                  and is_given(&positions.targets_view))
        self.shifts = self.logit_scale > 1 and self.softcap == 0 and self.z_loss == 0
        self.grad_divisor = 1
        if is_mean and self.z_loss != 0 and self.weighs_class_ids:
            self.z_loss *= positions.mean_class_weight()  # a mean is divided by the weights of classes, z-loss has none
        if grad is not None:
            open_view(&self.grad, grad, grad_dtype, scores.axis, True)
            self.nontemporal_stores = self.grad.buffer.len >= NONTEMPORAL_BYTES
            if is_mean:
                self.grad_divisor = positions.mean_divisor()
        self.is_plain = positions.by_class and self.has_plain_losses()
        self.refuses_bad_targets = self.is_plain and grad is None
        for i in range(min(positions.classes, FEW_CLASSES) if self.is_plain and self.weighs_class_ids else 0):
            self.weight_after[i + 1] = positions.class_weight(i)

    def __dealloc__(self):
        PyBuffer_Release(&self.grad.buffer)

    cdef bint has_plain_losses(self) noexcept:
        """Whether options of losses for class ids, and how rows lie, are what `add_plain_rows` takes."""
        cdef Scores scores = self.scores
        cdef tl_row row = self.row_of_scores()
        cdef int size = tl_itemsize(scores.dtype)
        if is_given(&self.grad) and (self.label_smoothing != 0 and self.weighs_class_ids
                                     or self.grad.dtype != scores.dtype or scores.dtype not in (TL_FLOAT32, TL_FLOAT64)
                                     or size not in (self.grad.buffer.strides[scores.axis], self.grad.row_stride)):
            return False
        if scores.classes > FEW_CLASSES and (is_given(&self.grad) or self.label_smoothing != 0):
            return False
        return (2 <= scores.classes <= NLL_CLASSES and is_given(&scores.view) and scores.dtype < TL_SWAPPED
                and not tl_is_transformed(&row)
                and (scores.view.buffer.strides[scores.axis] == size
                     or scores.view.row_stride == size and scores.classes <= FEW_CLASSES))

    cdef double cost_of_row(self) noexcept:
        cdef double cost
        if is_given(&self.grad):
            cost = self.cost_of_classes(7, 0.6) if self.is_plain else self.cost_of_scores(18, 0.55)
        elif self.is_plain and self.scores.classes <= FEW_CLASSES:
            cost = self.cost_of_classes(PLAIN_ROW, 0.35)
        elif self.positions.by_class and FEW_CLASSES < self.scores.classes <= NLL_CLASSES:
            cost = NLL_ROW + self.cost_of_classes(5, 0.35 * NLL_CLASS)
        else:
            cost = self.cost_of_scores(12, 0.35)
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

    cdef size_t scratch_bytes(self) noexcept nogil:
        cdef size_t count = LogSumExpJob.scratch_bytes(self)
        return count + tl_masses_bytes(self.scores.classes, self.is_class_major) if self.excludes_together else count

    cdef void find_losses(self, Block *block) noexcept nogil:
        """Write the targets and options of a block's distributions."""
        cdef const char *addresses[BLOCK_ROWS]
        cdef int i, count = block.rows.count
        if block.n_with_options < count:
            block.losses[0] = self.loss_at(block.number[0], -1)
            for i in range(1, count):
                block.losses[i] = block.losses[0]
            block.n_with_options = count
        if is_given(&self.positions.targets_view):
            self.find_rows(&self.positions.targets_view, block, addresses)
            for i in range(count):
                block.losses[i].soft.mass = addresses[i]

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef char *memory = block.rows.scratch
        if not self.positions.by_class:
            self.find_losses(block)
            block.masses.usable = 0
        if self.excludes_together and not block.is_row_alone:
            if memory != NULL:
                memory += LogSumExpJob.scratch_bytes(self)
            tl_exclude_by_masses(backend, &block.rows, block.losses, memory, &block.masses, cancel)
        LogSumExpJob.reduce_block(self, block, totals, cancel)

    cdef int64_t add_plain_rows(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef int64_t targets[MAX_PROBABILITY_ROWS]
        cdef double weights[MAX_PROBABILITY_ROWS]
        cdef double values[MAX_PROBABILITY_ROWS]
        cdef double *class_weights = weights if self.weighs_class_ids else NULL
        cdef const View *view = &self.scores.view
        cdef double scales[MAX_PROBABILITY_ROWS]
        cdef tl_plain_grads grads
        cdef tl_row row
        cdef tl_loss loss
        cdef int64_t first = start, run, added
        cdef int i, count = 0, done = 0, some_masked
        cdef bint has_grad = is_given(&self.grad), sums_only
        if not self.is_plain:
            return 0
        while self.scores.classes > FEW_CLASSES and start < stop:
            start += self.add_rows_of_many(start, stop, totals, cancel)
        sums_only = (self.positions.ids_in_place(0) != NULL and not has_grad and self.numbers == NULL
                     and not (self.weighs_class_ids or self.weighs_rows) and self.label_smoothing == self.z_loss == 0)
        row, loss = self.row_of_scores(), self.loss_at(start, -1)
        row.stride = view.buffer.strides[self.scores.axis]
        while start < stop and done == count:  # else a row is far out
            run = min(stop - start, left_of_run(view, start))
            row.data = address_of(view, start)
            if sums_only and run >= 16:  # kernels leave rows whose id is no class
                added = tl_add_plain_losses(backend, &row, view.row_stride, self.positions.ids_in_place(start),
                                            run & ~15, &totals.losses)
                sums_only = added > 0
                totals.unmasked += added
                start += added
                continue
            count = <int> min(run, <int64_t> MAX_PROBABILITY_ROWS)
            if has_grad:
                count = <int> min(count, left_of_run(&self.grad, start))
                grads.row, grads.apart, grads.scale = row_at(&self.grad, start), self.grad.row_stride, scales
                self.find_grad_scales(start, NULL, count, scales)
            some_masked = self.load_targets(start, count, targets, totals) & TL_SOME_MASKED
            memset(&targets[count], 0, (-count & 15) * sizeof(int64_t))
            for i in range(count + (-count & 15) if self.weighs_class_ids else 0):
                weights[i] = self.weight_after[max(targets[i], -1) + 1]
            done = <int> tl_plain_losses(backend, &row, view.row_stride, &loss, targets, class_weights, some_masked,
                                         count, &grads if has_grad else NULL, values)
            for i in range(done if has_grad and some_masked else 0):
                if targets[i] == MASKED:
                    self.mask_row(start + i)
            self.add_plain_losses(start, targets if some_masked else NULL, done, values, class_weights, totals)
            start += done
        return start - first

    cdef int64_t add_rows_of_many(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """As `add_plain_rows`, of many classes."""
        cdef int64_t targets[MAX_PROBABILITY_ROWS]
        cdef double weights[MAX_PROBABILITY_ROWS]
        cdef double values[MAX_PROBABILITY_ROWS]
        cdef double *class_weights = weights if self.weighs_class_ids else NULL
        cdef uint64_t left[4]  # a bit for each of these rows
        cdef tl_row row = self.row_of_scores()
        cdef tl_loss loss = self.loss_at(start, -1)
        cdef int i, some_masked, count = <int> min(stop - start, left_of_run(&self.scores.view, start),
                                                   <int64_t> MAX_PROBABILITY_ROWS)
        row.data = address_of(&self.scores.view, start)
        some_masked = self.load_targets(start, count, targets, totals) & TL_SOME_MASKED
        for i in range(count if self.weighs_class_ids else 0):
            weights[i] = self.positions.class_weight(targets[i]) if targets[i] != MASKED else 0
        tl_plain_losses_of_many(backend, &row, self.scores.view.row_stride, &loss, targets, class_weights, count,
                                values, left)
        for i in range(count):
            if left[i // BLOCK_ROWS] >> i % BLOCK_ROWS & 1:
                values[i] = self.reduce_row(start + i, targets[i], totals, cancel) if targets[i] != MASKED else 0
        self.add_plain_losses(start, targets if some_masked else NULL, count, values, class_weights, totals)
        return count

    cdef void add_plain_losses(self, int64_t start, const int64_t *targets, int count, double *values,
                               double *class_weights, Totals *totals) noexcept nogil:
        """Add losses of neighbouring rows, 0 where masked, up; targets are NULL if none is masked."""
        if self.weighs_class_ids or self.weighs_rows:
            self.weigh_plain_rows(start, targets, count, values, class_weights, totals)
        tl_superacc_add_many(backend, &totals.losses, values, count)
        totals.unmasked += count_of_unmasked(targets, count) if targets != NULL else count
        if self.numbers != NULL:
            memcpy(self.numbers + start, values, count * sizeof(double))

    cdef void weigh_plain_rows(self, int64_t start, const int64_t *targets, int count, double *values, double *weights,
                               Totals *totals) noexcept nogil:
        """Multiply losses and class weights by sample weights, if given, with 0 for masked rows; add weights up."""
        cdef double buffer[MAX_PROBABILITY_ROWS]
        cdef const double *row_weights = buffer
        cdef int i
        if self.weighs_rows:
            row_weights = self.positions.sample_weights(start, count, buffer)
            for i in range(count if targets != NULL else 0):
                buffer[i] = row_weights[i] if targets[i] != MASKED else 0
            row_weights = row_weights if targets == NULL else buffer
            for i in range(count):
                values[i] *= row_weights[i]
            for i in range(count if weights != NULL else 0):
                weights[i] *= row_weights[i]
        tl_superacc_add_many(backend, &totals.weights, row_weights if weights == NULL else weights, count)

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
        if not (self.keeps_logits or self.weighs_class_ids or self.label_smoothing != 0 or self.z_loss != 0):
            for i in range(block.rows.count):
                block.values[i] = lse.relative.nll[i]
            return
        loss = self.loss_at(block.number[0], -1)
        for i in range(block.rows.count if self.weighs_class_ids else 0):
            weights[i] = self.positions.class_weight(block.rows.excluded[i]) if block.rows.excluded[i] >= 0 else 0
        if is_given(&self.grad):
            self.find_out_rows(&self.grad, block, self.nontemporal_stores, &grads)
            self.find_grad_scales(0, block.number, block.rows.count, grad_scales)
        tl_class_losses_of_block(backend, &block.rows, lse, &loss, weights if self.weighs_class_ids else NULL,
                                 grad_scales, &grads if is_given(&self.grad) else NULL, block.values, cancel)

    cdef void find_grad_scales(self, int64_t start, const int64_t *numbers, int count, double *scales) noexcept nogil:
        """Write the factors of the gradients of rows, up to a whole group: their weights over the divisor."""
        cdef double common_scale = 1 / self.grad_divisor
        cdef int i
        for i in range(count + (-count & 15)):
            scales[i] = common_scale
        if self.weighs_rows:
            for i in range(count):
                scales[i] = self.positions.sample_weight_of(start + i if numbers == NULL else numbers[i])
                scales[i] /= self.grad_divisor

    cdef void finish_distributions(self, Block *block, const tl_block_lse *lse, tl_cancel *cancel) noexcept nogil:
        cdef tl_out_block grads
        cdef double grad_scales[BLOCK_ROWS]
        cdef int i
        if is_given(&self.grad):
            self.find_out_rows(&self.grad, block, self.nontemporal_stores, &grads)
            self.find_grad_scales(0, block.number, block.rows.count, grad_scales)
            for i in range(block.rows.count):
                block.losses[i].grad_scale = grad_scales[i]
        tl_mass_losses_of_block(backend, &block.rows, lse, block.losses, &block.masses,
                                &grads if is_given(&self.grad) else NULL, block.values, cancel)

    cdef void mask_row(self, int64_t row) noexcept nogil:
        cdef tl_row grad
        if is_given(&self.grad):
            grad = row_at(&self.grad, row)
            tl_fill(&grad, 0)
