#include "nll.h"

#include "elementwise.h"

/* Memory for the groups of a block of few classes. */
#define GROUPS_BYTES (TL_BLOCK_ROWS * TL_FEW_CLASSES * sizeof(double) + TL_GROUP_ALIGNMENT)

/* The excluded class of each row as its target: 0 for rows without one, and in lanes that no row fills. Returns a bit
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

/* The losses of rows in lanes: rows `start` and so on of `of`. */
static uint64_t lane_losses(const tl_backend *backend, const tl_few_rows *rows, int dtype, size_t padded,
                            const int64_t *target, int start, int sums, tl_block_nll *of) {
    const tl_lane_losses lanes = {of->nll + start, of->logit + start, of->odds_against + start,
                                  sums ? of->logit_sum + start : NULL, NULL};
    return backend->lane_losses[dtype](rows, padded, target, &lanes);
}

/* The same of groups. */
static uint64_t losses_of_groups(const tl_backend *backend, const void *groups, int dtype, size_t classes,
                                 size_t padded, const int64_t *target, int start, int sums, tl_block_nll *of) {
    size_t class_bytes = TL_GROUP * (size_t)tl_itemsize(dtype);
    tl_few_rows rows = {.data = groups, .group_bytes = class_bytes * classes, .classes = classes};
    rows.class_stride = (ptrdiff_t)class_bytes;
    return lane_losses(backend, &rows, dtype, padded, target, start, sums, of);
}

/* Whether logits are to be summed: those of more than a chunk in another order. */
static int sums_logits(const tl_row_block *rows) { return rows->sums_logits && rows->row.count <= TL_CHUNK; }

uint64_t tl_nll_of_groups(const tl_backend *backend, const tl_row_block *rows, tl_groups groups, tl_block_nll *of) {
    int64_t target[TL_BLOCK_ROWS];
    uint64_t found = targets_of(rows, target);
    if (!is_relative(&rows->row))
        return 0;
    of->has_sums = sums_logits(rows);
    return found & losses_of_groups(backend, groups.at, groups.dtype, (size_t)rows->row.count,
                                    tl_padded_rows(rows->count), target, 0, of->has_sums, of);
}

/* The loss of one row as row `start` of `of`; returns whether it is not far out. The row is copied where it is scaled,
 * capped, strided or swapped. */
TL_OUTLINE uint64_t nll_of_one(const tl_backend *backend, const tl_row *row, int64_t target, int start,
                               tl_block_nll *of) {
    double copy[TL_NLL_CLASSES];
    const char *data = row->data;
    int is_few = row->count <= TL_FEW_CLASSES;
    int dtype = is_few ? tl_single_or_double(row->compute_dtype) : row->compute_dtype, size = tl_itemsize(dtype);
    tl_chunk_buf chunk;
    tl_chunk_invalidate(&chunk);
    if (!tl_can_read_in_place(row, dtype, 0)) {
        data = (const char *)copy;
        for (int64_t at = 0; at < row->count; at += TL_CHUNK) {
            int64_t count = row->count - at < TL_CHUNK ? row->count - at : TL_CHUNK;
            tl_load_chunk(backend, row, at, count, -1, 0, dtype, &chunk);
            memcpy((char *)copy + at * size, &chunk.at, (size_t)(count * size));
        }
    }
    if (is_few) { /* a group of the same row */
        int64_t targets[TL_GROUP];
        const tl_few_rows rows = {data, 0, 0, (size_t)row->count, 1, 0};
        for (int i = 0; i < TL_GROUP; i++)
            targets[i] = target;
        return 1 & lane_losses(backend, &rows, dtype, TL_GROUP, targets, start, 0, of);
    }
    return 1 & backend->row_losses[dtype](&data, 1, (size_t)row->count, &target, of->logit + start, of->nll + start,
                                          of->odds_against + start);
}

int tl_nll_of_row(const tl_backend *backend, const tl_row *row, int64_t target, double *nll) {
    tl_block_nll of;
    if (!is_relative(row) || target < 0 || !nll_of_one(backend, row, target, 0, &of))
        return 0;
    *nll = of.nll[0];
    return 1;
}

