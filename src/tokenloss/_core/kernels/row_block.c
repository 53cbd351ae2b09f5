#include "row_block.h"

#include <assert.h>
#include <math.h>

#include "elementwise.h"
#include "nll.h"
#include "scalar_math.h"

static int is_short(int64_t classes) { return classes <= TL_SHORT_ROW; }

int tl_row_block_rows(int64_t classes, int class_major) {
    /* the groups of contiguous rows stay in the first cache; of class-major ones, a visit to a plane should be long,
     * but the scratch memory below half a megabyte */
    if (!is_short(classes) || classes <= TL_SHORT_ROW / (class_major ? 2 : 4))
        return TL_BLOCK_ROWS;
    return class_major || classes <= TL_SHORT_ROW / 2 ? TL_BLOCK_ROWS / 2 : TL_GROUP;
}

size_t tl_row_block_bytes(int64_t classes, int class_major) {
    if (!is_short(classes))
        return class_major ? TL_TRANSPOSED_BYTES : 1;
    return TL_SHORT_BLOCK_BYTES((size_t)classes, (size_t)tl_row_block_rows(classes, class_major));
}

static size_t capacity_of(const tl_row_block *rows) {
    return (size_t)rows->row.count * (size_t)tl_row_block_rows(rows->row.count, rows->class_major);
}

static char *float_groups_of(const tl_row_block *rows) {
    return tl_groups_of(rows) + capacity_of(rows) * sizeof(double);
}

char *tl_unread_row_of(const tl_row_block *rows) { return float_groups_of(rows) + capacity_of(rows) * sizeof(float); }

char *tl_wide_groups_of(const tl_row_block *rows) {
    return tl_unread_row_of(rows) + (size_t)rows->row.count * sizeof(double);
}

/* Element by element: of any stride, and in either byte order. Lanes without a row become 0. */
static void load_group(const tl_row_block *rows, int start, int count, int dtype, char *group) {
    for (int64_t k = 0; k < rows->row.count; k++)
        for (int r = 0; r < TL_GROUP; r++) {
            double value = 0;
            if (r < count)
                value = tl_load(rows->data[start + r] + k * rows->row.stride, rows->row.dtype);
            tl_store(group + (k * TL_GROUP + r) * tl_itemsize(dtype), dtype, value);
        }
}

void tl_load_groups(const tl_backend *backend, const tl_row_block *rows, int count, int dtype, char *groups) {
    const tl_row *row = &rows->row;
    ptrdiff_t size = tl_itemsize(row->dtype);
    size_t classes = (size_t)row->count, group_bytes = tl_group_elements(rows) * (size_t)tl_itemsize(dtype);
    int is_native = row->dtype < TL_SWAPPED, is_contiguous = row->stride == size || classes == 1;
    for (int start = 0; start < count; start += TL_GROUP, groups += group_bytes) {
        int n = count - start < TL_GROUP ? count - start : TL_GROUP;
        if (is_native && is_contiguous) {
            const char *data[TL_GROUP]; /* lanes without a row repeat the last */
            for (int r = 0; r < TL_GROUP; r++)
                data[r] = rows->data[start + (r < n ? r : n - 1)];
            backend->interleave[row->dtype](n == TL_GROUP ? rows->data + start : data, classes, groups);
        } else if (is_native && n > 1 && tl_are_neighbours(rows->data, start, n, size)) {
            backend->interleave_planes[row->dtype](rows->data[start], row->stride, classes, (size_t)n, groups);
        } else {
            load_group(rows, start, n, dtype, groups);
        }
    }
}

tl_groups tl_load_raw_groups(const tl_backend *backend, const tl_row_block *rows, int count) {
    tl_groups raw = {tl_groups_of(rows), tl_single_or_double(rows->row.dtype)};
    if (raw.dtype != tl_single_or_double(rows->row.compute_dtype))
        raw.at = float_groups_of(rows);
    tl_load_groups(backend, rows, count, raw.dtype, raw.at);
    return raw;
}

tl_groups tl_scale_groups(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups raw) {
    tl_groups groups = {tl_groups_of(rows), tl_single_or_double(rows->row.compute_dtype)};
    size_t elements = tl_group_elements(rows) * tl_groups_for(count);
    if (raw.dtype != groups.dtype)
        tl_widen_logits(backend, &rows->row, raw.dtype, raw.at, elements, (double *)groups.at);
    else if (tl_is_transformed(&rows->row))
        tl_transform(backend, &rows->row, (double *)groups.at, elements);
    return groups;
}

