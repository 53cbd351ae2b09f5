#include "nll.h"

/* The excluded class of each row as its target: 0 where there is none, and in lanes that no row fills. Returns a bit
 * for each wanted row that has one. */
static uint64_t targets_of(const tl_row_block *rows, int64_t *target) {
    uint64_t found = rows->wanted;
    for (int i = 0; i < (int)tl_padded_rows(rows->count); i++) {
        int64_t id = i < rows->count ? rows->excluded[i] : -1;
        target[i] = id < 0 ? 0 : id;
        found &= ~((uint64_t)(id < 0) << i);
    }
    return found;
}

/* Whether losses of such rows are computed relative to their targets. */
static int is_relative(const tl_row *row) {
    return row->count >= 2 && row->count <= TL_NLL_CLASSES && row->shift == 0;
}

/* The losses of contiguous rows of this dtype, along their classes: rows `start` and so on of `of`. */
static uint64_t nll_of_many(const tl_backend *backend, const char *const *data, int count, size_t classes, int dtype,
                            const int64_t *target, int start, tl_block_nll *of) {
    double sum[TL_BLOCK_ROWS] = {0}, *logit = of->logit + start;
    size_t padded = tl_padded_rows(count);
    for (size_t i = 0; i < padded; i++)
        logit[i] = i < (size_t)count ? tl_load(data[i] + target[i] * tl_itemsize(dtype), dtype) : 0;
    backend->sum_others[dtype](data, (size_t)count, classes, logit, target, sum);
    return backend->losses_of_sums[tl_single_or_double(dtype)](logit, sum, padded, of->nll + start,
                                                            of->odds_against + start);
}

/* The losses of groups of few classes: rows `start` and so on of `of`. */
static uint64_t few_losses(const tl_backend *backend, const void *groups, int dtype, size_t classes, size_t padded,
                           const int64_t *target, tl_block_nll *of, int start) {
    size_t class_bytes = TL_GROUP * (size_t)tl_itemsize(dtype);
    tl_few_rows rows = {(const char *)groups, class_bytes * classes, (ptrdiff_t)class_bytes, classes};
    return backend->few_losses[dtype](&rows, padded, target, of->logit + start, of->nll + start,
                                      of->odds_against + start);
}

uint64_t tl_nll_of_groups(const tl_backend *backend, const tl_row_block *rows, tl_groups groups, tl_block_nll *of) {
    int64_t target[TL_BLOCK_ROWS];
    uint64_t found = targets_of(rows, target), near = 0;
    size_t classes = (size_t)rows->row.count, padded = tl_padded_rows(rows->count);
    size_t row_bytes = classes * (size_t)tl_itemsize(groups.dtype);
    if (!is_relative(&rows->row))
        return 0;
    if (classes <= TL_FEW_CLASSES)
        return found & few_losses(backend, groups.at, groups.dtype, classes, padded, target, of, 0);
    for (int start = 0; start < rows->count; start += TL_GROUP) { /* a group becomes rows again */
        char *row[TL_GROUP];
        int count = rows->count - start < TL_GROUP ? rows->count - start : TL_GROUP;
        for (size_t r = 0; r < TL_GROUP; r++)
            row[r] = tl_wide_groups_of(rows) + r * row_bytes;
        backend->deinterleave[groups.dtype]((const char *)groups.at + (size_t)start * row_bytes, classes, row);
        near |= nll_of_many(backend, (const char *const *)row, count, classes, groups.dtype, target + start, start, of)
                << start;
    }
    return found & near;
}

/* The loss of one row as row `start` of `of`; returns whether it is not far out. The row is copied where it is scaled,
 * capped, strided or swapped. */
TL_OUTLINE uint64_t nll_of_one(const tl_backend *backend, const tl_row *row, int64_t target, int start,
                               tl_block_nll *of) {
    double copy[TL_NLL_CLASSES];
    const char *data = row->data;
    int dtype = row->compute_dtype;
    ptrdiff_t size = tl_itemsize(dtype);
    tl_chunk_buf chunk;
    tl_chunk_invalidate(&chunk);
    if (!tl_can_read_in_place(row, dtype, 0))
        data = (const char *)copy;
    if (data != row->data && !tl_is_transformed(row) && dtype == (row->dtype & ~TL_SWAPPED)) {
        tl_copy_native(row, copy);
    } else if (data != row->data) {
        for (int64_t at = 0; at < row->count; at += TL_CHUNK) {
            int64_t count = row->count - at < TL_CHUNK ? row->count - at : TL_CHUNK;
            tl_load_chunk(backend, row, at, count, -1, 0, dtype, &chunk);
            memcpy((char *)copy + at * size, &chunk.at, (size_t)(count * size));
        }
    }
    if (row->count <= TL_FEW_CLASSES) {
        const char *rows[TL_GROUP];
        int64_t targets[TL_GROUP];
        double group[TL_GROUP * TL_FEW_CLASSES];
        for (int i = 0; i < TL_GROUP; i++) {
            rows[i] = data;
            targets[i] = target;
        }
        backend->interleave[dtype](rows, (size_t)row->count, group);
        dtype = tl_single_or_double(dtype);
        return 1 & few_losses(backend, group, dtype, (size_t)row->count, TL_GROUP, targets, of, start);
    }
    return 1 & nll_of_many(backend, &data, 1, (size_t)row->count, dtype, &target, start, of);
}

