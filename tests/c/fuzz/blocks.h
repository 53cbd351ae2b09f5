/* Blocks of rows, for kernels.c: the portable functions for single rows are asked first, then those of each backend for
 * blocks. Row r is the row of the question, from another class on. */
#ifndef TOKENLOSS_TESTS_FUZZ_BLOCKS_H
#define TOKENLOSS_TESTS_FUZZ_BLOCKS_H

#include "../loss_of_row.h"
#include "question.h"

/* The loss of the question: for this class id, or for its masses. */
static tl_loss loss_of_question(const question *all, const tl_soft_target *soft, int64_t target) {
    tl_loss loss = {.soft = *soft, .target = -1, .target_weight = 1, .z_loss = all->z_loss, .grad_scale = all->factor};
    if (all->by_class) {
        loss.target = target;
        loss.soft.mass = NULL;
        if (soft->weight)
            loss.target_weight = tl_load(soft->weight + target * soft->weight_stride, soft->weight_dtype);
        if (all->smoothing == 0)
            loss.soft.weight = NULL;
    }
    return loss;
}

/* The elements of row r: those of the first row, rotated. */
static const numbers *rotated(const question *all, const numbers *first, int64_t r) {
    static numbers row;
    int64_t split = (r * 37) % all->count;
    ptrdiff_t size = tl_itemsize(first->dtype);
    row.dtype = first->dtype;
    memcpy(row.memory, (const char *)first->memory + split * size, (size_t)((all->count - split) * size));
    memcpy((char *)row.memory + (all->count - split) * size, first->memory, (size_t)(split * size));
    return &row;
}

static void fill_row(const question *all, const numbers *first, int64_t r, const tl_row *row) {
    placed copy = place(rotated(all, first, r), 0, all->count,
                        (layout){row->dtype & TL_SWAPPED, tl_itemsize(row->dtype), 0});
    for (int64_t k = 0; k < all->count; k++)
        memcpy((char *)(uintptr_t)row->data + k * row->stride, copy.data + k * copy.stride, (size_t)copy.stride);
    free(copy.memory);
}

/* Sets the scale and the cap of the logits. */
static void set_transform(const question *all, tl_row *row) {
    row->logit_scale = all->scale;
    row->softcap = all->cap;
    if (tl_is_transformed(row))
        row->compute_dtype = TL_FLOAT64;
}

/* Sets the compute dtype of two rows that are read together. */
static void set_common_dtype(tl_row *a, tl_row *b) {
    const int dtypes[] = {a->dtype & ~TL_SWAPPED, b->dtype & ~TL_SWAPPED};
    const int wide = dtypes[0] == TL_FLOAT64 || dtypes[1] == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
    a->compute_dtype = b->compute_dtype = dtypes[0] == dtypes[1] ? dtypes[0] : wide;
}

/* Rows with memory of their own, or in one memory where they are neighbours. */
typedef struct {
    int count, in_planes;
    tl_row row[TL_BLOCK_ROWS];
    placed memory[TL_BLOCK_ROWS], planes;
} rows_of_block;

static void make_rows(const question *all, layout how, int in_planes, rows_of_block *rows) {
    ptrdiff_t size = tl_itemsize(all->row.dtype);
    rows->count = all->rows;
    rows->in_planes = in_planes;
    if (in_planes)
        rows->planes =
            make_room(all->row.dtype, 0, all->count * rows->count, (layout){how.swapped, size, how.misaligned});
    for (int r = 0; r < rows->count; r++) {
        placed *memory = &rows->memory[r];
        if (in_planes)
            *memory = (placed){NULL, 0, rows->count * size, rows->planes.data + r * size, rows->planes.dtype};
        else
            *memory = make_room(all->row.dtype, 0, all->count, how);
        rows->row[r] = (tl_row){memory->data, all->count, memory->stride, memory->dtype, all->row.dtype, 1, 0, 0, 0};
    }
}

static void free_rows(rows_of_block *rows) {
    for (int r = 0; r < rows->count && !rows->in_planes; r++)
        free(rows->memory[r].memory);
    if (rows->in_planes)
        free(rows->planes.memory);
}

static void fill_rows(const question *all, rows_of_block *rows) {
    for (int r = 0; r < rows->count; r++) {
        fill_row(all, &all->row, r, &rows->row[r]);
        set_transform(all, &rows->row[r]);
    }
}

static int is_wanted(const question *all, int64_t r) { return !all->masks_rows || (r * 11 + 5) % 7 != 0; }

static void compare_rows(const question *all, const char *what, const rows_of_block *results) {
    for (int r = 0; r < results->count; r++)
        if (is_wanted(all, r))
            compare_row(what, &results->memory[r], all->count);
}

typedef struct {
    tl_row_block rows;
    tl_block_lse lse;
    tl_out_block out;
    tl_loss losses[TL_BLOCK_ROWS];
    double values[TL_BLOCK_ROWS];
    rows_of_block logits, results;
} asked_block;

