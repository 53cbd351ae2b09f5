/* All statistics of a token in one pass over its row. */
#pragma once

#include "logsumexp.h"
#include "topk.h"

/* The logsumexp is found from the target's logit and the other classes: its last bits may depend on the target. */
typedef struct {
    double nll, logsumexp, entropy;
    int64_t rank, argmax; /* rank 1 is the best; ties count against the target */
    double maximum;       /* of the raw logits so far */
    tl_lse_acc state;     /* of all classes but the target */
    tl_moment moment;
} tl_token_stats;

/* The statistics of a whole row, whose loss has the bits of cross_entropy. `topk` may be NULL. */
void tl_token_stats_row(const tl_backend *backend, const tl_row *row, int64_t target, tl_token_stats *token,
                        tl_topk *topk, tl_cancel *cancel);

/* The same range by range, as tl_lse_range, and its end; `target_raw` is the target's raw logit. */
void tl_token_stats_range(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block,
                          int64_t target, double target_raw, tl_token_stats *token, tl_topk *topk, tl_cancel *cancel);
void tl_token_stats_end(const tl_backend *backend, const tl_row *row, double target_raw, tl_token_stats *token,
                        tl_topk *topk);

/* That logsumexp with relative accuracy near 0, too, if a class other than the target outweighs all others there; given
 * the logits of the target and of the likeliest class. */
double tl_token_logsumexp(const tl_backend *backend, const tl_row *row, double logsumexp, double logit, double largest,
                          tl_cancel *cancel);
