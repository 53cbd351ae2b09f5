#include "pair.h"

#include "nll.h"

#define MIN_LOG_PROB (-16.0)           /* llama.cpp's divergence counts the log-probabilities above it */
#define MIN_PROB 0x1.e355bbaee85cbp-24 /* its exponential */

/* Makes log-probabilities that are not counted -inf: x - inf is -inf, and x - 0 is x. */
static void drop_uncounted(void *x, int dtype, size_t count) {
    double *wide = x;
    float *narrow = x;
    if (dtype == TL_FLOAT64)
        for (size_t i = 0; i < count; i++)
            wide[i] -= tl_from_bits(0x7ff0000000000000u & (0 - (uint64_t)(wide[i] <= MIN_LOG_PROB)));
    else
        for (size_t i = 0; i < count; i++)
            narrow[i] -= tl_float_from_bits(0x7f800000u & (0 - (uint32_t)(narrow[i] <= (float)MIN_LOG_PROB)));
}

/* A row of the elements [start, end) of another: copies, and -inf for those that are not counted. */
static tl_row counted_part(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double *copy) {
    tl_row part = tl_part_of(row, start, end), counted = tl_raw(row);
    counted.dtype = row->compute_dtype;
    counted.compute_dtype = row->compute_dtype;
    counted.stride = tl_itemsize(counted.dtype);
    counted.data = (const char *)copy - start * counted.stride;
    tl_cast_row(backend, &part, counted.dtype, copy);
    drop_uncounted(copy, counted.dtype, (size_t)part.count);
    return counted;
}

/* The divergence. llama.cpp's is a sum over the counted classes, 0 of none. With s the sum of their probabilities,
 * these over s are a distribution, and llama.cpp's sum is s (its divergence + log s). */
static double divergence_of(tl_kl found, tl_definitions definitions) {
    if (definitions == TL_EXACT)
        return found.kl;
    double log_sum = tl_logsumexp(found.base);
    return log_sum == -(double)INFINITY ? 0 : tl_exp(log_sum) * (found.kl + log_sum);
}

