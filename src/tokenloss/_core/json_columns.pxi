# Columns of the classes that a record of JSON lists, in one pass. The first wrong value is refused by the place of the
# record, a `Place` of formats/records.py.

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


cdef object text_of(PyObject *value, str field, place):
    """A text, or None."""
    if value != Py_None and not is_text(value):
        place.refuse_value(field, <object> value, "be a text")
    return <object> value


cdef object count_of(PyObject *value, long long least, str field, place):
    """An integer that counts, or numbers a class."""
    if not is_count(value, least):
        place.refuse_value(field, <object> value, f"be an integer of at least {least}")
    return <object> value


cdef tuple name_of(text):
    """Text and id of a token, which vLLM may name by its id."""
    if text is not None and (<str> text).startswith("token_id:"):
        digits = text.removeprefix("token_id:")
        if 0 < len(digits) <= 18 and digits.isascii() and digits.isdigit():
            return None, int(digits)
    return text, -1


def names_of(list texts):
    """Texts and ids of tokens, of which vLLM may name each by its id."""
    names = [name_of(text) for text in texts]
    return [text for text, _ in names], [id_ for _, id_ in names]


def classes_by_id(list values, str field, place):
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
        if type(value) is not dict:
            place.refuse_value(f"{field}[{len(counts)}]", value, "be an object")
        if not value:
            place.refuse(f"{field}[{len(counts)}] is empty", "hold the prompt's token")
        i = 0
        while PyDict_Next(<PyObject *> value, &i, &key, &entry):
            id_ = id_of(key)
            if id_ < 0:
                place.refuse(f'{field}[{len(counts)}]["{<object> key}"] is no id', "be the id of a class")
            if not PyDict_CheckExact(entry):
                place.refuse_value(f'{field}[{len(counts)}]["{id_}"]', <object> entry, "be an object")
            logprob, rank, text = member(entry, "logprob"), member(entry, "rank"), member(entry, "decoded_token")
            if logprob == Py_None:
                place.refuse(f'{field}[{len(counts)}]["{id_}"].logprob is null', "be a log-probability")
            if not (rank == Py_None or is_count(rank, 1)):
                count_of(rank, 1, f'{field}[{len(counts)}]["{id_}"].rank', place)
            if not (text == Py_None or is_text(text)):
                text_of(text, f'{field}[{len(counts)}]["{id_}"].decoded_token', place)
            texts.append(<object> text)
            ids.append(id_)
            logprobs.append(<object> logprob)
            ranks.append(0 if rank == Py_None else <object> rank)
        counts.append(len(<dict> value))
    return counts, texts, ids, logprobs, ranks


def classes_by_text(list values, str field, place):
    """Of objects by text, or nulls: number of classes of each, and text, id and value of each class; -1 is no id."""
    cdef list counts = [], texts = [], ids = [], logprobs = []
    cdef Py_ssize_t i
    cdef PyObject *key
    cdef PyObject *element
    for value in values:
        if value is None:
            counts.append(0)
            continue
        if type(value) is not dict:
            place.refuse_value(f"{field}[{len(counts)}]", value, "be an object")
        counts.append(len(<dict> value))
        i = 0
        while PyDict_Next(<PyObject *> value, &i, &key, &element):
            text, id_ = <object> key, -1
            if (<str> text).startswith("token_id:"):
                text, id_ = name_of(text)
            texts.append(text)
            ids.append(id_)
            logprobs.append(<object> element)
    return counts, texts, ids, logprobs


