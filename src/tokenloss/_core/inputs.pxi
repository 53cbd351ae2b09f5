# What a job reads: validated scores; targets, mask and weights of the positions. They are made before the job, and do
# not change, but that positions remember whether their targets were checked.

cdef struct View:
    # a buffer whose batch axes are counted as rows; zeros mean that an array was not given
    Py_buffer buffer
    int dtype
    int axis  # of the classes, or -1
    bint is_uniform  # whether all rows are `row_stride` bytes apart
    ptrdiff_t row_stride
    int64_t run  # from each multiple of this number to the next, rows are `row_stride` bytes apart
    bint in_planes  # whether neighbouring rows are neighbours in memory, side by side
    bint is_copied  # whether rows are copied before they are worked on: swapped, or neither in planes nor contiguous


cdef int open_view(View *view, array, int dtype, int axis, bint writable) except -1:
    """Fill a view that is zeros; the axis of the classes is -1 if it has no classes."""
    cdef int k
    cdef int64_t width = 1
    PyObject_GetBuffer(array, &view.buffer, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    view.dtype, view.axis, view.is_uniform, view.row_stride, view.run = dtype, axis, True, 0, 1
    for k in range(view.buffer.ndim - 1, -1, -1):
        if k == axis or view.buffer.shape[k] == 1:
            continue
        if width == 1:
            view.row_stride = view.buffer.strides[k]
        elif view.buffer.strides[k] != view.row_stride * width:
            view.is_uniform = False
        width *= view.buffer.shape[k]
        if view.is_uniform:
            view.run = width
    if width == 0:  # there are no rows: `address_of` must not divide by a length of 0
        view.is_uniform = True
    if axis >= 0 and 0 < view.buffer.shape[axis] and dtype & ~TL_SWAPPED <= TL_FLOAT64:
        view.in_planes = (dtype < TL_SWAPPED and view.run >= 16 and view.buffer.shape[axis] <= SHORT_ROW
                          and view.row_stride == tl_itemsize(dtype) < llabs(view.buffer.strides[axis]))
        view.is_copied = not view.in_planes and (dtype >= TL_SWAPPED or view.buffer.strides[axis] != tl_itemsize(dtype))
    return 0


cdef inline bint is_given(const View *view) noexcept nogil:
    return view.buffer.itemsize != 0


cdef inline const char *address_of(const View *view, int64_t row) noexcept nogil:
    """Address of a row: of its first class, or of its only element."""
    cdef const char *data = <const char *> view.buffer.buf
    cdef int k
    if view.is_uniform:
        return data + row * view.row_stride
    for k in range(view.buffer.ndim - 1, -1, -1):
        if k != view.axis:
            data += row % view.buffer.shape[k] * view.buffer.strides[k]
            row //= view.buffer.shape[k]
    return data


cdef inline int64_t left_of_run(const View *view, int64_t start) noexcept nogil:
    """How many rows from this one on are known to be `row_stride` bytes apart."""
    return INT64_MAX if view.is_uniform else view.run - start % view.run


cdef inline bint has_short_runs(const View *view) noexcept nogil:
    """Whether rows are side by side, but so few that those of several runs are better worked on together."""
    cdef bint is_short = view.run % BLOCK_ROWS != 0 and view.run * view.buffer.shape[view.axis] <= SHORT_RUN
    return not view.is_uniform and view.row_stride == tl_itemsize(view.dtype) and (view.run < BLOCK_ROWS or is_short)


cdef void move_planes(const View *view, int64_t start, int64_t count, char *planes, ptrdiff_t width,
                      bint back) noexcept nogil:
    """Copy neighboring rows to planes of so many bytes, or back."""
    cdef int64_t n, k
    cdef char *row
    while count > 0:
        n, row = min(count, left_of_run(view, start)), <char *> address_of(view, start)
        for k in range(view.buffer.shape[view.axis]):
            if back:
                memcpy(row, planes + k * width, n * view.row_stride)
            else:
                memcpy(planes + k * width, row, n * view.row_stride)
            row += view.buffer.strides[view.axis]
        planes += n * view.row_stride
        start, count = start + n, count - n


cdef inline void find_addresses(const View *view, int64_t start, int count, const char **addresses) noexcept nogil:
    """Write the addresses of neighbouring rows."""
    cdef const char *data = address_of(view, start)
    cdef int64_t left
    cdef int i
    if view.is_uniform:
        for i in range(count):
            addresses[i] = data + i * view.row_stride
        return
    left = view.run - start % view.run
    for i in range(count):
        if left == 0:
            data, left = address_of(view, start + i), view.run
        addresses[i] = data
        data += view.row_stride
        left -= 1


cdef inline tl_row new_row(int dtype, int64_t count) noexcept nogil:
    """A row without data, whose logits are neither scaled nor capped."""
    cdef tl_row row
    row.data, row.count, row.stride, row.dtype, row.compute_dtype = NULL, count, 0, dtype, dtype & ~TL_SWAPPED
    row.logit_scale, row.softcap, row.shift, row.of_probs = 1, 0, 0, False
    return row


cdef inline tl_row row_at(const View *view, int64_t row) noexcept nogil:
    """A row along the view's axis."""
    cdef tl_row at = new_row(view.dtype, view.buffer.shape[view.axis])
    at.data, at.stride = address_of(view, row), view.buffer.strides[view.axis]
    return at


cdef int64_t number_of(tuple batch) except -1:
    """The number of positions in a batch of this shape."""
    cdef int64_t count = 1, length
    for length in batch:
        count *= length
    return count


@cython.final
cdef class Scores:
    """Validated scores: probabilities, log-probabilities or logits along `axis`, a row for each position of the batch.

    Those of a projection have a shape but no array: they are computed a tile at a time. Jobs that read whole rows
    refuse one whose logsumexp is further from 0 than `most_unnormalized`, which depends on the kind of the scores.
    """

    cdef View view
    cdef readonly object name, array
    cdef readonly int dtype, axis, kind
    cdef readonly double most_unnormalized
    cdef readonly tuple shape, batch
    cdef readonly int64_t rows, classes
    cdef Py_ssize_t matrix_shape[2], matrix_strides[2]

    def __init__(self, name, array, int dtype, int axis, tuple shape, int kind=0, double most_unnormalized=INFINITY):
        self.set_up(name, array, dtype, axis, shape)
        self.kind, self.most_unnormalized = kind, most_unnormalized

    cdef int set_up(self, name, array, int dtype, int axis, tuple shape) except -1:
        """Set all fields, once. It is a C function, since arguments of Python functions slow small calls down."""
        if self.shape is not None:
            raise ValueError("scores do not change")
        self.name, self.array, self.dtype, self.axis, self.shape = name, array, dtype, axis, shape
        self.kind, self.most_unnormalized = C_LOGITS, INFINITY
        self.classes, self.batch = shape[axis], PyTuple_GetSlice(shape, 0, axis)
        if axis + 1 < len(shape):
            self.batch += PyTuple_GetSlice(shape, axis + 1, len(shape))
        self.rows = number_of(self.batch)
        if array is not None:
            open_view(&self.view, array, dtype, axis, False)
        return 0

    def __dealloc__(self):
        PyBuffer_Release(&self.view.buffer)

    cdef bint is_matrix(self) noexcept:
        """Whether elements are native and aligned, and rows are those of a matrix, perhaps with others in between."""
        cdef int64_t apart = self.view.row_stride, odd = <int64_t> self.view.buffer.buf, stride
        cdef int k
        self.matrix_shape = [1, self.classes]
        for k in range(self.view.buffer.ndim if apart else 0):
            stride = self.view.buffer.strides[k]
            odd |= stride
            if k != self.axis and self.view.buffer.shape[k] > 1:
                if stride % apart != 0 or stride // apart < 0:
                    return False
                self.matrix_shape[0] += (self.view.buffer.shape[k] - 1) * (stride // apart)
        return apart != 0 and self.dtype < TL_SWAPPED and odd % tl_itemsize(self.dtype) == 0

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        """The scores as that matrix of rows and classes, for typed memoryviews; those of half precision as uint16."""
        if not self.is_matrix() or flags & PyBUF_WRITABLE:
            raise BufferError(f"{self.name} is no matrix to read")
        self.matrix_strides = [self.view.row_stride, self.view.buffer.strides[self.axis]]
        buffer.buf, buffer.obj, buffer.readonly, buffer.ndim = self.view.buffer.buf, self, True, 2
        buffer.itemsize = tl_itemsize(self.dtype)
        buffer.len = self.matrix_shape[0] * self.classes * buffer.itemsize
        buffer.format = b"d" if self.dtype == TL_FLOAT64 else b"f" if self.dtype == TL_FLOAT32 else b"H"
        buffer.shape, buffer.strides = self.matrix_shape, self.matrix_strides
        buffer.suboffsets, buffer.internal = NULL, NULL


cdef int64_t MASKED = INT64_MIN  # TL_MASKED of the kernels


cdef inline int count_of_unmasked(const int64_t *targets, int count) noexcept nogil:
    """How many class ids are not MASKED."""
    cdef int i, unmasked = 0
    for i in range(count):
        unmasked += targets[i] != MASKED
    return unmasked


@cython.final
cdef class Positions:
    """Validated targets, mask and weights of a batch: which rows count, for which class, and how much."""

    cdef View targets_view, mask_view, weight_view, sample_weight_view
    # as arguments, None where not given; the name is that of the targets' argument
    cdef readonly object name, targets, mask, weight, sample_weight
    cdef readonly tuple batch
    cdef readonly int64_t rows, classes
    cdef readonly bint by_class  # class ids, not distributions
    cdef readonly bint is_checked
    cdef bint is_integer, has_ignored
    cdef int64_t ignored, unmasked

    def __init__(self, tuple batch, int64_t classes, name, targets, int dtype, int axis, ignored, mask, weight,
                 int weight_dtype, sample_weight):
        self.set_up(batch, classes, name, targets, dtype, axis, ignored, mask, weight, weight_dtype, sample_weight)

    cdef int set_up(self, tuple batch, int64_t classes, name, targets, int dtype, int axis, ignored, mask, weight,
                    int weight_dtype, sample_weight) except -1:
        """Set all fields, once; distributions have their classes along `axis`, which is -1 for class ids.

        The mask is False for rows that do not count, among them those whose sample weight is 0.
        """
        if self.batch is not None:
            raise ValueError("positions do not change")
        self.batch, self.classes = batch, classes
        self.name, self.targets, self.mask, self.weight, self.sample_weight = (
            name, targets, mask, weight, sample_weight)
        self.rows = number_of(batch)
        if targets is not None:
            open_view(&self.targets_view, targets, dtype, axis, False)
            self.by_class = axis < 0
            self.is_integer = dtype & ~TL_SWAPPED >= TL_INT8
            if self.by_class and ignored is not None:
                self.ignored, self.has_ignored = ignored, True
        if mask is not None:
            open_view(&self.mask_view, mask, TL_UINT8, -1, False)
        if weight is not None:
            open_view(&self.weight_view, weight, weight_dtype, -1, False)
        if sample_weight is not None:
            open_view(&self.sample_weight_view, sample_weight, TL_FLOAT64, -1, False)
        self.is_checked = not self.by_class and not self.is_integer
        return 0

    def __dealloc__(self):
        PyBuffer_Release(&self.targets_view.buffer)
        PyBuffer_Release(&self.mask_view.buffer)
        PyBuffer_Release(&self.weight_view.buffer)
        PyBuffer_Release(&self.sample_weight_view.buffer)

    cdef inline int64_t target_of(self, int64_t row) noexcept nogil:
        """The class id of a row, -1 of a distribution."""
        return tl_load_integer(address_of(&self.targets_view, row), self.targets_view.dtype) if self.by_class else -1

    cdef const int64_t *ids_in_place(self, int64_t start) noexcept nogil:
        """The class ids of rows where they lie; NULL if some classes may not count, or they are no aligned int64."""
        cdef const char *first = address_of(&self.targets_view, start)
        if (self.targets_view.dtype != TL_INT64 or not self.targets_view.is_uniform or self.targets_view.row_stride != 8
                or <size_t> first % 8 != 0 or is_given(&self.mask_view)
                or self.has_ignored and 0 <= self.ignored < self.classes):
            return NULL
        return <const int64_t *> first

    cdef int load_targets(self, int64_t start, int count, int64_t *targets) noexcept nogil:
        """The class ids of up to MAX_PROBABILITY_ROWS rows, 0 of distributions, MASKED where they do not count."""
        cdef tl_target_range range_of_ids
        cdef char buffer[MAX_PROBABILITY_ROWS]
        cdef const char *mask = NULL
        cdef ptrdiff_t mask_stride = 1
        cdef int i
        range_of_ids.classes, range_of_ids.ignored, range_of_ids.has_ignored = (
            self.classes, self.ignored, self.has_ignored and self.by_class)
        if not self.by_class:
            memset(targets, 0, count * sizeof(int64_t))
        elif self.targets_view.is_uniform:
            for i in range(0, count, 8):
                tl_prefetch(address_of(&self.targets_view, start) + 2048 + 8 * i)
            tl_load_integers(address_of(&self.targets_view, start), self.targets_view.row_stride,
                             self.targets_view.dtype, count, targets)
        else:
            for i in range(count):
                targets[i] = self.target_of(start + i)
        if self.mask_view.is_uniform:
            mask, mask_stride = address_of(&self.mask_view, start), self.mask_view.row_stride
        elif is_given(&self.mask_view):
            mask = buffer
            for i in range(count):
                buffer[i] = address_of(&self.mask_view, start + i)[0]
        return backend.mask_targets(&range_of_ids, mask, mask_stride, count, targets)

    cdef const double *sample_weights(self, int64_t start, int count, double *buffer) noexcept nogil:
        """The sample weights of up to MAX_PROBABILITY_ROWS rows: where whole groups lie, or in the buffer."""
        cdef const char *first = address_of(&self.sample_weight_view, start)
        cdef int i
        if (self.sample_weight_view.is_uniform and self.sample_weight_view.row_stride == 8 and <size_t> first % 8 == 0
                and count % 16 == 0):
            return <const double *> first
        for i in range(count):
            buffer[i] = self.sample_weight_of(start + i)
        return buffer

    cdef inline bint is_unmasked(self, int64_t row, int64_t target) noexcept nogil:
        if self.has_ignored and target == self.ignored:
            return False
        return not is_given(&self.mask_view) or address_of(&self.mask_view, row)[0] != 0

    cdef inline bint is_class(self, int64_t target) noexcept nogil:
        return not self.by_class or 0 <= target < self.classes

    cdef inline bint weighs_class_ids(self) noexcept nogil:
        return self.by_class and is_given(&self.weight_view)

    cdef inline double class_weight(self, int64_t k) noexcept nogil:
        return tl_load(address_of(&self.weight_view, k), self.weight_view.dtype) if is_given(&self.weight_view) else 1

    cdef inline bint weighs_rows(self) noexcept nogil:
        return is_given(&self.sample_weight_view)

    cdef inline double sample_weight_of(self, int64_t row) noexcept nogil:
        return tl_load(address_of(&self.sample_weight_view, row), TL_FLOAT64) if self.weighs_rows() else 1

    cdef inline double divisor_of(self, int64_t row, int64_t target) noexcept nogil:
        """What an unmasked row adds to the divisor of a mean: its weights, or 1."""
        return (self.class_weight(target) if self.by_class else 1) * self.sample_weight_of(row)

    cdef tl_soft_target soft_target(self, int64_t row, double label_smoothing) noexcept nogil:
        """The target distribution of a row, with the mass that smoothing adds; for class ids, only that mass."""
        cdef tl_soft_target soft
        memset(&soft, 0, sizeof(soft))
        soft.one_minus_eps, soft.eps_over_v = 1 - label_smoothing, label_smoothing / max(self.classes, 1)
        if not self.by_class and is_given(&self.targets_view):
            soft.mass, soft.mass_dtype = address_of(&self.targets_view, row), self.targets_view.dtype
            soft.mass_stride = self.targets_view.buffer.strides[self.targets_view.axis]
        if is_given(&self.weight_view) and (label_smoothing != 0 or not self.by_class):
            soft.weight, soft.weight_dtype = <const char *> self.weight_view.buffer.buf, self.weight_view.dtype
            soft.weight_stride = self.weight_view.buffer.strides[0]
        return soft

    cdef int64_t one_hot_class(self, int64_t row, tl_cancel *cancel) noexcept nogil:
        cdef tl_soft_target soft = self.soft_target(row, 0)
        return tl_one_hot_class(backend, &soft, self.classes, cancel)

    def find_bad_target(self):
        """The first unmasked row whose class id is out of range, or -1; counts the unmasked rows on the way."""
        need_backend()
        cdef int64_t row = 0, stop, unmasked = 0
        cdef int64_t targets[BLOCK_ROWS]
        cdef int count, flags
        while row < self.rows:
            stop = min(row + SIGNAL_CHECK_ROWS, self.rows)
            with nogil:
                while row < stop:
                    count = <int> min(stop - row, BLOCK_ROWS)
                    flags = self.load_targets(row, count, targets)
                    if flags & TL_SOME_BAD:
                        break
                    unmasked += count_of_unmasked(targets, count) if flags & TL_SOME_MASKED else count
                    row += count
            if row < stop:
                row = self.first_bad_target(row, stop)
                if row < stop:
                    return row
            PyErr_CheckSignals()
        self.is_checked, self.unmasked = True, unmasked
        return -1

    cdef int64_t first_bad_target(self, int64_t row, int64_t stop) noexcept:
        """The first of these rows that is unmasked and whose class id is out of range, or `stop`."""
        cdef int64_t target
        for row in range(row, stop):
            target = self.target_of(row)
            if not self.is_class(target) and self.is_unmasked(row, target):
                return row
        return stop

    def find_bad_distribution(self):
        """The first unmasked row of integers that is not one-hot, or -1."""
        return (<DistributionCheck> DistributionCheck(self)).find()

    cdef int64_t count(self, tl_superacc *weights) except -1:
        """The number of unmasked rows; adds their weights to a sum, unless that is NULL."""
        cdef int64_t row = 0, stop, unmasked = 0
        cdef tl_fp_state environment
        if weights == NULL and self.by_class and self.is_checked:
            return self.unmasked
        if weights == NULL and not self.by_class and not is_given(&self.mask_view):
            return self.rows
        need_backend()
        while row < self.rows:
            stop = min(row + SIGNAL_CHECK_ROWS, self.rows)
            with nogil:
                tl_fp_enter(&environment)
                while row < stop:
                    unmasked += self.count_block(row, <int> min(stop - row, BLOCK_ROWS), weights)
                    row += BLOCK_ROWS
                tl_fp_leave(&environment)
            row = stop
            PyErr_CheckSignals()
        return unmasked

    cdef int count_block(self, int64_t start, int count, tl_superacc *weights) noexcept nogil:
        """As `count`, of at most BLOCK_ROWS rows."""
        cdef int64_t targets[BLOCK_ROWS]
        cdef double divisors[BLOCK_ROWS]
        cdef int i, unmasked = 0
        self.load_targets(start, count, targets)
        for i in range(count):
            if targets[i] != MASKED and self.is_class(targets[i]):
                divisors[unmasked] = 1 if weights == NULL else self.divisor_of(start + i, targets[i])
                unmasked += 1
        if weights != NULL:
            tl_superacc_add_many(backend, TL_SUM, weights, divisors, unmasked)
        return unmasked

    def count_unmasked(self):
        """The number of unmasked rows."""
        return self.count(NULL)

    def find_unmasked(self, int64_t[::1] found):
        """Write the numbers of the unmasked rows; returns how many they are."""
        cdef int64_t row, count = 0
        for row in range(self.rows):
            if self.is_unmasked(row, self.target_of(row)):
                found[count], count = row, count + 1
        return count

    cdef double mean_class_weight(self) except? -1:
        """The mean weight of the unmasked class ids, themselves weighed by their rows: what z-loss is scaled by."""
        cdef Positions unweighted = Positions(
            self.batch, self.classes, self.name, self.targets, self.targets_view.dtype, -1,
            self.ignored if self.has_ignored else None, self.mask, None, 0, self.sample_weight)
        return self.mean_divisor() / unweighted.mean_divisor()

    cdef double mean_divisor(self) except? -1:
        """The divisor of the mean loss: the weights of class ids and rows, or the number of unmasked rows."""
        cdef tl_superacc weights
        cdef tl_fp_state environment
        cdef bint weighs = self.weighs_class_ids() or self.weighs_rows()
        cdef double divisor
        memset(&weights, 0, sizeof(weights))
        unmasked = self.count(&weights if weighs else NULL)
        tl_fp_enter(&environment)
        divisor = tl_superacc_round(&weights, 0) if weighs else <double> unmasked
        tl_fp_leave(&environment)
        return divisor


cdef bint is_distribution(const View *view, int64_t row) noexcept nogil:
    """Whether the scores of a row are in [0, 1] and add up to 1, but for rounding."""
    cdef tl_row scores = row_at(view, row)
    cdef double score, sum = 0
    cdef int64_t k
    for k in range(scores.count):
        score = tl_load(scores.data + k * scores.stride, scores.dtype)
        sum += score
        # rows of logits, or with nan, end here after few classes
        if not (-PROB_SLACK <= score <= 1 + PROB_SLACK and sum <= 1 + SUM_SLACK):
            return False
    return sum >= 1 - SUM_SLACK


cpdef bint look_like_probs(Scores scores, Positions positions, int64_t wanted=KIND_ROWS) noexcept:
    """Whether the first unmasked rows, sought among KIND_MOST_ROWS, are distributions of several classes."""
    cdef int64_t row
    if scores.rows < wanted or scores.classes < 2 or not is_given(&scores.view):
        return False
    for row in range(min(scores.rows, KIND_MOST_ROWS)):
        if positions.is_unmasked(row, positions.target_of(row)):
            if not is_distribution(&scores.view, row):
                return False
            wanted -= 1
            if wanted == 0:
                return True
    return False
