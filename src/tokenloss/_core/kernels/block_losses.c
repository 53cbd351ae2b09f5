/* The losses of a block of rows and their gradients: see row_block.h. */
#include "elementwise.h"
#include "row_block.h"

/* What the losses of a block's rows leave for their gradients. */
typedef struct {
    double logsumexp[TL_BLOCK_ROWS], against[TL_BLOCK_ROWS]; /* the latter exp(log-odds against the target) */
    double mass[TL_BLOCK_ROWS], weight[TL_BLOCK_ROWS];       /* see tl_loss_of_odds; of the class id, or 0 */
} loss_parts;

/* Writes the gradients of rows that can be written together; returns a bit for each of these. */
static uint64_t write_gradients(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                                const tl_loss *losses, const tl_masses *masses, const loss_parts *of,
                                const tl_out_block *grads) {
    const tl_loss *shared = &losses[tl_lowest_bit(rows->wanted)];
    const int is_wide = tl_is_transformed(&rows->row) || shared->soft.weight || shared->soft.mass;
    tl_gradient_parts parts;
    double scale[TL_BLOCK_ROWS];
    uint64_t written;
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        scale[i] = is_wide || i >= rows->count ? 1 : losses[i].grad_scale;
    backend->gradient_parts(shared, of->logsumexp, of->against, of->mass, of->weight, scale,
                            tl_padded_rows(rows->count), &parts);
    if (is_wide)
        written = tl_write_wide_gradients(backend, rows, lse, of->logsumexp, parts.factor, losses, masses, grads);
    else
        written = tl_map_rows(backend, rows, lse, of->logsumexp, &parts, grads);
    for (int i = 0; i < rows->count; i++) {
        if (!(written >> i & 1) || losses[i].target < 0)
            continue;
        if (is_wide)
            parts.at_target[i] = losses[i].grad_scale * parts.at_target[i] *
                                 tl_softcap_grad(&rows->row, tl_odds_at(rows, lse, i).logit);
        tl_store(grads->data[i] + losses[i].target * grads->row.stride, grads->row.dtype, parts.at_target[i]);
    }
    return written;
}

/* Loads the effective masses into groups, and counts those above 0; finds each row's class of the largest. */
static void group_masses(const tl_backend *backend, const tl_row_block *rows, const tl_loss *losses, double *mass,
                         tl_short_ranks *ranks) {
    double least[TL_BLOCK_ROWS];
    const tl_soft_target *soft = &losses->soft;
    const int dtype = tl_single_or_double(soft->mass_dtype);
    const size_t groups = tl_groups_for(rows->count), elements = groups * tl_group_elements(rows);
    void *raw = dtype == TL_FLOAT64 ? mass : mass + elements;
    tl_row_block of = {.row = {.count = rows->row.count, .stride = soft->mass_stride, .dtype = soft->mass_dtype}};
    for (int i = 0; i < rows->count; i++)
        of.data[i] = losses[i].soft.mass;
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        least[i] = 0x1p-1074;
    tl_load_groups(backend, &of, rows->count, dtype, (char *)raw);
    const tl_few_rows loaded = tl_few_of_groups(raw, (size_t)rows->row.count, dtype);
    const tl_few_rows few = tl_weigh_groups(backend, soft, &loaded, dtype, groups, mass);
    backend->short_ranks[TL_FLOAT64](&few, groups, least, ranks);
}

void tl_exclude_by_masses(const tl_backend *backend, tl_row_block *rows, const tl_loss *losses, tl_masses *masses,
                          tl_cancel *cancel) {
    const int64_t classes = rows->row.count;
    tl_short_ranks ranks;
    masses->usable = 0;
    if (rows->scratch && 0 < classes && classes <= (rows->class_major ? TL_SHORT_ROW : TL_MASSES_CLASSES)) {
        masses->at = (double *)(void *)tl_aligned(rows->scratch + tl_row_block_bytes(classes, rows->class_major));
        group_masses(backend, rows, losses, masses->at, &ranks);
        for (int i = 0; i < rows->count; i++)
            masses->usable |= (uint64_t)(ranks.count_ge[i] > 0) << i;
        masses->usable &= rows->wanted;
        memcpy(rows->excluded, ranks.argmax, (size_t)rows->count * sizeof *rows->excluded);
    }
    for (uint64_t left = rows->wanted & ~masses->usable; left != 0; left &= left - 1) {
        const unsigned i = tl_lowest_bit(left);
        rows->excluded[i] = tl_soft_target_argmax(backend, &losses[i].soft, rows->row.count, cancel);
    }
}

/* The losses of near rows whose logits and masses are in groups, and their masses. Returns a bit for each row whose
 * loss is finite. Those of other rows are of no use. */
static uint64_t losses_of_groups(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                                 const tl_loss *losses, const tl_masses *masses, double *mass, double *values) {
    const uint64_t which = rows->wanted & lse->near & lse->grouped & masses->usable;
    const size_t classes = (size_t)rows->row.count, padded = tl_padded_rows(lse->in_groups);
    double dot[TL_BLOCK_ROWS], *nll = (double *)(uintptr_t)lse->relative.nll;
    double *logit = (double *)(uintptr_t)lse->relative.logit;
    const tl_lane_losses of = {.nll = nll, .logit = logit, .dot = dot, .total = mass};
    if (which == 0)
        return 0;
    const tl_few_rows logits = tl_few_of_groups(tl_groups_of(rows), classes, lse->group_dtype);
    const tl_few_rows of_masses = tl_few_of_groups(masses->at, classes, TL_FLOAT64);
    backend->short_dots[lse->group_dtype](&logits, &of_masses, padded, logit, dot, mass);
    return which & ~backend->finish_losses(losses, &of, classes, padded, values, NULL);
}

void tl_losses_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                        const tl_loss *losses, const tl_masses *masses, const tl_out_block *grads, double *values,
                        tl_cancel *cancel) {
    loss_parts of = {.weight = {0}}; /* zeros in lanes that no row fills */
    tl_row row = rows->row;
    const uint64_t done = losses_of_groups(backend, rows, lse, losses, masses, of.mass, values);
    for (uint64_t left = grads ? rows->wanted : rows->wanted & ~done; left != 0; left &= left - 1) {
        const int i = (int)tl_lowest_bit(left);
        const tl_class_odds odds = tl_odds_at(rows, lse, i);
        row.data = rows->data[i];
        if (!(done >> i & 1))
            values[i] = tl_loss_of_odds(backend, &row, &losses[i], rows->excluded[i], &odds, &of.mass[i], cancel);
        of.logsumexp[i] = tl_logsumexp(odds.lse);
        of.against[i] = odds.odds_against;
        of.weight[i] = losses[i].target >= 0 ? losses[i].target_weight : 0;
    }
    if (!grads || rows->wanted == 0)
        return;
    const tl_out_block first = tl_first_out(rows, grads);
    uint64_t left = rows->wanted & ~write_gradients(backend, rows, lse, losses, masses, &of, &first);
    for (; left != 0; left &= left - 1) {
        const int i = (int)tl_lowest_bit(left);
        const tl_class_odds odds = tl_odds_at(rows, lse, i);
        tl_loss loss = losses[i];
        tl_row grad = tl_row_of_out(&first, i);
        row.data = rows->data[i];
        loss.grad = &grad;
        tl_write_gradient(backend, &row, &loss, &odds, of.mass[i], cancel);
    }
    tl_write_copies(backend, rows, grads);
}
