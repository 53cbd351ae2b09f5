/* Blocks of rows. Short rows are reduced side by side, a row in each lane of a vector, and what is left to do for each
 * row is done for all of them at once, with the bits of the functions for single rows. */
#pragma once

#include "loss.h"

/* Rows of one length, stride and dtype. */
typedef struct {
    tl_row row;       /* what they have in common: all but the data */
    int count;        /* TL_BLOCK_ROWS at most */
    int class_major;  /* whether they are neighbours in memory, and their classes are not */
    int has_excluded; /* whether any row may have an excluded class */
    int keeps_logits; /* whether logits are read again after the reduction */
    int has_masses;   /* whether they are read together with masses in groups */
    int are_copies;   /* by tl_copy_rows */
    uint64_t wanted;  /* a bit for each row. In class-major layout, the others are read as well */
    const char *data[TL_BLOCK_ROWS];
    int64_t excluded[TL_BLOCK_ROWS]; /* the target, or -1 */
    char *scratch;                   /* of tl_row_block_bytes, with masses twice */
} tl_row_block;

/* How many rows fit in a block, and the size of its scratch memory. */
int tl_row_block_rows(int64_t classes, int class_major);
size_t tl_row_block_bytes(int64_t classes, int class_major);

/* Copies of rows, native and contiguous: how far apart they are, and how many are made together, 0 of too long ones. */
#define TL_COPIED_BYTES (14 << 16) /* of one array or, together, of some */
#define TL_ROWS_PER_CACHE_LINE(dtype) (64 / tl_itemsize(dtype))
ptrdiff_t tl_copied_row(int64_t classes, int dtype);
int tl_copied_rows(int64_t classes, int dtype, int arrays);
/* Makes the rows of a block copies, in memory for them and 64 bytes. */
void tl_copy_rows(const tl_backend *backend, tl_row_block *rows, char *memory);

/* Of short rows: groups in double at most, the same in float before they are scaled, a row that may be written to and is
 * never read, and two groups in double. */
#define TL_GROUP_ALIGNMENT 64
#define TL_PLANES_AT_ONCE 64 /* classes of groups that are copied on their way to rows of any stride */
TL_INLINE char *tl_aligned(char *memory) { return memory + (-(uintptr_t)memory & (TL_GROUP_ALIGNMENT - 1)); }
TL_INLINE char *tl_groups_of(const tl_row_block *rows) { return tl_aligned(rows->scratch); }
TL_INLINE size_t tl_group_elements(const tl_row_block *rows) { return (size_t)rows->row.count * TL_GROUP; }
char *tl_unread_row_of(const tl_row_block *rows);
char *tl_wide_groups_of(const tl_row_block *rows);

/* The number of groups for this many rows; and the number of rows that fills them. */
TL_INLINE size_t tl_groups_for(int count) { return (size_t)(count + TL_GROUP - 1) / TL_GROUP; }
TL_INLINE size_t tl_padded_rows(int count) { return tl_groups_for(count) * TL_GROUP; }

/* The place of a class of a row in groups, as an element of them. */
TL_INLINE size_t tl_place_in_groups(const tl_row_block *rows, int i, int64_t k) {
    return (size_t)(i / TL_GROUP) * tl_group_elements(rows) + (size_t)k * TL_GROUP + (size_t)(i % TL_GROUP);
}

/* Whether rows [start, start + count) are one element apart, so that a vector of them can be read at once. */
TL_INLINE int tl_are_neighbours(const char *const *data, int start, int count, ptrdiff_t size) {
    ptrdiff_t odd = 0; /* without branches, so that compilers make vectors of it */
    for (int i = start + 1; i < start + count; i++)
        odd |= (data[i] - data[i - 1]) ^ size;
    return odd == 0;
}

TL_INLINE int tl_is_wanted(const tl_row_block *rows, int i) { return (int)(rows->wanted >> i & 1); }

