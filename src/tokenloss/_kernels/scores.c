/* Everything about a token in one pass. */
#include "scalar_math.h"
#include "walk.h"

/* Whether entry i of the best is worse than another: lower, or as high and of a higher class. */
static int worse(const tl_best *best, int64_t i, double value, int64_t id) {
    return best->value[i] < value || (best->value[i] == value && best->id[i] > id);
}

static void set(tl_best *best, int64_t i, double value, int64_t id) {
    best->value[i] = value;
    best->id[i] = id;
}

/* Puts an entry where the heap's root was. */
static void sift(tl_best *best, int64_t count, double value, int64_t id) {
    int64_t i = 0;
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child + 1 < count && worse(best, child + 1, best->value[child], best->id[child]))
            child++;
        if (child >= count || !worse(best, child, value, id))
            break;
        set(best, i, best->value[child], best->id[child]);
        i = child;
    }
    set(best, i, value, id);
}

static void keep(tl_best *best, double value, int64_t id) {
    if (best->count == best->most) {
        sift(best, best->count, value, id);
        return;
    }
    int64_t i = best->count++;
    for (; i > 0 && !worse(best, (i - 1) / 2, value, id); i = (i - 1) / 2)
        set(best, i, best->value[(i - 1) / 2], best->id[(i - 1) / 2]);
    set(best, i, value, id);
}

/* Sorts a heap, best first; places that were not filled get nan and -1. */
static void sort(tl_best *best) {
    for (int64_t count = best->count; count > 1; count--) {
        double value = best->value[count - 1];
        int64_t id = best->id[count - 1];
        set(best, count - 1, best->value[0], best->id[0]);
        sift(best, count - 1, value, id);
    }
    for (int64_t i = best->count; i < best->most; i++)
        set(best, i, (double)NAN, -1);
}

/* The next score above this one in its precision. */
static double next_above(double value, int dtype) {
    if (dtype == TL_FLOAT64) {
        uint64_t bits = tl_to_bits(value == 0 ? 0 : value);
        return tl_from_bits(value < 0 ? bits - 1 : bits + 1);
    }
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    return (double)(value == 0 ? 0x1p-149f : tl_float_from_bits(value < 0 ? bits - 1 : bits + 1));
}

/* Keeps those of the scores in [start, end), a block at most, that are among the best so far. */
static void keep_best(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, double maximum,
                      tl_best *best) {
    int32_t found[TL_BLOCK];
    while (start < end) {
        /* short stretches at first, for each raises the bar */
        int64_t length = start < TL_PADDED ? TL_PADDED : start, until = length < end - start ? start + length : end;
        double lowest = best->count == best->most ? best->value[0] : -(double)INFINITY;
        if (!(maximum > lowest))
            return;
        int64_t count = tl_collect(backend, raw, start, until, next_above(lowest, raw->folded), found);
        for (int64_t i = 0; i < count; i++) {
            double score = tl_load(raw->data + (start + found[i]) * raw->stride, raw->dtype);
            if (best->count < best->most || score > best->value[0])
                keep(best, score, start + found[i]);
        }
        start = until;
    }
}

/* What a row leaves open whose best or whose target is -inf: the first -inf, and as many as are wanted. */
static void finish(const tl_row *raw, double threshold, tl_token *token, tl_best *best) {
    int all_reach = threshold == -(double)INFINITY, filling = best && best->count < best->most;
    if (token->argmax >= 0 && !all_reach && !filling)
        return;
    if (all_reach)
        token->rank = 0; /* the padding was counted, too */
    for (int64_t i = 0; i < raw->count; i++) {
        double score = tl_load(raw->data + i * raw->stride, raw->dtype);
        token->rank += all_reach && score == score;
        if (score != -(double)INFINITY)
            continue;
        if (token->argmax < 0)
            token->argmax = i;
        if (best && best->count < best->most)
            keep(best, score, i);
        else if (!all_reach)
            return;
    }
}

/* The entropy of a row from the loss of a target, the state of the rest, and the gap between them. With w the
 * probability of the rest, it is w times the entropy of the rest, and that of the choice between both. */
