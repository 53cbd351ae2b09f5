/* The losses of a block of rows and their gradients: see row_block.h. */
#include <math.h>

#include "elementwise.h"
#include "row_block.h"

/* The sums of the logits of each row in groups. */
static void sum_logits(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse, double *sums) {
    char *group = tl_groups_of(rows);
    for (int i = 0; i < lse->in_groups; i += TL_GROUP) {
        backend->short_sum[lse->group_dtype](group, (size_t)rows->row.count, sums + i);
        group += tl_group_elements(rows) * (size_t)tl_itemsize(lse->group_dtype);
    }
}

/* The gradients of rows that lie in groups; returns which were written. */
static uint64_t write_gradients(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                                const tl_loss *shared, const double *target_weight, const double *grad_scale,
                                const tl_class_odds *odds, const tl_out_block *grads) {
    double logsumexp[TL_BLOCK_ROWS] = {0}, softmax_factor[TL_BLOCK_ROWS] = {0}, factor[TL_BLOCK_ROWS];
    double odds_against[TL_BLOCK_ROWS] = {0}, subtrahend[TL_BLOCK_ROWS];
    const tl_loss *losses[TL_BLOCK_ROWS];
    tl_loss loss = *shared;
    uint64_t written;
    for (int i = 0; i < rows->count; i++) {
        losses[i] = lse->grouped >> i & 1 ? shared : NULL;
        if (!losses[i])
            continue;
        double mass = odds[i].smoothed + (target_weight ? target_weight[i] : 1) * loss.soft.one_minus_eps;
        logsumexp[i] = tl_logsumexp(odds[i].lse);
        softmax_factor[i] = tl_softmax_factor(&loss, odds[i].lse, mass);
        odds_against[i] = odds[i].log_odds;
    }
    backend->exps(odds_against, tl_padded_rows(rows->count));
    if (tl_is_transformed(&rows->row) || loss.soft.weight) {
        written = tl_write_wide_gradients(backend, rows, lse, logsumexp, softmax_factor, losses, grad_scale, grads);
    } else {
        for (int i = 0; i < TL_BLOCK_ROWS; i++) {
            tl_plain_gradient gradient = tl_plain_gradient_of(grad_scale[i], softmax_factor[i], loss.soft.eps_over_v);
            factor[i] = gradient.factor;
            subtrahend[i] = gradient.subtrahend;
        }
        written = tl_map_groups(backend, rows, lse, 0, logsumexp, factor, subtrahend, grads);
    }
    for (int i = 0; i < rows->count; i++) {
        tl_row grad = tl_row_of_out(grads, i);
        loss.target_weight = target_weight ? target_weight[i] : 1;
        loss.grad_scale = grad_scale[i];
        if (written >> i & 1)
            tl_store_at(&grad, rows->excluded[i], tl_gradient_at_target(&rows->row, &loss, &odds[i], odds_against[i]));
    }
    return written;
}

void tl_class_losses_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                              const tl_loss *shared, const double *target_weight, const double *grad_scale,
                              const tl_out_block *grads, double *values, tl_cancel *cancel) {
    tl_class_odds odds[TL_BLOCK_ROWS];
    double logit_sum[TL_BLOCK_ROWS];
    tl_loss loss = *shared;
    tl_row row = rows->row;
    uint64_t written = 0;
    int sums = lse->grouped != 0 && loss.soft.eps_over_v != 0 && !loss.soft.weight;
    if (sums)
        sum_logits(backend, rows, lse, logit_sum);
    for (int i = 0; i < rows->count; i++) {
        odds[i] = tl_odds_at(rows, lse, i);
        row.data = rows->data[i];
        loss.target = rows->excluded[i];
        loss.target_weight = target_weight ? target_weight[i] : 1;
        if (tl_is_wanted(rows, i))
            values[i] = tl_loss_of_odds(backend, &row, &loss, &odds[i],
                                        sums && lse->grouped >> i & 1 ? &logit_sum[i] : NULL, cancel);
    }
    if (!grads)
        return;
    if (lse->grouped)
        written = write_gradients(backend, rows, lse, shared, target_weight, grad_scale, odds, grads);
    for (int i = 0; i < rows->count; i++) {
        tl_row grad = tl_row_of_out(grads, i);
        row.data = rows->data[i];
        loss.grad = &grad;
        loss.target = rows->excluded[i];
        loss.target_weight = target_weight ? target_weight[i] : 1;
        loss.grad_scale = grad_scale[i];
        if (tl_is_wanted(rows, i) && !(written >> i & 1))
            tl_write_class_gradient(backend, &row, &loss, &odds[i], cancel);
    }
}

void tl_mass_losses_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                             const tl_loss *losses, const tl_out_block *grads, double *values, tl_cancel *cancel) {
    double logsumexp[TL_BLOCK_ROWS] = {0}, softmax_factor[TL_BLOCK_ROWS] = {0}, grad_scale[TL_BLOCK_ROWS];
    const tl_loss *grouped[TL_BLOCK_ROWS];
    tl_row logits = rows->row;
    for (int i = 0; i < rows->count; i++) {
        tl_class_odds odds = tl_odds_at(rows, lse, i);
        logits.data = rows->data[i];
        logsumexp[i] = tl_logsumexp(odds.lse);
        grouped[i] = lse->grouped >> i & 1 ? &losses[i] : NULL;
        if (tl_is_wanted(rows, i))
            values[i] =
                tl_loss_of_masses(backend, &logits, &losses[i], rows->excluded[i], &odds, &softmax_factor[i], cancel);
    }
    if (!grads)
        return;
    for (int i = 0; i < rows->count; i++)
        grad_scale[i] = losses[i].grad_scale;
    uint64_t left = rows->wanted & ~tl_write_wide_gradients(backend, rows, lse, logsumexp, softmax_factor, grouped,
                                                            grad_scale, grads);
    for (int i = 0; i < rows->count; i++) {
        tl_loss loss = losses[i];
        tl_row grad = tl_row_of_out(grads, i);
        logits.data = rows->data[i];
        loss.grad = &grad;
        if (left >> i & 1)
            tl_write_gradient(backend, &logits, &loss, tl_odds_at(rows, lse, i).lse, softmax_factor[i], cancel);
    }
}
