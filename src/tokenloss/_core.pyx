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

from tokenloss.kernels cimport *

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

    cdef void do(self, int64_t start, int64_t stop, tl_cancel *cancel) noexcept nogil:
        """Does these rows."""

    cdef tl_cancel new_cancel(self, bint ask) noexcept:
        cdef tl_cancel cancel
        cancel.poll = NULL
        cancel.last_poll = 0
        if ask:
            cancel.poll = _ask
            cancel.last_poll = tl_seconds()
        cancel.argument = <void *> self
        cancel.stopped = &self.stopped
        return cancel

    def rows_at_once(self):
        """How many rows `run` does best when it takes them together."""
        return 1

    def stop(self):
        """Makes every `run` end after the block it is at."""
        tl_flag_set(&self.stopped)

    def run(self, int64_t step, bint ask):
        """Takes rows, `step` at a time, until none is left. With `ask`, lets Python's signal handlers run meanwhile."""
        cdef tl_fp_state environment
        cdef tl_cancel cancel = self.new_cancel(ask)
        cdef int64_t start
        with nogil:
            tl_fp_enter(&environment)
            while not tl_flag_get(&self.stopped):
                start = tl_fetch_add(&self.next_row, step)
                if start >= self.rows:
                    break
                self.do(start, min(start + step, self.rows), &cancel)
                tl_cancelled(&cancel)
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
    found.dtype, found.compute_dtype, found.logit_scale, found.softcap = view.dtype, view.dtype & ~TL_SWAPPED, 1, 0
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
    tl_superacc losses, weights
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
                                          tl_cancel *cancel) noexcept nogil:
        """Whether a row's targets are floats, or one-hot integers; `found` of them are nonzero, class k among these."""
        if not self.is_integer or (found == 1 and self.has_one(row, k)) or tl_flag_get(&self.stopped):
            return True
        if self.smoothing != 0 and self.is_one_hot(row, cancel):  # smoothed, none is 0
            return True
        self.refuse(C_BAD_DISTRIBUTION, row, -1, 0, totals)
        return False

    cdef inline bint has_one(self, int64_t row, int64_t k) noexcept nogil:
        """Whether the target of class k is 1."""
        return tl_load(row_of(&self.targets, row) + k * self.targets.buffer.strides[self.targets.axis],
                       self.targets.dtype) == 1

    cdef bint is_one_hot(self, int64_t row, tl_cancel *cancel) noexcept nogil:
        """Whether the targets of a row are one-hot: one 1, all others 0."""
        cdef tl_soft_target soft
        cdef int64_t k, found
        memset(&soft, 0, sizeof(soft))
        soft.one_minus_eps = 1
        soft.mass, soft.mass_dtype = row_of(&self.targets, row), self.targets.dtype
        soft.mass_stride = self.targets.buffer.strides[self.targets.axis]
        k = tl_soft_target_argmax(backend, &soft, self.classes, &found, cancel)
        return (found == 1 and self.has_one(row, k)) or tl_flag_get(&self.stopped)

    cdef void refuse(self, int reason, int64_t row, int64_t k, double score, Totals *totals) noexcept nogil:
        """Ends the call with an error, that of the first bad row: blocks that threads have begun are still finished."""
        if totals.refusal == 0:
            totals.refusal, totals.bad_row, totals.bad_class, totals.bad_score = reason, row, k, score
        tl_flag_set(&self.refused)

    cdef inline double class_weight(self, int64_t k) noexcept nogil:
        return tl_load(row_of(&self.weight, k), self.weight.dtype) if self.has_weight else 1

    cdef inline tl_row scores_of(self, int64_t row) noexcept nogil:
        cdef tl_row scores = row_at(&self.scores, row)
        if self.scale != 1 or self.cap != 0:
            scores.compute_dtype, scores.logit_scale, scores.softcap = TL_FLOAT64, self.scale, self.cap
        return scores

    cdef inline tl_soft_target shares_of(self, int64_t row) noexcept nogil:
        """The shares of classes in the loss of a row, but for that of a class id."""
        cdef tl_soft_target soft
        memset(&soft, 0, sizeof(soft))
        soft.one_minus_eps = 1 - self.smoothing
        soft.eps_over_v = self.smoothing / self.classes
        if self.has_targets and not self.by_class:
            soft.mass = row_of(&self.targets, row)
            soft.mass_stride = self.targets.buffer.strides[self.targets.axis]
            soft.mass_dtype = self.targets.dtype
        if self.has_weight and (self.smoothing != 0 or not self.by_class):
            soft.weight, soft.weight_dtype = <const char *> self.weight.buffer.buf, self.weight.dtype
            soft.weight_stride = self.weight.buffer.strides[0]
        return soft

    cdef void losses_of_scores(self, double *scores, int count) noexcept nogil:
        """Turns probabilities or log-probabilities of targets into losses: 0.0, not -0.0, where one is certain."""
        cdef int i
        if self.what == C_PROBS:
            backend.clipped_losses(scores, count, self.lowest, self.highest)
        else:
            for i in range(count):
                scores[i] = 0 - scores[i]

    cdef double loss_of_class(self, int64_t row, const tl_row *logits, int64_t target, const tl_lse_acc *rest,
                              tl_cancel *cancel) noexcept nogil:
        """The loss of a class id from the state of the rest of the row; the gradient, too, if it is wanted."""
        cdef tl_soft_target soft
        cdef tl_row result
        cdef double weight = self.class_weight(target), logit = tl_logit_at(backend, logits, target)
        cdef double gap = tl_log_odds_against(rest, logits, logit), nll = tl_softplus(gap), loss, smooth = 0, odds, here
        cdef tl_lse lse
        if self.smoothing == 0 and self.z_loss == 0 and not self.has_result:
            return weight * nll
        lse = tl_lse_finish_with(rest, logits, logit, gap)
        loss = weight * (1 - self.smoothing) * nll if self.smoothing != 1 else 0
        soft = self.shares_of(row)
        if self.smoothing != 0:
            loss += tl_target_dot(backend, logits, &soft, lse.offset, &smooth, cancel)
            loss += smooth * lse.log
        if self.has_result:
            result = row_at(&self.result, row)
            odds = tl_exp(gap)  # of the rest, for the target
            here = weight * (1 - self.smoothing) * (1 if odds > 1e300 else odds / (1 + odds))
            here = (smooth + self.slope_of_z_loss(lse)) / (1 + odds) - here - weight * soft.eps_over_v
            here *= tl_softcap_grad(logits, logit)
            smooth += weight * (1 - self.smoothing)
            if self.write_gradient(logits, lse, smooth, &soft, &result, cancel):
                tl_store_at(&result, target, self.factor * here)
        return loss + self.z_loss_of(lse)

    cdef inline double z_loss_of(self, tl_lse lse) noexcept nogil:
        return self.z_loss * tl_logsumexp(lse) * tl_logsumexp(lse) if self.z_loss != 0 else 0

    cdef inline double slope_of_z_loss(self, tl_lse lse) noexcept nogil:
        return 2 * self.z_loss * tl_logsumexp(lse) if self.z_loss != 0 else 0

    cdef bint write_gradient(self, const tl_row *logits, tl_lse lse, double share,
                             const tl_soft_target *soft, const tl_row *result, tl_cancel *cancel) noexcept nogil:
        """Writes the gradient of a row of which this share goes to class ids and distributions; False if it is nan."""
        cdef double logsumexp = tl_logsumexp(lse)
        if logsumexp - logsumexp != 0:
            tl_fill(result, NAN)
            return False
        share += self.slope_of_z_loss(lse)
        tl_gradient(backend, logits, lse, self.factor, share, soft, result, self.is_large,
                    cancel)
        return True

    cdef double loss_by_distribution(self, int64_t row, const tl_row *logits, Totals *totals,
                                     tl_cancel *cancel) noexcept nogil:
        """Folds the logits once; where they have no share they are not read again, nor at all if none has any."""
        cdef tl_lse_acc rest
        cdef tl_row result
        cdef tl_lse lse
        cdef tl_soft_target soft = self.shares_of(row)
        cdef int64_t found, argmax = tl_soft_target_argmax(backend, &soft, self.classes, &found, cancel)
        cdef double total = 0, loss = 0, logit, gap, nll
        if not self.accepts_distribution(row, argmax, found, totals, cancel):
            return 0
        if argmax < 0 and self.z_loss == 0:
            if self.has_result:
                result = row_at(&self.result, row)
                tl_fill(&result, 0)
            return 0
        tl_lse_row(backend, logits, argmax, &rest, cancel)
        if argmax < 0:
            lse = tl_lse_finish(&rest, logits)
        else:
            logit = tl_logit_at(backend, logits, argmax)
            gap = tl_log_odds_against(&rest, logits, logit)
            nll = tl_softplus(gap)
            lse = tl_lse_finish_with(&rest, logits, logit, gap)
            if nll - nll == 0:
                loss = tl_target_dot(backend, logits, &soft, logit, &total, cancel) + total * nll
            else:
                loss = tl_target_dot(backend, logits, &soft, lse.offset, &total, cancel)
                loss += total * lse.log
        if self.has_result:
            result = row_at(&self.result, row)
            self.write_gradient(logits, lse, total, &soft, &result, cancel)
        return loss + self.z_loss_of(lse)

    cdef double score_by_distribution(self, int64_t row, const tl_row *scores, Totals *totals,
                                      tl_cancel *cancel) noexcept nogil:
        """As `loss_by_distribution` of probabilities and log-probabilities, read where the target is not 0."""
        cdef tl_soft_target soft = self.shares_of(row)
        cdef double[64] share
        cdef double[64] loss
        cdef int64_t start = 0, found = 0, last = -1
        cdef double total = 0, lost = 0, term, before, other
        cdef int i, count
        while True:
            count = tl_soft_target_next(backend, &soft, self.classes, &start, share, cancel)
            if count == 0:
                self.accepts_distribution(row, last, found, totals, cancel)
                return total + lost if lost - lost == 0 else total
            for i in range(count):
                loss[i] = 0
                if tl_contributes(share[i]):
                    loss[i] = tl_load(scores.data + (start + i) * scores.stride, scores.dtype)
                    if loss[i] < self.least_score or loss[i] > self.greatest_score:
                        self.refuse(C_BAD_SCORE, row, start + i, loss[i], totals)
            self.losses_of_scores(loss, count)
            for i in range(count):
                if not tl_contributes(share[i]):
                    continue
                found, last = found + 1, start + i
                term = share[i] * loss[i]
                # what each addition loses is added at the end
                before = total
                total += term
                other = total - before
                lost += (before - (total - other)) + (term - other)
            start += count

    cdef double number_of_state(self, int64_t row, const tl_row *scores, int64_t target, const tl_lse_acc *state,
                                tl_cancel *cancel) noexcept nogil:
        """The loss or the logsumexp; writes what is to be written for each class."""
        cdef tl_row result
        cdef tl_lse lse
        cdef double logsumexp
        if self.what == C_LOGITS:
            return self.loss_of_class(row, scores, target, state, cancel)
        if self.what == C_LOGSUMEXP:
            return tl_logsumexp_of(backend, scores, state, -1, NULL, cancel)
        lse = tl_lse_finish(state, scores)
        logsumexp = tl_logsumexp(lse)
        result = row_at(&self.result, row)
        if logsumexp - logsumexp != 0:
            tl_fill(&result, NAN)
        elif self.what == C_SOFTMAX:
            tl_softmax(backend, scores, lse, &result, self.is_large, cancel)
        else:
            tl_log_softmax(backend, scores, lse, &result, self.is_large, cancel)
        return logsumexp

    cdef double token_of(self, int64_t row, const tl_row *logits, int64_t target, tl_cancel *cancel) noexcept nogil:
        """The loss; writes all else."""
        cdef tl_token_stats token
        cdef tl_topk best = self.best_of(row)
        tl_token_stats_row(backend, logits, target, &token, &best if self.top_k > 0 else NULL, cancel)
        if logits.shift != 0:
            token.logsumexp += logits.logit_scale * logits.shift
        return self.write_token(row, target, &token)

    cdef tl_topk best_of(self, int64_t row) noexcept nogil:
        """Room for the best of a row, where they are to be written."""
        cdef tl_topk best
        best.most, best.count, best.value, best.id = self.top_k, 0, NULL, NULL
        if self.top_k > 0:
            best.value, best.id = &self.top_logprobs_out[row * self.top_k], &self.top_ids_out[row * self.top_k]
        return best

    cdef double write_token(self, int64_t row, int64_t target, const tl_token_stats *token) noexcept nogil:
        """Writes all but the loss, and returns that."""
        self.logsumexp_out[row], self.entropy_out[row] = token.logsumexp, token.entropy
        self.rank_out[row], self.argmax_out[row] = token.rank, token.argmax
        self.is_greedy_out[row], self.kept_out[row] = token.argmax == target, True
        return token.nll

    cdef double number_of(self, int64_t row, int64_t target, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """What a kept row is folded to."""
        cdef tl_row scores = self.scores_of(row)
        cdef double number
        if self.has_result:  # before it is written, perhaps over the logits
            self.keep_in_range(row, &scores)
        number = self.number_of_scores(row, &scores, target, totals, cancel)
        if number != number and not self.has_result:
            self.keep_in_range(row, &scores)
            if scores.shift != 0:
                number = self.number_of_scores(row, &scores, target, totals, cancel)
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
                                 tl_cancel *cancel) noexcept nogil:
        """Loss, logsumexp, maximum or divergence of a row."""
        cdef tl_row other
        cdef tl_lse_acc state
        if self.what == C_MAXIMUM:
            return tl_maximum(backend, scores)
        if self.what == C_TOKENS:
            return self.token_of(row, scores, target, cancel)
        if self.what == C_DIVERGENCE:
            other = row_at(&self.other, row)
            if scores.compute_dtype != other.compute_dtype:
                scores.compute_dtype = other.compute_dtype = (
                    TL_FLOAT64 if TL_FLOAT64 in (scores.compute_dtype, other.compute_dtype) else TL_FLOAT32
                )
            return tl_kl_divergence(backend, scores, &other, cancel)
        if self.has_targets and not self.by_class:
            if self.what == C_LOGITS:
                return self.loss_by_distribution(row, scores, totals, cancel)
            return self.score_by_distribution(row, scores, totals, cancel)
        tl_lse_row(backend, scores, target, &state, cancel)
        return self.number_of_state(row, scores, target, &state, cancel)

    cdef inline void count(self, int64_t row, double number, int64_t target, Totals *totals) noexcept nogil:
        """Adds the number of a kept row to the sums, and writes it where each is wanted."""
        if self.has_weight and self.by_class:
            tl_superacc_add(&totals.weights, self.class_weight(target))
        tl_superacc_add(&totals.losses, number)
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

    cdef void fold(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """Folds these rows one after another."""
        cdef int64_t row, target = -1
        for row in range(start, stop):
            if self.by_class:
                target = self.target_of(row)
            if self.is_kept(row, target) and self.accepts(row, target, totals):
                self.count(row, self.number_of(row, target, totals, cancel), target, totals)
            else:
                self.pass_over(row)

    cdef void fold_beside(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        """As `fold` where rows lie beside each other, class by class: as many at once as share cache lines."""
        cdef tl_row rows[32]
        cdef tl_lse_acc states[32]
        cdef int64_t number[32]
        cdef int64_t targets[32]
        cdef int64_t row, target = -1
        cdef int i, count
        cdef double loss, gap
        cdef void *transposed = malloc(TL_TRANSPOSED_BYTES)
        if transposed == NULL:
            self.fold(start, stop, totals, cancel)
            return
        while start < stop:
            count = 0
            for row in range(start, min(stop, start + TL_ROWS_PER_CACHE_LINE(self.scores.dtype))):
                if self.by_class:
                    target = self.target_of(row)
                if self.is_kept(row, target) and self.accepts(row, target, totals):
                    rows[count], number[count], targets[count] = self.scores_of(row), row, target
                    count += 1
                else:
                    self.pass_over(row)
            tl_lse_class_major(backend, rows, targets, count, transposed, states, cancel)
            for i in range(count):
                gap = 0
                if self.what == C_LOGITS and self.scale > 1:
                    gap = tl_log_odds_against(&states[i], &rows[i], tl_logit_at(backend, &rows[i], targets[i]))
                if gap == gap:
                    loss = self.number_of_state(number[i], &rows[i], targets[i], &states[i], cancel)
                else:  # scaled logits may have overflowed
                    loss = self.number_of(number[i], targets[i], totals, cancel)
                self.count(number[i], loss, targets[i], totals)
            start += TL_ROWS_PER_CACHE_LINE(self.scores.dtype)
        free(transposed)

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
        return TL_ROWS_PER_CACHE_LINE(self.scores.dtype) if self.rows_lie_beside() else 1

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

    cdef int64_t tally(self, tl_superacc *weights) except -1:
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
                            tl_superacc_add(weights, self.class_weight(target))
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
        cdef tl_superacc weights
        cdef tl_fp_state environment
        memset(&weights, 0, sizeof(weights))
        kept = self.tally(&weights if weighted else NULL)
        tl_fp_enter(&environment)
        self.factor = 1 / (tl_superacc_round(&weights) if weighted else <double> kept)
        tl_fp_leave(&environment)

    def first_bad_distribution(self):
        """The first kept row of integer targets that is not one-hot, or -1."""
        cdef int64_t row
        cdef tl_cancel cancel = self.new_cancel(True)
        if not self.is_integer or self.by_class:
            return -1
        with nogil:
            for row in range(self.rows):
                if tl_cancelled(&cancel) or (self.is_kept(row, -1) and not self.is_one_hot(row, &cancel)):
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
        cdef tl_cancel cancel = self.new_cancel(ask)
        cdef int64_t start, stop
        cdef bint one_score = self.what <= C_LOG_PROBS and self.by_class
        cdef bint beside = self.rows_lie_beside()
        memset(&totals, 0, sizeof(totals))
        with nogil:
            tl_fp_enter(&environment)
            while not tl_flag_get(&self.stopped) and not tl_flag_get(&self.refused):
                start = tl_fetch_add(&self.next_row, step)
                if start >= self.rows:
                    break
                stop = min(start + step, self.rows)
                if one_score:
                    self.gather(start, stop, &totals)
                elif beside:
                    self.fold_beside(start, stop, &totals, &cancel)
                else:
                    self.fold(start, stop, &totals, &cancel)
                tl_cancelled(&cancel)
            tl_fp_leave(&environment)
        with cython.critical_section(self):
            self.totals.kept += totals.kept
            tl_superacc_merge(&self.totals.losses, &totals.losses)
            if self.has_weight:
                tl_superacc_merge(&self.totals.weights, &totals.weights)
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
        cdef tl_superacc *losses = &self.totals.losses
        cdef double total, divisor = 1
        tl_fp_enter(&environment)
        total = tl_superacc_round(losses)
        if mean:
            divisor = <double> self.totals.kept
            if self.has_weight and self.by_class:
                divisor = tl_superacc_round(&self.totals.weights)
        if mean and total - total != 0 and losses.special == 0:  # a mean may fit where its sum does not
            total = tl_superacc_round_scaled(losses, -64) / divisor * 18446744073709551616.0
        else:
            total /= divisor
        tl_fp_leave(&environment)
        return total


cdef struct Carried:
    # what a row was folded to by the tiles so far
    int64_t row, target
    int64_t left_out  # the class whose score is known from the start, or -1
    double own  # that score, as it is in tiles
    double anchor  # what scores are dot against
    bint weighs
    tl_lse_acc state
    tl_dot_acc dot
    tl_token_stats token
    tl_topk best


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

    cdef void begin(self, int64_t row, int64_t target, Carried *carried, tl_cancel *cancel) noexcept nogil:
        """Begins a kept row."""
        cdef tl_soft_target soft
        cdef int64_t found
        carried.row, carried.target = row, target
        carried.left_out, carried.weighs = carried.target, self.fold.smoothing != 0
        if not self.fold.by_class:
            soft = self.fold.shares_of(row)
            carried.left_out = tl_soft_target_argmax(backend, &soft, self.fold.classes, &found, cancel)
            carried.weighs = carried.left_out >= 0
            self.fold.accepts_distribution(row, carried.left_out, found, &self.fold.totals, cancel)
        carried.own = carried.anchor = 0
        memset(&carried.dot, 0, sizeof(carried.dot))
        carried.best = self.fold.best_of(row)

    cdef void end(self, Carried *carried, double number) noexcept nogil:
        """Ends a kept row with its loss."""
        self.fold.count(carried.row, number, carried.target, &self.fold.totals)

    def take(self):
        """Begins the next kept rows; how many."""
        cdef Fold fold = self.fold
        cdef int64_t row, target
        cdef tl_fp_state environment
        cdef tl_cancel cancel = self.new_cancel(True)
        self.count = 0
        with nogil:
            tl_fp_enter(&environment)
            while self.count < self.most and fold.next_row < fold.rows and not tl_flag_get(&self.stopped):
                row = fold.next_row
                fold.next_row += 1
                if not fold.by_class or row % 1024 == 0:
                    tl_cancelled(&cancel)
                target = fold.target_of(row) if fold.by_class else -1
                if not fold.is_kept(row, target) or not fold.accepts(row, target, &fold.totals):
                    fold.pass_over(row)
                else:
                    self.begin(row, target, &self.carried[self.count], &cancel)
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
                self.carried[i].anchor = tl_softcap(backend, &scores, own[i])
                if self.carried[i].anchor - self.carried[i].anchor != 0:
                    self.carried[i].anchor = 0

    def part(self, tile, int64_t first):
        """Scores of the rows, in classes from `first` on: a multiple of CLASSES_AT_ONCE, unless they are the last."""
        PyBuffer_Release(&self.tile.buffer)
        open_view(&self.tile, tile, self.fold.scores.dtype, 1, True)
        self.first, self.last = first, first + self.tile.buffer.shape[1]
        self.rows, self.next_row = self.count, 0

    cdef void do(self, int64_t start, int64_t stop, tl_cancel *cancel) noexcept nogil:
        cdef Carried *carried
        cdef tl_row logits
        cdef tl_soft_target soft
        cdef int64_t i
        for i in range(start, stop):
            carried, logits = &self.carried[i], self.row_in_tile(i)
            if self.first <= carried.left_out < self.last:
                # products of few rows and of many may differ in their last digits: one score has one value
                tl_store_at(&logits, carried.left_out, carried.own)
            if self.fold.what == C_TOKENS:
                tl_token_stats_range(backend, &logits, self.first, self.last, C_CLASSES_AT_ONCE, carried.target,
                                     carried.own, &carried.token, &carried.best if self.fold.top_k > 0 else NULL,
                                     cancel)
                continue
            tl_lse_range(backend, &logits, self.first, self.last, C_CLASSES_AT_ONCE, carried.left_out, &carried.state,
                         cancel)
            if carried.weighs:
                if self.fold.by_class and self.first == 0:
                    carried.anchor = tl_lse_finish(&carried.state, &logits).offset
                soft = self.fold.shares_of(carried.row)
                tl_target_dot_range(backend, &logits, &soft, self.first, self.last, carried.anchor, &carried.dot,
                                    cancel)

    cdef double loss_of(self, Carried *carried) noexcept nogil:
        cdef tl_row logits = self.fold.scores_of(0)
        cdef tl_lse lse
        cdef double loss = 0, share = 0, logit, gap
        if carried.left_out < 0 and self.fold.z_loss == 0:
            return 0  # a distribution without any share
        if carried.left_out < 0:
            lse = tl_lse_finish(&carried.state, &logits)
        else:
            logit = tl_softcap(backend, &logits, carried.own)
            gap = tl_log_odds_against(&carried.state, &logits, logit)
            lse = tl_lse_finish_with(&carried.state, &logits, logit, gap)
            if self.fold.by_class and self.fold.smoothing != 1:
                loss = self.fold.class_weight(carried.target) * (1 - self.fold.smoothing) * tl_softplus(gap)
        if carried.weighs:
            loss += tl_target_dot_end(&carried.dot, &share)
            loss += share * ((lse.offset - carried.anchor) + lse.log)
        return loss + self.fold.z_loss_of(lse)

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
                    tl_token_stats_end(backend, &logits, carried.own, &carried.token,
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

    cdef void do(self, int64_t start, int64_t stop, tl_cancel *cancel) noexcept nogil:
        cdef int64_t i
        cdef tl_row row
        for i in range(start, stop):
            row = row_at(&self.source, i if self.all_rows else self.numbers[i])
            tl_cast_row(backend, &row, self.result.dtype, <void *> row_of(&self.result, i))


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
                tl_cast_row(backend, &row, hidden_dtype, self.hidden.data + i * self.hidden.stride)
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

    cdef void do(self, int64_t start, int64_t stop, tl_cancel *cancel) noexcept nogil:
        cdef tl_row row = row_at(&self.weight, self.first + start)
        cdef tl_vectors result
        result.data = <char *> self.result.buffer.buf + start * tl_itemsize(self.result.dtype)
        result.stride = self.result.step
        tl_matvec(backend, &row, self.weight.step, stop - start, &self.hidden, &result)


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
            tl_cast_row(backend, &row, hidden_dtype, converted)
            row.data, row.dtype, row.stride = converted, hidden_dtype, tl_itemsize(hidden_dtype)
            state.data = <char *> row_of(&states, i)
            tl_matvec(backend, &row, 0, 1, &state, &product)
            result[i] = tl_load(number, hidden_dtype)
        tl_fp_leave(&environment)
    free(converted)
    PyBuffer_Release(&weights.buffer)
    PyBuffer_Release(&states.buffer)


def moments(const double[::1] values):
    """Exact sums of the finite values in units of 2**-1074, of the others, and of the finite squares in 2**-2148."""
    cdef tl_superacc sum
    cdef tl_superacc_sq squares
    cdef unsigned char total[4 * 68]
    cdef unsigned char squared[4 * 134]
    cdef Py_ssize_t i
    memset(&sum, 0, sizeof(sum))
    memset(&squares, 0, sizeof(squares))
    cdef tl_fp_state environment
    with nogil:
        tl_fp_enter(&environment)  # subnormals are not flushed
        for i in range(values.shape[0]):
            tl_superacc_add(&sum, values[i])
            tl_superacc_sq_add(&squares, values[i])
        tl_fp_leave(&environment)
        tl_superacc_bytes(&sum, total)
        tl_superacc_sq_bytes(&squares, squared)
    return _integer(total[:4 * TL_SUM_LIMBS]), sum.special, _integer(squared[:4 * TL_SQUARES_LIMBS])


include "_dlpack.pxi"
