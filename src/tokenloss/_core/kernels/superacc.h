/* Exact sums of doubles: a fixed-point number wide enough for every finite double and its square.
 *
 * Limbs of 32 bits are kept in 64-bit integers, so that carries can wait: see R. Neal, "Fast exact summation using
 * small and large superaccumulators", arXiv:1505.05571. They are integers, so sums in any order have the same bits.
 *
 * Many numbers at once are added to bins first, vectors of them at a time: integers of 64 bits, each of one unit, which
 * so few numbers do not overflow (backend.h says how few). Now and then the bins are poured into the limbs, which is
 * exact too. Numbers of uncommon size go to the limbs one by one. */
#pragma once

#include "backend.h"

/* A double is an integer times 2^-1074, below 2^2098; one more limb holds the carries of 2^63 terms, one the sign. */
#define TL_SUM_LIMBS 68
#define TL_SQUARES_LIMBS 134

_Static_assert(TL_SUM_LIMBS == (2098 + 31) / 32 + 2, "limbs of a sum");
_Static_assert(TL_SQUARES_LIMBS == (2 * 2098 + 31) / 32 + 2, "limbs of a sum of squares");

/* What was added since it was last poured: the lanes of a bin add up to an integer, modulo 2^64. */
typedef struct {
    uint64_t bin[TL_SQUARE_BINS][TL_BIN_LANES]; /* of numbers, the last one is 0 */
    size_t groups;
} tl_bins;

/* A sum of numbers, or of squares or products of two numbers. */
typedef enum { TL_SUM, TL_SQUARES } tl_sum_kind;

typedef struct {
    int64_t limb[TL_SQUARES_LIMBS]; /* the finite terms, times 2^1074; of squares, times 2^2148 */
    double special;                 /* of numbers, the sum of the others: 0, inf, -inf or nan */
    int64_t uncarried;              /* terms added since carries were last propagated */
    tl_bins bins;
} tl_superacc;

/* A term adds less than 2^34 to a limb, and a limb starts below 2^32: twice as many terms do not overflow. That leaves
 * room for bins, which count as terms as well. */
#define TL_MAX_UNCARRIED ((int64_t)1 << 27)

/* Adds value * 2^position. */
TL_INLINE void tl_add_shifted(int64_t *limbs, unsigned position, uint64_t value, int negative) {
    int64_t *limb = limbs + position / 32;
    unsigned shift = position % 32;
    int64_t low = (int64_t)((value << shift) & 0xffffffffu);
    int64_t middle = (int64_t)((value >> (32 - shift)) & 0xffffffffu);
    int64_t high = (int64_t)(value >> 32 >> (32 - shift));
    limb[0] += negative ? -low : low;
    limb[1] += negative ? -middle : middle;
    limb[2] += negative ? -high : high;
}

/* Splits a finite double into mantissa * 2^(position - 1074). */
TL_INLINE uint64_t tl_split(double term, unsigned *position, int *negative) {
    uint64_t bits = tl_to_bits(term);
    unsigned exponent = (unsigned)(bits >> 52) & 0x7ff;
    uint64_t mantissa = bits & 0xfffffffffffffu;
    *negative = (int)(bits >> 63);
    *position = exponent ? exponent - 1 : 0;
    return exponent ? mantissa | ((uint64_t)1 << 52) : mantissa;
}

/* Adds a number; or the product of two, but ignores what is not finite. */
void tl_superacc_add(tl_superacc *sum, double term);
void tl_superacc_add_product(tl_superacc *products, double a, double b);

/* Adds many numbers, or their squares. */
void tl_superacc_add_many(const tl_backend *backend, tl_sum_kind kind, tl_superacc *sum, const double *terms,
                          size_t count);

/* Adds bins of numbers, and empties them. */
void tl_superacc_pour(tl_superacc *sum, tl_bins *bins);

void tl_superacc_merge(tl_sum_kind kind, tl_superacc *sum, const tl_superacc *other);

/* The sum of numbers times 2^exponent, rounded once to the nearest double. */
double tl_superacc_round(tl_superacc *sum, int exponent);

/* Writes the limbs as little-endian two's complement, four bytes each, and returns how many these are. */
int tl_superacc_limbs(tl_sum_kind kind, tl_superacc *sum, unsigned char *bytes);
