/* KL(softmax(base) || softmax(other)) = mean of base - other under softmax(base) - (logsumexp(base) -
 * logsumexp(other)), in one pass. Both rows are shifted by their logits at the argmax of the base: if the base is
 * nearly certain, differences are close to 0 where its mass is, and cancellation is harmless. */
#include "kl.h"

#include <float.h>

int tl_has_infinite_kl(const tl_backend *backend, const tl_row *base, const tl_row *other, int64_t start, int64_t end) {
    const double impossible = -(double)INFINITY;
    for (int64_t i = start; i < end; i++)
        if (!(tl_logit_at(backend, other, i) > impossible) && tl_logit_at(backend, base, i) > impossible)
            return 1;
    return 0;
}

/* Accumulates the elements [start, end) of both rows. */
static void reduce_both(const tl_backend *backend, tl_two_rows *rows, int64_t start, int64_t end, tl_kl_acc *acc) {
    rows->offset[0] = acc->base.offset;
    rows->offset[1] = acc->other.offset;
    for (int64_t count; start < end; start += count) {
        count = tl_read_two(backend, rows, start, end);
        acc->base.is_padded = acc->other.is_padded = count < TL_CHUNK;
        backend->reduce[TL_REDUCE_SUMEXP][acc->dtype](rows->at[1], (size_t)count, &acc->other);
        acc->base.clamps |= acc->other.clamps;
        acc->moment.other = rows->at[1];
        backend->reduce[TL_REDUCE_KL][acc->dtype](rows->at[0], (size_t)count, &acc->base);
        if (TL_UNLIKELY(acc->moment.is_unmatched))
            acc->is_infinite |= tl_has_infinite_kl(backend, rows->row[0], rows->row[1], start, start + count);
        acc->moment.is_unmatched = 0;
    }
}

/* The largest logit of [start, end) of one of two rows. */
static double maximum_of(const tl_backend *backend, tl_two_rows *rows, int i, int64_t start, int64_t end) {
    return tl_maximum_between(backend, rows->row[i], start, end, -1, &rows->buf[i]);
}

/* What logits of the other row are shifted by: its logit at the argmax of the base, as far as the dtype holds it. */
static double other_shift_of(double logit, int dtype) {
    if (!(logit > -TL_MIN_FMA_SAFE && logit - logit == 0))
        logit = logit < 0 ? -TL_MIN_FMA_SAFE : 0;
    return dtype == TL_FLOAT64 ? logit : logit < (double)-FLT_MAX ? (double)-FLT_MAX : (double)(float)logit;
}

/* Rebases what is out of range and moves the shifts to the first class of the base's maximum in [start, end), so that
 * these elements can be accumulated. Sets the stage. */
static void rebase(const tl_backend *backend, tl_two_rows *rows, int64_t start, int64_t end, int base_out_of_range,
                   int other_out_of_range, tl_kl_acc *acc) {
    double maximum = maximum_of(backend, rows, 0, start, end), offset = acc->other.offset;
    acc->stage = TL_KL_NAN;
    if (base_out_of_range && !tl_lse_rebase(maximum, acc->dtype, &acc->base))
        return;
    if (other_out_of_range && !tl_lse_rebase(maximum_of(backend, rows, 1, start, end), acc->dtype, &acc->other))
        return;
    acc->moment.other_shift -= acc->other.offset - offset;
    int is_far_out = (acc->base.offset != 0 || acc->other.offset != 0) && acc->dtype != TL_FLOAT64;
    acc->stage = is_far_out ? TL_KL_TOO_FAR : TL_KL_OPEN; /* differences may be too large for a float */
    int64_t class = maximum - maximum == 0 ? tl_find(backend, rows->row[0], start, end, maximum) : end;
    if (class < end) {
        double logit = tl_logit_at(backend, rows->row[1], class) - acc->other.offset;
        tl_moment_reshift(maximum - acc->base.offset, other_shift_of(logit, acc->dtype), acc->dtype, &acc->base);
    }
}

/* Begins two rows; `block` is the number of elements in their first block. */
static void begin(const tl_backend *backend, tl_two_rows *rows, int64_t block, tl_kl_acc *acc) {
    int64_t count = rows->row[0]->count, first = count < TL_CHUNK ? count : TL_CHUNK;
    acc->dtype = rows->dtype;
    acc->is_infinite = 0;
    acc->stage = TL_KL_NAN;
    if (tl_lse_begin(maximum_of(backend, rows, 0, 0, first), acc->dtype, &acc->moment, &acc->base) &&
        tl_lse_begin(maximum_of(backend, rows, 1, 0, first), acc->dtype, NULL, &acc->other))
        rebase(backend, rows, 0, count < block ? count : block, 0, 0, acc);
}

