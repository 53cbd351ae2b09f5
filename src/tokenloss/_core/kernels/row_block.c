#include "row_block.h"

#include "nll.h"

static int is_short(int64_t classes) { return classes <= TL_SHORT_ROW; }

int tl_row_block_rows(int64_t classes, int class_major) {
    /* the groups of contiguous rows stay in the first cache; of class-major ones, a visit to a plane should be long,
     * but the scratch memory below half a megabyte */
    if (!is_short(classes) || classes <= TL_SHORT_ROW / (class_major ? 2 : 4))
        return TL_BLOCK_ROWS;
    return class_major || classes <= TL_SHORT_ROW / 2 ? TL_BLOCK_ROWS / 2 : TL_GROUP;
}

size_t tl_row_block_bytes(int64_t classes, int class_major) {
    const size_t each = (size_t)tl_row_block_rows(classes, class_major) * (sizeof(double) + sizeof(float));
    return is_short(classes) ? TL_GROUP_ALIGNMENT + (size_t)classes * (each + (1 + 2 * TL_GROUP) * sizeof(double)) : 1;
}

ptrdiff_t tl_copied_row(int64_t classes, int dtype) {
    const int64_t bytes = classes * tl_itemsize(dtype);
    return (ptrdiff_t)(is_short(classes) ? bytes : (bytes + 127) / 128 * 128 + 64); /* at different cache sets */
}

int tl_copied_rows(int64_t classes, int dtype, int arrays) {
    const int64_t fit = classes > TL_COPIED_BYTES ? 0 : (TL_COPIED_BYTES / arrays - 64) / tl_copied_row(classes, dtype);
    const int most = is_short(classes) ? tl_row_block_rows(classes, 0) : TL_ROWS_PER_CACHE_LINE(dtype);
    return fit < most ? (int)fit : most;
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

/* A group of rows of any stride and byte order, by way of copies. Lanes without a row repeat the last. */
static void load_group(const tl_backend *backend, const tl_row_block *rows, int start, int count, char *group) {
    double memory[TL_GROUP * TL_PLANES_AT_ONCE + 8];
    for (int64_t k = 0; k < rows->row.count; k += TL_PLANES_AT_ONCE) {
        const int64_t end = k + TL_PLANES_AT_ONCE < rows->row.count ? k + TL_PLANES_AT_ONCE : rows->row.count;
        tl_row_block copies = {.row = tl_part_of(&rows->row, k, end), .count = TL_GROUP};
        for (int r = 0; r < TL_GROUP; r++)
            copies.data[r] = rows->data[start + (r < count ? r : count - 1)] + k * rows->row.stride;
        tl_copy_rows(backend, &copies, (char *)memory);
        backend->interleave[copies.row.dtype](copies.data, (size_t)(end - k), group);
        group += (end - k) * TL_GROUP * tl_itemsize(tl_single_or_double(copies.row.dtype));
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
            load_group(backend, rows, start, n, groups);
        }
    }
}

#define COPIED_AT_ONCE 32 /* classes of neighbours that are copied at a time: a few vectors of each row */
#define LANES(dtype) (tl_itemsize(dtype) == 2 ? 2 * TL_GROUP : TL_GROUP) /* halves are moved in pairs, like floats */

/* Splits pairs of halves, which compilers make vectors of; and joins them. */
static void split_pairs(const uint16_t *restrict pairs, int64_t count, uint16_t *restrict a, uint16_t *restrict b) {
    for (int64_t i = 0; i < count; i++) {
        a[i] = pairs[2 * i];
        b[i] = pairs[2 * i + 1];
    }
}
static void join_pairs(uint16_t *restrict pairs, int64_t count, const uint16_t *a, const uint16_t *b) {
    for (int64_t i = 0; i < count; i++) {
        pairs[2 * i] = a[i];
        pairs[2 * i + 1] = b[i];
    }
}

