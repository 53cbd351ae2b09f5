#include "token_stats.h"

#include <assert.h>

#include "scalar_math.h"

/* How many scores in [start, end) are not nan, but for the one at `skip`. */
static int64_t numbers(const tl_row *raw, int64_t start, int64_t end, int64_t skip) {
    int64_t count = 0;
    for (int64_t i = start; i < end; i++) {
        double score = tl_load(raw->data + i * raw->stride, raw->dtype);
        count += score == score && i != skip;
    }
    return count;
}

/* The entropy of a row from the losses of a target and of the rest, the state of the rest and its logarithm, and the
 * gap between both. With w the probability of the rest, it is w times the entropy of the rest, and that of the choice
 * between both. */
static double entropy_of(double nll, double rest_nll, double gap, const tl_lse_acc *rest, double log_of_rest) {
    double odds = tl_exp(gap), w = odds > 0x1p1000 ? 1 : odds / (1 + odds), p = 1 / (1 + odds);
    double of_rest = (log_of_rest - rest->moment->center) - tl_moment_mean(rest);
    double entropy = 0;
    if (w > 0)
        entropy += w * ((of_rest > 0 ? of_rest : 0) + rest_nll);
    if (p > 0)
        entropy += p * nll;
    return entropy;
}

/* Folds a block, unless the sum is nan already, and looks at the scores in memory: their maximum, and how many reach
 * the threshold, but for the target. */
static void fold_and_look(const tl_backend *backend, const tl_row *row, const tl_row *raw, int64_t start, int64_t end,
                          int64_t target, tl_lse_acc *state, tl_chunk_buf *buf, tl_lse_acc *look) {
    double sum = tl_lanes_sum_fast(state->sum);
    int as_given = !tl_is_scaled_or_capped(row) && state->offset == 0;
    int going = sum == sum && tl_lse_block(backend, row, start, end, target, state, buf);
    look->maximum = state->maximum;
    look->reached = state->reached;
    if (!as_given || state->offset != 0 || !going) {
        tl_chunk_buf again;
        tl_chunk_invalidate(&again);
        look->maximum = -(double)INFINITY;
        look->reached = 0;
        tl_reduce_range(backend, TL_REDUCE_MAX_COUNT, raw, start, end, target, look, &again);
    }
    if (look->threshold == -(double)INFINITY) /* which padding reaches, too */
        look->reached = numbers(raw, start, end, target);
}

/* A token of whose row nothing was seen but the first block, which tells where it lies. */
static void begin(const tl_backend *backend, const tl_row *row, int64_t block, int64_t target, double own,
                  tl_all_classes *whole, tl_token_stats *token, tl_chunk_buf *buf) {
    tl_lse_acc *state = &token->state;
    token->rank = own == own; /* the target itself */
    token->argmax = -1;
    token->maximum = -(double)INFINITY;
    int64_t first = row->count < TL_CHUNK ? row->count : TL_CHUNK;
    block = row->count < block ? row->count : block;
    double maximum = tl_maximum_between(backend, row, 0, first, target, buf);
    int going = tl_lse_begin(maximum, row->compute_dtype, &token->moment, state);
    state->threshold = own;
    if (whole) {
        tl_lse_acc all;
        *whole = (tl_all_classes){0, 0, (size_t)target % 16, TL_AHEAD, -1, tl_softcap(backend, row, own), {0}};
        if (target < first && whole->logit > maximum) {
            tl_lse_begin(whole->logit, row->compute_dtype, NULL, &all);
            if (all.offset != state->offset || all.exponent != state->exponent)
                whole->stage = TL_APART;
        }
        state->whole = whole;
    }
    if (going && first < block) {
        double others = tl_maximum_between(backend, row, first, block, target, buf);
        maximum = others > maximum ? others : maximum;
    }
    double leader = going ? maximum - state->offset : (double)NAN;
    if (leader - leader == 0)
        tl_moment_reshift(leader, tl_offset_dtype(row->compute_dtype, state->offset), state);
}

/* As tl_token_stats_range; the sum of all classes, too, if `whole` is not NULL. */
static void score_part(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block,
                       int64_t target, double own, tl_all_classes *whole, tl_token_stats *token, tl_topk *best,
                       tl_cancel *cancel) {
    tl_chunk_buf buf;
    tl_lse_acc look;
    assert(start % block == 0 && block <= TL_BLOCK && target >= 0 && target < row->count);
    tl_row raw = tl_raw(row);
    tl_chunk_invalidate(&buf);
    look.offset = 0;
    look.threshold = own;
    if (start == 0)
        begin(backend, row, block, target, own, whole, token, &buf);
    for (int64_t next; start < end; start = next) {
        next = end - start < block ? end : start + block;
        fold_and_look(backend, row, &raw, start, next, target, &token->state, &buf, &look);
        token->rank += look.reached;
        if (target >= start && target < next && own > look.maximum)
            look.maximum = own;
        if (look.maximum > token->maximum || token->argmax < 0) {
            int64_t first = tl_find(backend, &raw, start, next, look.maximum);
            token->argmax = first < next ? first : token->argmax;
            token->maximum = look.maximum;
        }
        if (best)
            tl_topk_scan(backend, &raw, start, next, look.maximum, best);
        if (next % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            return;
    }
}

void tl_token_stats_range(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block,
                          int64_t target, double own, tl_token_stats *token, tl_topk *best, tl_cancel *cancel) {
    score_part(backend, row, start, end, block, target, own, NULL, token, best, cancel);
}

/* All but the logsumexp. */
static void end(const tl_backend *backend, const tl_row *row, double logit, tl_lse rest, tl_token_stats *token,
                tl_topk *best) {
    double gap = tl_log_odds_against_lse(rest, logit),
           likelier = tl_log1p(tl_exp(-tl_abs(gap))); /* the loss of the likelier */
    token->nll = gap > 0 ? gap + likelier : likelier;
    double rest_nll = gap < 0 ? likelier - gap : likelier;
    token->entropy = gap == gap ? entropy_of(token->nll, rest_nll, gap, &token->state, rest.log) : gap;
    if (!best)
        return;
    tl_lse lse = tl_lse_add_class(rest, logit, gap);
    tl_topk_sort(best);
    for (int64_t i = 0; i < best->count; i++)
        best->value[i] = (tl_softcap(backend, row, best->value[i]) - lse.offset) - lse.log;
}

void tl_token_stats_end(const tl_backend *backend, const tl_row *row, double own, tl_token_stats *token,
                        tl_topk *best) {
    tl_lse rest = tl_lse_finish(&token->state, row);
    double logit = tl_softcap(backend, row, own);
    end(backend, row, logit, rest, token, best);
    token->logsumexp = tl_logsumexp(tl_lse_add_class(rest, logit, tl_log_odds_against_lse(rest, logit)));
}

void tl_token_stats_row(const tl_backend *backend, const tl_row *row, int64_t target, tl_token_stats *token,
                        tl_topk *best, tl_cancel *cancel) {
    double own = tl_load(row->data + target * row->stride, row->dtype);
    tl_all_classes whole;
    tl_lse_acc all;
    if (best)
        best->count = 0;
    score_part(backend, row, 0, row->count, TL_BLOCK, target, own, &whole, token, best, cancel);
    end(backend, row, whole.logit, tl_lse_finish(&token->state, row), token, best);
    if (whole.stage == TL_SHARED)
        all = tl_with_all(&token->state);
    else
        tl_lse_row(backend, row, -1, &all, cancel);
    token->logsumexp = tl_logsumexp_of(backend, row, &all, target, &token->state, cancel);
    token->state.whole = NULL;
}
