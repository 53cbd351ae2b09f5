/* Divergences other than KL, in a second pass over two rows that are in a cache: kl.h has found their logsumexps. */
#pragma once

#include "kl.h"

/* KL(other || base), and the Jensen-Shannon divergence, the total variation and the Hellinger distance of both. Those
 * that are not wanted are any numbers. All are nan if one of the rows has no softmax, but
 * the first is what tl_kl_divergence finds of the rows in each other's place. */
typedef struct {
    double reverse_kl, js, tv, hellinger;
} tl_divergences;

/* Those of `wanted`, a sum of codes of backend.h, given the logsumexps that tl_kl_divergence has found of the rows. */
tl_divergences tl_divergences_of(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_lse base_lse,
                                 tl_lse lse, int wanted, tl_cancel *cancel);

/* The same of these rows of two blocks that are wanted, whose scratch memory is overwritten. */
void tl_divergences_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other,
                             const tl_kl *kl, int wanted, tl_divergences *found, tl_cancel *cancel);

/* The same range by range, of rows of this length and compute dtype: ranges must start at multiples of TL_CHUNK. */
typedef struct {
    tl_divergence_acc sums;
    double base_offset, offset;
    int dtype, is_infinite, has_softmaxes;
} tl_divergence_state;
void tl_divergences_begin(tl_lse base, tl_lse other, int64_t count, int dtype, int wanted, tl_divergence_state *state);
void tl_divergences_range(const tl_backend *backend, const tl_row *base, const tl_row *other, int64_t start,
                          int64_t end, tl_divergence_state *state, tl_cancel *cancel);
/* Returns 0 if all ranges must be read again, begun with double as the dtype. */
int tl_divergences_end(const tl_divergence_state *state, tl_divergences *found);
