#include "pair.h"

#include <assert.h>
#include <math.h>

#include "nll.h"
#include "scalar_math.h"

#define MIN_LOG_PROB (-16.0)           /* llama.cpp's divergence counts the log-probabilities above it */
#define MIN_PROB 0x1.e355bbaee85cbp-24 /* its exponential */

/* Log-probabilities of the base above it are counted. */
static double floor_of(tl_definitions definitions) {
    return definitions == TL_LLAMA_CPP ? MIN_LOG_PROB : -(double)INFINITY;
}

/* The divergence. llama.cpp's is a sum over the counted classes, 0 of none. With s the sum of their probabilities,
 * these over s are a distribution, and llama.cpp's sum is s (its divergence + log s). */
static double divergence_of(tl_kl found, tl_definitions definitions) {
    if (definitions == TL_EXACT)
        return found.kl;
    if (found.base_logsumexp == -(double)INFINITY)
        return 0;
    return tl_exp(found.base_logsumexp) * (found.kl + found.base_logsumexp);
}

/* The probability of the most likely class of the base. */
static double top_probability(double maximum, double logsumexp, tl_definitions definitions) {
    double log_p = definitions == TL_LLAMA_CPP ? maximum : maximum - logsumexp;
    return tl_exp(log_p > 0 ? 0 : log_p); /* rounding may exceed 0 */
}

/* Looks for the most likely class in a block of a row whose maximum is given; both as they are in memory. */
static void find_top(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, double maximum,
                     tl_pair_side *of) {
    if (!(maximum > of->maximum || of->argmax < 0))
        return;
    int64_t first = tl_find(backend, raw, start, end, maximum);
    of->argmax = first < end ? first : of->argmax;
    of->maximum = maximum;
}

static double maximum_of(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end) {
    tl_chunk_buf buf;
    tl_chunk_invalidate(&buf);
    return tl_maximum_between(backend, raw, start, end, -1, &buf);
}

static tl_row in_dtype(const tl_row *row, int dtype) {
    tl_row of = *row;
    of.compute_dtype = dtype;
    return of;
}

/* Whether the divergence is that of probabilities, which is not found block by block. */
static int is_of_probs(const tl_row *base, const tl_row *row, tl_definitions definitions) {
    return base->of_probs && row->of_probs && definitions == TL_EXACT;
}