/* Losses of rows one by one; of long class-major ones, which share cache lines, a group at a time. */
static uint64_t nll_of_each(const tl_backend *backend, const tl_row_block *rows, const int64_t *target,
                            tl_block_nll *of) {
    const tl_row *row = &rows->row;
    int dtype = tl_single_or_double(row->compute_dtype), in_groups = rows->class_major && row->count > TL_SHORT_ROW;
    size_t bytes = TL_GROUP_ALIGNMENT + tl_group_elements(rows) * (size_t)tl_itemsize(dtype);
    uint64_t near = 0;
    in_groups &= !tl_is_transformed(row) && bytes <= tl_row_block_bytes(row->count, 1);
    for (int start = 0, count; start < rows->count; start += count) {
        count = !in_groups ? 1 : rows->count - start < TL_GROUP ? rows->count - start : TL_GROUP;
        if (in_groups) {
            tl_row_block part = {.row = *row, .count = count};
            memcpy(part.data, rows->data + start, (size_t)count * sizeof *part.data);
            tl_load_groups(backend, &part, count, dtype, tl_groups_of(rows));
            near |= losses_of_groups(backend, tl_groups_of(rows), dtype, (size_t)row->count, TL_GROUP, target + start,
                                     start, 0, of) << start;
        } else {
            tl_row single = tl_row_of_block(rows, start);
            near |= nll_of_one(backend, &single, target[start], start, of) << start;
        }
    }
    return near;
}

/* Whether rows are whole groups of planes, of native logits, that are read where they are. */
static int are_planes(const tl_row_block *rows) {
    const tl_row *row = &rows->row;
    return rows->class_major && rows->count % TL_GROUP == 0 && !tl_is_transformed(row) &&
           row->dtype == tl_single_or_double(row->compute_dtype) &&
           !(rows->keeps_logits && row->count <= TL_SHORT_ROW) &&
           tl_are_neighbours(rows->data, 0, rows->count, tl_itemsize(row->dtype));
}

uint64_t tl_nll_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_nll *of, tl_groups *groups) {
    int64_t target[TL_BLOCK_ROWS];
    const tl_row *row = &rows->row;
    int in_place = row->count > TL_FEW_CLASSES && tl_can_read_in_place(row, row->compute_dtype, 0);
    if (!is_relative(row))
        return 0;
    uint64_t found = targets_of(rows, target);
    if (are_planes(rows)) {
        tl_few_rows planes = {.data = rows->data[0], .class_stride = row->stride, .classes = (size_t)row->count};
        planes.group_bytes = TL_GROUP * (size_t)tl_itemsize(row->dtype);
        of->has_sums = sums_logits(rows);
        return found & lane_losses(backend, &planes, row->dtype, (size_t)rows->count, target, 0, of->has_sums, of);
    }
    int in_groups = row->count <= TL_FEW_CLASSES ||
                    (row->count <= TL_SHORT_ROW && (rows->class_major || tl_is_transformed(row)) && !in_place);
    if (rows->scratch && in_groups) {
        *groups = tl_scale_groups(backend, rows, rows->count, tl_load_raw_groups(backend, rows, rows->count));
        return tl_nll_of_groups(backend, rows, *groups, of);
    }
    if (in_place)
        return found & backend->row_losses[row->compute_dtype](rows->data, (size_t)rows->count, (size_t)row->count,
                                                               target, of->logit, of->nll, of->odds_against);
    return found & nll_of_each(backend, rows, target, of);
}

/* The losses of near rows with their options, in place of their nll. `masses` are those of smoothing, for groups, if
 * classes have weights. Returns a bit for each row whose dot is infinite or nan, and whose loss is wrong. */
static uint64_t finish_plain(const tl_backend *backend, const tl_few_rows *rows, int dtype, const tl_loss *loss,
                             const double *masses, const tl_block_nll *of, const double *weight, size_t count,
                             double *nll) {
    const double rest = loss->soft.one_minus_eps, smoothed = loss->soft.eps_over_v * (double)rows->classes;
    double dot[TL_BLOCK_ROWS] = {0}, mass[TL_BLOCK_ROWS];
    uint64_t odd = 0, which = 0;
    for (size_t i = 0; i < count; i++) {
        mass[i] = smoothed;
        if (smoothed != 0 && !masses)
            dot[i] = tl_uniform_dot(loss->soft.eps_over_v, (int64_t)rows->classes, of->logit_sum[i], of->logit[i]);
    }
    for (size_t i = 0; masses && i < count; i += TL_GROUP)
        backend->short_dots[dtype](rows->data + i / TL_GROUP * rows->group_bytes, masses, 1, TL_GROUP, rows->classes,
                                   of->logit + i, dot + i, mass + i);
    for (size_t i = 0; i < count; i++) {
        odd |= tl_to_bits(dot[i] - dot[i]);
        nll[i] = tl_loss_of_parts((weight ? weight[i] * rest : rest) * nll[i], dot[i], mass[i], nll[i], loss->z_loss,
                                  of->logit[i] + nll[i]);
    }
    for (size_t i = 0; odd != 0 && i < count; i++)
        which |= (uint64_t)(dot[i] - dot[i] != 0) << i;
    return which;
}

/* The bits of the first `n` rows of a block, or of all. */
static uint64_t first_rows(size_t n) { return n < TL_BLOCK_ROWS ? ~(~(uint64_t)0 << n) : ~(uint64_t)0; }

