# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: freethreading_compatible=True
"""The folds over arrays, without the GIL. Knows no defaults and speaks to nobody: `_arrays` has judged the input."""

cimport cython
from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, labs, malloc
from libc.string cimport memset

cdef extern from "_kernels/platform.h" nogil:
    ctypedef struct tl_fp_state:
        pass
    void tl_fp_enter(tl_fp_state *)
    void tl_fp_leave(const tl_fp_state *)
    void tl_prefetch(const void *)
    int64_t tl_take(int64_t *, int64_t)
    double tl_seconds()

cdef extern from "_kernels/elements.h" nogil:
    int TL_FLOAT16, TL_BFLOAT16, TL_FLOAT32, TL_FLOAT64
    int TL_INT8, TL_INT16, TL_INT32, TL_INT64, TL_UINT8, TL_UINT16, TL_UINT32, TL_UINT64
    int TL_SWAPPED
    int tl_itemsize(int)
    double tl_load(const char *, int)
    int64_t tl_load_integer(const char *, int)

cdef extern from "_kernels/exact.h" nogil:
    int TL_SUM_DIGITS, TL_SQUARES_DIGITS
    ctypedef struct tl_sum:
        double special
    ctypedef struct tl_squares:
        pass
    void tl_sum_add(tl_sum *, double)
    void tl_squares_add(tl_squares *, double)
    void tl_sum_merge(tl_sum *, const tl_sum *)
    double tl_sum_round(tl_sum *)
    void tl_sum_bytes(tl_sum *, unsigned char *)
    void tl_squares_bytes(tl_squares *, unsigned char *)

cdef extern from "_kernels/fold.h" nogil:
    int TL_BACKENDS
    ctypedef struct tl_backend:
        const char *name
        void (*clipped_losses)(double *, size_t, double, double) noexcept nogil
        ptrdiff_t (*skip_zeros)(const char *, ptrdiff_t, ptrdiff_t) noexcept nogil
    const tl_backend *tl_find_backend(int)
    ctypedef struct tl_row:
        const char *data
        int64_t count
        ptrdiff_t stride
        int dtype
    ctypedef struct tl_patience:
        int (*ask)(void *) noexcept nogil
        void *argument
        int *stopped
        double last_asked
    int tl_gave_up(tl_patience *)
    double tl_maximum(const tl_backend *, const tl_row *)
    ctypedef struct tl_state:
        pass
    void tl_fold_row(const tl_backend *, const tl_row *, int64_t, tl_state *, tl_patience *)
    void tl_fold_beside(const tl_backend *, const tl_row *, const int64_t *, int, void *, tl_state *, tl_patience *)
    double tl_logsumexp(const tl_state *, int)
    double tl_nll(const tl_state *, int, double)
    int TL_BESIDE, TL_TURNED_BYTES
    int TL_ROWS_BESIDE(int)


# dtype codes, by NumPy's names; a swapped one has SWAPPED added
DTYPES = {
    "float16": TL_FLOAT16, "bfloat16": TL_BFLOAT16, "float32": TL_FLOAT32, "float64": TL_FLOAT64,
    "int8": TL_INT8, "int16": TL_INT16, "int32": TL_INT32, "int64": TL_INT64,
    "uint8": TL_UINT8, "bool": TL_UINT8, "uint16": TL_UINT16, "uint32": TL_UINT32, "uint64": TL_UINT64,
}
SWAPPED = TL_SWAPPED

cdef enum:
    C_PROBS = 0
    C_LOG_PROBS = 1
    C_LOGITS = 2
    C_LOGSUMEXP = 3
    C_MAXIMUM = 4

# what the rows of scores hold, and so what is done with them
PROBS = C_PROBS
LOG_PROBS = C_LOG_PROBS
LOGITS = C_LOGITS
LOGSUMEXP = C_LOGSUMEXP
MAXIMUM = C_MAXIMUM  # what benchmarks measure the others by

cdef const tl_backend *backend = NULL

cdef enum:
    TOGETHER = 64  # rows whose scores memory is asked for at once
    PAUSE = 65536  # classes of one row between two looks at whether the call was interrupted


def backends():
    """The names of the backends that this machine can run, best first."""
    found = []
    for i in range(TL_BACKENDS):
        if tl_find_backend(i) != NULL:
            found.append(tl_find_backend(i).name.decode())
    return found


