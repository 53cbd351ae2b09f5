/* Rows that need no block, for kernels.c: portable functions for single rows are asked first, as in blocks.h. */
#ifndef TOKENLOSS_TESTS_FUZZ_PLAIN_ROWS_H
#define TOKENLOSS_TESTS_FUZZ_PLAIN_ROWS_H

#include "blocks.h"

static int64_t even_rows(const question *all) { return all->rows * all->interleaved; }

/* Row r of rows that are all `apart` bytes from the next. */
static tl_row even_row(const tl_row *first, ptrdiff_t apart, int64_t r) {
    tl_row row = *first;
    row.data += r * apart;
    return row;
}

/* Makes rows in one memory, `apart` bytes from each other, and sets the first of them; returns the memory. */
static char *make_even_rows(const question *all, const numbers *of, layout how, int in_planes, tl_row *row,
                            ptrdiff_t *apart) {
    if (is_first)
        how = plain(of->dtype), in_planes = 0;
    const ptrdiff_t size = tl_itemsize(of->dtype), step = in_planes ? size : how.stride;
    const int64_t inner = (in_planes ? even_rows(all) : all->count) - 1;
    const int64_t outer = (in_planes ? all->count : even_rows(all)) - 1;
    const ptrdiff_t width = inner * (step < 0 ? -step : step) + size;
    const ptrdiff_t far = all->gap * size + (all->gap < 0 ? -width : width);
    char *memory = allocate((size_t)(how.misaligned + width + outer * (far < 0 ? -far : far)));
    const char *data = memory + how.misaligned - (step < 0 ? inner * step : 0) - (far < 0 ? outer * far : 0);
    *row = (tl_row){data, all->count, in_planes ? far : step, of->dtype | how.swapped, of->dtype, 1, 0, 0, 0};
    *apart = in_planes ? size : far;
    for (int64_t r = 0; r < even_rows(all); r++) {
        const tl_row next = even_row(row, *apart, r);
        fill_row(all, of, r, &next);
    }
    return memory;
}

/* The rows whose losses are asked for, and what was found. */
typedef struct {
    tl_plain_rows rows;
    int64_t count, unmasked;
    tl_superacc sum, weights;
    double values[4 * TL_BLOCK_ROWS];
} plain_losses;

static void find_single_loss(plain_losses *of, int64_t r) {
    const tl_plain_rows *rows = &of->rows;
    const tl_row row = even_row(&rows->row, rows->apart, r), grad = even_row(&rows->grad, rows->grad_apart, r);
    const double row_weight = rows->given.row_weight ? rows->given.row_weight[r] : 1;
    tl_loss loss = *rows->loss;
    of->values[r] = 0;
    if (rows->given.target[r] < 0)
        return;
    if (rows->mass.count > 0)
        loss.soft.mass = rows->mass.data + r * rows->mass_apart;
    else
        loss.target = rows->given.target[r];
    if (rows->given.class_weight)
        loss.target_weight = rows->given.class_weight[loss.target];
    if (rows->grad_scale)
        loss.grad = &grad, loss.grad_scale = rows->grad_scale[r];
    of->values[r] = 0 + loss_of_row(backend, &row, &loss, &cancel) * row_weight; /* not -0.0 */
    of->unmasked++;
    tl_superacc_add(&of->sum, of->values[r]);
    if (rows->given.class_weight || rows->given.row_weight)
        tl_superacc_add(&of->weights, loss.target_weight * row_weight);
}

