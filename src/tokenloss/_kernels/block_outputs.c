/* What a block of rows writes for each class: see row_block.h. */
#include <math.h>

#include "elementwise.h"
#include "row_block.h"
#include "scalar_math.h"

/* Makes the rows of groups that are not wanted 0. */
static void clear_unwanted(const tl_row_block *rows, int dtype) {
    int size = tl_itemsize(dtype);
    for (int i = 0; i < rows->count; i++) {
        char *group = tl_groups_of(rows) + (size_t)(i / TL_GROUP) * tl_group_elements(rows) * (size_t)size;
        for (int64_t k = 0; !tl_is_wanted(rows, i) && k < rows->row.count; k++)
            tl_store(group + (k * TL_GROUP + i % TL_GROUP) * size, dtype, 0);
    }
}

/* Writes the rows of a group whose places are given, element by element. */
static void store_group(const char *group, int dtype, const tl_row *to, char *const *data) {
    for (int64_t k = 0; k < to->count; k++)
        for (int r = 0; r < TL_GROUP; r++)
            if (data[r])
                tl_store(data[r] + k * to->stride, to->dtype,
                         tl_load(group + (k * TL_GROUP + r) * tl_itemsize(dtype), dtype));
}

/* Writes these rows of groups: all at once where possible. */
static void store_groups(const tl_backend *backend, const tl_row_block *rows, uint64_t which, int dtype,
                         const tl_out_block *out) {
    char *group = tl_groups_of(rows), *data[TL_GROUP];
    size_t classes = (size_t)rows->row.count, group_bytes = tl_group_elements(rows) * (size_t)tl_itemsize(dtype);
    int count = rows->count, size = tl_itemsize(out->row.dtype);
    int is_contiguous = out->row.stride == size || classes == 1;
    int is_native = out->row.dtype < TL_SWAPPED && (dtype == TL_FLOAT64) == (out->row.dtype == TL_FLOAT64);
    if (is_native && !is_contiguous && which == ~(uint64_t)0 >> (TL_BLOCK_ROWS - count) && count > 1 &&
        tl_are_neighbours((const char *const *)out->data, 0, count, size)) {
        backend->deinterleave_planes[out->row.dtype](group, out->row.stride, classes, (size_t)count, out->data[0]);
        return;
    }
    for (int start = 0; start < count; start += TL_GROUP, group += group_bytes) {
        int is_direct = is_native && is_contiguous;
        for (int r = 0; r < TL_GROUP; r++) { /* one memory for all that is not wanted */
            int is_written = start + r < count && (which >> (start + r) & 1);
            data[r] = is_written ? out->data[start + r] : is_direct ? tl_unread_row_of(rows) : NULL;
        }
        if (is_direct)
            backend->deinterleave[out->row.dtype](group, classes, data);
        else
            store_group(group, dtype, &out->row, data);
    }
}

/* Where the rows of a group are written, if they follow each other. */
static tl_next_rows rows_of_group(const tl_out_block *out, int start, int count) {
    tl_next_rows rows = {NULL, 0, 0};
    if (start + TL_GROUP <= count && out->row.stride == tl_itemsize(out->row.dtype)) {
        rows.data = out->data[start];
        rows.row_stride = out->data[start + 1] - out->data[start];
    }
    return rows;
}

uint64_t tl_map_groups(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse, int is_log,
                       const double *logsumexp, double *factor, const double *subtrahend, const tl_out_block *out) {
    double exponent[TL_BLOCK_ROWS];
    size_t padded = tl_padded_rows(rows), classes = (size_t)rows->row.count;
    int dtype = lse->group_dtype;
    uint64_t which = 0;
    for (int i = 0; i < rows->count; i++)
        which |= (uint64_t)(tl_abs(logsumexp[i]) <= TL_MAX_EXACT_REDUCTION) << i;
    which &= lse->grouped;
    if (which == 0)
        return 0;
    char *group = tl_groups_of(rows);
    if (!is_log)
        backend->softmax_factors(logsumexp, padded, dtype, exponent, factor);
    for (size_t i = 0; i < padded; i += TL_GROUP, group += tl_group_elements(rows) * (size_t)tl_itemsize(dtype)) {
        tl_next_rows next = rows_of_group(out, (int)i, rows->count);
        if (is_log)
            backend->short_sub[dtype](group, classes, logsumexp + i, &next);
        else
            backend->short_exp[dtype](group, classes, exponent + i, factor + i, subtrahend + i, &next);
    }
    uint64_t stored = which;
    if (rows->class_major && which == rows->wanted) { /* whole planes can be written */
        stored = ~(uint64_t)0 >> (TL_BLOCK_ROWS - rows->count);
        if (stored != which)
            clear_unwanted(rows, dtype);
    }
    store_groups(backend, rows, stored, dtype, out);
    return which;
}

void tl_softmax_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse, int is_log,
                         const tl_out_block *out, tl_cancel *cancel) {
    double logsumexp[TL_BLOCK_ROWS], factor[TL_BLOCK_ROWS];
    const double zeros[TL_BLOCK_ROWS] = {0};
    for (size_t i = 0; i < tl_padded_rows(rows); i++) {
        logsumexp[i] = lse->offset[i] + lse->log[i];
        factor[i] = 1;
    }
    uint64_t left = rows->wanted & ~tl_map_groups(backend, rows, lse, is_log, logsumexp, factor, zeros, out);
    for (int i = 0; left >> i != 0; i++) {
        tl_row row = tl_row_of_block(rows, i), to = tl_row_of_out(out, i);
        if (!(left >> i & 1))
            continue;
        if (logsumexp[i] - logsumexp[i] != 0)
            tl_fill(&to, (double)NAN);
        else if (is_log)
            tl_log_softmax(backend, &row, tl_lse_at(lse, i), &to, out->nontemporal_stores, cancel);
        else
            tl_softmax(backend, &row, tl_lse_at(lse, i), &to, out->nontemporal_stores, cancel);
        if (i == TL_BLOCK_ROWS - 1)
            break;
    }
}
