/* Exact sums over the tokens of a sequence. */
#pragma once

#include "cancel.h"
#include "superacc.h"

/* Columns of tokens; all but the losses may be NULL. */
typedef struct {
    const double *nll;
    const double *weight;
    const uint8_t *mask;      /* 0 for tokens that are masked */
    const uint8_t *is_greedy; /* whether the token is the likeliest class */
} tl_tokens;

typedef struct {
    int64_t count;  /* of the unmasked tokens */
    int64_t greedy; /* of those that are the likeliest class */
    double nll;     /* sum of weight times nll, each product rounded, the sum rounded once */
    double weight;  /* sum of the weights, rounded once; the count without weights */
} tl_sequence;

#define TL_TOKEN_CHUNK 512

/* Some tokens: weight times nll, and the weight; both are 0 where a token is masked. */
typedef struct {
    double nll[TL_TOKEN_CHUNK], weight[TL_TOKEN_CHUNK];
    size_t count;
} tl_token_chunk;

/* Exact sums over the tokens of many sequences: of weight times nll and its square; with weights, also of the weight,
 * its square, and the product of both. Tokens wait in `pending` until it is full, or tl_token_sums_end adds them. */
typedef struct {
    tl_superacc nll, weight, nll_squares, weight_squares, products;
    int has_weights;
    tl_token_chunk pending;
} tl_token_sums;

void tl_token_sums_end(const tl_backend *backend, tl_token_sums *sums);
void tl_token_sums_merge(tl_token_sums *sums, const tl_token_sums *other);

/* Sums over a sequence, whose tokens are `runs` ranges [start[i], stop[i]). Adds its tokens to `sums`. */
tl_sequence tl_sum_sequence(const tl_backend *backend, const tl_tokens *tokens, const int64_t *start,
                            const int64_t *stop, int64_t runs, tl_token_sums *sums, tl_cancel *cancel);