def use_backend(name):
    """Folds rows with this backend, one of `backends()`, from now on."""
    global backend
    for i in range(TL_BACKENDS):
        if tl_find_backend(i) != NULL and tl_find_backend(i).name.decode() == name:
            backend = tl_find_backend(i)
            return
    raise ValueError(name)


def backend_in_use():
    """The name of the backend that folds rows."""
    return backend.name.decode()


cdef int _ask(void *fold) noexcept with gil:
    """Runs Python's signal handlers; an exception of theirs stops the fold and is kept for its caller."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<Fold> fold).interruption = error
        return 1
    return 0


cdef object _integer(bytes digits):
    return int.from_bytes(digits, "little", signed=True)


cdef struct View:
    Py_buffer buffer
    int dtype
    int axis  # of the classes, or -1
    bint even  # whether rows are evenly spaced, by `step` bytes
    ptrdiff_t step


cdef int open_view(View *view, array, int dtype, int axis) except -1:
    cdef int k
    cdef int64_t width = 1
    PyObject_GetBuffer(array, &view.buffer, PyBUF_STRIDES)
    view.dtype, view.axis, view.even, view.step = dtype, axis, True, 0
    for k in range(view.buffer.ndim - 1, -1, -1):
        if k == axis or view.buffer.shape[k] == 1:
            continue
        if width == 1:
            view.step = view.buffer.strides[k]
        elif view.buffer.strides[k] != view.step * width:
            view.even = False
        width *= view.buffer.shape[k]
    return 0


cdef inline const char *row_of(const View *view, int64_t row) noexcept nogil:
    """Where the row's part of an array begins."""
    cdef const char *data = <const char *> view.buffer.buf
    cdef int k
    if view.even:
        return data + row * view.step
    for k in range(view.buffer.ndim - 1, -1, -1):
        if k != view.axis:
            data += row % view.buffer.shape[k] * view.buffer.strides[k]
            row //= view.buffer.shape[k]
    return data


