# Losses from probabilities or log-probabilities: for class ids, which read one score of each row, and distributions.

ctypedef fused score_t:
    uint16_t  # the bits of float16 or bfloat16
    float
    double


cdef struct GatherBlock:
    # the unmasked rows of a block, counted from `start`, and their class ids
    int64_t start
    int count
    bint is_whole  # no row is masked
    int rows[GATHERED_ROWS]
    int64_t targets[GATHERED_ROWS]


cdef void gather(const score_t[:, :] scores, int64_t first, const int *rows, const int64_t *targets, int count,
                 bint is_bfloat16, void *gathered) noexcept nogil:
    """Read the score of each row's class id, as float32 unless it is float64. Rows are counted from the first."""
    cdef score_t score
    cdef int i
    for i in range(count):
        score = scores[first + (i if rows == NULL else rows[i]), targets[i]]
        if score_t is uint16_t:
            (<float *> gathered)[i] = tl_from_bfloat16(score) if is_bfloat16 else tl_from_float16(score)
        else:
            (<score_t *> gathered)[i] = score


@cython.final
cdef class ClassIdLoss(RowJob):
    """-log of the probability of each row's class id, clipped to [epsilon, 1 - epsilon]; or minus its log-probability.

    A single score of each row is read.
    """

    cdef tl_clip clip
    cdef bint is_large  # larger than the caches: scores are prefetched
    # One of these holds the scores, rows by classes; none if they are no matrix in memory, or the rows are few.
    cdef const uint16_t[:, :] halves
    cdef const float[:, :] floats
    cdef const double[:, :] doubles

    def __init__(self, Scores scores, Positions positions, numbers, bint is_probability, double epsilon):
        self.set_up(scores, positions, numbers)
        self.need_class_ids()
        self.is_probability, self.clip = is_probability, tl_new_clip(is_probability, epsilon, scores.dtype)
        self.refuses_bad_targets = True
        self.is_large = scores.view.buffer.len > CACHE_BYTES
        self.halves = self.floats = self.doubles = None
        if scores.rows >= BLOCK_ROWS and scores.is_matrix():  # opening a memoryview takes as long as reading few rows
            if scores.dtype == TL_FLOAT32:
                self.floats = scores
            elif scores.dtype == TL_FLOAT64:
                self.doubles = scores
            else:
                self.halves = scores

    cdef double cost_of_row(self) noexcept:
        return cost_of_gather(self.scores)

    cdef void load_block(self, int64_t start, int count, GatherBlock *block, Totals *totals) noexcept nogil:
        """Fill a block with the unmasked ones of some rows."""
        cdef int i, unmasked = 0
        block.is_whole = not self.load_targets(start, count, block.targets, totals) & TL_SOME_MASKED
        for i in range(count if block.is_whole else 0):
            block.rows[i] = i
        for i in range(0 if block.is_whole else count):  # each is written: every other branch would be mispredicted
            block.rows[unmasked], block.targets[unmasked] = i, block.targets[i]
            unmasked += block.targets[i] != MASKED
        block.start, block.count = start, count if block.is_whole else unmasked

    cdef void load_scores(self, GatherBlock *block, bint only_prefetches, double *scores) noexcept nogil:
        """The score of each row's class id, or a request for it."""
        cdef const View *view = &self.scores.view
        cdef ptrdiff_t class_stride = view.buffer.strides[view.axis]
        cdef const char *data
        cdef const int *rows
        cdef int i = 0, k, count, first
        cdef int64_t left, at
        while i < block.count:  # runs of rows
            first = block.rows[i]
            left = left_of_run(view, block.start + first)
            count = <int> min(left, block.count - i)
            while block.rows[i + count - 1] - first >= left:  # masked rows are left out
                count -= 1
            data = address_of(view, block.start + first)
            if not block.is_whole:
                data -= first * view.row_stride
            rows = NULL if block.is_whole else &block.rows[i]
            at = (data - <const char *> view.buffer.buf) // view.row_stride if view.row_stride else 0
            if only_prefetches:
                for k in range(count):
                    tl_prefetch_early(data + (k if rows == NULL else rows[k]) * view.row_stride
                                      + block.targets[i + k] * class_stride)
            elif self.floats is not None:
                gather(self.floats, at, rows, &block.targets[i], count, False, <float *> scores + i)
            elif self.doubles is not None:
                gather(self.doubles, at, rows, &block.targets[i], count, False, scores + i)
            elif self.halves is not None:
                gather(self.halves, at, rows, &block.targets[i], count, view.dtype == TL_BFLOAT16, <float *> scores + i)
            else:
                for k in range(count):
                    tl_set_score(&self.clip, scores, i + k,
                                 tl_load(data + (k if rows == NULL else rows[k]) * view.row_stride
                                         + block.targets[i + k] * class_stride, view.dtype))
            i += count

    cdef void check_scores(self, const GatherBlock *block, const void *scores, Totals *totals) noexcept nogil:
        """Refuse scores that are no probabilities, or no log-probabilities."""
        cdef double score
        cdef int i
        for i in range(block.count):
            score = tl_score_at(&self.clip, scores, i)
            if tl_is_refused(&self.clip, score):
                self.refuse(C_BAD_SCORE, block.start + block.rows[i], block.targets[i], score, totals)

    cdef void add_block(self, const GatherBlock *block, double *nll, Totals *totals) noexcept nogil:
        """Add losses, times their class weights, to the sums; write them if each is wanted."""
        cdef double weights[GATHERED_ROWS]
        cdef int i
        if self.weighs_class_ids:
            for i in range(block.count):
                weights[i] = self.positions.class_weight(block.targets[i])
                nll[i] = tl_weighed(weights[i], nll[i])
        self.add_many(block.start, block.rows, nll, weights if self.weighs_class_ids else NULL, block.count, totals)

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef GatherBlock blocks[2]  # this one and the next
        cdef GatherBlock *block
        cdef double scores[GATHERED_ROWS], nll[GATHERED_ROWS]  # scores may be floats
        cdef int turn = 0
        self.load_block(start, <int> min(stop - start, GATHERED_ROWS), &blocks[0], totals)
        while start < stop:
            block = &blocks[turn]
            turn ^= 1
            start += GATHERED_ROWS
            self.load_scores(block, False, scores)
            if start < stop:
                self.load_block(start, <int> min(stop - start, GATHERED_ROWS), &blocks[turn], totals)
                if self.is_large:
                    self.load_scores(&blocks[turn], True, NULL)
            if tl_negative_log(backend, &self.clip, scores, block.count, nll):
                self.check_scores(block, scores, totals)
            self.add_block(block, nll, totals)


