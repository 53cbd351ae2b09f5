/* What is written for each class of a row: softmax, log_softmax and the gradient of the loss. */
#pragma once

#include "logsumexp.h"
#include "soft_targets.h"

/* Writes softmax(row) or log_softmax(row) to `out`, of the row's count and dtype, perhaps the row itself; nan if a
 * logit is nan or +inf, or all are -inf. `large` says that the results of the whole call do not fit in the caches. */
void tl_softmax(const tl_backend *backend, const tl_row *row, int is_log, const tl_row *out, int large,
                tl_cancel *cancel);
/* The same with the sum of a logsumexp: of rows that are longer than TL_MAX_KEPT or far out, scaled or capped. */
void tl_softmax_by_sum(const tl_backend *backend, const tl_row *row, int is_log, const tl_row *out, int large,
                       tl_cancel *cancel);

/* d logit / d raw logit, from the logit. */
TL_INLINE double tl_softcap_grad(const tl_row *row, double logit) {
    if (row->softcap == 0)
        return row->logit_scale;
    double tanh = logit / row->softcap, grad = row->logit_scale * (1 - tanh) * (1 + tanh);
    return logit == -(double)INFINITY ? 0 : grad;
}

/* Writes the gradients of the loss for the raw logits of a row, as if it had no class id: loss.h has the formula.
 * `softmax_factor` multiplies probabilities, and `soft` has the target masses. */
void tl_gradient(const tl_backend *backend, const tl_row *row, tl_lse lse, double grad_scale, double softmax_factor,
                 const tl_soft_target *soft, const tl_row *out, int large, tl_cancel *cancel);

/* Writes one value to all elements of a row, or to one of them. */
void tl_fill(const tl_row *out, double value);
void tl_store_at(const tl_row *out, int64_t index, double value);