/* Rows that start `apart` bytes from each other, from number `start` on, where `row` is row 0; rows or classes are
 * adjacent in memory. */
TL_INLINE tl_few_rows tl_few_rows_at(const tl_row *row, size_t start, ptrdiff_t apart) {
    size_t classes = (size_t)row->count, group_bytes = TL_GROUP * (size_t)tl_itemsize(row->dtype);
    const char *data = row->data + (ptrdiff_t)start * apart;
    if (row->stride == tl_itemsize(row->dtype))
        return (tl_few_rows){data, (size_t)(TL_GROUP * apart), 0, classes, 1, apart};
    return (tl_few_rows){data, group_bytes, row->stride, classes, 0, 0};
}

/* A row of the block. */
TL_INLINE tl_row tl_row_of_block(const tl_row_block *rows, int i) {
    tl_row row = rows->row;
    row.data = rows->data[i];
    return row;
}

/* For each row, the loss for its excluded class as a class id, the logit of that class, and exp(log-odds against it).
 * There is room for a group that begins at the last row. */
typedef struct {
    double logit[TL_BLOCK_ROWS + TL_GROUP], nll[TL_BLOCK_ROWS + TL_GROUP];
    double odds_against[TL_BLOCK_ROWS + TL_GROUP];
} tl_block_nll;

/* For each row, the logsumexp of all classes but the excluded one, the logit of that, and the log-odds against it. */
typedef struct {
    tl_block_nll relative;
    uint64_t near; /* rows that were reduced relative to their excluded classes: only `relative` is known of them */
    double offset[TL_BLOCK_ROWS], log[TL_BLOCK_ROWS], logit[TL_BLOCK_ROWS];
    tl_short_sums sums;
    tl_odds odds;
    int in_groups;    /* how many rows are in groups in the scratch memory, from the first on */
    int group_dtype;  /* TL_FLOAT32 or TL_FLOAT64 */
    uint64_t may_be_dominated; /* of the others, see tl_may_be_dominated */
    uint64_t grouped; /* the ones among them that are wanted and not far out */
} tl_block_lse;

/* Reduces the wanted rows: where nll.h can, relative to their excluded class. If `has_excluded`, `relative.nll` is set
 * for all of them. */
void tl_odds_of_block(const tl_backend *backend, const tl_row_block *rows, tl_block_lse *lse, tl_cancel *cancel);

/* The logsumexp of a row, and the excluded class against the others; for a row without one, only the logsumexp. */
TL_INLINE tl_lse tl_lse_at(const tl_row_block *rows, const tl_block_lse *lse, int i) {
    if (lse->near >> i & 1)
        return (tl_lse){lse->relative.logit[i], lse->relative.nll[i]};
    if (rows->excluded[i] >= 0 && lse->odds.log_odds[i] > 0) /* as tl_lse_add_class */
        return (tl_lse){lse->offset[i], lse->log[i] + lse->odds.others_nll[i]};
    if (rows->excluded[i] >= 0 && lse->logit[i] != -(double)INFINITY)
        return (tl_lse){lse->logit[i], lse->odds.nll[i]};
    return (tl_lse){lse->offset[i], lse->log[i]};
}
TL_INLINE tl_class_odds tl_odds_at(const tl_row_block *rows, const tl_block_lse *lse, int i) {
    tl_class_odds odds = {.lse = tl_lse_at(rows, lse, i)};
    if (lse->near >> i & 1) {
        odds.logit = lse->relative.logit[i];
        odds.nll = lse->relative.nll[i];
        odds.odds_against = lse->relative.odds_against[i];
    } else if (rows->excluded[i] >= 0) {
        odds.logit = lse->logit[i];
        odds.odds_against = tl_exp(lse->odds.log_odds[i]);
        odds.nll = lse->odds.nll[i];
    }
    return odds;
}

