/* exp, log and log1p of vectors of doubles, from + - * / only but for f64_minus_log, and within 1 ulp (tests measure it).
 * Branches are selections here: both sides are computed, and none may be slow. ../scalar_math.c makes functions of one
 * double of them.
 *
 * The polynomials are minimax fits of our own: relative error of EXP 2.5e-17 on |r| <= ln(2)/2, of LOG 1.3e-18. */
static const double TL_EXP_COEFFICIENTS[] = {
    0x1.1fa9e9dc55a4ap-29, 0x1.af777540057ccp-26, 0x1.27e46aa98caf5p-22, 0x1.71ddeb4f79916p-19,
    0x1.a01a01deacc54p-16, 0x1.a01a01b5c286bp-13, 0x1.6c16c16c0b66bp-10, 0x1.111111110e58fp-7,
    0x1.555555555556bp-5, 0x1.555555555555dp-3, 0.5};
static const double TL_LOG_COEFFICIENTS[] = {0x1.2f15bcaaef60ap-3, 0x1.39a02ecd2cd3dp-3, 0x1.74664d777eb3ap-3,
                                             0x1.c71c51c66807ep-3, 0x1.249249423e5acp-2, 0x1.999999997f8a6p-2,
                                             0x1.5555555555593p-1};

TL_TARGET TL_INLINE int f32_any_negative(f32_bits bits) { return f32_any_of_bits(bits, (uint32_t)1 << 31); }
TL_TARGET TL_INLINE int f64_any_negative(f64_bits bits) { return f64_any_of_bits(bits, (uint64_t)1 << 63); }

/* Splits a positive normal x = 2^-exponent m, with m in [sqrt(1/2), sqrt(2)), and returns 1 - m. */
TL_TARGET TL_INLINE f32_vec f32_split_near_one(f32_vec x, f32_vec *exponent) {
    f32_vec above = f32_plus_bits(x, 0x004afb0d); /* 1 - sqrt(1/2) in bits: carries from sqrt(2) on */
    *exponent = f32_sub(f32_set(0x1p23f + 127), f32_with_bits(f32_exponent_field(above), 0x4b000000));
    return f32_sub(f32_set(1), f32_plus_bits(f32_and_bits(above, 0x7fffff), 0x3f3504f3));
}

/* -log(1 - g) = g + g^2 / 2 + g^3 q(g) for 1 - g in [sqrt(1/2), sqrt(2)], within 2.3e-8: a minimax fit of our own, in
 * Estrin's order, which is shorter than a chain. */
static const float f32_MINUS_LOG[] = {0x1.38b56ap-4f, 0x1.055b66p-3f, 0x1.0d8544p-3f, 0x1.22da1ep-3f,
                                      0x1.547244p-3f, 0x1.99a008p-3f, 0x1.000226p-2f, 0x1.555554p-2f};

/* 1/2 + g q(g). */
TL_TARGET TL_INLINE f32_vec f32_minus_log_factor(f32_vec g, f32_vec square) {
    f32_vec fourth = f32_mul(square, square), pair[4];
    for (int i = 0; i < 4; i++)
        pair[i] = f32_fma(f32_set(f32_MINUS_LOG[2 * i]), g, f32_set(f32_MINUS_LOG[2 * i + 1]));
    f32_vec q = f32_fma(f32_fma(pair[0], square, pair[1]), fourth, f32_fma(pair[2], square, pair[3]));
    return f32_fma(q, g, f32_set(0.5f));
}

/* a z + b of two neighbouring coefficients of the logarithm. */
TL_TARGET TL_INLINE f64_vec f64_log_pair(int i, f64_vec z) {
    return f64_add(f64_mul(f64_set(TL_LOG_COEFFICIENTS[i]), z), f64_set(TL_LOG_COEFFICIENTS[i + 1]));
}

