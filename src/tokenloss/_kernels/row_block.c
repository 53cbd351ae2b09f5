#include "row_block.h"

#include <assert.h>
#include <math.h>

#include "elementwise.h"
#include "scalar_math.h"

#define LINE 64 /* bytes that groups are aligned to */

static int is_short(int64_t classes) { return classes <= TL_SHORT_ROW; }

int tl_row_block_rows(int64_t classes, int class_major) {
    /* the groups of contiguous rows stay in the first cache; of class-major ones, a visit to a plane should be long */
    if (!is_short(classes) || class_major || classes <= TL_SHORT_ROW / 4)
        return TL_BLOCK_ROWS;
    return classes <= TL_SHORT_ROW / 2 ? TL_BLOCK_ROWS / 2 : TL_GROUP;
}

/* Scratch memory: groups in double at most, the same in float before they are scaled, and a row that nobody reads. */
size_t tl_row_block_bytes(int64_t classes, int class_major) {
    size_t padded = (size_t)tl_padded(classes), rows = (size_t)tl_row_block_rows(classes, class_major);
    if (!is_short(classes))
        return class_major ? TL_TRANSPOSED_BYTES : 1;
    return LINE + rows * padded * (sizeof(double) + sizeof(float)) + padded * sizeof(double);
}

static char *groups_of(const tl_row_block *rows) {
    return rows->scratch + (-(uintptr_t)rows->scratch & (LINE - 1));
}
static size_t group_elements(const tl_row_block *rows) { return (size_t)rows->row.count * TL_GROUP; }
static char *float_groups_of(const tl_row_block *rows) {
    size_t capacity = (size_t)tl_row_block_rows(rows->row.count, rows->class_major) * (size_t)tl_padded(rows->row.count);
    return groups_of(rows) + capacity * sizeof(double);
}
static char *unread_row_of(const tl_row_block *rows) {
    size_t capacity = (size_t)tl_row_block_rows(rows->row.count, rows->class_major) * (size_t)tl_padded(rows->row.count);
    return float_groups_of(rows) + capacity * sizeof(float);
}

/* Whether rows [start, start + count) lie one element apart, so that a vector of them can be read at once. */
static int are_neighbours(const char *const *data, int start, int count, ptrdiff_t size) {
    int found = 1;
    for (int i = start + 1; i < start + count; i++)
        found &= data[i] - data[i - 1] == size;
    return found;
}

/* Element by element: of any stride, and in either byte order. Lanes without a row become -inf. */
static void load_group(const tl_row_block *rows, int start, int count, int dtype, char *group) {
    for (int64_t k = 0; k < rows->row.count; k++)
        for (int r = 0; r < TL_GROUP; r++) {
            double value = -(double)INFINITY;
            if (r < count)
                value = tl_load(rows->data[start + r] + k * rows->row.stride, rows->row.dtype);
            tl_store(group + (k * TL_GROUP + r) * tl_itemsize(dtype), dtype, value);
        }
}

/* Loads the first `count` rows into groups of this dtype, unscaled. */
static void load_groups(const tl_backend *backend, const tl_row_block *rows, int count, int dtype, char *groups) {
    const tl_row *row = &rows->row;
    ptrdiff_t size = tl_itemsize(row->dtype);
    size_t classes = (size_t)row->count, group_bytes = group_elements(rows) * (size_t)tl_itemsize(dtype);
    int is_native = row->dtype < TL_SWAPPED, is_contiguous = row->stride == size || classes == 1;
    if (is_native && !is_contiguous && count > 1 && are_neighbours(rows->data, 0, count, size)) {
        backend->interleave_planes[row->dtype](rows->data[0], row->stride, classes, (size_t)count, groups);
        return;
    }
    for (int start = 0; start < count; start += TL_GROUP, groups += group_bytes) {
        int n = count - start < TL_GROUP ? count - start : TL_GROUP;
        if (is_native && is_contiguous) {
            const char *data[TL_GROUP]; /* lanes without a row repeat the last */
            for (int r = 0; r < TL_GROUP; r++)
                data[r] = rows->data[start + (r < n ? r : n - 1)];
            backend->interleave[row->dtype](n == TL_GROUP ? rows->data + start : data, classes, groups);
        } else if (is_native && n > 1 && are_neighbours(rows->data, start, n, size)) {
            backend->interleave_planes[row->dtype](rows->data[start], row->stride, classes, (size_t)n, groups);
        } else {
            load_group(rows, start, n, dtype, groups);
        }
    }
}

