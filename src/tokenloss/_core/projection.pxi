# Jobs over logits that a projection makes a tile at a time, and the products and casts that it needs.

TILE_CLASS_MULTIPLE = C_TILE_CLASS_MULTIPLE  # tiles have a multiple of these many classes, but for the last

cdef enum:
    C_TILE_CLASS_MULTIPLE = 1024


cdef union TiledState:
    tl_loss_acc loss  # for CrossEntropy
    tl_token_stats token  # for TokenStats
    tl_pair_acc pair  # for a PairJob
    tl_divergence_state further  # for the same, once its pair is known


cdef struct TiledRow:
    # an unmasked row, for as long as its tiles arrive
    int64_t row, target
    int64_t excluded  # the class whose logit is known from the start, -1 if none
    double target_raw, base_target_raw  # that logit, as it is in tiles
    int compute_dtype  # of the two rows of a pair
    bint is_open  # whether tiles are still to be read
    bint has_pair  # whether they are to be read for further divergences
    tl_pair pair
    TiledState state
    tl_topk top


@cython.final
cdef class Tiles(Job):
    """Runs a job over logits that arrive in tiles: some rows, and of these some classes. A PairJob has two at a time.

    For each group of rows: `begin_rows`, `set_target_logits`, then `set_tile` and `run` for each tile, then `end_rows`;
    all tiles once more if it returns a number.
    """

    cdef RowJob job
    cdef CrossEntropy loss_job
    cdef TokenStats token_job
    cdef PairJob pair_job
    cdef TiledRow *tiled
    cdef int64_t most, count, next_position
    cdef View tile, base_tile
    cdef int64_t first, last
    cdef int64_t[::1] taken, excluded
    cdef Totals totals

    def __cinit__(self, RowJob job, int64_t[::1] taken, int64_t[::1] excluded):
        """`begin_rows` writes to the two arrays: numbers of rows, and their classes whose logits must be known."""
        self.job, self.taken, self.excluded, self.most = job, taken, excluded, taken.shape[0]
        if isinstance(job, CrossEntropy):
            self.loss_job = job
        elif isinstance(job, PairJob):
            self.pair_job = job
        else:
            self.token_job = job
        self.tiled = <TiledRow *> malloc(self.most * sizeof(TiledRow))
        if self.tiled == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyBuffer_Release(&self.tile.buffer)
        PyBuffer_Release(&self.base_tile.buffer)
        free(self.tiled)

    cdef double cost_of_row(self) noexcept:
        return LONG_ROW + self.job.cost_of_row() * self.tile.buffer.shape[1] / max(self.job.scores.classes, 1)

    cdef void begin_row(self, int64_t row, int64_t target, TiledRow *tiled, tl_cancel *cancel) noexcept nogil:
        cdef tl_loss loss
        tiled.row, tiled.target, tiled.excluded, tiled.is_open = row, target, target, True
        if self.pair_job is not None:
            tiled.compute_dtype, tiled.has_pair = self.pair_job.compute_dtype, False
            return
        if self.token_job is not None:
            tiled.top = self.token_job.top_of(row)
            return
        loss = self.loss_job.loss_at(row, target)
        tl_loss_begin(backend, &loss, self.job.scores.classes, &tiled.state.loss, cancel)
        tiled.excluded = tiled.state.loss.excluded
        if target < 0 and self.job.positions.is_integer:
            self.job.one_hot_class(row, &self.totals, cancel)

    def begin_rows(self):
        """Begin the next unmasked rows; returns their number, 0 at the end."""
        cdef RowJob job = self.job
        cdef int64_t row, target
        cdef tl_fp_state environment
        cdef tl_cancel cancel = self.new_cancel(True)
        self.count = 0
        with nogil:
            tl_fp_enter(&environment)
            while self.count < self.most and self.next_position < job.rows and not tl_flag_get(&self.stop_flag):
                row = self.next_position
                self.next_position += 1
                if not job.positions.by_class or row % 1024 == 0:
                    tl_canceled(&cancel)
                target = job.positions.target_of(row)
                if job.positions.is_unmasked(row, target) and job.accepts(row, target, &self.totals):
                    self.begin_row(row, target, &self.tiled[self.count], &cancel)
                    self.taken[self.count], self.excluded[self.count] = row, self.tiled[self.count].excluded
                    self.count += 1
                else:
                    job.mask_row(row)
            tl_fp_leave(&environment)
        if self.pending_exception is not None:
            raise self.pending_exception
        return self.count

    def begin_rows_of(self, Tiles other):
        """Begin the rows that the tiles of another job have begun."""
        cdef tl_cancel cancel = self.new_cancel(False)
        cdef int64_t i
        self.count = other.count
        for i in range(min(self.count, self.most)):
            self.begin_row(other.tiled[i].row, other.tiled[i].target, &self.tiled[i], &cancel)

    def set_target_logits(self, const double[::1] logits, const double[::1] base_logits=None):
        """Give the logits of the excluded classes, as they will be in tiles."""
        cdef tl_row row = self.job.row_of_scores()
        cdef tl_loss loss
        cdef int64_t i
        for i in range(self.count):
            self.tiled[i].target_raw = logits[i]
            if base_logits is not None:
                self.tiled[i].base_target_raw = base_logits[i]
            if self.loss_job is not None:
                loss = self.loss_job.loss_at(self.tiled[i].row, self.tiled[i].target)
                tl_loss_set_target_logit(backend, &row, &loss, logits[i], &self.tiled[i].state.loss)

    def set_tile(self, tile, int64_t first, base_tile=None):
        """Give a tile: logits of the rows for classes from `first` on. A PairJob has one of the base, too."""
        PyBuffer_Release(&self.tile.buffer)
        open_view(&self.tile, tile, self.row_of_tile().dtype, 1, True)
        if base_tile is not None:
            PyBuffer_Release(&self.base_tile.buffer)
            open_view(&self.base_tile, base_tile, self.job.scores.dtype, 1, True)
        self.first, self.last = first, first + self.tile.buffer.shape[1]
        self.rows, self.next_row = self.count, 0

    cdef tl_row row_of_tile(self) noexcept nogil:
        return self.job.row_of_scores() if self.pair_job is None else self.pair_job.row_of(self.pair_job.other)

    cdef void set_row(self, const View *tile, int64_t i, double target_raw, tl_row *logits) noexcept nogil:
        """Point at the logits of a row in a tile."""
        cdef int64_t excluded = self.tiled[i].excluded
        logits.stride = tile.buffer.strides[1]
        logits.data = address_of(tile, i) - self.first * logits.stride  # only classes of the tile are read
        if self.first <= excluded < self.last:
            # products of few rows and of many may differ in their last digits: one logit has one value
            tl_store_at(logits, excluded, target_raw)

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef TiledRow *tiled
        cdef tl_row logits = self.row_of_tile(), base = self.job.row_of_scores()
        cdef tl_loss loss
        cdef int64_t i
        for i in range(start, stop):
            tiled = &self.tiled[i]
            if not tiled.is_open:
                continue
            self.set_row(&self.tile, i, tiled.target_raw, &logits)
            if self.pair_job is not None:
                self.set_row(&self.base_tile, i, tiled.base_target_raw, &base)
                if tiled.has_pair:
                    tl_divergences_range(backend, &base, &logits, self.first, self.last, &tiled.state.further, cancel)
                    continue
                tl_pair_range(backend, &base, &logits, self.first, self.last, C_TILE_CLASS_MULTIPLE, tiled.target,
                              True, tiled.compute_dtype, TL_EXACT, &tiled.state.pair, cancel)
            elif self.token_job is not None:
                tl_token_stats_range(backend, &logits, self.first, self.last, C_TILE_CLASS_MULTIPLE, tiled.target,
                                     tiled.target_raw, &tiled.state.token, self.top_of(tiled), cancel)
            else:
                loss = self.loss_job.loss_at(tiled.row, tiled.target)
                tl_loss_range(backend, &logits, &loss, self.first, self.last, C_TILE_CLASS_MULTIPLE, &tiled.state.loss,
                              cancel)

    cdef inline tl_topk *top_of(self, TiledRow *tiled) noexcept nogil:
        return &tiled.top if self.token_job.top_k > 0 else NULL

    cdef double end_row(self, TiledRow *tiled, const tl_row *logits) noexcept nogil:
        """Finish a row, and return its number."""
        cdef tl_loss loss
        if self.token_job is not None:
            tl_token_stats_end(backend, logits, tiled.target_raw, &tiled.state.token, self.top_of(tiled))
            return self.token_job.write_token(tiled.row, tiled.target, &tiled.state.token)
        loss = self.loss_job.loss_at(tiled.row, tiled.target)
        return tl_loss_end(backend, logits, &loss, &tiled.state.loss)

    cdef void end_pair(self, TiledRow *tiled, const tl_row *logits) noexcept nogil:
        """Finish a pair, or leave it open, to be read again: in double, or for further divergences."""
        cdef tl_row base = self.job.row_of_scores()
        cdef int dtype = TL_FLOAT64
        if tiled.has_pair:
            tiled.is_open = not tl_divergences_end(&tiled.state.further, &tiled.pair.further)
        elif tl_pair_end(backend, &base, logits, tiled.target, tiled.base_target_raw, tiled.target_raw,
                         &tiled.state.pair, &tiled.pair):
            tiled.has_pair = tiled.is_open = self.pair_job.divergences != 0
            dtype = self.pair_job.compute_dtype
        else:
            tiled.compute_dtype = TL_FLOAT64
            return
        if tiled.is_open:
            tl_divergences_begin(tiled.pair.base_lse, tiled.pair.lse, self.job.scores.classes, dtype,
                                 self.pair_job.divergences, &tiled.state.further)
        else:
            self.job.add(tiled.row, tiled.target, self.pair_job.write_pair(tiled.row, &tiled.pair), &self.totals)

    def end_rows(self):
        """Finish the rows, and add their numbers to the job's; returns how many need all tiles once more."""
        cdef tl_row logits = self.row_of_tile()
        cdef tl_fp_state environment
        cdef int64_t i, left = 0
        with nogil:
            tl_fp_enter(&environment)
            for i in range(self.count):
                if self.pair_job is None:
                    self.job.add(self.tiled[i].row, self.tiled[i].target, self.end_row(&self.tiled[i], &logits),
                                 &self.totals)
                elif self.tiled[i].is_open:
                    self.end_pair(&self.tiled[i], &logits)
                    left += self.tiled[i].is_open
            tl_fp_leave(&environment)
        return left

    def end(self):
        """Add the sums of all rows to those of the job."""
        self.job.add_totals(&self.totals)


