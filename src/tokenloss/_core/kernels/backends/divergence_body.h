/* Sums over the classes for divergences of two distributions p and q, whose logsumexps are known: included for float
 * and double after exp_body.h, with REAL and OP defined as there.
 *
 * Of each logit, the root of the probability is computed, a = sqrt(p) = exp((x - logsumexp) / 2), as a power and a rest
 * as in exp_body.h. Then p - q = (a - b) (a + b), where a - b keeps its relative digits: equal powers vanish, and so do
 * neighbouring ones without rounding. All divergences are of degree 1 in (p, q), so a common factor of all p and q
 * does not matter: it vanishes as sums are divided by that of p + q. With t = p - q, s = p + q and u = t / s:
 *
 *     total variation   |t|
 *     Hellinger         (a - b)^2
 *     KL(q || p)        t + q log(q / p), which is never negative, and does not change to first order if a logsumexp is
 *                       slightly wrong
 *     Jensen-Shannon    s ((1 + u) log(1 + u) + (1 - u) log(1 - u)) = t u P(u^2) up to |u| = 1/2. Beyond, with the ratio
 *                       v of the smaller to the larger, 2 (s (log 2 - v Q(v)) - min(p, q) |log(p / q)|) */

/* What a row needs: as acc_init, of quarters. */
typedef struct {
    OP(vec) rounder, min_arg, rest;
} OP(root_acc);

typedef struct {
    OP(vec) k, r, power, rest;
} OP(root);

TL_TARGET TL_INLINE OP(root_acc) OP(root_init)(const tl_divergence_side *of) {
    const int64_t first = 8 * (OP(ROOT_SCALE) - OP(LEAST_EXPONENT));
    const double least = of->quarters - (double)(first + CLAMPED_EIGHTHS);
    OP(root_acc)
    acc = {OP(set)(OP(ROUNDER) + (REAL)((double)(GUARD + first) - of->quarters)),
           OP(set)((REAL)(least * (TL_LN2 / 4))), OP(set)((REAL)of->rest)};
    return acc;
}

/* The root of a probability, which is its power and its rest. */
TL_TARGET TL_INLINE OP(root) OP(root_of)(OP(vec) x, const OP(root_acc) * acc, OP(table) powers) {
    OP(root) of;
    OP(vec) bounded = OP(max_keep_nan)(acc->min_arg, x), factor = OP(set)(OP(ROOT)[0]);
    of.k = OP(fma)(bounded, OP(set)(OP(EIGHTHS) / 2), acc->rounder);
    of.r = OP(sub)(OP(fma)(OP(sub)(of.k, acc->rounder), OP(set)(-OP(LN2) / 4), bounded), acc->rest);
    of.power = OP(zero_if_negative)(OP(power)(of.k, powers));
    for (size_t i = 1; i < sizeof OP(ROOT) / sizeof OP(ROOT)[0]; i++)
        factor = OP(fma)(factor, of.r, OP(set)(OP(ROOT)[i]));
    of.rest = OP(mul)(OP(mul)(of.r, of.power), factor);
    return of;
}

TL_TARGET TL_INLINE OP(vec) OP(sum_of_four)(const OP(vec) * x) {
    return OP(add)(OP(add)(x[0], x[1]), OP(add)(x[2], x[3]));
}

/* Terms of four vectors of classes. */
typedef struct {
    OP(vec) p[4], q[4], both[4], difference[4], size[4], log_ratio[4]; /* of q / p */
} OP(divergence_terms);

/* The terms of the Jensen-Shannon divergence. */
TL_TARGET TL_INLINE OP(vec) OP(sum_of_js)(const OP(divergence_terms) * of) {
    const OP(vec) least = OP(set)(OP(LEAST_NORMAL)), half = OP(set)((REAL)0.5), zero = OP(set)(0);
    OP(vec) term[4], above[4], most = zero;
    for (size_t i = 0; i < 4; i++) {
        OP(vec) u = OP(div)(of->difference[i], OP(max_skip_nan)(of->both[i], least)), z = OP(mul)(u, u);
        OP(vec) factor = OP(set)(OP(JS_NEAR)[0]);
        for (size_t k = 1; k < sizeof OP(JS_NEAR) / sizeof OP(JS_NEAR)[0]; k++)
            factor = OP(fma)(factor, z, OP(set)(OP(JS_NEAR)[k]));
        term[i] = OP(mul)(OP(mul)(of->difference[i], u), factor);
        above[i] = OP(sub)(of->size[i], OP(mul)(of->both[i], half));
        most = OP(max_skip_nan)(above[i], most);
    }
    if (OP(mask_ge)(most, least))
        for (size_t i = 0; i < 4; i++) {
            OP(vec) less = OP(min)(of->p[i], of->q[i]), more = OP(max_skip_nan)(of->p[i], of->q[i]);
            OP(vec) v = OP(div)(less, OP(max_skip_nan)(more, least)), factor = OP(set)(OP(LOG1P_NEAR)[0]);
            for (size_t k = 1; k < sizeof OP(LOG1P_NEAR) / sizeof OP(LOG1P_NEAR)[0]; k++)
                factor = OP(fma)(factor, v, OP(set)(OP(LOG1P_NEAR)[k]));
            OP(vec) log = OP(sub)(OP(set)((REAL)TL_LN2), OP(mul)(v, factor));
            OP(vec) distance = OP(and_bits)(of->log_ratio[i], OP(SIZE_BITS));
            OP(vec) far = OP(sub)(OP(mul)(of->both[i], log), OP(mul)(less, distance));
            term[i] = OP(if_less)(above[i], least, term[i], OP(add)(far, far));
        }
    return OP(sum_of_four)(term);
}