TL_TARGET TL_INLINE f64_vec f64_log_near_one(f64_vec f, f64_vec exponent, f64_vec small) {
    f64_vec s = f64_div(f, f64_add(f64_set(2), f)), z = f64_mul(s, s), square = f64_mul(z, z);
    f64_vec half_square = f64_mul(f64_mul(f64_set(0.5), f), f);
    f64_vec low = f64_add(f64_mul(f64_set(TL_LOG_COEFFICIENTS[4]), square), f64_log_pair(5, z));
    f64_vec high = f64_add(f64_mul(f64_log_pair(0, z), square), f64_log_pair(2, z));
    f64_vec p = f64_add(f64_mul(high, f64_mul(square, z)), low);
    f64_vec low_of_exponent = f64_add(f64_mul(exponent, f64_set(TL_LN2_LOW)), small);
    f64_vec correction = f64_add(f64_mul(s, f64_add(half_square, f64_mul(z, p))), low_of_exponent);
    return f64_sub(f64_mul(exponent, f64_set(TL_LN2_HIGH)), f64_sub(f64_sub(half_square, correction), f));
}

/* Splits a positive normal x = 2^exponent m, with m in [sqrt(1/2), sqrt(2)), which it returns. */
TL_TARGET TL_INLINE f64_vec f64_split(f64_vec x, f64_vec *exponent, int has_subnormals) {
    f64_vec shift = f64_set(0x1p52 + 1023);
    if (has_subnormals) {
        const f64_vec least = f64_set(0x1p-1022);
        shift = f64_if_less(x, least, f64_set(0x1p52 + 1023 + 54), shift);
        x = f64_mul(x, f64_if_less(x, least, f64_set(0x1p54), f64_set(1)));
    }
    f64_vec above = f64_plus_bits(x, 0x00095f619980c433u);
    *exponent = f64_sub(f64_with_bits(f64_exponent_field(above), 0x4330000000000000u), shift);
    return f64_plus_bits(f64_and_bits(above, 0xfffffffffffffu), 0x3fe6a09e667f3bcdu);
}

/* Minus the logarithm, fused: with g = 1 - m, s = g / (2 - g), z and p(z) as above, -log(m) = g + s (g + z p(z)). */
TL_TARGET TL_INLINE f64_vec f64_minus_log(f64_vec x, int has_subnormals) {
    static const double *const c = TL_LOG_COEFFICIENTS;
    f64_vec exponent, g = f64_sub(f64_set(1), f64_split(x, &exponent, has_subnormals));
    f64_vec s = f64_div(g, f64_sub(f64_set(2), g)), z = f64_mul(s, s), square = f64_mul(z, z);
    f64_vec even = f64_fma(f64_fma(f64_set(c[0]), square, f64_set(c[2])), square, f64_set(c[4]));
    f64_vec odd = f64_fma(f64_fma(f64_set(c[1]), square, f64_set(c[3])), square, f64_set(c[5]));
    f64_vec p = f64_fma(odd, z, f64_fma(even, square, f64_set(c[6])));
    f64_vec rest = f64_fma(s, f64_fma(z, p, g), f64_mul(exponent, f64_set(-TL_LN2_LOW)));
    return f64_fma(exponent, f64_set(-TL_LN2_HIGH), f64_add(rest, g));
}

/* The logarithm of a number that is not infinite. */
TL_TARGET TL_INLINE f64_vec f64_log_of_finite(f64_vec x, int has_subnormals) {
    const f64_vec zero = f64_set(0), none = f64_if_equal(x, zero, f64_set(-(double)INFINITY), f64_set((double)NAN));
    f64_vec exponent, f = f64_sub(f64_split(x, &exponent, has_subnormals), f64_set(1));
    return f64_if_less(zero, x, f64_log_near_one(f, exponent, zero), none);
}

TL_TARGET TL_INLINE f64_vec f64_log(f64_vec x, int has_subnormals) {
    return f64_if_less(f64_set(0x1.fffffffffffffp1023), x, x, f64_log_of_finite(x, has_subnormals));
}

