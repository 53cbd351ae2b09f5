#include "divergences.h"

#include <assert.h>

#include "logsumexp.h"
#include "reduce.h"
#include "scalar_math.h"

/* What the kernel subtracts from the logits of a row. Of float32, exponentials are computed for the float nearest to
 * ln 2, here as there. */
static tl_divergence_side side_of(double log, int dtype) {
    tl_divergence_side of = {log, 0, 0};
    const double rounder = 0x1.8p52;
    if (dtype == TL_FLOAT64) {
        of.quarters = (log * (4 * TL_LOG2E) + rounder) - rounder;
        of.rest = (log - of.quarters * (TL_LN2_HIGH / 4)) - of.quarters * (TL_LN2_LOW / 4);
    } else {
        of.quarters = (log * (4 / TL_FLOAT_LN2) + rounder) - rounder;
        of.rest = log - of.quarters * (TL_FLOAT_LN2 / 4);
    }
    return of;
}

/* Short rows are computed in double: where all of few terms are rounded alike, floats would be wrong by 3e-7. */
void tl_divergences_begin(tl_lse base, tl_lse other, int64_t count, int dtype, int wanted,
                          tl_divergence_state *state) {
    const int is_wide = dtype == TL_FLOAT64 || count <= TL_SHORT_ROW || base.offset != 0 || other.offset != 0;
    memset(state, 0, sizeof *state);
    state->base_offset = base.offset;
    state->offset = other.offset;
    state->dtype = is_wide ? TL_FLOAT64 : TL_FLOAT32;
    state->has_softmaxes = base.log - base.log == 0 && other.log - other.log == 0;
    state->sums.wanted = wanted;
    state->sums.base = side_of(base.log, state->dtype);
    state->sums.other = side_of(other.log, state->dtype);
}

void tl_divergences_range(const tl_backend *backend, const tl_row *base, const tl_row *other, int64_t start,
                          int64_t end, tl_divergence_state *state, tl_cancel *cancel) {
    const int dtype = state->dtype, in_place = tl_can_read_in_place(base, dtype, state->base_offset) &&
                                               tl_can_read_in_place(other, dtype, state->offset);
    tl_chunk_buf bufs[2];
    assert(start % TL_CHUNK == 0 && end <= base->count && base->count == other->count);
    tl_chunk_invalidate(&bufs[0]);
    tl_chunk_invalidate(&bufs[1]);
    for (int64_t next; start < end && state->has_softmaxes; start = next) {
        int64_t left = end - start < TL_BLOCK ? end - start : TL_BLOCK;
        int64_t count = in_place ? left / TL_CHUNK * TL_CHUNK : 0;
        const void *x = base->data + start * base->stride, *y = other->data + start * other->stride;
        if (count == 0) {
            count = left < TL_CHUNK ? left : TL_CHUNK;
            tl_load_chunk(backend, base, start, count, -1, state->base_offset, dtype, &bufs[0]);
            tl_load_chunk(backend, other, start, count, -1, state->offset, dtype, &bufs[1]);
            x = &bufs[0].at;
            y = &bufs[1].at;
        }
        next = start + count;
        if (TL_UNLIKELY(backend->divergences[dtype](x, y, (size_t)tl_padded(count), &state->sums)))
            state->is_infinite |= tl_has_infinite_kl(backend, other, base, start, next);
        if (next % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            return;
    }
}

/* The square root of a number in [0, 1]: without libm, the same everywhere. */
static double root_of(double x) {
    double root = tl_exp(0.5 * tl_log(x));
    return root > 0 ? 0.5 * (root + x / root) : 0;
}

static double within(double value, double most) {
    return value < 0 ? 0 : value > most ? most : value;
}

int tl_divergences_end(const tl_divergence_state *state, tl_divergences *found) {
    const tl_divergence_acc *acc = &state->sums;
    double sum[TL_DIVERGENCE_SUMS];
    if (!state->has_softmaxes) {
        *found = (tl_divergences){(double)NAN, (double)NAN, (double)NAN, (double)NAN};
        if (acc->base.log == -(double)INFINITY && acc->other.log - acc->other.log == 0)
            found->reverse_kl = (double)INFINITY; /* all classes of the base are impossible */
        return 1;
    }
    for (int k = 0; k < TL_DIVERGENCE_SUMS; k++)
        sum[k] = tl_lanes_sum_compensated(acc->sum[k], acc->comp[k]);
    const double both = sum[TL_SUM_OF_BOTH];
    double reverse_kl = 2 * sum[TL_SUM_OF_REVERSE_KL] / both;
    if (!state->is_infinite && reverse_kl - reverse_kl != 0 && state->dtype != TL_FLOAT64)
        return 0;
    found->reverse_kl = state->is_infinite ? (double)INFINITY : reverse_kl < 0 ? 0 : reverse_kl;
    found->js = within(sum[TL_SUM_OF_JS] / both, TL_LN2);
    found->tv = within(2 * sum[TL_SUM_OF_TV] / both, 1);
    found->hellinger = within(root_of(within(2 * sum[TL_SUM_OF_HELLINGER] / both, 1)), 1);
    return 1;
}

tl_divergences tl_divergences_of(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_lse base_lse,
                                 tl_lse lse, int wanted, tl_cancel *cancel) {
    tl_divergence_state state;
    tl_divergences found;
    for (int dtype = base->compute_dtype;; dtype = TL_FLOAT64) {
        tl_divergences_begin(base_lse, lse, base->count, dtype, wanted, &state);
        tl_divergences_range(backend, base, other, 0, base->count, &state, cancel);
        if (tl_divergences_end(&state, &found))
            return found;
    }
}