static double entropy_of(double nll, double gap, const tl_state *rest, const tl_row *row) {
    double odds = tl_exp(gap), w = odds > 0x1p1000 ? 1 : odds / (1 + odds), p = 1 / (1 + odds);
    double of_rest = (tl_log_of_sum(rest, row) - rest->moment->center) - tl_mean(rest);
    double entropy = 0;
    if (w > 0)
        entropy += w * ((of_rest > 0 ? of_rest : 0) + tl_softplus(-gap));
    if (p > 0)
        entropy += p * nll;
    return entropy;
}

/* Folds a block, and looks at it: its maximum, and how many of its scores reach the threshold, but for the target. */
static int fold_and_look(const tl_backend *backend, const tl_row *row, const tl_row *raw, int64_t start, int64_t end,
                         int64_t target, tl_state *state, tl_scratch *scratch, tl_state *look) {
    int as_given = !tl_squashed(row) && state->offset == 0;
    int going = tl_fold_block(backend, row, start, end, target, state, scratch);
    look->maximum = state->maximum;
    look->reached = state->reached;
    if (!as_given || state->offset != 0 || !going) {
        tl_scratch again;
        tl_clear(&again);
        look->maximum = -(double)INFINITY;
        look->reached = 0;
        tl_walk(backend, TL_LOOK, raw, start, end, target, look, &again);
    }
    return going;
}

void tl_score_row(const tl_backend *backend, const tl_row *row, int64_t target, tl_token *token, tl_best *best,
                  tl_patience *patience) {
    tl_scratch scratch;
    tl_moment moment;
    tl_state state, look;
    tl_row raw = *row;
    raw.scale = 1;
    raw.cap = 0;
    raw.folded = raw.dtype & ~TL_SWAPPED;
    tl_clear(&scratch);
    look.offset = 0;
    double own = tl_load(raw.data + target * raw.stride, raw.dtype), maximum = -(double)INFINITY;
    token->rank = own == own; /* the target itself */
    token->argmax = -1;
    if (best)
        best->count = 0;
    int64_t first = row->count < TL_GRANULE ? row->count : TL_GRANULE;
    int going = tl_begin(tl_maximum_between(backend, row, 0, first, target, &scratch), row->folded, &moment, &state);
    state.threshold = look.threshold = own;
    int64_t block = row->count < TL_BLOCK ? row->count : TL_BLOCK;
    double leader = going ? tl_maximum_between(backend, row, 0, block, target, &scratch) - state.offset : (double)NAN;
    if (leader - leader == 0)
        tl_center(leader, tl_offset_dtype(row->folded, state.offset), &state);
    for (int64_t start = 0; start < row->count; start += TL_BLOCK) {
        int64_t end = row->count - start < TL_BLOCK ? row->count : start + TL_BLOCK;
        int holds_target = target >= start && target < end;
        if (going) {
            going = fold_and_look(backend, row, &raw, start, end, target, &state, &scratch, &look);
        } else {
            look.maximum = -(double)INFINITY;
            look.reached = 0;
            tl_clear(&scratch);
            tl_walk(backend, TL_LOOK, &raw, start, end, target, &look, &scratch);
        }
        token->rank += look.reached;
        if (holds_target && own > look.maximum)
            look.maximum = own;
        if (look.maximum > maximum) {
            maximum = look.maximum;
            token->argmax = tl_find(backend, &raw, start, end, maximum);
        }
        if (best)
            keep_best(backend, &raw, start, end, look.maximum, best);
        if (end % TL_PAUSE == 0 && tl_gave_up(patience))
            return;
    }
    finish(&raw, own, token, best);
    double logit = tl_score(backend, row, target), gap = tl_gap(&state, row, logit);
    tl_normalizer normalizer = tl_normalize_with(&state, row, logit, gap);
    token->nll = tl_softplus(gap);
    token->logsumexp = tl_logsumexp(normalizer);
    token->entropy = gap == gap ? entropy_of(token->nll, gap, &state, row) : gap;
    if (!best)
        return;
    sort(best);
    for (int64_t i = 0; i < best->count; i++)
        best->value[i] = (tl_score(backend, row, best->id[i]) - normalizer.offset) - normalizer.log;
}
