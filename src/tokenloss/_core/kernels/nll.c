#include "nll.h"

/* Whether losses of such rows are computed relative to their targets. */
static int is_relative(const tl_row *row) {
    return row->count >= 2 && row->count <= tl_nll_classes(row->compute_dtype) && row->shift == 0;
}

/* The losses of rows in lanes. */
static uint64_t lane_losses(const tl_backend *backend, const tl_few_rows *rows, int dtype, size_t padded,
                            const int64_t *target, tl_block_nll *of) {
    const tl_lane_losses lanes = {.target = target, .nll = of->nll, .logit = of->logit, .odds = of->odds_against};
    return backend->lane_losses[dtype](rows, padded, &lanes);
}

uint64_t tl_nll_of_groups(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups groups,
                          tl_block_nll *of) {
    int64_t target[TL_BLOCK_ROWS] = {0};
    tl_few_rows in_groups = tl_few_of_groups(groups.at, (size_t)rows->row.count, groups.dtype);
    if (!is_relative(&rows->row))
        return 0;
    memcpy(target, rows->excluded, (size_t)count * sizeof *target);
    return rows->wanted & lane_losses(backend, &in_groups, groups.dtype, tl_padded_rows(count), target, of);
}

/* The losses of rows `first` and so on, in pieces that are copied: of several rows of up to TL_BLOCK classes together, or
 * of one. Returns the bits of those that are not far out. */
static uint64_t nll_of_pieces(const tl_backend *backend, const tl_row_block *rows, int first, int count,
                              tl_block_nll *of) {
    double memory[TL_BLOCK + 10];
    const int64_t classes = rows->row.count, size = tl_itemsize(rows->row.compute_dtype);
    tl_lane_sums sums = {{0}, {0}}, *carried = classes > TL_BLOCK ? &sums : NULL;
    tl_row row = tl_row_of_block(rows, first);
    uint64_t near = 0;
    if (carried)
        of->logit[first] = rows->excluded[first] < 0 ? (double)NAN : tl_logit_at(backend, &row, rows->excluded[first]);
    for (int64_t start = 0, n; start < classes; start += n) {
        char *copy = (char *)(memory + 2) + (-(uintptr_t)(memory + 2) & 63);
        const char *data[TL_GROUP];
        int64_t target[TL_GROUP];
        n = classes - start < TL_BLOCK ? classes - start : TL_BLOCK;
        memset(copy - 16, 0, 16); /* AVX2 reads there before a short piece of halves */
        for (int i = 0; i < count; i++, copy += n * size) {
            row.data = rows->data[first + i];
            const tl_row piece = tl_part_of(&row, start, start + n);
            tl_cast_row(backend, &piece, row.compute_dtype, copy);
            data[i] = copy;
            target[i] = rows->excluded[first + i] - start;
        }
        near = backend->row_losses[row.compute_dtype](data, (size_t)count, (size_t)n, target, carried, of->logit + first,
                                                      of->nll + first, of->odds_against + first);
    }
    return near;
}

/* The loss of a single row of few classes, computed as a group of copies of that row. */
TL_OUTLINE uint64_t nll_of_few(const tl_backend *backend, const tl_row *row, int64_t target, tl_block_nll *of) {
    char scratch[TL_GROUPS_BYTES(TL_FEW_CLASSES)];
    int64_t targets[TL_GROUP];
    const tl_few_rows copies = tl_rows_or_groups(backend, row, 0, 0, 1, 1, scratch);
    for (int i = 0; i < TL_GROUP; i++)
        targets[i] = target;
    return 1 & lane_losses(backend, &copies, tl_single_or_double(row->compute_dtype), TL_GROUP, targets, of);
}