/* Finds the losses of rows from `start` on; returns where the next ones start. */
static int64_t find_plain_losses(plain_losses *of, int64_t start, int sums_only) {
    tl_plain_rows rows = of->rows;
    tl_superacc *sum = &of->sum, *weights = &of->weights;
    int64_t count = of->count - start;
    uint64_t left = 0;
    rows.row.data += start * rows.apart;
    rows.given.target += start;
    rows.values = sums_only ? NULL : of->values + start;
    rows.sums_only = sums_only;
    if (rows.given.row_weight)
        rows.given.row_weight += start;
    if (rows.mass.count > 0)
        rows.mass.data += start * rows.mass_apart;
    if (rows.grad_scale)
        rows.grad.data += start * rows.grad_apart, rows.grad_scale += start;
    if (sums_only)
        count -= count % TL_GROUP;
    if (count > 0)
        count = (int64_t)tl_add_plain_losses(backend, &rows, (size_t)count, sum, weights, &of->unmasked, &left);
    const int64_t end = count > 0 ? start + count : of->count;
    for (int64_t block = start + (count - 1) / TL_BLOCK_ROWS * TL_BLOCK_ROWS; left != 0; left &= left - 1)
        find_single_loss(of, block + (int64_t)tl_lowest_bit(left));
    for (start += count; start < end; start++)
        find_single_loss(of, start);
    return end;
}

static void compare_found_losses(const question *all, plain_losses *of, int sums_only) {
    const tl_plain_rows *rows = &of->rows;
    memset(&of->sum, 0, sizeof of->sum);
    memset(&of->weights, 0, sizeof of->weights);
    of->unmasked = 0;
    for (int64_t r = 0; r < of->count;)
        if (is_first)
            find_single_loss(of, r++);
        else
            r = find_plain_losses(of, r, sums_only);
    compare("sum of plain losses", tl_superacc_round(&of->sum, 0));
    compare("sum of weights of plain losses", tl_superacc_round(&of->weights, 0));
    compare_bits("number of plain losses", (uint64_t)of->unmasked);
    for (int64_t r = 0; r < of->count && !sums_only; r++) {
        const tl_row grad = even_row(&rows->grad, rows->grad_apart, r);
        compare("plain loss", of->values[r]);
        for (int64_t k = 0; k < all->count && rows->grad_scale && is_wanted(all, r); k++)
            compare("gradient of a plain loss", tl_load(grad.data + k * grad.stride, grad.dtype));
    }
}

/* Sets the weights of the classes, the 0 for masked rows after them, and the masses of label smoothing after that. */
static void set_class_weights(const question *all, const tl_soft_target *soft, double *weights, tl_plain_rows *rows) {
    static const double zero;
    tl_row zeros = rows->row; /* logits do not change the sum of the masses, but their dtype does */
    zeros.data = (const char *)&zero, zeros.stride = 0;
    weights[all->count] = 0;
    for (int64_t k = 0; k < all->count; k++) {
        weights[k] = tl_load(soft->weight + k * soft->weight_stride, soft->weight_dtype);
        weights[all->count + 1 + k] = tl_soft_target_at(&rows->loss->soft, k);
    }
    rows->given.class_weight = weights;
    rows->given.mass = all->smoothing != 0 ? weights + all->count + 1 : NULL;
    tl_target_dot(backend, &zeros, &rows->loss->soft, 0, &rows->given.total_mass, &cancel);
}

/* Compares losses for class ids, with label smoothing and weights, or for masses, and their gradients: of rows that
 * nll.h allows. The masses are the absolute values of the other numbers. */
