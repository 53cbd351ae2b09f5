#include "token_block.h"

#include <assert.h>
#include <float.h>
#include <math.h>

#include "nll.h"
#include "token_stats.h"

/* Rank and argmax of each row, by its logits as they are in memory. */
static void find_ranks(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups raw,
                       tl_token_block *tokens) {
    double target_raw[TL_BLOCK_ROWS] = {0};
    tl_short_ranks ranks;
    for (int i = 0; i < count; i++)
        if (rows->excluded[i] >= 0)
            target_raw[i] = tl_load_from_groups(raw, tl_place_in_groups(rows, i, rows->excluded[i]));
    backend->short_ranks[raw.dtype](raw.at, tl_groups_for(count), (size_t)rows->row.count, target_raw, &ranks);
    memcpy(tokens->rank, ranks.count_ge, sizeof tokens->rank); /* the target is one of them */
    memcpy(tokens->argmax, ranks.argmax, sizeof tokens->argmax);
}

/* The classes of the largest raw logits: one after another, each then made -inf, and put back in the end. Returns the
 * rows with `count` logits that were not -inf before. */
static uint64_t find_top(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups raw, tl_topk *top) {
    double least[TL_BLOCK_ROWS];
    size_t groups = tl_groups_for(count);
    uint64_t found = rows->wanted;
    tl_short_ranks ranks;
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        least[i] = raw.dtype == TL_FLOAT64 ? -DBL_MAX : (double)-FLT_MAX;
    for (int64_t k = 0; k < top->most; k++) {
        backend->short_ranks[raw.dtype](raw.at, groups, (size_t)rows->row.count, least, &ranks);
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

/* Long class-major rows, which are transposed block by block: `count` of them that share cache lines. */
static void stats_of_transposed(const tl_backend *backend, const tl_row_block *rows, int first, int count, tl_topk *top,
                                tl_token_stats *token, tl_cancel *cancel) {
    tl_row row[TL_MAX_CLASS_MAJOR_ROWS];
    for (int r = 0; r < count; r++)
        row[r] = tl_row_of_block(rows, first + r);
    for (int64_t start = 0, end; start < row->count && !tl_cancelled(cancel); start = end) {
        end = row->count - start < TL_BLOCK ? row->count : start + TL_BLOCK;
        tl_transpose(backend, row, count, start, end - start, rows->scratch);
        for (int r = 0; r < count; r++) {
            tl_row part = tl_transposed_row(row, r, start, rows->scratch);
            tl_topk *best = top ? &top[first + r] : NULL;
            int64_t target = rows->excluded[first + r];
            if (!tl_is_wanted(rows, first + r))
                continue;
            double raw = tl_load(row[r].data + target * row[r].stride, row[r].dtype);
            tl_token_stats_range(backend, &part, start, end, TL_BLOCK, target, raw, &token[r], best, cancel);
            if (end == row->count) /* of a single block, all classes are there */
                tl_token_stats_end_row(backend, start == 0 ? &part : &row[r], target, raw, &token[r], best, cancel);
        }
    }
}

/* The statistics of long class-major rows; returns which of them were found. */
static uint64_t stats_of_long(const tl_backend *backend, const tl_row_block *rows, tl_topk *top,
                              tl_token_block *tokens, tl_cancel *cancel) {
    const int most = TL_ROWS_PER_CACHE_LINE(rows->row.dtype);
    uint64_t found = rows->wanted;
    for (int first = 0; first < rows->count; first += most) {
        tl_token_stats token[TL_MAX_CLASS_MAJOR_ROWS];
        int count = rows->count - first < most ? rows->count - first : most;
        stats_of_transposed(backend, rows, first, count, top, token, cancel);
        for (int i = first; i < first + count; i++)
            if (tl_is_wanted(rows, i)) {
                tokens->nll[i] = token[i - first].nll;
                tokens->logsumexp[i] = token[i - first].logsumexp;
                tokens->entropy[i] = token[i - first].entropy;
                tokens->rank[i] = token[i - first].rank;
                tokens->argmax[i] = token[i - first].argmax;
                found &= ~((uint64_t)(tokens->nll[i] != tokens->nll[i]) << i);
            }
    }
    return found;
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
    if (rows->class_major && rows->row.count > TL_SHORT_ROW)
        return stats_of_long(backend, rows, top, tokens, cancel);
    if (count == 0 || (top && top->most > TL_BLOCK_TOP))
        return 0;
    moments.other = NULL;
    moments.other_shift = NULL;
    tl_groups raw = tl_load_raw_groups(backend, rows, count);
    find_ranks(backend, rows, count, raw, tokens);
    uint64_t found = top ? find_top(backend, rows, count, raw, top) : rows->wanted;
    tl_groups groups = tl_scale_groups(backend, rows, count, raw);
    tl_row_block grouped = *rows;
    grouped.count = count;
    uint64_t near = tl_nll_of_groups(backend, &grouped, groups, &of);
    tl_reduce_groups(backend, rows, count, groups, &moments, &others);
    tl_end_lse(backend, &rows->row, padded, 1, &others);
    found &= others.grouped;
    for (int i = 0; i < count; i++)
        found &= ~((uint64_t)(others.odds.log_odds[i] != others.odds.log_odds[i]) << i);
    for (int i = 0; i < count; i++) {
        tl_row row = tl_row_of_block(rows, i);
        lse[i] = tl_odds_at(rows, &others, i).lse;
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