/* Copies rows that lie in lanes of a vector, and back if all lanes have one: `lane` of each, `span` of them. */
static void copy_lanes(const tl_backend *backend, const tl_row *row, char *first, int count, const int *lane, int span,
                       char *copies, int is_back) {
    const int size = tl_itemsize(row->dtype), is_half = size == 2, dtype = is_half ? TL_FLOAT32 : row->dtype;
    double group[TL_GROUP * COPIED_AT_ONCE], unread[COPIED_AT_ONCE];
    uint16_t pairs[TL_GROUP][2 * COPIED_AT_ONCE];
    for (int64_t k = 0, n; k < row->count; k += n, first += n * row->stride, copies += n * size) {
        char *at[2 * TL_GROUP], *of_pairs[TL_GROUP], **const to = is_half ? of_pairs : at;
        n = row->count - k < COPIED_AT_ONCE ? row->count - k : COPIED_AT_ONCE;
        for (int i = 0; i < 2 * TL_GROUP; i++)
            at[i] = is_back ? copies : (char *)unread + (is_half ? i % 2 * 2 * COPIED_AT_ONCE : 0);
        for (int i = 0; i < count; i++)
            at[lane[i]] = copies + i * tl_copied_row(row->count, row->dtype);
        for (int i = 0; i < TL_GROUP; i++)
            of_pairs[i] = (char *)pairs[i];
        for (int64_t i = n; i < 2 * n; i++) { /* neighbours may share two lines */
            tl_prefetch(first + i * row->stride);
            tl_prefetch(first + i * row->stride + (span * size - 1));
        }
        for (int i = 0; is_half && is_back && i < TL_GROUP; i++)
            join_pairs(pairs[i], n, (uint16_t *)(void *)at[2 * i], (uint16_t *)(void *)at[2 * i + 1]);
        if (is_back) {
            backend->interleave[dtype]((const char *const *)to, (size_t)n, group);
            backend->deinterleave_planes[dtype](group, row->stride, (size_t)n, (size_t)(span >> is_half), first);
            continue;
        }
        backend->interleave_planes[dtype](first, row->stride, (size_t)n, (size_t)(span >> is_half), group);
        backend->deinterleave[dtype](group, (size_t)n, to);
        for (int i = 0; is_half && i < span / 2; i++)
            split_pairs(pairs[i], n, (uint16_t *)(void *)at[2 * i], (uint16_t *)(void *)at[2 * i + 1]);
    }
}

/* How many rows lie in different lanes of a vector, an even number of halves; 1 if single copies are faster. */
static int find_lanes(const tl_row *row, const char *const *data, int count, int *lane, int *span) {
    const ptrdiff_t size = tl_itemsize(row->dtype);
    int n = 0;
    for (*span = 0; n < count && n < LANES(row->dtype); n++) {
        const ptrdiff_t at = data[n] - data[0];
        if (at < *span * size || at >= LANES(row->dtype) * size || at % size != 0)
            break;
        lane[n] = (int)(at / size);
        *span = lane[n] + 1;
    }
    for (; size == 2 && n > 1 && *span % 2 != 0; n--)
        *span = lane[n - 2] + 1;
    return row->dtype < TL_SWAPPED && row->stride >= *span * size && *span > (is_short(row->count) ? 4 : 1) ? n : 1;
}

void tl_copy_rows(const tl_backend *backend, tl_row_block *rows, char *memory) {
    const tl_row row = rows->row;
    const ptrdiff_t apart = tl_copied_row(row.count, row.dtype);
    int lane[2 * TL_GROUP], span;
    memory += -(uintptr_t)memory & 63;
    for (int i = 0, n; i < rows->count; i += n, memory += n * apart) {
        char *first = (char *)(uintptr_t)rows->data[i];
        n = find_lanes(&row, rows->data + i, rows->count - i, lane, &span);
        if (n > 1)
            copy_lanes(backend, &row, first, n, lane, span, memory, 0);
        else
            tl_copy_elements(first, row.stride, memory, tl_itemsize(row.dtype), row.count, row.dtype);
        for (int r = 0; r < n; r++)
            rows->data[i + r] = memory + r * apart;
    }
    rows->row.dtype &= ~TL_SWAPPED;
    rows->row.stride = tl_itemsize(row.dtype);
    rows->are_copies = 1;
}

void tl_write_copies(const tl_backend *backend, const tl_row_block *rows, const tl_out_block *out) {
    int lane[2 * TL_GROUP], span;
    for (int i = 0, n; rows->are_copies && i < rows->count; i += n) {
        const tl_row row = tl_row_of_out(out, i);
        n = find_lanes(&row, (const char *const *)out->data + i, rows->count - i, lane, &span);
        const uint64_t lanes = ((uint64_t)1 << n) - 1;
        if (n != span || (rows->wanted >> i & lanes) != lanes)
            n = 1;
        if (n > 1)
            copy_lanes(backend, &row, out->data[i], n, lane, span, (char *)(uintptr_t)rows->data[i], 1);
        else if (tl_is_wanted(rows, i))
            tl_copy_to_row(rows->data[i], &row);
    }
}