/* Loads the first `count` rows into groups of the compute dtype, scaled and capped. */
static int load_block(const tl_backend *backend, const tl_row_block *rows, int count) {
    const tl_row *row = &rows->row;
    int native = (row->dtype & ~TL_SWAPPED) == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
    int dtype = row->compute_dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
    char *groups = groups_of(rows), *loaded = native == dtype ? groups : float_groups_of(rows);
    size_t elements = group_elements(rows) * (size_t)((count + TL_GROUP - 1) / TL_GROUP);
    load_groups(backend, rows, count, native, loaded);
    if (native != dtype)
        for (size_t i = 0; i < elements; i++)
            ((double *)(void *)groups)[i] = (double)((const float *)(const void *)loaded)[i];
    if (tl_is_scaled_or_capped(row))
        backend->softcap((double *)(void *)groups, elements, row->logit_scale, row->softcap);
    return dtype;
}

/* How many rows of a group make it faster than rows one by one. */
static int least_in_group(int64_t classes) { return 2 + (int)(classes / 100); }

/* How many rows of the block are reduced in groups, from the first on. */
static int grouped_rows(const tl_row_block *rows) {
    int last = rows->count % TL_GROUP;
    if (!is_short(rows->row.count) || rows->row.count == 0 || rows->row.shift != 0)
        return 0;
    return last == 0 || last >= least_in_group(rows->row.count) ? rows->count : rows->count - last;
}

/* The logits of excluded classes; they become -inf. `at` is where they lie. */
static void exclude(void *groups, int dtype, const size_t *at, int count, double *logit) {
    float *single = (float *)groups;
    double *wide = (double *)groups;
    for (int i = 0; dtype == TL_FLOAT32 && i < count; i++) {
        logit[i] = (double)single[at[i]];
        single[at[i]] = -(float)INFINITY;
    }
    for (int i = 0; dtype == TL_FLOAT64 && i < count; i++) {
        logit[i] = wide[at[i]];
        wide[at[i]] = -(double)INFINITY;
    }
}

static void put_back(void *groups, int dtype, const size_t *at, int count, const double *logit) {
    for (int i = 0; dtype == TL_FLOAT32 && i < count; i++)
        ((float *)groups)[at[i]] = (float)logit[i];
    for (int i = 0; dtype == TL_FLOAT64 && i < count; i++)
        ((double *)groups)[at[i]] = logit[i];
}

/* Rows whose maximum or target's logit is too large for an exact reduction, or nan: a bit for each. */
static uint64_t far_rows(const tl_block_lse *lse, int count) {
    const double infinity = (double)INFINITY;
    uint64_t far = 0;
    int some = lse->sums.has_far_maximum;
    for (int i = 0; i < count; i++)
        some |= !(tl_abs(lse->logit[i]) <= TL_MAX_EXACT_REDUCTION);
    for (int i = 0; some && i < count; i++) {
        double maximum = tl_abs(lse->sums.maximum[i]), logit = tl_abs(lse->logit[i]);
        int is_far = maximum > TL_MAX_EXACT_REDUCTION && lse->sums.maximum[i] != -infinity;
        is_far |= !(logit <= TL_MAX_EXACT_REDUCTION) && lse->logit[i] != -infinity;
        far |= (uint64_t)is_far << i;
    }
    return far;
}

/* Where the excluded classes of the first `count` rows lie, as elements of the groups. */
static void find_excluded(const tl_row_block *rows, int count, int dtype, size_t *at) {
    size_t group = 0, unread = (size_t)(unread_row_of(rows) - groups_of(rows)) / (size_t)tl_itemsize(dtype);
    for (int start = 0; start < count; start += TL_GROUP, group += group_elements(rows))
        for (int i = start; i < start + TL_GROUP && i < count; i++) {
            int64_t k = rows->excluded[i];
            at[i] = k < 0 ? unread : group + (size_t)k * TL_GROUP + (size_t)(i - start);
        }
}

/* Where the rows after this block lie, if they go on as it ends. */
static tl_next_rows next_rows(const tl_row_block *rows) {
    tl_next_rows next = {NULL, 0, 0};
    int last = rows->count - 1;
    if (last > 0 && (rows->class_major || rows->row.stride == tl_itemsize(rows->row.dtype))) {
        next.row_stride = rows->data[last] - rows->data[last - 1];
        next.data = rows->data[last] + next.row_stride;
        next.class_stride = rows->class_major ? rows->row.stride : 0;
    }
    return next;
}

