/* The rows of golden.c and guarded.c: made of integers alone, so that they are the same everywhere. */
#ifndef TOKENLOSS_TESTS_ROWS_H
#define TOKENLOSS_TESTS_ROWS_H

#include "kernels.h"
#include "scalar_math.h"

#define LONGEST (3 * TL_BLOCK + 100)

static uint64_t seed;

static uint64_t random_bits(void) { /* splitmix64 */
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double centred(void) { /* about normal, of standard deviation 1 */
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (double)(random_bits() >> 32) * 0x1p-32;
    return sum - 6;
}

TL_INLINE double uniform(double from, double to) {
    return from + (to - from) * (double)(random_bits() >> 11) * 0x1p-53;
}

TL_INLINE int die(int sides) { return (int)(random_bits() % (uint64_t)sides); }

static const char *const dtype_names[] = {"float16", "bfloat16", "float32", "float64"};

/* An element of a row: normal, wide, far from 0, equal, special, or any bits at all. */
TL_INLINE void fill(char *at, int dtype, int kind, double equal) {
    double value = kind == 0 ? centred() : kind == 1 ? 30 * centred() : kind == 2 ? 1e6 + 50 * centred() : equal;
    uint64_t bits = random_bits();
    if (kind == 4) {
        static const double special[] = {0.0, -0.0, 1e-42, -5e-324, 88.5, -104.0};
        uint64_t die = bits % 4096;
        value = die < 6     ? special[die]
                : die < 60  ? -(double)INFINITY
                : die == 60 ? (double)INFINITY
                : die == 61 ? (double)NAN
                            : 5 * centred();
    }
    float single = (float)value;
    uint32_t single_bits;
    memcpy(&single_bits, &single, sizeof single_bits);
    uint16_t half = (uint16_t)(single_bits >> 16);
    if (dtype == TL_FLOAT16) /* truncated from the float: sign, 5 bits of exponent, 10 of mantissa */
        half = (uint16_t)((single_bits >> 16 & 0x8000) |
                          (tl_abs(value) < 0x1p-14 ? 0
                           : tl_abs(value) > 65504 ? 0x7bff
                                                   : ((single_bits & 0x7fffffff) >> 13) - (112 << 10)));
    if (kind == 4 && dtype == TL_FLOAT16 && value - value != 0)
        half = value != value ? 0x7e01 : value < 0 ? 0xfc00 : 0x7c00;
    if (kind == 5) {
        half = (uint16_t)bits;
        single_bits = (uint32_t)bits;
        memcpy(&value, &bits, sizeof value);
    }
    if (tl_itemsize(dtype) == 2)
        memcpy(at, &half, 2);
    else if (tl_itemsize(dtype) == 4)
        memcpy(at, &single_bits, 4);
    else
        memcpy(at, &value, 8);
}

TL_INLINE int64_t length(int i) { /* all short ones, and those around the sizes of chunks and blocks */
    static const int64_t borders[] = {TL_CHUNK,     2 * TL_CHUNK, TL_BLOCK, TL_BLOCK + TL_CHUNK,
                                      2 * TL_BLOCK, 3 * TL_BLOCK};
    return i < 140 ? i : borders[(i - 140) / 5 % 6] + (i - 140) % 5 - 2;
}

#endif
