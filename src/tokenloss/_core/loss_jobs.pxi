# The job of losses of logits and their gradients.

@cython.final
cdef class CrossEntropy(LogSumExpJob):
    """The cross-entropy of logits, for class ids or distributions, and its gradient if it is wanted: see loss.h."""

    cdef View grad
    cdef double label_smoothing, z_loss
    cdef double grad_divisor  # that of the mean loss, or 1
    cdef bint nontemporal_stores
    cdef bint is_plain  # whether `add_plain_rows` finds losses
    cdef bint sums_only  # of plain losses, unless each number is wanted
    cdef double *class_weights  # of plain losses: of each class, then 0 for masked rows, then the masses of smoothing
    cdef double total_mass  # of these masses

    def __init__(self, Scores scores, Positions positions, numbers, tuple options, bint is_mean=False, grad=None,
                 int grad_dtype=0):
        # options are those of `loss_options`; the gradient goes to `grad`, with `is_mean` that of the mean loss
        self.set_up(scores, positions, numbers)
        self.label_smoothing, self.z_loss, self.logit_scale, self.softcap = options
        self.excludes_classes = True
        self.keeps_logits = grad is not None or not positions.by_class
        self.excludes_together = (not positions.by_class and not positions.is_integer
                                  and is_given(&positions.targets_view))
        if self.excludes_together:
            self.find_copies(&positions.targets_view)
        self.shifts = self.logit_scale > 1 and self.softcap == 0 and self.z_loss == 0
        self.grad_divisor = 1
        if is_mean and self.z_loss != 0 and self.weighs_class_ids:
            self.z_loss *= positions.mean_class_weight()  # a mean is divided by the weights of classes, z-loss has none
        if grad is not None:
            open_view(&self.grad, grad, grad_dtype, scores.axis, True)
            self.nontemporal_stores = self.grad.buffer.len >= NONTEMPORAL_BYTES
            if is_mean:
                self.grad_divisor = positions.mean_divisor()
        self.take_planes(NULL if positions.by_class else &positions.targets_view)
        if grad is not None and not has_short_runs(&self.grad):
            self.planes_rows = 0
        self.is_plain = (positions.by_class or self.excludes_together) and self.has_plain_losses()
        self.sums_only = (grad is None and not (self.weighs_class_ids or self.weighs_rows)
                          and self.label_smoothing == self.z_loss == 0)
        self.refuses_bad_targets = self.is_plain and grad is None
        if self.is_plain and self.weighs_class_ids:
            self.find_class_weights()

    def __dealloc__(self):
        PyBuffer_Release(&self.grad.buffer)
        free(self.class_weights)

    cdef int find_class_weights(self) except -1:
        """Set the weights and masses of the classes."""
        cdef int64_t k, classes = self.scores.classes
        cdef tl_row row = self.row_of_scores()
        cdef tl_loss loss = self.loss_at(0, -1)
        cdef tl_cancel cancel = self.new_cancel(False)
        self.class_weights = <double *> malloc((2 * classes + 1) * sizeof(double))
        if self.class_weights == NULL:
            raise MemoryError
        self.class_weights[classes] = 0
        for k in range(classes):
            self.class_weights[k] = self.positions.class_weight(k)
        if self.label_smoothing != 0:
            for k in range(classes):
                self.class_weights[classes + 1 + k] = tl_soft_target_at(&loss.soft, k)
            row.data, row.stride = <const char *> &self.total_mass, 0  # 0: logits do not change the sum of the masses
            tl_target_dot(backend, &row, &loss.soft, 0, &self.total_mass, &cancel)
        return 0

    cdef bint has_plain_losses(self) noexcept:
        """Whether options of losses, and how rows lie, are what `add_plain_rows` takes."""
        cdef Scores scores = self.scores
        cdef tl_row row = self.row_of_scores()
        cdef const View *masses = &self.positions.targets_view
        cdef int64_t stride, size = tl_itemsize(scores.dtype), most = tl_nll_classes(row.compute_dtype)
        cdef int64_t together = 1 if self.planes_rows else 16 if self.positions.by_class and is_given(&self.grad) else 8
        if (not 2 <= scores.classes <= most or not is_given(&scores.view)
                or scores.view.run < together and not scores.view.is_uniform
                or is_given(&self.grad) and (
                    scores.dtype >= TL_SWAPPED or tl_is_transformed(&row) or self.grad.dtype != scores.dtype
                    or size not in (self.grad.buffer.strides[scores.axis], self.grad.row_stride)
                    or self.grad.run < together and not self.grad.is_uniform)):
            return False
        if not self.positions.by_class:
            most = FEW_CLASSES if row.compute_dtype == TL_FLOAT64 else MASSES_CLASSES
            return not (masses.run < together and not masses.is_uniform or scores.classes > most
                        or tl_single_or_double(masses.dtype) != tl_single_or_double(row.compute_dtype))
        if scores.classes <= FEW_CLASSES and not is_given(&self.grad):
            return True
        stride = scores.view.buffer.strides[scores.axis]
        if scores.dtype >= TL_SWAPPED or tl_is_transformed(&row) or size not in (stride, scores.view.row_stride):
            return False
        if is_given(&self.grad):
            return scores.classes <= (MASSES_CLASSES if self.weighs_class_ids and self.label_smoothing else FEW_CLASSES)
        most = MASSES_CLASSES if stride == size else SHORT_ROW
        return (stride == size or scores.dtype >= TL_FLOAT32 or scores.classes <= MASSES_CLASSES) and (
            scores.classes <= most if self.label_smoothing != 0
            else scores.view.run >= 16 or scores.view.is_uniform or self.planes_rows > 0
        )

    cdef double cost_of_row(self) noexcept:
        cdef double cost
        if is_given(&self.grad):
            cost = self.cost_of_classes(7, 0.6) if self.is_plain else self.cost_of_scores(18, 0.55)
        elif self.is_plain and self.scores.classes <= FEW_CLASSES:
            cost = self.cost_of_classes(PLAIN_ROW, 0.35)
        elif self.positions.by_class and FEW_CLASSES < self.scores.classes <= tl_nll_classes(self.scores.dtype):
            cost = NLL_ROW + self.cost_of_classes(5, 0.35 * NLL_CLASS)
        else:
            cost = self.cost_of_scores(12, 0.35)
        return cost if self.positions.by_class else cost + cost_of_masses(self.positions)

    cdef tl_loss loss_at(self, int64_t row, int64_t target) noexcept nogil:
        """The target and the options of a row's loss."""
        cdef tl_loss loss
        loss.soft = self.positions.soft_target(row, self.label_smoothing)
        loss.target, loss.z_loss, loss.grad, loss.grad_scale = target, self.z_loss, NULL, 1
        loss.nontemporal_stores = self.nontemporal_stores
        loss.target_weight = self.positions.class_weight(target) if target >= 0 else 1
        return loss

    cdef int64_t exclude(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_loss loss
        if target >= 0:
            return target
        if self.positions.is_integer:
            target = self.one_hot_class(row, totals, cancel)
            if target < 0 or self.label_smoothing == 0:
                return target if target >= 0 else MASKED
        loss = self.loss_at(row, -1)
        return tl_soft_target_argmax(backend, &loss.soft, self.scores.classes, cancel)

    cdef void find_losses(self, Block *block) noexcept nogil:
        """Write the options of a block's losses, and where masses are."""
        cdef const View *masses_view = &self.positions.targets_view
        cdef tl_row_block masses
        cdef int i, count = block.rows.count
        if block.n_with_options < count:
            block.losses[0] = self.loss_at(block.number[0], -1)
            for i in range(1, count):
                block.losses[i] = block.losses[0]
            block.n_with_options = count
        if not self.positions.by_class and is_given(masses_view):
            masses.row, masses.count = row_at(masses_view, 0), count
            self.find_rows(masses_view, block, masses.data)
            if self.copied_bytes[1] and block.rows.scratch != NULL:
                tl_copy_rows(backend, &masses, block.rows.scratch + self.scratch_bytes() + self.copied_bytes[0])
            for i in range(count):
                block.losses[i].soft.mass, block.losses[i].soft.mass_dtype = masses.data[i], masses.row.dtype
                block.losses[i].soft.mass_stride = masses.row.stride

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        self.find_losses(block)
        block.masses.usable = 0
        if self.excludes_together and not block.is_row_alone:
            tl_exclude_by_masses(backend, &block.rows, block.losses, &block.masses, cancel)
        LogSumExpJob.reduce_block(self, block, totals, cancel)

    cdef int64_t add_plain_rows(self, int64_t start, int64_t stop, uint64_t *wanted, Totals *totals,
                                tl_cancel *cancel) noexcept nogil:
        cdef int64_t targets[MAX_PROBABILITY_ROWS]
        cdef double weights[MAX_PROBABILITY_ROWS], scales[MAX_PROBABILITY_ROWS]
        cdef const View *masses = &self.positions.targets_view
        cdef tl_loss loss
        cdef tl_plain_rows rows
        cdef char *planes
        cdef int64_t first = start, count, i, done = -1
        cdef uint64_t left = 0
        cdef bint in_place, sums_only, has_grad = is_given(&self.grad)
        if not self.is_plain:
            return 0
        loss = self.loss_at(start, -1)
        self.set_plain_rows(&rows, &loss)
        planes = self.new_planes()
        if planes == NULL and self.planes_rows:
            return 0
        while start < stop and left == 0 and done != 0:
            count = min(stop - start, self.even_rows(&self.scores.view, start))
            if not self.positions.by_class:
                count = min(count, self.even_rows(masses, start))
                rows.mass, rows.mass_apart = row_at(masses, start), masses.row_stride
            in_place = count >= 16 and not totals.copies_ids and self.positions.ids_in_place(start) != NULL
            sums_only = self.sums_only and self.numbers == NULL and not totals.copies_ids
            rows.sums_only = sums_only = sums_only and (in_place or not self.positions.by_class)
            if in_place:  # kernels leave rows whose id is no class
                count &= ~15
                rows.given.target, rows.given.some_masked = self.positions.ids_in_place(start), False
            if not (rows.sums_only and in_place) or start == first:  # few at first: they may tell that there are others
                count = min(count, <int64_t> MAX_PROBABILITY_ROWS)
            if has_grad:
                count = min(count, self.even_rows(&self.grad, start))
                rows.grad, rows.grad_apart = row_at(&self.grad, start), self.grad.row_stride
                self.find_grad_scales(start, NULL, <int> count, scales)
                rows.grad_scale = scales
            if not in_place or count % 16:
                rows.given.some_masked = self.load_targets(start, <int> count, targets, totals) & TL_SOME_MASKED
                memset(&targets[count], 0, (-count & 15) * sizeof(int64_t))
                rows.given.target = targets
            if self.weighs_rows:
                rows.given.row_weight = self.positions.sample_weights(start, <int> count, weights)
            rows.values = self.numbers + start if self.numbers != NULL else NULL
            rows.row.data = address_of(&self.scores.view, start)
            if planes != NULL:
                self.use_planes(&self.scores.view, start, count, planes, &rows.row)
                if not self.positions.by_class:
                    self.use_planes(masses, start, count, planes + PLANES_BYTES, &rows.mass)
                if has_grad:
                    self.use_planes(NULL, start, count, planes + 2 * PLANES_BYTES, &rows.grad)
            done = tl_add_plain_losses(backend, &rows, count, &totals.losses, &totals.weights, &totals.unmasked, &left)
            if planes != NULL and has_grad:  # but for the last block, if some of its rows are left
                move_planes(&self.grad, start, (done - 1) & -BLOCK_ROWS if left else done, planes + 2 * PLANES_BYTES,
                            rows.grad.stride, True)
            totals.copies_ids |= left != 0 or sums_only and not rows.sums_only
            for i in range(done if has_grad and rows.given.some_masked else 0):
                if targets[i] == MASKED:
                    self.mask_row(start + i)
            start += done
        free(planes)
        if left:  # rows of the last block, which were taken but these
            done = (done - 1) % BLOCK_ROWS + 1
            start -= done
            wanted[0] = left | ~(<uint64_t> 0) << (done - 1) << 1
        return start - first

    cdef void set_plain_rows(self, tl_plain_rows *rows, const tl_loss *loss) noexcept nogil:
        """Set what all plain rows share."""
        memset(rows, 0, sizeof(tl_plain_rows))
        rows.row, rows.apart, rows.loss = self.row_of_scores(), self.scores.view.row_stride, loss
        rows.row.stride = self.scores.view.buffer.strides[self.scores.axis]
        if self.class_weights != NULL:
            rows.given.class_weight, rows.given.total_mass = self.class_weights, self.total_mass
            if self.label_smoothing != 0:
                rows.given.mass = self.class_weights + self.scores.classes + 1

    cdef void finish_block(self, Block *block, const tl_block_lse *lse, Totals *totals,
                           tl_cancel *cancel) noexcept nogil:
        cdef tl_out_block grads
        cdef double grad_scales[BLOCK_ROWS]
        cdef int i, count = block.rows.count
        for i in range(count if self.positions.by_class else 0):
            block.losses[i].target = block.rows.excluded[i]
            if self.weighs_class_ids and block.rows.excluded[i] >= 0:
                block.losses[i].target_weight = self.positions.class_weight(block.rows.excluded[i])
        if is_given(&self.grad):
            self.find_out_rows(&self.grad, block, self.nontemporal_stores, &grads)
            self.find_grad_scales(0, block.number, count, grad_scales)
            for i in range(count):
                block.losses[i].grad_scale = grad_scales[i]
        tl_losses_of_block(backend, &block.rows, lse, block.losses, &block.masses,
                           &grads if is_given(&self.grad) else NULL, block.values, cancel)

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

    cdef void mask_row(self, int64_t row) noexcept nogil:
        cdef tl_row grad
        if is_given(&self.grad):
            grad = row_at(&self.grad, row)
            tl_fill(&grad, 0)