void tl_pair_range(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t start, int64_t end,
                   int64_t block, int64_t target, int dtype, tl_definitions definitions, tl_pair_acc *acc,
                   tl_cancel *cancel) {
    tl_row kl_base = in_dtype(base, dtype), kl_row = in_dtype(row, dtype), raw_base = tl_raw(base), raw = tl_raw(row);
    int as_given = !tl_is_transformed(base), reads_blocks = !is_of_probs(base, row, definitions);
    assert(start % block == 0 && block <= TL_BLOCK && target < row->count);
    if (start == 0) {
        acc->base.maximum = acc->other.maximum = -(double)INFINITY;
        acc->base.argmax = acc->other.argmax = -1;
        if (reads_blocks)
            tl_kl_begin(backend, &kl_base, &kl_row, floor_of(definitions), block, &acc->kl);
    }
    for (int64_t next; start < end; start = next) {
        next = end - start < block ? end : start + block;
        if (reads_blocks) /* from memory; the others read from the caches */
            tl_kl_block(backend, &kl_base, &kl_row, start, next, &acc->kl);
        if (target >= 0) {
            const tl_lse_acc *seen = &acc->kl.base.state;
            int knows_maximum = as_given && acc->kl.stage == TL_KL_OPEN && seen->offset == 0 &&
                                seen->maximum > -(double)INFINITY;
            double maximum = knows_maximum ? seen->maximum : maximum_of(backend, &raw_base, start, next);
            find_top(backend, &raw_base, start, next, maximum, &acc->base);
            find_top(backend, &raw, start, next, maximum_of(backend, &raw, start, next), &acc->other);
            if (definitions == TL_EXACT)
                tl_lse_range(backend, base, start, next, block, target, &acc->base.others, cancel);
            tl_lse_range(backend, row, start, next, block, target, &acc->other.others, cancel);
        }
        if (next % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            return;
    }
}

static double nll_of(const tl_backend *backend, const tl_row *row, const tl_pair_side *of, double target_raw) {
    return tl_softplus(tl_log_odds_against(&of->others, row, tl_transformed(backend, row, target_raw)));
}

/* The same of a whole row: the number that cross_entropy gives, bit for bit. */
static double nll_of_row(const tl_backend *backend, const tl_row *row, const tl_pair_side *of, int64_t target) {
    double nll;
    if (tl_nll_of_row(backend, row, target, &nll))
        return nll;
    return nll_of(backend, row, of, tl_load(row->data + target * row->stride, row->dtype));
}

/* What is known of a pair once its losses and its divergence are. */
static tl_pair end(const tl_backend *backend, const tl_row *base, double base_nll, double nll,
                   tl_definitions definitions, tl_kl found, const tl_pair_acc *acc) {
    tl_pair pair = {.kl = divergence_of(found, definitions)};
    pair.base_logsumexp = found.base_logsumexp;
    pair.logsumexp = found.logsumexp;
    pair.base_lse = found.base;
    pair.lse = found.other;
    pair.nll = nll;
    pair.base_nll = base_nll;
    pair.change = tl_exp(-pair.nll) - tl_exp(-pair.base_nll);
    pair.is_same_top = acc->base.argmax == acc->other.argmax && acc->base.argmax >= 0;
    double maximum = tl_transformed(backend, base, acc->base.maximum);
    pair.base_top_p = top_probability(maximum, found.base_logsumexp, definitions);
    return pair;
}

int tl_pair_end(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t target,
                double base_target_raw, double target_raw, int dtype, tl_pair_acc *acc, tl_pair *pair) {
    tl_row kl_base = in_dtype(base, dtype), kl_row = in_dtype(row, dtype);
    tl_kl found = tl_kl_finish(&kl_base, &kl_row, &acc->kl);
    if (target < 0)
        *pair = (tl_pair){.kl = found.kl, .base_lse = found.base, .lse = found.other};
    else
        *pair = end(backend, base, nll_of(backend, base, &acc->base, base_target_raw),
                    nll_of(backend, row, &acc->other, target_raw), TL_EXACT, found, acc);
    return acc->kl.stage != TL_KL_TOO_FAR;
}

tl_pair tl_pair_row(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t target, int dtype,
                    tl_definitions definitions, tl_cancel *cancel) {
    tl_row kl_base = in_dtype(base, dtype), kl_row = in_dtype(row, dtype);
    tl_pair_acc acc;
    tl_pair_range(backend, base, row, 0, row->count, TL_BLOCK, target, dtype, definitions, &acc, cancel);
    tl_kl found = is_of_probs(base, row, definitions) ? tl_kl_divergence(backend, base, row, cancel)
                                                       : tl_kl_end(backend, &kl_base, &kl_row, &acc.kl, cancel);
    double base_nll = definitions == TL_LLAMA_CPP ? 0 - tl_logit_at(backend, base, target)
                                                  : nll_of_row(backend, base, &acc.base, target);
    return end(backend, base, base_nll, nll_of_row(backend, row, &acc.other, target), definitions, found, &acc);
}

/* The most likely classes of rows in groups. */
static void find_tops(const tl_backend *backend, const tl_row_block *rows, int count, tl_short_ranks *ranks) {
    const double threshold[TL_BLOCK_ROWS] = {0};
    int dtype = tl_single_or_double(rows->row.compute_dtype);
    backend->short_ranks[dtype](tl_groups_of(rows), tl_groups_for(count), (size_t)rows->row.count, threshold, ranks);
}

/* The changes of probability of so many pairs. */
static void find_changes(const tl_backend *backend, tl_pair *pairs, int count, uint64_t which) {
    double p[TL_BLOCK_ROWS] = {0}, base_p[TL_BLOCK_ROWS] = {0};
    for (int i = 0; i < count; i++)
        if (which >> i & 1) {
            p[i] = -pairs[i].nll;
            base_p[i] = -pairs[i].base_nll;
        }
    backend->exps(p, tl_padded_rows(count));
    backend->exps(base_p, tl_padded_rows(count));
    for (int i = 0; i < count; i++)
        pairs[i].change = p[i] - base_p[i];
}

/* Pairs of short rows side by side; returns which were found. */
static uint64_t find_short(const tl_backend *backend, const tl_row_block *base, const tl_row_block *rows, int dtype,
                           tl_definitions definitions, tl_pair *pairs, tl_cancel *cancel) {
    int count = tl_grouped_rows(rows);
    tl_row_block p = *base, q = *rows;
    tl_kl found_of[TL_BLOCK_ROWS];
    tl_short_ranks base_tops, tops;
    tl_block_lse base_lse, lse;
    if (count == 0 || tl_is_transformed(&base->row) || tl_is_transformed(&rows->row))
        return 0;
    p.has_excluded = q.has_excluded = 0;
    p.row.compute_dtype = q.row.compute_dtype = dtype;
    uint64_t found = tl_kl_of_block(backend, &p, &q, floor_of(definitions), found_of);
    if (found == 0)
        return 0;
    find_tops(backend, &p, count, &base_tops);
    find_tops(backend, &q, count, &tops);
    p = *base;
    q = *rows;
    p.wanted = q.wanted = found;
    if (definitions == TL_EXACT)
        tl_odds_of_block(backend, &p, &base_lse, cancel);
    tl_odds_of_block(backend, &q, &lse, cancel);
    for (int i = 0; i < count; i++) {
        if (!(found >> i & 1))
            continue;
        tl_row base_row = tl_row_of_block(base, i);
        pairs[i].kl = divergence_of(found_of[i], definitions);
        pairs[i].base_logsumexp = found_of[i].base_logsumexp;
        pairs[i].logsumexp = found_of[i].logsumexp;
        pairs[i].base_lse = found_of[i].base;
        pairs[i].lse = found_of[i].other;
        pairs[i].nll = lse.relative.nll[i];
        pairs[i].base_nll = definitions == TL_LLAMA_CPP ? 0 - tl_logit_at(backend, &base_row, base->excluded[i])
                                                        : base_lse.relative.nll[i];
        pairs[i].is_same_top = base_tops.argmax[i] == tops.argmax[i];
        double maximum = tl_load(base->data[i] + base_tops.argmax[i] * base->row.stride, base->row.dtype);
        pairs[i].base_top_p = top_probability(maximum, found_of[i].base_logsumexp, definitions);
    }
    find_changes(backend, pairs, count, found);
    return found;
}

void tl_pair_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *rows, int dtype,
                      tl_definitions definitions, int divergences, tl_pair *pairs, tl_cancel *cancel) {
    assert(base->count == rows->count && base->wanted == rows->wanted);
    uint64_t left = rows->wanted & ~find_short(backend, base, rows, dtype, definitions, pairs, cancel);
    for (int i = 0; i < rows->count; i++) {
        tl_row base_row = tl_row_of_block(base, i), row = tl_row_of_block(rows, i);
        if (left >> i & 1)
            pairs[i] = tl_pair_row(backend, &base_row, &row, rows->excluded[i], dtype, definitions, cancel);
        base_row.compute_dtype = row.compute_dtype = dtype;
        if (divergences && rows->wanted >> i & 1)
            pairs[i].further = tl_divergences_of(backend, &base_row, &row, pairs[i].base_lse, pairs[i].lse, divergences,
                                                 cancel);
    }
}

double tl_pair_base_logsumexp(const tl_backend *backend, const tl_row *base, double counted, double most,
                              tl_cancel *cancel) {
    /* s <= sum <= s + V exp(-16), and s > 1 / 2: so the logsumexp is at most log(s) + 2 V exp(-16) */
    double less = most < TL_LN2 ? most : TL_LN2;
    tl_lse_acc all;
    if (counted > -less && counted + 2 * MIN_PROB * (double)base->count <= most)
        return counted;
    tl_lse_row(backend, base, -1, &all, cancel);
    return tl_logsumexp(tl_lse_finish(&all, base));
}