def classes_of_entries(list entries, str field, place):
    """Of objects of a token each, as in chats: the tokens' texts, ids, bytes, log-probabilities and ranks, numbers of
    the classes that they list, and texts, ids and log-probabilities of these.

    An id is -1, a rank 0 where there is none.
    """
    cdef list texts = [], ids = [], spelled = [], logprobs = [], ranks = [], counts = []
    cdef list top_texts = [], top_ids = [], top_logprobs = []
    cdef PyObject *entry
    cdef PyObject *top
    cdef PyObject *rank
    cdef Py_ssize_t i, j
    for i in range(len(entries)):
        entry = PyList_GetItem(<PyObject *> entries, i)
        if PyDict_CheckExact(entry) and (has(entry, "prob") or has(entry, "probs")):
            got = f"{field}[{i}] holds probabilities after sampling, which are not the model's"
            place.refuse(got, "hold logprob: do not ask for post_sampling_probs")
        if PyDict_CheckExact(entry) and not has(entry, "logprob"):
            place.refuse(f"{field}[{i}] holds no logprob", "hold one")
        add_class(entry, texts, ids, logprobs, spelled, field, i, -1, place)
        rank = member(entry, "rank")
        if not (rank == Py_None or is_count(rank, 1)):
            count_of(rank, 1, f"{field}[{i}].rank", place)
        ranks.append(0 if rank == Py_None else <object> rank)
        top = member(entry, "top_logprobs")
        if top == Py_None:
            counts.append(0)
            continue
        if not PyList_CheckExact(top):
            place.refuse_value(f"{field}[{i}].top_logprobs", <object> top, "be a list")
        counts.append(PyList_Size(top))
        for j in range(PyList_Size(top)):
            add_class(PyList_GetItem(top, j), top_texts, top_ids, top_logprobs, None, field, i, j, place)
    return texts, ids, spelled, logprobs, ranks, counts, top_texts, top_ids, top_logprobs


cdef str path_of(str field, Py_ssize_t i, Py_ssize_t j):
    """Where an entry stands, or the class j that it lists."""
    return f"{field}[{i}]" if j < 0 else f"{field}[{i}].top_logprobs[{j}]"


cdef int add_class(
    PyObject *entry, list texts, list ids, list logprobs, list spelled, str field, Py_ssize_t i, Py_ssize_t j, place,
) except -1:
    """Append what an object says of a class; bytes only where they are asked for."""
    cdef PyObject *value
    cdef Py_ssize_t k
    if not PyDict_CheckExact(entry):
        place.refuse_value(path_of(field, i, j), <object> entry, "be an object")
    value = member(entry, "token")
    if not is_text(value):
        text_of(value, f"{path_of(field, i, j)}.token", place)
    raw = text = <object> value
    id_ = -1
    if raw is not None and (<str> raw).startswith("token_id:"):
        text, id_ = name_of(raw)
    for key in ("id", "token_id"):
        value = member(entry, key)
        if value != Py_None:
            id_ = <object> value if is_count(value, 0) else count_of(value, 0, f"{path_of(field, i, j)}.{key}", place)
    value = member(entry, "bytes")
    if value != Py_None:
        if not PyList_CheckExact(value):
            place.refuse_value(f"{path_of(field, i, j)}.bytes", <object> value, "be a list")
        for k in range(PyList_Size(value)):
            if not is_count(PyList_GetItem(value, k), 0, 255):
                place.refuse_value(f"{path_of(field, i, j)}.bytes", <object> value, "hold bytes")
    texts.append(text)
    ids.append(id_)
    logprobs.append(<object> member(entry, "logprob"))
    if spelled is not None:
        spelling = None if value == Py_None else bytes(<list> value)
        spelled.append(None if raw is not text and spelling == (<str> raw).encode() else spelling)  # that of the name
    return 0


def columns_of_triples(list values):
    """Of lists of a log-probability, an id and perhaps a text: each of the three, up to the first that is none."""
    cdef list logprobs = [], ids = [], texts = []
    cdef PyObject *triple
    cdef PyObject *text
    cdef Py_ssize_t n
    for value in values:
        triple = <PyObject *> value
        n = PyList_Size(triple) if PyList_CheckExact(triple) else 0
        if n != 2 and n != 3 or not is_count(PyList_GetItem(triple, 1), 0):
            break
        text = PyList_GetItem(triple, 2) if n == 3 else Py_None
        if text != Py_None and not is_text(text):
            break
        logprobs.append(<object> PyList_GetItem(triple, 0))
        ids.append(<object> PyList_GetItem(triple, 1))
        texts.append(<object> text)
    return logprobs, ids, texts
