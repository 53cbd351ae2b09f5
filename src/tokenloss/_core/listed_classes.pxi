# Columns of the tokens of a response, from the classes that a server listed at each position.

cdef extern from "Python.h":
    ctypedef struct PyObject
    PyObject *PyList_GetItem(PyObject *, Py_ssize_t)  # borrowed
    PyObject *Py_None
    bint is_int "PyLong_CheckExact" (PyObject *)
    bint PyFloat_CheckExact(PyObject *)
    double PyFloat_AsDouble(PyObject *)
    double PyLong_AsDouble(PyObject *) except? -1
    long long PyLong_AsLongLong(PyObject *) except? -1
    int PyUnicode_Compare(PyObject *, PyObject *)
    Py_ssize_t PyUnicode_GetLength(PyObject *)
    Py_ssize_t PyUnicode_FindChar(PyObject *, Py_UCS4, Py_ssize_t start, Py_ssize_t end, int direction)

cdef double LISTED_SENTINEL = -9999.0  # means "below what is returned", or -inf
cdef double LISTED_LOWEST = -3e38  # the least float32, which llama.cpp writes for a probability of 0, is below
cdef double LISTED_MOST = 1e-4  # log-probability, by rounding
cdef double LISTED_IMPOSSIBLE = -1e300  # no log-probability is that small, nor any sentinel
cdef double LISTED_SAME = 1e-5  # difference of two roundings of a log-probability

cdef struct Listed:
    double logprob
    int64_t id
    Py_ssize_t at

cdef struct Position:
    double own, best, least  # log-probability of the token, and of the other classes
    int64_t id, rank
    Py_ssize_t start, count, shown
    Py_ssize_t own_at  # the token itself among the classes, -1 if it is not
    Py_ssize_t n_tops  # number of the likeliest classes
    bint is_last  # the token itself, which may have been added to the list
    bint has_parts  # of characters
    bint is_short, is_lost  # some class may be missing, and then the likeliest ones are not known

cdef struct Lists:
    Position *positions
    Listed *listed
    Py_ssize_t n
    Py_ssize_t k  # of the k likeliest classes
    bint has_ranks, is_keyed, is_added, is_exact  # as those of `Tokens`


def is_log_prob(value):
    """Whether a value can be a log-probability, or a sentinel."""
    cdef double log_prob
    return read_log_prob(<PyObject *> value, &log_prob)


cdef bint read_log_prob(PyObject *value, double *log_prob) noexcept:
    """Whether a value can be a log-probability; all sentinels become one."""
    if PyFloat_CheckExact(value):
        log_prob[0] = PyFloat_AsDouble(value)
    elif is_int(value):
        try:
            log_prob[0] = PyLong_AsDouble(value)
        except OverflowError:
            return False
    else:
        return False
    if -INFINITY < log_prob[0] < LISTED_LOWEST and log_prob[0] > LISTED_IMPOSSIBLE:
        log_prob[0] = LISTED_SENTINEL
    return LISTED_IMPOSSIBLE < log_prob[0] <= LISTED_MOST or log_prob[0] == -INFINITY


cdef int by_likelihood(const void *a, const void *b) noexcept nogil:
    """Order of classes: the likelier one first, of equally likely ones that of the lower id, else as listed."""
    cdef const Listed *x = <const Listed *> a
    cdef const Listed *y = <const Listed *> b
    if x.logprob != y.logprob:
        return -1 if x.logprob > y.logprob else 1
    if x.id != y.id:
        return -1 if x.id < y.id else 1
    return -1 if x.at < y.at else 1


def columns_of_listed(
    list texts, list ids, list logprobs, list lengths, list ranks, list counts, list top_texts, list top_ids,
    list top_logprobs, bint is_prompt, bint is_keyed, bint is_added, bint is_exact,
):
    """Columns of tokens, as `Response` has them; None if a value is no log-probability.

    They are: lengths, ids and ranks; whether each is a sentinel, of a prompt, greedy, known to be greedy or not, and of
    a list that may have lost classes; log-probabilities; texts, ids and log-probabilities of the likeliest classes.
    """
    cdef Py_ssize_t n = len(logprobs), m = len(top_logprobs), width
    cdef Lists lists = Lists(NULL, NULL, n, 0, ranks is not None, is_keyed, is_added, is_exact)
    if {len(texts), len(ids), len(lengths), len(counts), n if ranks is None else len(ranks)} != {n}:
        raise ValueError("columns of tokens differ in length")
    if {len(top_texts), len(top_ids), sum(counts)} != {m}:
        raise ValueError("columns of classes differ in length")
    try:
        lists.positions = <Position *> malloc(max(n, 1) * sizeof(Position))
        lists.listed = <Listed *> malloc(max(m, 1) * sizeof(Listed))
        if lists.positions == NULL or lists.listed == NULL:
            raise MemoryError
        if not read_listed(&lists, top_ids, top_logprobs):
            return None
        if not read_positions(&lists, texts, ids, logprobs, ranks, counts, top_texts):
            return None
        find_last(&lists)
        find_lost(&lists)
        integers, flags, values = ZEROS((3, n), "int64"), ZEROS((5, n), "uint8"), ZEROS(n)
        fill_tokens(&lists, lengths, is_prompt, integers, flags, values)
        width = keep_likeliest(&lists)
        most_ids, most_values = ZEROS((n, width), "int64"), ZEROS((n, width))
        most_texts = fill_tops(&lists, top_texts, most_ids, most_values)
        return integers, flags, values, most_texts, most_ids, most_values
    finally:
        free(lists.positions)
        free(lists.listed)


