/* Vectors of exp, log and log1p, for golden.c: each number must be that of scalar_math.h to the bit. */
#ifndef TOKENLOSS_TESTS_VECTORS_H
#define TOKENLOSS_TESTS_VECTORS_H

#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "losses.h"
#include "rows.h"
#include "scalar_math.h"

/* Where formulas, signs and ranges end; the numbers next to these are tried, too. */
static const double vector_borders[] = {
    0,
    5e-324,
    0x1p-1022,
    0x1p-60,
    0x1p-54,
    0x1p-53,
    0x1p-28,
    0.41421356237309503, /* where 1 + x, x and 1 / x reach a square root of 2, and log another power of two */
    0.70710678118654752,
    1,
    1.4142135623730951,
    2,
    36.7,
    700,
    708.3964185322641, /* -x: exp is subnormal from here */
    709.782712893384,  /* exp overflows */
    710,
    744.4400719213812, /* -x: exp is the last subnormal */
    745.1332191019412, /* -x: exp is 0 */
    746,
    65536,
    0x1p60,
    0x1.fffffffffffffp1023,
    (double)INFINITY,
};
#define VECTOR_BORDERS ((int)(sizeof vector_borders / sizeof *vector_borders))

static void require_same(const char *what, const tl_backend *backend, double argument, double value, double scalar) {
    if (tl_to_bits(value) != tl_to_bits(scalar) && (value == value || scalar == scalar)) {
        printf("%s of %a on %s is %a, not %a\n", what, argument, backend->name, value, scalar);
        exit(1);
    }
}

/* Any number: near a border, of the size that logits and sums have, or any bits at all. */
static double vector_argument(void) {
    uint64_t bits = random_bits();
    double border = vector_borders[bits / 64 % VECTOR_BORDERS], sign = bits & 4 ? -1 : 1;
    switch (bits % 4) {
    case 0: return sign * tl_from_bits(tl_to_bits(border) + (border - border == 0 ? bits / 8 % 8 : 0));
    case 1: return sign * (border == 0 ? 0 : tl_from_bits(tl_to_bits(border) - bits / 8 % 8));
    case 2: return centred() * (bits & 8 ? 200 : 1);
    default: return tl_from_bits(random_bits());
    }
}

static void check_exps(const tl_backend *backend) {
    double x[TL_BLOCK_ROWS], y[TL_BLOCK_ROWS];
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        x[i] = y[i] = vector_argument();
    backend->exps(y, TL_BLOCK_ROWS);
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        require_same("exp", backend, x[i], y[i], tl_exp(x[i]));
}

/* Minus the logarithm as vectors have it, with the functions of the C library. */
static double fused_minus_log(double x) {
    static const double c[] = {0x1.2f15bcaaef60ap-3, 0x1.39a02ecd2cd3dp-3, 0x1.74664d777eb3ap-3, 0x1.c71c51c66807ep-3,
                               0x1.249249423e5acp-2, 0x1.999999997f8a6p-2, 0x1.5555555555593p-1};
    int exponent;
    double m = frexp(x, &exponent), unit = m < 0x1.6a09e667f3bcdp-1 ? 2 : 1, n = exponent - (unit - 1);
    double g = 1 - m * unit, s = g / (2 - g), z = s * s, square = z * z;
    double even = fma(fma(c[0], square, c[2]), square, c[4]), odd = fma(fma(c[1], square, c[3]), square, c[5]);
    double p = fma(odd, z, fma(even, square, c[6]));
    double log = fma(n, -TL_LN2_HIGH, fma(s, fma(z, p, g), n * -TL_LN2_LOW) + g);
    return x > 0 && x < (double)INFINITY ? log : 0 - tl_log(x);
}

/* Of sums, which are 0, normal, infinite or nan; and of any numbers, as clipped losses. */
static void check_logs(const tl_backend *backend) {
    double sum[TL_BLOCK_ROWS], ref_exp[TL_BLOCK_ROWS], log[TL_BLOCK_ROWS], p[TL_BLOCK_ROWS];
    const int dtype = random_bits() % 2 ? TL_FLOAT64 : TL_FLOAT32;
    for (int i = 0; i < TL_BLOCK_ROWS; i++) {
        double x = vector_argument();
        sum[i] = tl_abs(x) < 0x1p-1022 ? 0 : tl_abs(x);
        ref_exp[i] = i % 2 ? (double)(random_bits() % 200000) - 100000 : (double)(random_bits() % 200) - 100;
        p[i] = x;
    }
    backend->lse_logs(sum, ref_exp, TL_BLOCK_ROWS, dtype, log);
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        require_same("log of a sum", backend, sum[i], log[i], tl_log_of_sum(sum[i], ref_exp[i], dtype));
    const double infinity = (double)INFINITY;
    const tl_clip all = {-infinity, infinity, -infinity, infinity, -infinity, infinity, 0};
    tl_negative_log(backend, &all, p, TL_BLOCK_ROWS, log);
    for (int i = 0; i < TL_BLOCK_ROWS; i++)
        require_same("minus log", backend, p[i], log[i], fused_minus_log(p[i]));
}

/* Log-odds of all sizes, and their losses, which are softplus. */
static void check_log_odds(const tl_backend *backend) {
    double offset[TL_BLOCK_ROWS], log[TL_BLOCK_ROWS], logit[TL_BLOCK_ROWS];
    tl_odds odds;
    int is_far = random_bits() % 4 == 0;
    for (int i = 0; i < TL_BLOCK_ROWS; i++) {
        offset[i] = is_far ? 1e6 * centred() : 0;
        log[i] = i % 2 ? vector_argument() : 10 * centred();
        logit[i] = i % 3 ? offset[i] + log[i] + (i % 4 ? vector_argument() : 1e-9 * centred()) : vector_argument();
        if (i % 5 == 0)
            logit[i] = 0;
    }
    backend->log_odds(offset, log, logit, TL_BLOCK_ROWS, &odds);
    for (int i = 0; i < TL_BLOCK_ROWS; i++) {
        tl_lse others = {offset[i], log[i]};
        double log_odds = tl_log_odds_against_lse(others, logit[i]);
        require_same("log-odds", backend, logit[i], odds.log_odds[i], log_odds);
        require_same("softplus", backend, log_odds, odds.nll[i], tl_softplus(log_odds));
        require_same("softplus of the opposite", backend, log_odds, odds.others_nll[i], tl_softplus(-log_odds));
    }
}

static void check_vectors(const tl_backend *backend) {
    seed = 1;
    for (int i = 0; i < 4000; i++) {
        check_exps(backend);
        check_logs(backend);
        check_log_odds(backend);
    }
}

#endif
