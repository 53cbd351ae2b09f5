/* Statistics of the tokens of short rows, a block of them at a time. */
#pragma once

#include "row_block.h"
#include "topk.h"

/* Classes that are found for each row of a block, at most: each takes a pass over the logits. */
#define TL_BLOCK_TOP 8

/* For each row: see tl_token_stats. */
typedef struct {
    double nll[TL_BLOCK_ROWS], logsumexp[TL_BLOCK_ROWS], entropy[TL_BLOCK_ROWS];
    int64_t rank[TL_BLOCK_ROWS], argmax[TL_BLOCK_ROWS];
} tl_token_block;

/* The statistics of the wanted rows whose excluded classes are the targets, with the bits of tl_token_stats_row; `rows`
 * keep their logits. `top` is NULL or has a list for each row. Returns a bit for each row that was found: the others,
 * such as rows with nan or far out, are left to tl_token_stats_row. */
uint64_t tl_token_stats_of_block(const tl_backend *backend, const tl_row_block *rows, tl_topk *top,
                                 tl_token_block *tokens, tl_cancel *cancel);