@cython.final
cdef class CastRows(Job):
    """Converts rows of an array, all or those of given numbers, to float32 or float64."""

    cdef View source, result
    cdef const int64_t[::1] numbers

    def __cinit__(self, source, int dtype, numbers, result, int result_dtype):
        need_backend()
        open_view(&self.source, source, dtype, source.ndim - 1, False)
        open_view(&self.result, result, result_dtype, 1, True)
        self.numbers = numbers
        self.rows = result.shape[0]

    def __dealloc__(self):
        PyBuffer_Release(&self.source.buffer)
        PyBuffer_Release(&self.result.buffer)

    cdef double cost_of_row(self) noexcept:
        return cost_of_bytes(self.result.buffer.shape[1] * self.result.buffer.itemsize)

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef int64_t i
        cdef tl_row row
        for i in range(start, stop):
            row = row_at(&self.source, i if self.numbers is None else self.numbers[i])
            tl_cast_row(backend, &row, self.result.dtype, <void *> address_of(&self.result, i))


cdef class Product(Job):
    """Products of rows of weights with several hidden states."""

    cdef View weight, result
    cdef int64_t count, first  # of hidden states; the first row of weights
    cdef char *memory

    cdef char *allocate(self, int64_t size) except NULL:
        """Zeros at a multiple of 64 bytes, for the hidden states."""
        self.memory = <char *> calloc(size + 64, 1)
        if self.memory == NULL:
            raise MemoryError
        return self.memory + 64 - <size_t> self.memory % 64

    def __dealloc__(self):
        PyBuffer_Release(&self.weight.buffer)
        PyBuffer_Release(&self.result.buffer)
        free(self.memory)

    cdef double cost_of_row(self) noexcept:
        """Cost of multiplying a row of weights with each hidden state."""
        cdef Py_ssize_t weight_bytes = self.weight.buffer.shape[1] * self.weight.buffer.itemsize
        return cost_of_bytes(weight_bytes) + self.count * self.cost_of_dot()

    cdef double cost_of_dot(self) noexcept:
        """Cost of its product with one hidden state."""
        cdef double element = DOT_ELEMENT * (FLOAT64_CLASS if self.result.dtype == TL_FLOAT64 else 1)
        return DOT + self.weight.buffer.shape[1] * element

    def set_result(self, result, int64_t first):
        """Set where the products go, and the first row of weights; the result has a column for each row of weights."""
        PyBuffer_Release(&self.result.buffer)
        open_view(&self.result, result, self.result.dtype, 1, True)
        self.rows, self.first, self.next_row = result.shape[1], first, 0

    cdef tl_vectors result_at(self, int64_t start) noexcept nogil:
        """The results from a row of weights on."""
        cdef tl_vectors result
        result.data = <char *> self.result.buffer.buf + start * tl_itemsize(self.result.dtype)
        result.stride, result.count = self.result.row_stride, self.count
        return result


