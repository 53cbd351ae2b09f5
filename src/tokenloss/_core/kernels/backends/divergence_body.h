/* Sums over the classes for divergences of two distributions p and q, whose logsumexps are known.
 *
 * For each logit, the probability's root is computed, a = sqrt(p) = exp((x - logsumexp) / 2), as a power and a rest
 * as in exp_body.h. Then d = a - b keeps its relative digits: equal powers vanish, and so do neighbouring ones, without
 * rounding. With t = p - q = d (a + b), m = 2 (p + q) = d^2 + (a + b)^2, u = |t| / m and l = log(q / p), the terms are
 *
 *     total variation   |t|
 *     Hellinger         d^2
 *     KL(q || p)        2 (t + q l) = m l^3 REVERSE(l^2) - t l
 *     Jensen-Shannon    m / 2 ((1 + 2 u) log(1 + 2 u) + (1 - 2 u) log(1 - 2 u))
 *                       = m l^2 JS(l^2) = m log(1 + 2 u) - 2 min(p, q) |l|
 *
 * The last two are near ones, by the polynomials, up to |l| = 1.1, and far ones beyond. No term is negative. But for |t|,
 * an error of a logsumexp does not change them to first order where p is near q. All are of degree 1 in (p, q), so a
 * common factor of all p and q vanishes as sums are divided by that of m. */

/* What a row needs: as acc_init, of quarters. */
typedef struct {
    OP(vec) rounder, min_arg, rest;
} OP(root_acc);

typedef struct {
    OP(vec) k, r, power, rest;
} OP(root);

/* What two rows need: besides, their logsumexps as far as REAL holds them, and the difference of what is left. */
typedef struct {
    OP(root_acc) base, other;
    OP(vec) base_log, other_log, rest;
} OP(pair_acc);

/* Of the logsumexp of the row in each lane. For float32, as elsewhere, exponentials take the float nearest to ln 2. */
TL_TARGET TL_INLINE OP(root_acc) OP(root_init)(const double *log) {
    const double first = 8 * (OP(ROOT_SCALE) - OP(LEAST_EXPONENT));
    const f64_vec rounder = f64_set(0x1.8p52);
    f64_vec eighths[PARTS], least[PARTS], rest[PARTS];
    for (size_t i = 0; i < PARTS; i++) {
        f64_vec x = f64_load(log + i * f64_WIDTH), quarters = f64_mul(x, f64_set(OP(QUARTERS)));
        quarters = f64_sub(f64_add(quarters, rounder), rounder);
        eighths[i] = f64_sub(f64_set(GUARD + first), quarters);
        least[i] = f64_mul(f64_sub(quarters, f64_set(first + CLAMPED_EIGHTHS)), f64_set(TL_LN2 / 4));
        rest[i] = f64_sub(f64_sub(x, f64_mul(quarters, f64_set(OP(LN2_HIGH) / 4))),
                          f64_mul(quarters, f64_set(OP(LN2_LOW) / 4)));
    }
    OP(root_acc) acc = {OP(add)(OP(set)(OP(ROUNDER)), OP(narrow)(eighths)), OP(narrow)(least), OP(narrow)(rest)};
    return acc;
}

/* The root of a probability, which is its power and its rest. */
TL_TARGET TL_INLINE OP(root) OP(root_of)(OP(vec) x, const OP(root_acc) * acc, OP(table) powers, int clamps) {
    OP(root) of;
    OP(vec) bounded = clamps ? OP(max_keep_nan)(acc->min_arg, x) : x, factor = OP(set)(OP(ROOT)[0]);
    of.k = OP(fma)(bounded, OP(set)(OP(EIGHTHS) / 2), acc->rounder);
    of.r = OP(sub)(OP(fma)(OP(sub)(of.k, acc->rounder), OP(set)(-OP(LN2) / 4), bounded), acc->rest);
    of.power = OP(power)(of.k, powers);
    if (clamps)
        of.power = OP(zero_if_negative)(of.power);
    for (size_t i = 1; i < sizeof OP(ROOT) / sizeof OP(ROOT)[0]; i++)
        factor = OP(fma)(factor, of.r, OP(set)(OP(ROOT)[i]));
    of.rest = OP(mul)(OP(mul)(of.r, of.power), factor);
    return of;
}

TL_TARGET TL_INLINE OP(vec) OP(sum_of_four)(const OP(vec) * x) {
    return OP(add)(OP(add)(x[0], x[1]), OP(add)(x[2], x[3]));
}

/* For four vectors of classes: a, b, t, l and l^2, and the terms of each sum. */
typedef struct {
    OP(vec) a[4], b[4], difference[4], log[4], log_square[4], term[TL_DIVERGENCE_SUMS][4];
} OP(divergence_terms);