@cython.final
cdef class SoftTargetLoss(RowJob):
    """As `ClassIdLoss` for distributions: the sum of each mass times -log. Scores of classes without mass are not read.

    A block of rows is reduced together, unless its layout is uncommon or a score in it is refused.
    """

    cdef tl_clip clip
    cdef tl_distributions block  # what all blocks have in common
    cdef int64_t block_rows  # rows of a block, 0 if rows are reduced one by one
    cdef int64_t sample_rows  # rows of a sample if kernels read several of these, or 0

    def __init__(self, Scores scores, Positions positions, numbers, bint is_probability, double epsilon):
        self.set_up(scores, positions, numbers)
        self.is_probability, self.clip = is_probability, tl_new_clip(is_probability, epsilon, scores.dtype)
        self.set_up_block()

    cdef double cost_of_row(self) noexcept:
        return cost_of_masses(self.positions)

    cdef void set_up_block(self) noexcept:
        """Set these two."""
        cdef const View *targets = &self.positions.targets_view
        cdef tl_soft_target soft = self.positions.soft_target(0, 0)
        cdef tl_distributions *block = &self.block
        if self.positions.by_class or self.rows == 0 or not is_given(&self.scores.view) or not is_given(targets):
            return
        block.mass_class, block.mass_dtype = soft.mass_stride, soft.mass_dtype
        block.score_class, block.score_dtype = self.scores.view.buffer.strides[self.scores.axis], self.scores.dtype
        block.weight, block.weight_class, block.weight_dtype = soft.weight, soft.weight_stride, soft.weight_dtype
        block.classes = self.scores.classes
        if max(block.mass_dtype, block.score_dtype) >= TL_SWAPPED or not 0 < block.classes <= TL_DISTRIBUTION_ELEMENTS:
            return
        if not self.positions.is_integer or block.mass_class == tl_itemsize(block.mass_dtype):
            self.block_rows = min(MAX_PROBABILITY_ROWS if self.weighs_rows else DISTRIBUTION_ROWS,
                                  TL_DISTRIBUTION_ELEMENTS // block.classes)
            if not (self.follow_each_other(&self.scores.view) and self.follow_each_other(targets)):
                if block.classes <= 24:  # kernels add more classes of few rows sooner where they lie
                    self.take_planes(targets)
            elif self.scores.view.run * block.classes <= TL_TERMS and block.classes <= TL_PART:
                self.sample_rows = self.scores.view.run

    cdef bint follow_each_other(self, const View *view) noexcept:
        """Whether planes are short, and those of the next rows come right after them."""
        return has_short_runs(view) and view.dtype < TL_FLOAT_DTYPES and PyBuffer_IsContiguous(&view.buffer, b'C')

    cdef inline int unmasked_rows(self, int64_t start, int64_t count, int *rows) noexcept nogil:
        """The unmasked rows of a block, counted from `start`; returns how many. If there is no mask, all are there."""
        cdef const View *mask = &self.positions.mask_view
        cdef int i, unmasked = 0
        if not is_given(mask):
            return <int> count
        for i in range(<int> count):
            rows[unmasked] = i
            unmasked += address_of(mask, start + i)[0] != 0
        return unmasked

    cdef inline bint reduce_block(self, int64_t start, int64_t count, int *rows, tl_distributions *block,
                                  char *planes, Totals *totals) noexcept nogil:
        """Add the losses of a block; False if its rows have to be reduced one by one. `rows` are 0, 1, and so on."""
        cdef double nll[DISTRIBUTION_ROWS]
        cdef const View *targets = &self.positions.targets_view
        cdef int unmasked
        block.mass, block.mass_row = address_of(targets, start), targets.row_stride
        block.score, block.score_row = address_of(&self.scores.view, start), self.scores.view.row_stride
        if planes != NULL:
            block.score, block.score_class = planes, self.planes_rows * block.score_row
            block.mass, block.mass_class = planes + PLANES_BYTES, self.planes_rows * block.mass_row
            move_planes(&self.scores.view, start, count, planes, block.score_class, False)
            move_planes(targets, start, count, planes + PLANES_BYTES, block.mass_class, False)
        unmasked = self.unmasked_rows(start, count, rows)
        if unmasked == 0:
            return True
        if not tl_nll_of_distributions(backend, block, rows, unmasked, nll):
            return False
        self.add_many(start, rows, nll, NULL, unmasked, totals)
        return True

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef int rows[DISTRIBUTION_ROWS]
        cdef tl_distributions block = self.block
        cdef char *planes = self.new_planes()
        cdef int64_t count, alone = start  # samples before this row are reduced one by one
        cdef int i
        block.clip = &self.clip
        for i in range(DISTRIBUTION_ROWS):
            rows[i] = i
        while start < stop:
            count, block.sample_rows = stop - start, 0
            if start >= alone and count >= self.sample_rows > 0 and start % self.sample_rows == 0:
                block.sample_rows = <int> self.sample_rows
                count = min(count, self.block_rows) // self.sample_rows * self.sample_rows
            elif self.block_rows > 0:
                count = min(count, self.block_rows, self.even_rows(&self.scores.view, start),
                            self.even_rows(&self.positions.targets_view, start))
            if (self.block_rows > 0 and not (self.planes_rows and planes == NULL)
                    and self.reduce_block(start, count, rows, &block, planes, totals)):
                start += count
            elif block.sample_rows > 0:
                alone = start + count
            else:
                RowJob.run_range(self, start, start + count, totals, cancel)
                start += count
        free(planes)

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row scores = self.row_at(row)
        cdef tl_soft_target soft = self.positions.soft_target(row, 0)
        cdef tl_refused refused
        cdef double nll = tl_nll_of_distribution(backend, &scores, &soft, &self.clip, &refused, cancel)
        if refused.class_id >= 0:
            self.refuse(C_BAD_SCORE, row, refused.class_id, refused.score, totals)
        if self.positions.is_integer:
            self.one_hot_class(row, totals, cancel)
        return nll
