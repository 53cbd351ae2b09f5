/* KL(softmax(base) || softmax(other)) = mean of base - other under softmax(base) - (logsumexp(base) -
 * logsumexp(other)), in one pass. Both rows are shifted by their logits at the argmax of the base: if the base is
 * nearly certain, differences are close to 0 where its mass is, and cancellation is harmless. */
#include <float.h>

#include "kl.h"

#include <assert.h>

#include "logsumexp.h"
#include "scalar_math.h"

typedef struct {
    const tl_row *row;
    tl_lse_acc state;
    tl_chunk_buf buf;
} kl_side;

/* Whether a class of [start, end) is possible in the base and impossible in the other row. */
static int has_infinite_kl(const kl_side *base, const kl_side *other, int64_t start, int64_t end) {
    for (int64_t i = start; i < end; i++)
        if (tl_load(other->row->data + i * other->row->stride, other->row->dtype) == -(double)INFINITY &&
            tl_load(base->row->data + i * base->row->stride, base->row->dtype) > -(double)INFINITY)
            return 1;
    return 0;
}

/* The elements from `start` on: in place if possible, else from the chunk buffer. */
static const void *elements(const tl_backend *backend, kl_side *of, int dtype, int64_t start, int64_t count,
                            int in_place) {
    if (in_place)
        return of->row->data + start * of->row->stride;
    tl_load_chunk(backend, of->row, start, count, -1, of->state.offset, dtype, &of->buf);
    return &of->buf.at;
}

/* Accumulates the elements [start, end) of both rows. Returns 1 if a class makes the divergence infinite. */
static int reduce_both(const tl_backend *backend, kl_side *base, kl_side *other, int64_t start, int64_t end) {
    int dtype = base->row->compute_dtype, found = 0;
    int in_place = tl_can_read_in_place(base->row, dtype, base->state.offset) &&
                   tl_can_read_in_place(other->row, dtype, other->state.offset);
    while (start < end) {
        int64_t count = in_place ? (end - start) / TL_CHUNK * TL_CHUNK : 0;
        int all_in_place = count > 0;
        if (!all_in_place)
            count = end - start < TL_CHUNK ? end - start : TL_CHUNK;
        const void *p = elements(backend, base, dtype, start, count, all_in_place);
        const void *q = elements(backend, other, dtype, start, count, all_in_place);
        if (TL_UNLIKELY(backend->kl[dtype](p, q, (size_t)count, &base->state, &other->state)))
            found |= has_infinite_kl(base, other, start, start + count);
        start += count;
    }
    return found;
}

static double maximum_of(const tl_backend *backend, kl_side *of, int64_t start, int64_t end) {
    return tl_maximum_between(backend, of->row, start, end, -1, &of->buf);
}

/* What logits of the other row are shifted by: its logit at the argmax of the base, as far as the dtype holds it. */
static double other_shift_of(double logit, int dtype) {
    if (!(logit > -TL_MIN_FMA_SAFE && logit - logit == 0))
        logit = logit < 0 ? -TL_MIN_FMA_SAFE : 0;
    if (dtype == TL_FLOAT64)
        return logit;
    return logit < (double)-FLT_MAX ? (double)-FLT_MAX : (double)(float)logit;
}

/* Moves the shifts to the class of the maximum of the base in [start, end). */
static void kl_reshift(const tl_backend *backend, kl_side *base, kl_side *other, int64_t start, int64_t end,
                       double maximum) {
    tl_moment *moment = base->state.moment;
    int64_t class = maximum - maximum == 0 ? tl_find(backend, base->row, start, end, maximum) : end;
    if (class == end)
        return;
    double shift = maximum - base->state.offset, sum = tl_lanes_sum_in_order(base->state.sum);
    double other_shift =
        tl_load(other->row->data + class * other->row->stride, other->row->dtype) - other->state.offset;
    other_shift = other_shift_of(other_shift, base->row->compute_dtype);
    if (base->row->compute_dtype != TL_FLOAT64)
        shift = (double)(float)shift;
    if (sum != 0)
        moment->sum[0] += ((moment->shift - shift) - (moment->other_shift - other_shift)) * sum;
    moment->shift = shift;
    moment->other_shift = other_shift;
}

/* Rebases what is out of range, so that the elements [start, end) can be accumulated. Returns 0 if a sum is nan. */
static int kl_rebase(const tl_backend *backend, kl_side *base, kl_side *other, int64_t start, int64_t end,
                     int base_out_of_range, int other_out_of_range) {
    double maximum = maximum_of(backend, base, start, end), offset = other->state.offset;
    if (base_out_of_range && !tl_lse_rebase(maximum, base->row->compute_dtype, &base->state))
        return 0;
    if (other_out_of_range &&
        !tl_lse_rebase(maximum_of(backend, other, start, end), other->row->compute_dtype, &other->state))
        return 0;
    base->state.moment->other_shift -= other->state.offset - offset;
    kl_reshift(backend, base, other, start, end, maximum);
    return 1;
}

static int begin(const tl_backend *backend, kl_side *of, const tl_row *row, tl_moment *moment) {
    of->row = row;
    tl_chunk_invalidate(&of->buf);
    int64_t first = row->count < TL_CHUNK ? row->count : TL_CHUNK;
    return tl_lse_begin(maximum_of(backend, of, 0, first), row->compute_dtype, moment, &of->state);
}

/* Whether differences of the rows may be too large for a float. */
static int is_far_out(const kl_side *base, const kl_side *other) {
    return (base->state.offset != 0 || other->state.offset != 0) && base->row->compute_dtype != TL_FLOAT64;
}