/* The exponential; of arguments within 700 of 0, with `is_near`. */
TL_TARGET TL_INLINE f64_vec f64_exp_of_any(f64_vec x, int is_near) {
    const f64_vec least = f64_set(-746), most = f64_set(710), rounder = f64_set(0x1.8p52);
    f64_vec bounded = is_near ? x : f64_if_less(x, most, x, most);
    bounded = is_near ? x : f64_if_less(least, bounded, bounded, least);
    f64_vec n_biased = f64_add(f64_mul(bounded, f64_set(TL_LOG2E)), rounder), n = f64_sub(n_biased, rounder);
    f64_vec high = f64_sub(bounded, f64_mul(n, f64_set(TL_LN2_HIGH))), low = f64_mul(n, f64_set(TL_LN2_LOW));
    f64_vec r = f64_sub(high, low), lost = f64_sub(f64_sub(high, r), low), p = f64_set(TL_EXP_COEFFICIENTS[0]);
    for (int i = 1; i < 11; i++)
        p = f64_add(f64_mul(p, r), f64_set(TL_EXP_COEFFICIENTS[i]));
    p = f64_add(f64_set(1), f64_add(r, f64_add(f64_mul(f64_mul(r, r), p), lost)));
    if (is_near)
        return f64_mul(p, f64_pow2(f64_plus_bits(n_biased, 1023)));
    /* the power of two in two factors, as tl_scale has it: chosen first, since a product that is computed in each lane
     * and thrown away in most would be subnormal there, and slow */
    f64_vec tiny = f64_set(-1022), huge = f64_set(1023);
    p = f64_mul(p, f64_if_less(n, tiny, f64_set(0x1p-1022), f64_if_less(huge, n, f64_set(0x1p1023), f64_set(1))));
    n_biased = f64_sub(n_biased, f64_if_less(n, tiny, tiny, f64_if_less(huge, n, huge, f64_set(0))));
    p = f64_mul(p, f64_pow2(f64_plus_bits(n_biased, 1023)));
    p = f64_if_less(most, x, f64_set((double)INFINITY), f64_if_less(least, x, p, f64_set(0)));
    return f64_if_equal(x, x, p, x);
}

TL_TARGET TL_INLINE f64_vec f64_exp(f64_vec x) { return f64_exp_of_any(x, 0); }

/* log(1 + u) where v = 1 + u rounded, `lost` is what that lost, and `low` what u lost itself. */
TL_TARGET TL_INLINE void f64_log1p(f64_vec u, f64_vec v, f64_vec lost, f64_vec low, f64_vec *log) {
    const f64_vec zero = f64_set(0);
    f64_vec exponent, f = f64_sub(f64_split(v, &exponent, 0), f64_set(1));
    f = f64_if_equal(exponent, zero, u, f);
    *log = f64_log_near_one(f, exponent, f64_if_equal(exponent, zero, low, f64_div(lost, v)));
}

TL_TARGET TL_INLINE void f32_log1p(f32_vec u, f32_vec v, f32_vec lost, f32_vec low, f64_vec *log) {
    f32_vec exponent, g = f32_split_near_one(v, &exponent);
    f32_vec inverse = f32_pow2(f32_add(f32_set(0x1p23f + 127), exponent));
    f64_vec wide[f32_WIDTH / f64_WIDTH], wide_rest[f32_WIDTH / f64_WIDTH], wide_exponent[f32_WIDTH / f64_WIDTH];
    (void)u;
    (void)low;
    g = f32_fma(f32_sub(f32_set(0), lost), inverse, g);
    f32_vec square = f32_mul(g, g);
    f32_widen(g, wide);
    f32_widen(f32_mul(f32_minus_log_factor(g, square), square), wide_rest); /* added in double: 1.5e-8 less */
    f32_widen(exponent, wide_exponent);
    for (size_t i = 0; i < f32_WIDTH / f64_WIDTH; i++)
        log[i] = f64_sub(f64_sub(f64_mul(wide_exponent[i], f64_set(-TL_FLOAT_LN2)), wide[i]), wide_rest[i]);
}

/* log(1 + x) for finite x >= 0. */
TL_TARGET TL_INLINE f64_vec f64_log1p_of_positive(f64_vec x) {
    const f64_vec one = f64_set(1);
    f64_vec sum = f64_add(one, x), above = f64_sub(sum, one), log;
    f64_vec lost = f64_if_less(x, above, f64_sub(one, f64_sub(sum, x)), f64_sub(x, above));
    f64_log1p(x, sum, lost, f64_set(0), &log);
    return f64_if_less(f64_set(0x1p-54), x, log, x);
}

