/* Softmax of contiguous rows along their classes, and other maps of them: included by dtype_body.h for each dtype. A
 * row has at least TL_GROUP classes. Where the last ones do not fill a vector, the vector that ends the row is written,
 * which overlaps the one before it.
 *
 * Lane l of 16 adds the exponentials of the classes l, l + 16 and so on: four of each group of 64 in the compute dtype,
 * as a tree, and these sums in double; then the lanes are added as a tree. short_softmax_ of short_rows_body.h has the
 * same order, and so has sum_exps_ of dtype_body.h. */

/* The largest logits of up to TL_GROUP rows. */
TL_TARGET TL_INLINE void NAME(row_maxima_)(const char *const *rows, size_t count, size_t classes, REAL *maximum) {
    REAL lanes[TL_GROUP][OP(WIDTH)], side_by_side[OP(WIDTH) * TL_GROUP];
    const char *at[TL_GROUP];
    for (size_t r = 0; r < TL_GROUP; r++)
        at[r] = (const char *)lanes[r < count ? r : 0];
    for (size_t r = 0; r < count; r++) {
        const ELEMENT *x = (const ELEMENT *)(const void *)rows[r];
        OP(vec) most[4];
        most[0] = most[1] = most[2] = most[3] = LOAD(x + classes - OP(WIDTH));
        size_t k = 0;
        for (; k + 4 * OP(WIDTH) <= classes; k += 4 * OP(WIDTH))
            for (size_t i = 0; i < 4; i++)
                most[i] = OP(max_skip_nan)(LOAD(x + k + i * OP(WIDTH)), most[i]);
        for (; k + OP(WIDTH) <= classes; k += OP(WIDTH))
            most[0] = OP(max_skip_nan)(LOAD(x + k), most[0]);
        most[0] = OP(max_skip_nan)(OP(max_skip_nan)(most[0], most[1]), OP(max_skip_nan)(most[2], most[3]));
        OP(store)(lanes[r], most[0]);
    }
    OP(interleave)(at, OP(WIDTH), side_by_side);
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(vec) most[OP(WIDTH)];
        for (size_t k = 0; k < OP(WIDTH); k++)
            most[k] = OP(load)(side_by_side + TL_GROUP * k + r);
        for (size_t half = OP(WIDTH) / 2; half > 0; half /= 2)
            for (size_t k = 0; k < half; k++)
                most[k] = OP(max_skip_nan)(most[k], most[k + half]);
        OP(store)(maximum + r, most[0]);
    }
}

/* The exponentials of a vector of classes from k on, which are kept if that is wanted; 0 where the row has ended.
 * `is_whole`, known to the compiler, says that it has not. */
TL_TARGET TL_INLINE OP(vec) NAME(exp_at_)(const ELEMENT *x, size_t k, size_t classes, int is_whole, const OP(acc) * acc,
                                          REAL *kept) {
    if (!is_whole && k >= classes)
        return OP(set)(0);
    const int fills = is_whole || k + OP(WIDTH) <= classes;
    OP(vec) value = fills ? LOAD(x + k) : NAME(load_first_)(x + k, classes - k, -(REAL)INFINITY);
    OP(vec) exp = OP(whole_exp)(value, acc);
    if (kept)
        OP(store)(kept + k, exp);
    return exp;
}

/* Adds the exponentials of 64 classes from k on to 16 lanes. */
TL_TARGET TL_INLINE void NAME(exp_64_)(const ELEMENT *x, size_t k, size_t classes, int is_whole, const OP(acc) * acc,
                                       REAL *kept, tl_lanes *lanes) {
    for (size_t j = 0; j < 16; j += OP(WIDTH)) {
        OP(vec) first = NAME(exp_at_)(x, k + j, classes, is_whole, acc, kept),
                second = NAME(exp_at_)(x, k + j + 16, classes, is_whole, acc, kept),
                third = NAME(exp_at_)(x, k + j + 32, classes, is_whole, acc, kept),
                fourth = NAME(exp_at_)(x, k + j + 48, classes, is_whole, acc, kept);
        OP(accumulate)(lanes, j, OP(add)(OP(add)(first, second), OP(add)(third, fourth)));
    }
}

/* Keeps the exponentials of a row, unless that is not wanted, and adds them to 8 lanes. */
TL_TARGET TL_INLINE void NAME(exp_row_)(const ELEMENT *x, size_t classes, const OP(acc) * acc, REAL *kept,
                                        double *eight) {
    tl_lanes lanes = zero_lanes();
    size_t k = 0;
    for (; k + 64 <= classes; k += 64)
        NAME(exp_64_)(x, k, classes, 1, acc, kept, &lanes);
    if (k < classes)
        NAME(exp_64_)(x, k, classes, 0, acc, kept, &lanes);
    store_eight(OP(whole_lanes)(lanes), eight);
}

/* Stage by stage, since the latency of a stage would be waited for in every group. */
TL_TARGET static void NAME(exp_rows_)(const char *const *rows, size_t count, size_t classes, void *kept,
                                      double *ref_exp, double *sum) {
    const size_t padded = (count + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    REAL largest[TL_BLOCK_ROWS], least[TL_BLOCK_ROWS], rounder[TL_BLOCK_ROWS];
    double eight[TL_BLOCK_ROWS][8], maximum[TL_BLOCK_ROWS];
    OP(acc) acc = OP(acc_init)(0, 1, 0, 0); /* the constants of each row follow */
    for (size_t r = 0; r < count; r += TL_GROUP)
        NAME(row_maxima_)(rows + r, count - r < TL_GROUP ? count - r : TL_GROUP, classes, largest + r);
    for (size_t r = 0; r < padded; r += OP(WIDTH)) {
        f64_vec wide[PARTS];
        OP(widen)(OP(load)(largest + r), wide);
        for (size_t i = 0; i < PARTS; i++) {
            f64_store(maximum + r + i * f64_WIDTH, wide[i]);
            f64_store(ref_exp + r + i * f64_WIDTH, f64_exponent_near(wide[i]));
        }
        OP(reference)(ref_exp + r, OP(KEPT_BITS), &acc);
        OP(store)(least + r, acc.min_arg);
        OP(store)(rounder + r, acc.rounder);
    }
    for (size_t r = 0; r < count; r++) {
        acc.min_arg = OP(set)(least[r]);
        acc.rounder = OP(set)(rounder[r]);
        NAME(exp_row_)((const ELEMENT *)(const void *)rows[r], classes, &acc,
                       kept ? (REAL *)kept + r * tl_kept_row(classes) : NULL, eight[r]);
    }
    for (size_t r = 0; r < count; r += TL_GROUP)
        add_lanes_of_rows(eight + r, count - r < TL_GROUP ? count - r : TL_GROUP, sum + r);
    for (size_t r = 0; r < padded; r += f64_WIDTH)
        f64_store(sum + r,
                  f64_sum_if_near(f64_load(maximum + r), f64_mul(f64_load(sum + r), f64_set(OP(UNKEPT)))));
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