/* Rows of which whole groups lie as the first does, which is `row`. */
static tl_few_rows few_rows(const tl_row *row, size_t start, ptrdiff_t apart) {
    size_t classes = (size_t)row->count, group_bytes = TL_GROUP * (size_t)tl_itemsize(row->dtype);
    const char *first = row->data + (ptrdiff_t)start * apart;
    if (row->stride == tl_itemsize(row->dtype))
        return (tl_few_rows){first, (size_t)(TL_GROUP * apart), 0, classes, 1, apart};
    return (tl_few_rows){first, group_bytes, row->stride, classes, 0, 0};
}

/* The same where they lie; or copied to groups, a block at most, if wanted, for half precision, and to fill these. */
static tl_few_rows rows_or_groups(const tl_backend *backend, const tl_row *row, size_t start, ptrdiff_t apart, size_t n,
                                  int copies, char *groups) {
    int dtype = tl_single_or_double(row->dtype);
    size_t classes = (size_t)row->count, class_bytes = TL_GROUP * (size_t)tl_itemsize(dtype);
    tl_row_block block;
    if (!copies && n % TL_GROUP == 0 && row->dtype == dtype)
        return few_rows(row, start, apart);
    block.row = *row;
    for (size_t i = 0; i < n; i++)
        block.data[i] = row->data + (ptrdiff_t)(start + i) * apart;
    tl_load_groups(backend, &block, (int)n, dtype, groups);
    return (tl_few_rows){groups, class_bytes * classes, (ptrdiff_t)class_bytes, classes, 0, 0};
}

size_t tl_add_plain_losses(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, const int64_t *target,
                           size_t count, tl_superacc *sum) {
    char memory[GROUPS_BYTES], *groups = memory + (-(uintptr_t)memory & (TL_GROUP_ALIGNMENT - 1));
    int dtype = tl_single_or_double(row->dtype);
    size_t most = row->dtype == dtype ? TL_BIN_GROUPS * TL_SUM_GROUP : TL_BLOCK_ROWS, n = count < most ? count : most;
    tl_few_rows rows = rows_or_groups(backend, row, 0, apart, n, 0, groups);
    tl_bins bins = {.groups = TL_BIN_GROUPS};
    const tl_lane_losses lanes = {.bin = bins.bin};
    if (first_rows(n) & ~backend->lane_losses[dtype](&rows, n, target, &lanes))
        return 0;
    tl_superacc_pour(sum, &bins);
    return n;
}

/* Writes gradients along the classes of rows, which takes less time from TL_GROUP classes on. */
static void write_along_classes(const tl_backend *backend, const tl_few_rows *rows, int dtype, const int64_t *ids,
                                size_t n, const tl_gradient_parts *parts, const tl_few_rows *to) {
    const char *from[TL_BLOCK_ROWS];
    char *out[TL_BLOCK_ROWS];
    for (size_t i = 0; i < n; i++) {
        from[i] = rows->data + (ptrdiff_t)i * rows->apart;
        out[i] = (char *)(uintptr_t)to->data + (ptrdiff_t)i * to->apart;
    }
    backend->exp_scaled_rows[dtype](from, n, rows->classes, parts->exponent, parts->factor, parts->subtrahend, out, 0);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= 0) /* masked ones are negative */
            tl_store(out[i] + ids[i] * tl_itemsize(dtype), dtype, parts->at_target[i]);
}

/* Writes the gradients of rows `start` and so on, `n` of `padded`, from their nll, logits and odds. Returns whether
 * they could be. */
static int write_plain(const tl_backend *backend, const tl_few_rows *rows, int dtype, const tl_loss *loss,
                       const int64_t *ids, const double *weight, const tl_block_nll *of, size_t n, size_t padded,
                       size_t start, const tl_plain_grads *grads) {
    double logsumexp[TL_BLOCK_ROWS], smoothed[TL_BLOCK_ROWS], ones[TL_BLOCK_ROWS];
    tl_gradient_parts parts;
    tl_row grad = grads->row;
    tl_few_rows to = few_rows(&grad, start, grads->apart);
    int is_far = 0;
    for (size_t i = 0; i < padded; i++) {
        logsumexp[i] = of->logit[i] + of->nll[i];
        smoothed[i] = loss->soft.eps_over_v * (double)grad.count;
        ones[i] = 1;
        is_far |= tl_abs(logsumexp[i]) > TL_MAX_EXACT_REDUCTION;
    }
    if (is_far)
        return 0;
    backend->gradient_parts(loss, logsumexp, of->odds_against, smoothed, weight ? weight : ones, grads->scale + start,
                            padded, &parts);
    backend->softmax_factors(logsumexp, padded, dtype, parts.exponent, parts.factor);
    if (rows->are_apart && to.are_apart && rows->classes >= TL_GROUP) {
        write_along_classes(backend, rows, dtype, ids, n, &parts, &to);
        return 1;
    }
    backend->lane_gradients[dtype](rows, padded, ids, &parts, padded > n ? rows : &to);
    for (size_t i = 0; padded > n && i < n; i++) {
        grad.data = to.data + (ptrdiff_t)i * grads->apart;
        for (int64_t k = 0; k < grad.count; k++)
            tl_store_at(&grad, k, tl_load(rows->data + (i / TL_GROUP) * rows->group_bytes + k * rows->class_stride +
                                              (ptrdiff_t)(i % TL_GROUP) * tl_itemsize(dtype), dtype));
    }
    return 1;
}

