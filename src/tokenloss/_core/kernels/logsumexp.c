#include "logsumexp.h"

/* Bounds of a sum relative to its reference exponent. A sum that contains the term of its reference is above 0.5. A
 * smaller one means a reference above all logits, as a first chunk of -inf leaves. Above 2^36, moments may overflow. */
#define SUM_UNDERFLOW 0.5
#define SUM_OVERFLOW 0x1p36

/* Classes of a row that are added before the sum is looked at, as long as it stays in range: a few blocks. */
#define AT_ONCE (4 * TL_BLOCK)

#define DOMINANT_FRACTION 0.6 /* of a sum: the least that the lane of a class with most of it holds */

void tl_moment_reshift(double maximum, double other_shift, int dtype, tl_lse_acc *state) {
    tl_moment *moment = state->moment;
    double shift = dtype == TL_FLOAT64 ? maximum : (double)(float)maximum, sum = tl_lanes_sum_in_order(state->sum);
    if (sum != 0)
        moment->sum[0] += ((moment->shift - shift) - (moment->other_shift - other_shift)) * sum;
    moment->shift = shift;
    moment->other_shift = other_shift;
}

int tl_lse_rebase(double maximum, int dtype, tl_lse_acc *state) {
    if (maximum == -(double)INFINITY)
        return 1;
    if (maximum == (double)INFINITY) {
        state->sum[0] = (double)NAN;
        return 0;
    }
    double offset = tl_abs(maximum) > TL_MAX_EXACT_REDUCTION ? maximum : 0, moved = offset - state->offset;
    int64_t exponent = offset == 0 ? (int64_t)tl_nearest(maximum * TL_LOG2E) : 0;
    assert(exponent > -(1 << 17) && exponent < 1 << 17); /* TL_MAX_EXACT_REDUCTION / ln 2, and all in a float */
    if (tl_lanes_sum_fast(state->sum) != 0) {
        int64_t drop = state->ref_exp - exponent;
        double factor = moved == 0 ? tl_scale(1, drop) : tl_exp((double)drop / TL_LOG2E - moved);
        for (int i = 0; i < 16; i++) {
            state->sum[i] *= factor;
            state->comp[i] *= factor;
            if (state->moment) {
                state->moment->sum[i] *= factor;
                state->moment->comp[i] *= factor;
            }
        }
    }
    state->offset = offset;
    state->ref_exp = exponent;
    state->exp_overflow = state->clamps = 0;
    if (state->moment) {
        state->moment->shift -= moved;
        tl_moment_reshift(maximum - offset, state->moment->other_shift, dtype, state);
    }
    return 1;
}

int tl_lse_begin(double maximum, int dtype, tl_moment *moment, tl_lse_acc *state) {
    memset(state, 0, sizeof *state);
    if (moment)
        memset(moment, 0, sizeof *moment);
    state->moment = moment;
    return tl_lse_rebase(maximum, dtype, state);
}

int tl_sum_out_of_range(const tl_lse_acc *state) {
    double total = tl_lanes_sum_fast(state->sum);
    return !(total >= SUM_UNDERFLOW && total <= SUM_OVERFLOW) || state->exp_overflow;
}

int tl_lse_block(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t excluded,
                 tl_lse_acc *state, tl_chunk_buf *buf) {
    tl_reduce_kind kind = TL_REDUCE_SUMEXP;
    tl_moment moment_before;
    if (state->moment) {
        kind = TL_REDUCE_MOMENT;
        state->maximum = -(double)INFINITY;
        state->count_ge = 0;
        moment_before = *state->moment;
    }
    const tl_lse_acc before = *state;
    tl_reduce_range(backend, kind, row, start, end, excluded, state, buf);
    int out_of_range = tl_sum_out_of_range(state), is_stale = state->moment && tl_moment_shift_stale(state);
    if (TL_UNLIKELY(out_of_range || is_stale)) {
        double maximum = state->maximum;
        *state = before;
        if (state->moment)
            *state->moment = moment_before;
        if (!out_of_range)
            tl_moment_reshift(maximum, 0, tl_offset_dtype(row->compute_dtype, state->offset), state);
        else if (!tl_lse_rebase(tl_maximum_between(backend, row, start, end, excluded, buf), row->compute_dtype, state))
            return 0;
        tl_reduce_range(backend, kind, row, start, end, excluded, state, buf);
    }
    double sum = tl_lanes_sum_fast(state->sum);
    return sum == sum;
}