/* Reduces the first `count` rows in groups. */
static void reduce_groups(const tl_backend *backend, const tl_row_block *rows, int count, int wants_lanes,
                          tl_block_lse *lse) {
    size_t at[TL_BLOCK_ROWS];
    int dtype = lse->group_dtype = load_block(backend, rows, count);
    void *groups = groups_of(rows);
    if (rows->has_excluded) {
        find_excluded(rows, count, dtype, at);
        memset(unread_row_of(rows), 0, sizeof(double));
        exclude(groups, dtype, at, count, lse->logit);
    }
    tl_next_rows next = next_rows(rows);
    backend->short_sumexp[dtype](groups, (size_t)(count + TL_GROUP - 1) / TL_GROUP, (size_t)rows->row.count, &next,
                                 wants_lanes, &lse->sums);
    if (rows->has_excluded && rows->keeps_logits)
        put_back(groups, dtype, at, count, lse->logit);
    lse->grouped = (~(uint64_t)0 >> (TL_BLOCK_ROWS - count)) & rows->wanted & ~far_rows(lse, count);
}

/* Takes over the accumulator of a row that was reduced by itself. */
static void take_row(int i, const tl_lse_acc *state, int wants_lanes, tl_block_lse *lse) {
    lse->offset[i] = state->offset;
    lse->sums.ref_exp[i] = (double)state->ref_exp;
    lse->sums.sum[i] = tl_lanes_sum_compensated(state->sum, state->comp);
    if (!wants_lanes)
        return;
    lse->sums.largest_lane[i] = 0;
    for (int l = 0; l < 16; l++)
        if (state->sum[l] > lse->sums.largest_lane[i])
            lse->sums.largest_lane[i] = state->sum[l];
    lse->sums.in_order[i] = tl_lanes_sum_in_order(state->sum);
}

/* Reduces wanted rows that were not reduced in groups: long class-major ones together, the others one by one. */
static void reduce_others(const tl_backend *backend, const tl_row_block *rows, int wants_lanes, tl_block_lse *lse,
                          tl_cancel *cancel) {
    tl_row together[TL_MAX_CLASS_MAJOR_ROWS];
    tl_lse_acc states[TL_MAX_CLASS_MAJOR_ROWS];
    int64_t excluded[TL_MAX_CLASS_MAJOR_ROWS];
    int number[TL_MAX_CLASS_MAJOR_ROWS], count = 0;
    int most = rows->class_major && !is_short(rows->row.count) ? TL_ROWS_PER_CACHE_LINE(rows->row.dtype) : 1;
    uint64_t left = rows->wanted & ~lse->grouped;
    for (int i = 0; i < rows->count && left >> i != 0; i++) {
        if (left >> i & 1) {
            number[count] = i;
            excluded[count] = rows->excluded[i];
            together[count++] = tl_row_of_block(rows, i);
            lse->logit[i] = excluded[count - 1] < 0 ? -(double)INFINITY
                                                    : tl_logit_at(backend, &together[count - 1], rows->excluded[i]);
        }
        if (count == 0 || (count < most && left >> i >> 1 != 0))
            continue;
        if (most > 1)
            tl_lse_class_major(backend, together, excluded, count, rows->scratch, states, cancel);
        else
            tl_lse_row(backend, together, *excluded, states, cancel);
        for (int k = 0; k < count; k++)
            take_row(number[k], &states[k], wants_lanes, lse);
        count = 0;
    }
}

