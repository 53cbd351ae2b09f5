/* Losses of rows for class ids, relative to the target's logit. With the target t,
 *
 *     nll = log1p(u),  u = sum over k != t of exp(x_k - x_t) = exp(-r_t) sum of 2^((j_k - j_t) / 8) exp(r_k),
 *
 * where j is the integer nearest to 8 x / ln 2 and r = x - j ln 2 / 8. Here u is exp(log-odds against the target). The
 * last sum needs no maximum: its terms are those of exp_body.h, with the target's 2^(j_t / 8) as their reference. What
 * rounding loses of the sum and of u is kept as a second number.
 *
 * A row is far out where x_t or u is not in a range that its own numbers decide, or nan. Its loss is then computed by
 * way of its logsumexp. */

/* Masks for the classes of a chunk: all bits for the target, if its place is in the chunk, else 0. Has no branch. */
static const UINT OP(AT_TARGET)[2 * TL_CHUNK] = {[TL_CHUNK] = (UINT)-1};
TL_INLINE const UINT *OP(at_target)(int64_t target) {
    return OP(AT_TARGET) + ((TL_CHUNK - (uint64_t)target) & (0 - (uint64_t)((uint64_t)target < TL_CHUNK)));
}

/* j of a logit, as a number. */
TL_TARGET TL_INLINE OP(vec) OP(eighths_of)(OP(vec) x) {
    return OP(sub)(OP(fma)(x, OP(set)(OP(EIGHTHS)), OP(set)(OP(ROUNDER))), OP(set)(OP(ROUNDER)));
}

/* What exponentials need to be relative to a target, given its logit: see acc_init. Logits that lie further below than
 * OP(REACH) are to be raised to that, and add nothing that counts; with `clamps`, to one whose power is 0. k is larger
 * by `guard`, a multiple of 4 (of 8 for double). */
