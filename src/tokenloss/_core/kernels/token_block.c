#include "token_block.h"

#include <float.h>

#include "nll.h"
#include "token_stats.h"

/* Rank and argmax of each row, by its logits as they are in memory. */
static void find_ranks(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups raw,
                       tl_token_block *tokens) {
    double target_raw[TL_BLOCK_ROWS] = {0};
    const tl_few_rows few = tl_few_of_groups(raw.at, (size_t)rows->row.count, raw.dtype);
    tl_short_ranks ranks;
    for (int i = 0; i < count; i++)
        if (rows->excluded[i] >= 0)
            target_raw[i] = tl_load_from_groups(raw, tl_place_in_groups(rows, i, rows->excluded[i]));
    backend->short_ranks[raw.dtype](&few, tl_groups_for(count), target_raw, &ranks);
    memcpy(tokens->rank, ranks.count_ge, sizeof tokens->rank); /* the target is one of them */
    memcpy(tokens->argmax, ranks.argmax, sizeof tokens->argmax);
}

/* The classes of the largest raw logits: one after another, each then made -inf, and put back in the end. Returns the
 * rows with `count` logits that were not -inf before. */
static uint64_t find_top(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups raw, tl_topk *top) {
    double least[TL_BLOCK_ROWS];
    uint64_t found = rows->wanted;
    const tl_few_rows few = tl_few_of_groups(raw.at, (size_t)rows->row.count, raw.dtype);
    tl_short_ranks ranks;
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        least[i] = raw.dtype == TL_FLOAT64 ? -DBL_MAX : (double)-FLT_MAX;
    for (int64_t k = 0; k < top->most; k++) {
        backend->short_ranks[raw.dtype](&few, tl_groups_for(count), least, &ranks);
        for (int i = 0; i < count; i++) {
            if (!tl_is_wanted(rows, i))
                continue;
            size_t at = tl_place_in_groups(rows, i, ranks.argmax[i]);
            top[i].id[k] = ranks.argmax[i];
            top[i].value[k] = tl_load_from_groups(raw, at);
            tl_store_to_groups(raw, at, -(double)INFINITY);
            found &= ~((uint64_t)(ranks.count_ge[i] < top->most - k) << i);
        }
    }
    for (int i = 0; i < count; i++)
        for (int64_t k = 0; tl_is_wanted(rows, i) && k < top->most; k++)
            tl_store_to_groups(raw, tl_place_in_groups(rows, i, top[i].id[k]), top[i].value[k]);
    return found;
}

/* Makes log-probabilities of the largest raw logits. */
static void end_top(const tl_backend *backend, const tl_row_block *rows, int count, const tl_lse *lse, tl_topk *top) {
    for (int64_t k = 0; k < top->most; k++) {
        double value[TL_BLOCK_ROWS] = {0};
        for (int i = 0; i < count; i++)
            if (tl_is_wanted(rows, i))
                value[i] = top[i].value[k];
        if (tl_is_transformed(&rows->row))
            tl_transform(backend, &rows->row, value, tl_padded_rows(count));
        for (int i = 0; i < count; i++)
            if (tl_is_wanted(rows, i))
                top[i].value[k] = (value[i] - lse[i].offset) - lse[i].log;
    }
    for (int i = 0; i < count; i++)
        top[i].count = top[i].most;
}

uint64_t tl_token_stats_of_block(const tl_backend *backend, const tl_row_block *rows, tl_topk *top,
                                 tl_token_block *tokens, tl_cancel *cancel) {
    int count = tl_grouped_rows(rows);
    size_t padded = tl_padded_rows(count);
    tl_block_lse others;
    tl_lse lse[TL_BLOCK_ROWS];
    tl_short_moments moments;
    tl_block_nll of;
    assert(rows->keeps_logits);
    if (count == 0 || (top && top->most > TL_BLOCK_TOP))
        return 0;
    moments.other.data = NULL;
    tl_groups raw = tl_load_raw_groups(backend, rows, count);
    find_ranks(backend, rows, count, raw, tokens);
    uint64_t found = top ? find_top(backend, rows, count, raw, top) : rows->wanted;
    tl_groups groups = tl_scale_groups(backend, rows, count, raw);
    uint64_t near = tl_nll_of_groups(backend, rows, count, groups, &of);
    tl_reduce_groups(backend, rows, count, groups, &moments, &others);
    backend->lse_logs(others.sums.sum, others.sums.ref_exp, padded, groups.dtype, others.log);
    backend->log_odds(others.offset, others.log, others.logit, padded, &others.odds);
    found &= others.grouped;
    for (int i = 0; i < count; i++) {
        found &= ~((uint64_t)(others.odds.log_odds[i] != others.odds.log_odds[i]) << i);
        tl_row row = tl_row_of_block(rows, i);
        lse[i] = tl_lse_at(rows, &others, i);
        tokens->nll[i] = near >> i & 1 ? of.nll[i] : others.odds.nll[i];
        tokens->logsumexp[i] = tl_logsumexp(lse[i]);
        if (found >> i & 1)
            tokens->logsumexp[i] = tl_token_logsumexp(backend, &row, tokens->logsumexp[i], others.logit[i],
                                                      others.sums.maximum[i], cancel);
    }
    backend->entropies(&others.odds, others.log, others.sums.sum, &moments, padded, tokens->entropy);
    if (top)
        end_top(backend, rows, count, lse, top);
    return found;
}
