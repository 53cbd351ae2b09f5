/* A row of logits against that of a base model, in one pass over both: what comparisons of models are made of. */
#ifndef TOKENLOSS_PAIR_H
#define TOKENLOSS_PAIR_H

#include "kl.h"

typedef struct {
    double nll, base_nll, kl;
    double change;         /* of the class id's probability */
    double base_logsumexp; /* of the classes that the divergence counts */
    double base_top_p;     /* probability of the base's most likely class */
    int is_same_top; /* whether both have the same most likely class: the lowest of the largest logit; nan is skipped */
} tl_pair;

/* Rows of one length, neither scaled nor capped: the losses of their class id, the divergence, computed in this dtype,
 * and their tops. With `of_log_probs`, as llama.cpp defines them: the base has log-probabilities b, used as given, and
 * the divergence is the sum of exp(b) (b - log_softmax(row)) over those above -16. */
tl_pair tl_pair_row(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t target, int dtype,
                    int of_log_probs, tl_cancel *cancel);

/* The same of the wanted rows of two blocks, which have the same rows and excluded classes: the class ids. */
void tl_pair_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *rows, int dtype,
                      int of_log_probs, tl_pair *pairs, tl_cancel *cancel);

/* The logsumexp of a base of log-probabilities: that of the counted ones if the others cannot make it exceed `most`. */
double tl_pair_base_logsumexp(const tl_backend *backend, const tl_row *base, double counted, double most,
                              tl_cancel *cancel);

#endif
