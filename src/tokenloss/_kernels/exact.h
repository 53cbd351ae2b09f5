/* Exact sums of doubles: a fixed-point number wide enough for every finite double and its square.
 *
 * Digits of 32 bits are kept in 64-bit integers, so that carries wait: see R. Neal, "Fast exact summation using small
 * and large superaccumulators", arXiv:1505.05571. Being integers, sums in any order have the same bits. */
#ifndef TOKENLOSS_EXACT_H
#define TOKENLOSS_EXACT_H

#include "platform.h"

/* A double is an integer times 2^-1074, below 2^2098; one more digit holds the carries of 2^63 terms, one the sign. */
#define TL_SUM_DIGITS 68
#define TL_SQUARES_DIGITS 134

typedef struct {
    int64_t digit[TL_SUM_DIGITS]; /* the finite terms, times 2^1074 */
    double special;               /* the sum of the others: 0, inf, -inf or nan */
    int64_t pending;              /* terms added since the carries were last settled */
} tl_sum;

typedef struct {
    int64_t digit[TL_SQUARES_DIGITS]; /* the squares of the finite terms, times 2^2148 */
    int64_t pending;
} tl_squares;

void tl_sum_add(tl_sum *sum, double term);
void tl_squares_add(tl_squares *squares, double term); /* leaves out what is not finite */

void tl_sum_merge(tl_sum *sum, const tl_sum *other);

/* The sum, rounded once to the nearest double. */
double tl_sum_round(tl_sum *sum);

/* Writes the digits as little-endian two's complement, four bytes each. */
void tl_sum_bytes(tl_sum *sum, unsigned char *bytes);
void tl_squares_bytes(tl_squares *squares, unsigned char *bytes);

#endif