int tl_grouped_rows(const tl_row_block *rows) {
    int last = rows->count % TL_GROUP, least = 2 + (int)(rows->row.count / 100); /* fewer are faster one by one */
    if (!is_short(rows->row.count) || rows->row.count == 0 || rows->row.shift != 0)
        return 0;
    return last == 0 || last >= least ? rows->count : rows->count - last;
}

/* Replaces the logits of excluded classes, which lie there in groups: by -inf if none are given. */
static void replace_excluded(tl_groups groups, const size_t *at, int count, const double *logit) {
    for (int i = 0; i < count; i++)
        tl_store_to_groups(groups, at[i], logit ? logit[i] : -(double)INFINITY);
}

/* Rows whose maximum or target's logit is too large for an exact reduction, or nan: a bit for each. */
static uint64_t far_rows(const tl_block_lse *lse, int count) {
    const double infinity = (double)INFINITY;
    uint64_t far = 0;
    for (int i = 0; i < count; i++) {
        double maximum = tl_abs(lse->sums.maximum[i]), logit = tl_abs(lse->logit[i]);
        int is_far = maximum > TL_MAX_EXACT_REDUCTION && lse->sums.maximum[i] != -infinity;
        is_far |= !(logit <= TL_MAX_EXACT_REDUCTION) && lse->logit[i] != -infinity;
        far |= (uint64_t)is_far << i;
    }
    return far;
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

void tl_reduce_groups(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups groups,
                      tl_short_moments *moments, tl_block_lse *lse) {
    size_t at[TL_BLOCK_ROWS], classes = (size_t)rows->row.count, in_groups = tl_groups_for(count);
    tl_next_rows next = next_rows(rows);
    memset(lse->offset, 0, sizeof lse->offset);
    memset(lse->logit, 0, sizeof lse->logit);
    lse->near = 0;
    lse->group_dtype = groups.dtype;
    lse->in_groups = count;
    if (rows->has_excluded) {
        char *none = tl_unread_row_of(rows);
        size_t unread = (size_t)(none - tl_groups_of(rows)) / (size_t)tl_itemsize(groups.dtype);
        memset(none, 0, sizeof(double));
        for (int i = 0; i < count; i++) {
            at[i] = rows->excluded[i] < 0 ? unread : tl_place_in_groups(rows, i, rows->excluded[i]);
            lse->logit[i] = tl_load_from_groups(groups, at[i]);
        }
        replace_excluded(groups, at, count, NULL);
    }
    if (moments)
        backend->short_moments[groups.dtype](groups.at, in_groups, classes, &next, &lse->sums, moments);
    else
        backend->short_sumexp[groups.dtype](groups.at, in_groups, classes, &next, &lse->sums);
    if (rows->has_excluded && rows->keeps_logits)
        replace_excluded(groups, at, count, lse->logit);
    lse->grouped = (~(uint64_t)0 >> (TL_BLOCK_ROWS - count)) & rows->wanted & ~far_rows(lse, count);
}

/* Reduces wanted rows that were not reduced in groups: long class-major ones together, the others one by one. */
static void reduce_others(const tl_backend *backend, const tl_row_block *rows, tl_block_lse *lse, tl_cancel *cancel) {
    tl_row together[TL_MAX_CLASS_MAJOR_ROWS];
    tl_lse_acc states[TL_MAX_CLASS_MAJOR_ROWS];
    int64_t excluded[TL_MAX_CLASS_MAJOR_ROWS];
    int number[TL_MAX_CLASS_MAJOR_ROWS], count = 0;
    int most = rows->class_major && !is_short(rows->row.count) ? TL_ROWS_PER_CACHE_LINE(rows->row.dtype) : 1;
    uint64_t left = rows->wanted & ~lse->grouped;
    for (int i = 0; i < rows->count && rows->has_excluded; i++)
        if (rows->excluded[i] >= 0)
            tl_prefetch(rows->data[i] + rows->excluded[i] * rows->row.stride);
    for (int i = 0; i < rows->count && left >> i != 0; i++) {
        if (left >> i & 1) {
            number[count] = i;
            excluded[count] = rows->has_excluded ? rows->excluded[i] : -1;
            together[count] = tl_row_of_block(rows, i);
            lse->logit[i] = -(double)INFINITY;
            if (excluded[count] >= 0)
                lse->logit[i] = tl_logit_at(backend, &together[count], excluded[count]);
            count++;
        }
        if (count == 0 || (count < most && left >> i >> 1 != 0))
            continue;
        if (most > 1)
            tl_lse_class_major(backend, together, excluded, count, rows->scratch, states, cancel);
        else
            tl_lse_row(backend, together, *excluded, states, cancel);
        for (int k = 0; k < count; k++) {
            lse->offset[number[k]] = states[k].offset;
            lse->sums.ref_exp[number[k]] = (double)states[k].ref_exp;
            lse->sums.sum[number[k]] = tl_lanes_sum_compensated(states[k].sum, states[k].comp);
            lse->may_be_dominated |= (uint64_t)tl_may_be_dominated(&states[k]) << number[k];
        }
        count = 0;
    }
}

void tl_end_lse(const tl_backend *backend, const tl_row *row, size_t padded, int has_excluded, tl_block_lse *lse) {
    backend->lse_logs(lse->sums.sum, lse->sums.ref_exp, padded, row->compute_dtype, lse->log);
    if (has_excluded)
        backend->log_odds(lse->offset, lse->log, lse->logit, padded, &lse->odds);
}

void tl_lse_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_lse *lse, tl_cancel *cancel) {
    assert(rows->count > 0 && rows->count <= tl_row_block_rows(rows->row.count, rows->class_major));
    int count = tl_grouped_rows(rows);
    size_t padded = tl_padded_rows(rows->count);
    lse->near = 0;
    lse->grouped = 0;
    lse->may_be_dominated = 0;
    lse->in_groups = 0;
    for (size_t i = (size_t)count; i < padded; i++) { /* lanes that no row fills */
        lse->offset[i] = lse->logit[i] = lse->sums.ref_exp[i] = 0;
        lse->sums.sum[i] = 1;
    }
    if (count > 0)
        tl_reduce_groups(backend, rows, count, tl_load_scaled_groups(backend, rows, count), NULL, lse);
    if (rows->wanted & ~lse->grouped)
        reduce_others(backend, rows, lse, cancel);
    tl_end_lse(backend, &rows->row, padded, rows->has_excluded, lse);
}

