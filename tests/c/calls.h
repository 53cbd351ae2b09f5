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

#define MOST_DRAWS 11

/* The tail of a row without some classes, which are in ascending order, and classes drawn from it; `maximum` is a guess.
 * Draws are at the first class from 0 on, within a class, and nearly at the end. */
TL_INLINE double take_tail(const tl_backend *backend, const tl_row *row, const int64_t *excluded, int64_t count,
                           double maximum, tl_cancel *cancel) {
    static const double uniforms[MOST_DRAWS] = {0, 0.5, 0.25, 0.999, 0.1, 0, 0.75, 0.0625, 0.9, 0.3, 0x1.fffffffffffffp-1};
    tl_tail tail = {.excluded = excluded, .count = count};
    int64_t drawn[MOST_DRAWS];
    tl_tail_of(backend, row, maximum, &tail, cancel);
    take(Q_tail, tail.log_mass);
    take_bits(Q_tail, (uint64_t)tail.support);
    for (int64_t draws = 1; draws <= MOST_DRAWS && tail.support > 0 && tail.log_mass == tail.log_mass; draws += 5) {
        tl_tail_draw(backend, row, &tail, 0.1, uniforms + MOST_DRAWS - draws, draws, drawn);
        for (int64_t i = 0; i < draws; i++)
            take_bits(Q_draws, (uint64_t)drawn[i]);
    }
    return tail.log_mass;
}

/* The tails of a row without its seven likeliest classes, and without any, by a good guess and by bad ones. */
TL_INLINE void take_tails(const tl_backend *backend, const tl_row *row, const tl_topk *best, tl_cancel *cancel) {
    int64_t excluded[7], count = best->most < 7 ? best->most : 7;
    for (int64_t i = 0; i < count; i++) {
        int64_t place = i;
        for (; place > 0 && excluded[place - 1] > best->id[i]; place--)
            excluded[place] = excluded[place - 1];
        excluded[place] = best->id[i];
    }
    double largest = count ? tl_logit_at(backend, row, best->id[0]) : 0;
    take_tail(backend, row, excluded, count, row->count % 3 ? largest : row->count % 2 ? -300 : 1e5, cancel);
    if (row->count % 4 == 0)
        take_tail(backend, row, excluded, 0, largest, cancel);
}

#define ALL_DIVERGENCES (TL_REVERSE_KL | TL_JS | TL_TV | TL_HELLINGER)

/* The divergence of two rows, which is returned, and all further ones. */
TL_INLINE tl_kl take_divergences(quantity of, const tl_backend *backend, const tl_row *base, const tl_row *other,
                                 tl_divergences *all, tl_cancel *cancel) {
    tl_kl kl = tl_kl_divergence(backend, base, other, cancel);
    *all = tl_divergences_of(backend, base, other, kl.base, kl.other, ALL_DIVERGENCES, cancel);
    take(of, all->reverse_kl);
    take(of, all->js);
    take(of, all->tv);
    take(of, all->hellinger);
    return kl;
}

/* Sums over a target distribution. */
TL_INLINE void take_masses(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft,
                           tl_cancel *cancel) {
    double total = 0;
    take_bits(Q_soft_target_argmax, (uint64_t)tl_soft_target_argmax(backend, soft, row->count, cancel));
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

/* The loss of scores for a distribution, how many classes have mass, the last of these, and the score that is refused. */
TL_INLINE void take_nll(quantity of, const tl_backend *backend, const tl_row *scores, const tl_soft_target *soft,
                        const tl_clip *clip, tl_cancel *cancel) {
    int64_t nonzero = 0, last = -1;
    tl_soft_target masses = *soft;
    tl_refused refused;
    masses.weight = NULL;
    for (int64_t k = 0; k < scores->count; k++)
        if (tl_soft_target_at(&masses, k) != 0) {
            nonzero++;
            last = k;
        }
    take(of, tl_nll_of_distribution(backend, scores, soft, clip, &refused, cancel));
    take_bits(of, (uint64_t)nonzero);
    take_bits(of, (uint64_t)last);
    take_bits(of, (uint64_t)refused.class_id);
    take(of, refused.score);
}

/* The loss of a row that arrives in ranges of this many classes. */
TL_INLINE double loss_by_ranges(const tl_backend *backend, const tl_row *row, const tl_loss *loss, int64_t length,
                                tl_cancel *cancel) {
    tl_loss_acc acc;
    tl_loss_begin(backend, loss, row->count, &acc, cancel);
    if (acc.excluded >= 0)
        tl_loss_set_target_logit(backend, row, loss, tl_load(row->data + acc.excluded * row->stride, row->dtype), &acc);
    for (int64_t start = 0, end; start < row->count; start = end) {
        end = row->count - start < length ? row->count : start + length;
        tl_loss_range(backend, row, loss, start, end, PART, &acc, cancel);
    }
    return tl_loss_end(backend, row, loss, &acc);
}

#endif
