/* The exponential in float or double, and what a reduction accumulates: included twice, with REAL, UINT (of its size)
 * and OP defined as in dtype_body.h. Its constants are in template.h.
 *
 * exp(x) 2^-ref_exp = power + LEADING q r_power. Powers are summed apart from the small rests q r_power. The
 * exponential does not depend on the reference exponent, which scales all terms by one power of two and so changes no
 * bit of the sum. Of ln 2 only the leading bits are subtracted here: tl_log_of_sum corrects for the others. */

/* Constants and accumulators of a reduction, each a vector. */
typedef struct {
    OP(vec) min_arg; /* smaller arguments are raised to it, where they are clamped: their power is 0 */
    OP(vec) rounder; /* rounds 8 x / ln 2 to k, and leaves k less that of the least power in the low bits */
    OP(table) powers;
    OP(vec) shift, threshold;
    OP(vec) maximum[2], min_other, floor;
    OP(bits) count_ge[2];
    OP(bits) or_bits[2]; /* of all k */
} OP(acc);

TL_TARGET TL_INLINE OP(acc) OP(acc_init)(int64_t exponent, int clamps, double shift, double threshold) {
    const int64_t least = OP(LEAST_EXPONENT) - OP(HEADROOM) + exponent;
    const OP(vec) infinity = OP(set)((REAL)INFINITY), none = OP(set)(-(REAL)INFINITY);
    const OP(bits) zero = OP(no_bits)();
    OP(acc)
    acc = {OP(set)((REAL)(((double)least - CLAMPED_EIGHTHS / 8.0) * TL_LN2)),
           OP(set)(OP(ROUNDER) + (REAL)((clamps ? GUARD : 0) - 8 * least)),
           OP(load_powers)(OP(POWERS), clamps ? GUARD : 0),
           OP(set)((REAL)shift),
           OP(set)((REAL)threshold),
           {none, none},
           infinity,
           none,
           {zero, zero},
           {zero, zero}};
    return acc;
}

/* Whether a power did not fit in its exponent field: then some k, in the low bits of a number of ulp 1, was negative or
 * had more bits than the field and an eighth. Clamped arguments can only be too large. */
TL_TARGET TL_INLINE int OP(is_out_of_range)(const OP(acc) * acc) {
    const REAL rounder = OP(ROUNDER);
    UINT bits[2 * OP(WIDTH)], all = 0, expected;
    memcpy(bits, acc->or_bits, sizeof bits);
    memcpy(&expected, &rounder, sizeof expected);
    for (size_t j = 0; j < 2 * OP(WIDTH); j++)
        all |= bits[j];
    return all != 0 && (all & ~(UINT)OP(K_MASK)) != expected;
}

/* The parts of exp(x) 2^-ref_exp. */
typedef struct {
    OP(vec) k, power, r_power, q;
} OP(exp_parts);

TL_TARGET TL_INLINE OP(exp_parts) OP(exp_of)(OP(vec) x, const OP(acc) * acc, int clamps) {
    OP(exp_parts) of;
    of.k = OP(fma)(x, OP(set)(OP(EIGHTHS)), acc->rounder);
    OP(vec) r = OP(fma)(OP(sub)(of.k, acc->rounder), OP(set)(-OP(LN2) / 8), x);
    of.power = OP(power)(of.k, acc->powers);
    if (clamps)
        of.power = OP(zero_if_negative)(of.power);
    of.r_power = OP(mul)(r, of.power);
    of.q = OP(add)(r, OP(set)(OP(Q)[0]));
    for (size_t i = 1; i < sizeof OP(Q) / sizeof OP(Q)[0]; i++)
        of.q = OP(fma)(of.q, r, OP(set)(OP(Q)[i]));
    return of;
}

/* The rest of an exponential, and a number: its power, which makes it whole, or what is left of that. */
TL_TARGET TL_INLINE OP(vec) OP(add_rest)(const OP(exp_parts) * of, OP(vec) number) {
    return OP(fma)(of->q, OP(mul)(of->r_power, OP(set)(OP(LEADING))), number);
}
