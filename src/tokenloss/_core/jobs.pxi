# A job does one thing to each of many rows, in several threads; most jobs reduce a row of scores to a number.

cdef struct Totals:
    # what one thread has added up, and the first row that it has refused
    tl_superacc losses, weights
    int64_t unmasked
    bint copies_ids  # since reading them in place met rows that are not plain
    int refusal  # 0 if it refused none
    int64_t bad_row, bad_class
    double bad_score


cdef int poll_signals(void *job) noexcept with gil:
    """Run Python's signal handlers; their exception stops the job, and `run` raises it in the caller's thread."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<Job> job).pending_exception = error
        return 1
    return 0


cdef class Job:
    """Work on each of many rows. Several threads may call `run` at once; each row goes to one of them."""

    cdef int64_t next_row
    cdef int stop_flag, refused_flag
    cdef readonly int64_t rows
    cdef readonly object pending_exception

    cdef int check(self) except -1:
        """Raise an error if the job has no array to read rows from."""
        return 0

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """Work on the rows from `start` to before `stop`."""

    cdef void add_totals(self, Totals *totals) noexcept:
        """Add the sums of a thread to the job's."""

    cdef tl_cancel new_cancel(self, bint poll) noexcept:
        """What kernels ask whether to stop; with `poll`, it also runs Python's signal handlers."""
        cdef tl_cancel cancel
        cancel.poll = NULL
        cancel.last_poll = 0
        if poll:
            cancel.poll = poll_signals
            cancel.last_poll = tl_seconds()
        cancel.argument = <void *> self
        cancel.stopped = &self.stop_flag
        return cancel

    cdef double cost_of_row(self) noexcept:
        """The estimated time of a row on one thread, in nanoseconds."""
        return 1

    cdef int64_t rows_together(self) noexcept:
        """The number of rows that are worked on together: threads take multiples of it."""
        return 1

    @property
    def row_cost(self):
        """As `cost_of_row`."""
        return self.cost_of_row()

    @property
    def rows_at_once(self):
        """As `rows_together`."""
        return self.rows_together()

    def stop(self):
        """End every `run` after the rows that it works on."""
        tl_flag_set(&self.stop_flag)

    @property
    def has_refused(self):
        """Whether a row was refused; `RowJob.refusal` has the reason."""
        return self.refused_flag != 0

    def run(self, int64_t step, bint poll):
        """Take rows, `step` at a time, until none is left. With `poll`, run Python's signal handlers meanwhile."""
        cdef Totals totals
        cdef tl_fp_state environment
        cdef tl_cancel cancel = self.new_cancel(poll)
        cdef int64_t start
        self.check()
        memset(&totals, 0, sizeof(totals))
        with nogil:
            tl_fp_enter(&environment)
            while not tl_flag_get(&self.stop_flag) and not tl_flag_get(&self.refused_flag):
                start = tl_fetch_add(&self.next_row, step)
                if start >= self.rows:
                    break
                self.run_range(start, min(start + step, self.rows), &totals, &cancel)
                tl_canceled(&cancel)
            tl_fp_leave(&environment)
        with cython.critical_section(self):
            self.add_totals(&totals)
        if poll and self.pending_exception is not None:
            raise self.pending_exception


@cython.final
cdef class DistributionCheck(Job):
    """Looks for the first row of integer targets that is not one-hot. One thread runs it."""

    cdef Positions positions
    cdef int64_t bad_row  # -1 if all rows are one-hot

    def __init__(self, Positions positions):
        need_backend()
        self.positions, self.rows, self.bad_row = positions, positions.rows, -1

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef int64_t row
        for row in range(start, stop):
            if self.positions.is_unmasked(row, -1) and self.positions.one_hot_class(row, cancel) < 0:
                self.bad_row = row
                tl_flag_set(&self.stop_flag)
            if tl_canceled(cancel):
                return

    cdef int64_t find(self) except -2:
        """The number of that row, or -1."""
        self.run(self.rows, True)
        self.positions.is_checked = self.bad_row < 0
        return self.bad_row