cdef bint read_listed(Lists *lists, list ids, list logprobs) except -1:
    """Read the classes; whether all values can be log-probabilities."""
    cdef Py_ssize_t at
    cdef Listed *listed = lists.listed
    for at in range(len(logprobs)):
        if not read_log_prob(PyList_GetItem(<PyObject *> logprobs, at), &listed[at].logprob):
            return False
        listed[at].id, listed[at].at = PyLong_AsLongLong(PyList_GetItem(<PyObject *> ids, at)), at
    return True


cdef bint read_positions(
    Lists *lists, list texts, list ids, list logprobs, list ranks, list counts, list top_texts
) except -1:
    """Find the token itself and the bounds of the others in each list; whether all values can be log-probabilities."""
    cdef Py_ssize_t i, at, start = 0
    cdef PyObject *value
    cdef PyObject *text
    cdef Position *position
    for i in range(len(logprobs)):
        position = &lists.positions[i]
        value, text = PyList_GetItem(<PyObject *> logprobs, i), PyList_GetItem(<PyObject *> texts, i)
        position.own = NAN
        if value != Py_None and not read_log_prob(value, &position.own):
            return False
        position.id = PyLong_AsLongLong(PyList_GetItem(<PyObject *> ids, i))
        position.rank = 0 if ranks is None else PyLong_AsLongLong(PyList_GetItem(<PyObject *> ranks, i))
        position.start, position.count = start, PyLong_AsLongLong(PyList_GetItem(<PyObject *> counts, i))
        position.own_at, position.best, position.least, position.has_parts = -1, -INFINITY, INFINITY, False
        for at in range(start, start + position.count):
            value = PyList_GetItem(<PyObject *> top_texts, at)
            position.has_parts |= value != Py_None and is_part(value)
            if position.own_at < 0 and is_own(position, &lists.listed[at], text, value):
                position.own_at = at
            else:
                position.best = max(position.best, lists.listed[at].logprob)
                position.least = min(position.least, lists.listed[at].logprob)
        start += position.count
    return True


cdef bint is_part(PyObject *text) noexcept:
    """Whether a text is that of a part of a character."""
    cdef Py_ssize_t n = PyUnicode_GetLength(text)
    return n == 0 or PyUnicode_FindChar(text, 0xFFFD, 0, n, 1) >= 0


cdef bint is_own(const Position *position, const Listed *class_, PyObject *own_text, PyObject *text) noexcept:
    """Whether a class is the token itself: by id, else by text and log-probability."""
    if position.id >= 0 and class_.id >= 0:
        return position.id == class_.id
    if not (fabs(class_.logprob - position.own) <= LISTED_SAME or class_.logprob == position.own):
        return False
    return own_text != Py_None and text != Py_None and PyUnicode_Compare(own_text, text) == 0


cdef void find_last(Lists *lists) noexcept:
    """Find the tokens that may have been added to their lists, and the k of the k likeliest classes."""
    cdef Py_ssize_t i
    cdef Position *position
    for i in range(lists.n):
        position = &lists.positions[i]
        if lists.has_ranks:
            position.is_last = (position.own_at >= 0 and position.rank >= position.count
                                and position.least != position.own)
        else:
            position.is_last = position.own_at >= 0 and not position.least <= position.own
        position.shown = position.count - (position.is_last and not lists.is_exact)
        lists.k = max(lists.k, position.shown)


