/* Kullback-Leibler divergence of two rows of logits, in one pass over both. */
#ifndef TOKENLOSS_KL_H
#define TOKENLOSS_KL_H

#include "cancel.h"
#include "logsumexp.h"
#include "row_block.h"

/* A divergence, and the logsumexps of both; nan if a logit is nan or +inf. */
typedef struct {
    double kl;
    tl_lse base, other;
} tl_kl;

/* KL(softmax(base) || softmax(other)) of two rows of one length and compute dtype: double if one is transformed. */
tl_kl tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel);

/* The same of the wanted rows of two blocks, which have one number of rows. Classes whose logit in the base is not
 * above `floor` count as -inf there; -inf leaves none out. Returns a bit for each row that was found: the others,
 * such as rows with nan or far out, are left to functions of single rows. The groups in the scratch memory stay as
 * they were reduced. */
uint64_t tl_kl_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, double floor,
                        tl_kl *found_of, tl_cancel *cancel);

/* Loads rows into groups of doubles in the scratch memory, scaled and capped. */
const double *tl_load_wide_groups(const tl_backend *backend, const tl_row_block *rows, int count);

/* Whether a class of [start, end) is above the floor in the base and impossible in the other row. */
int tl_has_infinite_kl(const tl_backend *backend, const tl_row *base, double floor, const tl_row *other, int64_t start,
                       int64_t end);

/* -- for kernels that read both rows block by block ---------------------------------------------------------------- */

typedef struct {
    const tl_row *row; /* the one that is read at present, and its chunks */
    tl_chunk_buf *buf;
    double floor; /* logits that are not above it count as -inf */
    tl_lse_acc state;
} tl_kl_side;

/* The divergence of two rows so far. After each block, base.state.maximum is the block's maximum minus the offset. */
typedef struct {
    tl_kl_side base, other;
    tl_moment moment;
    int is_infinite;
    enum { TL_KL_OPEN, TL_KL_NAN, TL_KL_TOO_FAR } stage; /* nothing more is read once it is nan, or needs double */
} tl_kl_acc;

/* Begins two rows, of whose blocks the first has so many elements; it alone is read. The accumulator must stay where it
 * is. */
void tl_kl_begin(const tl_backend *backend, const tl_row *base, const tl_row *other, double floor, int64_t block,
                 tl_kl_acc *acc);
/* Adds the elements [start, end), at most TL_BLOCK: one block after another. */
void tl_kl_block(const tl_backend *backend, const tl_row *base, const tl_row *other, int64_t start, int64_t end,
                 tl_kl_acc *acc);
/* The divergence, once all blocks are read; if it is at TL_KL_TOO_FAR then, all must be read again in double. */
tl_kl tl_kl_finish(const tl_row *base, const tl_row *other, tl_kl_acc *acc);
/* The same of rows that are in memory, which it reads again itself. */
tl_kl tl_kl_end(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_kl_acc *acc, tl_cancel *cancel);

#endif
