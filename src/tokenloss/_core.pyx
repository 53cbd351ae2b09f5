# cython: language_level=3, wraparound=False, cdivision=True, freethreading_compatible=True
# cython: auto_pickle=False, autotestdict=False
"""The folds over arrays, without the GIL. Knows no defaults and speaks to nobody: `_arrays` has judged the input."""

cimport cython
from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName
from libc.math cimport INFINITY, NAN
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, llabs, malloc
from libc.string cimport memset

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "_kernels/platform.h" nogil:
    ctypedef struct tl_fp_state:
        pass
    void tl_fp_enter(tl_fp_state *)
    void tl_fp_leave(const tl_fp_state *)
    void tl_prefetch(const void *)
    uint64_t tl_to_bits(double)
    int64_t tl_take(int64_t *, int64_t)
    bint tl_is_raised(const int *)
    void tl_raise(int *)
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
    double tl_sum_scaled(tl_sum *, int)
    void tl_sum_bytes(tl_sum *, unsigned char *)
    void tl_squares_bytes(tl_squares *, unsigned char *)

cdef extern from "_kernels/scalar_math.h" nogil:
    double tl_exp(double)
    double tl_softplus(double)

cdef extern from "_kernels/fold.h" nogil:
    int TL_BACKENDS
    ctypedef struct tl_backend:
        const char *name
        void (*clipped_losses)(double *, size_t, double, double) noexcept nogil
    const tl_backend *tl_find_backend(int)
    ctypedef struct tl_row:
        const char *data
        int64_t count
        ptrdiff_t stride
        int dtype
        int folded
        double scale
        double cap
        double shift
    double tl_score(const tl_backend *, const tl_row *, int64_t)
    double tl_squash(const tl_backend *, const tl_row *, double)
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
    void tl_fold_part(const tl_backend *, const tl_row *, int64_t, int64_t, int64_t, int64_t, tl_state *,
                      tl_patience *)
    void tl_fold_beside(const tl_backend *, const tl_row *, const int64_t *, int, void *, tl_state *, tl_patience *)
    ctypedef struct tl_normalizer:
        double offset
        double log
    tl_normalizer tl_normalize(const tl_state *, const tl_row *)
    tl_normalizer tl_normalize_with(const tl_state *, const tl_row *, double, double)
    double tl_logsumexp(tl_normalizer)
    double tl_logsumexp_of(const tl_backend *, const tl_row *, const tl_state *, int64_t, const tl_state *,
                           tl_patience *)
    double tl_gap(const tl_state *, const tl_row *, double)
    int TL_BESIDE, TL_TURNED_BYTES
    int TL_ROWS_BESIDE(int)
    ctypedef struct tl_best:
        int64_t most
        int64_t count
        double *value
        int64_t *id
    ctypedef struct tl_token:
        double nll
        double logsumexp
        double entropy
        int64_t rank
        int64_t argmax
    void tl_score_row(const tl_backend *, const tl_row *, int64_t, tl_token *, tl_best *, tl_patience *)
    void tl_score_part(const tl_backend *, const tl_row *, int64_t, int64_t, int64_t, int64_t, double, tl_token *,
                       tl_best *, tl_patience *)
    void tl_score_end(const tl_backend *, const tl_row *, double, tl_token *, tl_best *)
    double tl_divergence(const tl_backend *, const tl_row *, const tl_row *, tl_patience *)
    ctypedef struct tl_shares:
        const char *share
        ptrdiff_t share_stride
        int share_dtype
        const char *weight
        ptrdiff_t weight_stride
        int weight_dtype
        double kept
        double uniform
    int64_t tl_likeliest(const tl_backend *, const tl_shares *, int64_t, int64_t *, tl_patience *)
    double tl_weigh(const tl_backend *, const tl_row *, const tl_shares *, double, double *, tl_patience *)
    ctypedef struct tl_weighed:
        pass
    void tl_weigh_part(const tl_backend *, const tl_row *, const tl_shares *, int64_t, int64_t, double, tl_weighed *,
                       tl_patience *)
    double tl_weigh_end(const tl_weighed *, double *)
    void tl_convert(const tl_backend *, const tl_row *, int, void *)
    ctypedef struct tl_vectors:
        char *data
        ptrdiff_t stride
        int64_t count
    void tl_products(const tl_backend *, const tl_row *, ptrdiff_t, int64_t, const tl_vectors *, const tl_vectors *)
    bint tl_has_share(double)
    int tl_next_shares(const tl_backend *, const tl_shares *, int64_t, int64_t *, double *, tl_patience *)
    void tl_softmax(const tl_backend *, const tl_row *, tl_normalizer, const tl_row *, int, tl_patience *)
    void tl_log_softmax(const tl_backend *, const tl_row *, tl_normalizer, const tl_row *, int, tl_patience *)
    void tl_gradient(const tl_backend *, const tl_row *, tl_normalizer, double, double, const tl_shares *,
                     const tl_row *, int, tl_patience *)
    double tl_slope(const tl_row *, double)
    void tl_fill(const tl_row *, double)
    void tl_put(const tl_row *, int64_t, double)


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
    C_SOFTMAX = 5
    C_LOG_SOFTMAX = 6
    C_TOKENS = 7
    C_DIVERGENCE = 8

# what the rows of scores hold, and so what is done with them
PROBS = C_PROBS
LOG_PROBS = C_LOG_PROBS
LOGITS = C_LOGITS
LOGSUMEXP = C_LOGSUMEXP
MAXIMUM = C_MAXIMUM  # what benchmarks measure the others by
SOFTMAX = C_SOFTMAX
LOG_SOFTMAX = C_LOG_SOFTMAX
TOKENS = C_TOKENS
DIVERGENCE = C_DIVERGENCE

CLASSES_AT_ONCE = C_CLASSES_AT_ONCE  # tiles of products are multiples of these

cdef enum:
    C_CLASSES_AT_ONCE = 1024
    TARGETS_AT_ONCE = 1 << 20  # between two looks whether the call was interrupted
    LARGE = 16 << 20  # bytes of results that are not kept in a cache
    TOGETHER = 64  # rows whose scores memory is asked for at once

# why a row was refused while rows were read
cdef enum:
    C_BAD_TARGET = 1  # its class id was good before, and changed during the call
    C_BAD_SCORE = 2  # a probability or log-probability that can be none
    C_BAD_DISTRIBUTION = 3  # integers that are not one-hot

BAD_TARGET = C_BAD_TARGET
BAD_DISTRIBUTION = C_BAD_DISTRIBUTION

cdef double TOLERANCE = 1e-3  # by which rounded probabilities may lie outside [0, 1], and log-probabilities above 0

cdef const tl_backend *backend = NULL
cdef list runnable = []  # the numbers of the backends that this machine can run, best first: to ask it takes long
for number in range(TL_BACKENDS):
    if tl_find_backend(number) != NULL:
        runnable.append(number)
del number


def backends():
    """The names of the backends that this machine can run, best first."""
    return [tl_find_backend(i).name.decode() for i in runnable]


