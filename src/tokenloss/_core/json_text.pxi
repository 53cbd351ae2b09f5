# What a JSON text will take before it is parsed, and how many keys the parsed value has.

cdef extern from "Python.h":
    ctypedef struct PyObject
    bint PyDict_CheckExact(PyObject *)
    bint PyDict_Next(PyObject *, Py_ssize_t *position, PyObject **key, PyObject **value)  # all are borrowed
    bint PyList_CheckExact(PyObject *)
    Py_ssize_t PyList_Size(PyObject *)
    PyObject *PyList_GetItem(PyObject *, Py_ssize_t)  # borrowed

cdef enum:  # bytes that CPython needs, rounded up, so that a bound on their sum is one on memory
    LIST_BYTES = 100
    OBJECT_BYTES = 240  # of a few keys
    VALUE_BYTES = 40  # a number and what points to it; likewise a key's place
    STRING_BYTES = 40  # besides its characters


def json_extent(const unsigned char[::1] text):
    """Number of keys, of levels of lists and objects, and about that of bytes that the text and its values need.

    Of a text that is not JSON, the numbers mean nothing.
    """
    cdef Py_ssize_t i = 0, n = text.shape[0], keys = 0, depth = 0, levels = 0, lists = 0, objects = 0, commas = 0
    cdef Py_ssize_t strings = 0, width = 3  # bytes of memory for a byte of the text: as bytes, decoded, and in strings
    cdef unsigned char symbol
    with nogil:
        while i < n:
            symbol = text[i]
            i += 1
            if symbol == c'"':
                strings += 1
                while i < n and text[i] != c'"':
                    if text[i] == c'\\':
                        i += 1
                    elif text[i] > 0xC3:  # the first byte of a character beyond Latin-1, or beyond 16 bits
                        width = max(width, 9 if text[i] >= 0xF0 else 5)
                    i += 1
                i += 1
            elif symbol == c':':
                keys += 1
            elif symbol == c',':
                commas += 1
            elif symbol == c'[' or symbol == c'{':
                lists += symbol == c'['
                objects += symbol == c'{'
                depth += 1
                levels = max(levels, depth)
            elif symbol == c']' or symbol == c'}':
                depth -= 1
    return keys, levels, (
        width * n + LIST_BYTES * lists + OBJECT_BYTES * objects + VALUE_BYTES * (keys + commas) + STRING_BYTES * strings
    )


def count_keys(value):
    """Number of keys of all objects in a value that JSON can hold, of a bounded number of levels."""
    return keys_of(<PyObject *> value)


cdef Py_ssize_t keys_of(PyObject *value) noexcept:
    cdef Py_ssize_t keys = 0, i = 0
    cdef PyObject *key
    cdef PyObject *element
    if PyDict_CheckExact(value):
        while PyDict_Next(value, &i, &key, &element):
            keys += 1 + keys_of(element)
    elif PyList_CheckExact(value):
        for i in range(PyList_Size(value)):
            keys += keys_of(PyList_GetItem(value, i))
    return keys
