#include "token_stats.h"

#include "nll.h"

/* Accumulates one block, unless the sum is nan already. Also max and #{logit >= target} over the raw logits (before
 * scale and softcap), except the target. */
static void reduce_and_count_ge(const tl_backend *backend, const tl_row *row, const tl_row *raw, int64_t start,
                                int64_t end, int64_t target, tl_lse_acc *state, tl_chunk_buf *buf,
                                tl_lse_acc *raw_acc) {
    double sum = tl_lanes_sum_fast(state->sum);
    int32_t indices[TL_BLOCK];
    int as_given = !tl_is_transformed(row) && state->offset == 0;
    int valid = sum == sum && tl_lse_block(backend, row, start, end, target, state, buf);
    raw_acc->maximum = state->maximum;
    raw_acc->count_ge = state->count_ge;
    if (!as_given || state->offset != 0 || !valid) {
        tl_chunk_buf again;
        tl_chunk_invalidate(&again);
        raw_acc->maximum = -(double)INFINITY;
        raw_acc->count_ge = 0;
        tl_reduce_range(backend, TL_REDUCE_MAX_COUNT, raw, start, end, target, raw_acc, &again);
    }
    if (raw_acc->threshold == -(double)INFINITY) /* which padding reaches too */
        raw_acc->count_ge = tl_indices_ge(backend, raw, start, end, -(double)INFINITY, indices) - /* all but nan */
                            (target >= start && target < end);
}

/* Initialises the statistics of a token. The first block gives the shift of the moment. */
static void begin(const tl_backend *backend, const tl_row *row, int64_t block, int64_t target, double target_raw,
                  tl_token_stats *token, tl_topk *topk, tl_chunk_buf *buf) {
    tl_lse_acc *state = &token->state;
    token->rank = target_raw == target_raw; /* counts the target itself */
    token->argmax = -1;
    token->maximum = -(double)INFINITY;
    if (topk)
        topk->count = topk->candidates = 0;
    int64_t first = row->count < TL_CHUNK ? row->count : TL_CHUNK;
    block = row->count < block ? row->count : block;
    double maximum = tl_maximum_between(backend, row, 0, first, target, buf);
    int valid = tl_lse_begin(maximum, row->compute_dtype, &token->moment, state);
    state->threshold = target_raw;
    if (valid && first < block) {
        double others = tl_maximum_between(backend, row, first, block, target, buf);
        maximum = others > maximum ? others : maximum;
    }
    double max_other = valid ? maximum - state->offset : (double)NAN;
    if (max_other - max_other == 0)
        tl_moment_reshift(max_other, 0, tl_offset_dtype(row->compute_dtype, state->offset), state);
}

void tl_token_stats_range(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block,
                          int64_t target, double target_raw, tl_token_stats *token, tl_topk *topk, tl_cancel *cancel) {
    tl_chunk_buf buf;
    tl_lse_acc raw_acc;
    int64_t best = -1, best_end = -1; /* the block of the maximum, where it is looked for once, at the end */
    assert(start % block == 0 && block <= TL_BLOCK && target >= 0 && target < row->count);
    tl_row raw = tl_raw(row);
    tl_chunk_invalidate(&buf);
    raw_acc.offset = 0;
    raw_acc.threshold = target_raw;
    if (start == 0)
        begin(backend, row, block, target, target_raw, token, topk, &buf);
    for (int64_t next; start < end; start = next) {
        next = end - start < block ? end : start + block;
        reduce_and_count_ge(backend, row, &raw, start, next, target, &token->state, &buf, &raw_acc);
        token->rank += raw_acc.count_ge;
        if (target >= start && target < next && target_raw > raw_acc.maximum)
            raw_acc.maximum = target_raw;
        if (raw_acc.maximum > token->maximum) {
            best = start;
            best_end = next;
            token->maximum = raw_acc.maximum;
        } else if (token->argmax < 0 && best < 0) { /* so far, there is nothing above -inf */
            int64_t first = tl_find(backend, &raw, start, next, raw_acc.maximum);
            token->argmax = first < next ? first : -1;
        }
        if (topk)
            tl_topk_scan(backend, &raw, start, next, raw_acc.maximum, topk);
        if (next % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            return;
    }
    if (best >= 0)
        token->argmax = tl_find(backend, &raw, best, best_end, token->maximum);
}

void tl_token_stats_end(const tl_backend *backend, const tl_row *row, double target_raw, tl_token_stats *token,
                        tl_topk *topk) {
    tl_lse others = tl_lse_finish(&token->state, row->compute_dtype);
    double logit = tl_transformed(backend, row, target_raw), log_odds = tl_log_odds_against_lse(others, logit),
           likelier = tl_log1p(tl_exp(-tl_abs(log_odds))); /* the loss of the likelier of the two */
    tl_lse lse = tl_lse_add_class(others, logit, log_odds);
    token->logsumexp = tl_logsumexp(lse);
    token->nll = log_odds > 0 ? log_odds + likelier : likelier;
    double others_nll = log_odds < 0 ? likelier - log_odds : likelier;
    double of_others = (others.log - token->moment.shift) - tl_moment_mean(&token->state);
    token->entropy = log_odds == log_odds ? tl_entropy(log_odds, token->nll, others_nll, of_others) : log_odds;
    if (topk)
        tl_topk_sort(topk);
    for (int64_t i = 0; topk && i < topk->count; i++)
        topk->value[i] = (tl_transformed(backend, row, topk->value[i]) - lse.offset) - lse.log;
}

double tl_token_logsumexp(const tl_backend *backend, const tl_row *row, double logsumexp, double logit, double largest,
                          tl_cancel *cancel) {
    if (tl_is_dominant(largest, logsumexp) && !tl_is_dominant(logit, logsumexp))
        return tl_logsumexp_near_zero(backend, row, logsumexp, cancel);
    return logsumexp;
}

void tl_token_stats_row(const tl_backend *backend, const tl_row *row, int64_t target, tl_token_stats *token,
                        tl_topk *topk, tl_cancel *cancel) {
    double target_raw = tl_load(row->data + target * row->stride, row->dtype);
    tl_token_stats_range(backend, row, 0, row->count, TL_BLOCK, target, target_raw, token, topk, cancel);
    double logit = tl_transformed(backend, row, target_raw), largest = tl_transformed(backend, row, token->maximum);
    tl_token_stats_end(backend, row, target_raw, token, topk);
    tl_nll_of_row(backend, row, target, &token->nll); /* the same bits as cross_entropy */
    token->logsumexp = tl_token_logsumexp(backend, row, token->logsumexp, logit, largest, cancel);
}