cdef int need_backend() except -1:
    """Chooses a backend on first use, so that a bad environment variable fails a call and not the import."""
    if backend == NULL:
        from tokenloss._config import choose_backend
        choose_backend()
    return 0


def use_backend(name):
    """Folds rows with this backend, one of `backends()`, from now on. Not to be called while rows are folded."""
    global backend
    for i in runnable:
        if tl_find_backend(i).name.decode() == name:
            backend = tl_find_backend(i)
            return
    raise ValueError(name)


def backend_in_use():
    """The name of the backend that folds rows."""
    need_backend()
    return backend.name.decode()


cdef int _ask(void *work) noexcept with gil:
    """Runs Python's signal handlers; an exception of theirs stops the work and is kept for its caller."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<Work> work).interruption = error
        return 1
    return 0


cdef class Work:
    """Something to do with each of many rows. `run` may be called by several threads at once, which share the rows."""

    cdef int64_t next_row
    cdef int stopped
    cdef readonly int64_t rows
    cdef readonly object interruption

    def __cinit__(self):
        need_backend()

    cdef void do(self, int64_t start, int64_t stop, tl_patience *patience) noexcept nogil:
        """Does these rows."""

    cdef tl_patience patience_of(self, bint ask) noexcept:
        cdef tl_patience patience
        patience.ask = NULL
        patience.last_asked = 0
        if ask:
            patience.ask = _ask
            patience.last_asked = tl_seconds()
        patience.argument = <void *> self
        patience.stopped = &self.stopped
        return patience

    def rows_at_once(self):
        """How many rows `run` does best when it takes them together."""
        return 1

    def stop(self):
        """Makes every `run` end after the block it is at."""
        tl_raise(&self.stopped)

    def run(self, int64_t step, bint ask):
        """Takes rows, `step` at a time, until none is left. With `ask`, lets Python's signal handlers run meanwhile."""
        cdef tl_fp_state environment
        cdef tl_patience patience = self.patience_of(ask)
        cdef int64_t start
        with nogil:
            tl_fp_enter(&environment)
            while not tl_is_raised(&self.stopped):
                start = tl_take(&self.next_row, step)
                if start >= self.rows:
                    break
                self.do(start, min(start + step, self.rows), &patience)
                tl_gave_up(&patience)
            tl_fp_leave(&environment)
        if ask and self.interruption is not None:
            raise self.interruption


cdef object _integer(bytes digits):
    return int.from_bytes(digits, "little", signed=True)


cdef struct View:
    Py_buffer buffer
    int dtype
    int axis  # of the classes, or -1
    bint even  # whether rows are evenly spaced, by `step` bytes
    ptrdiff_t step


