# A short way to the jobs for plain arrays, most of them small, and options at their defaults: validation would take
# longer than the work. For anything else these functions return None: the caller then goes the long way (validation.py,
# jobs.py), which reports what is wrong.

import numpy

cdef object NDARRAY = numpy.ndarray, FLOAT64 = numpy.float64  # not looked up in each call
cdef object ZEROS = numpy.zeros, EMPTY_LIKE = numpy.empty_like
cdef object BFLOAT16 = None  # the dtype, from the first array of it on
cdef object MEAN = "mean", SUM = "sum", NONE = "none"
del numpy

cdef Py_ssize_t SMALL_BYTES = 1 << 14  # arrays up to this size are read in microseconds
cdef double FEW_NS = 2_000  # from here on, the GIL is released
cdef double SERIAL_NS = 100_000  # that of threads.py: so much work has no thread of its own

cdef extern from "Python.h":
    int get_buffer "PyObject_GetBuffer"(object, Py_buffer *, int) noexcept  # leaves its exception to the caller


cdef int small_dtype(array, Py_buffer *buffer, Py_ssize_t most=SMALL_BYTES) except -2:
    """The dtype code of a small array of native numbers, TL_DTYPES for bool, and -1 for all else and without elements.

    Sizes in the buffer may be read afterwards, elements may not.
    """
    global BFLOAT16
    cdef char kind = 0
    buffer.ndim = 0
    if type(array) is not NDARRAY:
        return -1
    dtype = array.dtype
    if get_buffer(array, buffer, PyBUF_STRIDES | (0 if dtype is BFLOAT16 else PyBUF_FORMAT)) < 0:
        PyErr_Clear()  # there are dtypes without a format
        if dtype.name == "bfloat16" and dtype.isnative:
            BFLOAT16 = dtype
        return -1
    if 0 < buffer.len <= most and (buffer.format == NULL or buffer.format[0] != 0 and buffer.format[1] == 0):
        kind = c"E" if buffer.format == NULL else buffer.format[0]  # longer formats: another byte order, structures
    PyBuffer_Release(buffer)
    if kind in b"eEfd":
        return TL_FLOAT64 if kind == c"d" else TL_FLOAT32 if kind == c"f" else (
            TL_BFLOAT16 if kind == c"E" else TL_FLOAT16)
    if kind in b"bhilqBHILQ":
        return (TL_INT8 if kind >= c"a" else TL_UINT8) + (buffer.itemsize > 1) + (buffer.itemsize > 2) + (
            buffer.itemsize > 4)
    return TL_DTYPES if kind == c"?" else -1


cdef Scores small_scores(array, axis, workers, Py_ssize_t most=SMALL_BYTES):
    """Scores; None if they, the axis or the number of workers are not plain."""
    cdef Py_buffer buffer
    cdef int dtype = small_dtype(array, &buffer, most)
    cdef Scores scores
    if not 0 <= dtype <= TL_FLOAT64 or type(axis) is not int or not -buffer.ndim <= axis < buffer.ndim:
        return None
    # what Cython makes of `workers > 0` warns where long has 32 bits
    if not (workers is None or type(workers) is int and (workers == -1 or PyObject_RichCompareBool(workers, 0, Py_GT))):
        return None
    scores = Scores.__new__(Scores)
    scores.set_up(None, array, dtype, axis if axis >= 0 else buffer.ndim + axis, array.shape)
    return scores


cdef Positions without_targets(Scores scores):
    """Positions without targets; None without scores, or if these look like probabilities: the long way warns."""
    cdef Positions positions = Positions.__new__(Positions)
    if scores is None:
        return None
    positions.set_up(scores.batch, scores.classes, None, None, 0, -1, None, None, None, 0, None)
    return None if look_like_probs(scores, positions) else positions


