/* Losses for class ids, relative to the target's logit: backends/nll_body.h has the formula. Rows that are far out, of
 * 1 class, or of more than TL_NLL_CLASSES, have no such loss; theirs comes from their logsumexp (tl_odds_of_block). */
#ifndef TOKENLOSS_NLL_H
#define TOKENLOSS_NLL_H

#include "row_block.h"
#include "superacc.h"

/* The target of each row is its excluded class. Returns a bit for each wanted row that has one and such a loss, for
 * which `of` is set. If rows were loaded into groups, `groups` becomes these. */
uint64_t tl_nll_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_nll *of, tl_groups *groups);

/* The same for rows in groups, scaled and capped. */
uint64_t tl_nll_of_groups(const tl_backend *backend, const tl_row_block *rows, tl_groups groups, tl_block_nll *of);

/* The loss of one row, which is left as it was where there is no such loss; returns whether there is. */
int tl_nll_of_row(const tl_backend *backend, const tl_row *row, int64_t target, double *nll);

/* Where the gradients of such rows go: native, as large as their logits. Each is multiplied by its scale. */
typedef struct {
    tl_row row; /* the first */
    ptrdiff_t apart;
    const double *scale;
} tl_plain_grads;

/* The losses of `count` rows of 2 to TL_FEW_CLASSES native logits, neither scaled nor capped, the first of which is
 * `row`. They lie `apart` bytes from each other; they or their classes are neighbours. What they share are z-loss and
 * smoothing, and weights of their targets are NULL if all are 1: there are none with smoothing and gradients. There is
 * room for whole groups of class ids, weights, scales and losses. Losses of rows whose id is TL_MASKED are 0, if there
 * may be some, and their gradients anything. Returns how many rows come before the first that is far out or has no
 * class, or, with gradients, before the TL_BLOCK_ROWS that have it, whose gradients are not written. */
size_t tl_plain_losses(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, const tl_loss *loss,
                       const int64_t *target, const double *weight, int some_masked, size_t count,
                       const tl_plain_grads *grads, double *values);

/* Adds the losses of some of such rows, which are a multiple of TL_GROUP and have no options, to a sum. Returns how
 * many were added: 0 if one of the first is far out, has no class, or a loss too small for bins. */
size_t tl_add_plain_losses(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, const int64_t *target,
                           size_t count, tl_superacc *sum);

/* As tl_plain_losses, for rows of more classes, up to TL_NLL_CLASSES, which are neighbours, without smoothing and
 * gradients. There is room for whole groups of losses; rows whose id is no class are not read. Sets a bit of `left` for
 * each row that has no such loss, and bits beyond the last row to 0. */
void tl_plain_losses_of_many(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, const tl_loss *loss,
                             const int64_t *target, const double *weight, size_t count, double *values,
                             uint64_t *left);

#endif
