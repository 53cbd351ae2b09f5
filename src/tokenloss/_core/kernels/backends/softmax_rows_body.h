/* Softmax of contiguous rows along their classes, and other maps of them: included by dtype_body.h for each dtype. A
 * row has at least TL_GROUP classes. Where the last ones do not fill a vector, the vector that ends the row is written,
 * which overlaps the one before it.
 *
 * Lane l of 16 adds the exponentials of the classes l, l + 16 and so on: four of each group of 64 in the compute dtype,
 * as a tree, and these sums in double; then the lanes are added as a tree. short_softmax_ of short_rows_body.h has the
 * same order, and so has sum_exps_ of dtype_body.h. */

/* The exponentials of a vector of classes from k on, which are kept if that is wanted; 0 where the row has ended. Near
 * ones are not clamped: the bits of their k are collected. `is_whole` and `is_near` are known to the compiler. */
TL_TARGET TL_INLINE OP(vec) NAME(exp_at_)(const ELEMENT *x, size_t k, size_t classes, int is_whole, int is_near,
                                          OP(acc) * acc, REAL *kept) {
    if (!is_whole && k >= classes)
        return OP(set)(0);
    const int fills = is_whole || k + OP(WIDTH) <= classes;
    OP(vec) value = fills ? LOAD(x + k) : NAME(load_first_)(x + k, classes - k, is_near ? 0 : -(REAL)INFINITY), exp;
    if (is_near) {
        const OP(exp_parts) parts = OP(exp_of)(value, acc, 0);
        acc->or_bits[0] = OP(or_bits)(acc->or_bits[0], parts.k, parts.k);
        exp = OP(whole_of)(&parts);
        exp = fills ? exp : OP(if_less)(OP(load)(OP(RAMP)), OP(set)((REAL)(classes - k)), exp, OP(set)(0));
    } else {
        exp = OP(whole_exp)(value, acc);
    }
    if (kept)
        OP(store)(kept + k, exp);
    return exp;
}

/* Adds the exponentials of 64 classes from k on to 16 lanes. */
TL_TARGET TL_INLINE void NAME(exp_64_)(const ELEMENT *x, size_t k, size_t classes, int is_whole, int is_near,
                                       OP(acc) * acc, REAL *kept, tl_lanes *lanes) {
    for (size_t j = 0; j < 16; j += OP(WIDTH)) {
        OP(vec) exp[4];
        for (size_t i = 0; i < 4; i++)
            exp[i] = NAME(exp_at_)(x, k + j + 16 * i, classes, is_whole, is_near, acc, kept);
        OP(accumulate)(lanes, j, OP(add)(OP(add)(exp[0], exp[1]), OP(add)(exp[2], exp[3])));
    }
}

/* Keeps the exponentials of a row, unless that is not wanted, and adds them to 8 lanes. */
TL_TARGET TL_INLINE void NAME(exp_row_)(const ELEMENT *x, size_t classes, int is_near, OP(acc) * acc, REAL *kept,
                                        double *eight) {
    tl_lanes lanes = zero_lanes();
    size_t k = 0;
    for (; k + 64 <= classes; k += 64)
        NAME(exp_64_)(x, k, classes, 1, is_near, acc, kept, &lanes);
    if (k < classes)
        NAME(exp_64_)(x, k, classes, 0, is_near, acc, kept, &lanes);
    store_eight(OP(whole_lanes)(lanes), eight);
}

/* The same relative to the maximum, of rows that are not near; returns the reference exponent. All are 0 if the
 * maximum is beyond TL_MAX_EXACT_REDUCTION. */
TL_TARGET TL_OUTLINE double NAME(exp_far_row_)(const ELEMENT *x, size_t classes, REAL *kept, double *eight) {
    OP(vec) most = LOAD(x + classes - OP(WIDTH));
    double lane[TL_GROUP];
    for (size_t k = 0; k + OP(WIDTH) <= classes; k += OP(WIDTH))
        most = OP(max_skip_nan)(LOAD(x + k), most);
    OP(store_f64)(lane, most);
    for (size_t i = 1; i < OP(WIDTH); i++)
        lane[0] = lane[i] > lane[0] || lane[0] != lane[0] ? lane[i] : lane[0];
    memset(eight, 0, 8 * sizeof *eight);
    if (!(tl_abs(lane[0]) <= TL_MAX_EXACT_REDUCTION))
        return 0;
    f64_store(lane, f64_exponent_near(f64_set(lane[0])));
    OP(acc) acc = OP(acc_init)((int64_t)lane[0] - OP(KEPT_BITS) + OP(HEADROOM), 1, 0, 0);
    NAME(exp_row_)(x, classes, 0, &acc, kept, eight);
    return lane[0];
}

