/* How rows are walked, for the files that fold them. See fold.c. */
#ifndef TOKENLOSS_WALK_H
#define TOKENLOSS_WALK_H

#include <assert.h>
#include <math.h>

#include "fold.h"

/* The direct reduction x - n ln 2 is exact to |x| = 2^16, which holds every float16. Rows whose maximum lies farther
 * out are folded as x - offset, through scratch. */
#define TL_FAR_OUT 65536.0

#define TL_PAUSE (16 * TL_BLOCK) /* classes between two looks at whether the call was given up */

/* The scores as they are in memory. */
TL_INLINE tl_row tl_raw(const tl_row *row) {
    tl_row raw = *row;
    raw.scale = 1;
    raw.cap = raw.shift = 0;
    raw.folded = raw.dtype & ~TL_SWAPPED;
    return raw;
}

/* A granule of a row, copied where it cannot be folded in place. Of one row, whose granules are always gathered with the same
 * count and skip. */
typedef struct {
    union {
        uint16_t half[TL_GRANULE];
        float single[TL_GRANULE];
        double wide[TL_GRANULE];
    } at;
    int64_t start; /* the element that comes first; -1 at the beginning */
    double offset; /* what was subtracted */
    int dtype;
} tl_scratch;

TL_INLINE void tl_clear(tl_scratch *scratch) {
    scratch->start = scratch->dtype = -1;
    scratch->offset = 0;
}

/* The dtype in which a row of this offset is folded. */
TL_INLINE int tl_offset_dtype(int dtype, double offset) {
    return offset == 0 || dtype == TL_FLOAT64 ? dtype : TL_FLOAT32;
}

/* Whether the elements can be folded where they are. */
TL_INLINE int tl_in_place(const tl_row *row, int dtype, double offset) {
    return row->dtype == dtype && row->stride == tl_itemsize(dtype) && offset == 0 && !tl_squashed(row);
}

/* Copies elements [start, start + count) into scratch as this dtype, less the offset and without the one at `skip`,
 * padded with -inf as folds want it. */
void tl_gather(const tl_backend *backend, const tl_row *row, int64_t start, int64_t count, int64_t skip, double offset,
               int dtype, tl_scratch *scratch);

/* Folds the elements [start, end) but for `skip`: in place where they can be, else granule by granule from scratch. */
void tl_walk(const tl_backend *backend, tl_fold_id fold, const tl_row *row, int64_t start, int64_t end, int64_t skip,
             tl_state *state, tl_scratch *scratch);

/* Begins the state of a row whose first granule has this maximum; `moment` may be NULL. Returns 0 if the row's sum is
 * nan for it. */
int tl_begin(double maximum, int dtype, tl_moment *moment, tl_state *state);

double tl_maximum_between(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                          tl_scratch *scratch);

/* Which elements of [start, end), a block at most, are not below the threshold, as they are in memory: their distances
 * from the start, and how many. */
int64_t tl_collect(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold,
                   int32_t *found);

/* The first of them; end if there is none. */
int64_t tl_find(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold);

/* Moves the state to a reference near this maximum. Returns 0 if that is +inf, and so the row's sum nan. */
int tl_refer_to(double maximum, int dtype, tl_state *state);

/* Whether a state's sum is far from its reference, so that the last block must be folded again. */
int tl_astray(const tl_state *state);

/* Whether the maximum of the last block lies too high above the moment's center, and it must be folded again. */
TL_INLINE int tl_off_center(const tl_state *state) { return state->maximum > state->moment->center + 1; }

/* Moves the moment's center to a maximum, less the offset, so that little is lost in distances of scores that weigh. */
void tl_center(double maximum, int dtype, tl_state *state);

/* Folds the elements [start, end) but for `skip`, at most a block. Returns 0 if the row's sum is known to be nan, for a
 * nan or +inf was met. */
int tl_fold_block(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                  tl_state *state, tl_scratch *scratch);

/* The state of all classes from one that leaves a class out, where lanes are shared. */
tl_state tl_with_all(const tl_state *state);

double tl_total(const double *lanes);

/* The sum of 16 lanes, and of what was lost in them. */
double tl_sum_of(const double *lanes, const double *lost);

/* log(sum) of a state, less its offset. */
double tl_log_of_sum(const tl_state *state, const tl_row *row);

/* As tl_gap and tl_normalize_with, from the normalizer of the rest. */
TL_INLINE double tl_gap_to(tl_normalizer rest, double logit) {
    if (!(logit <= 0x1.fffffffffffffp1023)) /* +inf or nan */
        return (double)NAN;
    return (rest.offset - logit) + rest.log;
}
tl_normalizer tl_add_logit(tl_normalizer rest, double logit, double gap);

/* The moment over the sum: the mean of what the terms were multiplied by. */
double tl_mean(const tl_state *state);

/* The share of a class. */
TL_INLINE double tl_share_of(const tl_shares *shares, int64_t k) {
    double share = shares->uniform;
    if (shares->share)
        share += shares->kept * tl_load(shares->share + k * shares->share_stride, shares->share_dtype);
    if (!shares->weight || share == 0)
        return share;
    share *= tl_load(shares->weight + k * shares->weight_stride, shares->weight_dtype);
    return share == 0 ? -0.0 : share;
}

#endif