void tl_move_lanes(const tl_backend *backend, const tl_few_rows *rows, int dtype, size_t n, char *groups, int is_back) {
    const size_t classes = rows->classes, bytes = classes * TL_GROUP * (size_t)tl_itemsize(tl_single_or_double(dtype));
    char *first = (char *)(uintptr_t)rows->data, *row[TL_GROUP];
    if (!rows->are_apart && is_back)
        backend->deinterleave_planes[dtype](groups, rows->class_stride, classes, n, first);
    else if (!rows->are_apart)
        backend->interleave_planes[dtype](first, rows->class_stride, classes, n, groups);
    for (size_t g = 0; rows->are_apart && g < n / TL_GROUP; g++, first += (ptrdiff_t)rows->group_bytes, groups += bytes) {
        for (int r = 0; r < TL_GROUP; r++)
            row[r] = first + r * rows->apart;
        if (is_back)
            backend->deinterleave[dtype](groups, classes, row);
        else
            backend->interleave[dtype]((const char *const *)row, classes, groups);
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

tl_few_rows tl_rows_or_groups(const tl_backend *backend, const tl_row *row, size_t start, ptrdiff_t apart, size_t n,
                              int may_be_apart, char *scratch) {
    tl_row_block block;
    const int dtype = tl_single_or_double(row->compute_dtype);
    const tl_few_rows in_place = tl_few_rows_at(row, start, apart);
    if (n % TL_GROUP == 0 && tl_are_in_place(row, apart) && (may_be_apart || !in_place.are_apart))
        return in_place;
    if (!in_place.are_apart && apart == tl_itemsize(row->dtype) && row->dtype < TL_SWAPPED && !tl_is_transformed(row) &&
        tl_single_or_double(row->dtype) == dtype) {
        backend->interleave_planes[row->dtype](in_place.data, row->stride, in_place.classes, n, tl_aligned(scratch));
        return tl_few_of_groups(tl_aligned(scratch), in_place.classes, dtype);
    }
    block.row = *row;
    block.class_major = 0;
    block.scratch = scratch;
    for (size_t i = 0; i < n; i++)
        block.data[i] = row->data + (ptrdiff_t)(start + i) * apart;
    return tl_few_of_groups(tl_load_scaled_groups(backend, &block, (int)n).at, in_place.classes, dtype);
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

tl_next_rows tl_rows_after(const tl_row_block *rows) {
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
    const size_t in_groups = tl_groups_for(count), padded = tl_padded_rows(count);
    const tl_few_rows few = tl_few_of_groups(groups.at, (size_t)rows->row.count, groups.dtype);
    size_t at[TL_BLOCK_ROWS];
    tl_next_rows next = tl_rows_after(rows);
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
        backend->short_moments[groups.dtype](&few, in_groups, &next, &lse->sums, moments);
    else
        backend->short_sumexp[groups.dtype](&few, in_groups, &next, groups.at, &lse->sums);
    if (rows->has_excluded && rows->keeps_logits)
        replace_excluded(groups, at, count, lse->logit);
    lse->grouped = (~(uint64_t)0 >> (TL_BLOCK_ROWS - count)) & rows->wanted &
                   backend->near(lse->sums.maximum, padded);
    if (rows->has_excluded)
        lse->grouped &= backend->near(lse->logit, padded);
}

/* Reduces wanted rows that were not reduced in groups, one by one. */
static void reduce_others(const tl_backend *backend, const tl_row_block *rows, tl_block_lse *lse, tl_cancel *cancel) {
    const uint64_t left = rows->wanted & ~lse->grouped;
    for (int i = 0; i < rows->count && rows->has_excluded; i++)
        if (rows->excluded[i] >= 0)
            tl_prefetch(rows->data[i] + rows->excluded[i] * rows->row.stride);
    for (int i = 0; i < rows->count && left >> i != 0; i++) {
        const tl_row row = tl_row_of_block(rows, i);
        const int64_t excluded = rows->has_excluded ? rows->excluded[i] : -1;
        tl_lse_acc state;
        if (!(left >> i & 1))
            continue;
        lse->logit[i] = excluded < 0 ? -(double)INFINITY : tl_logit_at(backend, &row, excluded);
        tl_lse_row(backend, &row, excluded, &state, cancel);
        lse->offset[i] = state.offset;
        lse->sums.ref_exp[i] = (double)state.ref_exp;
        lse->sums.sum[i] = tl_lanes_sum_compensated(state.sum, state.comp);
        lse->may_be_dominated |= (uint64_t)tl_may_be_dominated(&state) << i;
    }
}

/* Reduces the wanted rows, the first `count` in groups. Log-odds are computed if they may have excluded classes. */
static void lse_of_rows(const tl_backend *backend, const tl_row_block *rows, int count, tl_block_lse *lse,
                        tl_cancel *cancel) {
    assert(rows->count > 0 && rows->count <= tl_row_block_rows(rows->row.count, rows->class_major));
    size_t padded = tl_padded_rows(rows->count);
    lse->near = lse->grouped = lse->may_be_dominated = 0;
    lse->in_groups = 0;
    for (size_t i = (size_t)count; i < padded; i++) { /* lanes that no row fills */
        lse->offset[i] = lse->logit[i] = lse->sums.ref_exp[i] = 0;
        lse->sums.sum[i] = 1;
    }
    if (count > 0)
        tl_reduce_groups(backend, rows, count, tl_load_scaled_groups(backend, rows, count), NULL, lse);
    if (rows->wanted & ~lse->grouped)
        reduce_others(backend, rows, lse, cancel);
    backend->lse_logs(lse->sums.sum, lse->sums.ref_exp, padded, rows->row.compute_dtype, lse->log);
    if (rows->has_excluded)
        backend->log_odds(lse->offset, lse->log, lse->logit, padded, &lse->odds);
}

void tl_odds_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_lse *lse, tl_cancel *cancel) {
    tl_groups groups = {NULL, 0};
    tl_row_block far = *rows;
    uint64_t near = rows->has_excluded ? tl_nll_of_block(backend, rows, &lse->relative, &groups) : 0;
    far.wanted &= ~near;
    lse->in_groups = 0;
    lse->grouped = 0;
    if (far.wanted)
        lse_of_rows(backend, &far, tl_grouped_rows(rows), lse, cancel);
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

/* Writes the logsumexps of `n` rows, given their losses relative to their largest logits. Returns the bits of rows that
 * have one: those that are `near`, and those whose other classes add nothing to a logit that is not near 0. */
static uint64_t add_losses(uint64_t near, const tl_block_nll *of, size_t n, double *logsumexp) {
    const uint64_t all = ~(uint64_t)0 >> (TL_BLOCK_ROWS - n);
    for (size_t i = 0; i < n; i++)
        logsumexp[i] = 0 + (of->logit[i] + of->nll[i]); /* no -0.0 */
    for (uint64_t left = all & ~near; left != 0; left &= left - 1) {
        const size_t i = tl_lowest_bit(left);
        near |= (uint64_t)(of->nll[i] < 0x1p-60 && tl_abs(tl_abs(of->logit[i]) - 0x1p15) < 0x1p15 - 0x1p-6) << i;
    }
    return near & all;
}

size_t tl_lse_of_few(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, size_t n, double *logsumexp,
                     uint64_t *left) {
    const int dtype = tl_single_or_double(row->compute_dtype);
    char scratch[TL_GROUPS_BYTES(TL_FEW_CLASSES)];
    tl_block_nll of;
    size_t start = 0;
    for (size_t count; start < n; start += count) {
        count = tl_few_together(n - start);
        const tl_few_rows rows = tl_rows_or_groups(backend, row, start, apart, count, 1, scratch);
        const tl_lane_losses lanes = {.by_largest = &rows, .nll = of.nll, .logit = of.logit};
        const uint64_t near = backend->lane_losses[dtype](&rows, tl_padded_rows((int)count), &lanes);
        *left = ~add_losses(near, &of, count, logsumexp + start);
        if (*left << (TL_BLOCK_ROWS - count))
            break;
    }
    return start;
}

void tl_logsumexp_of_block(const tl_backend *backend, const tl_row_block *rows, double *logsumexp, tl_cancel *cancel) {
    tl_row_block others = *rows;
    tl_block_nll of;
    tl_block_lse lse;
    others.has_excluded = 0;
    others.wanted &= ~add_losses(tl_nll_of_largest(backend, &others, &of), &of, (size_t)rows->count, logsumexp);
    if (others.wanted)
        lse_of_rows(backend, &others, tl_grouped_rows(rows), &lse, cancel);
    for (uint64_t left = others.wanted; left != 0; left &= left - 1) {
        const unsigned i = tl_lowest_bit(left);
        const tl_row row = tl_row_of_block(rows, (int)i);
        logsumexp[i] = lse.offset[i] + lse.log[i];
        if ((lse.grouped | lse.may_be_dominated) >> i & 1)
            logsumexp[i] = tl_logsumexp_near_zero(backend, &row, logsumexp[i], cancel);
    }
}