int tl_nll_of_row(const tl_backend *backend, const tl_row *row, int64_t target, double *nll) {
    tl_block_nll of;
    if (!is_relative(row) || target < 0 || !nll_of_one(backend, row, target, 0, &of))
        return 0;
    *nll = of.nll[0];
    return 1;
}

/* Losses of rows one by one. Long class-major ones that share cache lines are transposed first. */
static uint64_t nll_of_each(const tl_backend *backend, const tl_row_block *rows, const int64_t *target,
                            tl_block_nll *of) {
    int size = tl_itemsize(rows->row.dtype), is_transposed = rows->class_major && rows->row.count > TL_SHORT_ROW;
    int most = is_transposed ? TL_ROWS_PER_CACHE_LINE(rows->row.dtype) : 1;
    tl_row part[TL_MAX_CLASS_MAJOR_ROWS];
    uint64_t near = 0;
    for (int start = 0; start < rows->count; start += most) {
        int count = rows->count - start < most ? rows->count - start : most;
        for (int i = 0; i < count; i++)
            part[i] = tl_row_of_block(rows, start + i);
        if (is_transposed)
            tl_transpose(part, count, 0, rows->row.count, rows->scratch);
        for (int i = 0; i < count; i++) {
            if (is_transposed) {
                part[i].data = rows->scratch + (ptrdiff_t)i * TL_TRANSPOSED_ROW * size;
                part[i].stride = size;
                part[i].dtype &= ~TL_SWAPPED;
            }
            near |= nll_of_one(backend, &part[i], target[start + i], start + i, of) << (start + i);
        }
    }
    return near;
}

uint64_t tl_nll_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_nll *of, tl_groups *groups) {
    int64_t target[TL_BLOCK_ROWS];
    const tl_row *row = &rows->row;
    int in_place = row->count > TL_FEW_CLASSES && tl_can_read_in_place(row, row->compute_dtype, 0);
    if (!is_relative(row))
        return 0;
    int in_groups = row->count <= TL_FEW_CLASSES ||
                    (row->count <= TL_SHORT_ROW && (rows->class_major || tl_is_transformed(row)) && !in_place);
    if (rows->scratch && in_groups) {
        *groups = tl_scale_groups(backend, rows, rows->count, tl_load_raw_groups(backend, rows, rows->count));
        return tl_nll_of_groups(backend, rows, *groups, of);
    }
    uint64_t found = targets_of(rows, target);
    if (in_place)
        return found & nll_of_many(backend, rows->data, rows->count, (size_t)row->count, row->compute_dtype, target, 0,
                                   of);
    return found & nll_of_each(backend, rows, target, of);
}

size_t tl_plain_losses(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, const int64_t *target,
                       int some_masked, size_t count, double *nll) {
    char memory[TL_BLOCK_ROWS * TL_FEW_CLASSES * sizeof(double) + TL_GROUP_ALIGNMENT];
    char *groups = memory + (-(uintptr_t)memory & (TL_GROUP_ALIGNMENT - 1));
    int dtype = tl_single_or_double(row->dtype);
    size_t classes = (size_t)row->count, class_bytes = TL_GROUP * (size_t)tl_itemsize(dtype);
    for (size_t start = 0; start < count; start += TL_BLOCK_ROWS) {
        size_t n = count - start < TL_BLOCK_ROWS ? count - start : TL_BLOCK_ROWS, padded = tl_padded_rows((int)n);
        const char *first = row->data + (ptrdiff_t)start * apart;
        tl_few_rows rows = {groups, class_bytes * classes, (ptrdiff_t)class_bytes, classes};
        if (padded > n || row->dtype != dtype) {
            tl_row_block block;
            block.row = *row;
            for (size_t i = 0; i < n; i++)
                block.data[i] = first + (ptrdiff_t)i * apart;
            tl_load_groups(backend, &block, (int)n, dtype, groups);
        } else if (row->stride == tl_itemsize(dtype)) {
            backend->interleave_apart[dtype](first, apart, classes, n / TL_GROUP, groups);
        } else {
            rows = (tl_few_rows){first, class_bytes, row->stride, classes};
        }
        uint64_t far = ~backend->few_losses[dtype](&rows, padded, target + start, NULL, nll + start, NULL);
        far &= ~(uint64_t)0 >> (TL_BLOCK_ROWS - n);
        for (size_t i = 0; some_masked && i < n; i++) { /* a branch would be mispredicted */
            uint64_t counts = target[start + i] != TL_MASKED;
            nll[start + i] = tl_from_bits(tl_to_bits(nll[start + i]) & (0 - counts));
            far &= ~((counts ^ 1) << i);
        }
        if (far != 0)
            return start + tl_lowest_bit(far);
    }
    return count;
}