@cython.final
cdef class Fold:
    """The losses of rows of scores. `run` may be called by several threads at once; each row is done by one of them.

    Every array is given with its dtype code. Targets are class ids, or distributions when they have as many dimensions
    as the scores. `out`, float64 and as long as there are rows, is given the loss of each row.
    """

    cdef View scores, targets, weight, where
    cdef bint has_weight, has_where, has_out, has_ignored, by_class
    cdef int what
    cdef int64_t ignored, classes, next_row
    cdef ptrdiff_t class_stride
    cdef double lowest, highest
    cdef double[::1] out
    cdef int stopped
    cdef tl_sum losses, weights
    cdef readonly int64_t rows, kept
    cdef readonly object interruption

    def __cinit__(self, int what, scores, int scores_dtype, int axis, targets, int targets_dtype, weight,
                  int weight_dtype, where, ignored, double epsilon, out):
        cdef int k
        self.what = what
        open_view(&self.scores, scores, scores_dtype, axis)
        self.classes = self.scores.buffer.shape[axis]
        self.class_stride = self.scores.buffer.strides[axis]
        self.rows = 1
        for k in range(self.scores.buffer.ndim):
            if k != axis:
                self.rows *= self.scores.buffer.shape[k]
        if targets is not None:
            open_view(&self.targets, targets, targets_dtype, axis if targets.ndim == scores.ndim else -1)
            self.by_class = self.targets.axis < 0
        if weight is not None:
            open_view(&self.weight, weight, weight_dtype, -1)
            self.has_weight = True
        if where is not None:
            open_view(&self.where, where, TL_UINT8, -1)
            self.has_where = True
        if ignored is not None:
            self.ignored = ignored
            self.has_ignored = True
        if out is not None:
            self.out = out
            self.has_out = True
        self.lowest, self.highest = epsilon, 1 - epsilon

    def __dealloc__(self):
        PyBuffer_Release(&self.scores.buffer)
        PyBuffer_Release(&self.targets.buffer)
        PyBuffer_Release(&self.weight.buffer)
        PyBuffer_Release(&self.where.buffer)

    cdef inline int64_t target_of(self, int64_t row) noexcept nogil:
        return tl_load_integer(row_of(&self.targets, row), self.targets.dtype)

    cdef inline bint is_kept(self, int64_t row, int64_t target) noexcept nogil:
        if self.has_ignored and target == self.ignored:
            return False
        return not self.has_where or row_of(&self.where, row)[0] != 0

    cdef inline double class_weight(self, int64_t k) noexcept nogil:
        return tl_load(row_of(&self.weight, k), self.weight.dtype) if self.has_weight else 1

    cdef void losses_of_scores(self, double *scores, int count) noexcept nogil:
        """Turns probabilities or log-probabilities of targets into losses: 0.0, not -0.0, where one is certain."""
        cdef int i
        if self.what == C_PROBS:
            backend.clipped_losses(scores, count, self.lowest, self.highest)
        else:
            for i in range(count):
                scores[i] = 0 - scores[i]

    cdef int64_t next_shares(self, const tl_row *target, int64_t *start, tl_patience *patience) noexcept nogil:
        """Moves start to a stretch that may hold shares other than 0, and returns the stretch's end."""
        cdef int64_t itemsize = tl_itemsize(target.dtype)
        cdef int64_t end = min(target.count, (start[0] // PAUSE + 1) * PAUSE)
        if start[0] != 0 and start[0] % PAUSE == 0 and tl_gave_up(patience):
            start[0] = target.count
            return target.count
        if target.stride != itemsize:
            return end
        start[0] = backend.skip_zeros(target.data, start[0] * itemsize, end * itemsize) // itemsize
        return min(end, start[0] + 64 // itemsize)

    cdef int64_t likeliest_class(self, const tl_row *target, tl_patience *patience) noexcept nogil:
        """The first class whose weighted share is largest, among those whose share is not 0; -1 if there are none."""
        cdef int64_t k = 0, end, likeliest = -1
        cdef double share, largest = 0
        while k < target.count:
            end = self.next_shares(target, &k, patience)
            for k in range(k, end):
                share = tl_load(target.data + k * target.stride, target.dtype)
                if share == 0:
                    continue
                share *= self.class_weight(k)
                if likeliest < 0 or share > largest:
                    likeliest, largest = k, share
            k = end
        return likeliest

    cdef double loss_by_distribution(self, tl_row *scores, tl_row *target, tl_patience *patience) noexcept nogil:
        """Reads the scores only where the target is not 0; logits are folded once before that."""
        cdef tl_state state
        cdef int64_t k = 0, end, likeliest
        cdef double share, score, term, total, other, loss = 0, lost = 0, best_score = 0, best_loss = 0
        if self.what == C_LOGITS:
            likeliest = self.likeliest_class(target, patience)
            if likeliest < 0:
                return 0
            best_score = tl_load(scores.data + likeliest * scores.stride, scores.dtype)
            tl_fold_row(backend, scores, likeliest, &state, patience)
            best_loss = tl_nll(&state, scores.dtype, best_score)
            if best_loss - best_loss != 0:  # inf or nan
                share = tl_load(target.data + likeliest * target.stride, target.dtype)
                return share * self.class_weight(likeliest) * best_loss
        while k < target.count:
            end = self.next_shares(target, &k, patience)
            for k in range(k, end):
                share = tl_load(target.data + k * target.stride, target.dtype)
                if share == 0:
                    continue
                score = tl_load(scores.data + k * scores.stride, scores.dtype)
                if self.what == C_LOGITS:
                    term = best_loss if score == best_score else best_loss + (best_score - score)
                else:
                    term = score
                    self.losses_of_scores(&term, 1)
                term = share * self.class_weight(k) * term
                # what each addition loses is added at the end
                total = loss + term
                other = total - loss
                lost += (loss - (total - other)) + (term - other)
                loss = total
            k = end
        return loss + lost if lost - lost == 0 else loss

    cdef inline tl_row scores_of(self, int64_t row) noexcept nogil:
        cdef tl_row scores
        scores.data = row_of(&self.scores, row)
        scores.count, scores.stride, scores.dtype = self.classes, self.class_stride, self.scores.dtype
        return scores

    cdef inline double loss_of_state(self, const tl_row *scores, int64_t target, const tl_state *state) noexcept nogil:
        if self.what == C_LOGSUMEXP:
            return tl_logsumexp(state, scores.dtype)
        return tl_nll(state, scores.dtype, tl_load(scores.data + target * scores.stride, scores.dtype))

    cdef double loss_of(self, int64_t row, int64_t target, tl_patience *patience) noexcept nogil:
        """The loss of a kept row, without a class id's weight."""
        cdef tl_row shares, scores = self.scores_of(row)
        cdef tl_state state
        if self.what == C_MAXIMUM:
            return tl_maximum(backend, &scores)
        if self.by_class or self.what == C_LOGSUMEXP:
            tl_fold_row(backend, &scores, target, &state, patience)
            return self.loss_of_state(&scores, target, &state)
        shares.data = row_of(&self.targets, row)
        shares.count, shares.dtype = self.classes, self.targets.dtype
        shares.stride = self.targets.buffer.strides[self.targets.axis]
        return self.loss_by_distribution(&scores, &shares, patience)

    cdef inline double count(self, double loss, int64_t target, tl_sum *losses, tl_sum *weights) noexcept nogil:
        """Adds the loss of a kept row to the sums; what it is with the weight of its class id."""
        cdef double weight
        if self.has_weight and self.by_class:
            weight = self.class_weight(target)
            tl_sum_add(weights, weight)
            loss *= weight
        tl_sum_add(losses, loss)
        return loss

    cdef int64_t fold(self, int64_t start, int64_t stop, tl_sum *losses, tl_sum *weights,
                      tl_patience *patience) noexcept nogil:
        """Folds these rows one after another; how many were kept."""
        cdef int64_t row, target = -1, kept = 0
        cdef double loss
        for row in range(start, stop):
            loss = 0
            if self.by_class:
                target = self.target_of(row)
            if self.is_kept(row, target):
                loss = self.count(self.loss_of(row, target, patience), target, losses, weights)
                kept += 1
            if self.has_out:
                self.out[row] = loss
        return kept

    cdef int64_t fold_beside(self, int64_t start, int64_t stop, tl_sum *losses, tl_sum *weights,
                             tl_patience *patience) noexcept nogil:
        """As `fold` where rows lie beside each other, class by class: as many at once as share cache lines."""
        cdef tl_row rows[32]
        cdef tl_state states[32]
        cdef int64_t number[32]
        cdef int64_t targets[32]
        cdef int64_t row, target = -1, kept = 0
        cdef int i, count
        cdef double loss
        cdef void *turned = malloc(TL_TURNED_BYTES)
        if turned == NULL:
            return self.fold(start, stop, losses, weights, patience)
        while start < stop:
            count = 0
            for row in range(start, min(stop, start + TL_ROWS_BESIDE(self.scores.dtype))):
                if self.by_class:
                    target = self.target_of(row)
                if self.is_kept(row, target):
                    rows[count], number[count], targets[count] = self.scores_of(row), row, target
                    count += 1
                elif self.has_out:
                    self.out[row] = 0
            tl_fold_beside(backend, rows, targets, count, turned, states, patience)
            for i in range(count):
                loss = self.count(self.loss_of_state(&rows[i], targets[i], &states[i]), targets[i], losses, weights)
                if self.has_out:
                    self.out[number[i]] = loss
            kept += count
            start += TL_ROWS_BESIDE(self.scores.dtype)
        free(turned)
        return kept

    cdef void aim(self, int64_t start, int count, int64_t *target, const char **address) noexcept nogil:
        """Finds the rows' targets and asks memory for their scores; the address is NULL where a row is not kept."""
        cdef int i
        for i in range(count):
            target[i] = self.target_of(start + i)
        # apart, for the fewer instructions lie between two requests, the more of them are under way
        for i in range(count):
            address[i] = NULL
            if self.is_kept(start + i, target[i]):
                address[i] = row_of(&self.scores, start + i) + target[i] * self.class_stride
                tl_prefetch(address[i])

    cdef int64_t gather(self, int64_t start, int64_t stop, tl_sum *losses, tl_sum *weights) noexcept nogil:
        """As `fold` where one score of each row is read: while some are counted, memory looks for the next."""
        cdef const char *address[2 * TOGETHER]
        cdef int64_t target[2 * TOGETHER]
        cdef double loss[TOGETHER]
        cdef int64_t kept = 0
        cdef int i, count, now = 0, later = TOGETHER
        self.aim(start, <int> min(stop - start, TOGETHER), target, address)
        while start < stop:
            if start + TOGETHER < stop:
                count = <int> min(stop - start - TOGETHER, TOGETHER)
                self.aim(start + TOGETHER, count, target + later, address + later)
            count = <int> min(stop - start, TOGETHER)
            for i in range(count):
                loss[i] = 1 if address[now + i] == NULL else tl_load(address[now + i], self.scores.dtype)
            self.losses_of_scores(loss, count)
            for i in range(count):
                if address[now + i] == NULL:
                    loss[i] = 0
                else:
                    loss[i] = self.count(loss[i], target[now + i], losses, weights)
                    kept += 1
                if self.has_out:
                    self.out[start + i] = loss[i]
            start += TOGETHER
            now, later = later, now
        return kept

    cdef bint rows_lie_beside(self) noexcept nogil:
        """Whether logits of neighbouring rows lie nearer to each other than those of neighbouring classes."""
        if self.rows < 2 or not (self.what == C_LOGSUMEXP or self.what == C_LOGITS and self.by_class):
            return False
        return labs(row_of(&self.scores, 1) - row_of(&self.scores, 0)) < labs(self.class_stride)

    def rows_at_once(self):
        """How many rows `run` does best when it takes them together."""
        return TL_ROWS_BESIDE(self.scores.dtype) if self.rows_lie_beside() else 1

    def stop(self):
        """Makes every `run` end after the block it is at."""
        self.stopped = 1

    def first_bad_target(self, int64_t start, int64_t stop):
        """The first kept row in [start, stop) whose class id is not one of the classes, or -1."""
        cdef int64_t row, target
        with nogil:
            for row in range(start, min(stop, self.rows)):
                target = self.target_of(row)
                if not 0 <= target < self.classes and self.is_kept(row, target):
                    break
            else:
                row = -1
        return row

    def run(self, int64_t step, bint ask):
        """Takes rows, `step` at a time, until none is left. With `ask`, lets Python's signal handlers run meanwhile."""
        cdef tl_sum losses, weights
        cdef tl_fp_state environment
        cdef tl_patience patience
        cdef int64_t start, stop, kept = 0
        cdef bint one_score = self.what <= C_LOG_PROBS and self.by_class
        cdef bint beside = self.rows_lie_beside()
        memset(&losses, 0, sizeof(losses))
        memset(&weights, 0, sizeof(weights))
        patience.ask = NULL
        if ask:
            patience.ask = _ask
            patience.last_asked = tl_seconds()
        patience.argument = <void *> self
        patience.stopped = &self.stopped
        with nogil:
            tl_fp_enter(&environment)
            while not self.stopped:
                start = tl_take(&self.next_row, step)
                if start >= self.rows:
                    break
                stop = min(start + step, self.rows)
                if one_score:
                    kept += self.gather(start, stop, &losses, &weights)
                elif beside:
                    kept += self.fold_beside(start, stop, &losses, &weights, &patience)
                else:
                    kept += self.fold(start, stop, &losses, &weights, &patience)
                tl_gave_up(&patience)
            tl_fp_leave(&environment)
        with cython.critical_section(self):
            self.kept += kept
            tl_sum_merge(&self.losses, &losses)
            if self.has_weight:
                tl_sum_merge(&self.weights, &weights)
        if ask and self.interruption is not None:
            raise self.interruption

    def reduced(self, bint mean):
        """The sum of the losses of the kept rows.

        Of a mean, over the sum of the weights of the kept targets where they are weighted class ids, else over their
        number; nan where there is nothing to average.
        """
        cdef tl_fp_state environment
        cdef double total
        tl_fp_enter(&environment)
        total = tl_sum_round(&self.losses)
        if mean:
            total /= tl_sum_round(&self.weights) if self.has_weight and self.by_class else <double> self.kept
        tl_fp_leave(&environment)
        return total


def moments(const double[::1] values):
    """Exact sums of the finite values in units of 2**-1074, of the others, and of the finite squares in 2**-2148."""
    cdef tl_sum sum
    cdef tl_squares squares
    cdef unsigned char total[4 * 68]
    cdef unsigned char squared[4 * 134]
    cdef Py_ssize_t i
    memset(&sum, 0, sizeof(sum))
    memset(&squares, 0, sizeof(squares))
    cdef tl_fp_state environment
    with nogil:
        tl_fp_enter(&environment)  # subnormals are not flushed
        for i in range(values.shape[0]):
            tl_sum_add(&sum, values[i])
            tl_squares_add(&squares, values[i])
        tl_fp_leave(&environment)
        tl_sum_bytes(&sum, total)
        tl_squares_bytes(&squares, squared)
    return _integer(total[:4 * TL_SUM_DIGITS]), sum.special, _integer(squared[:4 * TL_SQUARES_DIGITS])


# DLPack, https://dmlc.github.io/dlpack/latest/c_api.html

cdef struct DLTensor:
    void *data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t code
    uint8_t bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

cdef struct DLManagedTensor:
    DLTensor tensor
    void *manager
    void (*deleter)(DLManagedTensor *) noexcept

cdef struct DLManagedTensorVersioned:
    uint32_t major
    uint32_t minor
    void *manager
    void (*deleter)(DLManagedTensorVersioned *) noexcept
    uint64_t flags
    DLTensor tensor


cdef class DLPackBuffer:
    """A read-only buffer over the tensor in a DLPack capsule, kept alive as long as the buffer is.

    bfloat16, for which buffers have no format, is exported as uint16.
    """

    cdef DLManagedTensor *plain
    cdef DLManagedTensorVersioned *versioned
    cdef Py_ssize_t shape[64]
    cdef Py_ssize_t strides[64]
    cdef bytes format
    cdef readonly str dtype

    def __cinit__(self, capsule):
        cdef DLManagedTensor *plain = NULL
        cdef DLManagedTensorVersioned *versioned = NULL
        cdef DLTensor *tensor
        cdef Py_ssize_t stride
        cdef int k
        if PyCapsule_IsValid(capsule, "dltensor_versioned"):
            versioned = <DLManagedTensorVersioned *> PyCapsule_GetPointer(capsule, "dltensor_versioned")
            if versioned.major > 1:
                raise TypeError(f"version {versioned.major} of DLPack")
            tensor = &versioned.tensor
        else:
            plain = <DLManagedTensor *> PyCapsule_GetPointer(capsule, "dltensor")
            tensor = &plain.tensor
        kind = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}.get(tensor.code, "unknown")
        self.dtype = "bool" if kind == "bool" else f"{kind}{tensor.bits}"
        self.format = FORMATS.get(self.dtype, b"")
        if not self.format or tensor.lanes != 1 or tensor.ndim > 64:
            raise TypeError(self.dtype)
        stride = tensor.bits // 8
        for k in range(tensor.ndim - 1, -1, -1):
            self.shape[k] = tensor.shape[k]
            self.strides[k] = tensor.strides[k] * (tensor.bits // 8) if tensor.strides != NULL else stride
            stride *= tensor.shape[k]
        # from here on the tensor is ours to delete
        self.versioned, self.plain = versioned, plain
        if versioned != NULL:
            PyCapsule_SetName(capsule, "used_dltensor_versioned")
        else:
            PyCapsule_SetName(capsule, "used_dltensor")

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef DLTensor *tensor = &self.plain.tensor if self.plain != NULL else &self.versioned.tensor
        cdef int k
        buffer.buf = <char *> tensor.data + tensor.byte_offset
        buffer.obj = self
        buffer.itemsize = tensor.bits // 8
        buffer.len = buffer.itemsize
        for k in range(tensor.ndim):
            buffer.len *= self.shape[k]
        buffer.readonly = 1
        buffer.ndim = tensor.ndim
        buffer.format = self.format
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __dealloc__(self):
        if self.plain != NULL and self.plain.deleter != NULL:
            self.plain.deleter(self.plain)
        if self.versioned != NULL and self.versioned.deleter != NULL:
            self.versioned.deleter(self.versioned)


FORMATS = {
    "float16": b"e", "bfloat16": b"H", "float32": b"f", "float64": b"d", "bool": b"?",
    "int8": b"b", "int16": b"h", "int32": b"i", "int64": b"q",
    "uint8": b"B", "uint16": b"H", "uint32": b"I", "uint64": b"Q",
}