size_t tl_plain_losses(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, const tl_loss *loss,
                       const int64_t *target, const double *weight, int some_masked, size_t count,
                       const tl_plain_grads *grads, double *values) {
    char memory[GROUPS_BYTES], *groups = memory + (-(uintptr_t)memory & (TL_GROUP_ALIGNMENT - 1));
    tl_block_nll of;
    int dtype = tl_single_or_double(row->dtype), smooths = loss->soft.eps_over_v != 0;
    int has_options = smooths || loss->z_loss != 0, needs_logits = has_options || grads;
    int weighs = loss->soft.weight != NULL;
    double masses[TL_FEW_CLASSES * TL_GROUP];
    for (size_t i = 0; weighs && i < (size_t)row->count * TL_GROUP; i++)
        masses[i] = i % TL_GROUP == 0 ? tl_soft_target_at(&loss->soft, (int64_t)(i / TL_GROUP)) : masses[i - 1];
    for (size_t start = 0, n; start < count; start += n) {
        n = count - start < TL_BLOCK_ROWS ? count - start : TL_BLOCK_ROWS;
        size_t padded = tl_padded_rows((int)n);
        const int64_t *ids = target + start;
        double *nll = values + start;
        tl_few_rows rows = rows_or_groups(backend, row, start, apart, n, weighs, groups);
        const tl_lane_losses lanes = {nll, needs_logits ? of.logit : NULL, grads ? of.odds_against : NULL,
                                      smooths && !weighs ? of.logit_sum : NULL, NULL};
        uint64_t far = first_rows(n) & ~backend->lane_losses[dtype](&rows, padded, ids, &lanes);
        if (grads)
            memcpy(of.nll, nll, padded * sizeof *nll);
        if (has_options)
            far |= finish_plain(backend, &rows, dtype, loss, weighs ? masses : NULL, &of,
                                weight ? weight + start : NULL, n, nll);
        for (uint64_t left = some_masked ? far : 0; left != 0; left &= left - 1)
            far ^= (uint64_t)(ids[tl_lowest_bit(left)] == TL_MASKED) << tl_lowest_bit(left);
        if (grads && (far != 0 || !write_plain(backend, &rows, dtype, loss, ids, weight ? weight + start : NULL, &of, n,
                                               padded, start, grads)))
            return start;
        for (size_t i = 0; weight && !has_options && i < n; i++) /* nll is finite where it counts */
            nll[i] *= weight[start + i];
        for (size_t i = 0; some_masked && i < n; i++) /* vectors of them, without a branch */
            nll[i] = tl_from_bits(tl_to_bits(nll[i]) & (((uint64_t)ids[i] >> 63) - 1));
        if (far != 0)
            return start + tl_lowest_bit(far);
    }
    return count;
}

void tl_plain_losses_of_many(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, const tl_loss *loss,
                             const int64_t *target, const double *weight, size_t count, double *values,
                             uint64_t *left) {
    const tl_few_rows rows = {.classes = (size_t)row->count};
    const char *data[TL_BLOCK_ROWS];
    tl_block_nll of;
    for (size_t start = 0; start < count; start += TL_BLOCK_ROWS) {
        const size_t n = count - start < TL_BLOCK_ROWS ? count - start : TL_BLOCK_ROWS;
        double *nll = values + start;
        for (size_t i = 0; i < n; i++)
            data[i] = row->data + (ptrdiff_t)(start + i) * apart;
        uint64_t near = backend->row_losses[row->dtype](data, n, rows.classes, target + start, of.logit, nll,
                                                        of.odds_against);
        left[start / TL_BLOCK_ROWS] = ~near & (~(uint64_t)0 >> (TL_BLOCK_ROWS - n));
        if (loss->z_loss != 0)
            (void)finish_plain(backend, &rows, row->dtype, loss, NULL, &of, weight ? weight + start : NULL, n, nll);
        for (size_t i = 0; weight && loss->z_loss == 0 && i < n; i++)
            nll[i] *= weight[start + i];
    }
}
