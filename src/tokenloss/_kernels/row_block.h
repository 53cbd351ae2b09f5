/* Blocks of rows. Short rows are reduced side by side, a row in each lane of a vector, and what is left to do for each
 * row is done for all of them at once; every bit is that of the functions for single rows. */
#ifndef TOKENLOSS_ROW_BLOCK_H
#define TOKENLOSS_ROW_BLOCK_H

#include "loss.h"

/* Rows of one length, stride and dtype. */
typedef struct {
    tl_row row;                       /* what they have in common: all but the data */
    int count;                        /* TL_BLOCK_ROWS at most */
    int class_major;                  /* whether they are neighbours in memory, and their classes are not */
    int has_excluded;                 /* whether any row may have an excluded class */
    int keeps_logits;                 /* whether logits are read again after the reduction */
    uint64_t wanted;                  /* a bit for each row. Of neighbours, the others may be read, too */
    const char *data[TL_BLOCK_ROWS];
    int64_t excluded[TL_BLOCK_ROWS];  /* the target, or -1 */
    char *scratch;                    /* of tl_row_block_bytes */
} tl_row_block;

/* How many rows fit in a block, and the size of its scratch memory. */
int tl_row_block_rows(int64_t classes, int class_major);
size_t tl_row_block_bytes(int64_t classes, int class_major);

TL_INLINE int tl_is_wanted(const tl_row_block *rows, int i) { return (int)(rows->wanted >> i & 1); }

/* A row of the block. */
TL_INLINE tl_row tl_row_of_block(const tl_row_block *rows, int i) {
    tl_row row = rows->row;
    row.data = rows->data[i];
    return row;
}

/* For each row, the logsumexp of all classes but the excluded one, whose logit is given, and the log-odds against it. */
typedef struct {
    double offset[TL_BLOCK_ROWS], log[TL_BLOCK_ROWS], logit[TL_BLOCK_ROWS];
    tl_short_sums sums; /* largest_lane and in_order, if wanted */
    tl_odds odds;
    uint64_t grouped; /* rows whose logits lie in groups in the scratch memory, and are not far out */
    int group_dtype;  /* TL_FLOAT32 or TL_FLOAT64 */
} tl_block_lse;

/* Reduces the wanted rows. If `wants_lanes`, no class is excluded, and log-odds are not computed. */
void tl_lse_of_block(const tl_backend *backend, const tl_row_block *rows, int wants_lanes, tl_block_lse *lse,
                     tl_cancel *cancel);

/* tl_logsumexp_of each wanted row, from tl_lse_of_block with `wants_lanes`. */
void tl_logsumexp_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                           double *logsumexp, tl_cancel *cancel);

/* Where results of a block go: rows of one length, stride and dtype. */
typedef struct {
    tl_row row;
    char *data[TL_BLOCK_ROWS];
    int nontemporal_stores; /* whether the results of all blocks together are larger than the caches */
} tl_out_block;

/* Writes softmax or log_softmax of each wanted row; nan if its logsumexp is not finite. */
void tl_softmax_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse, int is_log,
                         const tl_out_block *out, tl_cancel *cancel);

/* The loss of each wanted row for its excluded class: of class ids, or of distributions whose argmax it is. The losses'
 * gradients, if any, are rows of `out`; class-major rows that are not wanted may become 0 there. */
void tl_losses_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                        const tl_loss *losses, const tl_out_block *out, double *values, tl_cancel *cancel);

#endif