/* The logsumexps of rows of 2 to TL_FEW_CLASSES classes that lie `apart` bytes from each other, neither scaled nor
 * capped. Returns how many were taken: all, or those before tl_few_together with some that were not found: bits of these
 * and of later rows are set in `left`. The same of each wanted row of a block. */
size_t tl_lse_of_few(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, size_t n, double *logsumexp,
                     uint64_t *left);
void tl_logsumexp_of_block(const tl_backend *backend, const tl_row_block *rows, double *logsumexp, tl_cancel *cancel);

/* Where results of a block go: rows of one length, stride and dtype. */
typedef struct {
    tl_row row;
    char *data[TL_BLOCK_ROWS];
    int nontemporal_stores; /* whether the results of all blocks together are larger than the caches */
} tl_out_block;

TL_INLINE tl_row tl_row_of_out(const tl_out_block *out, int i) {
    tl_row row = out->row;
    row.data = out->data[i];
    return row;
}

/* Where results of a block are written first: over its rows, if they are copies. Then wanted ones are copied to `out`. */
TL_INLINE tl_out_block tl_first_out(const tl_row_block *rows, const tl_out_block *out) {
    tl_out_block first = *out;
    if (rows->are_copies) {
        first.row = rows->row;
        first.nontemporal_stores = 0;
        memcpy((void *)first.data, (const void *)rows->data, (size_t)rows->count * sizeof *first.data);
    }
    return first;
}
void tl_write_copies(const tl_backend *backend, const tl_row_block *rows, const tl_out_block *out);

/* Writes softmax or log_softmax of each row, all of which are wanted, with the bits of tl_softmax. */
void tl_softmax_of_block(const tl_backend *backend, const tl_row_block *rows, int is_log, const tl_out_block *out,
                         tl_cancel *cancel);

/* The same of rows that lie `apart` bytes from each other, the first of which is `row`, as results lie `out_apart`.
 * Returns how many were written, from the first on: see softmax_rows. None are of rows that it is not for. */
size_t tl_softmax_rows(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, size_t count, int is_log,
                       const tl_row *out, ptrdiff_t out_apart);

/* Writes factor softmax(x) - subtrahend of wanted rows whose logsumexp is not too far out and that lie in groups, or
 * can be written along their classes; returns these rows. Factors are overwritten; in class-major layout, so may be the
 * results of rows that are not wanted, with 0. Logits are neither scaled nor capped. */
uint64_t tl_map_rows(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                     const double *logsumexp, tl_gradient_parts *parts, const tl_out_block *out);

/* Effective masses of rows in groups. `usable` has a bit for each wanted row with a mass above 0. */
typedef struct {
    double *at;
    uint64_t usable;
} tl_masses;

/* Writes the gradients that are no mapped softmax: of logits that are scaled or capped, with class weights or masses.
 * Returns the rows that lie in groups and are not too far out, which were written. */
uint64_t tl_write_wide_gradients(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                                 const double *logsumexp, const double *softmax_factor, const tl_loss *losses,
                                 const tl_masses *masses, const tl_out_block *out);

/* Groups of float32 or float64, in scratch memory. */
typedef struct {
    void *at;
    int dtype;
} tl_groups;

/* Excludes the class of the largest mass of each wanted row, -1 if there is none; loads masses into groups where logits
 * are, in as much scratch memory after that of the rows. The losses differ only in their masses. */
void tl_exclude_by_masses(const tl_backend *backend, tl_row_block *rows, const tl_loss *losses, tl_masses *masses,
                          tl_cancel *cancel);

/* The loss of each wanted row, whose excluded class is its class id or the argmax of its distribution. Gradients, if
 * wanted, go to `grads`; tl_map_rows says what happens to rows that are not wanted. The losses of a block may differ only
 * in target, target weight, masses and grad_scale. For class ids, `masses->usable` is 0. */