void tl_lse_of_block(const tl_backend *backend, const tl_row_block *rows, int wants_lanes, tl_block_lse *lse,
                     tl_cancel *cancel) {
    assert(rows->count > 0 && rows->count <= tl_row_block_rows(rows->row.count, rows->class_major));
    double ln2 = rows->row.compute_dtype == TL_FLOAT64 ? TL_LN2 : 0x1.62e43p-1; /* as in tl_lse_log */
    int count = grouped_rows(rows);
    size_t padded = (size_t)(rows->count + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    lse->grouped = 0;
    memset(lse->offset, 0, padded * sizeof *lse->offset);
    if (!rows->has_excluded || count < (int)padded)
        memset(lse->logit, 0, padded * sizeof *lse->logit);
    for (size_t i = (size_t)count; i < padded; i++) { /* lanes that no row fills */
        lse->sums.ref_exp[i] = 0;
        lse->sums.sum[i] = 1;
    }
    if (count > 0)
        reduce_groups(backend, rows, count, wants_lanes, lse);
    if (rows->wanted & ~lse->grouped)
        reduce_others(backend, rows, wants_lanes, lse, cancel);
    backend->lse_logs(lse->sums.sum, lse->sums.ref_exp, padded, ln2, lse->log);
    if (rows->has_excluded)
        backend->log_odds(lse->offset, lse->log, lse->logit, padded, &lse->odds);
}

static tl_lse lse_at(const tl_block_lse *lse, int i) {
    tl_lse of = {lse->offset[i], lse->log[i]};
    return of;
}

/* The target of a row against its other classes; of a row without one, the logsumexp alone. */
static tl_class_odds odds_at(const tl_row_block *rows, const tl_block_lse *lse, int i) {
    tl_class_odds odds = {.lse = lse_at(lse, i)};
    if (rows->excluded[i] >= 0) {
        odds.logit = lse->logit[i];
        odds.log_odds = lse->odds.log_odds[i];
        odds.nll = lse->odds.nll[i];
        if (odds.log_odds > 0) {
            odds.lse.log += lse->odds.others_nll[i];
        } else if (odds.logit != -(double)INFINITY) {
            odds.lse.offset = odds.logit;
            odds.lse.log = odds.nll;
        }
    }
    return odds;
}

/* Calls the function for single rows where a class has most of a sum near 1: few rows, except where logits are
 * log-probabilities of near-certain classes. */
void tl_logsumexp_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                           double *logsumexp, tl_cancel *cancel) {
    for (int i = 0; i < rows->count; i++) {
        logsumexp[i] = tl_logsumexp(lse_at(lse, i));
        if (tl_may_be_near_zero(logsumexp[i], lse->sums.largest_lane[i], lse->sums.in_order[i]) &&
            tl_is_wanted(rows, i)) {
            tl_row row = tl_row_of_block(rows, i);
            logsumexp[i] = tl_logsumexp_near_zero(backend, &row, logsumexp[i], -1, NULL, cancel);
        }
    }
}

/* Makes the rows of groups that are not wanted 0. */
static void clear_unwanted(const tl_row_block *rows, int dtype) {
    int size = tl_itemsize(dtype);
    for (int i = 0; i < rows->count; i++) {
        char *group = groups_of(rows) + (size_t)(i / TL_GROUP) * group_elements(rows) * (size_t)size;
        for (int64_t k = 0; !tl_is_wanted(rows, i) && k < rows->row.count; k++)
            tl_store(group + (k * TL_GROUP + i % TL_GROUP) * size, dtype, 0);
    }
}

/* Writes these rows of groups: all at once where possible. */
static void store_groups(const tl_backend *backend, const tl_row_block *rows, uint64_t which, int dtype,
                         const tl_out_block *out) {
    char *groups = groups_of(rows), *data[TL_GROUP];
    size_t classes = (size_t)rows->row.count, group_bytes = group_elements(rows) * (size_t)tl_itemsize(dtype);
    int count = rows->count, size = tl_itemsize(out->row.dtype);
    int is_direct = out->row.dtype < TL_SWAPPED && (dtype == TL_FLOAT64) == (out->row.dtype == TL_FLOAT64);
    uint64_t all = ~(uint64_t)0 >> (TL_BLOCK_ROWS - count);
    if (is_direct && which == all && count > 1 &&
        are_neighbours((const char *const *)out->data, 0, count, size)) {
        backend->deinterleave_planes[out->row.dtype](groups, out->row.stride, classes, (size_t)count, out->data[0]);
        return;
    }
    for (int start = 0; start < count; start += TL_GROUP, groups += group_bytes) {
        for (int r = 0; r < TL_GROUP; r++) /* one memory for all that is not wanted */
            data[r] = start + r < count && (which >> (start + r) & 1) ? out->data[start + r] : unread_row_of(rows);
        if (is_direct && (out->row.stride == size || classes == 1)) {
            backend->deinterleave[out->row.dtype](groups, classes, data);
            continue;
        }
        for (size_t k = 0; k < classes; k++)
            for (int r = 0; r < TL_GROUP && start + r < count; r++)
                if (which >> (start + r) & 1)
                    tl_store(data[r] + (ptrdiff_t)k * out->row.stride, out->row.dtype,
                             tl_load(groups + (k * TL_GROUP + (size_t)r) * (size_t)tl_itemsize(dtype), dtype));
    }
}

