/* What calibration needs from a row besides its loss and entropy: a second pass, while the row is in a cache. */
#pragma once

#include "cancel.h"
#include "row.h"

/* The sum of the squared probabilities, and the variance of their logarithms under the distribution. */
typedef struct {
    double squares, variance;
} tl_second_moments;

/* Both of a row, given its logsumexp; nan if a logit is nan or +inf, or all are -inf. */
tl_second_moments tl_second_moments_of(const tl_backend *backend, const tl_row *row, double logsumexp,
                                       tl_cancel *cancel);

/* The probability of a class, at most 1, given the logsumexp. */
double tl_probability_of(const tl_backend *backend, const tl_row *row, int64_t index, double logsumexp);