/* Looks for the most likely class of the other row in a block whose maximum is given; both as they are in memory. */
static void find_top(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, double maximum,
                     tl_pair_acc *of) {
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

/* Whether a range of two raw rows has the same bits. */
static int has_same_bits(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t start, int64_t end) {
    tl_two_rows rows;
    const char *first = base->data + start * base->stride, *other = row->data + start * row->stride;
    if (start < end && tl_to_bits(tl_load(first, base->dtype)) != tl_to_bits(tl_load(other, row->dtype)))
        return 0; /* nearly always: without copies */
    tl_begin_two(base, row, base->compute_dtype == row->compute_dtype ? row->compute_dtype : TL_FLOAT64, &rows);
    for (int64_t count; start < end; start += count) {
        count = tl_read_two(backend, &rows, start, end);
        if (memcmp(rows.at[0], rows.at[1], (size_t)(count * tl_itemsize(rows.dtype))) != 0)
            return 0;
    }
    return 1;
}

static void begin_pair(tl_pair_acc *acc) {
    acc->maximum = -(double)INFINITY;
    acc->argmax = -1;
    acc->first = acc->second = (tl_pair_class){-(double)INFINITY, (double)NAN, -1};
    acc->differs = 0;
}

/* Takes a class, if it is new, among the two most likely ones of the base. */
static void take_class(const tl_row *base, const tl_row *row, int64_t at, tl_pair_acc *acc) {
    double logit = tl_load(base->data + at * base->stride, base->dtype);
    if (!(logit > acc->second.base || acc->second.at < 0) || logit != logit || at == acc->first.at)
        return;
    tl_pair_class taken = {logit, tl_load(row->data + at * row->stride, row->dtype), at};
    if (logit > acc->first.base || acc->first.at < 0) {
        acc->second = acc->first;
        acc->first = taken;
    } else
        acc->second = taken;
}

/* Takes the largest logit of a range of raw rows, if it is among the two; its class, or else the end of the range. */
static int64_t take_largest(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t start, int64_t end,
                            tl_pair_acc *acc) {
    double maximum = start < end ? maximum_of(backend, base, start, end) : (double)NAN;
    if (start == end || (acc->second.at >= 0 && !(maximum > acc->second.base)))
        return end;
    int64_t at = tl_find(backend, base, start, end, maximum);
    if (at < end)
        take_class(base, row, at, acc);
    return at;
}

/* 2 units in the last place of a raw logit in the coarser of both dtypes; of a probability, whose logit is the
 * logarithm, as a part of it. */
static double rounding_at(const tl_row *base, const tl_row *row, double raw) {
    static const double STEPS[] = {[TL_FLOAT16] = 0x1p-9, [TL_BFLOAT16] = 0x1p-6, [TL_FLOAT32] = 0x1p-22,
                                   [TL_FLOAT64] = 0x1p-51};
    double base_step = STEPS[base->dtype & ~TL_SWAPPED], step = STEPS[row->dtype & ~TL_SWAPPED];
    double power = tl_from_bits(tl_to_bits(raw) & 0x7ff0000000000000); /* of 2, the largest one up to the logit */
    if (raw == 0 || raw - raw != 0)
        return 0;
    step = power * (base_step > step ? base_step : step);
    return base->of_probs ? step / tl_abs(raw) : step * tl_abs(base->logit_scale);
}

/* The margins of the base's most likely classes, and what rounding may change of them. */
static void find_margins(const tl_backend *backend, const tl_row *base, const tl_row *row, const tl_pair_acc *acc,
                         tl_pair *pair) {
    tl_pair_class first = acc->first, second = acc->second;
    double largest = tl_abs(second.base) > tl_abs(first.base) && second.at >= 0 ? second.base : first.base;
    pair->base_margin = tl_transformed(backend, base, first.base) - tl_transformed(backend, base, second.base);
    double margin = tl_transformed(backend, row, first.other) - tl_transformed(backend, row, second.other);
    pair->margin = pair->base_margin - pair->base_margin == 0 ? margin : (double)NAN; /* else there is no second */
    pair->rounding = rounding_at(base, row, largest);
    pair->is_identical = !acc->differs;
}

/* Whether the divergence is that of probabilities, which is not found block by block. */
static int is_of_probs(const tl_row *base, const tl_row *row, tl_definitions definitions) {
    return base->of_probs && row->of_probs && definitions == TL_EXACT;
}

void tl_pair_range(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t start, int64_t end,
                   int64_t block, int64_t target, int with_losses, int dtype, tl_definitions definitions,
                   tl_pair_acc *acc, tl_cancel *cancel) {
    tl_row kl_base = *base, kl_row = *row, raw_base = tl_raw(base), raw = tl_raw(row);
    int reads_blocks = !is_of_probs(base, row, definitions);
    double copy[TL_BLOCK];
    assert(start % block == 0 && block <= TL_BLOCK && target < row->count);
    kl_base.compute_dtype = kl_row.compute_dtype = definitions == TL_EXACT ? dtype : tl_single_or_double(dtype);
    if (start == 0 && target >= 0)
        begin_pair(acc);
    do {
        const int64_t next = end - start < block ? end : start + block;
        if (reads_blocks) { /* first: what follows finds the block in a cache */
            tl_row counted = kl_base;
            if (definitions == TL_LLAMA_CPP)
                counted = counted_part(backend, &kl_base, start, next, copy);
            tl_kl_range(backend, &counted, &kl_row, start, next, block, &acc->kl, cancel);
        }
        if (target >= 0) {
            int64_t top = take_largest(backend, &raw_base, &raw, start, next, acc);
            if (top < next) {
                take_largest(backend, &raw_base, &raw, start, top, acc);
                take_largest(backend, &raw_base, &raw, top + 1, next, acc);
            }
            find_top(backend, &raw, start, next, maximum_of(backend, &raw, start, next), acc);
            acc->differs = acc->differs || !has_same_bits(backend, &raw_base, &raw, start, next);
            if (with_losses && definitions == TL_EXACT)
                tl_lse_range(backend, base, start, next, block, target, &acc->base_others, cancel);
            if (with_losses)
                tl_lse_range(backend, row, start, next, block, target, &acc->others, cancel);
        }
        if (next % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            return;
        start = next;
    } while (start < end);
}

static double nll_of(const tl_backend *backend, const tl_row *row, const tl_lse_acc *others, double target_raw) {
    double logit = tl_transformed(backend, row, target_raw);
    return tl_softplus(tl_log_odds_against_lse(tl_lse_finish(others, row->compute_dtype), logit));
}

/* The same for a whole row: the number that cross_entropy gives, bit for bit. `others` is complete if has_others. */
static double nll_of_row(const tl_backend *backend, const tl_row *row, int64_t target, int has_others,
                         tl_lse_acc *others, tl_cancel *cancel) {
    double nll;
    if (tl_nll_of_row(backend, row, target, &nll))
        return nll;
    if (!has_others)
        tl_lse_range(backend, row, 0, row->count, TL_BLOCK, target, others, cancel);
    return nll_of(backend, row, others, tl_load(row->data + target * row->stride, row->dtype));
}

/* What is known of a pair once its losses and its divergence are, but for find_probabilities. */
static tl_pair end(const tl_backend *backend, const tl_row *base, const tl_row *row, double base_nll, double nll,
                   tl_definitions definitions, tl_kl found, const tl_pair_acc *acc) {
    tl_pair pair = {.kl = divergence_of(found, definitions), .nll = nll, .base_nll = base_nll};
    pair.base_lse = found.base;
    pair.lse = found.other;
    pair.is_same_top = acc->first.at == acc->argmax && acc->first.at >= 0;
    double log_p = tl_transformed(backend, base, acc->first.base) -
                   (definitions == TL_LLAMA_CPP ? 0 : tl_logsumexp(found.base));
    pair.base_top_p = log_p > 0 ? 0 : log_p; /* rounding may exceed 0 */
    find_margins(backend, base, row, acc, &pair);
    return pair;
}

/* Sets how the targets' probabilities change, and turns log-probabilities of the base's tops into probabilities. */
static void find_probabilities(const tl_backend *backend, tl_pair *pairs, int count, uint64_t which) {
    double p[TL_BLOCK_ROWS] = {0}, base_p[TL_BLOCK_ROWS] = {0}, top_p[TL_BLOCK_ROWS] = {0};
    for (int i = 0; i < count; i++)
        if (which >> i & 1) {
            p[i] = -pairs[i].nll;
            base_p[i] = -pairs[i].base_nll;
            top_p[i] = pairs[i].base_top_p;
        }
    backend->exps(p, tl_padded_rows(count));
    backend->exps(base_p, tl_padded_rows(count));
    backend->exps(top_p, tl_padded_rows(count));
    for (int i = 0; i < count; i++) {
        pairs[i].change = p[i] - base_p[i];
        pairs[i].base_top_p = top_p[i];
    }
}

int tl_pair_end(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t target,
                double base_target_raw, double target_raw, tl_pair_acc *acc, tl_pair *pair) {
    tl_kl found = tl_kl_finish(&acc->kl);
    if (target < 0)
        *pair = (tl_pair){.kl = found.kl, .base_lse = found.base, .lse = found.other};
    else {
        *pair = end(backend, base, row, nll_of(backend, base, &acc->base_others, base_target_raw),
                    nll_of(backend, row, &acc->others, target_raw), TL_EXACT, found, acc);
        find_probabilities(backend, pair, 1, 1);
    }
    return acc->kl.stage != TL_KL_TOO_FAR;
}

tl_pair tl_pair_row(const tl_backend *backend, const tl_row *base, const tl_row *row, int64_t target, int dtype,
                    tl_definitions definitions, tl_cancel *cancel) {
    const int are_long = row->count > tl_nll_classes(base->compute_dtype) ||
                         row->count > tl_nll_classes(row->compute_dtype); /* their losses need logsumexps */
    tl_pair_acc acc;
    tl_kl found;
    tl_pair_range(backend, base, row, 0, row->count, TL_BLOCK, target, are_long, dtype, definitions, &acc, cancel);
    if (is_of_probs(base, row, definitions)) {
        found = tl_kl_divergence(backend, base, row, cancel);
    } else {
        found = tl_kl_finish(&acc.kl);
        if (acc.kl.stage == TL_KL_TOO_FAR) {
            tl_pair_range(backend, base, row, 0, row->count, TL_BLOCK, -1, 0, TL_FLOAT64, definitions, &acc, cancel);
            found = tl_kl_finish(&acc.kl);
        }
    }
    double base_nll = definitions == TL_LLAMA_CPP
                          ? 0 - tl_logit_at(backend, base, target)
                          : nll_of_row(backend, base, target, are_long, &acc.base_others, cancel);
    double nll = nll_of_row(backend, row, target, are_long, &acc.others, cancel);
    tl_pair pair = end(backend, base, row, base_nll, nll, definitions, found, &acc);
    find_probabilities(backend, &pair, 1, 1);
    return pair;
}

/* Pairs of short rows side by side; returns which were found. */
static uint64_t find_short(const tl_backend *backend, const tl_row_block *base, const tl_row_block *rows, int dtype,
                           tl_definitions definitions, tl_pair *pairs, tl_cancel *cancel) {
    const double any_rank[TL_BLOCK_ROWS] = {0};
    const int count = tl_grouped_rows(rows);
    const size_t groups = tl_groups_for(count), classes = (size_t)rows->row.count;
    tl_row_block p = *base, q = *rows;
    tl_kl found_of[TL_BLOCK_ROWS];
    tl_short_ranks base_tops, base_seconds, tops;
    tl_block_lse base_lse, lse;
    if (count == 0 || tl_is_transformed(&base->row) || tl_is_transformed(&rows->row))
        return 0;
    p.has_excluded = q.has_excluded = 0;
    p.row.compute_dtype = q.row.compute_dtype = dtype;
    tl_groups of_base = tl_load_scaled_groups(backend, &p, count), of_rows = tl_load_scaled_groups(backend, &q, count);
    if (definitions == TL_LLAMA_CPP)
        drop_uncounted(of_base.at, of_base.dtype, tl_group_elements(&p) * tl_groups_for(count));
    uint64_t found = tl_kl_of_groups(backend, &p, &q, count, of_base, of_rows, found_of);
    if (definitions == TL_LLAMA_CPP)
        of_base = tl_load_scaled_groups(backend, &p, count);
    const tl_few_rows few_of_base = tl_few_of_groups(of_base.at, classes, of_base.dtype);
    const tl_few_rows few_of_rows = tl_few_of_groups(of_rows.at, classes, of_rows.dtype);
    backend->short_ranks[of_base.dtype](&few_of_base, groups, any_rank, &base_tops);
    for (int i = 0; i < count; i++)
        if (found >> i & 1)
            tl_store_to_groups(of_base, tl_place_in_groups(&p, i, base_tops.argmax[i]), -(double)INFINITY);
    backend->short_ranks[of_base.dtype](&few_of_base, groups, any_rank, &base_seconds);
    backend->short_ranks[of_rows.dtype](&few_of_rows, groups, any_rank, &tops);
    p = *base;
    q = *rows;
    p.wanted = q.wanted = found;
    if (definitions == TL_EXACT)
        tl_odds_of_block(backend, &p, &base_lse, cancel);
    tl_odds_of_block(backend, &q, &lse, cancel);
    for (int i = 0; i < count; i++) {
        if (!(found >> i & 1))
            continue;
        tl_row base_row = tl_row_of_block(base, i), row = tl_row_of_block(rows, i);
        tl_pair_acc acc;
        begin_pair(&acc);
        take_class(&base_row, &row, base_tops.argmax[i], &acc);
        const int64_t second = base_seconds.argmax[i] == base_tops.argmax[i] ? 0 : base_seconds.argmax[i];
        for (int64_t k = second; acc.second.at < 0 && k < row.count; k++) /* several, if it may be -inf */
            take_class(&base_row, &row, k, &acc);
        acc.differs = !has_same_bits(backend, &base_row, &row, 0, row.count);
        acc.argmax = tops.argmax[i];
        double base_nll = definitions == TL_LLAMA_CPP ? 0 - tl_logit_at(backend, &base_row, base->excluded[i])
                                                      : base_lse.relative.nll[i];
        pairs[i] = end(backend, &base_row, &row, base_nll, lse.relative.nll[i], definitions, found_of[i], &acc);
    }
    find_probabilities(backend, pairs, count, found);
    return found;
}

/* Finds the further divergences of the wanted pairs. */
static void find_divergences(const tl_backend *backend, const tl_row_block *base, const tl_row_block *rows, int dtype,
                             int divergences, tl_pair *pairs, tl_cancel *cancel) {
    tl_row_block p = *base, q = *rows;
    tl_kl kl[TL_BLOCK_ROWS] = {{0, {0, 0}, {0, 0}}};
    tl_divergences found[TL_BLOCK_ROWS];
    p.row.compute_dtype = q.row.compute_dtype = dtype;
    for (int i = 0; i < rows->count; i++)
        if (tl_is_wanted(rows, i))
            kl[i] = (tl_kl){pairs[i].kl, pairs[i].base_lse, pairs[i].lse};
    tl_divergences_of_block(backend, &p, &q, kl, divergences, found, cancel);
    for (int i = 0; i < rows->count; i++)
        if (tl_is_wanted(rows, i))
            pairs[i].further = found[i];
}

void tl_pair_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *rows, int dtype,
                      tl_definitions definitions, int divergences, tl_pair *pairs, tl_cancel *cancel) {
    assert(base->count == rows->count && base->wanted == rows->wanted);
    uint64_t left = rows->wanted & ~find_short(backend, base, rows, dtype, definitions, pairs, cancel);
    for (int i = 0; i < rows->count; i++) {
        tl_row base_row = tl_row_of_block(base, i), row = tl_row_of_block(rows, i);
        if (left >> i & 1)
            pairs[i] = tl_pair_row(backend, &base_row, &row, rows->excluded[i], dtype, definitions, cancel);
    }
    if (divergences)
        find_divergences(backend, base, rows, dtype, divergences, pairs, cancel);
}

double tl_pair_base_logsumexp(const tl_backend *backend, const tl_row *base, double counted, double most,
                              tl_cancel *cancel) {
    /* s <= sum <= s + V exp(-16), and s > 1 / 2: so the logsumexp is at most log(s) + 2 V exp(-16) */
    double less = most < TL_LN2 ? most : TL_LN2;
    tl_lse_acc all;
    if (counted > -less && counted + 2 * MIN_PROB * (double)base->count <= most)
        return counted;
    tl_lse_row(backend, base, -1, &all, cancel);
    return tl_logsumexp(tl_lse_finish(&all, base->compute_dtype));
}