static tl_row out_row(const tl_out_block *out, int i) {
    tl_row row = out->row;
    row.data = out->data[i];
    return row;
}

/* Rows of which softmax can be found in groups: those that lie there, of finite logsumexp that is not far out. */
static uint64_t with_near_lse(const tl_block_lse *lse, const double *logsumexp, int count) {
    uint64_t near = 0;
    for (int i = 0; i < count; i++)
        near |= (uint64_t)(tl_abs(logsumexp[i]) <= TL_MAX_EXACT_REDUCTION) << i;
    return near & lse->grouped;
}

/* exp(x) 2^-exponent factor is softmax(x) times a factor for each row, which `factor` holds before. */
static void softmax_factors(const tl_backend *backend, const double *logsumexp, int dtype, size_t count,
                            double *exponent, double *factor) {
    double exps[TL_BLOCK_ROWS], scale = 0;
    for (size_t i = 0; i < count; i++) {
        int is_near = tl_abs(logsumexp[i]) <= TL_MAX_EXACT_REDUCTION;
        tl_softmax_terms terms = tl_terms_of_softmax(is_near ? logsumexp[i] : 0, dtype);
        exponent[i] = terms.exponent;
        exps[i] = terms.argument;
        scale = terms.scale;
    }
    backend->exps(exps, count);
    for (size_t i = 0; i < count; i++)
        factor[i] *= exps[i] * scale;
}

