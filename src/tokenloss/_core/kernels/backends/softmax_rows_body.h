/* Softmax of contiguous rows along their classes, and other maps of them: included by dtype_body.h for each dtype. A
 * row has at least TL_GROUP classes. Where the last ones do not fill a vector, the vector that ends the row is written,
 * which overlaps the one before it.
 *
 * Lane l of 16 adds the exponentials of the classes l, l + 16 and so on: four of each group of 64 in the compute dtype,
 * as a tree, and these sums in double; then the lanes are added as a tree. lane_softmax_ of short_rows_body.h has the
 * same order. */

/* Keeps the exponentials of a group of n classes, which fill `vectors`, and adds them to 16 lanes. The last vector may
 * have more elements, unless n is 64. Near logits are not clamped: the bits of their k are collected. */
TL_TARGET TL_INLINE void NAME(exp_group_)(const ELEMENT *x, size_t n, size_t vectors, int is_near, OP(acc) * acc,
                                          REAL *kept, tl_lanes *lanes) {
    for (size_t j = 0; j < 16; j += OP(WIDTH)) {
        OP(vec) exp[4];
        for (size_t i = 0; i < 4; i++) {
            const size_t at = 16 * i + j;
            const int is_last = at + OP(WIDTH) == vectors * OP(WIDTH) && n < 64;
            exp[i] = OP(set)(0);
            if (at >= vectors * OP(WIDTH))
                continue;
            OP(vec) value = is_last ? NAME(load_first_)(x + at, n - at, is_near ? 0 : -(REAL)INFINITY) : LOAD(x + at);
            if (is_near) {
                const OP(exp_parts) parts = OP(exp_of)(value, acc, 0);
                acc->or_bits[0] = OP(or_bits)(acc->or_bits[0], parts.k, parts.k);
                exp[i] = OP(whole_of)(&parts);
                if (is_last)
                    exp[i] = OP(if_less)(OP(load)(OP(RAMP)), OP(set)((REAL)(n - at)), exp[i], OP(set)(0));
            } else {
                exp[i] = OP(whole_exp)(value, acc);
            }
            OP(store)(kept + at, exp[i]);
        }
        OP(accumulate)(lanes, j, OP(add)(OP(add)(exp[0], exp[1]), OP(add)(exp[2], exp[3])));
    }
}

/* The exponentials of rows, and 8 lanes of their sums; returns whether all rows are near. The classes after whole
 * groups of 64 fill `vectors` vectors, perhaps none: usually a constant, so that the loop has no branches. Meanwhile,
 * the lines of `out` that are written next are prefetched. */
TL_TARGET TL_INLINE int NAME(exp_near_rows_)(const char *row, ptrdiff_t apart, size_t count, size_t classes,
                                             size_t vectors, REAL *kept, size_t kept_apart, double (*eight)[8],
                                             const char *out, ptrdiff_t out_apart) {
    const size_t rest = classes % 64, whole = classes - rest;
    const int asks = classes > 64 && classes <= TL_CHUNK; /* others gain nothing */
    OP(acc) acc = OP(acc_near)();
    for (size_t r = 0; r < count; r++, row += apart, kept += kept_apart, out += out_apart) {
        const ELEMENT *x = (const ELEMENT *)(const void *)row;
        tl_lanes lanes = zero_lanes();
        for (size_t k = 0; asks && k < classes; k += 64 / sizeof(ELEMENT))
            tl_prefetch(out + k * sizeof(ELEMENT));
        for (size_t k = 0; k < whole; k += 64)
            NAME(exp_group_)(x + k, 64, 64 / OP(WIDTH), 1, &acc, kept + k, &lanes);
        if (vectors > 0)
            NAME(exp_group_)(x + whole, rest, vectors, 1, &acc, kept + whole, &lanes);
        store_eight(OP(whole_lanes)(lanes), eight[r]);
    }
    return !OP(is_beyond)(acc.or_bits[0], OP(NEAR_K));
}

#define EXP_NEAR(vectors) \
    NAME(exp_near_rows_)(row, apart, count, classes, vectors, kept, kept_apart, eight, out, out_apart)
