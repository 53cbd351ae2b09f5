/* Losses of rows for class ids, relative to the target's logit: included for float and double after exp_body.h, with
 * REAL, UINT and OP defined as there. With the target t,
 *
 *     nll = log1p(u),  u = sum over k != t of exp(x_k - x_t) = exp(-r_t) sum of 2^((j_k - j_t) / 8) exp(r_k),
 *
 * where j is the integer nearest to 8 x / ln 2 and r = x - j ln 2 / 8. Here u is exp(log-odds against the target). The
 * last sum needs no maximum: its terms are those of exp_body.h, with the target's 2^(j_t / 8) as their reference. What
 * rounding loses of the sum and of u is kept as a second number.
 *
 * A row is far out where x_t or u is not in a range that its own numbers decide, or nan. Its loss is then computed by
 * way of its logsumexp. */

/* The numbers of 16 lanes, and one such number in all lanes: to find the lane of a target. */
static const UINT OP(PLACES)[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

TL_TARGET TL_INLINE OP(bits) OP(set_place)(int64_t place) { return OP(set_bits)((UINT)place); }

/* j of a logit, as a number. */
TL_TARGET TL_INLINE OP(vec) OP(eighths_of)(OP(vec) x) {
    return OP(sub)(OP(fma)(x, OP(set)(OP(EIGHTHS)), OP(set)(OP(ROUNDER))), OP(set)(OP(ROUNDER)));
}

/* What exponentials need to be relative to a target, given its logit: see acc_init. Logits that lie further below than
 * OP(REACH) are raised to that, and add nothing that counts; with `clamps`, to one whose power is 0. */
TL_TARGET TL_INLINE OP(acc) OP(acc_for_target)(OP(vec) logit, int clamps) {
    OP(acc) acc = OP(acc_init)(0, 1, 0, 0);
    const REAL least = OP(ROUNDER) + (REAL)(GUARD - 8 * OP(LEAST_EXPONENT));
    acc.min_arg = OP(sub)(logit, OP(set)(clamps ? (REAL)((CLAMPED_EIGHTHS / 8.0 - OP(LEAST_EXPONENT)) * TL_LN2)
                                                : (REAL)OP(REACH)));
    acc.rounder = OP(sub)(OP(set)(least), OP(eighths_of)(logit));
    return acc;
}

/* u and what its rounding lost, from a sum of terms. Its factor is UNIT exp(-r_t), where UNIT (with UNIT_LOW) undoes
 * what all powers are multiplied by: computed as UNIT and a rest. */
TL_TARGET TL_INLINE OP(vec) OP(odds_of_sum)(OP(vec) logit, OP(vec) sum, OP(vec) lost, OP(vec) * low) {
    const OP(vec) unit = OP(set)(OP(UNIT));
    OP(vec) y = OP(fma)(OP(eighths_of)(logit), OP(set)(OP(LN2) / 8), OP(sub)(OP(set)(0), logit)); /* -r_t */
    OP(vec) rest = OP(set)(OP(EXP)[0]);
    for (size_t i = 1; i < sizeof OP(EXP) / sizeof OP(EXP)[0]; i++)
        rest = OP(fma)(rest, y, OP(set)(OP(EXP)[i]));
    rest = OP(mul)(OP(mul)(rest, y), unit);
    OP(vec) exp = OP(add)(unit, rest);
    OP(vec) exp_low = OP(add)(OP(sub)(rest, OP(sub)(exp, unit)), OP(set)(OP(UNIT_LOW)));
    OP(vec) u = OP(mul)(sum, exp), of_product = OP(fma)(sum, exp, OP(sub)(OP(set)(0), u));
    *low = OP(fma)(lost, exp, OP(fma)(sum, exp_low, of_product));
    return u;
}

/* Writes the losses of a vector of rows, and u. Returns the bits of the rows that are not far out. */
TL_TARGET TL_INLINE uint32_t OP(losses_of_vector)(OP(vec) logit, OP(vec) sum, OP(vec) lost, double *nll, double *odds) {
    const OP(vec) one = OP(set)(1), far = OP(set)((REAL)TL_MAX_EXACT_REDUCTION);
    f64_vec wide[OP(WIDTH) / f64_WIDTH];
    OP(vec) low, u = OP(odds_of_sum)(logit, sum, lost, &low), v = OP(add)(one, u);
    OP(vec) more = OP(max_keep_nan)(one, u), less = OP(min)(one, u);
    OP(log1p)(u, v, OP(add)(OP(sub)(less, OP(sub)(v, more)), low), low, nll);
    OP(widen)(u, wide);
    for (size_t i = 0; i < OP(WIDTH) / f64_WIDTH; i++)
        f64_store(odds + i * f64_WIDTH, wide[i]);
    return OP(mask_ge)(u, OP(set)(OP(LEAST_ODDS))) & OP(mask_ge)(OP(set)(OP(MOST_ODDS)), u) &
           OP(mask_ge)(far, logit) & OP(mask_ge)(logit, OP(sub)(OP(set)(0), far));
}

/* Few classes: a row in each lane ---------------------------------------------------------------------------------- */

/* Adds a number >= 0 to a sum, and what rounding loses. */
TL_TARGET TL_INLINE void OP(add_positive)(OP(vec) * sum, OP(vec) * lost, OP(vec) term) {
    OP(vec) after = OP(add)(*sum, term), more = OP(max_keep_nan)(*sum, term), less = OP(min)(*sum, term);
    *lost = OP(add)(*lost, OP(sub)(less, OP(sub)(after, more)));
    *sum = after;
}

/* The power of a class, 0 of the target; its rest is added to `rest`. */
TL_TARGET TL_INLINE OP(vec) OP(other_power)(OP(vec) x, const OP(acc) * acc, OP(vec) most, OP(bits) target, size_t k,
                                            OP(vec) * rest) {
    OP(exp_parts) exp = OP(exp_of)(OP(max_keep_nan)(acc->min_arg, OP(min)(most, x)), acc, 0);
    OP(vec) power = OP(zero_where_same)(target, OP(set_place)((int64_t)k), exp.power);
    *rest = OP(fma)(exp.q, OP(mul)(exp.r, power), *rest);
    return power;
}

/* The sum over the classes of a vector of rows but their targets; class k is at x[TL_GROUP k]. Powers are added in
 * pairs, and these to the sum with what rounding loses; rests as they are. */
TL_TARGET TL_INLINE OP(vec) OP(sum_of_few)(const REAL *x, size_t classes, OP(vec) logit, OP(bits) target,
                                           OP(vec) * lost) {
    const OP(acc) acc = OP(acc_for_target)(logit, 0);
    const OP(vec) most = OP(add)(logit, OP(set)((REAL)OP(REACH)));
    OP(vec) rest[2] = {OP(set)(0), OP(set)(0)}, sum = OP(set)(0), power;
    *lost = OP(set)(0);
    for (size_t k = 0; k < classes; k += 2) {
        power = OP(other_power)(OP(load)(x + TL_GROUP * k), &acc, most, target, k, &rest[0]);
        if (k + 1 < classes)
            power = OP(add)(power, OP(other_power)(OP(load)(x + TL_GROUP * (k + 1)), &acc, most, target, k + 1,
                                                   &rest[1]));
        if (k == 0)
            sum = power;
        else
            OP(add_positive)(&sum, lost, power);
    }
    *lost = OP(fma)(OP(add)(rest[0], rest[1]), OP(set)((REAL)OP(LEADING)), *lost);
    OP(vec) all = OP(add)(sum, *lost);
    *lost = OP(sub)(*lost, OP(sub)(all, sum));
    return all;
}

TL_TARGET TL_INLINE uint64_t OP(few_losses_of)(const REAL *groups, size_t rows, size_t classes, const double *logit,
                                               const int64_t *target, double *nll, double *odds) {
    OP(vec) sum[TL_BLOCK_ROWS / OP(WIDTH)], lost[TL_BLOCK_ROWS / OP(WIDTH)], at[TL_BLOCK_ROWS / OP(WIDTH)];
    UINT ids[TL_BLOCK_ROWS];
    uint64_t near = 0;
    for (size_t r = 0; r < rows; r++)
        ids[r] = (UINT)target[r];
    for (size_t r = 0; r < rows; r += OP(WIDTH)) {
        const REAL *x = groups + r / TL_GROUP * TL_GROUP * classes + r % TL_GROUP;
        at[r / OP(WIDTH)] = OP(load_narrowed)(logit + r);
        sum[r / OP(WIDTH)] =
            OP(sum_of_few)(x, classes, at[r / OP(WIDTH)], OP(load_bits)(ids + r), &lost[r / OP(WIDTH)]);
    }
    for (size_t r = 0; r < rows; r += OP(WIDTH))
        near |= (uint64_t)OP(losses_of_vector)(at[r / OP(WIDTH)], sum[r / OP(WIDTH)], lost[r / OP(WIDTH)], nll + r,
                                             odds + r) << r;
    return near;
}

TL_TARGET static uint64_t OP(few_losses)(const void *start, size_t rows, size_t classes, const double *logit,
                                         const int64_t *target, double *nll, double *odds) {
    const REAL *groups = (const REAL *)start;
    switch (classes) { /* loops that compilers unroll */
    case 2: return OP(few_losses_of)(groups, rows, 2, logit, target, nll, odds);
    case 3: return OP(few_losses_of)(groups, rows, 3, logit, target, nll, odds);
    case 4: return OP(few_losses_of)(groups, rows, 4, logit, target, nll, odds);
    case 5: return OP(few_losses_of)(groups, rows, 5, logit, target, nll, odds);
    default: return OP(few_losses_of)(groups, rows, classes, logit, target, nll, odds);
    }
}

/* More classes: sum_others of dtype_body.h adds along the classes of a row, in 16 lanes of double ------------------ */

TL_TARGET static uint64_t OP(losses_of_sums)(const double *logit, const double *sum, size_t rows, double *nll,
                                             double *odds) {
    uint64_t near = 0;
    for (size_t r = 0; r < rows; r += OP(WIDTH)) {
        f64_vec wide[OP(WIDTH) / f64_WIDTH];
        OP(vec) total = OP(load_narrowed)(sum + r);
        OP(widen)(total, wide);
        for (size_t i = 0; i < OP(WIDTH) / f64_WIDTH; i++)
            wide[i] = f64_sub(f64_load(sum + r + i * f64_WIDTH), wide[i]);
        near |= (uint64_t)OP(losses_of_vector)(OP(load_narrowed)(logit + r), total, OP(narrow)(wide), nll + r,
                                             odds + r) << r;
    }
    return near;
}