cdef int open_view(View *view, array, int dtype, int axis, bint writable) except -1:
    cdef int k
    cdef int64_t width = 1
    PyObject_GetBuffer(array, &view.buffer, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
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


cdef inline tl_row row_at(const View *view, int64_t row) noexcept nogil:
    """A row of an array, along the view's axis."""
    cdef tl_row found
    found.data = row_of(view, row)
    found.count, found.stride = view.buffer.shape[view.axis], view.buffer.strides[view.axis]
    found.dtype, found.folded, found.scale, found.cap = view.dtype, view.dtype & ~TL_SWAPPED, 1, 0
    found.shift = 0
    return found


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


cdef struct Totals:
    # what a thread found in the rows that it took
    tl_sum losses, weights
    int64_t kept
    int refusal  # why its first bad row was refused, or 0
    int64_t bad_row, bad_class
    double bad_score


@cython.final
cdef class Fold(Work):
    """Folds the rows of scores.

    Every array is given with its dtype code. What is folded besides the scores, and where results go, is told by the
    methods before `run`.
    """

    cdef View scores, targets, weight, where, other, result
    cdef bint is_large
    cdef bint has_targets, has_weight, has_where, has_losses, has_result, has_ignored, by_class, is_integer
    cdef int what
    cdef readonly int refused  # whether a row was
    cdef int64_t ignored, classes, top_k
    cdef ptrdiff_t class_stride
    cdef double lowest, highest, scale, cap, smoothing, z_loss, factor
    cdef double least_score, greatest_score  # what probabilities or log-probabilities may be
    cdef double[::1] losses_out, logsumexp_out, entropy_out
    cdef int64_t[::1] rank_out, argmax_out
    cdef uint8_t[::1] is_greedy_out, kept_out
    cdef int64_t[::1] top_ids_out
    cdef double[::1] top_logprobs_out
    cdef Totals totals

    def __cinit__(self, int what, scores, int dtype, int axis):
        cdef int k
        self.what = what
        open_view(&self.scores, scores, dtype, axis, False)
        self.classes = self.scores.buffer.shape[axis]
        self.class_stride = self.scores.buffer.strides[axis]
        self.rows = 1
        for k in range(self.scores.buffer.ndim):
            if k != axis:
                self.rows *= self.scores.buffer.shape[k]
        self.scale = self.factor = 1
        self.least_score = -TOLERANCE if what == C_PROBS else -INFINITY
        self.greatest_score = 1 + TOLERANCE if what == C_PROBS else TOLERANCE

    def __dealloc__(self):
        PyBuffer_Release(&self.scores.buffer)
        PyBuffer_Release(&self.targets.buffer)
        PyBuffer_Release(&self.weight.buffer)
        PyBuffer_Release(&self.where.buffer)
        PyBuffer_Release(&self.other.buffer)
        PyBuffer_Release(&self.result.buffer)

    def against(self, targets, int dtype, ignored):
        """Targets: class ids, of which one may be ignored, or distributions if they have the scores' dimensions.

        Returns whether they are class ids.
        """
        self.by_class = targets.ndim < self.scores.buffer.ndim
        open_view(&self.targets, targets, dtype, -1 if self.by_class else self.scores.axis, False)
        self.has_targets = True
        self.is_integer = dtype & ~TL_SWAPPED >= TL_INT8
        if self.by_class and ignored is not None:
            self.ignored, self.has_ignored = ignored, True
        return self.by_class

    def weighted(self, weight, int dtype):
        """What each class counts for."""
        open_view(&self.weight, weight, dtype, -1, False)
        self.has_weight = True

    def masked(self, where):
        """Which rows are kept."""
        open_view(&self.where, where, TL_UINT8, -1, False)
        self.has_where = True

    def clipped(self, double epsilon):
        """How far from 0 and 1 probabilities are kept."""
        self.lowest, self.highest = epsilon, 1 - epsilon

    def squashed(self, double scale, double cap):
        """Logits become cap tanh(scale x / cap), or scale x if the cap is 0."""
        self.scale, self.cap = scale, cap

    def penalized(self, double smoothing, double z_loss):
        """Label smoothing, and what the square of the logsumexp costs."""
        self.smoothing, self.z_loss = smoothing, z_loss

    def beside(self, other, int dtype):
        """The logits of another model."""
        open_view(&self.other, other, dtype, self.scores.axis, False)

    def losses_into(self, double[::1] out):
        """Where the loss of each row goes, or whatever number it is that rows are folded to."""
        self.losses_out = out
        self.has_losses = True

    def into(self, result, int dtype):
        """Where softmax, log_softmax, or the gradient of the loss goes."""
        open_view(&self.result, result, dtype, self.scores.axis, True)
        self.has_result = True
        self.is_large = self.result.buffer.len >= LARGE

    def tokens_into(self, double[::1] logsumexp, double[::1] entropy, int64_t[::1] rank, int64_t[::1] argmax,
                    uint8_t[::1] is_greedy, uint8_t[::1] kept, int64_t[::1] top_ids, double[::1] top_logprobs,
                    int64_t top_k):
        """Where everything about a token goes, and the best `top_k` of each row."""
        self.logsumexp_out, self.entropy_out = logsumexp, entropy
        self.rank_out, self.argmax_out = rank, argmax
        self.is_greedy_out, self.kept_out = is_greedy, kept
        self.top_ids_out, self.top_logprobs_out, self.top_k = top_ids, top_logprobs, top_k

    cdef inline int64_t target_of(self, int64_t row) noexcept nogil:
        return tl_load_integer(row_of(&self.targets, row), self.targets.dtype)

    cdef inline bint is_kept(self, int64_t row, int64_t target) noexcept nogil:
        if self.has_ignored and target == self.ignored:
            return False
        return not self.has_where or row_of(&self.where, row)[0] != 0

    cdef inline bint accepts(self, int64_t row, int64_t target, Totals *totals) noexcept nogil:
        """Whether the class id of an unmasked row lies in [0, V).

        All were checked before the call, but another thread or process may have changed it: no change may lead out of
        the row.
        """
        if not self.by_class or 0 <= target < self.classes:
            return True
        self.refuse(C_BAD_TARGET, row, target, 0, totals)
        return False

    cdef inline bint accepts_distribution(self, int64_t row, int64_t k, int64_t found, Totals *totals,
                                          tl_patience *patience) noexcept nogil:
        """Whether a row's targets are floats, or one-hot integers; `found` of them are nonzero, class k among these."""
        if not self.is_integer or (found == 1 and self.has_one(row, k)) or tl_is_raised(&self.stopped):
            return True
        if self.smoothing != 0 and self.is_one_hot(row, patience):  # smoothed, none is 0
            return True
        self.refuse(C_BAD_DISTRIBUTION, row, -1, 0, totals)
        return False

    cdef inline bint has_one(self, int64_t row, int64_t k) noexcept nogil:
        """Whether the target of class k is 1."""
        return tl_load(row_of(&self.targets, row) + k * self.targets.buffer.strides[self.targets.axis],
                       self.targets.dtype) == 1

    cdef bint is_one_hot(self, int64_t row, tl_patience *patience) noexcept nogil:
        """Whether the targets of a row are one-hot: one 1, all others 0."""
        cdef tl_shares shares
        cdef int64_t k, found
        memset(&shares, 0, sizeof(shares))
        shares.kept = 1
        shares.share, shares.share_dtype = row_of(&self.targets, row), self.targets.dtype
        shares.share_stride = self.targets.buffer.strides[self.targets.axis]
        k = tl_likeliest(backend, &shares, self.classes, &found, patience)
        return (found == 1 and self.has_one(row, k)) or tl_is_raised(&self.stopped)

    cdef void refuse(self, int reason, int64_t row, int64_t k, double score, Totals *totals) noexcept nogil:
        """Ends the call with an error, that of the first bad row: blocks that threads have begun are still finished."""
        if totals.refusal == 0:
            totals.refusal, totals.bad_row, totals.bad_class, totals.bad_score = reason, row, k, score
        tl_raise(&self.refused)

    cdef inline double class_weight(self, int64_t k) noexcept nogil:
        return tl_load(row_of(&self.weight, k), self.weight.dtype) if self.has_weight else 1

    cdef inline tl_row scores_of(self, int64_t row) noexcept nogil:
        cdef tl_row scores = row_at(&self.scores, row)
        if self.scale != 1 or self.cap != 0:
            scores.folded, scores.scale, scores.cap = TL_FLOAT64, self.scale, self.cap
        return scores

    cdef inline tl_shares shares_of(self, int64_t row) noexcept nogil:
        """The shares of classes in the loss of a row, but for that of a class id."""
        cdef tl_shares shares
        memset(&shares, 0, sizeof(shares))
        shares.kept = 1 - self.smoothing
        shares.uniform = self.smoothing / self.classes
        if self.has_targets and not self.by_class:
            shares.share = row_of(&self.targets, row)
            shares.share_stride = self.targets.buffer.strides[self.targets.axis]
            shares.share_dtype = self.targets.dtype
        if self.has_weight and (self.smoothing != 0 or not self.by_class):
            shares.weight, shares.weight_dtype = <const char *> self.weight.buffer.buf, self.weight.dtype
            shares.weight_stride = self.weight.buffer.strides[0]
        return shares

    cdef void losses_of_scores(self, double *scores, int count) noexcept nogil:
        """Turns probabilities or log-probabilities of targets into losses: 0.0, not -0.0, where one is certain."""
        cdef int i
        if self.what == C_PROBS:
            backend.clipped_losses(scores, count, self.lowest, self.highest)
        else:
            for i in range(count):
                scores[i] = 0 - scores[i]

    cdef double loss_of_class(self, int64_t row, const tl_row *logits, int64_t target, const tl_state *rest,
                              tl_patience *patience) noexcept nogil:
        """The loss of a class id from the state of the rest of the row; the gradient, too, if it is wanted."""
        cdef tl_shares shares
        cdef tl_row result
        cdef double weight = self.class_weight(target), logit = tl_score(backend, logits, target)
        cdef double gap = tl_gap(rest, logits, logit), nll = tl_softplus(gap), loss, smooth = 0, odds, here
        cdef tl_normalizer normalizer
        if self.smoothing == 0 and self.z_loss == 0 and not self.has_result:
            return weight * nll
        normalizer = tl_normalize_with(rest, logits, logit, gap)
        loss = weight * (1 - self.smoothing) * nll if self.smoothing != 1 else 0
        shares = self.shares_of(row)
        if self.smoothing != 0:
            loss += tl_weigh(backend, logits, &shares, normalizer.offset, &smooth, patience)
            loss += smooth * normalizer.log
        if self.has_result:
            result = row_at(&self.result, row)
            odds = tl_exp(gap)  # of the rest, for the target
            here = weight * (1 - self.smoothing) * (1 if odds > 1e300 else odds / (1 + odds))
            here = (smooth + self.slope_of_z_loss(normalizer)) / (1 + odds) - here - weight * shares.uniform
            here *= tl_slope(logits, logit)
            smooth += weight * (1 - self.smoothing)
            if self.write_gradient(logits, normalizer, smooth, &shares, &result, patience):
                tl_put(&result, target, self.factor * here)
        return loss + self.z_loss_of(normalizer)

    cdef inline double z_loss_of(self, tl_normalizer normalizer) noexcept nogil:
        return self.z_loss * tl_logsumexp(normalizer) * tl_logsumexp(normalizer) if self.z_loss != 0 else 0

    cdef inline double slope_of_z_loss(self, tl_normalizer normalizer) noexcept nogil:
        return 2 * self.z_loss * tl_logsumexp(normalizer) if self.z_loss != 0 else 0

    cdef bint write_gradient(self, const tl_row *logits, tl_normalizer normalizer, double share,
                             const tl_shares *shares, const tl_row *result, tl_patience *patience) noexcept nogil:
        """Writes the gradient of a row of which this share goes to class ids and distributions; False if it is nan."""
        cdef double logsumexp = tl_logsumexp(normalizer)
        if logsumexp - logsumexp != 0:
            tl_fill(result, NAN)
            return False
        share += self.slope_of_z_loss(normalizer)
        tl_gradient(backend, logits, normalizer, self.factor, share, shares, result, self.is_large,
                    patience)
        return True

    cdef double loss_by_distribution(self, int64_t row, const tl_row *logits, Totals *totals,
                                     tl_patience *patience) noexcept nogil:
        """Folds the logits once; where they have no share they are not read again, nor at all if none has any."""
        cdef tl_state rest
        cdef tl_row result
        cdef tl_normalizer normalizer
        cdef tl_shares shares = self.shares_of(row)
        cdef int64_t found, likeliest = tl_likeliest(backend, &shares, self.classes, &found, patience)
        cdef double total = 0, loss = 0, logit, gap, nll
        if not self.accepts_distribution(row, likeliest, found, totals, patience):
            return 0
        if likeliest < 0 and self.z_loss == 0:
            if self.has_result:
                result = row_at(&self.result, row)
                tl_fill(&result, 0)
            return 0
        tl_fold_row(backend, logits, likeliest, &rest, patience)
        if likeliest < 0:
            normalizer = tl_normalize(&rest, logits)
        else:
            logit = tl_score(backend, logits, likeliest)
            gap = tl_gap(&rest, logits, logit)
            nll = tl_softplus(gap)
            normalizer = tl_normalize_with(&rest, logits, logit, gap)
            if nll - nll == 0:
                loss = tl_weigh(backend, logits, &shares, logit, &total, patience) + total * nll
            else:
                loss = tl_weigh(backend, logits, &shares, normalizer.offset, &total, patience)
                loss += total * normalizer.log
        if self.has_result:
            result = row_at(&self.result, row)
            self.write_gradient(logits, normalizer, total, &shares, &result, patience)
        return loss + self.z_loss_of(normalizer)

    cdef double score_by_distribution(self, int64_t row, const tl_row *scores, Totals *totals,
                                      tl_patience *patience) noexcept nogil:
        """As `loss_by_distribution` of probabilities and log-probabilities, read where the target is not 0."""
        cdef tl_shares shares = self.shares_of(row)
        cdef double[64] share
        cdef double[64] loss
        cdef int64_t start = 0, found = 0, last = -1
        cdef double total = 0, lost = 0, term, before, other
        cdef int i, count
        while True:
            count = tl_next_shares(backend, &shares, self.classes, &start, share, patience)
            if count == 0:
                self.accepts_distribution(row, last, found, totals, patience)
                return total + lost if lost - lost == 0 else total
            for i in range(count):
                loss[i] = 0
                if tl_has_share(share[i]):
                    loss[i] = tl_load(scores.data + (start + i) * scores.stride, scores.dtype)
                    if loss[i] < self.least_score or loss[i] > self.greatest_score:
                        self.refuse(C_BAD_SCORE, row, start + i, loss[i], totals)
            self.losses_of_scores(loss, count)
            for i in range(count):
                if not tl_has_share(share[i]):
                    continue
                found, last = found + 1, start + i
                term = share[i] * loss[i]
                # what each addition loses is added at the end
                before = total
                total += term
                other = total - before
                lost += (before - (total - other)) + (term - other)
            start += count

    cdef double number_of_state(self, int64_t row, const tl_row *scores, int64_t target, const tl_state *state,
                                tl_patience *patience) noexcept nogil:
        """The loss or the logsumexp; writes what is to be written for each class."""
        cdef tl_row result
        cdef tl_normalizer normalizer
        cdef double logsumexp
        if self.what == C_LOGITS:
            return self.loss_of_class(row, scores, target, state, patience)
        if self.what == C_LOGSUMEXP:
            return tl_logsumexp_of(backend, scores, state, -1, NULL, patience)
        normalizer = tl_normalize(state, scores)
        logsumexp = tl_logsumexp(normalizer)
        result = row_at(&self.result, row)
        if logsumexp - logsumexp != 0:
            tl_fill(&result, NAN)
        elif self.what == C_SOFTMAX:
            tl_softmax(backend, scores, normalizer, &result, self.is_large, patience)
        else:
            tl_log_softmax(backend, scores, normalizer, &result, self.is_large, patience)
        return logsumexp

    cdef double token_of(self, int64_t row, const tl_row *logits, int64_t target, tl_patience *patience) noexcept nogil:
        """The loss; writes all else."""
        cdef tl_token token
        cdef tl_best best = self.best_of(row)
        tl_score_row(backend, logits, target, &token, &best if self.top_k > 0 else NULL, patience)
        if logits.shift != 0:
            token.logsumexp += logits.scale * logits.shift
        return self.write_token(row, target, &token)

    cdef tl_best best_of(self, int64_t row) noexcept nogil:
        """Room for the best of a row, where they are to be written."""
        cdef tl_best best
        best.most, best.count, best.value, best.id = self.top_k, 0, NULL, NULL
        if self.top_k > 0:
            best.value, best.id = &self.top_logprobs_out[row * self.top_k], &self.top_ids_out[row * self.top_k]
        return best

    cdef double write_token(self, int64_t row, int64_t target, const tl_token *token) noexcept nogil:
        """Writes all but the loss, and returns that."""
        self.logsumexp_out[row], self.entropy_out[row] = token.logsumexp, token.entropy
        self.rank_out[row], self.argmax_out[row] = token.rank, token.argmax
        self.is_greedy_out[row], self.kept_out[row] = token.argmax == target, True
        return token.nll

    cdef double number_of(self, int64_t row, int64_t target, Totals *totals, tl_patience *patience) noexcept nogil:
        """What a kept row is folded to."""
        cdef tl_row scores = self.scores_of(row)
        cdef double number
        if self.has_result:  # before it is written, perhaps over the logits
            self.keep_in_range(row, &scores)
        number = self.number_of_scores(row, &scores, target, totals, patience)
        if number != number and not self.has_result:
            self.keep_in_range(row, &scores)
            if scores.shift != 0:
                number = self.number_of_scores(row, &scores, target, totals, patience)
        return number

    cdef inline void keep_in_range(self, int64_t row, tl_row *scores) noexcept nogil:
        """Has the maximum of a row subtracted first where it overflows, times logit_scale: differences do not."""
        cdef tl_row raw
        cdef double maximum
        if self.scale > 1 and self.cap == 0 and self.z_loss == 0:
            raw = row_at(&self.scores, row)
            maximum = tl_maximum(backend, &raw)
            if -INFINITY < maximum < INFINITY and self.scale * maximum in (-INFINITY, INFINITY):
                scores.shift = maximum

    cdef double number_of_scores(self, int64_t row, tl_row *scores, int64_t target, Totals *totals,
                                 tl_patience *patience) noexcept nogil:
        """Loss, logsumexp, maximum or divergence of a row."""
        cdef tl_row other
        cdef tl_state state
        if self.what == C_MAXIMUM:
            return tl_maximum(backend, scores)
        if self.what == C_TOKENS:
            return self.token_of(row, scores, target, patience)
        if self.what == C_DIVERGENCE:
            other = row_at(&self.other, row)
            if scores.folded != other.folded:
                scores.folded = other.folded = (
                    TL_FLOAT64 if TL_FLOAT64 in (scores.folded, other.folded) else TL_FLOAT32
                )
            return tl_divergence(backend, scores, &other, patience)
        if self.has_targets and not self.by_class:
            if self.what == C_LOGITS:
                return self.loss_by_distribution(row, scores, totals, patience)
            return self.score_by_distribution(row, scores, totals, patience)
        tl_fold_row(backend, scores, target, &state, patience)
        return self.number_of_state(row, scores, target, &state, patience)

    cdef inline void count(self, int64_t row, double number, int64_t target, Totals *totals) noexcept nogil:
        """Adds the number of a kept row to the sums, and writes it where each is wanted."""
        if self.has_weight and self.by_class:
            tl_sum_add(&totals.weights, self.class_weight(target))
        tl_sum_add(&totals.losses, number)
        totals.kept += 1
        if self.has_losses:
            self.losses_out[row] = number

    cdef void pass_over(self, int64_t row) noexcept nogil:
        """Writes what stands for a row that is not kept."""
        cdef tl_row result
        cdef int64_t i
        if self.has_losses:
            self.losses_out[row] = 0
        if self.has_result:
            result = row_at(&self.result, row)
            tl_fill(&result, 0)
        if self.what == C_TOKENS:
            self.logsumexp_out[row] = self.entropy_out[row] = 0
            self.rank_out[row], self.argmax_out[row] = 0, -1
            self.is_greedy_out[row] = self.kept_out[row] = False
            for i in range(row * self.top_k, (row + 1) * self.top_k):
                self.top_ids_out[i], self.top_logprobs_out[i] = -1, 0

    cdef void fold(self, int64_t start, int64_t stop, Totals *totals, tl_patience *patience) noexcept nogil:
        """Folds these rows one after another."""
        cdef int64_t row, target = -1
        for row in range(start, stop):
            if self.by_class:
                target = self.target_of(row)
            if self.is_kept(row, target) and self.accepts(row, target, totals):
                self.count(row, self.number_of(row, target, totals, patience), target, totals)
            else:
                self.pass_over(row)

    cdef void fold_beside(self, int64_t start, int64_t stop, Totals *totals, tl_patience *patience) noexcept nogil:
        """As `fold` where rows lie beside each other, class by class: as many at once as share cache lines."""
        cdef tl_row rows[32]
        cdef tl_state states[32]
        cdef int64_t number[32]
        cdef int64_t targets[32]
        cdef int64_t row, target = -1
        cdef int i, count
        cdef double loss, gap
        cdef void *turned = malloc(TL_TURNED_BYTES)
        if turned == NULL:
            self.fold(start, stop, totals, patience)
            return
        while start < stop:
            count = 0
            for row in range(start, min(stop, start + TL_ROWS_BESIDE(self.scores.dtype))):
                if self.by_class:
                    target = self.target_of(row)
                if self.is_kept(row, target) and self.accepts(row, target, totals):
                    rows[count], number[count], targets[count] = self.scores_of(row), row, target
                    count += 1
                else:
                    self.pass_over(row)
            tl_fold_beside(backend, rows, targets, count, turned, states, patience)
            for i in range(count):
                gap = 0
                if self.what == C_LOGITS and self.scale > 1:
                    gap = tl_gap(&states[i], &rows[i], tl_score(backend, &rows[i], targets[i]))
                if gap == gap:
                    loss = self.number_of_state(number[i], &rows[i], targets[i], &states[i], patience)
                else:  # scaled logits may have overflowed
                    loss = self.number_of(number[i], targets[i], totals, patience)
                self.count(number[i], loss, targets[i], totals)
            start += TL_ROWS_BESIDE(self.scores.dtype)
        free(turned)

    cdef void aim(self, int64_t start, int count, int64_t *target, const char **address,
                  Totals *totals) noexcept nogil:
        """Finds the rows' targets and asks memory for their scores; the address is NULL where a row is not kept."""
        cdef int i
        for i in range(count):
            target[i] = self.target_of(start + i)
        # apart, for the fewer instructions lie between two requests, the more of them are under way
        for i in range(count):
            address[i] = NULL
            if self.is_kept(start + i, target[i]) and self.accepts(start + i, target[i], totals):
                address[i] = row_of(&self.scores, start + i) + target[i] * self.class_stride
                tl_prefetch(address[i])

    cdef void gather(self, int64_t start, int64_t stop, Totals *totals) noexcept nogil:
        """As `fold` where one score of each row is read: while some are counted, memory looks for the next."""
        cdef const char *address[2 * TOGETHER]
        cdef int64_t target[2 * TOGETHER]
        cdef double loss[TOGETHER]
        cdef int i, count, now = 0, later = TOGETHER, dtype = self.scores.dtype
        cdef uint64_t signs
        cdef double least = self.least_score, greatest = self.greatest_score
        self.aim(start, <int> min(stop - start, TOGETHER), target, address, totals)
        while start < stop:
            if start + TOGETHER < stop:
                count = <int> min(stop - start - TOGETHER, TOGETHER)
                self.aim(start + TOGETHER, count, target + later, address + later, totals)
            count = <int> min(stop - start, TOGETHER)
            for i in range(count):
                loss[i] = 0 if address[now + i] == NULL else tl_load(address[now + i], dtype)
            signs = 0  # of differences, by which vectors of scores are checked at once; nan may have either
            for i in range(count):
                signs |= tl_to_bits(loss[i] - least) | tl_to_bits(greatest - loss[i])
            if signs >> 63:
                for i in range(count):
                    if loss[i] < self.least_score or loss[i] > self.greatest_score:
                        self.refuse(C_BAD_SCORE, start + i, target[now + i], loss[i], totals)
            self.losses_of_scores(loss, count)
            for i in range(count):
                if address[now + i] == NULL:
                    self.pass_over(start + i)
                    continue
                if self.has_weight:
                    loss[i] *= self.class_weight(target[now + i])
                self.count(start + i, loss[i], target[now + i], totals)
            start += TOGETHER
            now, later = later, now

    cdef bint rows_lie_beside(self) noexcept nogil:
        """Whether logits of neighbouring rows lie nearer to each other than those of neighbouring classes."""
        cdef bint one_state = self.what in (C_LOGSUMEXP, C_SOFTMAX, C_LOG_SOFTMAX) or (
            self.what == C_LOGITS and self.by_class
        )
        if self.rows < 2 or not one_state:
            return False
        return llabs(row_of(&self.scores, 1) - row_of(&self.scores, 0)) < llabs(self.class_stride)

    def rows_at_once(self):
        """How many rows `run` does best when it takes them together."""
        return TL_ROWS_BESIDE(self.scores.dtype) if self.rows_lie_beside() else 1

    def first_bad_target(self):
        """The first kept row whose class id is not one of the classes, or -1."""
        cdef int64_t row = 0, target = 0, stop
        while row < self.rows:
            stop = min(row + TARGETS_AT_ONCE, self.rows)
            with nogil:
                while row < stop:
                    target = self.target_of(row)
                    if not 0 <= target < self.classes and self.is_kept(row, target):
                        break
                    row += 1
            if row < stop:
                return row
            PyErr_CheckSignals()
        return -1

    cdef int64_t tally(self, tl_sum *weights) except -1:
        """How many rows are kept; adds up the weights of their class ids, unless it is given NULL."""
        cdef int64_t row = 0, target = -1, stop, kept = 0
        cdef tl_fp_state environment
        while row < self.rows:
            stop = min(row + TARGETS_AT_ONCE, self.rows)
            with nogil:
                tl_fp_enter(&environment)
                for row in range(row, stop):
                    if self.by_class:
                        target = self.target_of(row)
                    if self.is_kept(row, target):
                        kept += 1
                        if weights != NULL and 0 <= target < self.classes:
                            tl_sum_add(weights, self.class_weight(target))
                tl_fp_leave(&environment)
            row = stop
            PyErr_CheckSignals()
        return kept

    def count_kept(self):
        """How many rows are kept."""
        return self.tally(NULL)

    def divide(self):
        """Has the gradient divided by what a mean loss is divided by. Class ids must have been checked."""
        cdef bint weighted = self.has_weight and self.by_class
        cdef tl_sum weights
        cdef tl_fp_state environment
        memset(&weights, 0, sizeof(weights))
        kept = self.tally(&weights if weighted else NULL)
        tl_fp_enter(&environment)
        self.factor = 1 / (tl_sum_round(&weights) if weighted else <double> kept)
        tl_fp_leave(&environment)

    def first_bad_distribution(self):
        """The first kept row of integer targets that is not one-hot, or -1."""
        cdef int64_t row
        cdef tl_patience patience = self.patience_of(True)
        if not self.is_integer or self.by_class:
            return -1
        with nogil:
            for row in range(self.rows):
                if tl_gave_up(&patience) or (self.is_kept(row, -1) and not self.is_one_hot(row, &patience)):
                    break
            else:
                row = -1
        if self.interruption is not None:
            raise self.interruption
        return row

    def run(self, int64_t step, bint ask):
        """Takes rows, `step` at a time, until none is left. With `ask`, lets Python's signal handlers run meanwhile."""
        cdef Totals totals
        cdef tl_fp_state environment
        cdef tl_patience patience = self.patience_of(ask)
        cdef int64_t start, stop
        cdef bint one_score = self.what <= C_LOG_PROBS and self.by_class
        cdef bint beside = self.rows_lie_beside()
        memset(&totals, 0, sizeof(totals))
        with nogil:
            tl_fp_enter(&environment)
            while not tl_is_raised(&self.stopped) and not tl_is_raised(&self.refused):
                start = tl_take(&self.next_row, step)
                if start >= self.rows:
                    break
                stop = min(start + step, self.rows)
                if one_score:
                    self.gather(start, stop, &totals)
                elif beside:
                    self.fold_beside(start, stop, &totals, &patience)
                else:
                    self.fold(start, stop, &totals, &patience)
                tl_gave_up(&patience)
            tl_fp_leave(&environment)
        with cython.critical_section(self):
            self.totals.kept += totals.kept
            tl_sum_merge(&self.totals.losses, &totals.losses)
            if self.has_weight:
                tl_sum_merge(&self.totals.weights, &totals.weights)
            if totals.refusal != 0 and (self.totals.refusal == 0 or totals.bad_row < self.totals.bad_row):
                self.totals.refusal, self.totals.bad_row = totals.refusal, totals.bad_row
                self.totals.bad_class, self.totals.bad_score = totals.bad_class, totals.bad_score
        if ask and self.interruption is not None:
            raise self.interruption

    def refusal(self):
        """Why the first of the refused rows was, its number, and the class and the score if it was for one."""
        return self.totals.refusal, self.totals.bad_row, self.totals.bad_class, self.totals.bad_score

    def reduced(self, bint mean):
        """The sum of the losses of the kept rows.

        Of a mean, over the sum of the weights of the kept targets where they are weighted class ids, else over their
        number; nan where there is nothing to average.
        """
        cdef tl_fp_state environment
        cdef tl_sum *losses = &self.totals.losses
        cdef double total, divisor = 1
        tl_fp_enter(&environment)
        total = tl_sum_round(losses)
        if mean:
            divisor = <double> self.totals.kept
            if self.has_weight and self.by_class:
                divisor = tl_sum_round(&self.totals.weights)
        if mean and total - total != 0 and losses.special == 0:  # a mean may fit where its sum does not
            total = tl_sum_scaled(losses, -64) / divisor * 18446744073709551616.0
        else:
            total /= divisor
        tl_fp_leave(&environment)
        return total


cdef struct Carried:
    # what a row was folded to by the tiles so far
    int64_t row, target
    int64_t left_out  # the class whose score is known from the start, or -1
    double own  # that score, as it is in tiles
    double anchor  # what scores are weighed against
    bint weighs
    tl_state state
    tl_weighed weighed
    tl_token token
    tl_best best


@cython.final
cdef class Tiles(Work):
    """Folds rows whose scores exist a tile at a time: some rows, and of these some classes.

    `take` chooses the next rows, `part` tells of their scores in the next classes, which `run` folds, and `finish` ends
    the rows. The fold itself has scores of the right shape and dtype that are never read.
    """

    cdef Fold fold
    cdef Carried *carried
    cdef int64_t most, count
    cdef View tile
    cdef int64_t first, last
    cdef int64_t[::1] taken, left_out

    def __cinit__(self, Fold fold, int64_t[::1] taken, int64_t[::1] left_out):
        """The rows that are taken at a time, and their classes whose scores must be known, are written to arrays."""
        self.fold, self.taken, self.left_out, self.most = fold, taken, left_out, taken.shape[0]
        self.carried = <Carried *> malloc(self.most * sizeof(Carried))
        if self.carried == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyBuffer_Release(&self.tile.buffer)
        free(self.carried)

    cdef void begin(self, int64_t row, int64_t target, Carried *carried, tl_patience *patience) noexcept nogil:
        """Begins a kept row."""
        cdef tl_shares shares
        cdef int64_t found
        carried.row, carried.target = row, target
        carried.left_out, carried.weighs = carried.target, self.fold.smoothing != 0
        if not self.fold.by_class:
            shares = self.fold.shares_of(row)
            carried.left_out = tl_likeliest(backend, &shares, self.fold.classes, &found, patience)
            carried.weighs = carried.left_out >= 0
            self.fold.accepts_distribution(row, carried.left_out, found, &self.fold.totals, patience)
        carried.own = carried.anchor = 0
        memset(&carried.weighed, 0, sizeof(carried.weighed))
        carried.best = self.fold.best_of(row)

    cdef void end(self, Carried *carried, double number) noexcept nogil:
        """Ends a kept row with its loss."""
        self.fold.count(carried.row, number, carried.target, &self.fold.totals)

    def take(self):
        """Begins the next kept rows; how many."""
        cdef Fold fold = self.fold
        cdef int64_t row, target
        cdef tl_fp_state environment
        cdef tl_patience patience = self.patience_of(True)
        self.count = 0
        with nogil:
            tl_fp_enter(&environment)
            while self.count < self.most and fold.next_row < fold.rows and not tl_is_raised(&self.stopped):
                row = fold.next_row
                fold.next_row += 1
                if not fold.by_class or row % 1024 == 0:
                    tl_gave_up(&patience)
                target = fold.target_of(row) if fold.by_class else -1
                if not fold.is_kept(row, target) or not fold.accepts(row, target, &fold.totals):
                    fold.pass_over(row)
                else:
                    self.begin(row, target, &self.carried[self.count], &patience)
                    self.taken[self.count] = row
                    self.left_out[self.count] = self.carried[self.count].left_out
                    self.count += 1
            tl_fp_leave(&environment)
        if self.interruption is not None:
            raise self.interruption
        return self.count

    cdef inline tl_row row_in_tile(self, int64_t i) noexcept nogil:
        """A row of which only the classes of the tile may be read."""
        cdef tl_row scores = self.fold.scores_of(0)
        scores.stride = self.tile.buffer.strides[1]
        scores.data = row_of(&self.tile, i) - self.first * scores.stride
        return scores

    def know(self, const double[::1] own):
        """The scores of the classes that are left out."""
        cdef tl_row scores = self.fold.scores_of(0)
        cdef int64_t i
        for i in range(self.count):
            self.carried[i].own = own[i]
            if not self.fold.by_class:  # else `do` finds one, for the target may be far from all that weighs
                self.carried[i].anchor = tl_squash(backend, &scores, own[i])
                if self.carried[i].anchor - self.carried[i].anchor != 0:
                    self.carried[i].anchor = 0

    def part(self, tile, int64_t first):
        """Scores of the rows, in classes from `first` on: a multiple of CLASSES_AT_ONCE, unless they are the last."""
        PyBuffer_Release(&self.tile.buffer)
        open_view(&self.tile, tile, self.fold.scores.dtype, 1, True)
        self.first, self.last = first, first + self.tile.buffer.shape[1]
        self.rows, self.next_row = self.count, 0

    cdef void do(self, int64_t start, int64_t stop, tl_patience *patience) noexcept nogil:
        cdef Carried *carried
        cdef tl_row logits
        cdef tl_shares shares
        cdef int64_t i
        for i in range(start, stop):
            carried, logits = &self.carried[i], self.row_in_tile(i)
            if self.first <= carried.left_out < self.last:
                # products of few rows and of many may differ in their last digits: one score has one value
                tl_put(&logits, carried.left_out, carried.own)
            if self.fold.what == C_TOKENS:
                tl_score_part(backend, &logits, self.first, self.last, C_CLASSES_AT_ONCE, carried.target, carried.own,
                              &carried.token, &carried.best if self.fold.top_k > 0 else NULL, patience)
                continue
            tl_fold_part(backend, &logits, self.first, self.last, C_CLASSES_AT_ONCE, carried.left_out, &carried.state,
                         patience)
            if carried.weighs:
                if self.fold.by_class and self.first == 0:
                    carried.anchor = tl_normalize(&carried.state, &logits).offset
                shares = self.fold.shares_of(carried.row)
                tl_weigh_part(backend, &logits, &shares, self.first, self.last, carried.anchor, &carried.weighed,
                              patience)

    cdef double loss_of(self, Carried *carried) noexcept nogil:
        cdef tl_row logits = self.fold.scores_of(0)
        cdef tl_normalizer normalizer
        cdef double loss = 0, share = 0, logit, gap
        if carried.left_out < 0 and self.fold.z_loss == 0:
            return 0  # a distribution without any share
        if carried.left_out < 0:
            normalizer = tl_normalize(&carried.state, &logits)
        else:
            logit = tl_squash(backend, &logits, carried.own)
            gap = tl_gap(&carried.state, &logits, logit)
            normalizer = tl_normalize_with(&carried.state, &logits, logit, gap)
            if self.fold.by_class and self.fold.smoothing != 1:
                loss = self.fold.class_weight(carried.target) * (1 - self.fold.smoothing) * tl_softplus(gap)
        if carried.weighs:
            loss += tl_weigh_end(&carried.weighed, &share)
            loss += share * ((normalizer.offset - carried.anchor) + normalizer.log)
        return loss + self.fold.z_loss_of(normalizer)

    def finish(self):
        """Ends the rows."""
        cdef Fold fold = self.fold
        cdef Carried *carried
        cdef tl_row logits = fold.scores_of(0)
        cdef tl_fp_state environment
        cdef int64_t i
        with nogil:
            tl_fp_enter(&environment)
            for i in range(self.count):
                carried = &self.carried[i]
                if fold.what == C_TOKENS:
                    tl_score_end(backend, &logits, carried.own, &carried.token,
                                 &carried.best if fold.top_k > 0 else NULL)
                    self.end(carried, fold.write_token(carried.row, carried.target, &carried.token))
                else:
                    self.end(carried, self.loss_of(carried))
            tl_fp_leave(&environment)


@cython.final
cdef class Conversion(Work):
    """Writes rows of an array, all or those that are numbered, as floats or doubles."""

    cdef View source, result
    cdef const int64_t[::1] numbers
    cdef bint all_rows

    def __cinit__(self, source, int dtype, numbers, result, int result_dtype):
        open_view(&self.source, source, dtype, source.ndim - 1, False)
        open_view(&self.result, result, result_dtype, 1, True)
        self.all_rows = numbers is None
        if not self.all_rows:
            self.numbers = numbers
        self.rows = result.shape[0]

    def __dealloc__(self):
        PyBuffer_Release(&self.source.buffer)
        PyBuffer_Release(&self.result.buffer)

    cdef void do(self, int64_t start, int64_t stop, tl_patience *patience) noexcept nogil:
        cdef int64_t i
        cdef tl_row row
        for i in range(start, stop):
            row = row_at(&self.source, i if self.all_rows else self.numbers[i])
            tl_convert(backend, &row, self.result.dtype, <void *> row_of(&self.result, i))


@cython.final
cdef class Products(Work):
    """Rows of weights times all of a few hidden states, which are floats or doubles."""

    cdef View weight, result
    cdef tl_vectors hidden
    cdef char *copied
    cdef int64_t first

    def __cinit__(self, weight, int dtype, hidden, int hidden_dtype):
        cdef View view
        cdef int64_t i
        cdef tl_row row
        open_view(&self.weight, weight, dtype, 1, False)
        open_view(&view, hidden, hidden_dtype, 1, False)
        # copied to whole cache lines, one more than needed apart, lest all begin at the same place of a cache
        self.hidden.count = view.buffer.shape[0]
        self.hidden.stride = (view.buffer.shape[1] * tl_itemsize(hidden_dtype) // 64 + 2) * 64
        self.copied = <char *> malloc(self.hidden.count * self.hidden.stride + 64)
        if self.copied != NULL:
            self.hidden.data = self.copied + 64 - <size_t> self.copied % 64
            for i in range(self.hidden.count):
                row = row_at(&view, i)
                tl_convert(backend, &row, hidden_dtype, self.hidden.data + i * self.hidden.stride)
        self.result.dtype = hidden_dtype
        PyBuffer_Release(&view.buffer)
        if self.copied == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyBuffer_Release(&self.weight.buffer)
        PyBuffer_Release(&self.result.buffer)
        free(self.copied)

    def into(self, result, int64_t first):
        """Where products go: those of each hidden state with weights from the first on."""
        PyBuffer_Release(&self.result.buffer)
        open_view(&self.result, result, self.result.dtype, 1, True)
        self.rows, self.first, self.next_row = result.shape[1], first, 0

    cdef void do(self, int64_t start, int64_t stop, tl_patience *patience) noexcept nogil:
        cdef tl_row row = row_at(&self.weight, self.first + start)
        cdef tl_vectors result
        result.data = <char *> self.result.buffer.buf + start * tl_itemsize(self.result.dtype)
        result.stride = self.result.step
        tl_products(backend, &row, self.weight.step, stop - start, &self.hidden, &result)


def products_of(weight, int dtype, hidden, int hidden_dtype, const int64_t[::1] numbers, double[::1] result):
    """Writes the product of each hidden state with the row of weights of this number, or 0 where there is none."""
    cdef View weights, states
    cdef tl_vectors state, product
    cdef tl_row row
    cdef int64_t i
    cdef char number[8]
    cdef char *converted
    cdef tl_fp_state environment
    open_view(&weights, weight, dtype, 1, False)
    open_view(&states, hidden, hidden_dtype, 1, False)
    converted = <char *> malloc(max(1, weights.buffer.shape[1]) * tl_itemsize(hidden_dtype))
    if converted == NULL:
        PyBuffer_Release(&weights.buffer)
        PyBuffer_Release(&states.buffer)
        raise MemoryError
    state.count, state.stride, product.data, product.stride = 1, 0, number, 0
    with nogil:
        tl_fp_enter(&environment)
        for i in range(numbers.shape[0]):
            result[i] = 0
            if numbers[i] < 0:
                continue
            row = row_at(&weights, numbers[i])
            tl_convert(backend, &row, hidden_dtype, converted)
            row.data, row.dtype, row.stride = converted, hidden_dtype, tl_itemsize(hidden_dtype)
            state.data = <char *> row_of(&states, i)
            tl_products(backend, &row, 0, 1, &state, &product)
            result[i] = tl_load(number, hidden_dtype)
        tl_fp_leave(&environment)
    free(converted)
    PyBuffer_Release(&weights.buffer)
    PyBuffer_Release(&states.buffer)


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


@cython.final
cdef class DLPackBuffer:
    """A buffer over the tensor in a DLPack capsule, kept alive as long as the buffer is.

    bfloat16, for which buffers have no format, is exported as uint16.
    """

    cdef DLManagedTensor *plain
    cdef DLManagedTensorVersioned *versioned
    cdef Py_ssize_t shape[64]
    cdef Py_ssize_t strides[64]
    cdef Py_ssize_t size
    cdef bytes format
    cdef bint is_readonly
    cdef readonly str dtype
    cdef readonly tuple device

    def __cinit__(self, capsule):
        cdef DLManagedTensor *plain = NULL
        cdef DLManagedTensorVersioned *versioned = NULL
        cdef DLTensor *tensor
        cdef Py_ssize_t stride
        cdef int k
        if PyCapsule_IsValid(capsule, "dltensor_versioned"):
            versioned = <DLManagedTensorVersioned *> PyCapsule_GetPointer(capsule, "dltensor_versioned")
            if versioned.major > 1:
                raise BufferError(f"version {versioned.major} of DLPack")
            tensor = &versioned.tensor
            self.is_readonly = versioned.flags & 1
        else:
            plain = <DLManagedTensor *> PyCapsule_GetPointer(capsule, "dltensor")
            tensor = &plain.tensor
            self.is_readonly = True  # for all that older producers tell
        kind = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}.get(tensor.code, "unknown")
        self.dtype = "bool" if kind == "bool" and tensor.bits == 8 else f"{kind}{tensor.bits}"
        if tensor.lanes != 1:
            self.dtype += f"x{tensor.lanes}"
        self.format = FORMATS.get(self.dtype, b"")
        self.device = (tensor.device_type, tensor.device_id)
        if not 0 <= tensor.ndim <= 64:
            raise BufferError(f"it has {tensor.ndim} dimensions")
        self.size = stride = max(1, tensor.bits // 8)
        for k in range(tensor.ndim - 1, -1, -1):
            self.shape[k] = tensor.shape[k]
            if self.shape[k] < 0:
                raise BufferError(f"its shape holds {self.shape[k]}")
            if self.shape[k] > 0 and self.size > PY_SSIZE_T_MAX // self.shape[k]:
                raise BufferError("its shape has more elements than memory can hold")
            self.size *= self.shape[k]
            self.strides[k] = tensor.strides[k] * (tensor.bits // 8) if tensor.strides != NULL else stride
            stride *= max(1, self.shape[k])
        if tensor.data == NULL and self.size > 0:
            raise BufferError("it has no memory: its data pointer is NULL")
        # from here on the tensor is ours to delete
        self.versioned, self.plain = versioned, plain
        if versioned != NULL:
            PyCapsule_SetName(capsule, "used_dltensor_versioned")
        else:
            PyCapsule_SetName(capsule, "used_dltensor")

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef DLTensor *tensor = &self.plain.tensor if self.plain != NULL else &self.versioned.tensor
        buffer.buf = <char *> tensor.data + tensor.byte_offset
        buffer.obj = self
        buffer.itemsize = tensor.bits // 8
        buffer.len = self.size
        if not self.format:
            raise BufferError(self.dtype)
        if flags & PyBUF_WRITABLE and self.is_readonly:
            raise BufferError("read-only")
        buffer.readonly = self.is_readonly
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


cdef dict FORMATS = {
    "float16": b"e", "bfloat16": b"H", "float32": b"f", "float64": b"d", "bool": b"?",
    "int8": b"b", "int16": b"h", "int32": b"i", "int64": b"q",
    "uint8": b"B", "uint16": b"H", "uint32": b"I", "uint64": b"Q",
}
