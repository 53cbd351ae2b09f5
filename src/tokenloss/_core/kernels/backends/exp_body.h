/* The exponential in float or double, and what a reduction accumulates. Its constants are in template.h.
 *
 * exp(x) 2^-ref_exp = power + LEADING q r_power. Powers are summed apart from the small rests q r_power. The
 * exponential does not depend on the reference exponent, which scales all terms by one power of two and so changes no
 * bit of the sum. Only the leading bits of ln 2 are subtracted here: tl_log_of_sum corrects for the others. */

static const REAL OP(RAMP)[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* Constants and accumulators of a reduction, each a vector. */
typedef struct {
    OP(vec) min_arg; /* smaller arguments are raised to it, where they are clamped: their power is 0 */
    OP(vec) rounder; /* rounds 8 x / ln 2 to k, and leaves k less that of the least power in the low bits */
    OP(table) powers;
    OP(vec) shift, threshold;
    OP(vec) maximum[2], unmatched;
    OP(bits) count_ge[2];
    OP(bits) or_bits[2]; /* of all k */
} OP(acc);

TL_TARGET TL_INLINE OP(acc) OP(acc_init)(int64_t exponent, int clamps, double shift, double threshold) {
    const int64_t least = OP(LEAST_EXPONENT) - OP(HEADROOM) + exponent;
    const OP(vec) none = OP(set)(-(REAL)INFINITY);
    const OP(bits) zero = OP(set_bits)(0);
    OP(acc)
    acc = {OP(set)((REAL)(((double)least - CLAMPED_EIGHTHS / 8.0) * TL_LN2)),
           OP(set)(OP(ROUNDER) + (REAL)((clamps ? GUARD : OP(GUARD)) - 8 * least)),
           OP(load_powers)(OP(POWERS), clamps ? GUARD : OP(GUARD)),
           OP(set)((REAL)shift),
           OP(set)((REAL)threshold),
           {none, none},
           none,
           {zero, zero},
           {zero, zero}};
    return acc;
}

/* Whether a power did not fit in its exponent field: then some k, in the low bits of a number of ulp 1, was negative or
 * had more bits than the field and an eighth; or the sum of the powers is nan or infinite. Clamped arguments can only
 * be too large. */
TL_TARGET TL_INLINE int OP(is_beyond)(OP(bits) ored, UINT k_mask) {
    const REAL rounder = OP(ROUNDER);
    UINT expected;
    memcpy(&expected, &rounder, sizeof expected);
    return OP(any_of_bits)(ored, ~(expected | k_mask));
}
TL_TARGET TL_INLINE int OP(is_out_of_range)(const OP(acc) * acc) {
    return OP(is_beyond)(acc->or_bits[0], OP(K_MASK)) || OP(is_beyond)(acc->or_bits[1], OP(K_MASK));
}

/* The parts of exp(x) 2^-ref_exp. */
typedef struct {
    OP(vec) k, r, power, r_power, q;
} OP(exp_parts);

TL_TARGET TL_INLINE OP(exp_parts) OP(exp_of)(OP(vec) x, const OP(acc) * acc, int clamps) {
    OP(exp_parts) of;
    of.k = OP(fma)(x, OP(set)(OP(EIGHTHS)), acc->rounder);
    of.r = OP(fma)(OP(sub)(of.k, acc->rounder), OP(set)(-OP(LN2) / 8), x);
    of.power = OP(power)(of.k, acc->powers);
    if (clamps)
        of.power = OP(zero_if_negative)(of.power);
    of.r_power = OP(mul)(of.r, of.power);
    of.q = OP(add)(of.r, OP(set)(OP(Q)[0]));
    for (size_t i = 1; i < sizeof OP(Q) / sizeof OP(Q)[0]; i++)
        of.q = OP(fma)(of.q, of.r, OP(set)(OP(Q)[i]));
    return of;
}

/* The rest of an exponential, and a number: its power, which makes it whole, or what is left of that. */
TL_TARGET TL_INLINE OP(vec) OP(add_rest)(const OP(exp_parts) * of, OP(vec) number) {
    return OP(fma)(of->q, OP(mul)(of->r_power, OP(set)(OP(LEADING))), number);
}

/* An exponential as a whole; and one of an argument that is clamped. */
TL_TARGET TL_INLINE OP(vec) OP(whole_of)(const OP(exp_parts) * exp) {
    OP(vec) p = OP(set)(OP(WHOLE)[0]);
    for (size_t i = 1; i < sizeof OP(WHOLE) / sizeof OP(WHOLE)[0]; i++)
        p = OP(fma)(p, exp->r, OP(set)(OP(WHOLE)[i]));
    return OP(fma)(p, exp->r_power, exp->power);
}
TL_TARGET TL_INLINE OP(vec) OP(whole_exp)(OP(vec) x, const OP(acc) * acc) {
    const OP(exp_parts) exp = OP(exp_of)(OP(max_keep_nan)(acc->min_arg, x), acc, 1);
    return OP(whole_of)(&exp);
}

/* What exponentials of a softmax need to be relative to 1: near arguments have k in the OP(NEAR_K) + 1 around 0. */
TL_TARGET TL_INLINE OP(acc) OP(acc_near)(void) {
    const int middle = (OP(NEAR_K) + 1) / 2;
    OP(acc) acc = OP(acc_init)(0, 0, 0, 0);
    acc.rounder = OP(set)(OP(ROUNDER) + (REAL)middle);
    acc.powers = OP(load_powers)(OP(POWERS), middle - 8 * (OP(KEPT_BITS) - OP(LEAST_EXPONENT)));
    return acc;
}

/* What exponentials of clamped arguments need, by each row's reference exponent and bits of headroom: see acc_init. */
TL_TARGET TL_INLINE void OP(reference)(const double *exponents, double headroom, OP(acc) * acc) {
    const OP(vec) exponent = OP(load_narrowed)(exponents); /* an integer */
    const double least = OP(LEAST_EXPONENT) - headroom;
    acc->rounder = OP(mul_add)(exponent, OP(set)(-8), OP(set)((REAL)(OP(ROUNDER) + (GUARD - 8 * least))));
    acc->min_arg = OP(mul_add)(exponent, OP(set)(OP(LN2)), OP(set)((REAL)((least - CLAMPED_EIGHTHS / 8.0) * TL_LN2)));
    acc->powers = OP(load_powers)(OP(POWERS), GUARD);
}