cdef Positions small_positions(Scores scores, targets, weight, ignore_index, mask, sample_weight, bint checks=True):
    """Class ids, perhaps checked, or distributions that fit the scores, with class weights and a mask; or None."""
    if scores is None or sample_weight is not None or type(ignore_index) is not int or ignore_index != -100:
        return None
    cdef Py_buffer buffer
    cdef Py_ssize_t most = SMALL_BYTES if checks else PY_SSIZE_T_MAX
    cdef int dtype = small_dtype(targets, &buffer, most), weight_dtype = 0
    cdef bint by_class = buffer.ndim < len(scores.shape)
    cdef Positions positions
    cdef tl_soft_target soft
    cdef int64_t row, target
    cdef double mass = 0
    if dtype < (TL_INT8 if by_class else 0) or (
            dtype == TL_DTYPES if by_class else checks and scores.view.buffer.len > SMALL_BYTES):
        return None
    if targets.shape != (scores.batch if by_class else scores.shape):
        return None
    if mask is not None and (small_dtype(mask, &buffer, most) != TL_DTYPES or mask.shape != scores.batch):
        return None
    if weight is not None:
        weight_dtype = small_dtype(weight, &buffer, most)
        if not 0 <= weight_dtype <= TL_FLOAT64 or weight.shape != (scores.classes,):
            return None
    positions = Positions.__new__(Positions)
    positions.set_up(scores.batch, scores.classes, None, targets, TL_UINT8 if dtype == TL_DTYPES else dtype,
                     -1 if by_class else scores.axis, -100 if by_class and dtype < TL_UINT8 else None, mask, weight,
                     weight_dtype, None)
    soft = positions.soft_target(0, 0)
    for row in range(positions.classes if len(scores.shape) == 1 and not by_class and dtype <= TL_FLOAT64 else 0):
        mass += tl_load(soft.mass + row * soft.mass_stride, dtype)
    if not mass <= 1.05:  # the long way may warn of labels
        return None
    for row in range(positions.rows if by_class and checks else 0):
        target = positions.target_of(row)
        if not positions.is_class(target) and positions.is_unmasked(row, target):
            return None
    return positions


cdef bint run_small(RowJob job, workers) except -1:
    """Run a job: a short one on this thread, perhaps with the GIL. Returns whether it refused no row."""
    cdef tl_cancel cancel = job.new_cancel(False)
    cdef tl_fp_state environment
    cdef double cost = job.rows * job.cost_of_row()
    if cost >= SERIAL_NS:
        from tokenloss._core.threads import check_workers, run
        run(job, check_workers(workers))
    else:
        tl_fp_enter(&environment)
        if cost < FEW_NS:
            job.run_range(0, job.rows, &job.totals, &cancel)
        else:
            with nogil:
                job.run_range(0, job.rows, &job.totals, &cancel)
        tl_fp_leave(&environment)
    return not tl_flag_get(&job.refused_flag)


cdef object small_result(RowJob job, reduction, workers):
    """The reduced numbers of a job, or None if it refuses a row."""
    cdef double number = 0
    result = None
    if reduction is NONE and not job.scores.batch:
        job.numbers = &number
    elif reduction is NONE:
        result = ZEROS(job.scores.batch)
        job.set_numbers(result)
    elif reduction is not MEAN and reduction is not SUM:
        return None
    if not run_small(job, workers):
        return None
    if reduction is not NONE:
        return job.sum_or_mean(reduction is MEAN)
    return FLOAT64(number) if result is None else result


def small_nll(scores, targets, bint is_probability, epsilon, axis, weight, ignore_index, mask, sample_weight,
              reduction, workers):
    """What `cross_entropy_loss` or `nll_loss` returns, or None."""
    cdef Scores some = small_scores(scores, axis, workers, PY_SSIZE_T_MAX)
    cdef Positions positions = small_positions(some, targets, weight, ignore_index, mask, sample_weight, False)
    if positions is None or type(epsilon) is not float or not 0 < <double> epsilon <= 0.5:
        return None
    job = (ClassIdLoss if positions.by_class else SoftTargetLoss)(some, positions, None, is_probability, epsilon)
    return small_result(job, reduction, workers)


cdef inline bint is_float(value, double expected) noexcept:
    """Whether an option is this float."""
    return type(value) is float and <double> value == expected


def small_cross_entropy(logits, targets, axis, weight, ignore_index, mask, sample_weight, tuple options, reduction,
                        workers):
    """What `cross_entropy` returns, or None."""
    label_smoothing, z_loss, logit_scale, softcap = options
    if not (is_float(label_smoothing, 0) and is_float(z_loss, 0) and is_float(logit_scale, 1) and softcap is None):
        return None
    cdef Scores some = small_scores(logits, axis, workers)
    cdef Positions positions = small_positions(some, targets, weight, ignore_index, mask, sample_weight)
    if positions is None or look_like_probs(some, positions):
        return None
    return small_result(CrossEntropy(some, positions, None, (0.0, 0.0, 1.0, 0.0)), reduction, workers)


def small_logsumexp(logits, axis, workers):
    """What `logsumexp` returns, or None."""
    cdef Scores some = small_scores(logits, axis, workers, PY_SSIZE_T_MAX)
    cdef Positions positions = without_targets(some)
    return None if positions is None else small_result(LogSumExp(some, positions, None), NONE, workers)


def small_softmax(bint is_log, logits, axis, workers):
    """What `softmax` or `log_softmax` returns, or None."""
    cdef Scores some = small_scores(logits, axis, workers, PY_SSIZE_T_MAX)
    cdef Positions positions = without_targets(some)
    if positions is None:
        return None
    result = EMPTY_LIKE(logits)
    run_small(Softmax(some, positions, None, is_log, result, some.dtype), workers)
    return result
