# cython: language_level=3, wraparound=False, cdivision=True, freethreading_compatible=True
# cython: auto_pickle=False, autotestdict=False
"""Run the C row kernels over arrays that Python has checked, with the GIL released.

`ClassIdLoss` is the loss of the textbook: it gathers the probability of each row's class id, clips it, and averages its
-log. The other jobs need every score of a row, which the kernels under `kernels/` reduce in one pass.
"""
# Design
#
# Inputs. A call makes one `Scores`, and one `Positions` of targets, mask and weights. They hold the buffers of their
# arrays, and do not change. A `View` is a buffer whose batch axes are counted as rows.
#
# Jobs. A `Job` does one thing to each of many rows. It holds its inputs, and the buffers of the arrays that it writes:
#   Job
#   |- RowJob                 reduces each unmasked row of scores to a number, and adds these up exactly
#   |  |- ClassIdLoss, SoftTargetLoss, RowMaximum
#   |  `- LogSumExpJob        reduces blocks of rows: LogSumExp, Softmax, CrossEntropy, ClassLogProbs, TokenStats
#   |     `- PairJob          reduces rows of two arrays together: KLDivergence, PairStats
#   |- Tiles                  runs a RowJob over logits that a projection makes a tile at a time
#   |- CastRows, Product      make these tiles; a Product is a MatVec or a BFloat16MatMul
#   `- SequenceSums, DistributionCheck
#
# The GIL. Each thread calls `Job.run`, which releases the GIL and takes rows from an atomic counter until none is left.
# Its sums are in `Totals` of its own, which it adds to those of the job with the GIL and a lock of the job. Meanwhile
# the GIL is taken only to run signal handlers. Small arrays take less time than to release it: front.pxi holds it. A
# row that does not fit sets `refused_flag`, which ends all threads, and jobs.py raises the error.
#
# Files. They are one extension, included below so that each comes after those that it uses. The last one reads lists of
# responses.

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release,
    PyObject_GetBuffer
)
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear
from cpython.object cimport Py_GT, PyObject_RichCompareBool
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName
from cpython.tuple cimport PyTuple_GetSlice
from libc.math cimport INFINITY, NAN, fabs
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, llabs, malloc, qsort
from libc.string cimport memcpy, memset

from tokenloss._core.kernels cimport *

# NumPy's name of each dtype, its code, and the format of its buffers: bfloat16, which has none, is read as uint16
cdef tuple TABLE_OF_DTYPES = (
    ("float16", TL_FLOAT16, b"e"), ("bfloat16", TL_BFLOAT16, b"H"), ("float32", TL_FLOAT32, b"f"),
    ("float64", TL_FLOAT64, b"d"), ("int8", TL_INT8, b"b"), ("int16", TL_INT16, b"h"), ("int32", TL_INT32, b"i"),
    ("int64", TL_INT64, b"q"), ("uint8", TL_UINT8, b"B"), ("bool", TL_UINT8, b"?"), ("uint16", TL_UINT16, b"H"),
    ("uint32", TL_UINT32, b"I"), ("uint64", TL_UINT64, b"Q"),
)
DTYPES = {name: code for name, code, _ in TABLE_OF_DTYPES}
FLOAT_DTYPES = tuple([name for name, code, _ in TABLE_OF_DTYPES if <int> code <= TL_FLOAT64])  # those of scores
SWAPPED = TL_SWAPPED  # is added to the code of a dtype of the other byte order
cdef dict FORMATS = {name: format for name, _, format in TABLE_OF_DTYPES}
DEFINITIONS = {"exact": TL_EXACT, "llama.cpp": TL_LLAMA_CPP}  # of the metrics of a comparison

cdef extern from *:
    """
    _Static_assert(TL_BLOCK_ROWS == 64, "BLOCK_ROWS");
    _Static_assert(TL_SHORT_ROW == 512, "SHORT_ROW");
    _Static_assert(TL_DISTRIBUTION_ROWS == 1024, "DISTRIBUTION_ROWS");
    _Static_assert(TL_SUM_LIMBS <= 134 && TL_SQUARES_LIMBS <= 134, "MAX_LIMBS");
    """

