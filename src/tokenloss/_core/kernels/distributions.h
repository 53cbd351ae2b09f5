/* Losses of probabilities or log-probabilities for distributions, a block of rows at a time. They have the bits of
 * tl_nll_of_distribution (loss.h).
 *
 * Of rows of few classes, and where masses are dense, all scores are read, and rows are added up side by side. Where
 * they are sparse, classes with mass are listed whatever their row, and only their scores are read. */
#pragma once

#include "backend.h"

#define TL_DISTRIBUTION_ROWS 1024          /* that a block has at most */
#define TL_DISTRIBUTION_ELEMENTS (1 << 18) /* classes of all its rows, at most, unless it is a single row */

/* A block of rows whose elements are native: where the first row starts, and the strides in bytes. Integers must lie
 * one after another in each row. */
typedef struct {
    const char *mass, *score, *weight; /* of each class the weight, or NULL */
    ptrdiff_t mass_row, mass_class, score_row, score_class, weight_class;
    int mass_dtype, score_dtype, weight_dtype;
    int64_t classes; /* at most TL_DISTRIBUTION_ELEMENTS */
    const tl_clip *clip;
    int dense_blocks; /* 0 at first: how many of the next ones are taken for dense */
    int sample_rows; /* or 0. If given: that many rows lie in planes, and so do the next ones right after these planes */
} tl_distributions;

/* Writes the losses of these rows, `count` rising numbers; there is room for whole groups. Returns 0 if a score is
 * refused, if integers are not one-hot, or if a loss with class weights is nan: rows are to be read singly then. */
int tl_nll_of_distributions(const tl_backend *backend, tl_distributions *of, const int *rows, int count, double *nll);
