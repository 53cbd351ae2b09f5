# Columns of the classes that a record of JSON lists, in one pass. None stands for a list in which anything is unusual:
# then Python looks at each element, and names what is wrong.

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *, object key)  # borrowed
    const char *PyUnicode_AsUTF8AndSize(PyObject *, Py_ssize_t *) except NULL
    long long PyLong_AsLongLongAndOverflow(PyObject *, int *overflow)
    PyObject *Py_None
    bint is_int "PyLong_CheckExact" (PyObject *)
    bint is_text "PyUnicode_CheckExact" (PyObject *)


cdef bint has(PyObject *entry, str key):
    """Whether an object has a key."""
    return PyDict_GetItemWithError(entry, key) != NULL


cdef PyObject *member(PyObject *entry, str key):
    """The value of a key in an object, None if it has no such key."""
    cdef PyObject *value = PyDict_GetItemWithError(entry, key)
    return Py_None if value == NULL else value


cdef bint is_count(PyObject *value, long long least, long long most=INT64_MAX) noexcept:
    """Whether a value is an integer of that range."""
    cdef int overflow = 0
    cdef long long number
    if not is_int(value):
        return False
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    return not overflow and least <= number <= most


cdef long long id_of(PyObject *key) except -2:
    """The class id that a key spells in decimal digits, without leading zeros; -1 if it is none."""
    cdef Py_ssize_t i, n = 0
    cdef const char *text = PyUnicode_AsUTF8AndSize(key, &n)
    cdef long long id_ = 0
    if n == 0 or n > 18 or (n > 1 and text[0] == c'0'):
        return -1
    for i in range(n):
        if not c'0' <= text[i] <= c'9':
            return -1
        id_ = 10 * id_ + (text[i] - c'0')
    return id_


def classes_by_id(list values):
    """Of objects by id, or nulls: number of classes of each, and text, id, log-probability and rank of each class.

    A rank is 0 where there is none.
    """
    cdef list counts = [], texts = [], ids = [], logprobs = [], ranks = []
    cdef Py_ssize_t i
    cdef long long id_
    cdef PyObject *key
    cdef PyObject *entry
    cdef PyObject *logprob
    cdef PyObject *rank
    cdef PyObject *text
    for value in values:
        if value is None:
            counts.append(0)
            continue
        if type(value) is not dict or not value:
            return None
        counts.append(len(<dict> value))
        i = 0
        while PyDict_Next(<PyObject *> value, &i, &key, &entry):
            id_ = id_of(key)
            if id_ < 0 or not PyDict_CheckExact(entry):
                return None
            logprob, rank, text = member(entry, "logprob"), member(entry, "rank"), member(entry, "decoded_token")
            if logprob == Py_None or not (text == Py_None or is_text(text)):
                return None
            if not (rank == Py_None or is_count(rank, 1)):
                return None
            texts.append(<object> text)
            ids.append(id_)
            logprobs.append(<object> logprob)
            ranks.append(0 if rank == Py_None else <object> rank)
    return counts, texts, ids, logprobs, ranks


def classes_by_text(list values):
    """Of objects by text, or nulls: number of classes of each, and text, id, which is -1, and value of each class."""
    cdef list counts = [], texts = [], values_of_classes = []
    cdef Py_ssize_t i
    cdef PyObject *key
    cdef PyObject *element
    for value in values:
        if value is None:
            counts.append(0)
            continue
        if type(value) is not dict:
            return None
        counts.append(len(<dict> value))
        i = 0
        while PyDict_Next(<PyObject *> value, &i, &key, &element):
            if (<str> key).startswith("token_id:"):
                return None
            texts.append(<object> key)
            values_of_classes.append(<object> element)
    return counts, texts, [-1] * len(texts), values_of_classes


def classes_of_entries(list entries):
    """Of objects of a token each, as in chats: the tokens' texts, ids, bytes, log-probabilities and ranks, numbers of
    the classes that they list, and texts, ids and log-probabilities of these.

    An id is -1, a rank 0 where there is none.
    """
    cdef list texts = [], ids = [], spelled = [], logprobs = [], ranks = [], counts = []
    cdef list top_texts = [], top_ids = [], top_logprobs = []
    cdef PyObject *entry
    cdef PyObject *top
    cdef PyObject *rank
    cdef Py_ssize_t i
    for element in entries:
        entry = <PyObject *> element
        if not add_class(entry, texts, ids, logprobs, spelled) or has(entry, "prob") or has(entry, "probs"):
            return None
        rank = member(entry, "rank")
        if not has(entry, "logprob") or not (rank == Py_None or is_count(rank, 1)):
            return None
        ranks.append(0 if rank == Py_None else <object> rank)
        top = member(entry, "top_logprobs")
        if top == Py_None:
            counts.append(0)
        elif not PyList_CheckExact(top):
            return None
        else:
            counts.append(PyList_Size(top))
            for i in range(PyList_Size(top)):
                if not add_class(PyList_GetItem(top, i), top_texts, top_ids, top_logprobs, None):
                    return None
    return texts, ids, spelled, logprobs, ranks, counts, top_texts, top_ids, top_logprobs


cdef bint add_class(PyObject *entry, list texts, list ids, list logprobs, list spelled) except -1:
    """Append what an object says of a class; bytes only where they are asked for."""
    cdef PyObject *text
    cdef PyObject *id_
    cdef PyObject *spelling
    cdef Py_ssize_t i
    if not PyDict_CheckExact(entry) or has(entry, "token_id"):
        return False
    text, id_, spelling = member(entry, "token"), member(entry, "id"), member(entry, "bytes")
    if not is_text(text) or (<str> text).startswith("token_id:") or not (id_ == Py_None or is_count(id_, 0)):
        return False
    if spelling != Py_None:
        if not PyList_CheckExact(spelling):
            return False
        for i in range(PyList_Size(spelling)):
            if not is_count(PyList_GetItem(spelling, i), 0, 255):
                return False
    texts.append(<object> text)
    ids.append(-1 if id_ == Py_None else <object> id_)
    logprobs.append(<object> member(entry, "logprob"))
    if spelled is not None:
        spelled.append(None if spelling == Py_None else bytes(<list> spelling))
    return True


def columns_of_triples(list values):
    """Of lists of a log-probability, an id and a text or null: each of the three."""
    cdef list logprobs = [], ids = [], texts = []
    cdef PyObject *triple
    cdef PyObject *text
    for value in values:
        triple = <PyObject *> value
        if not PyList_CheckExact(triple) or PyList_Size(triple) != 3 or not is_count(PyList_GetItem(triple, 1), 0):
            return None
        text = PyList_GetItem(triple, 2)
        if text != Py_None and not is_text(text):
            return None
        logprobs.append(<object> PyList_GetItem(triple, 0))
        ids.append(<object> PyList_GetItem(triple, 1))
        texts.append(<object> text)
    return logprobs, ids, texts
