# Jobs that read the same row of two arrays together: divergences, comparisons of models.

cdef class PairJob(LogSumExpJob):
    """Reduces each row of the scores, those of a base, together with the same row of others."""

    cdef readonly Scores other
    cdef int compute_dtype  # of both rows
    cdef int divergences  # those that are wanted beside that of Kullback and Leibler, and their columns
    cdef double[::1] reverse_kl, js, tv, hellinger

    cdef int set_up_pair(self, Scores scores, Positions positions, numbers, Scores other) except -1:
        """Set the fields of this class."""
        self.set_up(scores, positions, numbers)
        if other.shape != scores.shape:
            raise ValueError("the other scores have another shape")
        self.other = other
        self.find_copies(&other.view)
        self.compute_dtype = scores.dtype & ~TL_SWAPPED
        if self.compute_dtype != other.dtype & ~TL_SWAPPED:
            wide = TL_FLOAT64 in (self.compute_dtype, other.dtype & ~TL_SWAPPED)
            self.compute_dtype = TL_FLOAT64 if wide else TL_FLOAT32
        if C_PROBS in (scores.kind, other.kind):
            self.compute_dtype = TL_FLOAT64
        return 0

    cdef int check(self) except -1:
        RowJob.check(self)
        if not is_given(&self.other.view):
            raise ValueError("the other scores have no array: they arrive in tiles")
        return 0

    def set_transform(self, double logit_scale, double softcap):
        """Scale and cap the logits of both, which arrive in tiles."""
        self.logit_scale, self.softcap = logit_scale, softcap
        if logit_scale != 1 or softcap != 0:
            self.compute_dtype = TL_FLOAT64

    cdef int set_divergences(self, dict columns) except -1:
        """Set the wanted divergences: those with columns."""
        self.reverse_kl, self.js = columns.get("reverse_kl"), columns.get("js")
        self.tv, self.hellinger = columns.get("tv"), columns.get("hellinger")
        self.divergences = (
            (self.reverse_kl is not None) * TL_REVERSE_KL + (self.js is not None) * TL_JS
            + (self.tv is not None) * TL_TV + (self.hellinger is not None) * TL_HELLINGER
        )
        for column in columns.values():
            if len(column) != self.rows:
                raise ValueError("columns do not have a number for each row")
        return 0

    cdef void write_divergences(self, int64_t row, const tl_divergences *values) noexcept nogil:
        """Write the columns of the wanted divergences."""
        if self.reverse_kl is not None:
            self.reverse_kl[row] = values.reverse_kl
        if self.js is not None:
            self.js[row] = values.js
        if self.tv is not None:
            self.tv[row] = values.tv
        if self.hellinger is not None:
            self.hellinger[row] = values.hellinger

    cdef void check_kinds(self, int64_t row, tl_lse base, tl_lse other, Totals *totals) noexcept nogil:
        """Refuse a row if one of its two does not fit the kind of its scores."""
        self.check_kind(self.scores, row, tl_logsumexp(base), 0, totals)
        self.check_kind(self.other, row, tl_logsumexp(other), self.scores.classes, totals)

    cdef double write_pair(self, int64_t row, const tl_pair *pair) noexcept nogil:
        """Write the columns of a row, if wanted; return its number."""
        self.write_divergences(row, &pair.further)
        return pair.kl

    cdef double cost_of_divergences(self) noexcept:
        """The cost of the second pass over a row."""
        if not self.divergences:
            return 0
        return self.cost_of_scores(60, 0.5 if self.divergences == TL_TV else 1)

    cdef size_t scratch_bytes(self) noexcept nogil:
        return 2 * LogSumExpJob.scratch_bytes(self)

    cdef void find_other(self, const Block *block, tl_row_block *other) noexcept nogil:
        """The other rows of a block."""
        other[0] = block.rows
        other.row = self.row_of(self.other)
        other.row.stride = self.other.view.buffer.strides[self.other.axis]
        if block.rows.scratch != NULL:
            other.scratch = block.rows.scratch + LogSumExpJob.scratch_bytes(self)
        self.find_rows(&self.other.view, block, other.data)
        if self.copied_bytes[1] and other.scratch != NULL:
            tl_copy_rows(backend, other, block.rows.scratch + self.scratch_bytes() + self.copied_bytes[0])


@cython.final
cdef class KLDivergence(PairJob):
    """KL(softmax(scores) || softmax(other)) of each row, and the further divergences that have columns."""

    def __init__(self, Scores scores, Positions positions, numbers, Scores other, dict columns):
        self.set_up_pair(scores, positions, numbers, other)
        self.set_divergences(columns)
        self.take_planes(&other.view)
        self.has_plain_rows = self.has_plain_rows and scores.kind == other.kind == C_LOGITS and not self.divergences

    cdef double cost_of_row(self) noexcept:
        return PairJob.cost_of_row(self) + self.cost_of_divergences()

    cdef int64_t reduce_plain(self, int64_t start, int64_t count, tl_row *rows, uint64_t *wanted,
                              Totals *totals) noexcept nogil:
        rows[0].compute_dtype = rows[1].compute_dtype = self.compute_dtype
        count = tl_add_kl_of_few(backend, &rows[0], self.scores.view.row_stride, &rows[1], self.other.view.row_stride,
                                 count, &totals.losses, self.numbers + start if self.numbers != NULL else NULL)
        totals.unmasked += count
        return count

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row_block *base = &block.rows
        cdef tl_row_block other
        cdef tl_kl kl[BLOCK_ROWS]
        cdef tl_divergences values[BLOCK_ROWS]
        cdef int i
        self.find_other(block, &other)
        base.row.compute_dtype = other.row.compute_dtype = self.compute_dtype
        tl_kl_of_block(backend, base, &other, kl, cancel)
        if self.divergences:
            tl_divergences_of_block(backend, base, &other, kl, self.divergences, values, cancel)
        for i in range(base.count):
            if base.wanted >> i & 1:
                block.values[i] = kl[i].kl
                if self.scores.kind != C_LOGITS or self.other.kind != C_LOGITS:
                    self.check_kinds(block.number[i], kl[i].base, kl[i].other, totals)
                if self.divergences:
                    self.write_divergences(block.number[i], &values[i])