TL_TARGET static void NAME(exp_rows_)(const char *const *rows, size_t count, size_t classes, void *kept,
                                      double *ref_exp, double *sum) {
    double eight[TL_BLOCK_ROWS][8];
    OP(acc) acc = OP(acc_near)();
    for (size_t r = 0; r < (count + TL_GROUP - 1) / TL_GROUP * TL_GROUP; r++)
        ref_exp[r] = 0;
    for (size_t r = 0; r < count; r++) {
        const ELEMENT *x = (const ELEMENT *)(const void *)rows[r];
        REAL *to = kept ? (REAL *)kept + r * tl_kept_row(classes) : NULL;
        acc.or_bits[0] = OP(set_bits)(0);
        NAME(exp_row_)(x, classes, 1, &acc, to, eight[r]);
        if (TL_UNLIKELY(OP(is_beyond)(&acc, OP(NEAR_K))))
            ref_exp[r] = NAME(exp_far_row_)(x, classes, to, eight[r]);
    }
    for (size_t r = 0; r < count; r += TL_GROUP) {
        add_lanes_of_rows(eight + r, count - r < TL_GROUP ? count - r : TL_GROUP, sum + r);
        for (size_t i = r; i < r + TL_GROUP; i++)
            sum[i] *= OP(UNKEPT);
    }
}

/* What is written of a number, by the kind of map, which is known to the compiler. */
TL_TARGET TL_INLINE OP(vec) NAME(mapped_)(enum tl_row_map map, OP(vec) x, OP(vec) a, OP(vec) b, const OP(acc) * acc) {
    return map == SCALE      ? OP(mul)(x, a)
           : map == SUBTRACT ? OP(sub)(OP(sub)(x, a), b)
                             : OP(mul_add)(OP(whole_exp)(x, acc), a, b);
}

/* Maps a row: exponentials that were kept, or elements, perhaps in place. So the last ones are read first. Only whole
 * cache lines are written past the caches, and only of rows that have many. */
TL_TARGET TL_INLINE void NAME(map_row_)(enum tl_row_map map, const void *from, size_t classes, OP(vec) a, OP(vec) b,
                                        const OP(acc) * acc, ELEMENT *to, int streaming) {
    const ELEMENT *x = (const ELEMENT *)from;
    const REAL *kept = (const REAL *)from;
    const size_t last = classes - OP(WIDTH), line = 64 / sizeof *to, until_line = -(uintptr_t)to % 64 / sizeof *to;
    const OP(vec) at_end = map == SCALE ? OP(load)(kept + last) : LOAD(x + last);
    size_t k = 0;
    streaming &= (const void *)to != from && (uintptr_t)to % sizeof *to == 0 && classes >= TL_CHUNK;
    for (; streaming && k < until_line; k += OP(WIDTH))
        STORE(to + k, NAME(mapped_)(map, map == SCALE ? OP(load)(kept + k) : LOAD(x + k), a, b, acc));
    k = streaming ? until_line : 0;
    for (; streaming && k + line <= classes; k += line)
        for (size_t i = k; i < k + line; i += OP(WIDTH))
            STREAM(to + i, NAME(mapped_)(map, map == SCALE ? OP(load)(kept + i) : LOAD(x + i), a, b, acc));
    for (; k < last; k += OP(WIDTH))
        STORE(to + k, NAME(mapped_)(map, map == SCALE ? OP(load)(kept + k) : LOAD(x + k), a, b, acc));
    if (k < classes)
        STORE(to + last, NAME(mapped_)(map, at_end, a, b, acc));
}

TL_TARGET static void NAME(scale_rows_)(const void *kept, size_t count, size_t classes, const double *factor,
                                        char *const *out, int streaming) {
    for (size_t r = 0; r < count; r++)
        if (out[r])
            NAME(map_row_)(SCALE, (const REAL *)kept + r * tl_kept_row(classes), classes, OP(set)((REAL)factor[r]),
                           OP(set)(0), NULL, (ELEMENT *)(void *)out[r], streaming);
    if (streaming)
        tl_stream_end();
}

TL_TARGET static void NAME(sub_rows_)(const char *const *rows, size_t count, size_t classes, const double *subtrahend,
                                      char *const *out, int streaming) {
    for (size_t r = 0; r < count; r++) {
        const REAL high = (REAL)subtrahend[r]; /* the subtrahend has more digits than a float */
        if (out[r])
            NAME(map_row_)(SUBTRACT, rows[r], classes, OP(set)(high), OP(set)((REAL)(subtrahend[r] - (double)high)),
                           NULL, (ELEMENT *)(void *)out[r], streaming);
    }
    if (streaming)
        tl_stream_end();
}

TL_TARGET static void NAME(exp_scaled_rows_)(const char *const *rows, size_t count, size_t classes,
                                             const double *exponent, const double *factor, const double *subtrahend,
                                             char *const *out, int streaming) {
    for (size_t r = 0; r < count; r++) {
        if (!out[r]) /* its exponent may be none */
            continue;
        const OP(acc) acc = OP(acc_init)((int64_t)exponent[r] + OP(HEADROOM), 1, 0, 0);
        NAME(map_row_)(EXPONENTIATE, rows[r], classes, OP(set)((REAL)factor[r]), OP(set)(0 - (REAL)subtrahend[r]), &acc,
                       (ELEMENT *)(void *)out[r], streaming);
    }
    if (streaming)
        tl_stream_end();
}