uint64_t tl_nll_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_nll *of, tl_groups *groups) {
    const tl_row *row = &rows->row;
    const int in_lanes = rows->has_masses ? TL_MASSES_CLASSES : TL_FEW_CLASSES;
    uint64_t near = 0;
    if (!is_relative(row))
        return 0;
    if (row->count > in_lanes && tl_can_read_in_place(row, row->compute_dtype, 0)) {
        near = backend->row_losses[row->compute_dtype](rows->data, (size_t)rows->count, (size_t)row->count,
                                                       rows->excluded, NULL, of->logit, of->nll, of->odds_against);
        return rows->wanted & near;
    }
    if (rows->scratch && (row->count <= in_lanes || (rows->class_major && row->count <= TL_SHORT_ROW))) {
        *groups = tl_scale_groups(backend, rows, rows->count, tl_load_raw_groups(backend, rows, rows->count));
        return tl_nll_of_groups(backend, rows, rows->count, *groups, of);
    }
    if (row->count <= TL_FEW_CLASSES) {
        tl_row only = tl_row_of_block(rows, 0); /* blocks of more rows have scratch memory */
        return nll_of_few(backend, &only, *rows->excluded, of);
    }
    const int64_t fit = row->count < TL_BLOCK ? TL_BLOCK / row->count : 1;
    const int most = (int)(fit < TL_GROUP ? fit : TL_GROUP);
    for (int start = 0, count; start < rows->count; start += count) {
        count = rows->count - start < most ? rows->count - start : most;
        near |= nll_of_pieces(backend, rows, start, count, of) << start;
    }
    return rows->wanted & near;
}

uint64_t tl_nll_of_largest(const tl_backend *backend, tl_row_block *rows, tl_block_nll *of) {
    const size_t classes = (size_t)rows->row.count;
    const int dtype = rows->row.compute_dtype;
    const int in_place = tl_can_read_in_place(&rows->row, dtype, 0) && classes >= TL_GROUP;
    tl_groups groups;
    double most;
    for (int i = 0; i < rows->count; i++)
        of->logit[i] = of->nll[i] = (double)NAN;
    if (!is_relative(&rows->row) || tl_is_transformed(&rows->row))
        return 0;
    if (rows->scratch && classes <= (rows->class_major ? TL_SHORT_ROW : TL_FEW_CLASSES)) {
        groups = tl_load_scaled_groups(backend, rows, rows->count);
        const tl_few_rows few = tl_few_of_groups(groups.at, classes, groups.dtype);
        const tl_lane_losses lanes = {.by_largest = &few, .nll = of->nll, .logit = of->logit};
        return rows->wanted & backend->lane_losses[groups.dtype](&few, tl_padded_rows(rows->count), &lanes);
    }
    for (uint64_t left = rows->wanted; left != 0; left &= left - 1) {
        const int i = (int)tl_lowest_bit(left);
        const tl_row row = tl_row_of_block(rows, i);
        rows->excluded[i] = in_place ? (int64_t)backend->largest[dtype](row.data, classes, &most)
                                     : tl_find_first(backend, &row, tl_maximum(backend, &row));
    }
    return tl_nll_of_block(backend, rows, of, &groups);
}

int tl_nll_of_row(const tl_backend *backend, const tl_row *row, int64_t target, double *nll) {
    const tl_row_block single = {.row = *row, .data = {row->data}, .count = 1, .excluded = {target}, .wanted = 1};
    tl_groups groups;
    tl_block_nll of;
    if (!tl_nll_of_block(backend, &single, &of, &groups))
        return 0;
    *nll = of.nll[0];
    return 1;
}

/* The bits of the first `n` rows of a block, or of all. */
static uint64_t first_rows(size_t n) { return n < TL_BLOCK_ROWS ? ~(~(uint64_t)0 << n) : ~(uint64_t)0; }

/* Writes the gradients of `n` rows, in whole groups, from `start` on. Returns the bits of rows that are far out: then
 * nothing is written. */
static uint64_t write_plain(const tl_backend *backend, const tl_plain_rows *of_all, const tl_few_rows *rows, int dtype,
                            const tl_lane_losses *of, size_t n, size_t start) {
    const tl_row *grad = &of_all->grad;
    double logsumexp[TL_BLOCK_ROWS], smoothed[TL_BLOCK_ROWS], ones[TL_BLOCK_ROWS];
    const char *from[TL_BLOCK_ROWS];
    char *out[TL_BLOCK_ROWS];
    tl_gradient_parts parts;
    tl_few_rows to = tl_few_rows_at(grad, start, of_all->grad_apart);
    for (size_t i = 0; i < n; i++) {
        logsumexp[i] = of->logit[i] + of->nll[i];
        smoothed[i] = of_all->loss->soft.eps_over_v * (double)rows->classes;
        ones[i] = 1;
    }
    backend->gradient_parts(of_all->loss, logsumexp, of->odds, smoothed, of->class_weight ? of->target_weight : ones,
                            of_all->grad_scale + start, n, &parts);
    const uint64_t near = backend->softmax_factors(logsumexp, NULL, n, dtype, parts.exponent, parts.factor);
    if (~near & first_rows(n))
        return ~near & first_rows(n);
    if (grad->dtype == dtype && (!rows->are_apart || !to.are_apart || rows->classes < TL_GROUP)) {
        backend->lane_gradients[dtype](rows, n, of->target, &parts, &to);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        from[i] = rows->data + (ptrdiff_t)i * rows->apart;
        out[i] = (char *)(uintptr_t)grad->data + (ptrdiff_t)(start + i) * of_all->grad_apart;
    }
    if (grad->dtype == dtype) { /* along the classes, which takes less time then */
        backend->exp_scaled_rows[dtype](from, n, rows->classes, parts.exponent, parts.factor, parts.subtrahend, out, 0);
    } else { /* of halves, in groups, which are rounded; so targets are not rounded twice */
        backend->lane_gradients[dtype](rows, n, NULL, &parts, rows);
        tl_move_lanes(backend, &to, grad->dtype, n, (char *)(uintptr_t)rows->data, 1);
    }
    for (size_t i = 0; i < n; i++)
        if (of->target[i] >= 0) /* masked ones are negative */
            tl_store(out[i] + of->target[i] * grad->stride, grad->dtype, parts.at_target[i]);
    return 0;
}

