/* A row of logits compared with a base model's row, in one pass over both: the basis of comparisons of models. */
#pragma once

#include "divergences.h"

/* Whose definitions hold. By llama.cpp's, the base has log-probabilities b, used as given, and the divergence is the
 * sum of exp(b) (b - log_softmax(row)) over those above -16. */
typedef enum { TL_EXACT, TL_LLAMA_CPP } tl_definitions;

typedef struct {
    double nll, base_nll, kl;
    double change;        /* of the class id's probability */
    tl_lse base_lse, lse; /* logsumexps, the base's of the classes that the divergence counts */
    double base_top_p; /* probability of the base's most likely class */
    double base_margin, margin; /* logit of the base's most likely class minus its second's, in both; or nan */
    double rounding; /* 2 units in the last place of the base's two logits, in the coarser of both dtypes */
    tl_divergences further; /* if they are wanted */
    int is_same_top; /* whether both have the same most likely class: the lowest of the largest logit; nan is skipped */
    int is_identical; /* whether all elements have the same bits as doubles, which represent any dtype */
} tl_pair;

/* Rows of one length: the losses of their class id, the divergence, computed in this dtype (double if they are scaled
 * or capped), and their tops, of the logits as they are in memory. */
tl_pair tl_pair_row(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t target, int dtype,
                    tl_definitions definitions, tl_cancel *cancel);

/* A class: its raw logits in both rows, and its number; -1 of none. */
typedef struct {
    double base, other;
    int64_t at;
} tl_pair_class;
/* Both rows so far. */
typedef struct {
    tl_kl_acc kl;
    tl_lse_acc base_others, others;
    tl_pair_class first, second; /* the most likely classes of the base */
    double maximum;              /* of the raw logits of the other row */
    int64_t argmax;
    int differs; /* whether any bit does */
} tl_pair_acc;

/* The same range by range, like tl_lse_range; without a class id (-1), only the divergence. `with_losses` also adds up
 * the logsumexps of the other classes: tl_pair_end needs them, tl_pair_row only for long rows. */
void tl_pair_range(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t start, int64_t end,
                   int64_t block, int64_t target, int with_losses, int dtype, tl_definitions definitions,
                   tl_pair_acc *acc, tl_cancel *cancel);
/* Its end, given the raw logits of the class id: 0 if all ranges must be read again with double as the dtype. */
int tl_pair_end(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t target,
                double base_target_raw, double target_raw, tl_pair_acc *acc, tl_pair *pair);

/* The same of the wanted rows of two blocks, which have the same rows and excluded classes: the class ids; and these
 * further divergences, a sum of codes of backend.h. */
void tl_pair_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *rows, int dtype,
                      tl_definitions definitions, int divergences, tl_pair *pairs, tl_cancel *cancel);

/* The logsumexp of a base of log-probabilities: only of the counted ones if the others cannot make it exceed `most`. */
double tl_pair_base_logsumexp(const tl_backend *backend, const tl_row *base, double counted, double most,
                              tl_cancel *cancel);