#define CASE(vectors) \
    case vectors: return EXP_NEAR(vectors);
TL_TARGET TL_OUTLINE int NAME(exp_near_)(const char *row, ptrdiff_t apart, size_t count, size_t classes, REAL *kept,
                                         size_t kept_apart, double (*eight)[8], const char *out, ptrdiff_t out_apart) {
    const size_t vectors = (classes % 64 + OP(WIDTH) - 1) / OP(WIDTH);
    switch (OP(WIDTH) < 8 && vectors > 0 ? 9 : vectors) {
        CASE(0) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
    default: return EXP_NEAR(vectors);
    }
}
#undef CASE
#undef EXP_NEAR

/* The same of a row relative to its maximum; returns the reference exponent. All sums are 0 if the maximum is beyond
 * TL_MAX_EXACT_REDUCTION. */
TL_TARGET TL_OUTLINE double NAME(exp_far_)(const ELEMENT *x, size_t classes, REAL *kept, double *eight) {
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
    tl_lanes lanes = zero_lanes();
    for (size_t k = 0; k < classes; k += 64) {
        const size_t n = classes - k < 64 ? classes - k : 64;
        NAME(exp_group_)(x + k, n, (n + OP(WIDTH) - 1) / OP(WIDTH), 0, &acc, kept + k, &lanes);
    }
    store_eight(OP(whole_lanes)(lanes), eight);
    return lane[0];
}

/* Finds the factor of the exponentials of rows or, for log_softmax, the logsumexp, from a sum scaled to [1, 2); the
 * other powers of two go into the reference exponent, as in elementwise.c. Returns a bit for each sum above 0. */
TL_TARGET TL_INLINE uint32_t NAME(end_softmax_)(f64_vec total, f64_vec ref_exp, int is_log, double *operand) {
    const uint32_t good = (uint32_t)f64_mask_ge(total, f64_set(0x1p-1022));
    if (!is_log) {
        f64_store(operand, f64_div(f64_set(1), total));
        return good;
    }
    f64_vec exponent = f64_sub(f64_with_bits(f64_exponent_field(total), 0x4330000000000000u), f64_set(0x1p52 + 1023));
    f64_vec part = f64_with_bits(f64_and_bits(total, 0xfffffffffffffu), (uint64_t)1023 << 52), carry, log;
    exponent = f64_add(f64_sub(exponent, f64_set(OP(KEPT_BITS))), ref_exp);
    part = f64_split(part, &carry, 0);
    log = f64_log_near_one(f64_sub(part, f64_set(1)), carry, f64_set(0));
    if (sizeof(REAL) == sizeof(float))
        log = f64_add(log, f64_set(TL_FLOAT_TERM_BIAS));
    f64_store(operand, f64_add(f64_mul(exponent, f64_set((double)OP(LN2))), log));
    return good;
}

/* What is written from class k on, by the kind of map, which is known to the compiler. */
TL_TARGET TL_INLINE OP(vec) NAME(mapped_at_)(enum tl_row_map map, const void *from, size_t k, OP(vec) a, OP(vec) b,
                                             const OP(acc) * acc) {
    OP(vec) x = map == SCALE ? OP(load)((const REAL *)from + k) : LOAD((const ELEMENT *)from + k);
    return map == SCALE      ? OP(mul)(x, a)
           : map == SUBTRACT ? OP(sub)(OP(sub)(x, a), b)
                             : OP(mul_add)(OP(whole_exp)(x, acc), a, b);
}

/* Maps a row: exponentials that were kept, or elements, perhaps in place. So the last ones are read first. Only whole
 * cache lines are written past the caches, and only of rows that have many. */