/* The same with masses: those of distributions, or what smoothing adds to class ids with weights. Gradients that cannot
 * be written in place go by way of `groups`; there may be any number of neighbours. */
static uint64_t write_by_masses(const tl_backend *backend, const tl_plain_rows *of_all, const tl_few_rows *rows,
                                const tl_few_rows *masses, int are_wide, const tl_lane_losses *of, size_t n,
                                size_t start, char *groups) {
    const tl_row *grad = &of_all->grad;
    const int dtype = tl_single_or_double(grad->dtype);
    const tl_few_rows to = tl_few_rows_at(grad, start, of_all->grad_apart);
    const tl_few_rows copies = tl_few_of_groups(groups, rows->classes, dtype);
    const int in_place = grad->dtype == dtype && !to.are_apart && n % TL_GROUP == 0;
    const size_t padded = tl_padded_rows((int)n);
    const double *scale = of_all->grad_scale + start;
    double logsumexp[TL_BLOCK_ROWS], exponent[TL_BLOCK_ROWS], factor[TL_BLOCK_ROWS];
    tl_gradient_parts of_ids;
    for (size_t i = 0; i < padded; i++)
        logsumexp[i] = of->logit[i] + of->nll[i];
    for (size_t i = 0; i < padded; i++)
        factor[i] = of->odds ? 1 : scale[i] * tl_softmax_weight(of_all->loss, logsumexp[i], of->total[i]);
    if (of->odds) {
        backend->gradient_parts(of_all->loss, logsumexp, of->odds, of->total, of->target_weight, factor, n, &of_ids);
        for (size_t i = 0; i < n; i++)
            factor[i] = scale[i] * of_ids.factor[i];
    }
    const uint64_t near = backend->softmax_factors(logsumexp, scale, padded, dtype, exponent, factor);
    if (~near & first_rows(n))
        return ~near & first_rows(n);
    const tl_mass_gradients parts = {exponent, factor, scale, 0, 0, grad->dtype};
    backend->mass_gradients[dtype](rows, masses, are_wide, padded, &parts, in_place ? &to : &copies);
    if (!in_place)
        tl_move_lanes(backend, &to, grad->dtype, n, groups, 1);
    for (size_t i = 0; of->odds && i < n; i++)
        if (of->target[i] >= 0) /* masked ones are negative */
            tl_store((char *)(uintptr_t)to.data + (ptrdiff_t)i * of_all->grad_apart + of->target[i] * grad->stride,
                     grad->dtype, scale[i] * of_ids.at_target[i]);
    return 0;
}

/* What makes the masses of rows effective ones, with `weight` for the weights; NULL if they are such. */
static const tl_weighing *weighing_of(const tl_plain_rows *of, double *weight, tl_weighing *weighing) {
    const tl_soft_target *soft = &of->loss->soft;
    if (of->mass.count == 0 || (!soft->weight && soft->eps_over_v == 0))
        return NULL;
    for (int64_t k = 0; k < of->row.count; k++)
        weight[k] = soft->weight ? tl_load(soft->weight + k * soft->weight_stride, soft->weight_dtype) : 1;
    *weighing = (tl_weighing){soft->one_minus_eps, soft->eps_over_v, weight};
    return weighing;
}