/* The logsumexp for a finite sum of exponentials in this dtype, perhaps of a short row. */
TL_TARGET TL_INLINE f64_vec f64_log_of_sum(f64_vec sum, f64_vec ref_exp, int dtype, int is_short, int has_subnormals) {
    const f64_vec zero = f64_set(0);
    if (dtype == TL_FLOAT64) { /* of a large sum it may be near 0: it would be the difference of two large numbers */
        f64_vec size = f64_and_bits(ref_exp, 0x7fffffffffffffffu);
        f64_vec in_sum = f64_if_less(f64_set(TL_LARGE_SUM), sum, ref_exp, zero);
        in_sum = f64_if_less(size, f64_set(64), in_sum, zero);
        sum = f64_mul(sum, f64_pow2(f64_plus_bits(f64_add(in_sum, f64_set(0x1.8p52)), 1023)));
        return f64_add(f64_mul(f64_sub(ref_exp, in_sum), f64_set(TL_LN2)), f64_log_of_finite(sum, has_subnormals));
    }
    f64_vec log_sum = f64_log_of_finite(sum, has_subnormals), above = f64_sub(log_sum, f64_set(TL_FLOAT_LARGE_LOG));
    above = f64_if_less(zero, above, f64_mul(above, f64_set(TL_FLOAT_LN2_ERROR)), zero);
    log_sum = f64_add(log_sum, f64_set(TL_FLOAT_TERM_BIAS));
    log_sum = is_short ? log_sum : f64_add(log_sum, above);
    return f64_add(f64_mul(ref_exp, f64_set(TL_FLOAT_LN2)), log_sum);
}

/* The integer nearest to a number below 2^51. */
TL_TARGET TL_INLINE f64_vec f64_nearest(f64_vec x) {
    const f64_vec rounder = f64_set(0x1.8p52);
    return f64_sub(f64_add(x, rounder), rounder);
}

/* The exponent and factor with which exp(x) 2^-exponent factor is softmax(x). */
TL_TARGET TL_INLINE f64_vec f64_softmax_factor(f64_vec logsumexp, int dtype, f64_vec *exponent) {
    const int is_double = dtype == TL_FLOAT64;
    f64_vec n = f64_nearest(f64_mul(logsumexp, f64_set(TL_LOG2E)));
    f64_vec log = f64_sub(f64_mul(n, f64_set(is_double ? TL_LN2 : TL_FLOAT_LN2)), logsumexp);
    log = f64_add(log, f64_set(is_double ? -0.0 : TL_FLOAT_TERM_BIAS));
    *exponent = f64_sub(n, f64_set(is_double ? TL_DOUBLE_KEPT_BITS : TL_FLOAT_KEPT_BITS));
    return f64_mul(f64_exp_of_any(log, 1), f64_set(is_double ? TL_DOUBLE_UNKEPT : TL_FLOAT_UNKEPT));
}

/* The reference exponent of tl_lse_begin for a maximum; 0 for one that is far out. */
TL_TARGET TL_INLINE f64_vec f64_exponent_near(f64_vec maximum) {
    const f64_vec zero = f64_set(0), size = f64_and_bits(maximum, 0x7fffffffffffffffu);
    f64_vec near = f64_if_less(f64_set(TL_MAX_EXACT_REDUCTION), size, zero, maximum);
    return f64_nearest(f64_mul(near, f64_set(TL_LOG2E)));
}

/* Entropy by the chain rule: H = p_others H(others) + H_b(p_others), where p_others = 1 - p(target) and H_b is the
 * entropy of the choice between the target and the others, whose losses are given. */
TL_TARGET TL_INLINE f64_vec f64_entropy(f64_vec log_odds, f64_vec nll, f64_vec others_nll, f64_vec of_others) {
    const f64_vec zero = f64_set(0), one = f64_set(1);
    f64_vec against = f64_exp(log_odds), both = f64_add(one, against), p = f64_div(one, both);
    f64_vec p_others = f64_if_less(f64_set(0x1p1000), against, one, f64_div(against, both));
    of_others = f64_add(f64_if_less(zero, of_others, of_others, zero), others_nll);
    of_others = f64_if_less(zero, p_others, f64_mul(p_others, of_others), zero);
    return f64_add(of_others, f64_if_less(zero, p, f64_mul(p, nll), zero));
}
