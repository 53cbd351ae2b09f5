/* Kullback-Leibler divergence of two rows of logits, in one pass over both. */
#ifndef TOKENLOSS_KL_H
#define TOKENLOSS_KL_H

#include "cancel.h"
#include "row.h"

/* KL(softmax(base) || softmax(other)) of two rows of one length and compute dtype, neither scaled nor capped. */
double tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel);

#endif