/* Finds the losses of `n` rows from row `start` on, and their weights; both are 0 where masked. Returns a bit, modulo
 * TL_BLOCK_ROWS, for each unmasked row without such a loss, or for all rows if their gradients cannot be written. In a
 * single block, losses and weights of rows with a bit are 0. */
static uint64_t losses_of_rows(const tl_backend *backend, const tl_plain_rows *of, size_t start, size_t n, char *scratch,
                               double *losses, double *weights, size_t *masked) {
    const tl_loss *loss = of->loss;
    const tl_row *row = &of->row;
    int dtype = tl_single_or_double(row->compute_dtype), has_dots = of->mass.count > 0 || loss->soft.eps_over_v != 0;
    size_t padded = (n + TL_GROUP - 1) / TL_GROUP * TL_GROUP, classes = (size_t)row->count;
    double nll[TL_PLAIN_ROWS], logit[TL_PLAIN_ROWS], odds[TL_PLAIN_ROWS], dot[TL_PLAIN_ROWS], of_class[TL_PLAIN_ROWS];
    double total[TL_PLAIN_ROWS];
    double *wide = (double *)(void *)(tl_aligned(scratch) + TL_GROUPS_BYTES(TL_MASSES_CLASSES) - TL_GROUP_ALIGNMENT);
    tl_lane_losses lanes = of->given;
    tl_few_rows rows = {.classes = classes}, masses;
    uint64_t left;
    lanes.target += start;
    lanes.row_weight = lanes.row_weight ? lanes.row_weight + start : NULL;
    lanes.nll = nll;
    lanes.logit = has_dots || loss->z_loss != 0 || of->grad_scale ? logit : NULL;
    lanes.odds = of->grad_scale && of->mass.count == 0 ? odds : NULL;
    lanes.dot = has_dots ? dot : NULL;
    lanes.target_weight = of_class;
    *masked = 0;
    for (size_t i = 0; lanes.some_masked && i < n; i++)
        *masked += (size_t)((uint64_t)lanes.target[i] >> 63);
    if (of->mass.count > 0 && (n - *masked) * (classes + 64) < n * classes) {
        left = ~(uint64_t)0; /* so few are found sooner one by one */
    } else if (of->mass.count > 0) {
        lanes.total = total;
        rows = tl_rows_or_groups(backend, row, start, of->apart, n, 0, scratch);
        masses = tl_rows_or_groups(backend, &of->mass, start, of->mass_apart, n, 0,
                                   scratch + TL_GROUPS_BYTES(TL_FEW_CLASSES)); /* as large for floats of all classes */
        const tl_lane_losses by_largest = {.by_largest = &masses, .weighing = lanes.weighing, .nll = nll,
                                           .logit = logit, .dot = dot, .total = total};
        left = ~backend->lane_losses[dtype](&rows, padded, &by_largest);
    } else if (classes <= (has_dots ? TL_MASSES_CLASSES : TL_FEW_CLASSES) || row->stride != tl_itemsize(row->dtype)) {
        const int has_masses = of->grad_scale && lanes.mass;
        rows = tl_rows_or_groups(backend, row, start, of->apart, n, !has_masses, scratch);
        left = ~backend->lane_losses[dtype](&rows, padded, &lanes);
        for (size_t i = 0; has_masses && i < n; i++)
            total[i] = lanes.total_mass;
        for (size_t i = 0; has_masses && i < classes * TL_GROUP; i++)
            wide[i] = lanes.mass[i / TL_GROUP];
        masses = tl_few_of_groups(wide, classes, TL_FLOAT64);
        masses.group_bytes = 0; /* all rows share one group */
    } else {
        const char *data[TL_BLOCK_ROWS];
        for (size_t i = 0; i < n; i++)
            data[i] = row->data + (ptrdiff_t)(start + i) * of->apart;
        left = ~backend->row_losses[row->dtype](data, n, classes, lanes.target, NULL, logit, nll, odds);
    }
    if (~left != 0)
        left |= backend->finish_losses(loss, &lanes, classes, padded, losses, weights);
    if (n > TL_BLOCK_ROWS)
        return left;
    left &= first_rows(n);
    lanes.total = lanes.mass ? total : lanes.total;
    if (of->grad_scale && left == 0 && lanes.weighing)
        masses = tl_weigh_groups(backend, &loss->soft, &masses, dtype, padded / TL_GROUP, wide);
    if (of->grad_scale && left == 0)
        left = lanes.total ? write_by_masses(backend, of, &rows, &masses, lanes.mass || lanes.weighing, &lanes, n,
                                             start, tl_aligned(scratch))
                           : write_plain(backend, of, &rows, dtype, &lanes, n, start);
    if (of->grad_scale && left != 0)
        left = first_rows(n);
    for (uint64_t bits = left; bits != 0; bits &= bits - 1) {
        const unsigned i = tl_lowest_bit(bits);
        losses[i] = weights[i] = 0;
        left ^= (uint64_t)(lanes.some_masked && lanes.target[i] < 0) << i;
    }
    return left;
}