void tl_odds_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_lse *lse, tl_cancel *cancel) {
    tl_groups groups = {NULL, 0};
    tl_row_block far = *rows;
    uint64_t near = rows->has_excluded ? tl_nll_of_block(backend, rows, &lse->relative, &groups) : 0;
    far.wanted &= ~near;
    lse->in_groups = 0;
    lse->grouped = 0;
    if (far.wanted)
        tl_lse_of_block(backend, &far, lse, cancel);
    for (int i = 0; i < rows->count && far.wanted >> i != 0; i++)
        if (tl_is_wanted(&far, i))
            lse->relative.nll[i] = lse->odds.nll[i];
    lse->near = near;
    if (groups.at) {
        lse->in_groups = rows->count;
        lse->group_dtype = groups.dtype;
        lse->grouped |= near;
    }
}

/* The first class of a row in groups whose logit is the maximum. */
static int64_t argmax_of(const tl_row_block *rows, const tl_block_lse *lse, int i) {
    const tl_groups groups = {tl_groups_of(rows), lse->group_dtype};
    const size_t at = tl_place_in_groups(rows, i, 0);
    int64_t k = 0;
    while (k < rows->row.count - 1 &&
           tl_load_from_groups(groups, at + (size_t)k * TL_GROUP) != lse->sums.maximum[i])
        k++;
    return k;
}

/* Rows where a class may have most of a sum near 1 are reduced again, without that class. */
void tl_logsumexp_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                           double *logsumexp, tl_cancel *cancel) {
    tl_row_block again = {.row = rows->row, .class_major = rows->class_major, .has_excluded = 1};
    tl_block_lse others;
    int number[TL_BLOCK_ROWS];
    again.scratch = rows->scratch;
    for (int i = 0; i < rows->count; i++) {
        logsumexp[i] = lse->offset[i] + lse->log[i];
        if (!tl_is_wanted(rows, i) || !tl_is_near_zero(logsumexp[i]))
            continue;
        if (lse->may_be_dominated >> i & 1) {
            tl_row row = tl_row_of_block(rows, i);
            logsumexp[i] = tl_logsumexp_near_zero(backend, &row, logsumexp[i], cancel);
        } else if (lse->grouped >> i & 1 && tl_is_dominant(lse->sums.maximum[i], logsumexp[i])) {
            number[again.count] = i;
            again.data[again.count] = rows->data[i];
            again.excluded[again.count] = argmax_of(rows, lse, i);
            again.wanted |= (uint64_t)1 << again.count++;
        }
    }
    if (again.count == 0)
        return;
    tl_lse_of_block(backend, &again, &others, cancel);
    for (int i = 0; i < again.count; i++)
        logsumexp[number[i]] = tl_logsumexp(tl_odds_at(&again, &others, i).lse);
}