/* Accumulates a block, and rebases where needed. */
static void add_block(const tl_backend *backend, tl_two_rows *rows, int64_t start, int64_t end, tl_kl_acc *acc) {
    acc->base.maximum = -(double)INFINITY;
    const tl_kl_acc before = *acc;
    reduce_both(backend, rows, start, end, acc);
    int base_out_of_range = tl_sum_out_of_range(&acc->base), other_out_of_range = tl_sum_out_of_range(&acc->other);
    if (TL_UNLIKELY(base_out_of_range || other_out_of_range || tl_moment_shift_stale(&acc->base))) {
        *acc = before;
        rebase(backend, rows, start, end, base_out_of_range, other_out_of_range, acc);
        if (acc->stage != TL_KL_OPEN)
            return;
        reduce_both(backend, rows, start, end, acc);
    }
    double sums = tl_lanes_sum_fast(acc->base.sum) + tl_lanes_sum_fast(acc->other.sum);
    if (sums != sums)
        acc->stage = TL_KL_NAN;
}

void tl_kl_range(const tl_backend *backend, const tl_row *base, const tl_row *other, int64_t start, int64_t end,
                 int64_t block, tl_kl_acc *acc, tl_cancel *cancel) {
    tl_two_rows rows;
    assert(base->count == other->count && base->compute_dtype == other->compute_dtype);
    tl_begin_two(base, other, base->compute_dtype, &rows);
    if (start == 0)
        begin(backend, &rows, block, acc);
    for (int64_t next; start < end && acc->stage == TL_KL_OPEN; start = next) {
        next = end - start < block ? end : start + block;
        add_block(backend, &rows, start, next, acc);
        if (next % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            return;
    }
}

tl_kl tl_kl_finish(tl_kl_acc *acc) {
    const double nan = (double)NAN;
    tl_kl found = {nan, {0, nan}, {0, nan}};
    if (acc->stage != TL_KL_OPEN)
        return found;
    found.base = tl_lse_finish(&acc->base, acc->dtype);
    found.other = tl_lse_finish(&acc->other, acc->dtype);
    if (found.base.log == -(double)INFINITY)
        return found;
    double mean = tl_moment_mean(&acc->base);
    if (mean - mean != 0 && !acc->is_infinite && acc->dtype != TL_FLOAT64)
        acc->stage = TL_KL_TOO_FAR;
    found.kl = mean - ((found.base.log - acc->moment.shift) - (found.other.log - acc->moment.other_shift));
    if (acc->is_infinite)
        found.kl = (double)INFINITY;
    else if (found.kl < 0)
        found.kl = 0;
    return found;
}

/* Sums over two rows of probabilities, or over 16 such pairs side by side, with the errors of their additions. */
typedef struct {
    double sum[3][TL_GROUP], error[3][TL_GROUP];
    int is_infinite[TL_GROUP];
} prob_acc;

/* The sum of p log(p / q) where a quotient overflows, and whether it is infinite. */
static double prob_dot(const double *p, const double *q, size_t count, int *is_infinite) {
    double dot = 0;
    for (size_t i = 0; i < count && !*is_infinite; i += TL_GROUP) {
        *is_infinite = p[i] > 0 && q[i] <= 0;
        dot += p[i] > 0 ? p[i] * (tl_log(p[i]) - tl_log(q[i])) : 0;
    }
    return dot;
}

/* Adds a chunk at most, in whole groups. */
static void add_probs(const tl_backend *backend, const double *p, const double *q, size_t count, prob_acc *acc) {
    tl_prob_sums found;
    backend->prob_sums(p, q, count, &found);
    for (size_t l = 0; l < TL_GROUP; l++)
        if (TL_UNLIKELY(found.most[l] > DBL_MAX))
            found.dot[l] = prob_dot(p + l, q + l, count - l, &acc->is_infinite[l]);
    const double *of[] = {found.p, found.q, found.dot};
    for (int k = 0; k < 3; k++)
        for (int l = 0; l < TL_GROUP; l++)
            tl_add_part(of[k][l], &acc->sum[k][l], &acc->error[k][l]);
}

/* The sums of p, q and p log(p / q) in each lane become the divergence and the logsumexps. */
static void end_probs(const tl_backend *backend, const prob_acc *acc, int count, tl_kl *found) {
    const tl_clip unclipped = {.highest = (double)INFINITY, .greatest = (double)INFINITY};
    double sums[2 * TL_GROUP], minus_log[2 * TL_GROUP];
    for (int l = 0; l < TL_GROUP; l++)
        for (int k = 0; k < 2; k++)
            sums[2 * l + k] = acc->sum[k][l] + acc->error[k][l];
    tl_negative_log(backend, &unclipped, sums, 2 * TL_GROUP, minus_log);
    for (int l = 0; l < count; l++) {
        double base = 0 - minus_log[2 * l], other = 0 - minus_log[2 * l + 1], dot = acc->sum[2][l] + acc->error[2][l];
        double kl = dot / (acc->sum[0][l] + acc->error[0][l]) - (base - other);
        if (acc->is_infinite[l] && base == base && other == other)
            kl = (double)INFINITY;
        found[l] = (tl_kl){kl < 0 ? 0 : kl, {0, base}, {0, other}};
    }
}

/* Loads some probabilities as doubles, this far apart, among zeros. */
static void load_probs(const tl_backend *backend, const tl_row *row, int64_t start, int64_t count, int64_t apart,
                       double x[TL_CHUNK]) {
    double values[TL_CHUNK];
    tl_row raw = tl_raw(row), part = tl_part_of(&raw, start, start + count);
    if (count * apart < TL_CHUNK || apart > 1)
        memset(x, 0, TL_CHUNK * sizeof *x);
    tl_cast_row(backend, &part, TL_FLOAT64, apart > 1 ? values : x);
    for (int64_t i = 0; apart > 1 && i < count; i++)
        x[i * apart] = values[i];
}

/* Two rows of probabilities: no exponentials, and a single logarithm for each class. A short row has the bits that a
 * group gives it: it is the only one, in the first lane. */
static tl_kl kl_of_probs(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel) {
    int is_short = base->count <= TL_SHORT_ROW;
    int64_t apart = is_short ? TL_GROUP : 1, step = TL_CHUNK / apart;
    double p[TL_CHUNK], q[TL_CHUNK];
    prob_acc acc = {0};
    tl_kl found;
    for (int64_t start = 0, count; start < base->count; start += count) {
        count = base->count - start < step ? base->count - start : step;
        load_probs(backend, base, start, count, apart, p);
        load_probs(backend, other, start, count, apart, q);
        add_probs(backend, p, q, (size_t)((count * apart + TL_GROUP - 1) / TL_GROUP * TL_GROUP), &acc);
        if (start % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            break;
    }
    for (int l = 1; l < TL_GROUP && !is_short; l++)
        acc.is_infinite[0] |= acc.is_infinite[l];
    for (int k = 0; k < 3 && !is_short; k++) {
        acc.sum[k][0] = tl_lanes_sum_compensated(acc.sum[k], acc.error[k]);
        acc.error[k][0] = 0;
    }
    end_probs(backend, &acc, 1, &found);
    return found;
}

const double *tl_load_wide_groups(const tl_backend *backend, const tl_row_block *rows, int count) {
    tl_row_block wide = *rows;
    wide.row.compute_dtype = TL_FLOAT64;
    return tl_load_scaled_groups(backend, &wide, count).at;
}

/* Short rows of probabilities. */
static uint64_t kl_of_prob_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other,
                                 tl_kl *found_of) {
    tl_row_block raw = *base, raw_other = *other;
    if (base->row.count > TL_SHORT_ROW || !base->scratch)
        return 0;
    raw.row = tl_raw(&base->row);
    raw_other.row = tl_raw(&other->row);
    const double *p = tl_load_wide_groups(backend, &raw, base->count);
    const double *q = tl_load_wide_groups(backend, &raw_other, base->count);
    size_t elements = tl_group_elements(base);
    for (int first = 0; first < base->count; first += TL_GROUP, p += elements, q += elements) {
        prob_acc acc = {0};
        for (size_t start = 0; start < elements; start += TL_CHUNK) {
            size_t count = elements - start < TL_CHUNK ? elements - start : TL_CHUNK;
            add_probs(backend, p + start, q + start, count, &acc);
        }
        int left = base->count - first;
        end_probs(backend, &acc, left < TL_GROUP ? left : TL_GROUP, found_of + first);
    }
    return base->wanted;
}

tl_kl tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel) {
    tl_row p = *base, q = *other;
    tl_kl_acc acc;
    if (base->of_probs && other->of_probs)
        return kl_of_probs(backend, base, other, cancel);
    for (;; p.compute_dtype = q.compute_dtype = TL_FLOAT64) {
        tl_kl_range(backend, &p, &q, 0, p.count, TL_BLOCK, &acc, cancel);
        tl_kl found = tl_kl_finish(&acc);
        if (acc.stage != TL_KL_TOO_FAR)
            return found;
    }
}

