/* Kullback-Leibler divergence of two rows of logits, in one pass over both. */
#pragma once

#include "row_block.h"
#include "superacc.h"

/* A divergence, and the logsumexps of both; nan if a logit is nan or +inf. */
typedef struct {
    double kl;
    tl_lse base, other;
} tl_kl;

/* KL(softmax(base) || softmax(other)) of two rows of one length and compute dtype: double if one is transformed. */
tl_kl tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel);

/* The same of the wanted rows of two blocks, which have one number of rows. Returns the bits of those that were reduced
 * side by side; rows with nan or far out are not. */
uint64_t tl_kl_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, tl_kl *found_of,
                        tl_cancel *cancel);
/* The same of the first `count` rows, which are in these groups in the scratch memory. */
uint64_t tl_kl_of_groups(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, int count,
                         tl_groups p, tl_groups q, tl_kl *found_of);

/* Adds the divergences of rows of few classes that lie so many bytes from each other to a sum, and writes them unless
 * `values` is NULL. Returns how many were taken: all, or those before tl_few_together with one that was not found. */
size_t tl_add_kl_of_few(const tl_backend *backend, const tl_row *base, ptrdiff_t apart, const tl_row *other,
                        ptrdiff_t other_apart, size_t n, tl_superacc *sum, double *values);

/* Loads rows into groups of doubles in the scratch memory, scaled and capped. */
const double *tl_load_wide_groups(const tl_backend *backend, const tl_row_block *rows, int count);

/* Whether a class of [start, end) is possible in the base and impossible in the other row. */
int tl_has_infinite_kl(const tl_backend *backend, const tl_row *base, const tl_row *other, int64_t start, int64_t end);

/* The divergence of two rows so far, which must stay where it is. */
typedef struct {
    tl_lse_acc base, other; /* after each block, base.maximum is the block's maximum minus the offset */
    tl_moment moment;
    int dtype, is_infinite;
    enum { TL_KL_OPEN, TL_KL_NAN, TL_KL_TOO_FAR } stage; /* nothing more is read once it is nan, or needs double */
} tl_kl_acc;

/* The same range by range, as in tl_lse_range. If it ends at TL_KL_TOO_FAR, all must be read again in double. */
void tl_kl_range(const tl_backend *backend, const tl_row *base, const tl_row *other, int64_t start, int64_t end,
                 int64_t block, tl_kl_acc *acc, tl_cancel *cancel);
tl_kl tl_kl_finish(tl_kl_acc *acc);