@cython.final
cdef class PairStats(PairJob):
    """The columns of a comparison: of each row for its class id, in the base's scores and in the others.

    By llama.cpp's definitions, the base has log-probabilities, whose logsumexp may be `most_unnormalized` away from 0.
    """

    cdef double[::1] nll, base_nll, kl, delta_p, base_top_p, base_margin, margin, rounding
    cdef double[::1] base_logsumexp, logsumexp  # if they are wanted
    cdef uint8_t[::1] is_same_top, is_identical, kept
    cdef double most_unnormalized
    cdef tl_definitions definitions
    cdef tl_clip clip

    def __init__(self, Scores scores, Positions positions, Scores other, int definitions, dict columns,
                 double most_unnormalized=INFINITY):
        # columns are flat arrays by name, those of bool as uint8
        self.set_up_pair(scores, positions, None, other)
        self.need_class_ids()
        self.excludes_classes = self.skips_sum = True
        self.definitions, self.most_unnormalized = <tl_definitions> definitions, most_unnormalized
        self.clip = tl_new_clip(False, 0, scores.dtype)
        self.nll, self.base_nll, self.kl = columns["nll"], columns["base_nll"], columns["kl"]
        self.delta_p, self.base_top_p = columns["delta_p"], columns["base_top_p"]
        self.base_margin, self.margin, self.rounding = columns["base_margin"], columns["margin"], columns["rounding"]
        self.is_same_top, self.kept = columns["is_same_top"], columns["kept"]
        self.is_identical = columns["is_identical"]
        self.base_logsumexp, self.logsumexp = columns.get("base_logsumexp"), columns.get("logsumexp")
        self.set_divergences(columns)

    cdef double cost_of_row(self) noexcept:
        return self.cost_of_scores(40, 1.6) + self.cost_of_divergences()

    cdef void reduce_block(self, Block *block, Totals *totals, tl_cancel *cancel) noexcept nogil:
        cdef tl_row_block other
        cdef tl_pair pairs[BLOCK_ROWS]
        cdef int64_t row
        cdef int i
        self.find_other(block, &other)
        tl_pair_of_block(backend, &block.rows, &other, self.compute_dtype, self.definitions, self.divergences,
                         pairs, cancel)
        for i in range(block.rows.count):
            if not block.rows.wanted >> i & 1:
                continue
            row = block.number[i]
            if self.definitions == TL_LLAMA_CPP:
                self.check_log_probs(row, block.target[i], &pairs[i], totals, cancel)
                self.check_kind(self.other, row, tl_logsumexp(pairs[i].lse), self.scores.classes, totals)
            else:
                self.check_kinds(row, pairs[i].base_lse, pairs[i].lse, totals)
            self.write_pair(row, &pairs[i])

    cdef double write_pair(self, int64_t row, const tl_pair *pair) noexcept nogil:
        self.nll[row], self.base_nll[row], self.kl[row] = pair.nll, pair.base_nll, pair.kl
        self.delta_p[row], self.is_same_top[row] = pair.change, pair.is_same_top
        self.base_top_p[row], self.kept[row] = pair.base_top_p, True
        self.base_margin[row], self.margin[row], self.rounding[row] = pair.base_margin, pair.margin, pair.rounding
        self.is_identical[row] = pair.is_identical
        if self.logsumexp is not None:
            self.base_logsumexp[row], self.logsumexp[row] = tl_logsumexp(pair.base_lse), tl_logsumexp(pair.lse)
        return PairJob.write_pair(self, row, pair)

    cdef void check_log_probs(self, int64_t row, int64_t target, const tl_pair *pair, Totals *totals,
                              tl_cancel *cancel) noexcept nogil:
        """Refuse a row of the base that does not hold log-probabilities, as llama.cpp's definitions want."""
        cdef tl_row base = self.row_at(row)
        cdef double logsumexp = tl_pair_base_logsumexp(backend, &base, tl_logsumexp(pair.base_lse),
                                                       self.most_unnormalized, cancel)
        if logsumexp > self.most_unnormalized or logsumexp < -self.most_unnormalized:  # nan is neither
            self.refuse(C_UNNORMALIZED, row, 0, logsumexp, totals)
        elif tl_is_refused(&self.clip, -pair.base_nll):
            self.refuse(C_BAD_SCORE, row, target, -pair.base_nll, totals)
        elif logsumexp != logsumexp:
            self.check_kind(self.scores, row, logsumexp, 0, totals)
