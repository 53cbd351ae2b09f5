/* How rows are walked, for the files that fold them. See logsumexp.c. */
#ifndef TOKENLOSS_WALK_H
#define TOKENLOSS_WALK_H

#include <assert.h>
#include <math.h>

#include "kernels.h"

/* The direct reduction x - n ln 2 is exact to |x| = 2^16, which holds every float16. Rows whose maximum lies farther
 * out are folded as x - offset, through buf. */
#define TL_MAX_EXACT_REDUCTION 65536.0

#define TL_CANCEL_INTERVAL (16 * TL_BLOCK) /* classes between two looks at whether the call was given up */

/* The scores as they are in memory. */
TL_INLINE tl_row tl_raw(const tl_row *row) {
    tl_row raw = *row;
    raw.logit_scale = 1;
    raw.softcap = raw.shift = 0;
    raw.compute_dtype = raw.dtype & ~TL_SWAPPED;
    return raw;
}

/* A granule of a row, copied where it cannot be folded in place. Of one row, whose granules are always gathered with
 * the same count and skip. */
typedef struct {
    union {
        uint16_t half[TL_CHUNK];
        float single[TL_CHUNK];
        double wide[TL_CHUNK];
    } at;
    int64_t start; /* the element that comes first; -1 at the beginning */
    double offset; /* what was subtracted */
    int dtype;
} tl_chunk_buf;

TL_INLINE void tl_chunk_invalidate(tl_chunk_buf *buf) {
    buf->start = buf->dtype = -1;
    buf->offset = 0;
}

/* The dtype in which a row of this offset is folded. */
TL_INLINE int tl_offset_dtype(int dtype, double offset) {
    return offset == 0 || dtype == TL_FLOAT64 ? dtype : TL_FLOAT32;
}

/* Whether the elements can be folded where they are. */
TL_INLINE int tl_can_read_in_place(const tl_row *row, int dtype, double offset) {
    return row->dtype == dtype && row->stride == tl_itemsize(dtype) && offset == 0 && !tl_is_scaled_or_capped(row);
}

/* Copies elements [start, start + count) into buf as this dtype, less the offset and without the one at `skip`,
 * padded with -inf as folds want it. */
void tl_load_chunk(const tl_backend *backend, const tl_row *row, int64_t start, int64_t count, int64_t skip,
                   double offset, int dtype, tl_chunk_buf *buf);

/* Folds the elements [start, end) but for `skip`: in place where they can be, else granule by granule from buf. */
void tl_reduce_range(const tl_backend *backend, tl_reduce_kind fold, const tl_row *row, int64_t start, int64_t end,
                     int64_t skip, tl_lse_acc *state, tl_chunk_buf *buf);

/* Begins the state of a row whose first granule has this maximum; `moment` may be NULL. Returns 0 if the row's sum is
 * nan for it. */
int tl_lse_begin(double maximum, int dtype, tl_moment *moment, tl_lse_acc *state);

double tl_maximum_between(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                          tl_chunk_buf *buf);

/* Which elements of [start, end), a block at most, are not below the threshold, as they are in memory: their distances
 * from the start, and how many. */
int64_t tl_indices_ge(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold,
                      int32_t *found);

/* The first of them; end if there is none. */
int64_t tl_find(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold);

/* Moves the state to a reference near this maximum. Returns 0 if that is +inf, and so the row's sum nan. */
int tl_lse_rebase(double maximum, int dtype, tl_lse_acc *state);

/* Whether a state's sum is far from its reference, so that the last block must be folded again. */
int tl_sum_out_of_range(const tl_lse_acc *state);

/* Whether the maximum of the last block lies too high above the moment's center, and it must be folded again. */
TL_INLINE int tl_moment_shift_stale(const tl_lse_acc *state) { return state->maximum > state->moment->center + 1; }

/* Moves the moment's center to a maximum, less the offset, so that little is lost in distances of scores that weigh. */
void tl_moment_reshift(double maximum, int dtype, tl_lse_acc *state);

/* Folds the elements [start, end) but for `skip`, at most a block. Returns 0 if the row's sum is known to be nan, for a
 * nan or +inf was met. */
int tl_lse_block(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                 tl_lse_acc *state, tl_chunk_buf *buf);

/* The state of all classes from one that leaves a class out, where lanes are shared. */
tl_lse_acc tl_with_all(const tl_lse_acc *state);

double tl_lanes_sum_fast(const double *lanes);

/* The sum of 16 lanes, and of what was lost in them. */
double tl_lanes_sum_compensated(const double *lanes, const double *lost);

/* log(sum) of a state, less its offset. */
double tl_lse_log(const tl_lse_acc *state, const tl_row *row);

/* As tl_log_odds_against and tl_lse_finish_with, from the lse of the rest. */
TL_INLINE double tl_log_odds_against_lse(tl_lse rest, double logit) {
    if (!(logit <= 0x1.fffffffffffffp1023)) /* +inf or nan */
        return (double)NAN;
    return (rest.offset - logit) + rest.log;
}
tl_lse tl_lse_add_class(tl_lse rest, double logit, double gap);

/* The moment over the sum: the mean of what the terms were multiplied by. */
double tl_moment_mean(const tl_lse_acc *state);

/* The share of a class. */
TL_INLINE double tl_soft_target_at(const tl_soft_target *soft, int64_t k) {
    double share = soft->eps_over_v;
    if (soft->mass)
        share += soft->one_minus_eps * tl_load(soft->mass + k * soft->mass_stride, soft->mass_dtype);
    if (!soft->weight || share == 0)
        return share;
    share *= tl_load(soft->weight + k * soft->weight_stride, soft->weight_dtype);
    return share == 0 ? -0.0 : share;
}

#endif