/* Adds a multiple of 64 classes. Returns whether logits of p are -inf, or too small for the dtype. */
TL_TARGET TL_INLINE int OP(add_divergences)(const REAL *x, const REAL *y, size_t count, tl_divergence_acc *acc,
                                            int wanted) {
    const OP(root_acc) of_p = OP(root_init)(&acc->base), of_q = OP(root_init)(&acc->other);
    const OP(table) powers = OP(load_powers)(OP(POWERS), GUARD);
    const OP(vec) floor = OP(set)(-OP(OTHER_LIMIT)), zero = OP(set)(0);
    const OP(vec) apart = OP(set)((REAL)(acc->other.log - acc->base.log));
    const int needs_log = wanted & (TL_REVERSE_KL | TL_JS);
    OP(vec) smallest = zero;
    tl_lanes sums[TL_DIVERGENCE_SUMS];
    for (size_t k = 0; k < TL_DIVERGENCE_SUMS; k++)
        sums[k] = f64_load_lanes(acc->sum[k], acc->comp[k]);
    for (size_t start = 0; start < count; start += 64)
        for (size_t j = 0; j < 16; j += OP(WIDTH)) {
            OP(divergence_terms) of;
            OP(vec) reverse[4], squares[4];
            for (size_t i = 0; i < 4; i++) {
                OP(vec) given = OP(load)(x + start + 16 * i + j), other = OP(load)(y + start + 16 * i + j);
                OP(root) p = OP(root_of)(given, &of_p, powers), q = OP(root_of)(other, &of_q, powers);
                OP(vec) a = OP(add)(p.power, p.rest), b = OP(add)(q.power, q.rest);
                OP(vec) between = OP(add)(OP(sub)(p.power, q.power), OP(sub)(p.rest, q.rest));
                of.p[i] = OP(mul)(a, a);
                of.q[i] = OP(mul)(b, b);
                of.both[i] = OP(add)(of.p[i], of.q[i]);
                of.difference[i] = OP(mul)(between, OP(add)(a, b));
                of.size[i] = OP(and_bits)(of.difference[i], OP(SIZE_BITS));
                squares[i] = OP(mul)(between, between);
                if (needs_log)
                    of.log_ratio[i] = OP(fma)(OP(sub)(q.k, p.k), OP(set)(OP(LN2) / 4), OP(sub)(q.r, p.r));
                if (wanted & TL_REVERSE_KL) {
                    OP(vec) far = OP(sub)(OP(max_keep_nan)(floor, other), OP(max_keep_nan)(floor, given));
                    far = OP(if_less)(given, of_p.min_arg, OP(sub)(far, apart), of.log_ratio[i]);
                    reverse[i] = OP(fma)(of.q[i], far, of.difference[i]);
                    smallest = OP(min)(smallest, given);
                }
            }
            OP(accumulate)(&sums[TL_SUM_OF_BOTH], j, OP(sum_of_four)(of.both));
            if (wanted & TL_TV)
                OP(accumulate)(&sums[TL_SUM_OF_TV], j, OP(sum_of_four)(of.size));
            if (wanted & TL_HELLINGER)
                OP(accumulate)(&sums[TL_SUM_OF_HELLINGER], j, OP(sum_of_four)(squares));
            if (wanted & TL_REVERSE_KL)
                OP(accumulate)(&sums[TL_SUM_OF_REVERSE_KL], j, OP(sum_of_four)(reverse));
            if (wanted & TL_JS)
                OP(accumulate)(&sums[TL_SUM_OF_JS], j, OP(sum_of_js)(&of));
        }
    for (size_t k = 0; k < TL_DIVERGENCE_SUMS; k++)
        f64_store_lanes(&sums[k], acc->sum[k], acc->comp[k]);
    return (wanted & TL_REVERSE_KL) && OP(mask_ge)(floor, smallest);
}

TL_TARGET static int OP(divergences)(const void *base, const void *other, size_t count, tl_divergence_acc *acc) {
    const REAL *x = (const REAL *)base, *y = (const REAL *)other;
    if (acc->wanted == TL_TV)
        return OP(add_divergences)(x, y, count, acc, TL_TV);
    if (!(acc->wanted & TL_JS))
        return OP(add_divergences)(x, y, count, acc, TL_TV | TL_HELLINGER | TL_REVERSE_KL);
    return OP(add_divergences)(x, y, count, acc, TL_TV | TL_HELLINGER | TL_REVERSE_KL | TL_JS);
}
