/* exp, log and log1p in double, from + - * / only: the same bits on every machine, within 1 ulp (tests measure it).
 *
 * The polynomials are minimax fits of our own: relative error of EXP 2.5e-17 on |r| <= ln(2)/2, of LOG 1.3e-18. */
#ifndef TOKENLOSS_SCALAR_MATH_H
#define TOKENLOSS_SCALAR_MATH_H

#include <math.h>

#include "platform.h"

#define TL_LN2 0x1.62e42fefa39efp-1

#define TL_LARGE_SUM 0x1p22 /* of exponentials in double: its logarithm is taken with the reference exponent */

/* The meaning of terms and sums in float. All terms are 1.538... times too large (f32_POWERS in backends/template.h):
 * adding TERM_BIAS, minus the logarithm of that, undoes it. They are computed for the float nearest to ln 2, which is
 * 2.75e-9 too large, relatively: so the logarithm of a term near 2^n is too small by 1.9e-9 n. tl_log_of_sum corrects
 * for what the reference exponent stands for; and where the sum is large, most of it must be of terms above that. */
#define TL_FLOAT_LN2 0x1.62e43p-1
#define TL_FLOAT_LN2_ERROR 0x1.79a8dc2f503a2p-29
#define TL_FLOAT_TERM_BIAS (-0.4306526714621564)
#define TL_FLOAT_LARGE_LOG 8.7484188381815 /* of 2^12 terms at the reference */
#define TL_LOG2E 0x1.71547652b82fep+0
#define TL_LN2_HIGH 0x1.62e42fee00000p-1 /* 32 bits: exact times any integer below 2^21 */
#define TL_LN2_LOW 0x1.a39ef35793c76p-33

static const double TL_EXP_COEFFICIENTS[] = {0x1.1fa9e9dc55a4ap-29,
                                             0x1.af777540057ccp-26,
                                             0x1.27e46aa98caf5p-22,
                                             0x1.71ddeb4f79916p-19,
                                             0x1.a01a01deacc54p-16,
                                             0x1.a01a01b5c286bp-13,
                                             0x1.6c16c16c0b66bp-10,
                                             0x1.111111110e58fp-7,
                                             0x1.555555555556bp-5,
                                             0x1.555555555555dp-3,
                                             0.5};
static const double TL_LOG_COEFFICIENTS[] = {0x1.2f15bcaaef60ap-3, 0x1.39a02ecd2cd3dp-3, 0x1.74664d777eb3ap-3,
                                             0x1.c71c51c66807ep-3, 0x1.249249423e5acp-2, 0x1.999999997f8a6p-2,
                                             0x1.5555555555593p-1};

TL_INLINE double tl_abs(double x) { return tl_from_bits(tl_to_bits(x) & 0x7fffffffffffffffu); }

/* x 2^exponent. A subnormal result may be rounded twice. */
TL_INLINE double tl_scale(double x, int64_t exponent) {
    for (; exponent < -1022 && x != 0; exponent += 1022)
        x *= 0x1p-1022;
    if (exponent < -1022)
        return x;
    for (; exponent > 1023 && x - x == 0 && x != 0; exponent -= 1023)
        x *= 0x1p1023;
    return exponent > 1023 ? x : x * tl_from_bits((uint64_t)(exponent + 1023) << 52);
}

TL_INLINE double tl_exp(double x) {
    if (!(x > -746)) /* nan too */
        return x != x ? x : 0;
    if (x > 710)
        return (double)INFINITY;
    double n = (x * TL_LOG2E + 0x1.8p52) - 0x1.8p52;
    double high = x - n * TL_LN2_HIGH, low = n * TL_LN2_LOW;
    double r = high - low;
    double lost = (high - r) - low;
    double p = TL_EXP_COEFFICIENTS[0];
    for (int i = 1; i < 11; i++)
        p = p * r + TL_EXP_COEFFICIENTS[i];
    return tl_scale(1 + (r + (r * r * p + lost)), (int64_t)n);
}

/* log(2^exponent * (1 + f)) + small, for 1 + f in [sqrt(1/2), sqrt(2)].
 *
 * With s = f / (2 + f), log(1 + f) = 2 atanh(s) = f - s (f - R(s^2)), and f - f^2/2 is formed first, being exact to
 * the last bits that matter. */
TL_INLINE double tl_log_near_one(double f, double exponent, double small) {
    double s = f / (2 + f), z = s * s, half_square = 0.5 * f * f;
    double square = z * z; /* Estrin's scheme: fewer operations wait for each other than in Horner's */
    double low = TL_LOG_COEFFICIENTS[4] * square + (TL_LOG_COEFFICIENTS[5] * z + TL_LOG_COEFFICIENTS[6]);
    double high = (TL_LOG_COEFFICIENTS[0] * z + TL_LOG_COEFFICIENTS[1]) * square +
                  (TL_LOG_COEFFICIENTS[2] * z + TL_LOG_COEFFICIENTS[3]);
    double p = high * (square * z) + low;
    double correction = s * (half_square + z * p) + (exponent * TL_LN2_LOW + small);
    return exponent * TL_LN2_HIGH - ((half_square - correction) - f);
}

/* Splits a positive finite number into 2^exponent * m with m in [sqrt(1/2), sqrt(2)); returns m - 1. Without branches
 * or conversions of integers, so that compilers can do several at once. */
TL_INLINE double tl_split_near_one(double x, double *exponent) {
    double normal = x < 0x1p-1022 ? x * 0x1p54 : x;
    double shift = x < 0x1p-1022 ? 0x1p52 + 1023 + 54 : 0x1p52 + 1023;
    uint64_t above = tl_to_bits(normal) + 0x00095f619980c433u; /* 1 - sqrt(1/2) in bits: carries from sqrt(2) on */
    *exponent = tl_from_bits((above >> 52) | 0x4330000000000000u) - shift;
    return tl_from_bits((above & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1;
}

TL_INLINE double tl_log(double x) {
    double exponent;
    double f = tl_split_near_one(x, &exponent);
    double log = tl_log_near_one(f, exponent, 0);
    log = x > 0x1.fffffffffffffp1023 ? x : log;
    log = x == 0 ? -(double)INFINITY : log;
    return x >= 0 ? log : (double)NAN;
}

/* log(1 + x) for x >= 0. */
TL_INLINE double tl_log1p(double x) {
    if (!(x > 0x1p-54 && x < 0x1p60))
        return x >= 0x1p60 ? tl_log(x) : x;
    double sum = 1 + x, exponent;
    double f = tl_split_near_one(sum, &exponent);
    if (exponent == 0)
        return tl_log_near_one(x, 0, 0);
    double lost = sum - 1 > x ? 1 - (sum - x) : x - (sum - 1);
    return tl_log_near_one(f, exponent, lost / sum);
}

/* log(1 + exp(d)): the loss of a target whose logit is d below the logsumexp of the others. */
TL_INLINE double tl_softplus(double d) { return d > 0 ? d + tl_log1p(tl_exp(-d)) : tl_log1p(tl_exp(d)); }

#endif