static void compare_plain_losses(const question *all, const tl_soft_target *soft, int by_id) {
    static plain_losses of;
    static numbers masses;
    const int is_few = all->count <= TL_FEW_CLASSES, is_raw = all->scale == 1 && all->cap == 0;
    const int has_weight = by_id && all->has_weight, dtype = all->row.dtype, is_double = !is_raw || dtype == TL_FLOAT64;
    const int has_masses = !by_id || (has_weight && all->smoothing != 0);
    const int has_grad = all->has_grad && is_raw && (is_few || has_masses);
    const int in_planes = all->rows_in_planes && (is_few || !by_id || dtype >= TL_FLOAT32);
    const size_t padded = (size_t)(even_rows(all) + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    tl_plain_rows *rows = &of.rows;
    tl_loss loss = loss_of_question(all, soft, 0);
    layout how = all->row_layout;
    char *grads = NULL, *mass = NULL;
    if ((!is_few && (by_id ? !is_raw : is_double)) || (!by_id && is_double != (all->other.dtype == TL_FLOAT64)))
        return;
    int64_t *target = allocate(padded * sizeof *target); /* whole groups, as of the next two */
    double *row_weight = allocate(padded * sizeof *row_weight), *grad_scale = allocate(padded * sizeof *grad_scale);
    double *class_weight = allocate((size_t)(2 * all->count + 1) * sizeof *class_weight);
    for (int64_t r = 0; r < (int64_t)padded; r++) {
        target[r] = r >= even_rows(all) ? 0 : is_wanted(all, r) ? (all->target + r) % all->count : TL_MASKED;
        row_weight[r] = (double)(r % 5) + 0.3;
        grad_scale[r] = all->factor * (double)(r % 3 + 1);
    }
    loss.target = -1;
    loss.target_weight = 1;
    of.count = even_rows(all);
    *rows = (tl_plain_rows){.loss = &loss, .given.target = target, .grad_scale = has_grad ? grad_scale : NULL};
    rows->given.some_masked = all->masks_rows && (all->marks_masked || !by_id);
    rows->given.row_weight = all->weighs_rows ? row_weight : NULL;
    if (has_grad || (by_id && !is_few))
        how.swapped = 0, how.stride = tl_itemsize(dtype);
    char *logits = make_even_rows(all, &all->row, how, in_planes, &rows->row, &rows->apart);
    set_transform(all, &rows->row);
    rows->grad = rows->row;
    rows->grad_apart = rows->apart;
    if (has_grad && (is_first || !all->in_place))
        grads = make_even_rows(all, &all->row, how, all->others_in_planes, &rows->grad, &rows->grad_apart);
    if (has_weight)
        set_class_weights(all, soft, class_weight, rows);
    if (!by_id) {
        const ptrdiff_t size = tl_itemsize(all->other.dtype);
        masses.dtype = all->other.dtype;
        for (int64_t k = 0; k < all->count; k++)
            put(&masses, k, tl_abs(tl_load((const char *)all->other.memory + k * size, masses.dtype)), 0);
        mass = make_even_rows(all, &masses, all->other_layout, all->others_in_planes, &rows->mass,
                              &rows->mass_apart);
        loss.soft = *soft; /* weights and smoothing */
        loss.soft.mass_stride = rows->mass.stride;
        loss.soft.mass_dtype = rows->mass.dtype;
    }
    compare_found_losses(all, &of, 0);
    if (!has_grad && !has_weight && !all->weighs_rows && loss.soft.eps_over_v == 0 && all->z_loss == 0)
        compare_found_losses(all, &of, 1);
    void *made[] = {target, row_weight, grad_scale, class_weight, logits, grads, mass};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        free(made[i]);
}

static void compare_few_divergences(const question *all) {
    static tl_superacc sum;
    const int64_t n = even_rows(all);
    tl_row base, other;
    ptrdiff_t apart, other_apart;
    char *bases = make_even_rows(all, &all->row, all->row_layout, all->rows_in_planes, &base, &apart);
    char *others = make_even_rows(all, &all->other, all->other_layout, all->others_in_planes, &other, &other_apart);
    double *values = allocate((size_t)n * sizeof *values);
    memset(&sum, 0, sizeof sum);
    set_common_dtype(&base, &other);
    for (int64_t start = 0, singles = n; start < n;) {
        tl_row row = even_row(&base, apart, start), of_other = even_row(&other, other_apart, start);
        if (!is_first) {
            start += (int64_t)tl_add_kl_of_few(backend, &row, apart, &of_other, other_apart, (size_t)(n - start), &sum,
                                               values + start);
            singles = (int64_t)tl_few_together((size_t)(n - start));
        }
        for (; singles > 0; singles--, start++) {
            row = even_row(&base, apart, start), of_other = even_row(&other, other_apart, start);
            values[start] = tl_kl_divergence(backend, &row, &of_other, &cancel).kl;
            tl_superacc_add(&sum, values[start]);
        }
    }
    compare("sum of divergences", tl_superacc_round(&sum, 0));
    for (int64_t r = 0; r < n; r++)
        compare("divergence of few classes", values[r]);
    free(values);
    free(others);
    free(bases);
}

#endif
