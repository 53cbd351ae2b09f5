/* exp, log and log1p of one double, and what is made of them: the functions of backends/vector_math.h. */
#pragma once

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

TL_INLINE double tl_abs(double x) { return tl_from_bits(tl_to_bits(x) & 0x7fffffffffffffffu); }

/* Whether a number is neither too large nor too small for products of floats. */
TL_INLINE int tl_fits_float(double x) { return x == 0 || (tl_abs(x) >= 0x1p-100 && tl_abs(x) <= 0x1p100); }

/* The integer nearest to a number below 2^51. */
TL_INLINE double tl_nearest(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

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

double tl_exp(double x);
double tl_log(double x);
double tl_log1p(double x); /* of x >= 0 */

/* The logsumexp for a sum of exponentials in this dtype. */
double tl_log_of_sum(double sum, double ref_exp, int dtype);

/* The exponent and factor with which exp(x) 2^-exponent factor is softmax(x). */
double tl_softmax_factor(double logsumexp, int dtype, double *exponent);

/* The entropy of a row from the log-odds against a class, both sides' losses, and the entropy of the other classes. */
double tl_entropy(double log_odds, double nll, double others_nll, double of_others);

/* log(1 + exp(d)): the loss of a target whose logit is d below the logsumexp of the others. */
TL_INLINE double tl_softplus(double d) { return d > 0 ? d + tl_log1p(tl_exp(-d)) : tl_log1p(tl_exp(d)); }