/* Sets the terms of vector i that need no logarithm, and the logarithm. */
TL_TARGET TL_INLINE void OP(set_terms)(OP(divergence_terms) * of, size_t i, OP(vec) given, OP(vec) other,
                                       const OP(pair_acc) * acc, OP(table) powers, int clamps) {
    OP(root) p = OP(root_of)(given, &acc->base, powers, clamps), q = OP(root_of)(other, &acc->other, powers, clamps);
    OP(vec) between = OP(add)(OP(sub)(p.power, q.power), OP(sub)(p.rest, q.rest));
    of->a[i] = OP(add)(p.power, p.rest);
    of->b[i] = OP(add)(q.power, q.rest);
    OP(vec) sum = OP(add)(of->a[i], of->b[i]);
    of->term[TL_SUM_OF_HELLINGER][i] = OP(mul)(between, between);
    of->difference[i] = OP(mul)(between, sum);
    of->term[TL_SUM_OF_TV][i] = OP(and_bits)(of->difference[i], OP(SIZE_BITS));
    of->term[TL_SUM_OF_BOTH][i] = OP(fma)(sum, sum, of->term[TL_SUM_OF_HELLINGER][i]);
    of->log[i] = OP(fma)(OP(sub)(q.k, p.k), OP(set)(OP(LN2) / 4), OP(sub)(q.r, p.r));
    if (clamps) { /* where p is 0, and q may not be */
        const OP(vec) floor = OP(set)(-OP(OTHER_LIMIT));
        OP(vec) far_p = OP(sub)(OP(max_keep_nan)(floor, given), acc->base_log);
        OP(vec) far_q = OP(sub)(OP(max_keep_nan)(floor, other), acc->other_log);
        of->log[i] = OP(if_less)(given, acc->base.min_arg, OP(sub)(OP(sub)(far_q, far_p), acc->rest), of->log[i]);
    }
}

/* The logit under q of a class that is impossible only under p, if it is above `before`. */
TL_TARGET TL_INLINE OP(vec) OP(most_unmatched)(OP(vec) given, OP(vec) other, OP(vec) before) {
    return OP(max_skip_nan)(OP(if_less)(given, OP(set)(-OP(OTHER_LIMIT)), other, before), before);
}

/* Replaces near terms by far ones where these are right, of `count` vectors. */
TL_TARGET TL_INLINE void OP(set_far_terms)(OP(divergence_terms) * of, size_t count, OP(vec) limit, int wanted) {
    for (size_t i = 0; i < count; i++) {
        const OP(vec) both = of->term[TL_SUM_OF_BOTH][i], size = of->term[TL_SUM_OF_TV][i];
        OP(vec) *reverse = &of->term[TL_SUM_OF_REVERSE_KL][i], *js = &of->term[TL_SUM_OF_JS][i];
        OP(vec) far = OP(fma)(OP(mul)(of->b[i], of->b[i]), of->log[i], of->difference[i]);
        *reverse = OP(if_less)(of->log_square[i], limit, *reverse, OP(add)(far, far));
        if (!(wanted & TL_JS))
            continue;
        OP(vec) u = OP(div)(size, OP(max_skip_nan)(both, OP(set)(OP(LEAST_NORMAL))));
        OP(vec) x = OP(sub)(u, OP(set)((REAL)0.375)), log = OP(set)(OP(JS_FAR)[0]);
        for (size_t k = 1; k < sizeof OP(JS_FAR) / sizeof OP(JS_FAR)[0]; k++)
            log = OP(fma)(log, x, OP(set)(OP(JS_FAR)[k]));
        OP(vec) less = OP(min)(of->a[i], of->b[i]);
        less = OP(mul)(OP(mul)(less, less), OP(and_bits)(of->log[i], OP(SIZE_BITS)));
        *js = OP(if_less)(of->log_square[i], limit, *js, OP(sub)(OP(mul)(both, log), OP(add)(less, less)));
    }
}

