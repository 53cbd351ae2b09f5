# A short way to the jobs for small plain arrays and options at their defaults, whose validation would take longer than
# the work. For anything else these functions return None: the caller then goes the long way (validation.py, jobs.py),
# which reports what is wrong.

import numpy

cdef object NDARRAY = numpy.ndarray, FLOAT64 = numpy.float64, ZEROS = numpy.zeros  # not looked up in each call
cdef object MEAN = "mean", SUM = "sum", NONE = "none"
del numpy

cdef enum:
    SMALL_BYTES = 1 << 14  # arrays up to this size are read in microseconds

cdef double FEW_NS = 2_000  # from here on, the GIL is released
cdef double SERIAL_NS = 100_000  # that of threads.py: so much work has no thread of its own

cdef extern from "Python.h":
    int get_buffer "PyObject_GetBuffer"(object, Py_buffer *, int) noexcept  # leaves its exception to the caller


cdef int small_dtype(array, Py_buffer *buffer, Py_ssize_t most=SMALL_BYTES) noexcept:
    """The dtype code of a small array of native numbers, TL_DTYPES for bool, and -1 for all else and without elements.

    Sizes in the buffer may be read afterwards, elements may not.
    """
    cdef char kind = 0
    buffer.ndim = 0
    if type(array) is not NDARRAY:
        return -1
    if get_buffer(array, buffer, PyBUF_STRIDES | PyBUF_FORMAT) < 0:  # of a dtype without a format
        PyErr_Clear()
        return -1
    if 0 < buffer.len <= most and buffer.format[0] != 0 and buffer.format[1] == 0:
        kind = buffer.format[0]  # longer formats are of another byte order, or of structures
    PyBuffer_Release(buffer)
    if kind in b"edf":
        return TL_FLOAT64 if kind == c"d" else TL_FLOAT32 if kind == c"f" else TL_FLOAT16
    if kind in b"bhilqBHILQ":
        return (TL_INT8 if kind >= c"a" else TL_UINT8) + (buffer.itemsize > 1) + (buffer.itemsize > 2) + (
            buffer.itemsize > 4)
    return TL_DTYPES if kind == c"?" else -1


cdef Scores small_scores(array, axis, Py_ssize_t most=SMALL_BYTES):
    """Scores with their classes along the last axis, or None."""
    cdef Py_buffer buffer
    cdef int dtype = small_dtype(array, &buffer, most)
    cdef Scores scores
    if not 0 <= dtype <= TL_FLOAT64 or buffer.ndim == 0 or type(axis) is not int or axis != -1:
        return None
    scores = Scores.__new__(Scores)
    scores.set_up(None, array, dtype, buffer.ndim - 1, array.shape)
    return scores


cdef Positions small_positions(Scores scores, targets, ignore_index, bint checks=True):
    """Class ids, perhaps checked, or distributions that fit the scores, or None."""
    cdef Py_buffer buffer
    cdef int dtype = small_dtype(targets, &buffer, SMALL_BYTES if checks else PY_SSIZE_T_MAX)
    cdef bint by_class = buffer.ndim == scores.axis
    cdef Positions positions
    cdef tl_soft_target soft
    cdef int64_t row, target
    cdef double mass = 0
    if dtype < (TL_INT8 if by_class else 0) or (
            dtype == TL_DTYPES if by_class else checks and scores.view.buffer.len > SMALL_BYTES):
        return None
    if targets.shape != (scores.batch if by_class else scores.shape):
        return None
    if type(ignore_index) is not int or ignore_index != -100:
        return None
    positions = Positions.__new__(Positions)
    positions.set_up(scores.batch, scores.classes, None, targets, TL_UINT8 if dtype == TL_DTYPES else dtype,
                     -1 if by_class else scores.axis, -100 if by_class and dtype < TL_UINT8 else None, None, None, 0,
                     None)
    soft = positions.soft_target(0, 0)
    for row in range(positions.classes if buffer.ndim == 1 and not by_class and dtype <= TL_FLOAT64 else 0):
        mass += tl_load(soft.mass + row * soft.mass_stride, dtype)
    if not mass <= 1.05:  # the long way may warn of labels
        return None
    for row in range(positions.rows if by_class and checks else 0):
        target = positions.target_of(row)
        if not positions.is_class(target) and positions.is_unmasked(row, target):
            return None
    return positions


cdef inline bint fits_workers(workers) except -1:
    """Whether this is a valid number of workers."""
    # what Cython makes of `workers > 0` warns where long has 32 bits
    return workers is None or type(workers) is int and (workers == -1 or PyObject_RichCompareBool(workers, 0, Py_GT))


cdef object small_result(RowJob job, reduction, workers):
    """The reduced numbers of a job, or None if it refuses a row. A short one runs on this thread, or with the GIL."""
    cdef tl_cancel cancel = job.new_cancel(False)
    cdef tl_fp_state environment
    cdef double number = 0, cost = job.rows * job.cost_of_row()
    result = None
    if reduction is NONE and not job.scores.batch:
        job.numbers = &number
    elif reduction is NONE:
        result = ZEROS(job.scores.batch)
        job.set_numbers(result)
    elif reduction is not MEAN and reduction is not SUM:
        return None
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
    if tl_flag_get(&job.refused_flag):
        return None
    if reduction is not NONE:
        return job.sum_or_mean(reduction is MEAN)
    return FLOAT64(number) if result is None else result


def small_nll(scores, targets, bint is_probability, epsilon, axis, weight, ignore_index, mask, sample_weight,
              reduction, workers):
    """What `cross_entropy_loss` or `nll_loss` returns, or None."""
    cdef Scores some
    cdef Positions positions
    if weight is not None or mask is not None or sample_weight is not None or not fits_workers(workers):
        return None
    if type(epsilon) is not float or not 0 < <double> epsilon <= 0.5:
        return None
    some = small_scores(scores, axis, PY_SSIZE_T_MAX)
    positions = None if some is None else small_positions(some, targets, ignore_index, False)
    if positions is None:
        return None
    job = (ClassIdLoss if positions.by_class else SoftTargetLoss)(some, positions, None, is_probability, epsilon)
    return small_result(job, reduction, workers)


def small_cross_entropy(logits, targets, axis, weight, ignore_index, mask, sample_weight, tuple options, reduction,
                        workers):
    """What `cross_entropy` returns, or None."""
    cdef Scores some
    cdef Positions positions
    if weight is not None or mask is not None or sample_weight is not None or not fits_workers(workers):
        return None
    label_smoothing, z_loss, logit_scale, softcap = options
    if not (is_float(label_smoothing, 0) and is_float(z_loss, 0) and is_float(logit_scale, 1) and softcap is None):
        return None
    some = small_scores(logits, axis)
    positions = None if some is None else small_positions(some, targets, ignore_index)
    if positions is None or look_like_probs(some, positions):
        return None
    return small_result(CrossEntropy(some, positions, None, (0.0, 0.0, 1.0, 0.0)), reduction, workers)


cdef inline bint is_float(value, double expected) noexcept:
    """Whether an option is this float."""
    return type(value) is float and <double> value == expected


def small_logsumexp(logits, axis, out, workers):
    """What `logsumexp` returns, or None."""
    cdef Scores some
    cdef Positions positions
    if out is not None or not fits_workers(workers):
        return None
    some = small_scores(logits, axis)
    if some is None:
        return None
    positions = Positions.__new__(Positions)
    positions.set_up(some.batch, some.classes, None, None, 0, -1, None, None, None, 0, None)
    if look_like_probs(some, positions):
        return None
    return small_result(LogSumExp(some, positions, None), NONE, workers)