void tl_losses_of_block(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                        const tl_loss *losses, const tl_masses *masses, const tl_out_block *grads, double *values,
                        tl_cancel *cancel);

/* The likeliest of some classes of a row by its raw logits, of a tie the lowest id, any if all are nan; TL_MASKED if
 * canceled. Returns how many ids come before the first that is out of range. */
int64_t tl_likeliest_class(const tl_row *row, const int64_t *ids, int64_t count, int64_t *likeliest, tl_cancel *cancel);

/* The log-probabilities of some classes of a wanted row, all in range, the likeliest of which is excluded. */
void tl_class_log_probs(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse, int i,
                        const int64_t *ids, int64_t count, double *log_probs, tl_cancel *cancel);

/* -- for kernels that reduce blocks themselves --------------------------------------------------------------------- */

TL_INLINE double tl_load_from_groups(tl_groups groups, size_t at) {
    return groups.dtype == TL_FLOAT64 ? ((const double *)groups.at)[at] : (double)((const float *)groups.at)[at];
}

TL_INLINE void tl_store_to_groups(tl_groups groups, size_t at, double value) {
    tl_store((char *)groups.at + at * (size_t)tl_itemsize(groups.dtype), groups.dtype, value);
}

/* How many of `n` rows are worked on together: whole groups, or fewer, which are copied. */
TL_INLINE size_t tl_few_together(size_t n) {
    return n < TL_GROUP ? n : n < TL_BLOCK_ROWS ? n - n % TL_GROUP : TL_BLOCK_ROWS;
}

/* Whether groups of rows can be read where they lie. */
#define TL_GROUPS_BYTES(classes) (TL_GROUP_ALIGNMENT + TL_BLOCK_ROWS * (classes) * (sizeof(double) + sizeof(float)))
TL_INLINE int tl_are_in_place(const tl_row *row, ptrdiff_t apart) {
    return row->dtype == tl_single_or_double(row->compute_dtype) && !tl_is_transformed(row) &&
           (row->stride == tl_itemsize(row->dtype) ? row->count <= TL_FEW_CLASSES : apart == tl_itemsize(row->dtype));
}
/* These rows, at most a block of them, where they lie; or copied to groups, where they do not fill groups, are apart but
 * may not be, or have to be scaled, capped or converted. */
tl_few_rows tl_rows_or_groups(const tl_backend *backend, const tl_row *row, size_t start, ptrdiff_t apart, size_t n,
                              int may_be_apart, char *scratch);

/* Where the rows after this block lie, if they go on as it ends. */
tl_next_rows tl_rows_after(const tl_row_block *rows);

/* How many rows of a block are worth reducing in groups, from the first on; 0 of long rows. */
int tl_grouped_rows(const tl_row_block *rows);

/* Loads the first `count` rows into groups of float32 or float64, neither scaled nor capped. */
void tl_load_groups(const tl_backend *backend, const tl_row_block *rows, int count, int dtype, char *groups);

/* Copies rows in lanes of a native dtype, whole groups of them, to groups of float32 or float64, or back. */
void tl_move_lanes(const tl_backend *backend, const tl_few_rows *rows, int dtype, size_t n, char *groups, int is_back);

/* Loads these rows into groups: the logits as they are in memory, and then scaled and capped, in the compute dtype. */
tl_groups tl_load_raw_groups(const tl_backend *backend, const tl_row_block *rows, int count);
tl_groups tl_scale_groups(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups raw);
TL_INLINE tl_groups tl_load_scaled_groups(const tl_backend *backend, const tl_row_block *rows, int count) {
    return tl_scale_groups(backend, rows, count, tl_load_raw_groups(backend, rows, count));
}

/* Reduces them, with moments unless that is NULL: sums, and logits of excluded classes, or else 0. */
void tl_reduce_groups(const tl_backend *backend, const tl_row_block *rows, int count, tl_groups groups,
                      tl_short_moments *moments, tl_block_lse *lse);
