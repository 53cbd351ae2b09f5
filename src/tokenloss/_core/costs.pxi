# What a row of each kind of work costs: by this alone, `threads.py` decides how many threads share the rows, and how
# many rows a thread takes at a time. Nanoseconds on one thread of a core of 3 GHz with AVX2 or AVX-512, of arrays that
# are in a cache. Arrays from memory take longer than this says: then fewer threads are used than would pay, never more.
#
# A row costs something, and something for each class. Up to SHORT_ROW classes, rows are reduced together; longer ones
# are reduced one by one, for LONG_ROW more, but with LONG_CLASS of the time for each class.

cdef enum:
    SHORT_ROW = 512  # that of the kernels
    CACHE_BYTES = 1 << 25  # of larger arrays, single scores come from memory
    SAMPLED_CLASSES = 64

cdef double BYTE_COST = 1 / 30.0  # of what is read or written in order
cdef double LINE_COST = 10  # of a cache line anywhere; neighbouring rows may share it
cdef double LONG_ROW = 200
cdef double LONG_CLASS = 0.4
cdef double FLOAT64_CLASS = 2.5  # times the cost of a class in float32
cdef double SOFTCAP_CLASS = 1  # a tanh, or the logarithm of a probability
cdef double DOT = 8  # product of a row with a hidden state, and of each of its elements
cdef double DOT_ELEMENT = 0.03
cdef double BF16_ELEMENT = 0.005  # of a product by the instruction for bfloat16
cdef double NAMED_CLASS = 4  # of class_log_probs
cdef double SOFT_CLASS = 3  # of distributions: a mass that is not 0, which may take a logarithm

cdef double SEQUENCE = 40  # exact sums over a sequence, and over each of its tokens
cdef double TOKEN = 1.5
cdef double WEIGHTED_TOKEN = 12


cdef double cost_of_bytes(int64_t count) noexcept:
    """Cost of reading a row of so many bytes."""
    return 1 + count * BYTE_COST


cdef double cost_of_gather(Scores scores) noexcept:
    """Cost of reading one score of a row."""
    cdef int64_t row_bytes = scores.classes * tl_itemsize(scores.dtype)
    return 3 + (LINE_COST * min(row_bytes, 64) / 64 if scores.view.buffer.len > CACHE_BYTES else 0)


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


cdef double cost_of_scores(RowJob job):
    """Cost of reducing a row of scores, and of writing one if there is a result or gradient."""
    cdef Scores scores = job.scores
    cdef double per_row = 5, per_class = 0.35
    if isinstance(job, ClassLogProbs):
        per_row += (<ClassLogProbs> job).count * NAMED_CLASS
    elif isinstance(job, TokenStats):
        per_row, per_class = 15, 1
    elif isinstance(job, PairStats):
        per_row, per_class = 40, 1.6
    elif not isinstance(job, (LogSumExp, CrossEntropy)) or (
            isinstance(job, CrossEntropy) and is_given(&(<CrossEntropy> job).grad)):
        per_row, per_class = 8, 0.8  # two passes, or two arrays
    if job.softcap != 0 or scores.kind == C_PROBS:
        per_class += SOFTCAP_CLASS
    if job.row_of_scores().compute_dtype == TL_FLOAT64:
        per_class *= FLOAT64_CLASS
    if scores.classes > SHORT_ROW:
        per_row, per_class = per_row + LONG_ROW, per_class * LONG_CLASS
    return per_row + per_class * scores.classes


cdef double cost_of_products(Product job):
    """Cost of multiplying a row of weights with each hidden state."""
    cdef const Py_buffer *weight = &job.weight.buffer
    cdef double product = DOT + weight.shape[1] * DOT_ELEMENT * (FLOAT64_CLASS if job.result.dtype == TL_FLOAT64 else 1)
    if isinstance(job, BFloat16MatMul):
        product = weight.shape[1] * BF16_ELEMENT
    return cost_of_bytes(weight.shape[1] * weight.itemsize) + job.count * product


cdef double cost_of_tokens(SequenceSums job):
    """Cost of the sums over a sequence of average length."""
    return SEQUENCE + job.nll.shape[0] * (TOKEN if job.weight is None else WEIGHTED_TOKEN) / max(job.rows, 1)


cdef double row_cost_of(Job job):
    """Cost of a row of any work."""
    if isinstance(job, ClassIdLoss):
        return cost_of_gather((<RowJob> job).scores)
    if isinstance(job, SoftTargetLoss):
        return cost_of_masses((<RowJob> job).positions)
    if isinstance(job, RowMaximum):
        return cost_of_bytes((<RowJob> job).scores.classes * tl_itemsize((<RowJob> job).scores.dtype))
    if isinstance(job, CrossEntropy) and not (<RowJob> job).positions.by_class:
        return cost_of_scores(job) + cost_of_masses((<RowJob> job).positions)
    if isinstance(job, RowJob):
        return cost_of_scores(job)
    if isinstance(job, SequenceSums):
        return cost_of_tokens(job)
    if isinstance(job, Tiles) and (<Tiles> job).pair_job is not None:
        return LONG_ROW + cost_of_scores((<Tiles> job).job) * (<Tiles> job).tile.buffer.shape[1] / max(
            (<Tiles> job).job.scores.classes, 1)
    if isinstance(job, Tiles):
        return LONG_ROW + cost_of_bytes((<Tiles> job).tile.buffer.shape[1] * (<Tiles> job).tile.buffer.itemsize)
    if isinstance(job, CastRows):
        return cost_of_bytes((<CastRows> job).result.buffer.shape[1] * (<CastRows> job).result.buffer.itemsize)
    return cost_of_products(job)


cdef int64_t rows_at_once_of(Job job):
    """The number of rows that are worked on together, of which threads take multiples."""
    cdef Scores scores
    if isinstance(job, BFloat16MatMul):
        return TL_BF16_CLASSES
    if not isinstance(job, RowJob):
        return 1
    scores = (<RowJob> job).scores
    if scores.classes <= SHORT_ROW:
        return BLOCK_ROWS
    if not scores.is_class_major():
        return 1
    return BLOCK_ROWS if scores.rows >= 8 * BLOCK_ROWS else TL_ROWS_PER_CACHE_LINE(scores.dtype)