cdef enum:
    BLOCK_ROWS = 64  # TL_BLOCK_ROWS of the kernels: rows that are processed together
    MAX_PROBABILITY_ROWS = 256  # rows of probabilities or of few classes that are processed together
    SHORT_RUN = 2048  # elements of a run of rows, up to which a last incomplete block of it costs more than copies
    PLANES_BYTES = 1 << 15  # of short runs of rows that are copied to planes, which fit in the first cache
    GATHERED_ROWS = 128  # scores are read in blocks of this many, while the next block is prefetched
    DISTRIBUTION_ROWS = 1024  # TL_DISTRIBUTION_ROWS of the kernels: rows of distributions in a block
    MAX_LIMBS = 134  # at least what the sums of the kernels have
    SIGNAL_CHECK_ROWS = 1 << 20  # targets that are read between two checks for Ctrl-C
    NONTEMPORAL_BYTES = 16 << 20  # results of this size leave the caches before anyone reads them
    KIND_ROWS = 8  # logits of fewer rows may look like probabilities by chance
    KIND_MOST_ROWS = 4096  # that are searched for these

# what scores are
cdef enum:
    C_LOGITS
    C_LOG_PROBS
    C_PROBS

KINDS = ("logits", "log_probs", "probs")  # their names, in this order
cdef double PROB_SLACK = 1e-3  # by which rounding may move a probability out of [0, 1]
cdef double SUM_SLACK = 1e-2  # by which half precision, perhaps converted since, may change the sum of probabilities

# why a row was refused while rows were read
cdef enum:
    C_BAD_TARGET = 1  # its class id is out of range, or was for a moment
    C_BAD_SCORE = 2  # a score that is not a probability, or not a log-probability
    C_BAD_DISTRIBUTION = 3  # integers that are not one-hot
    C_UNNORMALIZED = 4  # probabilities or log-probabilities whose logsumexp is too far from 0

BAD_TARGET = C_BAD_TARGET
BAD_DISTRIBUTION = C_BAD_DISTRIBUTION
UNNORMALIZED = C_UNNORMALIZED

BF16_MATMULS = ("amx_bf16", "avx512_bf16", "blas")  # best first

cdef const tl_backend *backend = NULL
cdef int bf16_matmul = TL_BF16_MATMULS  # index into BF16_MATMULS, whose last is BLAS
cdef list runnable = []  # numbers of the backends that this machine can run, best first; kept, since to test takes long
for number in range(TL_BACKENDS):
    if tl_find_backend(number) != NULL:
        runnable.append(number)
del number
cdef object chooser = None  # that of config.py, which dtypes.py imports, so that all who pass arrays have it


def backends():
    """Names of the backends that this machine can run, best first."""
    return [tl_find_backend(i).name.decode() for i in runnable]


def use_backend(name, without=()):
    """Use this backend, one of `backends()`, from now on; products of bfloat16 do without these `BF16_MATMULS`.

    Not to be called while a job runs.
    """
    global backend, bf16_matmul
    for i in runnable:
        if tl_find_backend(i).name.decode() == name:
            backend = tl_find_backend(i)
            bf16_matmul = 0
            while bf16_matmul < TL_BF16_MATMULS and (
                BF16_MATMULS[bf16_matmul] in without or not tl_has_matmul_bf16(<tl_bf16_matmul> bf16_matmul, backend)
            ):
                bf16_matmul += 1
            return
    raise ValueError(name)


def set_chooser(function):
    """Have this function call `use_backend` when a backend is first needed."""
    global chooser
    chooser = function


cdef int need_backend() except -1:
    """Choose a backend on first use: a bad environment variable fails a call and not the import."""
    if backend == NULL:
        chooser()
    return 0


def backend_in_use():
    """Name of the backend in use."""
    need_backend()
    return backend.name.decode()


def bf16_matmul_in_use():
    """Name of what multiplies many bfloat16 vectors: "blas" if `BFloat16MatMul` cannot run."""
    need_backend()
    return BF16_MATMULS[bf16_matmul]


include "inputs.pxi"
include "costs.pxi"
include "jobs.pxi"
include "exact_sums.pxi"
include "probability_jobs.pxi"
include "row_jobs.pxi"
include "loss_jobs.pxi"
include "pair_jobs.pxi"
include "projection.pxi"
include "dlpack.pxi"
include "front.pxi"
include "listed_classes.pxi"
