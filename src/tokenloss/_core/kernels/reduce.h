/* Reductions over a range of a row, and sums of lanes: what the kernels share. */
#pragma once

#include "row.h"

/* Adds the elements [start, end) except `excluded` to the accumulator: in place where possible, else chunk by chunk. */
void tl_reduce_range(const tl_backend *backend, tl_reduce_kind kind, const tl_row *row, int64_t start, int64_t end,
                     int64_t excluded, tl_lse_acc *state, tl_chunk_buf *buf);

/* The largest logit of [start, end) except `excluded`; -inf of none, nan is excluded. */
double tl_maximum_between(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t excluded,
                          tl_chunk_buf *buf);

/* The same of a whole row. It runs at the speed of memory: the yardstick of the benchmarks. */
double tl_maximum(const tl_backend *backend, const tl_row *row);

/* Finds logits >= threshold in [start, end), a block at most: writes their distances from `start`, returns how many. */
int64_t tl_indices_ge(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold,
                      int32_t *found);

/* The first of them; `end` if there is none. The other searches a whole row of any length, and returns 0 if no element
 * reaches the threshold. */
int64_t tl_find(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold);
int64_t tl_find_first(const tl_backend *backend, const tl_row *row, double threshold);

/* The sum of 16 lanes: as a tree, for checks whether it is nan, zero or in range; one lane after another, where results
 * depend on its last bits; and with compensation for its roundings and those of the lanes. */
double tl_lanes_sum_fast(const double *lanes);
double tl_lanes_sum_in_order(const double *lanes);
double tl_lanes_sum_compensated(const double *lanes, const double *errors);

/* The last one, or without the roundings if these are nan, as for an infinite sum. */
double tl_lanes_sum_or_infinite(const double *lanes, const double *errors);