void tl_softmax_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse, int is_log,
                         const tl_out_block *out, tl_cancel *cancel) {
    double logsumexp[TL_BLOCK_ROWS], exponent[TL_BLOCK_ROWS], factor[TL_BLOCK_ROWS];
    const double zeros[TL_BLOCK_ROWS] = {0};
    size_t padded = (size_t)(rows->count + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    for (size_t i = 0; i < padded; i++) {
        logsumexp[i] = lse->offset[i] + lse->log[i];
        factor[i] = 1;
    }
    uint64_t grouped = with_near_lse(lse, logsumexp, rows->count);
    for (int i = 0; i < rows->count && (rows->wanted & ~grouped) != 0; i++) {
        tl_row row = tl_row_of_block(rows, i), to = out_row(out, i);
        if (grouped >> i & 1 || !tl_is_wanted(rows, i))
            continue;
        if (logsumexp[i] - logsumexp[i] != 0)
            tl_fill(&to, (double)NAN);
        else if (is_log)
            tl_log_softmax(backend, &row, lse_at(lse, i), &to, out->nontemporal_stores, cancel);
        else
            tl_softmax(backend, &row, lse_at(lse, i), &to, out->nontemporal_stores, cancel);
    }
    if (grouped == 0)
        return;
    int dtype = lse->group_dtype;
    size_t group_bytes = group_elements(rows) * (size_t)tl_itemsize(dtype), classes = (size_t)rows->row.count;
    char *group = groups_of(rows);
    if (!is_log)
        softmax_factors(backend, logsumexp, dtype, padded, exponent, factor);
    for (size_t i = 0; i < padded; i += TL_GROUP, group += group_bytes) {
        if (is_log)
            backend->short_sub[dtype](group, classes, logsumexp + i);
        else
            backend->short_exp[dtype](group, classes, exponent + i, factor + i, zeros + i);
    }
    store_groups(backend, rows, grouped, dtype, out);
}

/* The gradients of class ids whose rows lie in groups; returns which were written. Logits that are scaled or capped, and
 * smoothing with class weights, are left to the functions for single rows. */
static uint64_t gradients_in_groups(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                                    const tl_loss *losses, const tl_class_odds *odds, const tl_out_block *out) {
    double logsumexp[TL_BLOCK_ROWS], exponent[TL_BLOCK_ROWS], factor[TL_BLOCK_ROWS], subtrahend[TL_BLOCK_ROWS];
    double odds_against[TL_BLOCK_ROWS];
    size_t padded = (size_t)(rows->count + TL_GROUP - 1) / TL_GROUP * TL_GROUP, classes = (size_t)rows->row.count;
    int dtype = lse->group_dtype;
    char *group = groups_of(rows);
    memset(logsumexp, 0, sizeof logsumexp);
    memset(factor, 0, sizeof factor);
    memset(subtrahend, 0, sizeof subtrahend);
    memset(odds_against, 0, sizeof odds_against);
    for (int i = 0; i < rows->count; i++) {
        const tl_loss *loss = &losses[i];
        if (!(lse->grouped >> i & 1))
            continue;
        double mass = odds[i].smoothed + loss->target_weight * loss->soft.one_minus_eps;
        logsumexp[i] = tl_logsumexp(odds[i].lse);
        factor[i] = loss->grad_scale * tl_softmax_factor(loss, odds[i].lse, mass);
        subtrahend[i] = loss->grad_scale * loss->soft.eps_over_v;
        odds_against[i] = odds[i].log_odds;
    }
    uint64_t grouped = with_near_lse(lse, logsumexp, rows->count);
    softmax_factors(backend, logsumexp, dtype, padded, exponent, factor);
    backend->exps(odds_against, padded);
    for (size_t i = 0; i < padded; i += TL_GROUP, group += group_elements(rows) * (size_t)tl_itemsize(dtype))
        backend->short_exp[dtype](group, classes, exponent + i, factor + i, subtrahend + i);
    uint64_t which = grouped;
    if (rows->class_major && grouped == rows->wanted) {
        clear_unwanted(rows, dtype); /* so that whole planes can be written */
        which = ~(uint64_t)0 >> (TL_BLOCK_ROWS - rows->count);
    }
    store_groups(backend, rows, which, dtype, out);
    for (int i = 0; i < rows->count; i++) {
        tl_row to = out_row(out, i);
        if (grouped >> i & 1)
            tl_store_at(&to, losses[i].target, tl_gradient_at_target(&rows->row, &losses[i], &odds[i], odds_against[i]));
    }
    return grouped;
}

/* Whether gradients of class ids are those of softmax, less the same number for all classes but the target. */
static int has_plain_gradient(const tl_row *row, const tl_loss *loss) {
    return loss->target >= 0 && !tl_is_scaled_or_capped(row) && !loss->soft.weight;
}

/* The sums of the logits of each row in groups. */
static void sum_logits(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse, double *sums) {
    char *group = groups_of(rows);
    for (int i = 0; i < rows->count; i += TL_GROUP) {
        backend->short_sum[lse->group_dtype](group, (size_t)rows->row.count, sums + i);
        group += group_elements(rows) * (size_t)tl_itemsize(lse->group_dtype);
    }
}

void tl_losses_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                        const tl_loss *losses, const tl_out_block *out, double *values, tl_cancel *cancel) {
    tl_class_odds odds[TL_BLOCK_ROWS];
    double logit_sum[TL_BLOCK_ROWS];
    const tl_loss *first = NULL;
    uint64_t written = 0;
    for (int i = 0; i < rows->count; i++) {
        first = !first && tl_is_wanted(rows, i) ? &losses[i] : first;
        odds[i] = odds_at(rows, lse, i);
    }
    if (!first)
        return;
    int sums = lse->grouped != 0 && first->soft.eps_over_v != 0 && !first->soft.mass && !first->soft.weight;
    if (sums)
        sum_logits(backend, rows, lse, logit_sum);
    for (int i = 0; i < rows->count; i++) {
        tl_row row = tl_row_of_block(rows, i);
        if (losses[i].target >= 0 && tl_is_wanted(rows, i))
            values[i] = tl_loss_of_odds(backend, &row, &losses[i], &odds[i],
                                        sums && lse->grouped >> i & 1 ? &logit_sum[i] : NULL, cancel);
    }
    if (out && lse->grouped && has_plain_gradient(&rows->row, first))
        written = gradients_in_groups(backend, rows, lse, losses, odds, out);
    for (int i = 0; i < rows->count; i++) {
        tl_row row = tl_row_of_block(rows, i);
        if (losses[i].target < 0 && tl_is_wanted(rows, i))
            values[i] = tl_loss_of_masses(backend, &row, &losses[i], rows->excluded[i], &odds[i], cancel);
        else if (out && tl_is_wanted(rows, i) && !(written >> i & 1))
            tl_write_class_gradient(backend, &row, &losses[i], &odds[i], cancel);
    }
}