TL_TARGET TL_INLINE OP(acc) OP(acc_for_target)(OP(vec) logit, int clamps, int guard) {
    OP(acc) acc = OP(acc_init)(0, 1, 0, 0);
    const REAL least = OP(ROUNDER) + (REAL)(guard - 8 * OP(LEAST_EXPONENT));
    acc.powers = OP(load_powers)(OP(POWERS) + guard % 8, guard);
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

/* Finds the losses of a vector of rows; returns u. */
TL_TARGET TL_INLINE OP(vec) OP(losses_of_vector)(OP(vec) logit, OP(vec) sum, OP(vec) lost, f64_vec *nll) {
    const OP(vec) one = OP(set)(1);
    OP(vec) low, u = OP(odds_of_sum)(logit, sum, lost, &low), v = OP(add)(one, u);
    OP(vec) more = OP(max_keep_nan)(one, u), less = OP(min)(one, u);
    OP(log1p)(u, v, OP(add)(OP(sub)(less, OP(sub)(v, more)), low), low, nll);
    return u;
}

/* The bits of the rows that are not far out, and whose u is not below `least`. */
TL_TARGET TL_INLINE uint32_t OP(near_rows)(OP(vec) logit, OP(vec) u, double least) {
    const OP(vec) far = OP(set)((REAL)TL_MAX_EXACT_REDUCTION);
    return OP(mask_ge)(u, OP(set)((REAL)least)) & OP(mask_ge)(OP(set)(OP(MOST_ODDS)), u) & OP(mask_ge)(far, logit) &
           OP(mask_ge)(logit, OP(sub)(OP(set)(0), far));
}

/* The power of another class, whose rest is added to `rest`; 0 where the class is the target. */
TL_TARGET TL_INLINE OP(vec) OP(other_power)(OP(vec) x, const OP(acc) * acc, int clamps, int has_target, OP(bits) target,
                                            OP(bits) place, OP(vec) * k, OP(vec) * rest) {
    const OP(exp_parts) exp = OP(exp_of)(OP(max_keep_nan)(acc->min_arg, x), acc, clamps);
    OP(vec) power = has_target ? OP(if_same)(target, place, OP(set)(0), exp.power) : exp.power;
    *rest = OP(fma)(exp.q, OP(mul)(exp.r, power), *rest);
    *k = exp.k;
    return power;
}

/* Adds the powers of a group of classes to lanes of double: as a tree at first. */
TL_TARGET TL_INLINE void OP(add_powers)(OP(vec) * power, size_t lane, tl_lanes *sum) {
    for (size_t half = OP(TERMS) / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            power[i] = OP(add)(power[i], power[i + half]);
    OP(accumulate)(sum, lane, power[0]);
}

/* Few classes: a row in each lane ---------------------------------------------------------------------------------- */

/* Vectors of rows that are worked on together, one from each of as many groups: x[u], whose class k is k strides on. */
#define EACH_VECTOR UNROLLED for (size_t u = 0; u < together; u++)
#define OF_CLASS(x, k) OP(load)((const REAL *)(const void *)((x) + (ptrdiff_t)(k) * stride))
#define OTHER_POWER(x, id, i) \
    OP(other_power)(OP(min)(most[u], x), &acc[u], 0, 1, target[u], OP(set_bits)((UINT)(id)), &unused, &rest[u][i])
#define POWER_OF_CLASS(k, i) OTHER_POWER(OF_CLASS(x[u], k), k, i)
#define PAIR_OF_POWERS(k) OP(add)(POWER_OF_CLASS(k, 0), POWER_OF_CLASS((k) + 1, 1))
#define PREFETCH_SHARE(start, end) \
    EACH_VECTOR for (size_t at = (start) * sizeof(OP(vec)); rows && at < (end) * sizeof(OP(vec)); at += 64) \
        tl_prefetch_stream(rows + u * TL_GROUP * classes * sizeof(REAL) + at)

/* The masses of class k of a vector of rows, as they are or effective ones. */
TL_TARGET TL_INLINE void OP(load_effective)(const char *at, size_t k, const tl_weighing *weighing, f64_vec *mass) {
    OP(load_widened)((const REAL *)(const void *)at, mass);
    for (size_t i = 0; weighing && i < PARTS; i++)
        mass[i] = f64_effective_mass(mass[i], weighing->share, weighing->each, f64_set(weighing->weight[k]));
}

/* Finds the targets of given ids, and their logits: chosen among those of all classes, or read one by one. An id that
 * is no class means class 0 here, and adds a sign bit to `bad`. */
TL_TARGET TL_INLINE void OP(targets_of_few)(const char *const *x, ptrdiff_t stride, size_t classes, size_t together,
                                            const int64_t *ids, OP(bits) * target, OP(vec) * logit, f64_bits *bad) {
    EACH_VECTOR {
        target[u] = OP(load_ids)(ids + u * TL_GROUP);
        for (size_t i = 0; i < OP(WIDTH); i += f64_WIDTH) { /* 2^63 more than the last class has a sign bit */
            const f64_vec id = f64_load((const double *)(const void *)(ids + u * TL_GROUP + i));
            *bad = f64_or_bits(*bad, id, f64_plus_bits(id, ((uint64_t)1 << 63) - classes));
        }
    }
    if (classes <= 12) {
        EACH_VECTOR logit[u] = OF_CLASS(x[u], 0);
        for (size_t k = 1; k < classes; k++)
            EACH_VECTOR logit[u] = OP(if_same)(target[u], OP(set_bits)((UINT)k), OF_CLASS(x[u], k), logit[u]);
        return;
    }
    EACH_VECTOR {
        REAL one[OP(WIDTH)];
        for (size_t r = 0; r < OP(WIDTH); r++) {
            uint64_t id = (uint64_t)ids[u * TL_GROUP + r];
            memcpy(&one[r], x[u] + (id < classes ? (ptrdiff_t)id : 0) * stride + (ptrdiff_t)(r * sizeof(REAL)),
                   sizeof(REAL));
        }
        logit[u] = OP(load)(one);
    }
}

/* Finds the classes of the largest masses, and their logits. */
TL_TARGET TL_INLINE void OP(largest_of_few)(const char *const *x, ptrdiff_t stride, const char *const *mass,
                                            ptrdiff_t mass_stride, size_t classes, size_t together, OP(bits) * id,
                                            OP(vec) * logit) {
    OP(vec) most[MOST_TOGETHER], place[MOST_TOGETHER];
    EACH_VECTOR {
        most[u] = OP(set)(-(REAL)INFINITY);
        place[u] = OP(set)(0);
        logit[u] = OF_CLASS(x[u], 0);
    }
    for (size_t k = 0; k < classes; k++)
        EACH_VECTOR {
            const OP(vec) of_class = OP(load)((const REAL *)(const void *)(mass[u] + (ptrdiff_t)k * mass_stride));
            place[u] = OP(if_less)(most[u], of_class, OP(with_bits)(OP(set)(0), (UINT)k), place[u]);
            logit[u] = OP(if_less)(most[u], of_class, OF_CLASS(x[u], k), logit[u]);
            most[u] = OP(max_skip_nan)(of_class, most[u]);
        }
    EACH_VECTOR id[u] = OP(or_bits)(OP(set_bits)(0), place[u], place[u]);
}

/* Finds the classes of the largest effective masses. */
TL_TARGET static void OP(largest_effective)(const char *const *mass, ptrdiff_t mass_stride, size_t classes,
                                            size_t together, const tl_weighing *weighing, int64_t *ids) {
    for (size_t u = 0; u < together; u++) {
        f64_vec most[PARTS], place[PARTS], of_class[PARTS];
        for (size_t i = 0; i < PARTS; i++) {
            most[i] = f64_set(-(double)INFINITY);
            place[i] = f64_set(0);
        }
        for (size_t k = 0; k < classes; k++) {
            OP(load_effective)(mass[u] + (ptrdiff_t)k * mass_stride, k, weighing, of_class);
            for (size_t i = 0; i < PARTS; i++) {
                place[i] = f64_if_less(most[i], of_class[i], f64_with_bits(f64_set(0), k), place[i]);
                most[i] = f64_max_skip_nan(of_class[i], most[i]);
            }
        }
        for (size_t i = 0; i < PARTS; i++)
            f64_store((double *)(void *)(ids + u * TL_GROUP + i * f64_WIDTH), place[i]);
    }
}

/* Finds the sums over the classes but the targets. Powers are added in pairs, and these to the sum with what rounding
 * loses; rests as they are. Memory is asked for the rows that follow those at `rows`, if that is not NULL. */
TL_TARGET TL_INLINE void OP(sums_of_few)(const char *const *x, ptrdiff_t stride, size_t classes, size_t together,
                                         const OP(bits) * target, const OP(vec) * logit, OP(vec) * sum,
                                         OP(vec) * lost, const char *rows) {
    OP(vec) most[MOST_TOGETHER], rest[MOST_TOGETHER][2], unused;
    OP(acc) acc[MOST_TOGETHER];
    EACH_VECTOR {
        acc[u] = OP(acc_for_target)(logit[u], 0, GUARD);
        most[u] = OP(add)(logit[u], OP(set)((REAL)OP(REACH)));
        rest[u][0] = rest[u][1] = lost[u] = OP(set)(0);
    }
    if (classes == 2) { /* only the other one: the target's power and rest are 0 */
        EACH_VECTOR sum[u] = OTHER_POWER(OP(if_same)(target[u], OP(set_bits)(1), OF_CLASS(x[u], 0), OF_CLASS(x[u], 1)),
                                         2, 0);
    } else {
        EACH_VECTOR sum[u] = PAIR_OF_POWERS(0);
        for (size_t k = 2; k + 1 < classes; k += 2) {
            PREFETCH_SHARE(k - 2, k);
            EACH_VECTOR lost[u] = OP(add)(lost[u], OP(add_positive)(&sum[u], PAIR_OF_POWERS(k)));
        }
        if (classes % 2)
            EACH_VECTOR lost[u] = OP(add)(lost[u], OP(add_positive)(&sum[u], POWER_OF_CLASS(classes - 1, 0)));
        PREFETCH_SHARE((classes - 2) & ~(size_t)1, classes);
    }
    EACH_VECTOR {
        OP(vec) low = OP(fma)(OP(add)(rest[u][0], rest[u][1]), OP(set)((REAL)OP(LEADING)), lost[u]);
        OP(vec) all = OP(add)(sum[u], low);
        lost[u] = OP(sub)(low, OP(sub)(all, sum[u]));
        sum[u] = all;
    }
}

/* Adds the logits of a vector of rows. Returns whether no sum of some of them has more digits than a double, as their
 * squares tell: then it is exact, in any order. */
TL_TARGET TL_INLINE int OP(add_logits)(const char *x, ptrdiff_t stride, size_t classes, double *dot) {
    OP(vec) least = OP(set)(1), most = least;
    f64_vec wide[PARTS], sum[PARTS];
    OP(widen)(OP(set)(0), sum);
    for (size_t k = 0; k < classes; k++) {
        const OP(vec) logit = OF_CLASS(x, k), square = OP(mul)(logit, logit);
        least = OP(min)(least, square);
        most = OP(max_skip_nan)(square, most);
        OP(widen)(logit, wide);
        for (size_t i = 0; i < PARTS; i++)
            sum[i] = f64_add(sum[i], wide[i]);
    }
    for (size_t i = 0; i < PARTS; i++)
        f64_store(dot + i * f64_WIDTH, sum[i]);
    return (OP(mask_ge)(least, OP(set)((REAL)0x1p-34)) & OP(mask_ge)(OP(set)((REAL)0x1p14), most)) ==
           (uint32_t)(((uint64_t)1 << OP(WIDTH)) - 1);
}

/* The sums of the terms, followed by the sums of the rows' own masses. */
typedef struct {
    f64_vec sum[2 * PARTS], lost[2 * PARTS];
} OP(sums);

TL_TARGET TL_INLINE void OP(add_sums)(OP(sums) * to, OP(sums) of, int compensates) {
    for (size_t i = 0; i < 2 * PARTS; i++) {
        const f64_vec error = f64_add_with_error(&to->sum[i], of.sum[i]);
        to->lost[i] = compensates ? f64_add(to->lost[i], f64_add(of.lost[i], error)) : to->lost[i];
    }
}

/* The sums of a lane of a vector of rows: of class l and every 16th one after it. */
TL_TARGET TL_INLINE OP(sums) OP(sums_of_lane)(enum tl_terms kind, const tl_few_rows *rows, const tl_few_rows *masses,
                                              const tl_weighing *weighing, const double *shift, size_t l) {
    f64_vec term[2 * PARTS], *mass = term + PARTS;
    OP(sums) lane;
    for (size_t i = 0; i < 2 * PARTS; i++) /* memset would have compilers keep these in memory */
        term[i] = lane.sum[i] = lane.lost[i] = f64_set(0);
    for (size_t k = l; k < rows->classes; k += 16) {
        OP(load_widened)((const REAL *)(const void *)(rows->data + (ptrdiff_t)k * rows->class_stride), term);
        if (kind == DOTS_OF_ROWS)
            OP(load_effective)(masses->data + (ptrdiff_t)k * masses->class_stride, k, weighing, mass);
        for (size_t i = 0; i < PARTS && kind == DOTS_OF_DOUBLES; i++)
            mass[i] = f64_load((const double *)(const void *)(masses->data + (ptrdiff_t)k * masses->class_stride) +
                               i * f64_WIDTH);
        for (size_t i = 0; i < PARTS && kind != LOGITS; i++) {
            const f64_vec x = term[i], at = f64_load(shift + i * f64_WIDTH);
            term[i] = kind == DOTS ? f64_mul(f64_set(tl_load(masses->data + 8 * k, TL_FLOAT64)), f64_sub(at, x))
                                   : f64_mass_term(mass[i], x, at);
        }
        for (size_t i = 0; i < 2 * PARTS; i++) {
            const f64_vec error = f64_add_with_error(&lane.sum[i], term[i]);
            lane.lost[i] = sizeof(REAL) == sizeof(double) ? f64_add(lane.lost[i], error) : lane.lost[i];
        }
    }
    return lane;
}

/* The sums of lanes l, l + 4, l + 8 and l + 12, as far as there are classes in them. */
TL_TARGET TL_INLINE OP(sums) OP(sums_of_quad)(enum tl_terms kind, const tl_few_rows *rows, const tl_few_rows *masses,
                                              const tl_weighing *weighing, const double *shift, size_t l,
                                              int compensates) {
    OP(sums) sums = OP(sums_of_lane)(kind, rows, masses, weighing, shift, l), second;
    if (l + 8 < rows->classes)
        OP(add_sums)(&sums, OP(sums_of_lane)(kind, rows, masses, weighing, shift, l + 8), compensates);
    if (l + 4 < rows->classes) {
        second = OP(sums_of_lane)(kind, rows, masses, weighing, shift, l + 4);
        if (l + 12 < rows->classes)
            OP(add_sums)(&second, OP(sums_of_lane)(kind, rows, masses, weighing, shift, l + 12), compensates);
        OP(add_sums)(&sums, second, compensates);
    }
    return sums;
}

/* Stores the sums over the classes of a vector of rows, with the bits of tl_target_dot: class k in lane k mod 16, and
 * lanes by halves. */
TL_TARGET TL_INLINE void OP(add_terms)(enum tl_terms kind, const tl_few_rows *rows, const tl_few_rows *masses,
                                       const tl_weighing *weighing, const double *shift, double *dot, double *total) {
    const int compensates = sizeof(REAL) == sizeof(double) || kind == LOGITS;
    OP(sums) all;
    for (size_t i = 0; i < 2 * PARTS; i++)
        all.sum[i] = all.lost[i] = f64_set(0);
    for (size_t l = 0; l < 2; l++) {
        OP(sums) half = OP(sums_of_quad)(kind, rows, masses, weighing, shift, l, compensates);
        if (l + 2 < rows->classes)
            OP(add_sums)(&half, OP(sums_of_quad)(kind, rows, masses, weighing, shift, l + 2, compensates), compensates);
        OP(add_sums)(&all, half, compensates);
    }
    for (size_t i = 0; i < (total ? 2 : 1) * PARTS; i++)
        f64_store(i < PARTS ? dot + i * f64_WIDTH : total + (i - PARTS) * f64_WIDTH,
                  compensates ? f64_add(all.sum[i], all.lost[i]) : all.sum[i]);
}

TL_TARGET TL_OUTLINE void OP(dots_of_few)(const char *x, ptrdiff_t stride, size_t classes, const double *mass,
                                          const double *shift, double *dot) {
    const tl_few_rows rows = {x, 0, stride, classes, 0, 0}, masses = {.data = (const char *)mass};
    if (mass)
        OP(add_terms)(DOTS, &rows, &masses, NULL, shift, dot, NULL);
    else if (sizeof(REAL) == sizeof(double) || !OP(add_logits)(x, stride, classes, dot))
        OP(add_terms)(LOGITS, &rows, NULL, NULL, NULL, dot, NULL);
}

TL_TARGET static void OP(short_dots)(const tl_few_rows *rows, const tl_few_rows *masses, size_t count,
                                     const double *shift, double *dot, double *total) {
    for (size_t r = 0; r < count; r += OP(WIDTH)) {
        const size_t g = r / TL_GROUP, lane = r % TL_GROUP;
        tl_few_rows x = *rows, mass = *masses;
        x.data += g * rows->group_bytes + lane * sizeof(REAL);
        mass.data += g * masses->group_bytes + lane * sizeof(double);
        OP(add_terms)(DOTS_OF_DOUBLES, &x, &mass, NULL, shift + r, dot + r, total + r);
    }
}

#undef OTHER_POWER
#undef POWER_OF_CLASS
#undef PAIR_OF_POWERS
#undef PREFETCH_SHARE

/* More classes ----------------------------------------------------------------------------------------------------- */

/* Sums in double, rounded, and what that loses. */
TL_TARGET TL_INLINE OP(vec) OP(split_sums)(const f64_vec *sum, OP(vec) * lost) {
    f64_vec wide[PARTS];
    OP(vec) total = OP(narrow)(sum);
    OP(widen)(total, wide);
    for (size_t i = 0; i < PARTS; i++)
        wide[i] = f64_sub(sum[i], wide[i]);
    *lost = OP(narrow)(wide);
    return total;
}

/* Adds the powers of class k and every 16th one after it to a lane of a vector of rows, up to the end of a group: in
 * the order in which add_others_ of dtype_body.h adds along the classes of a row, so with the same bits. */
TL_TARGET TL_INLINE void OP(add_lane)(const tl_few_rows *rows, const char *x, size_t k, int are_last, OP(bits) target,
                                      OP(acc) * acc, OP(vec) * rest, tl_lanes *sum) {
    OP(vec) power[OP(TERMS)], rounded;
    for (size_t i = 0, at = k; i < OP(TERMS); i++, at += 16) {
        const char *logits = x + (ptrdiff_t)at * rows->class_stride;
        power[i] = OP(set)(0);
        if (are_last && at >= rows->classes)
            continue;
        tl_prefetch_early(logits + 128); /* two visits ahead, as no processor follows this many planes; the first */
        tl_prefetch(logits + 64);        /* cache has room for only one more line of each */
        power[i] = OP(other_power)(OP(load)((const REAL *)(const void *)logits), acc, 1, 1, target,
                                   OP(set_bits)((UINT)at), &rounded, rest);
        acc->maximum[0] = OP(max_skip_nan)(rounded, acc->maximum[0]);
    }
    OP(add_powers)(power, 0, sum);
}

/* The sum over the classes of a vector of rows but their targets; nan where a power exceeds its exponent field. */
TL_TARGET static OP(vec) OP(sum_of_many)(const tl_few_rows *rows, const char *x, OP(vec) logit, OP(bits) target,
                                         OP(vec) * lost) {
    const OP(vec) most = OP(set)(OP(ROUNDER) + (REAL)OP(K_MASK));
    enum { GROUP = 16 * OP(TERMS) };
    const size_t whole = rows->classes / GROUP * GROUP;
    OP(acc) acc = OP(acc_for_target)(logit, 1, GUARD);
    OP(vec) rests[16];
    tl_lanes lanes[16];
    memset(rests, 0, sizeof rests);
    memset(lanes, 0, sizeof lanes);
    for (size_t k = 0; k < rows->classes; k += GROUP) {
        for (size_t l = 0; l < 16; l++) {
            if (k < whole)
                OP(add_lane)(rows, x, k + l, 0, target, &acc, &rests[l], &lanes[l]);
            else
                OP(add_lane)(rows, x, k + l, 1, target, &acc, &rests[l], &lanes[l]);
        }
        for (size_t l = 0; l < 16 && ((k + GROUP) % TL_CHUNK == 0 || k + GROUP >= rows->classes); l++) {
            OP(accumulate_rest)(&lanes[l], 0, rests[l]);
            rests[l] = OP(set)(0);
        }
    }
    for (size_t l = 0; l < 16; l++)
        lanes[l] = OP(whole_lanes)(lanes[l]);
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t l = 0; l < half; l++)
            for (size_t i = 0; i < PARTS; i++)
                lanes[l].sum[i] = f64_add(lanes[l].sum[i], lanes[l + half].sum[i]);
    return OP(if_less)(most, acc.maximum[0], OP(set)((REAL)NAN), OP(split_sums)(lanes[0].sum, lost));
}

/* Finds the dots and the sums of the masses of a vector of rows, the first of which is row r. For bins, turns losses
 * for the largest masses into those for all; returns whether bins hold these. */
TL_TARGET TL_INLINE int OP(weigh_losses)(const char *x, ptrdiff_t stride, const char *mass, ptrdiff_t mass_stride,
                                         size_t classes, OP(vec) logit, const tl_lane_losses *of,
                                         const tl_weighing *weighing, size_t r, f64_vec *nll) {
    const tl_few_rows rows = {x, 0, stride, classes, 0, 0}, masses = {mass, 0, mass_stride, classes, 0, 0};
    double shift[OP(WIDTH)], memory[2][OP(WIDTH)];
    double *dot = of->dot ? of->dot + r : memory[0], *total = of->dot ? of->total + r : memory[1];
    uint32_t fit = ((uint32_t)1 << f64_WIDTH) - 1;
    OP(store_f64)(shift, logit);
    OP(add_terms)(DOTS_OF_ROWS, &rows, &masses, weighing, shift, dot, total);
    for (size_t part = 0; of->bin && part < PARTS; part++) {
        const f64_vec sum = f64_load(total + part * f64_WIDTH);
        nll[part] = f64_loss_with_mass(f64_set(0), f64_load(dot + part * f64_WIDTH), sum, nll[part]);
        fit &= f64_mask_ge(nll[part], f64_set(TL_TWO_BINS)) & f64_mask_ge(f64_set(TL_SUM_ABOVE / 2), nll[part]) &
               f64_mask_ge(sum, f64_set(0x1p-1074));
    }
    return fit == ((uint32_t)1 << f64_WIDTH) - 1;
}

/* Adds the losses of a vector of rows to bins, or stores them, and what else is wanted, from row r on. */
TL_TARGET TL_INLINE void OP(put_losses)(const tl_lane_losses *of, size_t r, OP(vec) logit, OP(vec) odds,
                                        const f64_vec *nll, int are_small, f64_bits *added) {
    for (size_t part = 0; part < PARTS; part++)
        if (of->bin)
            f64_add_to_bins(added, nll[part], are_small);
        else
            f64_store(of->nll + r + part * f64_WIDTH, nll[part]);
    if (of->odds)
        OP(store_f64)(of->odds + r, odds);
    if (of->logit)
        OP(store_f64)(of->logit + r, logit);
}

/* Losses of the groups [g, end), `together` vectors at a time: the steps of one wait for each other. Returns the bits
 * of rows that are far out, and adds a sign bit to `bad` if an id is no class. */
TL_TARGET TL_INLINE uint64_t OP(lane_losses_of)(const tl_few_rows *rows, size_t g, size_t end, size_t classes,
                                               size_t together, const tl_lane_losses *of, const tl_weighing *weighing,
                                               f64_bits *bad) {
    const tl_few_rows *by = of->by_largest, *masses = by == rows ? NULL : by;
    char memory[(2 * TL_FEW_CLASSES + 1) * TL_GROUP * sizeof(REAL)], *aligned = memory + (-(uintptr_t)memory & 63);
    const char *x[MOST_TOGETHER], *mass[MOST_TOGETHER];
    OP(vec) at[MOST_TOGETHER], sum[MOST_TOGETHER], lost[MOST_TOGETHER];
    f64_vec nll[MOST_TOGETHER][PARTS];
    OP(bits) id[MOST_TOGETHER];
    int64_t largest[MOST_TOGETHER * TL_GROUP];
    f64_bits added[TL_SUM_BINS];
    ptrdiff_t stride = 0, mass_stride = 0;
    uint64_t far = 0;
    const double least = of->bin ? TL_TWO_BINS : (double)OP(LEAST_ODDS);
    const uint32_t all = (uint32_t)(((uint64_t)1 << OP(WIDTH)) - 1);
    const size_t vectors = (end - g) * TL_GROUP / f64_WIDTH, group_bytes = classes * TL_GROUP * sizeof(REAL);
    const int prefetches = rows->apart > 0 && classes > 3; /* of shorter rows, the processor does it in time */
    for (size_t k = 0; of->bin && k < TL_SUM_BINS; k++)
        added[k] = f64_load_bits(of->bin[k]);
    for (; g < end; g += together) {
        EACH_VECTOR {
            x[u] = OP(group_of)(rows, g + u, classes, 0, aligned + u * group_bytes, &stride);
            mass[u] = masses ? masses->data + (g + u) * masses->group_bytes : x[u];
        }
        mass_stride = masses ? masses->class_stride : stride;
        for (size_t i = 0, r = g * TL_GROUP; i < TL_GROUP; i += OP(WIDTH), r += OP(WIDTH)) {
            uint32_t near = all;
            if (weighing)
                OP(largest_effective)(mass, mass_stride, classes, together, weighing, largest);
            if (by && !weighing)
                OP(largest_of_few)(x, stride, mass, mass_stride, classes, together, id, at);
            else
                OP(targets_of_few)(x, stride, classes, together, by ? largest : of->target + r, id, at, bad);
            if (classes <= TL_FEW_CLASSES)
                OP(sums_of_few)(x, stride, classes, together, id, at, sum, lost,
                                prefetches ? rows->data + g * rows->group_bytes + i * classes * sizeof(REAL) : NULL);
            else
                EACH_VECTOR sum[u] = OP(sum_of_many)(rows, x[u], at[u], id[u], &lost[u]);
            EACH_VECTOR {
                sum[u] = OP(losses_of_vector)(at[u], sum[u], lost[u], nll[u]);
                near &= OP(near_rows)(at[u], sum[u], least);
            }
            EACH_VECTOR if (masses && !OP(weigh_losses)(x[u], stride, mass[u], mass_stride, classes, at[u], of,
                                                        weighing, r + u * TL_GROUP, nll[u]))
                far = ~(uint64_t)0;
            for (size_t u = 0; TL_UNLIKELY(near != all) && u < together; u++)
                far |= (uint64_t)(all ^ OP(near_rows)(at[u], sum[u], of->bin ? TL_THREE_BINS : least))
                       << (r + u * TL_GROUP) % TL_BLOCK_ROWS;
            EACH_VECTOR {
                OP(put_losses)(of, r + u * TL_GROUP, at[u], sum[u], nll[u], near != all, added);
                x[u] += OP(WIDTH) * sizeof(REAL);
                mass[u] += OP(WIDTH) * sizeof(REAL);
            }
        }
        for (size_t r = 0; of->dot && !by && r < TL_GROUP * together; r += OP(WIDTH))
            OP(dots_of_few)(x[r / TL_GROUP] + (r % TL_GROUP) * sizeof(REAL) - TL_GROUP * sizeof(REAL), stride, classes,
                            of->mass, of->logit + g * TL_GROUP + r, of->dot + g * TL_GROUP + r);
    }
    for (size_t k = 0; of->bin && k < TL_SUM_BINS; k++)
        f64_store_bin(of->bin[k], added[k], k < 2 ? vectors : 0, TL_SUM_ROUNDER[k]);
    return far;
}

/* The same of all groups, by effective masses. */
TL_TARGET SCHEDULED TL_OUTLINE uint64_t OP(effective_losses)(const tl_few_rows *rows, size_t end,
                                                             const tl_lane_losses *of) {
    const size_t n = end / TOGETHER * TOGETHER;
    f64_bits unused = f64_set_bits(0);
    return OP(lane_losses_of)(rows, 0, n, rows->classes, TOGETHER, of, of->weighing, &unused) |
           OP(lane_losses_of)(rows, n, end, rows->classes, 1, of, of->weighing, &unused);
}

TL_TARGET SCHEDULED static uint64_t OP(lane_losses)(const tl_few_rows *rows, size_t count, const tl_lane_losses *of) {
    const size_t most = rows->classes == 2 ? MOST_TOGETHER : TOGETHER, end = count / TL_GROUP, n = end / most * most;
    const uint64_t all = count < TL_BLOCK_ROWS ? ~(~(uint64_t)0 << count) : ~(uint64_t)0;
    f64_bits bad = f64_set_bits(0);
    if (of->weighing)
        return all & ~OP(effective_losses)(rows, end, of);
    uint64_t far = OP(lane_losses_of)(rows, n, end, rows->classes, 1, of, NULL, &bad);
    switch (rows->classes) { /* loops that compilers unroll */
    case 2: far |= OP(lane_losses_of)(rows, 0, n, 2, MOST_TOGETHER, of, NULL, &bad); break;
    case 3: far |= OP(lane_losses_of)(rows, 0, n, 3, TOGETHER, of, NULL, &bad); break;
    case 5: far |= OP(lane_losses_of)(rows, 0, n, 5, TOGETHER, of, NULL, &bad); break;
    default: far |= OP(lane_losses_of)(rows, 0, n, rows->classes, TOGETHER, of, NULL, &bad);
    }
    for (size_t r = 0; !of->some_masked && TL_UNLIKELY(f64_any_negative(bad)) && r < count; r++)
        far |= (uint64_t)((uint64_t)of->target[r] >= rows->classes) << r % TL_BLOCK_ROWS;
    return all & ~far;
}

TL_TARGET TL_INLINE void OP(lane_gradients_of)(const tl_few_rows *rows, size_t groups, size_t classes,
                                               const int64_t *target, const tl_gradient_parts *of,
                                               const tl_few_rows *to) {
    char memory[(TL_FEW_CLASSES + 1) * TL_GROUP * sizeof(REAL)], *aligned = memory + (-(uintptr_t)memory & 63);
    for (size_t g = 0; g < groups; g++) {
        ptrdiff_t stride = 0, out_stride = to->are_apart ? (ptrdiff_t)(TL_GROUP * sizeof(REAL)) : to->class_stride;
        const char *x = OP(group_of)(rows, g, classes, 1, aligned, &stride);
        char *out = to->are_apart ? aligned : (char *)(uintptr_t)to->data + g * to->group_bytes;
        for (size_t i = 0, r = g * TL_GROUP; i < TL_GROUP; i += OP(WIDTH), r += OP(WIDTH)) {
            const OP(vec) factor = OP(load_narrowed)(of->factor + r), at = OP(load_narrowed)(of->at_target + r);
            const OP(vec) less = OP(sub)(OP(set)(0), OP(load_narrowed)(of->subtrahend + r));
            const OP(bits) id = target ? OP(load_ids)(target + r) : OP(set_bits)((UINT)-1);
            OP(acc) acc;
            OP(reference)(of->exponent + r, 0, &acc);
            for (size_t k = 0; k < classes; k++) {
                const ptrdiff_t to_class = (ptrdiff_t)k * out_stride + (ptrdiff_t)(i * sizeof(REAL));
                OP(vec) exp = OP(whole_exp)(OF_CLASS(x + i * sizeof(REAL), k), &acc);
                exp = OP(if_same)(id, OP(set_bits)((UINT)k), at, OP(mul_add)(exp, factor, less));
                OP(store)((REAL *)(void *)(out + to_class), exp);
            }
        }
        if (to->are_apart)
            OP(put_group)((const REAL *)(const void *)aligned, to, g, classes);
    }
}

TL_TARGET static void OP(lane_gradients)(const tl_few_rows *rows, size_t count, const int64_t *target,
                                         const tl_gradient_parts *of, const tl_few_rows *to) {
    const size_t groups = count / TL_GROUP;
    switch (rows->classes) { /* loops that compilers unroll */
    case 2: OP(lane_gradients_of)(rows, groups, 2, target, of, to); break;
    case 3: OP(lane_gradients_of)(rows, groups, 3, target, of, to); break;
    default: OP(lane_gradients_of)(rows, groups, rows->classes, target, of, to);
    }
}

TL_TARGET static void OP(mass_gradients)(const tl_few_rows *rows, const tl_few_rows *masses, int are_wide, size_t count,
                                         const tl_mass_gradients *of, const tl_few_rows *to) {
    const ptrdiff_t stride = rows->class_stride, mass_stride = masses->class_stride, out_stride = to->class_stride;
    const size_t classes = rows->classes, mass_size = are_wide ? sizeof(double) : sizeof(REAL);
    for (size_t r = 0; r < count; r += OP(WIDTH)) {
        const size_t g = r / TL_GROUP, lane = r % TL_GROUP;
        const char *x = rows->data + g * rows->group_bytes + lane * sizeof(REAL);
        const char *mass = masses->data + g * masses->group_bytes + lane * mass_size;
        char *out = (char *)(uintptr_t)to->data + g * to->group_bytes + lane * sizeof(REAL);
        const OP(vec) factor = OP(load_narrowed)(of->factor + r), scale = OP(load_narrowed)(of->scale + r);
        const OP(vec) minus_scale = OP(sub)(OP(set)(0), scale);
        OP(acc) acc;
        OP(reference)(of->exponent + r, 0, &acc);
        for (size_t k = 0; k < classes; k++, x += stride, mass += mass_stride, out += out_stride) {
            const OP(vec) logit = OP(load)((const REAL *)(const void *)x);
            const OP(vec) of_mass = are_wide ? OP(load_narrowed)((const double *)(const void *)mass)
                                             : OP(load)((const REAL *)(const void *)mass);
            const OP(vec) exp = OP(whole_exp)(PICK(logit, f64_sub(logit, f64_set(of->offset))), &acc);
            const OP(vec) grad = OP(mul_add)(exp, factor, OP(mul)(of_mass, minus_scale));
            OP(store)((REAL *)(void *)out, PICK(grad, f64_finish_gradient(grad, logit, of)));
        }
    }
}

#undef OF_CLASS
