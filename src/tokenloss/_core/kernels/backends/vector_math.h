/* The functions of ../scalar_math.h for vectors of doubles: the same operations in the same order, so the same bits.
 * Branches are selections here: both sides are computed, and none may be slow. */

TL_TARGET TL_INLINE f64_vec f64_log_near_one(f64_vec f, f64_vec exponent, f64_vec small) {
    f64_vec s = f64_div(f, f64_add(f64_set(2), f)), z = f64_mul(s, s);
    f64_vec half_square = f64_mul(f64_mul(f64_set(0.5), f), f), p = f64_set(TL_LOG_COEFFICIENTS[0]);
    for (int i = 1; i < 7; i++)
        p = f64_add(f64_mul(p, z), f64_set(TL_LOG_COEFFICIENTS[i]));
    f64_vec low = f64_add(f64_mul(exponent, f64_set(TL_LN2_LOW)), small);
    f64_vec correction = f64_add(f64_mul(s, f64_add(half_square, f64_mul(z, p))), low);
    return f64_sub(f64_mul(exponent, f64_set(TL_LN2_HIGH)), f64_sub(f64_sub(half_square, correction), f));
}

/* The same of n <= 4 vectors, a constant of the caller. They take turns at each step, so that one's arithmetic
 * fills the latency of another's. */
TL_TARGET TL_INLINE void f64_logs_near_one(size_t n, const f64_vec *f, const f64_vec *exponent, f64_vec small,
                                           f64_vec *log) {
    f64_vec s[4], z[4], half_square[4], p[4];
    for (size_t k = 0; k < n; k++)
        s[k] = f64_div(f[k], f64_add(f64_set(2), f[k]));
    for (size_t k = 0; k < n; k++)
        half_square[k] = f64_mul(f64_mul(f64_set(0.5), f[k]), f[k]);
    for (size_t k = 0; k < n; k++)
        z[k] = f64_mul(s[k], s[k]);
    for (size_t k = 0; k < n; k++)
        p[k] = f64_set(TL_LOG_COEFFICIENTS[0]);
    for (int i = 1; i < 7; i++)
        for (size_t k = 0; k < n; k++)
            p[k] = f64_add(f64_mul(p[k], z[k]), f64_set(TL_LOG_COEFFICIENTS[i]));
    for (size_t k = 0; k < n; k++)
        p[k] = f64_mul(s[k], f64_add(half_square[k], f64_mul(z[k], p[k])));
    for (size_t k = 0; k < n; k++) {
        f64_vec correction = f64_add(p[k], f64_add(f64_mul(exponent[k], f64_set(TL_LN2_LOW)), small));
        f64_vec rest = f64_sub(f64_sub(half_square[k], correction), f[k]);
        log[k] = f64_sub(f64_mul(exponent[k], f64_set(TL_LN2_HIGH)), rest);
    }
}

/* `has_subnormals` is a constant of the caller. */
TL_TARGET TL_INLINE f64_vec f64_split_near_one(f64_vec x, f64_vec *exponent, int has_subnormals) {
    f64_vec shift = f64_set(0x1p52 + 1023);
    if (has_subnormals) {
        const f64_vec least = f64_set(0x1p-1022);
        shift = f64_if_less(x, least, f64_set(0x1p52 + 1023 + 54), shift);
        x = f64_mul(x, f64_if_less(x, least, f64_set(0x1p54), f64_set(1)));
    }
    f64_vec above = f64_plus_bits(x, 0x00095f619980c433u);
    *exponent = f64_sub(f64_with_bits(f64_exponent_field(above), 0x4330000000000000u), shift);
    return f64_sub(f64_plus_bits(f64_and_bits(above, 0xfffffffffffffu), 0x3fe6a09e667f3bcdu), f64_set(1));
}

TL_TARGET TL_INLINE f64_vec f64_log(f64_vec x, int has_subnormals) {
    const f64_vec nan = f64_set((double)NAN), zero = f64_set(0);
    f64_vec exponent, f = f64_split_near_one(x, &exponent, has_subnormals), log = f64_log_near_one(f, exponent, zero);
    log = f64_if_less(f64_set(0x1.fffffffffffffp1023), x, x, log);
    log = f64_if_equal(x, zero, f64_set(-(double)INFINITY), log);
    return f64_if_less(x, zero, nan, f64_if_equal(x, x, log, nan));
}

TL_TARGET TL_INLINE f64_vec f64_exp(f64_vec x) {
    const f64_vec least = f64_set(-746), most = f64_set(710), rounder = f64_set(0x1.8p52);
    f64_vec bounded = f64_if_less(x, most, x, most);
    bounded = f64_if_less(least, bounded, bounded, least);
    f64_vec n_biased = f64_add(f64_mul(bounded, f64_set(TL_LOG2E)), rounder), n = f64_sub(n_biased, rounder);
    f64_vec high = f64_sub(bounded, f64_mul(n, f64_set(TL_LN2_HIGH))), low = f64_mul(n, f64_set(TL_LN2_LOW));
    f64_vec r = f64_sub(high, low), lost = f64_sub(f64_sub(high, r), low), p = f64_set(TL_EXP_COEFFICIENTS[0]);
    for (int i = 1; i < 11; i++)
        p = f64_add(f64_mul(p, r), f64_set(TL_EXP_COEFFICIENTS[i]));
    p = f64_add(f64_set(1), f64_add(r, f64_add(f64_mul(f64_mul(r, r), p), lost)));
    /* the power of two in two factors, as tl_scale has it: chosen first, since a product that is computed in each lane
     * and thrown away in most would be subnormal there, and slow */
    f64_vec tiny = f64_set(-1022), huge = f64_set(1023);
    p = f64_mul(p, f64_if_less(n, tiny, f64_set(0x1p-1022), f64_if_less(huge, n, f64_set(0x1p1023), f64_set(1))));
    n_biased = f64_sub(n_biased, f64_if_less(n, tiny, tiny, f64_if_less(huge, n, huge, f64_set(0))));
    p = f64_mul(p, f64_pow2(f64_plus_bits(n_biased, 1023)));
    p = f64_if_less(most, x, f64_set((double)INFINITY), f64_if_less(least, x, p, f64_set(0)));
    return f64_if_equal(x, x, p, x);
}

/* log(1 + x) for x in [0, 1]. */
TL_TARGET TL_INLINE f64_vec f64_log1p_unit(f64_vec x) {
    const f64_vec zero = f64_set(0), one = f64_set(1);
    f64_vec sum = f64_add(one, x), exponent, f = f64_split_near_one(sum, &exponent, 0), above = f64_sub(sum, one);
    f64_vec lost = f64_if_less(x, above, f64_sub(one, f64_sub(sum, x)), f64_sub(x, above));
    f = f64_if_equal(exponent, zero, x, f);
    f64_vec log = f64_log_near_one(f, exponent, f64_if_equal(exponent, zero, zero, f64_div(lost, sum)));
    return f64_if_less(f64_set(0x1p-54), x, log, x);
}
