/* The loss of a whole row and its gradient, made of the functions that blocks of rows use for rows which are not short:
 * tests hold blocks and ranges to it. */
#ifndef TOKENLOSS_TESTS_LOSS_OF_ROW_H
#define TOKENLOSS_TESTS_LOSS_OF_ROW_H

#include "kernels.h"
#include "scalar_math.h"

/* The loss for a class id, given the logsumexp of all other classes. */
TL_INLINE double loss_of_class(const tl_backend *backend, const tl_row *logits, const tl_loss *loss,
                               const tl_lse_acc *others, tl_cancel *cancel) {
    tl_class_odds odds = {.logit = tl_logit_at(backend, logits, loss->target)};
    tl_lse lse = tl_lse_finish(others, logits);
    odds.log_odds = tl_log_odds_against_lse(lse, odds.logit);
    odds.nll = tl_softplus(odds.log_odds);
    if (loss->soft.eps_over_v != 0 || loss->z_loss != 0 || loss->grad)
        odds.lse = tl_lse_add_class(lse, odds.logit, odds.log_odds);
    double value = tl_loss_of_odds(backend, logits, loss, &odds, NULL, cancel);
    if (loss->grad)
        tl_write_class_gradient(backend, logits, loss, &odds, cancel);
    return value;
}

/* The loss for a distribution. */
TL_INLINE double loss_of_distribution(const tl_backend *backend, const tl_row *logits, const tl_loss *loss,
                                      tl_cancel *cancel) {
    int64_t nonzero, argmax = tl_soft_target_argmax(backend, &loss->soft, logits->count, &nonzero, cancel);
    tl_class_odds odds = {0};
    tl_lse_acc others;
    tl_lse_row(backend, logits, argmax, &others, cancel);
    odds.lse = tl_lse_finish(&others, logits);
    if (argmax >= 0) {
        odds.logit = tl_logit_at(backend, logits, argmax);
        odds.log_odds = tl_log_odds_against_lse(odds.lse, odds.logit);
        odds.nll = tl_softplus(odds.log_odds);
        odds.lse = tl_lse_add_class(odds.lse, odds.logit, odds.log_odds);
    }
    double softmax_factor, value = tl_loss_of_masses(backend, logits, loss, argmax, &odds, &softmax_factor, cancel);
    if (loss->grad)
        tl_write_gradient(backend, logits, loss, odds.lse, softmax_factor, cancel);
    return value;
}

TL_INLINE double loss_of_row(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, tl_cancel *cancel) {
    tl_lse_acc others;
    if (loss->target < 0)
        return loss_of_distribution(backend, logits, loss, cancel);
    tl_lse_row(backend, logits, loss->target, &others, cancel);
    return loss_of_class(backend, logits, loss, &others, cancel);
}

#endif