cdef class RowJob(Job):
    """Reduces each unmasked row of scores to a number, and adds these numbers up exactly."""

    cdef readonly Scores scores
    cdef readonly Positions positions
    cdef double logit_scale, softcap
    cdef bint weighs_class_ids, weighs_rows  # whether there are weights, whose sum divides a mean
    cdef readonly bint is_probability  # what scores are clipped as, not as log-probabilities
    cdef readonly bint refuses_bad_targets  # while rows are read: class ids are not checked before
    cdef int64_t held  # the first row of the scores' array: 0, unless this has parts of them in turn
    cdef int planes_rows  # how many rows are copied to planes at a time, since theirs are short; or 0
    cdef double *numbers  # one for each row, 0 where masked; NULL if only their sum is wanted
    cdef Py_buffer numbers_buffer
    cdef Totals totals

    cdef int set_up(self, Scores scores, Positions positions, numbers) except -1:
        """Set the fields of this class."""
        if positions.rows != scores.rows or positions.classes != scores.classes:
            raise ValueError("positions are those of other scores")
        need_backend()
        self.scores, self.positions, self.rows = scores, positions, scores.rows
        if numbers is not None:
            self.set_numbers(numbers)
        self.weighs_class_ids, self.weighs_rows = positions.weighs_class_ids(), positions.weighs_rows()
        self.logit_scale = 1
        return 0

    def __dealloc__(self):
        PyBuffer_Release(&self.numbers_buffer)

    cdef int set_numbers(self, numbers) except -1:
        """Set the array that each row's number is written to: contiguous zeros of float64."""
        PyObject_GetBuffer(numbers, &self.numbers_buffer, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        if self.numbers_buffer.len != self.rows * <Py_ssize_t> sizeof(double):
            raise ValueError("numbers are not one float64 for each row")
        self.numbers = <double *> self.numbers_buffer.buf
        return 0

    def hold_rows(self, int64_t start, int64_t stop):
        """Let the next `run` work on these rows: the first of the scores' array is now `start`."""
        cdef View *view = &self.scores.view
        view.buffer.buf = <char *> view.buffer.buf + (self.held - start) * view.row_stride
        self.held = self.next_row = start
        self.rows = stop

    cdef int need_class_ids(self) except -1:
        """Raise an error if positions have no class ids, which the job would read."""
        if not self.positions.by_class:
            raise ValueError("positions have no class ids")
        return 0

    cdef int check(self) except -1:
        if not is_given(&self.scores.view):
            raise ValueError("scores have no array: they arrive in tiles")
        return 0

    cdef double cost_of_scores(self, double per_row, double per_class) noexcept:
        """The cost of reducing a row of scores, given the cost of a short float32 row and of each class of it."""
        if self.scores.classes > SHORT_ROW:
            per_row, per_class = per_row + LONG_ROW, per_class * LONG_CLASS
        return self.cost_of_classes(per_row, per_class)

    cdef double cost_of_classes(self, double per_row, double per_class) noexcept:
        """The cost of a row, given the cost of one of float32 logits and of each class of it."""
        if self.softcap != 0 or self.scores.kind == C_PROBS:
            per_class += SOFTCAP_CLASS
        if self.row_of_scores().compute_dtype == TL_FLOAT64:
            per_class *= FLOAT64_CLASS
        return per_row + per_class * self.scores.classes

    cdef int64_t rows_together(self) noexcept:
        cdef int64_t run = self.scores.view.run
        if self.scores.classes <= SHORT_ROW:  # whole runs of few rows
            return BLOCK_ROWS if self.scores.view.is_uniform or run > 1024 else (BLOCK_ROWS + run - 1) // run * run
        if not self.scores.view.is_copied:
            return 1
        return BLOCK_ROWS if self.rows >= 8 * BLOCK_ROWS else TL_ROWS_PER_CACHE_LINE(self.scores.dtype)

    cdef void take_planes(self, const View *other) noexcept:
        """Have rows copied to planes if those of both views, or of the scores, make short runs."""
        cdef int64_t size = tl_itemsize(self.scores.dtype)
        if has_short_runs(&self.scores.view) and (other == NULL or has_short_runs(other)) and self.scores.classes > 0:
            size = max(size, tl_itemsize(other.dtype)) if other != NULL else size
            self.planes_rows = min(MAX_PROBABILITY_ROWS, PLANES_BYTES // (size * self.scores.classes) & ~15)

    cdef char *new_planes(self) noexcept nogil:
        """Memory for the planes of three arrays, or NULL."""
        return <char *> malloc(3 * PLANES_BYTES) if self.planes_rows else NULL

    cdef int64_t even_rows(self, const View *view, int64_t start) noexcept nogil:
        """How many rows from this one on are evenly apart, in the view or in planes."""
        return self.planes_rows if self.planes_rows else left_of_run(view, start)

    cdef void use_planes(self, const View *view, int64_t start, int64_t count, char *planes,
                         tl_row *row) noexcept nogil:
        """Have rows lie in planes, with what a view has in them, unless that is NULL."""
        row.data, row.stride = planes, self.planes_rows * tl_itemsize(row.dtype)
        if view != NULL:
            move_planes(view, start, count, planes, row.stride, False)

    cdef double reduce_row(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """The number of an unmasked row."""
        return 0

    cdef void mask_row(self, int64_t row) noexcept nogil:
        """Write what results have for a masked row, unless that is 0, as they begin."""

    cdef tl_row row_of(self, Scores scores) noexcept nogil:
        """What all rows of some scores have in common: length, dtype, scale and cap, but no data."""
        cdef tl_row row = new_row(scores.dtype, scores.classes)
        row.logit_scale, row.softcap, row.of_probs = self.logit_scale, self.softcap, scores.kind == C_PROBS
        if tl_is_transformed(&row):
            row.compute_dtype = TL_FLOAT64
        return row

    cdef tl_row row_of_scores(self) noexcept nogil:
        return self.row_of(self.scores)

    cdef inline tl_row row_at(self, int64_t row) noexcept nogil:
        cdef tl_row scores = self.row_of_scores()
        scores.data = address_of(&self.scores.view, row)
        scores.stride = self.scores.view.buffer.strides[self.scores.axis]
        return scores

    cdef bint shift_if_overflowing(self, int64_t row, tl_row *logits) noexcept nogil:
        """Have the maximum of a row subtracted before it is scaled, if it would overflow then; return whether it is."""
        cdef tl_row raw = row_at(&self.scores.view, row)
        cdef double maximum
        if self.logit_scale > 1 and self.softcap == 0:
            maximum = tl_maximum(backend, &raw)
            if -INFINITY < maximum < INFINITY and self.logit_scale * maximum in (-INFINITY, INFINITY):
                logits.shift = maximum
        return logits.shift != 0

    cdef void refuse(self, int reason, int64_t row, int64_t k, double score, Totals *totals) noexcept nogil:
        """Have the call end with an error about the first bad row: threads finish the rows that they have taken."""
        if totals.refusal == 0:
            totals.refusal, totals.bad_row, totals.bad_class, totals.bad_score = reason, row, k, score
        tl_flag_set(&self.refused_flag)

    cdef void check_kind(self, Scores scores, int64_t row, double logsumexp, int64_t first,
                         Totals *totals) noexcept nogil:
        """Refuse a row whose logsumexp does not fit the kind of its scores; an error counts classes from `first` on."""
        cdef const char *data
        cdef int64_t k
        cdef double score
        if logsumexp > scores.most_unnormalized or logsumexp < -scores.most_unnormalized:
            self.refuse(C_UNNORMALIZED, row, first, logsumexp, totals)
        elif logsumexp != logsumexp and scores.kind == C_PROBS:  # a score may lie outside [0, 1]
            data = address_of(&scores.view, row)
            for k in range(scores.classes):
                score = tl_load(data + k * scores.view.buffer.strides[scores.axis], scores.dtype)
                if not -TL_TOLERANCE <= score <= 1 + TL_TOLERANCE and score == score:
                    self.refuse(C_BAD_SCORE, row, first + k, score, totals)
                    return

    cdef inline bint accepts(self, int64_t row, int64_t target, Totals *totals) noexcept nogil:
        """Whether the class id of an unmasked row is in [0, V); else the row is refused.

        For most jobs all were checked before, but another thread or process may have changed one: it must not lead out
        of the row.
        """
        if self.positions.is_class(target):
            return True
        self.refuse(C_BAD_TARGET, row, target, 0, totals)
        return False

    cdef int64_t one_hot_class(self, int64_t row, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """The class of integer targets that are one-hot; else -1, and the row is refused."""
        cdef int64_t class_id = self.positions.one_hot_class(row, cancel)
        if class_id < 0 and not tl_flag_get(&self.stop_flag):
            self.refuse(C_BAD_DISTRIBUTION, row, -1, 0, totals)
        return class_id

    cdef inline void add(self, int64_t row, int64_t target, double number, Totals *totals) noexcept nogil:
        """Add the number of an unmasked row, times its weight, to the sums; write it if each is wanted."""
        if self.weighs_class_ids or self.weighs_rows:
            tl_superacc_add(&totals.weights, self.positions.divisor_of(row, target))
            number *= self.positions.sample_weight_of(row)
        tl_superacc_add(&totals.losses, number)
        totals.unmasked += 1
        if self.numbers != NULL:
            self.numbers[row] = number

    cdef void add_many(self, int64_t start, const int *rows, double *numbers, const double *weights, int count,
                       Totals *totals) noexcept nogil:
        """As `add`, for rows counted from `start`; `weights` are their class weights, or NULL."""
        cdef double divisors[MAX_PROBABILITY_ROWS]
        cdef int i
        if self.weighs_rows and count > 0:
            self.weigh(start, rows, numbers, weights, count, divisors)
            weights = divisors
        tl_superacc_add_many(backend, TL_SUM, &totals.losses, numbers, count)
        if weights != NULL:
            tl_superacc_add_many(backend, TL_SUM, &totals.weights, weights, count)
        totals.unmasked += count
        if self.numbers != NULL:
            for i in range(count):
                self.numbers[start + rows[i]] = 0 + numbers[i]  # not -0.0

    cdef void weigh(self, int64_t start, const int *rows, double *numbers, const double *weights, int count,
                    double *divisors) noexcept nogil:
        """Multiply numbers by the weights of their rows; write what each row adds to the divisor of the mean."""
        cdef double buffer[MAX_PROBABILITY_ROWS]
        cdef const double *row_weights = self.positions.sample_weights(start, rows[count - 1] + 1, buffer)
        cdef int i
        for i in range(count):
            numbers[i] *= row_weights[rows[i]]
            divisors[i] = row_weights[rows[i]] if weights == NULL else weights[i] * row_weights[rows[i]]

    cdef int load_targets(self, int64_t start, int count, int64_t *targets, Totals *totals) noexcept nogil:
        """As `Positions.load_targets`; rows whose class id is out of range are refused, and MASKED."""
        cdef int i, flags = self.positions.load_targets(start, count, targets)
        if flags & TL_SOME_BAD:
            flags = TL_SOME_MASKED
            for i in range(count):
                if targets[i] != MASKED and not self.accepts(start + i, targets[i], totals):
                    targets[i] = MASKED
        return flags

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef int64_t row, target
        for row in range(start, stop):
            target = self.positions.target_of(row)
            if self.positions.is_unmasked(row, target) and self.accepts(row, target, totals):
                self.add(row, target, self.reduce_row(row, target, totals, cancel), totals)
            else:
                self.mask_row(row)

    cdef void add_totals(self, Totals *totals) noexcept:
        self.totals.unmasked += totals.unmasked
        tl_superacc_merge(TL_SUM, &self.totals.losses, &totals.losses)
        if self.weighs_class_ids or self.weighs_rows:
            tl_superacc_merge(TL_SUM, &self.totals.weights, &totals.weights)
        if totals.refusal != 0 and (self.totals.refusal == 0 or totals.bad_row < self.totals.bad_row):
            self.totals.refusal, self.totals.bad_row = totals.refusal, totals.bad_row
            self.totals.bad_class, self.totals.bad_score = totals.bad_class, totals.bad_score

    def refusal(self):
        """The reason of the first refusal, the row, and the class and the score if there is one."""
        return self.totals.refusal, self.totals.bad_row, self.totals.bad_class, self.totals.bad_score

    def reduced(self, bint mean):
        """The sum of the numbers, or their mean: divided by the sum of the weights, if given; nan if by 0."""
        return self.sum_or_mean(mean)

    cdef double sum_or_mean(self, bint mean) noexcept:
        """As `reduced`, for callers in C."""
        cdef tl_fp_state environment
        cdef tl_superacc *losses = &self.totals.losses
        cdef double total, divisor = 1
        tl_fp_enter(&environment)
        total = tl_superacc_round(losses, 0)
        if mean:
            divisor = <double> self.totals.unmasked
            if self.weighs_class_ids or self.weighs_rows:
                divisor = tl_superacc_round(&self.totals.weights, 0)
        if divisor - divisor != 0 and losses.special == 0 and self.totals.weights.special == 0:
            # a mean may fit where its sums do not
            total = tl_superacc_round(losses, -64) / tl_superacc_round(&self.totals.weights, -64)
        elif mean and total - total != 0 and losses.special == 0:
            total = tl_superacc_round(losses, -64) / divisor * 18446744073709551616.0
        else:
            total /= divisor
        tl_fp_leave(&environment)
        return total