/* Finds divergences of rows in lanes, and logsumexps of both; returns the bits of those that are right. */
static uint64_t kl_of_lanes(const tl_backend *backend, const tl_few_rows *base, const tl_few_rows *other, int dtype,
                            int count, const tl_next_rows *next, double *kl, double (*log)[TL_BLOCK_ROWS]) {
    const size_t padded = tl_padded_rows(count);
    tl_short_sums sums, of_other;
    tl_short_moments moments;
    moments.other = *other;
    backend->short_moments[dtype](base, padded / TL_GROUP, &next[0], &sums, &moments);
    backend->short_sumexp[dtype](other, padded / TL_GROUP, &next[1], NULL, &of_other);
    uint64_t found = backend->near(sums.maximum, padded) & backend->near(of_other.maximum, padded);
    found &= backend->kl_of_sums(&sums, &of_other, &moments, padded, dtype, log[0], log[1], kl);
    return found & ~(uint64_t)0 >> (TL_BLOCK_ROWS - count);
}

uint64_t tl_kl_of_groups(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, int count,
                         tl_groups p, tl_groups q, tl_kl *found_of) {
    const size_t classes = (size_t)base->row.count;
    const tl_few_rows of_base = tl_few_of_groups(p.at, classes, p.dtype);
    const tl_few_rows of_other = tl_few_of_groups(q.at, classes, q.dtype);
    const tl_next_rows next[] = {tl_rows_after(base), tl_rows_after(other)};
    double kl[TL_BLOCK_ROWS], log[2][TL_BLOCK_ROWS];
    assert(base->row.count == other->row.count && p.dtype == q.dtype);
    const uint64_t found = kl_of_lanes(backend, &of_base, &of_other, p.dtype, count, next, kl, log);
    for (int i = 0; i < count; i++)
        found_of[i] = (tl_kl){kl[i], {0, log[0][i]}, {0, log[1][i]}};
    return found & base->wanted;
}