/* The divergence. Returns 0 if the rows need double. */
static int kl_rows(const tl_backend *backend, const tl_row *base_row, const tl_row *other_row, double *kl,
                   tl_cancel *cancel) {
    kl_side base, other;
    tl_moment moment;
    int infinite = 0;
    *kl = (double)NAN;
    if (!begin(backend, &base, base_row, &moment) || !begin(backend, &other, other_row, NULL))
        return 1;
    if (is_far_out(&base, &other))
        return 0;
    kl_rebase(backend, &base, &other, 0, base_row->count < TL_BLOCK ? base_row->count : TL_BLOCK, 0, 0);
    for (int64_t start = 0; start < base_row->count; start += TL_BLOCK) {
        int64_t end = base_row->count - start < TL_BLOCK ? base_row->count : start + TL_BLOCK;
        base.state.maximum = -(double)INFINITY;
        tl_lse_acc base_before = base.state, other_before = other.state;
        tl_moment moment_before = moment;
        int found = reduce_both(backend, &base, &other, start, end);
        int base_out_of_range = tl_sum_out_of_range(&base.state),
            other_out_of_range = tl_sum_out_of_range(&other.state);
        if (TL_UNLIKELY(base_out_of_range || other_out_of_range || tl_moment_shift_stale(&base.state))) {
            base.state = base_before;
            other.state = other_before;
            moment = moment_before;
            if (!kl_rebase(backend, &base, &other, start, end, base_out_of_range, other_out_of_range))
                return 1;
            if (is_far_out(&base, &other))
                return 0;
            found = reduce_both(backend, &base, &other, start, end);
        }
        infinite |= found;
        double sums = tl_lanes_sum_fast(base.state.sum) + tl_lanes_sum_fast(other.state.sum);
        if (sums != sums || (end % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel)))
            return 1;
    }
    double base_log = tl_lse_log(&base.state, base_row), other_log = tl_lse_log(&other.state, other_row);
    if (base_log == -(double)INFINITY)
        return 1;
    double mean = tl_moment_mean(&base.state);
    if (mean - mean != 0 && !infinite && base_row->compute_dtype != TL_FLOAT64)
        return 0; /* the differences are too large for a float */
    *kl = mean - ((base_log - moment.shift) - (other_log - moment.other_shift));
    if (infinite)
        *kl = (double)INFINITY;
    else if (*kl < 0)
        *kl = 0;
    return 1;
}

double tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel) {
    double kl;
    assert(base->count == other->count && base->compute_dtype == other->compute_dtype);
    if (kl_rows(backend, base, other, &kl, cancel))
        return kl;
    tl_row wide_base = *base, wide_other = *other;
    wide_base.compute_dtype = wide_other.compute_dtype = TL_FLOAT64;
    kl_rows(backend, &wide_base, &wide_other, &kl, cancel);
    return kl;
}

/* Loads a block into groups, and begins its reduction. */
static tl_groups load_side(const tl_backend *backend, const tl_row_block *rows, int count, tl_block_lse *lse) {
    assert(!rows->has_excluded);
    memset(lse->offset, 0, sizeof lse->offset);
    memset(lse->logit, 0, sizeof lse->logit);
    return tl_scale_groups(backend, rows, count, tl_load_raw_groups(backend, rows, count));
}

/* The other rows' shifts. */
static void find_other_shifts(const tl_backend *backend, const tl_row_block *other, int count, size_t in_groups,
                              tl_groups base, double *other_shift) {
    tl_short_ranks ranks;
    memset(other_shift, 0, TL_BLOCK_ROWS * sizeof *other_shift);
    backend->short_ranks[base.dtype](base.at, in_groups, (size_t)other->row.count, other_shift, &ranks);
    for (int i = 0; i < count; i++) {
        const char *at = other->data[i] + ranks.argmax[i] * other->row.stride;
        other_shift[i] = other_shift_of(tl_load(at, other->row.dtype), other->row.compute_dtype);
    }
}

uint64_t tl_kl_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, double *kl) {
    int count = tl_grouped_rows(base);
    size_t in_groups = (size_t)(count + TL_GROUP - 1) / TL_GROUP;
    double other_shift[TL_BLOCK_ROWS];
    tl_block_lse base_lse, other_lse;
    tl_short_moments moments;
    assert(base->row.count == other->row.count && base->row.compute_dtype == other->row.compute_dtype);
    if (count == 0)
        return 0;
    tl_groups p = load_side(backend, base, count, &base_lse), q = load_side(backend, other, count, &other_lse);
    find_other_shifts(backend, other, count, in_groups, p, other_shift);
    moments.other = q.at;
    moments.other_shift = other_shift;
    tl_reduce_groups(backend, base, count, p, 0, &moments, &base_lse);
    tl_reduce_groups(backend, other, count, q, 0, NULL, &other_lse);
    tl_end_lse(backend, &base->row, TL_GROUP * in_groups, 0, &base_lse);
    tl_end_lse(backend, &other->row, TL_GROUP * in_groups, 0, &other_lse);
    uint64_t found = base_lse.grouped & other_lse.grouped;
    for (int i = 0; i < count; i++) {
        double sum = base_lse.sums.sum[i], other_sum = other_lse.sums.sum[i], mean = moments.sum[i] / sum;
        int infinite = moments.most_above[i] > DBL_MAX;
        kl[i] = mean - ((base_lse.log[i] - moments.shift[i]) - (other_lse.log[i] - other_shift[i]));
        kl[i] = infinite ? (double)INFINITY : kl[i] < 0 ? 0 : kl[i];
        found &= ~((uint64_t)!(sum > 0 && other_sum == other_sum && (infinite || mean - mean == 0)) << i);
    }
    return found;
}