@cython.final
cdef class MatVec(Product):
    """Products with few hidden states, which are floats or doubles."""

    cdef tl_vectors hidden

    def __cinit__(self, weight, int dtype, hidden, int hidden_dtype):
        cdef View view
        cdef int64_t i
        cdef tl_row row
        need_backend()
        memset(&view, 0, sizeof(view))
        open_view(&self.weight, weight, dtype, 1, False)
        try:
            open_view(&view, hidden, hidden_dtype, 1, False)
            # copied to whole cache lines, one more than needed apart: they do not all begin in the same set of a cache
            self.count = self.hidden.count = view.buffer.shape[0]
            self.hidden.stride = (view.buffer.shape[1] * tl_itemsize(hidden_dtype) // 64 + 2) * 64
            self.hidden.data = self.allocate(self.count * self.hidden.stride)
            for i in range(self.count):
                row = row_at(&view, i)
                tl_cast_row(backend, &row, hidden_dtype, self.hidden.data + i * self.hidden.stride)
            self.result.dtype = hidden_dtype
        finally:
            PyBuffer_Release(&view.buffer)

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row row = row_at(&self.weight, self.first + start)
        cdef tl_vectors result = self.result_at(start)
        tl_matvec(backend, &row, self.weight.row_stride, stop - start, &self.hidden, &result)


@cython.final
cdef class BFloat16MatMul(Product):
    """Products of weights in bfloat16 with many hidden states: floats in C order that are representable in bfloat16."""

    cdef tl_bf16_panels hidden

    def __cinit__(self, weight, hidden):
        cdef View view
        cdef int64_t i
        need_backend()
        self.hidden.by = <tl_bf16_matmul> bf16_matmul
        if bf16_matmul == TL_BF16_MATMULS:
            raise ValueError("this machine has no instruction for bfloat16, or must not use it")
        memset(&view, 0, sizeof(view))
        open_view(&self.weight, weight, TL_BFLOAT16, 1, False)
        try:
            open_view(&view, hidden, TL_FLOAT32, 1, False)
            self.count = self.hidden.count = view.buffer.shape[0]
            self.hidden.depth = view.buffer.shape[1]
            self.hidden.data = self.allocate(tl_bf16_panels_bytes(&self.hidden))
            with nogil:
                for i in range(self.count):
                    tl_bf16_set_vector(&self.hidden, i, <const float *> address_of(&view, i))
            self.result.dtype = TL_FLOAT32
        finally:
            PyBuffer_Release(&view.buffer)

    cdef double cost_of_dot(self) noexcept:
        cdef double element = AMX_BF16_ELEMENT if self.hidden.by == TL_AMX_BF16 else AVX512_BF16_ELEMENT
        return self.weight.buffer.shape[1] * element

    cdef int64_t rows_together(self) noexcept:
        return tl_bf16_block(self.hidden.by)

    cdef void run_range(self, int64_t start, int64_t stop, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row row = row_at(&self.weight, self.first + start)
        cdef tl_vectors result = self.result_at(start)
        tl_matmul_bf16(&row, self.weight.row_stride, stop - start, &self.hidden, &result, cancel)


def row_dots(weight, int dtype, hidden, int hidden_dtype, const int64_t[::1] numbers, double[::1] result):
    """Writes the product of each hidden state with the row of weights of its number, 0 where that is negative."""
    cdef View weights, states
    cdef tl_vectors state, product
    cdef tl_row row
    cdef int64_t i
    cdef char number[8]
    cdef char *converted = NULL
    cdef tl_fp_state environment
    need_backend()
    memset(&weights, 0, sizeof(weights))
    memset(&states, 0, sizeof(states))
    state.count, state.stride, product.data, product.stride = 1, 0, number, 0
    try:
        open_view(&weights, weight, dtype, 1, False)
        open_view(&states, hidden, hidden_dtype, 1, False)
        converted = <char *> malloc(max(1, weights.buffer.shape[1]) * tl_itemsize(hidden_dtype))
        if converted == NULL:
            raise MemoryError
        with nogil:
            tl_fp_enter(&environment)
            for i in range(numbers.shape[0]):
                result[i] = 0
                if numbers[i] < 0:
                    continue
                row = row_at(&weights, numbers[i])
                tl_cast_row(backend, &row, hidden_dtype, converted)
                row.data, row.dtype, row.stride = converted, hidden_dtype, tl_itemsize(hidden_dtype)
                state.data = <char *> address_of(&states, i)
                tl_matvec(backend, &row, 0, 1, &state, &product)
                result[i] = tl_load(number, hidden_dtype)
            tl_fp_leave(&environment)
    finally:
        free(converted)
        PyBuffer_Release(&weights.buffer)
        PyBuffer_Release(&states.buffer)
