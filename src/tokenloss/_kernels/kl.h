/* Kullback-Leibler divergence of two rows of logits, in one pass over both. */
#ifndef TOKENLOSS_KL_H
#define TOKENLOSS_KL_H

#include "cancel.h"
#include "row_block.h"

/* KL(softmax(base) || softmax(other)) of two rows of one length and compute dtype, neither scaled nor capped. */
double tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel);

/* The same of the wanted rows of two blocks, which have one number of rows. Returns a bit for each row that was found:
 * the others, such as rows with nan or far out, are left to the function above. */
uint64_t tl_kl_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, double *kl);

#endif