TL_TARGET TL_INLINE void NAME(map_row_)(enum tl_row_map map, const void *from, size_t classes, OP(vec) a, OP(vec) b,
                                        const OP(acc) * acc, ELEMENT *to, int streaming) {
    const size_t last = classes - OP(WIDTH), line = 64 / sizeof *to, until_line = -(uintptr_t)to % 64 / sizeof *to;
    const OP(vec) at_end = NAME(mapped_at_)(map, from, last, a, b, acc);
    size_t k = 0;
    if (streaming && classes >= TL_CHUNK && (const void *)to != from && (uintptr_t)to % sizeof *to == 0) {
        for (; k < until_line; k += OP(WIDTH))
            STORE(to + k, NAME(mapped_at_)(map, from, k, a, b, acc));
        for (k = until_line; k + line <= classes; k += line)
            for (size_t i = k; i < k + line; i += OP(WIDTH))
                NAME(stream_)(to + i, NAME(mapped_at_)(map, from, i, a, b, acc));
    }
    for (; k < last; k += OP(WIDTH))
        STORE(to + k, NAME(mapped_at_)(map, from, k, a, b, acc));
    if (k < classes)
        STORE(to + last, at_end);
}

TL_TARGET static size_t NAME(softmax_rows_)(const char *rows, ptrdiff_t apart, size_t count, size_t classes, int is_log,
                                            char *out, ptrdiff_t out_apart) {
    const size_t kept_apart = is_log ? 0 : tl_kept_row(classes); /* of a log_softmax, none is read */
    REAL memory[TL_MAX_KEPT + 16 + 64 / sizeof(REAL)], *kept = memory + (-(uintptr_t)memory & 63) / sizeof(REAL);
    double ref_exp[TL_GROUP] = {0}, eight[TL_GROUP][8], sum[TL_GROUP], operand[TL_GROUP];
    size_t most = (TL_MAX_KEPT + 16) / tl_kept_row(classes), done = 0, n;
    if (most > TL_GROUP || (is_log && 2 * most >= TL_GROUP)) /* a log_softmax reads the logits again */
        most = TL_GROUP;
    for (; done < count; done += n) {
        n = count - done < most ? count - done : most;
        const int are_near = NAME(exp_near_)(rows, apart, n, classes, kept, kept_apart, eight, out, out_apart);
        for (size_t r = 0; r < n && !are_near; r++)
            ref_exp[r] = NAME(exp_far_)((const ELEMENT *)(const void *)(rows + (ptrdiff_t)r * apart), classes,
                                        kept + r * kept_apart, eight[r]);
        uint32_t good = ~(uint32_t)0 << n;
        add_lanes_of_rows(eight, n, sum);
        for (size_t r = 0; r < n; r += f64_WIDTH)
            good |= NAME(end_softmax_)(f64_load(sum + r), f64_load(ref_exp + r), is_log, operand + r) << r;
        if (~good != 0)
            break;
        for (size_t r = 0; r < n; r++, rows += apart, out += out_apart) {
            const REAL high = (REAL)operand[r], low = (REAL)(operand[r] - (double)high); /* more digits than a float */
            ELEMENT *to = (ELEMENT *)(void *)out;
            if (is_log)
                NAME(map_row_)(SUBTRACT, rows, classes, OP(set)(high), OP(set)(low), NULL, to, 0);
            else
                NAME(map_row_)(SCALE, kept + r * kept_apart, classes, OP(set)(high), OP(set)(low), NULL, to, 0);
        }
        if (!are_near)
            memset(ref_exp, 0, sizeof ref_exp);
    }
    return done;
}

TL_TARGET static void NAME(exp_scaled_rows_)(const char *const *rows, size_t count, size_t classes,
                                             const double *exponent, const double *factor, const double *subtrahend,
                                             char *const *out, int streaming) {
    for (size_t r = 0; r < count; r++) {
        ELEMENT *to = (ELEMENT *)(void *)out[r];
        const REAL high = (REAL)subtrahend[r], low = (REAL)(subtrahend[r] - (double)high);
        if (!to) /* its exponent may be none */
            continue;
        if (!exponent) {
            NAME(map_row_)(SUBTRACT, rows[r], classes, OP(set)(high), OP(set)(low), NULL, to, streaming);
            continue;
        }
        const OP(acc) acc = OP(acc_init)((int64_t)exponent[r] + OP(HEADROOM), 1, 0, 0);
        NAME(map_row_)(EXPONENTIATE, rows[r], classes, OP(set)((REAL)factor[r]), OP(set)(0 - high), &acc, to,
                       streaming);
    }
    if (streaming)
        tl_stream_end();
}
