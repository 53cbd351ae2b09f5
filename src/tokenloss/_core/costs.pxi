# What a row of a job costs, which each job estimates in `cost_of_row`: only by this, `threads.py` decides how many
# threads share the rows, and how many rows a thread takes at a time. Nanoseconds on one thread of a core of 3 GHz with
# AVX2 or AVX-512, of arrays that are in a cache. Arrays from memory take longer than this: then fewer threads are
# used than would pay, never more. `benchmarks/costs.py` prints them beside the times of this machine.
#
# A row costs something, and something for each class. Up to SHORT_ROW classes, rows are reduced together; longer ones
# are reduced one by one, for LONG_ROW more, but with LONG_CLASS of the time for each class. Losses for class ids cost
# as much up to FEW_CLASSES; beyond, up to tl_nll_classes, NLL_ROW more for a row, but NLL_CLASS of that for a class.

cdef enum:
    SHORT_ROW = 512  # these three are the kernels'
    MASSES_CLASSES = 128
    FEW_CLASSES = 64
    CACHE_BYTES = 1 << 26  # in larger arrays, single scores come from memory
    SAMPLED_CLASSES = 64

cdef double BYTE_COST = 1 / 30.0  # of what is read or written in order
cdef double LINE_COST = 10  # of a cache line anywhere; neighbouring rows may share it
cdef double LONG_ROW = 200
cdef double LONG_CLASS = 0.4
cdef double PLAIN_ROW = 2  # of few classes, without options: no block of rows is made
cdef double NLL_ROW = 15
cdef double NLL_CLASS = 0.6
cdef double FLOAT64_CLASS = 2.5  # times the cost of a class in float32
cdef double SOFTCAP_CLASS = 1  # a tanh, or the logarithm of a probability
cdef double DOT = 8  # product of a row with a hidden state, and of each of its elements
cdef double DOT_ELEMENT = 0.03
cdef double AVX512_BF16_ELEMENT = 0.005  # of a product of bfloat16, by AVX512_BF16 or by AMX
cdef double AMX_BF16_ELEMENT = 0.0015
cdef double NAMED_CLASS = 4  # of class_log_probs
cdef double SOFT_CLASS = 0.6  # of distributions: a mass that is not 0, which may take a logarithm

cdef double SEQUENCE = 90  # exact sums over a sequence, and over each of its tokens
cdef double TOKEN = 1.5
cdef double WEIGHTED_TOKEN = 12


cdef double cost_of_bytes(int64_t count) noexcept:
    """Cost of reading a row with this number of bytes."""
    return 1 + count * BYTE_COST


cdef double cost_of_gather(Scores scores) noexcept:
    """Cost of reading one score of a row."""
    cdef int64_t row_bytes = scores.classes * tl_itemsize(scores.dtype)
    return 2 + (LINE_COST * min(row_bytes, 64) / 64 if scores.view.buffer.len > CACHE_BYTES else 0)


cdef double cost_of_masses(Positions positions) noexcept:
    """Cost of a row's targets, for distributions: whether most of them are 0 is seen from the first ones."""
    cdef tl_soft_target soft = positions.soft_target(0, 0)
    cdef int64_t k, sampled = min(positions.classes, SAMPLED_CLASSES), nonzero = 0
    if soft.mass != NULL and positions.rows > 0 and not positions.is_integer:
        for k in range(sampled):
            nonzero += tl_load(soft.mass + k * soft.mass_stride, soft.mass_dtype) != 0
    if 2 * nonzero > sampled:
        return 3 + positions.classes * SOFT_CLASS
    return 3 + positions.classes * tl_itemsize(soft.mass_dtype) * BYTE_COST
