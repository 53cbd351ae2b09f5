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
                                const tl_loss *losses, const loss_parts *of, const tl_out_block *grads) {
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
        written = tl_write_wide_gradients(backend, rows, lse, of->logsumexp, parts.factor, losses, grads);
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

/* Room for doubles, and for the floats that they may be made of: as many as of logits. */
size_t tl_masses_bytes(int64_t classes, int class_major) {
    size_t capacity = (size_t)classes * (size_t)tl_row_block_rows(classes, class_major);
    int are_grouped = classes > 0 && classes <= (class_major ? TL_SHORT_ROW : TL_MASSES_CLASSES);
    return are_grouped ? TL_GROUP_ALIGNMENT + capacity * (sizeof(double) + sizeof(float)) : 0;
}

/* Loads the effective masses into groups, and counts those above 0; finds each row's class of the largest. They stay
 * float32 if nothing changes them and logits are computed in it, too. */
static void group_masses(const tl_backend *backend, const tl_row_block *rows, const tl_loss *losses, tl_groups *masses,
                         tl_short_ranks *ranks) {
    double least[TL_BLOCK_ROWS], *mass = (double *)masses->at;
    const tl_soft_target *soft = &losses->soft;
    const int is_plain = !soft->weight && soft->eps_over_v == 0 && soft->one_minus_eps == 1;
    const int dtype = tl_single_or_double(soft->mass_dtype);
    const size_t groups = tl_groups_for(rows->count), elements = groups * tl_group_elements(rows);
    tl_row_block of = {.row = {.count = rows->row.count, .stride = soft->mass_stride, .dtype = soft->mass_dtype}};
    for (int i = 0; i < rows->count; i++)
        of.data[i] = losses[i].soft.mass;
    masses->dtype = is_plain && tl_single_or_double(rows->row.compute_dtype) == dtype ? dtype : TL_FLOAT64;
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        least[i] = masses->dtype == TL_FLOAT64 ? 0x1p-1074 : 0x1p-149;
    void *raw = dtype == masses->dtype ? mass : mass + elements;
    tl_load_groups(backend, &of, rows->count, dtype, (char *)raw);
    if (raw != mass || !is_plain)
        backend->to_f64[dtype](raw, elements, soft->one_minus_eps, mass);
    for (size_t i = 0; !is_plain && i < elements; i += TL_GROUP) {
        const int64_t k = (int64_t)(i / TL_GROUP) % rows->row.count;
        const double weight = soft->weight ? tl_load(soft->weight + k * soft->weight_stride, soft->weight_dtype) : 1;
        for (size_t r = i; r < i + TL_GROUP; r++)
            mass[r] = (soft->eps_over_v + mass[r]) * weight;
    }
    backend->short_ranks[masses->dtype](mass, groups, (size_t)rows->row.count, least, ranks);
}

void tl_exclude_by_masses(const tl_backend *backend, tl_row_block *rows, const tl_loss *losses, char *memory,
                          tl_masses *masses, tl_cancel *cancel) {
    tl_short_ranks ranks;
    masses->usable = 0;
    if (memory && tl_masses_bytes(rows->row.count, rows->class_major) > 0) {
        masses->groups.at = memory + (-(uintptr_t)memory & (TL_GROUP_ALIGNMENT - 1));
        group_masses(backend, rows, losses, &masses->groups, &ranks);
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
    backend->short_dots[lse->group_dtype](tl_groups_of(rows), masses->groups.at, masses->groups.dtype == TL_FLOAT64,
                                          padded, classes, logit, dot, mass);
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
    uint64_t left = rows->wanted & ~write_gradients(backend, rows, lse, losses, &of, &first);
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
