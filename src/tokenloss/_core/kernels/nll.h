/* Losses for class ids, relative to the target's logit: backends/nll_body.h has the formula. Rows that are far out, of
 * 1 class, or of more than tl_nll_classes, have no such loss; theirs comes from their logsumexp (tl_odds_of_block). */
#pragma once

#include "row_block.h"
#include "superacc.h"

/* The most classes of a row whose loss is relative to its target, for a compute dtype: what a row costs beyond its
 * classes is less for such a loss, which no longer counts then. */
TL_INLINE int64_t tl_nll_classes(int dtype) { return dtype == TL_FLOAT64 ? TL_BLOCK : TL_NLL_CLASSES; }

/* The target of each row is its excluded class. Returns a bit for each wanted row that has one and such a loss, for
 * which `of` is set. If rows were loaded into groups, `groups` becomes these. */
uint64_t tl_nll_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_nll *of, tl_groups *groups);

/* The same for rows in groups, scaled and capped. */
uint64_t tl_nll_of_groups(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups groups,
                          tl_block_nll *of);

/* The same relative to each row's largest logit: its sum with the loss is the logsumexp. Overwrites excluded classes;
 * sets nan where there is no such loss, as in rows that are scaled or capped: capped logits can be equal. */
uint64_t tl_nll_of_largest(const tl_backend *backend, tl_row_block *rows, tl_block_nll *of);

/* The loss of one row, which is left as it was where there is no such loss; returns whether there is. */
int tl_nll_of_row(const tl_backend *backend, const tl_row *row, int64_t target, double *nll);

/* Rows of 2 to tl_nll_classes logits, `apart` bytes from each other. For class ids, those of more than TL_FEW_CLASSES
 * are native, neither scaled nor capped, and contiguous or neighbours, of halves of TL_MASSES_CLASSES classes at most.
 * With smoothing, that is the most, or TL_CHUNK of other neighbours. With masses of their own, which are float64 where
 * logits are computed in it and only there, rows of any layout have TL_MASSES_CLASSES classes at most (float64:
 * TL_FEW_CLASSES); targets only say which rows are masked. Gradients are native, of the dtype of the logits, and
 * contiguous or neighbours; logits are then neither scaled nor capped. For class ids, these are contiguous or
 * neighbours, too, of TL_FEW_CLASSES at most, or of TL_MASSES_CLASSES with weights and smoothing. Arrays of one number
 * per row have room for whole groups. */
typedef struct {
    tl_row row; /* the first */
    ptrdiff_t apart;
    const tl_loss *loss; /* z-loss, smoothing, and class weights of masses, which all share */
    tl_lane_losses given; /* ids, masses and weights */
    int sums_only; /* whether only the sum of losses is wanted, without options; becomes 0 if bins do not hold it */
    double *values; /* where losses are written, 0 where masked, or NULL */
    tl_row grad;    /* the first gradient; the next ones are `grad_apart` bytes from it */
    ptrdiff_t grad_apart;
    const double *grad_scale; /* of each row, NULL without gradients */
    tl_row mass; /* the first row of masses, whose count is 0 without; the next ones are `mass_apart` bytes from it */
    ptrdiff_t mass_apart;
} tl_plain_rows;

#define TL_PLAIN_ROWS 256 /* at a time, unless only the sum is wanted */

/* Adds losses and, if there are any, their weights to sums; counts those that are not masked. Returns how many rows were
 * taken; stops after TL_PLAIN_ROWS, or after the first TL_BLOCK_ROWS with rows that it cannot reduce. Sets a bit for
 * each of these: far out or without a class, or, with gradients, all. Gradients of masked rows may be anything. */
size_t tl_add_plain_losses(const tl_backend *backend, tl_plain_rows *of, size_t count, tl_superacc *sum,
                           tl_superacc *weights, int64_t *unmasked, uint64_t *left);
