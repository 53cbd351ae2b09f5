/* Logsumexp of a row in one pass (online softmax), whole or range by range, with or without one excluded class. */
#pragma once

#include "cancel.h"
#include "reduce.h"
#include "scalar_math.h"

_Static_assert(TL_CANCEL_INTERVAL % TL_BLOCK == 0, "cancellation is checked between blocks");

/* Accumulates a row except the class `excluded` (none if it is negative). The sum is nan if a nan or +inf was met. */
void tl_lse_row(const tl_backend *backend, const tl_row *row, int64_t excluded, tl_lse_acc *state, tl_cancel *cancel);

/* Accumulates the range [start, end) of a row after all ranges before it; with start = 0 it initialises the
 * accumulator. Only the range is read. The sum's range is checked every `block` elements: ranges must start at
 * multiples of it. */
void tl_lse_range(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block,
                  int64_t excluded, tl_lse_acc *state, tl_cancel *cancel);

/* logsumexp = offset + log. Kept apart, since the digits of `log` would be lost in the sum of a large offset. */
typedef struct {
    double offset, log;
} tl_lse;

TL_INLINE double tl_logsumexp(tl_lse of) { return of.offset + of.log; }

/* The logsumexp of an accumulated row, -inf of none. */
tl_lse tl_lse_finish(const tl_lse_acc *state, int compute_dtype);

/* log((1 - p) / p) of a class: the logsumexp of all others less its logit. nan if the logit is nan or +inf. */
TL_INLINE double tl_log_odds_against_lse(tl_lse others, double logit) {
    if (!(logit <= 0x1.fffffffffffffp1023)) /* +inf or nan */
        return (double)NAN;
    return (others.offset - logit) + others.log;
}

/* The logsumexp of all classes from the logsumexp of all but one, whose logit and log-odds are given. */
tl_lse tl_lse_add_class(tl_lse others, double logit, double log_odds);

/* Whether a logsumexp is so near 0, and its largest logit so near to it, that it is found from the sum of the others:
 * as that logit plus log1p of their odds, for which the row is accumulated once more without that class; whether the
 * lanes of an accumulator leave that open; and the logsumexp then, from the one that was found at first. Within
 * TL_NEAR_ZERO of 0 the error of 2e-7 that a logsumexp may have is more than a millionth of it. exp(-0.5) is 0.606, and
 * two classes cannot have more than half each. */
TL_INLINE int tl_is_near_zero(double logsumexp) { return tl_abs(logsumexp) < TL_NEAR_ZERO; }
TL_INLINE int tl_is_dominant(double logit, double logsumexp) { return logit > logsumexp - 0.5; }
int tl_may_be_dominated(const tl_lse_acc *state);
double tl_logsumexp_near_zero(const tl_backend *backend, const tl_row *row, double logsumexp, tl_cancel *cancel);

/* -- for kernels that accumulate block by block themselves --------------------------------------------------------- */

/* Initialises the accumulator of a row whose first chunk has this maximum; `moment` may be NULL. Returns 0 if the
 * maximum is +inf, and so the sum nan. */
int tl_lse_begin(double maximum, int dtype, tl_moment *moment, tl_lse_acc *state);

/* Rescales the sums to a reference exponent near this maximum (online softmax). Returns 0 as tl_lse_begin does. */
int tl_lse_rebase(double maximum, int dtype, tl_lse_acc *state);

/* True if the sum left [0.5, 2^36] or an exponent overflowed: restore the snapshot, rebase, add the block again. */
int tl_sum_out_of_range(const tl_lse_acc *state);

/* True if the maximum of the last block is more than 1 above the moment's shift: the shift is stale. */
TL_INLINE int tl_moment_shift_stale(const tl_lse_acc *state) { return state->maximum > state->moment->shift + 1; }

/* Re-centres the moment on a new maximum (less the offset), to avoid cancellation in x - shift for the classes that
 * carry the probability mass; of a divergence, the other row's moves along. */
void tl_moment_reshift(double maximum, double other_shift, int dtype, tl_lse_acc *state);

/* Accumulates the elements [start, end) except `excluded`, at most a block, and rebases where needed. Returns 0 if the
 * sum is nan, for a nan or +inf was met. */
int tl_lse_block(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t excluded,
                 tl_lse_acc *state, tl_chunk_buf *buf);

/* The moment divided by the sum: the mean of x - offset - shift under softmax(row). */
TL_INLINE double tl_moment_mean(const tl_lse_acc *state) {
    return tl_lanes_sum_compensated(state->moment->sum, state->moment->comp) /
           tl_lanes_sum_compensated(state->sum, state->comp);
}