uint64_t tl_kl_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, tl_kl *found_of,
                        tl_cancel *cancel) {
    const int count = tl_grouped_rows(base);
    uint64_t found = 0;
    if (base->row.of_probs && other->row.of_probs)
        found = kl_of_prob_block(backend, base, other, found_of);
    else if (count > 0)
        found = tl_kl_of_groups(backend, base, other, count, tl_load_scaled_groups(backend, base, count),
                                tl_load_scaled_groups(backend, other, count), found_of);
    for (uint64_t left = base->wanted & ~found; left != 0; left &= left - 1) {
        const int i = (int)tl_lowest_bit(left);
        const tl_row row = tl_row_of_block(base, i), of_other = tl_row_of_block(other, i);
        found_of[i] = tl_kl_divergence(backend, &row, &of_other, cancel);
    }
    return found;
}

size_t tl_add_kl_of_few(const tl_backend *backend, const tl_row *base, ptrdiff_t apart, const tl_row *other,
                        ptrdiff_t other_apart, size_t n, tl_superacc *sum, double *values) {
    const int dtype = tl_single_or_double(base->compute_dtype);
    const tl_next_rows next[2] = {{NULL, 0, 0}, {NULL, 0, 0}};
    char scratch[2][TL_GROUPS_BYTES(TL_FEW_CLASSES)];
    double kl[TL_BLOCK_ROWS], log[2][TL_BLOCK_ROWS];
    size_t start = 0;
    for (size_t count; start < n; start += count) {
        count = tl_few_together(n - start);
        const tl_few_rows p = tl_rows_or_groups(backend, base, start, apart, count, 0, scratch[0]);
        const tl_few_rows q = tl_rows_or_groups(backend, other, start, other_apart, count, 0, scratch[1]);
        if (p.class_stride != q.class_stride)
            break;
        if (~kl_of_lanes(backend, &p, &q, dtype, (int)count, next, kl, log) << (TL_BLOCK_ROWS - count))
            break;
        tl_superacc_add_many(backend, TL_SUM, sum, kl, count);
        if (values)
            memcpy(values + start, kl, count * sizeof *kl);
    }
    return start;
}