/* Begins the accumulator of a row. The maximum of the first chunk, which is kept, is the reference of most rows. */
static int begin(const tl_backend *backend, const tl_row *row, int64_t excluded, tl_lse_acc *state, tl_chunk_buf *buf) {
    tl_chunk_invalidate(buf);
    int64_t first = row->count < TL_CHUNK ? row->count : TL_CHUNK;
    double maximum = tl_maximum_between(backend, row, 0, first, excluded, buf);
    int valid = tl_lse_begin(maximum, row->compute_dtype, NULL, state);
    state->maximum = maximum;
    return valid;
}

void tl_lse_range(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block,
                  int64_t excluded, tl_lse_acc *state, tl_cancel *cancel) {
    tl_chunk_buf buf;
    int valid;
    assert(start % block == 0 && block <= TL_BLOCK && excluded < row->count);
    if (start == 0) {
        valid = begin(backend, row, excluded, state, &buf);
    } else {
        double sum = tl_lanes_sum_fast(state->sum);
        valid = sum == sum;
        tl_chunk_invalidate(&buf);
    }
    for (int64_t next; valid && start < end; start = next) {
        next = end - start < block ? end : start + block;
        valid = tl_lse_block(backend, row, start, next, excluded, state, &buf);
        if (next % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            return;
    }
}

void tl_lse_row(const tl_backend *backend, const tl_row *row, int64_t excluded, tl_lse_acc *state, tl_cancel *cancel) {
    tl_chunk_buf buf;
    int64_t start = 0;
    int in_range = begin(backend, row, excluded, state, &buf) && state->maximum > -(double)INFINITY;
    /* the sum grows: if it is in range after several blocks, it was after each of them */
    for (int64_t next; in_range && start < row->count; start = in_range ? next : start) {
        const tl_lse_acc before = *state;
        next = row->count - start < AT_ONCE ? row->count : start + AT_ONCE;
        tl_reduce_range(backend, TL_REDUCE_SUMEXP, row, start, next, excluded, state, &buf);
        in_range = !tl_sum_out_of_range(state);
        if (!in_range)
            *state = before;
        if (next % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            return;
    }
    if (!in_range)
        tl_lse_range(backend, row, start, row->count, TL_BLOCK, excluded, state, cancel);
}

tl_lse tl_lse_finish(const tl_lse_acc *state, int compute_dtype) {
    double sum = tl_lanes_sum_compensated(state->sum, state->comp);
    return (tl_lse){state->offset, tl_log_of_sum(sum, (double)state->ref_exp, compute_dtype)};
}

tl_lse tl_lse_add_class(tl_lse others, double logit, double log_odds) {
    tl_lse lse = {logit, tl_softplus(log_odds)};
    if (log_odds > 0 || logit == -(double)INFINITY) {
        lse = others;
        if (log_odds > 0)
            lse.log += tl_softplus(-log_odds);
    }
    return lse;
}

int tl_may_be_dominated(const tl_lse_acc *state) {
    double most = 0;
    for (int i = 0; i < 16; i++)
        most = state->sum[i] > most ? state->sum[i] : most;
    return !(most < DOMINANT_FRACTION * tl_lanes_sum_in_order(state->sum));
}

double tl_logsumexp_near_zero(const tl_backend *backend, const tl_row *row, double logsumexp, tl_cancel *cancel) {
    const tl_row raw = tl_raw(row);
    tl_lse_acc others;
    if (!tl_is_near_zero(logsumexp))
        return logsumexp;
    const double maximum = tl_maximum(backend, &raw), logit = tl_transformed(backend, row, maximum);
    if (!tl_is_dominant(logit, logsumexp))
        return logsumexp;
    tl_lse_row(backend, row, tl_find_first(backend, &raw, maximum), &others, cancel);
    tl_lse lse = tl_lse_finish(&others, row->compute_dtype);
    return tl_logsumexp(tl_lse_add_class(lse, logit, tl_log_odds_against_lse(lse, logit)));
}
