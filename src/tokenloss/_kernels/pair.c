#include "pair.h"

#include <assert.h>
#include <math.h>

#include "scalar_math.h"

#define MIN_LOG_PROB (-16.0)           /* llama.cpp's divergence counts the log-probabilities above it */
#define MIN_PROB 0x1.e355bbaee85cbp-24 /* its exponential */

static double floor_of(int of_log_probs) { return of_log_probs ? MIN_LOG_PROB : -(double)INFINITY; }

/* The divergence. llama.cpp's is a sum over the counted classes, 0 of none. With s the sum of their probabilities,
 * these over s are a distribution, and llama.cpp's sum is s (its divergence + log s). */
static double divergence_of(tl_kl found, int of_log_probs) {
    if (of_log_probs && found.base_logsumexp == -(double)INFINITY)
        return 0;
    return of_log_probs ? tl_exp(found.base_logsumexp) * (found.kl + found.base_logsumexp) : found.kl;
}

/* The probability of the most likely class of the base. */
static double top_probability(double maximum, double logsumexp, int of_log_probs) {
    double log_p = of_log_probs ? maximum : maximum - logsumexp;
    return tl_exp(log_p > 0 ? 0 : log_p); /* rounding may exceed 0 */
}

/* One of the two rows, as it is in memory. */
typedef struct {
    tl_row row;
    tl_lse_acc others;
    double maximum;
    int64_t argmax;
} side;

static side new_side(const tl_row *row) {
    side of = {.row = tl_raw(row), .maximum = -(double)INFINITY, .argmax = -1};
    return of;
}

/* Looks for the most likely class in a block whose maximum is given. */
static void find_top(const tl_backend *backend, side *of, int64_t start, int64_t end, double maximum) {
    if (!(maximum > of->maximum || of->argmax < 0))
        return;
    int64_t first = tl_find(backend, &of->row, start, end, maximum);
    of->argmax = first < end ? first : of->argmax;
    of->maximum = maximum;
}

static double maximum_of(const tl_backend *backend, const side *of, int64_t start, int64_t end) {
    tl_chunk_buf buf;
    tl_chunk_invalidate(&buf);
    return tl_maximum_between(backend, &of->row, start, end, -1, &buf);
}

static double nll_of(const tl_backend *backend, const side *of, int64_t target) {
    double logit = tl_logit_at(backend, &of->row, target);
    return tl_softplus(tl_log_odds_against(&of->others, &of->row, logit));
}

tl_pair tl_pair_row(const tl_backend *backend, const tl_row *base_row, const tl_row *row, int64_t target, int dtype,
                    int of_log_probs, tl_cancel *cancel) {
    side base = new_side(base_row), other = new_side(row);
    tl_row kl_base = base.row, kl_other = other.row;
    tl_pair pair = {0};
    tl_kl_acc acc;
    int64_t count = row->count;
    kl_base.compute_dtype = kl_other.compute_dtype = dtype;
    tl_kl_begin(backend, &kl_base, &kl_other, floor_of(of_log_probs), &acc);
    for (int64_t start = 0, end; start < count; start = end) {
        end = count - start < TL_BLOCK ? count : start + TL_BLOCK;
        tl_kl_block(backend, start, end, &acc); /* from memory; the others read from the caches */
        const tl_lse_acc *seen = &acc.base.state;
        int knows_maximum = acc.stage == TL_KL_OPEN && seen->offset == 0 && seen->maximum > -(double)INFINITY;
        find_top(backend, &base, start, end, knows_maximum ? seen->maximum : maximum_of(backend, &base, start, end));
        find_top(backend, &other, start, end, maximum_of(backend, &other, start, end));
        if (!of_log_probs)
            tl_lse_range(backend, &base.row, start, end, TL_BLOCK, target, &base.others, cancel);
        tl_lse_range(backend, &other.row, start, end, TL_BLOCK, target, &other.others, cancel);
        if (end % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            return pair;
    }
    tl_kl found = tl_kl_end(backend, &acc, cancel);
    pair.kl = divergence_of(found, of_log_probs);
    pair.base_logsumexp = found.base_logsumexp;
    pair.nll = nll_of(backend, &other, target);
    pair.base_nll = of_log_probs ? 0 - tl_logit_at(backend, &base.row, target) : nll_of(backend, &base, target);
    pair.change = tl_exp(-pair.nll) - tl_exp(-pair.base_nll);
    pair.is_same_top = base.argmax == other.argmax && base.argmax >= 0;
    pair.base_top_p = top_probability(base.maximum, found.base_logsumexp, of_log_probs);
    return pair;
}

/* The most likely classes of rows in groups. */
static void find_tops(const tl_backend *backend, const tl_row_block *rows, int count, tl_short_ranks *ranks) {
    const double threshold[TL_BLOCK_ROWS] = {0};
    int dtype = rows->row.compute_dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
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
                           int of_log_probs, tl_pair *pairs, tl_cancel *cancel) {
    int count = tl_grouped_rows(rows);
    tl_row_block p = *base, q = *rows;
    tl_kl found_of[TL_BLOCK_ROWS];
    tl_short_ranks base_tops, tops;
    tl_block_lse base_lse, lse;
    if (count == 0)
        return 0;
    p.has_excluded = q.has_excluded = 0;
    p.row.compute_dtype = q.row.compute_dtype = dtype;
    uint64_t found = tl_kl_of_block(backend, &p, &q, floor_of(of_log_probs), found_of);
    if (found == 0)
        return 0;
    find_tops(backend, &p, count, &base_tops);
    find_tops(backend, &q, count, &tops);
    p = *base;
    q = *rows;
    p.wanted = q.wanted = found;
    if (!of_log_probs)
        tl_lse_of_block(backend, &p, 0, &base_lse, cancel);
    tl_lse_of_block(backend, &q, 0, &lse, cancel);
    for (int i = 0; i < count; i++) {
        if (!(found >> i & 1))
            continue;
        tl_row base_row = tl_row_of_block(base, i);
        pairs[i].kl = divergence_of(found_of[i], of_log_probs);
        pairs[i].base_logsumexp = found_of[i].base_logsumexp;
        pairs[i].nll = lse.odds.nll[i];
        pairs[i].base_nll =
            of_log_probs ? 0 - tl_logit_at(backend, &base_row, base->excluded[i]) : base_lse.odds.nll[i];
        pairs[i].is_same_top = base_tops.argmax[i] == tops.argmax[i];
        double maximum = tl_load(base->data[i] + base_tops.argmax[i] * base->row.stride, base->row.dtype);
        pairs[i].base_top_p = top_probability(maximum, found_of[i].base_logsumexp, of_log_probs);
    }
    find_changes(backend, pairs, count, found);
    return found;
}

void tl_pair_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *rows, int dtype,
                      int of_log_probs, tl_pair *pairs, tl_cancel *cancel) {
    assert(base->count == rows->count && base->wanted == rows->wanted);
    uint64_t left = rows->wanted & ~find_short(backend, base, rows, dtype, of_log_probs, pairs, cancel);
    for (int i = 0; i < rows->count; i++) {
        tl_row base_row = tl_row_of_block(base, i), row = tl_row_of_block(rows, i);
        if (left >> i & 1)
            pairs[i] = tl_pair_row(backend, &base_row, &row, rows->excluded[i], dtype, of_log_probs, cancel);
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