/* Sets the terms that need a logarithm, of `count` vectors. */
TL_TARGET TL_INLINE void OP(set_log_terms)(OP(divergence_terms) * of, size_t count, int wanted) {
    const OP(vec) limit = OP(set)((REAL)1.21);
    OP(vec) most = OP(set)(0);
    for (size_t i = 0; i < count; i++) {
        OP(vec) y = OP(mul)(of->log[i], of->log[i]), of_y = OP(mul)(of->term[TL_SUM_OF_BOTH][i], y);
        OP(vec) reverse = OP(set)(OP(REVERSE_NEAR)[0]), js = OP(set)(OP(JS_NEAR)[0]);
        for (size_t k = 1; k < sizeof OP(REVERSE_NEAR) / sizeof OP(REVERSE_NEAR)[0]; k++)
            reverse = OP(fma)(reverse, y, OP(set)(OP(REVERSE_NEAR)[k]));
        reverse = OP(sub)(OP(mul)(reverse, of_y), of->difference[i]);
        of->term[TL_SUM_OF_REVERSE_KL][i] = OP(mul)(reverse, of->log[i]);
        for (size_t k = 1; k < sizeof OP(JS_NEAR) / sizeof OP(JS_NEAR)[0]; k++)
            js = OP(fma)(js, y, OP(set)(OP(JS_NEAR)[k]));
        of->term[TL_SUM_OF_JS][i] = OP(mul)(js, of_y);
        of->log_square[i] = y;
        most = OP(max_skip_nan)(y, most);
    }
    if (OP(mask_ge)(most, limit))
        OP(set_far_terms)(of, count, limit, wanted);
}

/* Adds a multiple of 64 classes. Returns whether a class may be impossible only under p: a logit of -inf, or one that
 * is too small for the dtype; -1, with nothing added, if logits are not clamped and one would have to be. */
TL_TARGET TL_INLINE int OP(add_divergences)(const REAL *x, const REAL *y, size_t count, tl_divergence_acc *acc,
                                            int wanted, int clamps) {
    const REAL log_p = (REAL)acc->base, log_q = (REAL)acc->other;
    double base[OP(WIDTH)], of_other[OP(WIDTH)];
    for (size_t i = 0; i < OP(WIDTH); i++) {
        base[i] = acc->base;
        of_other[i] = acc->other;
    }
    const OP(pair_acc)
    of_pair = {OP(root_init)(base), OP(root_init)(of_other), OP(set)(log_p), OP(set)(log_q),
               OP(set)((REAL)((acc->other - (double)log_q) - (acc->base - (double)log_p)))};
    const OP(table) powers = OP(load_powers)(OP(POWERS), GUARD);
    OP(vec) least = OP(set)((REAL)INFINITY), least_other = least, unmatched = OP(sub)(OP(set)(0), least);
    tl_lanes sums[TL_DIVERGENCE_SUMS];
    for (size_t k = 0; k < TL_DIVERGENCE_SUMS; k++)
        sums[k] = f64_load_lanes(acc->sum[k], acc->comp[k]);
    for (size_t start = 0; start < count; start += 64)
        for (size_t j = 0; j < 16; j += OP(WIDTH)) {
            OP(divergence_terms) of;
            for (size_t i = 0; i < 4; i++) {
                OP(vec) given = OP(load)(x + start + 16 * i + j), other = OP(load)(y + start + 16 * i + j);
                OP(set_terms)(&of, i, given, other, &of_pair, powers, clamps);
                if (clamps)
                    unmatched = OP(most_unmatched)(given, other, unmatched);
                least = OP(min)(least, given);
                least_other = OP(min)(least_other, other);
            }
            if (wanted & (TL_REVERSE_KL | TL_JS))
                OP(set_log_terms)(&of, 4, wanted);
            for (int k = 0; k < TL_DIVERGENCE_SUMS; k++)
                if (TL_WANTS_SUM(wanted, k))
                    OP(accumulate)(&sums[k], j, OP(sum_of_four)(of.term[k]));
        }
    if (!clamps && (OP(mask_ge)(of_pair.base.min_arg, least) || OP(mask_ge)(of_pair.other.min_arg, least_other)))
        return -1;
    for (size_t k = 0; k < TL_DIVERGENCE_SUMS; k++)
        f64_store_lanes(&sums[k], acc->sum[k], acc->comp[k]);
    return clamps && OP(mask_ge)(unmatched, OP(set)(OP(LOWEST)));
}

TL_TARGET static int OP(divergences)(const void *base, const void *other, size_t count, tl_divergence_acc *acc) {
    enum { BUT_JS = TL_TV | TL_HELLINGER | TL_REVERSE_KL };
    const REAL *x = (const REAL *)base, *y = (const REAL *)other;
    int found = -1;
    if (!acc->clamps && count % TL_CHUNK == 0) {
        if (acc->wanted == TL_TV)
            found = OP(add_divergences)(x, y, count, acc, TL_TV, 0);
        else if (acc->wanted & TL_JS)
            found = OP(add_divergences)(x, y, count, acc, BUT_JS | TL_JS, 0);
        else
            found = OP(add_divergences)(x, y, count, acc, BUT_JS, 0);
        acc->clamps = found < 0; /* a row that has such logits may have more */
    }
    if (found < 0 && acc->wanted == TL_TV)
        return OP(add_divergences)(x, y, count, acc, TL_TV, 1);
    return found < 0 ? OP(add_divergences)(x, y, count, acc, BUT_JS | TL_JS, 1) : found;
}
