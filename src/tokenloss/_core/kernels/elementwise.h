/* What is written for each class of a row: softmax, log_softmax and the gradient of the loss. */
#ifndef TOKENLOSS_ELEMENTWISE_H
#define TOKENLOSS_ELEMENTWISE_H

#include "logsumexp.h"
#include "soft_targets.h"

/* Writes softmax(row) or log_softmax(row) to `out`, of the row's count and dtype, perhaps the row itself. `large` says
 * that the results of the whole call do not fit in the caches. */
void tl_softmax(const tl_backend *backend, const tl_row *row, tl_lse lse, const tl_row *out, int large,
                tl_cancel *cancel);
void tl_log_softmax(const tl_backend *backend, const tl_row *row, tl_lse lse, const tl_row *out, int large,
                    tl_cancel *cancel);

/* The gradient of a loss for the raw logit of a class: loss.h has the formula. `softmax_factor` multiplies its
 * probability, `mass` is its target mass, and `softcap_grad` that of tl_softcap_grad. */
TL_INLINE double tl_gradient_of_class(double grad_scale, double softmax_factor, double probability, double mass,
                                      double softcap_grad) {
    return grad_scale * (softmax_factor * probability - mass) * softcap_grad;
}

/* The same where masses are equal and logits neither scaled nor capped: factor probability - subtrahend. */
typedef struct {
    double factor, subtrahend;
} tl_plain_gradient;
TL_INLINE tl_plain_gradient tl_plain_gradient_of(double grad_scale, double softmax_factor, double mass) {
    tl_plain_gradient plain = {grad_scale * softmax_factor, grad_scale * mass};
    return plain;
}

/* Writes the gradients of all classes of a row. */
void tl_gradient(const tl_backend *backend, const tl_row *row, tl_lse lse, double grad_scale, double softmax_factor,
                 const tl_soft_target *soft, const tl_row *out, int large, tl_cancel *cancel);

/* d logit / d raw logit, from the logit. */
double tl_softcap_grad(const tl_row *row, double logit);

/* Writes one value to all elements of a row, or to one of them. */
void tl_fill(const tl_row *out, double value);
void tl_store_at(const tl_row *out, int64_t index, double value);

#endif