/* What the block is asked for, of single rows. */
static void compare_single_rows(const question *all, asked_block *block) {
    for (int r = 0; r < all->rows; r++)
        if (is_wanted(all, r))
            compare("logsumexp in a block", logsumexp_of_row(backend, &block->logits.row[r], &cancel));
    for (int is_log = 0; is_log < 2 && !tl_is_transformed(block->logits.row); is_log++) {
        for (int r = 0; r < all->rows; r++) {
            const tl_row *row = &block->logits.row[r], *out = &block->results.row[r];
            tl_softmax(backend, row, is_log, out, 0, &cancel);
        }
        compare_rows(all, is_log ? "log_softmax in a block" : "softmax in a block", &block->results);
    }
    for (int r = 0; r < all->rows; r++)
        if (is_wanted(all, r))
            compare("loss in a block", loss_of_row(backend, &block->logits.row[r], &block->losses[r], &cancel));
    if (all->has_grad)
        compare_rows(all, "gradient in a block", &block->results);
}

static void prepare_asked_block(asked_block *block, int without_class, int keeps_logits, const int64_t *excluded) {
    for (int r = 0; r < block->rows.count; r++)
        block->rows.excluded[r] = without_class && tl_is_wanted(&block->rows, r) ? excluded[r] : -1;
    block->rows.has_excluded = without_class;
    block->rows.keeps_logits = keeps_logits;
}

static void find_losses(asked_block *block, const tl_out_block *grads) {
    const tl_masses none = {NULL, 0};
    tl_losses_of_block(backend, &block->rows, &block->lse, block->losses, &none, grads, block->values, &cancel);
}

static void compare_in_block(const question *all, asked_block *block, const int64_t *excluded) {
    prepare_asked_block(block, 0, 0, NULL);
    tl_logsumexp_of_block(backend, &block->rows, block->values, &cancel);
    for (int r = 0; r < all->rows; r++)
        if (is_wanted(all, r))
            compare("logsumexp in a block", block->values[r]);
    for (int is_log = 0; is_log < 2 && !tl_is_transformed(block->logits.row); is_log++) {
        tl_softmax_of_block(backend, &block->rows, is_log, &block->out, &cancel);
        compare_rows(all, is_log ? "log_softmax in a block" : "softmax in a block", &block->results);
        if (all->in_place)
            fill_rows(all, &block->logits);
    }
    prepare_asked_block(block, 1, all->has_grad || all->smoothing != 0, excluded);
    tl_odds_of_block(backend, &block->rows, &block->lse, &cancel);
    find_losses(block, all->has_grad ? &block->out : NULL);
    for (int r = 0; r < all->rows; r++)
        if (is_wanted(all, r))
            compare("loss in a block", block->values[r]);
    if (all->has_grad)
        compare_rows(all, "gradient in a block", &block->results);
}

static void compare_blocks(const question *all, const tl_soft_target *soft, int is_plain) {
    static asked_block block;
    int64_t excluded[TL_BLOCK_ROWS];
    int in_planes = all->rows_in_planes && !is_plain, in_place = all->in_place && !is_plain;
    make_rows(all, is_plain ? plain(all->row.dtype) : all->row_layout, in_planes, &block.logits);
    fill_rows(all, &block.logits);
    block.results = block.logits;
    if (!in_place)
        make_rows(all, is_plain ? plain(all->row.dtype) : all->out_layout, in_planes, &block.results);
    size_t bytes = tl_row_block_bytes(all->count, in_planes);
    block.rows = (tl_row_block){.row = block.logits.row[0], .count = all->rows, .class_major = in_planes};
    block.rows.scratch = allocate(bytes);
    memset(block.rows.scratch, 0xff, bytes);
    block.out = (tl_out_block){.row = block.results.row[0], .nontemporal_stores = all->large};
    for (int r = 0; r < all->rows; r++) {
        block.rows.data[r] = block.logits.memory[r].data;
        block.out.data[r] = block.results.memory[r].data;
        block.rows.wanted |= (uint64_t)is_wanted(all, r) << r;
        block.losses[r] = loss_of_question(all, soft, (all->target + r) % all->count);
        block.losses[r].grad_scale *= r % 3 + 1;
        block.losses[r].grad = all->has_grad ? &block.results.row[r] : NULL;
        excluded[r] = block.losses[r].target;
        if (excluded[r] < 0)
            excluded[r] = tl_soft_target_argmax(backend, &block.losses[r].soft, all->count, &cancel);
    }
    if (excluded[0] >= 0 || all->z_loss != 0) { /* rows without mass come into no block */
        if (is_plain)
            compare_single_rows(all, &block);
        else
            compare_in_block(all, &block, excluded);
    }
    free(block.rows.scratch);
    if (!in_place)
        free_rows(&block.results);
    free_rows(&block.logits);
}

#endif
