/* KL(softmax(base) || softmax(other)) = mean of base - other under softmax(base) - (logsumexp(base) -
 * logsumexp(other)), in one pass over both rows. Scores are taken less those of a class that the base finds likely:
 * where it is nearly certain, little is left then of the differences, and of what is lost in them. */
#include <float.h>

#include "kl.h"

#include <assert.h>

#include "logsumexp.h"
#include "scalar_math.h"

typedef struct {
    const tl_row *row;
    tl_lse_acc state;
    tl_chunk_buf buf;
} side;

/* Whether a class of [start, end) has a chance in the base and none in the other row. */
static int impossible(const side *base, const side *other, int64_t start, int64_t end) {
    for (int64_t i = start; i < end; i++)
        if (tl_load(other->row->data + i * other->row->stride, other->row->dtype) == -(double)INFINITY &&
            tl_load(base->row->data + i * base->row->stride, base->row->dtype) > -(double)INFINITY)
            return 1;
    return 0;
}

/* The elements from `start` on, in place if there is nothing to change. */
static const void *elements(const tl_backend *backend, side *of, int dtype, int64_t start, int64_t count,
                            int in_place) {
    if (in_place)
        return of->row->data + start * of->row->stride;
    tl_load_chunk(backend, of->row, start, count, -1, of->state.offset, dtype, &of->buf);
    return &of->buf.at;
}

/* Folds the elements [start, end) of both. Returns 1 if the other row has no chance for a class of the base. */
static int walk(const tl_backend *backend, side *base, side *other, int64_t start, int64_t end) {
    int dtype = base->row->compute_dtype, found = 0;
    int in_place = tl_can_read_in_place(base->row, dtype, base->state.offset) &&
                   tl_can_read_in_place(other->row, dtype, other->state.offset);
    while (start < end) {
        int64_t count = in_place ? (end - start) / TL_CHUNK * TL_CHUNK : 0;
        int folded_in_place = count > 0;
        if (!folded_in_place)
            count = end - start < TL_CHUNK ? end - start : TL_CHUNK;
        const void *p = elements(backend, base, dtype, start, count, folded_in_place);
        const void *q = elements(backend, other, dtype, start, count, folded_in_place);
        if (TL_UNLIKELY(backend->kl[dtype](p, q, (size_t)count, &base->state, &other->state)))
            found |= impossible(base, other, start, start + count);
        start += count;
    }
    return found;
}

static double maximum_of(const tl_backend *backend, side *of, int64_t start, int64_t end) {
    return tl_maximum_between(backend, of->row, start, end, -1, &of->buf);
}

/* Moves the center to the class of the base's maximum in [start, end). */
static void center(const tl_backend *backend, side *base, side *other, int64_t start, int64_t end, double maximum) {
    tl_moment *moment = base->state.moment;
    int64_t class = maximum - maximum == 0 ? tl_find(backend, base->row, start, end, maximum) : end;
    if (class == end)
        return;
    double center = maximum - base->state.offset, sum = tl_lanes_sum_in_order(base->state.sum);
    double beside = tl_load(other->row->data + class * other->row->stride, other->row->dtype) - other->state.offset;
    if (!(beside > -TL_MIN_FMA_SAFE && beside - beside == 0))
        beside = beside < 0 ? -TL_MIN_FMA_SAFE : 0;
    if (base->row->compute_dtype != TL_FLOAT64) {
        center = (double)(float)center;
        beside = beside < (double)-FLT_MAX ? (double)-FLT_MAX : (double)(float)beside;
    }
    if (sum != 0)
        moment->sum[0] += ((moment->center - center) - (moment->beside - beside)) * sum;
    moment->center = center;
    moment->beside = beside;
}

/* Moves both states to where the elements [start, end) can be folded. Returns 0 if a sum is nan. */
static int refer(const tl_backend *backend, side *base, side *other, int64_t start, int64_t end, int base_astray,
                 int other_astray) {
    double maximum = maximum_of(backend, base, start, end), offset = other->state.offset;
    if (base_astray && !tl_lse_rebase(maximum, base->row->compute_dtype, &base->state))
        return 0;
    if (other_astray &&
        !tl_lse_rebase(maximum_of(backend, other, start, end), other->row->compute_dtype, &other->state))
        return 0;
    base->state.moment->beside -= other->state.offset - offset;
    center(backend, base, other, start, end, maximum);
    return 1;
}

static int begin(const tl_backend *backend, side *of, const tl_row *row, tl_moment *moment) {
    of->row = row;
    tl_chunk_invalidate(&of->buf);
    int64_t first = row->count < TL_CHUNK ? row->count : TL_CHUNK;
    return tl_lse_begin(maximum_of(backend, of, 0, first), row->compute_dtype, moment, &of->state);
}

/* Whether differences of the two may be beyond what they are folded in. */
static int is_far_out(const side *base, const side *other) {
    return (base->state.offset != 0 || other->state.offset != 0) && base->row->compute_dtype != TL_FLOAT64;
}

/* Returns 0 if the rows lie too far out for what they are folded in. */
static int diverge(const tl_backend *backend, const tl_row *base_row, const tl_row *other_row, double *divergence,
                   tl_cancel *cancel) {
    side base, other;
    tl_moment moment;
    int infinite = 0;
    *divergence = (double)NAN;
    if (!begin(backend, &base, base_row, &moment) || !begin(backend, &other, other_row, NULL))
        return 1;
    if (is_far_out(&base, &other))
        return 0;
    refer(backend, &base, &other, 0, base_row->count < TL_BLOCK ? base_row->count : TL_BLOCK, 0, 0);
    for (int64_t start = 0; start < base_row->count; start += TL_BLOCK) {
        int64_t end = base_row->count - start < TL_BLOCK ? base_row->count : start + TL_BLOCK;
        base.state.maximum = -(double)INFINITY;
        tl_lse_acc base_before = base.state, other_before = other.state;
        tl_moment moment_before = moment;
        int found = walk(backend, &base, &other, start, end);
        int base_astray = tl_sum_out_of_range(&base.state), other_astray = tl_sum_out_of_range(&other.state);
        if (TL_UNLIKELY(base_astray || other_astray || tl_moment_shift_stale(&base.state))) {
            base.state = base_before;
            other.state = other_before;
            moment = moment_before;
            if (!refer(backend, &base, &other, start, end, base_astray, other_astray))
                return 1;
            if (is_far_out(&base, &other))
                return 0;
            found = walk(backend, &base, &other, start, end);
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
        return 0; /* the differences are beyond a float */
    *divergence = mean - ((base_log - moment.center) - (other_log - moment.beside));
    if (infinite)
        *divergence = (double)INFINITY;
    else if (*divergence < 0)
        *divergence = 0;
    return 1;
}

double tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel) {
    double divergence;
    assert(base->count == other->count && base->compute_dtype == other->compute_dtype);
    if (diverge(backend, base, other, &divergence, cancel))
        return divergence;
    tl_row wide_base = *base, wide_other = *other;
    wide_base.compute_dtype = wide_other.compute_dtype = TL_FLOAT64;
    diverge(backend, &wide_base, &wide_other, &divergence, cancel);
    return divergence;
}