cdef void find_lost(Lists *lists) noexcept:
    """Find lists that may have lost a class to another one of the same text, above all of parts of characters."""
    cdef Py_ssize_t i
    cdef bint is_open, is_k_known = False
    cdef Position *position
    for i in range(lists.n):
        position = &lists.positions[i]
        position.is_short = position.is_lost = False
        is_k_known |= position.shown == lists.k and not position.has_parts
    if lists.has_ranks or not lists.is_keyed:
        return
    for i in range(lists.n):
        position = &lists.positions[i]
        position.is_short = position.count > 0 and (position.count < lists.k or (position.has_parts and not is_k_known))
        # k classes that end with the token: it is the last of them, or it was added and one of them is lost
        is_open = position.has_parts or (lists.is_added and position.count == lists.k and lists.k > 1)
        position.is_lost = position.is_short or (is_open and position.shown < lists.k)


cdef int fill_tokens(
    Lists *lists, list lengths, bint is_prompt, int64_t[:, ::1] integers, uint8_t[:, ::1] flags, double[::1] values
) except -1:
    """Log-probability, length, id and rank of each token, and what is known of it."""
    cdef Py_ssize_t i, at, n_tied, n_not_less
    cdef bint is_beaten, is_greedy, is_known, is_sentinel, has_rank
    cdef Position *position
    cdef Listed *class_
    for i in range(lists.n):
        position = &lists.positions[i]
        n_tied = n_not_less = is_beaten = 0
        for at in range(position.start, position.start + position.count):
            class_ = &lists.listed[at]
            if at != position.own_at and class_.logprob >= position.own:
                n_not_less += 1
                if class_.logprob == position.own:
                    n_tied += 1
                    is_beaten |= 0 <= class_.id < position.id  # by a lower id
        is_greedy = position.own >= position.best and not is_beaten
        if lists.has_ranks:
            is_greedy = is_greedy and position.rank <= 1 + n_tied
            is_known = position.rank > 0
        else:
            is_known = position.count > 0 and lists.k > 0 and not position.is_short
            is_known = is_known and (position.own_at >= 0 or position.best >= position.own)
            # others may be as likely as the last
            has_rank = position.own_at >= 0 and not position.is_short and position.least < position.own
            position.rank = 1 + n_not_less if has_rank else 0
        is_sentinel = position.own == LISTED_SENTINEL
        is_known = is_known and position.own == position.own
        integers[0, i], integers[1, i] = PyLong_AsLongLong(PyList_GetItem(<PyObject *> lengths, i)), position.id
        integers[2, i] = position.rank
        flags[0, i], flags[1, i] = is_sentinel, is_prompt
        flags[2, i], flags[3, i] = is_greedy and is_known and not is_sentinel, is_known or is_sentinel
        flags[4, i] = position.is_lost
        values[i] = NAN if is_sentinel else position.own
    return 0


cdef Py_ssize_t keep_likeliest(Lists *lists) noexcept:
    """Move the likeliest classes of each list to its start, in order; the most that any has."""
    cdef Py_ssize_t i, at, width = 0
    cdef bint is_best, is_sorted
    cdef Position *position
    cdef Listed *tops
    for i in range(lists.n):
        position = &lists.positions[i]
        tops = &lists.listed[position.start]
        position.n_tops, is_sorted = 0, True
        is_best = not position.is_last or lists.is_exact
        is_best = is_best or (position.rank <= lists.k if lists.has_ranks else position.count == lists.k == 1)
        for at in range(0 if position.is_lost else position.count):
            if tops[at].logprob != LISTED_SENTINEL and (is_best or position.start + at != position.own_at):
                tops[position.n_tops] = tops[at]
                if position.n_tops > 0:
                    is_sorted &= by_likelihood(&tops[position.n_tops - 1], &tops[position.n_tops]) < 0
                position.n_tops += 1
        if not is_sorted:
            qsort(tops, position.n_tops, sizeof(Listed), by_likelihood)
        width = max(width, position.n_tops)
    return width


cdef list fill_tops(Lists *lists, list texts, int64_t[:, ::1] ids, double[:, ::1] values):
    """Ids and log-probabilities of the likeliest classes; their texts, row by row."""
    cdef Py_ssize_t i, j, width = ids.shape[1]
    cdef Position *position
    cdef Listed *class_
    cdef list top_texts = []
    for i in range(lists.n):
        position = &lists.positions[i]
        for j in range(width):
            if j < position.n_tops:
                class_ = &lists.listed[position.start + j]
                ids[i, j], values[i, j] = class_.id, class_.logprob
                top_texts.append(<object> PyList_GetItem(<PyObject *> texts, class_.at))
            else:
                ids[i, j], values[i, j] = -1, NAN
                top_texts.append(None)
    return top_texts
