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

/* Writes factor (of_softmax softmax(row) - mass) times the derivative of the softcap: the gradient for raw logits. */
void tl_gradient(const tl_backend *backend, const tl_row *row, tl_lse lse, double factor, double of_softmax,
                 const tl_soft_target *soft, const tl_row *out, int large, tl_cancel *cancel);

/* d logit / d raw logit, from the logit. */
double tl_softcap_grad(const tl_row *row, double logit);

/* Writes one value to all elements of a row, or to one of them. */
void tl_fill(const tl_row *out, double value);
void tl_store_at(const tl_row *out, int64_t index, double value);

#endif
