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

/* Writes the losses of a vector of rows, and u unless `odds` is NULL. Returns the bits of the rows that are not far out. */
TL_TARGET TL_INLINE uint32_t OP(losses_of_vector)(OP(vec) logit, OP(vec) sum, OP(vec) lost, double *nll, double *odds) {
    const OP(vec) one = OP(set)(1), far = OP(set)((REAL)TL_MAX_EXACT_REDUCTION);
    OP(vec) low, u = OP(odds_of_sum)(logit, sum, lost, &low), v = OP(add)(one, u);
    OP(vec) more = OP(max_keep_nan)(one, u), less = OP(min)(one, u);
    OP(log1p)(u, v, OP(add)(OP(sub)(less, OP(sub)(v, more)), low), low, nll);
    if (odds)
        OP(store_f64)(odds, u);
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
    OP(vec) power = OP(if_same)(target, OP(set_bits)((UINT)k), OP(set)(0), exp.power);
    *rest = OP(fma)(exp.q, OP(mul)(exp.r, power), *rest);
    return power;
}

#define OF_CLASS(x, k) OP(load)((const REAL *)(const void *)((x) + (ptrdiff_t)(k) * stride))
#define POWER_OF_CLASS(k, i) OP(other_power)(OF_CLASS(x, k), &acc, most, target, k, &rest[i])
#define PAIR_OF_POWERS(k) OP(add)(POWER_OF_CLASS(k, 0), POWER_OF_CLASS((k) + 1, 1))

/* The logits of the targets of a vector of rows: chosen among those of all classes, or read one by one. An id that is no
 * class stands for class 0 here, or for no class in double. */
TL_TARGET TL_INLINE OP(vec) OP(logits_of_few)(const char *x, ptrdiff_t stride, size_t classes, const UINT *ids) {
    REAL logit[OP(WIDTH)];
    if (classes <= 12) {
        const OP(bits) target = OP(load_bits)(ids);
        OP(vec) at = OF_CLASS(x, 0);
        for (size_t k = 1; k < classes; k++)
            at = OP(if_same)(target, OP(set_bits)((UINT)k), OF_CLASS(x, k), at);
        return at;
    }
    for (size_t r = 0; r < OP(WIDTH); r++) {
        ptrdiff_t k = ids[r] < classes ? (ptrdiff_t)ids[r] : 0;
        memcpy(&logit[r], x + k * stride + (ptrdiff_t)(r * sizeof(REAL)), sizeof(REAL));
    }
    return OP(load)(logit);
}

/* The sum over the classes of a vector of rows but their targets; class k is k strides after x. Powers are added in
 * pairs, and these to the sum with what rounding loses; rests as they are. */
TL_TARGET TL_INLINE OP(vec) OP(sum_of_few)(const char *x, ptrdiff_t stride, size_t classes, OP(vec) logit,
                                           OP(bits) target, OP(vec) * lost) {
    const OP(acc) acc = OP(acc_for_target)(logit, 0);
    const OP(vec) most = OP(add)(logit, OP(set)((REAL)OP(REACH)));
    OP(vec) rest[2] = {OP(set)(0), OP(set)(0)}, low = OP(set)(0), sum;
    if (classes == 2) { /* the other one alone: the target's power and rest are 0 */
        OP(vec) other = OP(if_same)(target, OP(set_place)(1), OF_CLASS(x, 0), OF_CLASS(x, 1));
        sum = OP(other_power)(other, &acc, most, target, 2, &rest[0]);
    } else {
        sum = PAIR_OF_POWERS(0);
        for (size_t k = 2; k + 1 < classes; k += 2)
            OP(add_positive)(&sum, &low, PAIR_OF_POWERS(k));
        if (classes % 2)
            OP(add_positive)(&sum, &low, POWER_OF_CLASS(classes - 1, 0));
    }
    low = OP(fma)(OP(add)(rest[0], rest[1]), OP(set)((REAL)OP(LEADING)), low);
    OP(vec) all = OP(add)(sum, low);
    *lost = OP(sub)(low, OP(sub)(all, sum));
    return all;
}

#undef OF_CLASS
#undef POWER_OF_CLASS
#undef PAIR_OF_POWERS

TL_TARGET TL_INLINE uint64_t OP(few_losses_of)(const tl_few_rows *rows, size_t count, size_t classes,
                                               const int64_t *target, double *logit, double *nll, double *odds) {
    UINT ids[TL_BLOCK_ROWS];
    uint64_t near = 0;
    for (size_t r = 0; r < count; r++)
        ids[r] = (UINT)target[r];
    for (size_t r = 0; r < count; r += OP(WIDTH)) { /* processors work on several of these at a time */
        const char *x = rows->data + r / TL_GROUP * rows->group_bytes + r % TL_GROUP * sizeof(REAL);
        OP(vec) lost, at = OP(logits_of_few)(x, rows->class_stride, classes, ids + r);
        OP(vec) sum = OP(sum_of_few)(x, rows->class_stride, classes, at, OP(load_bits)(ids + r), &lost);
        near |= (uint64_t)OP(losses_of_vector)(at, sum, lost, nll + r, odds ? odds + r : NULL) << r;
        if (logit)
            OP(store_f64)(logit + r, at);
    }
    return near;
}

TL_TARGET static uint64_t OP(few_losses)(const tl_few_rows *rows, size_t count, const int64_t *target, double *logit,
                                         double *nll, double *odds) {
    switch (rows->classes) { /* loops that compilers unroll */
    case 2: return OP(few_losses_of)(rows, count, 2, target, logit, nll, odds);
    case 3: return OP(few_losses_of)(rows, count, 3, target, logit, nll, odds);
    default: return OP(few_losses_of)(rows, count, rows->classes, target, logit, nll, odds);
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