/* Adds losses without options to bins, and these to a sum. Returns how many were added: 0 if rows do not lie in place,
 * with distributions side by side, or if one is masked, far out, of no class, or has a loss that bins do not hold. */
static size_t add_by_bins(const tl_backend *backend, const tl_plain_rows *of, size_t count, tl_superacc *sum) {
    const size_t most = TL_BIN_GROUPS * TL_SUM_GROUP, n = (count < most ? count : most) / TL_GROUP * TL_GROUP;
    const tl_few_rows rows = tl_few_rows_at(&of->row, 0, of->apart);
    tl_bins bins = {.groups = TL_BIN_GROUPS};
    const int has_masses = of->mass.count > 0;
    const tl_few_rows masses = tl_few_rows_at(has_masses ? &of->mass : &of->row, 0, of->mass_apart);
    const tl_lane_losses lanes = {.target = of->given.target, .by_largest = has_masses ? &masses : NULL,
                                  .weighing = of->given.weighing, .bin = bins.bin};
    if (!tl_are_in_place(&of->row, of->apart) ||
        (has_masses && (!tl_are_in_place(&of->mass, of->mass_apart) || rows.are_apart || masses.are_apart ||
                        of->given.some_masked)))
        return 0;
    if (first_rows(n) & ~backend->lane_losses[of->row.dtype](&rows, n, &lanes))
        return 0;
    tl_superacc_pour(sum, &bins);
    return n;
}

size_t tl_add_plain_losses(const tl_backend *backend, tl_plain_rows *of, size_t count, tl_superacc *sum,
                           tl_superacc *weights, int64_t *unmasked, uint64_t *left) {
    char scratch[TL_GROUPS_BYTES(TL_MASSES_CLASSES) + TL_BLOCK_ROWS * TL_MASSES_CLASSES * sizeof(double)];
    double losses[TL_PLAIN_ROWS], weight[TL_PLAIN_ROWS];
    double weight_of_class[TL_MASSES_CLASSES];
    tl_weighing weighing;
    int is_long = tl_are_in_place(&of->row, of->apart) && !of->grad_scale && of->mass.count == 0;
    of->given.weighing = weighing_of(of, weight_of_class, &weighing);
    size_t n = of->sums_only ? add_by_bins(backend, of, count, sum) : 0;
    size_t most = count < TL_PLAIN_ROWS ? count : TL_PLAIN_ROWS;
    const int in_groups = of->grad_scale && (of->mass.count == 0 || of->grad.stride == tl_itemsize(of->grad.dtype));
    if (in_groups || (is_long && of->row.count > TL_MASSES_CLASSES) ||
        (of->mass.count > 0 && most > 3 * TL_GROUP)) /* of fewer, copies take less time */
        most -= most % TL_GROUP;
    *left = 0;
    *unmasked += (int64_t)n;
    if (n > 0)
        return n;
    of->sums_only = 0;
    while (n < most && *left == 0) {
        size_t part = most - n, masked;
        part = part <= TL_BLOCK_ROWS ? part : is_long ? part / TL_BLOCK_ROWS * TL_BLOCK_ROWS : TL_BLOCK_ROWS;
        *left = losses_of_rows(backend, of, n, part, scratch, losses + n, weight + n, &masked);
        if (*left != 0 && part > TL_BLOCK_ROWS) { /* block by block, to see which */
            is_long = 0;
            *left = 0;
            continue;
        }
        *unmasked += (int64_t)(part - masked);
        for (uint64_t bits = *left; bits != 0; bits &= bits - 1)
            --*unmasked;
        n += part;
    }
    tl_superacc_add_many(backend, TL_SUM, sum, losses, n);
    if (of->given.class_weight || of->given.row_weight)
        tl_superacc_add_many(backend, TL_SUM, weights, weight, n);
    if (of->values)
        memcpy(of->values, losses, n * sizeof *losses);
    return n;
}
