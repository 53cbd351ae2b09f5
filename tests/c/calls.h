/* The kernels of single rows, for golden.c, guarded.c and threads.c: what they find is hashed. */
#ifndef TOKENLOSS_TESTS_CALLS_H
#define TOKENLOSS_TESTS_CALLS_H

#include "hashes.h"
#include "kernels.h"
#include "losses.h"

#define PART 1024 /* classes of a range: a multiple of a chunk, and part of a block */

TL_INLINE void take_row(quantity of, const tl_row *row) {
    for (int64_t i = 0; i < row->count; i++)
        take(of, tl_load(row->data + i * row->stride, row->dtype));
}

/* All statistics of a token. */
TL_INLINE tl_token_stats take_token(const tl_backend *backend, const tl_row *row, int64_t target, tl_topk *best,
                                    tl_cancel *cancel) {
    tl_token_stats token;
    tl_token_stats_row(backend, row, target, &token, best, cancel);
    take(Q_token_nll, token.nll);
    take(Q_token_logsumexp, token.logsumexp);
    take(Q_entropy, token.entropy);
    take_bits(Q_rank, (uint64_t)token.rank);
    take_bits(Q_argmax, (uint64_t)token.argmax);
    for (int64_t i = 0; i < best->most; i++) {
        take(Q_top_k, best->value[i]);
        take_bits(Q_top_k, (uint64_t)best->id[i]);
    }
    return token;
}

#define ALL_DIVERGENCES (TL_REVERSE_KL | TL_JS | TL_TV | TL_HELLINGER)

/* The divergence of two rows, which is returned, and all further ones. */
TL_INLINE tl_kl take_divergences(quantity of, const tl_backend *backend, const tl_row *base, const tl_row *other,
                                 tl_cancel *cancel) {
    tl_kl kl = tl_kl_divergence(backend, base, other, cancel);
    tl_divergences found = tl_divergences_of(backend, base, other, kl.base, kl.other, ALL_DIVERGENCES, cancel);
    take(of, found.reverse_kl);
    take(of, found.js);
    take(of, found.tv);
    take(of, found.hellinger);
    return kl;
}

/* Sums over a target distribution. */
TL_INLINE void take_masses(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft,
                           tl_cancel *cancel) {
    int64_t found;
    double total = 0;
    take_bits(Q_soft_target_argmax, (uint64_t)tl_soft_target_argmax(backend, soft, row->count, &found, cancel));
    take(Q_soft_target_loss, tl_target_dot(backend, row, soft, 1.5, &total, cancel));
    take(Q_soft_target_loss, total);
}

/* softmax, and log_softmax of logits without a softcap. */
TL_INLINE void take_softmaxes(const tl_backend *backend, const tl_row *row, const tl_row *out, int nontemporal_stores,
                              tl_cancel *cancel) {
    tl_softmax(backend, row, 0, out, nontemporal_stores, cancel);
    take_row(Q_softmax, out);
    if (row->softcap == 0) {
        tl_softmax(backend, row, 1, out, nontemporal_stores, cancel);
        take_row(Q_log_softmax, out);
    }
}

/* The loss of scores for a distribution, and what was seen of its masses and of the scores. */
TL_INLINE void take_nll(quantity of, const tl_backend *backend, const tl_row *scores, const tl_soft_target *soft,
                        const tl_clip *clip, tl_cancel *cancel) {
    tl_seen seen;
    take(of, tl_nll_of_distribution(backend, scores, soft, clip, &seen, cancel));
    take_bits(of, (uint64_t)seen.nonzero);
    take_bits(of, (uint64_t)seen.last);
    take_bits(of, (uint64_t)seen.refused);
    take(of, seen.refused_score);
}

/* The loss of a row that arrives in ranges of this many classes. */
TL_INLINE double loss_by_ranges(const tl_backend *backend, const tl_row *row, const tl_loss *loss, int64_t length,
                                tl_cancel *cancel) {
    tl_loss_acc acc;
    int64_t nonzero;
    tl_loss_begin(backend, loss, row->count, &acc, &nonzero, cancel);
    if (acc.excluded >= 0)
        tl_loss_set_target_logit(backend, row, loss, tl_load(row->data + acc.excluded * row->stride, row->dtype), &acc);
    for (int64_t start = 0, end; start < row->count; start = end) {
        end = row->count - start < length ? row->count : start + length;
        tl_loss_range(backend, row, loss, start, end, PART, &acc, cancel);
    }
    return tl_loss_end(backend, row, loss, &acc);
}

#endif
