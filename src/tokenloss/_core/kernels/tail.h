/* The tail of a row: its classes without some given ones, such as the likeliest. Its mass, and classes drawn from it. */
#pragma once

#include "cancel.h"
#include "row.h"

#define TL_TAIL_PARTS 1024 /* of a row, at most: sums are kept of each, so that a draw looks only into one of them */

typedef struct {
    const int64_t *excluded; /* the given classes, in ascending order; negative ones are none */
    int64_t count;           /* of these */
    double log_mass;         /* logsumexp of the tail; -inf without a class that has a probability */
    int64_t support;         /* the number of classes that have one */
    int64_t length, parts;   /* elements of a part, and their number */
    double offset, exponent; /* masses are sums of exp(x - offset) 2^-exponent */
    double unit;             /* the value of a term of the dtype */
    double mass[TL_TAIL_PARTS];
    int64_t supports[TL_TAIL_PARTS];
} tl_tail;

/* Finds the sums of a tail, whose `excluded` and `count` are set. `maximum` is at least the largest logit of the tail: if
 * it is far above, the row is read once more. */
void tl_tail_of(const tl_backend *backend, const tl_row *row, double maximum, tl_tail *tail, tl_cancel *cancel);

/* Draws classes of a tail that has support, each with probability (p + epsilon / support) / (1 + epsilon), p being its
 * share of the tail. Draw i inverts the cumulative sum, over ascending classes, at (i + uniform[i]) / count of it. */
void tl_tail_draw(const tl_backend *backend, const tl_row *row, const tl_tail *tail, double epsilon,
                  const double *uniform, int64_t count, int64_t *drawn);
