/* The loss of a whole row, its gradient and its logsumexp, made of the functions that blocks of rows use for rows which
 * are not short, and of a block of one row: tests hold blocks and ranges to them. */
#ifndef TOKENLOSS_TESTS_LOSS_OF_ROW_H
#define TOKENLOSS_TESTS_LOSS_OF_ROW_H

#include "kernels.h"
#include "scalar_math.h"

/* The loss, given the odds of its class, and its gradient. */
TL_INLINE double loss_of_odds(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, int64_t excluded,
                              tl_class_odds odds, tl_cancel *cancel) {
    double mass, value = tl_loss_of_odds(backend, logits, loss, excluded, &odds, &mass, cancel);
    if (loss->grad)
        tl_write_gradient(backend, logits, loss, &odds, mass, cancel);
    return value;
}

/* The loss for a class id, given the accumulator of all other classes: as of ranges, of long rows and of far ones. */
TL_INLINE double loss_of_class(const tl_backend *backend, const tl_row *logits, const tl_loss *loss,
                               const tl_lse_acc *others, tl_cancel *cancel) {
    tl_class_odds odds = {.logit = tl_logit_at(backend, logits, loss->target)};
    tl_lse lse = tl_lse_finish(others, logits->compute_dtype);
    double log_odds = tl_log_odds_against_lse(lse, odds.logit);
    odds.nll = tl_softplus(log_odds);
    odds.odds_against = tl_exp(log_odds);
    odds.lse = tl_lse_add_class(lse, odds.logit, log_odds);
    return loss_of_odds(backend, logits, loss, loss->target, odds, cancel);
}

/* A class of a row against the others; if it is -1, the logsumexp alone. */
TL_INLINE tl_class_odds odds_of_row(const tl_backend *backend, const tl_row *logits, int64_t target,
                                    tl_cancel *cancel) {
    tl_row_block row = {.row = *logits, .count = 1, .has_excluded = 1, .wanted = 1};
    tl_block_lse lse;
    row.data[0] = logits->data;
    row.excluded[0] = target;
    tl_odds_of_block(backend, &row, &lse, cancel);
    return tl_odds_at(&row, &lse, 0);
}

/* The logsumexp of a row: its largest logit plus the loss relative to it, if there is such a loss; that logit, if the
 * others add nothing to it; or from the sum of all, as of rows that are longer, far out, scaled or capped. */
TL_INLINE double logsumexp_of_row(const tl_backend *backend, const tl_row *logits, tl_cancel *cancel) {
    double largest = -(double)INFINITY, nll, others = 0;
    int64_t target = 0;
    for (int64_t k = 0; k < logits->count; k++) {
        const double logit = tl_logit_at(backend, logits, k);
        target = logit > largest ? k : target;
        largest = logit > largest ? logit : largest;
    }
    const int is_relative = 2 <= logits->count && logits->count <= tl_nll_classes(logits->compute_dtype) &&
                            !tl_is_transformed(logits);
    if (is_relative && tl_nll_of_row(backend, logits, target, &nll))
        return 0 + (largest + nll);
    for (int64_t k = 0; k < logits->count; k++)
        others += k == target ? 0 : tl_exp(tl_logit_at(backend, logits, k) - largest);
    const double size = tl_abs(largest);
    if (is_relative && others < 0x1p-60 && 0x1p-6 < size && size < TL_MAX_EXACT_REDUCTION - 0x1p-6)
        return 0 + largest;
    tl_lse_acc state;
    tl_lse_row(backend, logits, -1, &state, cancel);
    const double logsumexp = tl_logsumexp(tl_lse_finish(&state, logits->compute_dtype));
    return tl_may_be_dominated(&state) ? tl_logsumexp_near_zero(backend, logits, logsumexp, cancel) : logsumexp;
}

TL_INLINE double loss_of_row(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, tl_cancel *cancel) {
    int64_t excluded = loss->target;
    if (excluded < 0)
        excluded = tl_soft_target_argmax(backend, &loss->soft, logits->count, cancel);
    return loss_of_odds(backend, logits, loss, excluded, odds_of_row(backend, logits, excluded, cancel), cancel);
}

#endif
