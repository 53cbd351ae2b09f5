/* The kernels of one dtype on one instruction set. Included once for each pair, with these defined:
 *
 *   DTYPE       ends the functions' names      ELEMENT   type in memory
 *   LOAD(p)     a vector of elements, converted to REAL
 *   STORE(p, a) the same back, rounded; STREAM(p, a) past the caches
 *   REAL, OP(f) float and f32_f, or double and f64_f: the operations of simd_*.h
 *
 * max_keep_nan(a, b) of a nan b is nan; max_skip_nan(a, b) is a > b ? a : b, so it passes over a nan a.
 *
 * A term of the sum is exp(x - n ln 2) 2^(n - ref_exp), where n is the integer nearest to x / ln 2. The exponential
 * does not depend on the reference exponent, which scales all terms by one power of two and so changes no bit of the
 * sum. Of ln 2 only the leading bits are subtracted here; tl_lse_log corrects for the others, once for the whole sum.
 *
 * exp(x) = 2^n + 2^n r p(r). The powers of two are summed separately from the small remainders: their sum is (almost)
 * exact, and rounding errors scale with the remainders only. Both use one fixed tree: 8 terms per lane and chunk, then
 * 64 -> 16 lanes, in double where rounding matters. The result does not depend on the width of a vector. */

#define NAME(what) JOIN(JOIN(what, DTYPE), JOIN(_, BACKEND))

/* exp(x) 2^-ref_exp = pow2 + p r_pow2: returns the polynomial p(r). The low bits of n_biased hold n - ref_exp + bias.
 */
TL_TARGET TL_INLINE OP(vec)
    NAME(exp_)(OP(vec) x, const OP(acc) * acc, OP(vec) * n_biased, OP(vec) * pow2, OP(vec) * r_pow2) {
    *n_biased = OP(fma)(x, OP(set)(OP(LOG2E)), acc->round_magic);
    OP(vec) r = OP(fma)(OP(sub)(*n_biased, acc->round_magic), OP(set)(-OP(LN2)), x);
    OP(vec) p = OP(set)(OP(EXP)[0]);
    for (size_t k = 1; k < sizeof OP(EXP) / sizeof OP(EXP)[0]; k++)
        p = OP(fma)(p, r, OP(set)(OP(EXP)[k]));
    *pow2 = OP(pow2)(*n_biased);
    *r_pow2 = OP(mul)(r, *pow2);
    return p;
}

/* Mode of a chunk. SUMEXP: sum of e^x. MOMENT: also sum of e^x (x - shift), max x, #{x >= threshold}. MOMENT_AND_ALL:
 * also the sum of all classes. KL: also sum of e^x ((x - shift) - (y - shift_y)), max x and min y, where y are the
 * logits of the other row and shift_y is passed as `threshold`. */
enum NAME(mode_) { NAME(SUMEXP_), NAME(MOMENT_), NAME(MOMENT_AND_ALL_), NAME(KL_) };

/* The sums of column j of a chunk (one vector of lanes, 8 elements each): of powers of two, of remainders, and of the
 * moment. */
TL_TARGET TL_INLINE void NAME(reduce_column_)(const ELEMENT *x, size_t count, size_t j, OP(acc) * acc,
                                              enum NAME(mode_) mode, const ELEMENT *other, OP(vec) * pow2_of,
                                              OP(vec) * remainder_of, OP(vec) * moment_of) {
    OP(vec) r_pow2[4], pow2[4], moment[4];
    for (size_t k = 0; k < 4; k++) {
        size_t at = 2 * TL_LANES * k + OP(WIDTH) * j;
        if (count == TL_CHUNK && j * OP(WIDTH) * sizeof *x % 64 == 0) {
            tl_prefetch_stream(x + at);
            tl_prefetch_stream(x + at + TL_LANES);
        }
        r_pow2[k] = pow2[k] = moment[k] = OP(set)(0);
        if (at >= count)
            continue;
        OP(vec) n_biased[2], pow2s[2];
        for (size_t i = 0; i < 2; i++) {
            OP(vec) value = LOAD(x + at + TL_LANES * i), r;
            OP(vec) bounded = OP(max_keep_nan)(acc->min_arg, value);
            OP(vec) p = NAME(exp_)(bounded, acc, &n_biased[i], &pow2s[i], &r);
            r_pow2[k] = i == 0 ? OP(mul)(p, r) : OP(fma)(p, r, r_pow2[k]);
            if (mode == NAME(SUMEXP_))
                continue;
            OP(vec) factor = OP(sub)(bounded, acc->shift);
            acc->maximum[i] = OP(max_skip_nan)(value, acc->maximum[i]);
            if (mode != NAME(KL_)) {
                acc->count_ge[i] = OP(count_ge)(acc->count_ge[i], value, acc->threshold);
            } else {
                OP(vec) y = LOAD(other + at + TL_LANES * i);
                acc->min_other = OP(min)(acc->min_other, y);
                y = OP(sub)(OP(max_keep_nan)(OP(set)(-OP(OTHER_LIMIT)), y), acc->threshold);
                factor = OP(sub)(factor, y);
            }
            OP(vec) term = OP(fma)(p, r, pow2s[i]);
            moment[k] = i == 0 ? OP(mul)(term, factor) : OP(fma)(term, factor, moment[k]);
        }
        acc->or_bits[k % 2] = OP(or_bits)(acc->or_bits[k % 2], n_biased[0], n_biased[1]);
        pow2[k] = OP(add)(pow2s[0], pow2s[1]);
    }
    *remainder_of = OP(add)(OP(add)(r_pow2[0], r_pow2[1]), OP(add)(r_pow2[2], r_pow2[3]));
    *moment_of = OP(add)(OP(add)(moment[0], moment[1]), OP(add)(moment[2], moment[3]));
    *pow2_of = OP(add)(OP(add)(pow2[0], pow2[1]), OP(add)(pow2[2], pow2[3]));
}

/* Sums the column of the excluded class once more, with its logit stored into the chunk, which is a buffer. Replaces
 * the powers of two of the column, and the remainder of the lane of 16 that the class belongs to. */
TL_TARGET static void NAME(add_excluded_)(const ELEMENT *x, size_t count, OP(acc) * acc, const tl_all_classes *all,
                                          REAL *pow2s, REAL *remainders) {
    size_t column = (size_t)all->position % TL_LANES / OP(WIDTH);
    ELEMENT *excluded = (ELEMENT *)(uintptr_t)(x + all->position), saved = *excluded;
    REAL *r = remainders + all->lane;
    OP(vec) pow2, r_pow2, moment;
    memcpy((void *)excluded, all->element, sizeof *excluded);
    NAME(reduce_column_)(x, count, column, acc, NAME(SUMEXP_), NULL, &pow2, &r_pow2, &moment);
    *excluded = saved;
    OP(store)(pow2s + OP(WIDTH) * column, pow2);
    OP(store)(remainders + OP(WIDTH) * column, r_pow2);
    r[0] = (r[0] + r[32]) + (r[16] + r[48]);
}

/* Adds a chunk, whose elements from `count` on are -inf. */
TL_TARGET TL_INLINE void NAME(reduce_chunk_)(const ELEMENT *x, size_t count, OP(acc) * acc, tl_lanes *sum,
                                             tl_lanes *moment_sum, tl_all_classes *all_classes, enum NAME(mode_) mode,
                                             const ELEMENT *other) {
    OP(vec) remainders[TL_LANES / OP(WIDTH)], moments[TL_LANES / OP(WIDTH)];
    REAL pow2s_of[TL_LANES], remainders_of[TL_LANES];
    tl_all_classes *all = mode == NAME(MOMENT_AND_ALL_) ? all_classes : NULL;
    for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++) {
        OP(vec) pow2;
        NAME(reduce_column_)(x, count, j, acc, mode, other, &pow2, &remainders[j], &moments[j]);
        OP(accumulate)(sum->sum + OP(WIDTH) * j % 16, sum->comp + OP(WIDTH) * j % 16, pow2);
        if (mode == NAME(MOMENT_AND_ALL_))
            OP(store)(pow2s_of + OP(WIDTH) * j, pow2);
    }
    if (mode == NAME(MOMENT_AND_ALL_) && TL_UNLIKELY(all->position >= 0)) {
        OP(acc) unused = *acc;
        for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++)
            OP(store)(remainders_of + OP(WIDTH) * j, remainders[j]);
        NAME(add_excluded_)(x, count, &unused, all, pow2s_of, remainders_of);
    }
    for (size_t half = TL_LANES / 2; half >= 16; half /= 2)
        for (size_t j = 0; j < half / OP(WIDTH); j++) {
            remainders[j] = OP(add)(remainders[j], remainders[j + half / OP(WIDTH)]);
            moments[j] = OP(add)(moments[j], moments[j + half / OP(WIDTH)]);
        }
    for (size_t j = 0; j < 16 / OP(WIDTH); j++) {
        OP(accumulate)(sum->sum + OP(WIDTH) * j, sum->comp + OP(WIDTH) * j, remainders[j]);
        if (mode != NAME(SUMEXP_))
            OP(accumulate)(moment_sum->sum + OP(WIDTH) * j, moment_sum->comp + OP(WIDTH) * j, moments[j]);
        if (mode == NAME(MOMENT_AND_ALL_) && all->position < 0)
            OP(store)(remainders_of + OP(WIDTH) * j, remainders[j]);
    }
    if (mode == NAME(MOMENT_AND_ALL_)) {
        for (size_t k = all->lane; k < TL_LANES; k += 16)
            OP(accumulate_one)(&all->sum, &all->comp, pow2s_of[k]);
        OP(accumulate_one)(&all->sum, &all->comp, remainders_of[all->lane]);
    }
}

/* The maximum of a few vectors (1, 2, 4 or 8, which are overwritten) and of `before`. Trees, since a chain of scalar
 * comparisons would take longer than the exponentials of a short row. Only a single vector may hold nan, which is
 * passed over. */
TL_TARGET TL_INLINE double NAME(max_of_)(OP(vec) * maxima, size_t count, double before) {
    REAL value[OP(WIDTH)];
    for (size_t half = count / 2; half > 0; half /= 2)
        for (size_t k = 0; k < half; k++)
            maxima[k] = OP(max_skip_nan)(maxima[k], maxima[k + half]);
    OP(store)(value, OP(max_skip_nan)(maxima[0], OP(set)((REAL)before)));
    for (size_t half = OP(WIDTH) / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            value[j] = value[j] > value[j + half] ? value[j] : value[j + half];
    return (double)value[0];
}

TL_TARGET TL_INLINE void NAME(reduce_)(const ELEMENT *x, size_t count, tl_lse_acc *state, enum NAME(mode_) mode) {
    double shift = mode == NAME(SUMEXP_) ? 0 : state->moment->shift;
    OP(acc) acc = OP(acc_init)(state->ref_exp, shift, state->threshold);
    tl_lanes sum, moment;
    OP(load_lanes)(&sum, state->sum, state->comp);
    if (mode != NAME(SUMEXP_))
        OP(load_lanes)(&moment, state->moment->sum, state->moment->comp);
    for (; count >= TL_CHUNK; count -= TL_CHUNK, x += TL_CHUNK)
        NAME(reduce_chunk_)(x, TL_CHUNK, &acc, &sum, &moment, state->all, mode, NULL);
    if (count > 0)
        NAME(reduce_chunk_)(x, count, &acc, &sum, &moment, state->all, mode, NULL);
    OP(store_lanes)(&sum, state->sum, state->comp);
    if (mode != NAME(SUMEXP_))
        OP(store_lanes)(&moment, state->moment->sum, state->moment->comp);
    state->exp_overflow |= OP(exp_overflowed)(&acc);
    if (mode != NAME(SUMEXP_)) {
        state->maximum = NAME(max_of_)(acc.maximum, 2, state->maximum);
        state->count_ge += OP(sum_counts)(acc.count_ge[0]) + OP(sum_counts)(acc.count_ge[1]);
    }
}

TL_TARGET static void NAME(sumexp_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(reduce_)((const ELEMENT *)x, count, state, NAME(SUMEXP_));
}

TL_TARGET static void NAME(moment_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(reduce_)((const ELEMENT *)x, count, state, NAME(MOMENT_));
}

TL_TARGET static void NAME(moment_and_all_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(reduce_)((const ELEMENT *)x, count, state, NAME(MOMENT_AND_ALL_));
}

TL_TARGET static int NAME(kl_)(const void *base, const void *other, size_t count, tl_lse_acc *base_state,
                               tl_lse_acc *other_state) {
    const ELEMENT *p = (const ELEMENT *)base, *q = (const ELEMENT *)other;
    OP(acc) p_acc = OP(acc_init)(base_state->ref_exp, base_state->moment->shift, base_state->moment->other_shift);
    OP(acc) q_acc = OP(acc_init)(other_state->ref_exp, 0, 0);
    tl_lanes p_sum, q_sum, moment;
    OP(load_lanes)(&p_sum, base_state->sum, base_state->comp);
    OP(load_lanes)(&q_sum, other_state->sum, other_state->comp);
    OP(load_lanes)(&moment, base_state->moment->sum, base_state->moment->comp);
    for (; count >= TL_CHUNK; count -= TL_CHUNK, p += TL_CHUNK, q += TL_CHUNK) {
        NAME(reduce_chunk_)(q, TL_CHUNK, &q_acc, &q_sum, NULL, NULL, NAME(SUMEXP_), NULL);
        NAME(reduce_chunk_)(p, TL_CHUNK, &p_acc, &p_sum, &moment, NULL, NAME(KL_), q);
    }
    if (count > 0) {
        NAME(reduce_chunk_)(q, count, &q_acc, &q_sum, NULL, NULL, NAME(SUMEXP_), NULL);
        NAME(reduce_chunk_)(p, count, &p_acc, &p_sum, &moment, NULL, NAME(KL_), q);
    }
    OP(store_lanes)(&p_sum, base_state->sum, base_state->comp);
    OP(store_lanes)(&q_sum, other_state->sum, other_state->comp);
    OP(store_lanes)(&moment, base_state->moment->sum, base_state->moment->comp);
    base_state->exp_overflow |= OP(exp_overflowed)(&p_acc);
    other_state->exp_overflow |= OP(exp_overflowed)(&q_acc);
    base_state->maximum = NAME(max_of_)(p_acc.maximum, 2, base_state->maximum);
    OP(vec) minus_min = OP(sub)(OP(set)(0), p_acc.min_other);
    return NAME(max_of_)(&minus_min, 1, 0) > OP(OTHER_LIMIT);
}

/* The maximum and, if wanted, the number of elements >= threshold. */
TL_TARGET TL_INLINE void NAME(max_count_of_)(const ELEMENT *x, size_t count, tl_lse_acc *state, int counting) {
    OP(vec) maximum[8], threshold = OP(set)((REAL)state->threshold);
    OP(bits) count_ge[2] = {OP(no_bits)(), OP(no_bits)()};
    for (size_t k = 0; k < 8; k++)
        maximum[k] = OP(set)(-(REAL)INFINITY);
    for (size_t i = 0; i < count; i += 8 * OP(WIDTH))
        for (size_t k = 0; k < 8; k++) {
            if (k * OP(WIDTH) * sizeof *x % 64 == 0)
                tl_prefetch_stream(x + i + k * OP(WIDTH));
            OP(vec) value = LOAD(x + i + k * OP(WIDTH));
            maximum[k] = OP(max_skip_nan)(value, maximum[k]);
            if (counting)
                count_ge[k % 2] = OP(count_ge)(count_ge[k % 2], value, threshold);
        }
    state->maximum = NAME(max_of_)(maximum, 8, state->maximum);
    if (counting)
        state->count_ge += OP(sum_counts)(count_ge[0]) + OP(sum_counts)(count_ge[1]);
}

TL_TARGET static void NAME(max_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(max_count_of_)((const ELEMENT *)x, count, state, 0);
}

TL_TARGET static void NAME(max_count_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(max_count_of_)((const ELEMENT *)x, count, state, 1);
}

TL_TARGET static size_t NAME(indices_ge_)(const void *start, size_t count, double threshold, int32_t *found) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(vec) least = OP(set)((REAL)threshold), none = OP(set)(-(REAL)INFINITY);
    size_t collected = 0;
    for (size_t i = 0; i < count; i += TL_READ_MULTIPLE) {
        OP(vec) maximum[4] = {none, none, none, none};
        for (size_t k = 0; k < TL_READ_MULTIPLE / OP(WIDTH); k++)
            maximum[k % 4] = OP(max_skip_nan)(LOAD(x + i + k * OP(WIDTH)), maximum[k % 4]);
        maximum[0] =
            OP(max_skip_nan)(OP(max_skip_nan)(maximum[0], maximum[1]), OP(max_skip_nan)(maximum[2], maximum[3]));
        if (!OP(mask_ge)(maximum[0], least))
            continue;
        for (size_t half = i; half < i + TL_READ_MULTIPLE; half += 64) {
            uint64_t count_ge = 0;
            for (size_t k = 0; k < 64; k += OP(WIDTH))
                count_ge |= (uint64_t)OP(mask_ge)(LOAD(x + half + k), least) << k;
            for (; count_ge; count_ge &= count_ge - 1)
                found[collected++] = (int32_t)(half + tl_lowest_bit(count_ge));
        }
    }
    return collected;
}

TL_TARGET TL_INLINE void NAME(store_)(ELEMENT *out, OP(vec) value, int streaming) {
    if (streaming)
        STREAM(out, value);
    else
        STORE(out, value);
}

TL_TARGET static void NAME(exp_scaled_)(const void *start, size_t count, int64_t exponent, double factor,
                                        double subtrahend, void *out, int streaming) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(acc) acc = OP(acc_init)(exponent, 0, 0);
    const OP(vec) times = OP(set)((REAL)factor), less = OP(set)(0 - (REAL)subtrahend);
    for (size_t i = 0; i < count; i += 4 * OP(WIDTH))
        for (size_t k = i; k < i + 4 * OP(WIDTH); k += OP(WIDTH)) {
            OP(vec) n_biased, pow2, r_pow2, bounded = OP(max_keep_nan)(acc.min_arg, LOAD(x + k));
            OP(vec) p = NAME(exp_)(bounded, &acc, &n_biased, &pow2, &r_pow2);
            NAME(store_)((ELEMENT *)out + k, OP(fma)(OP(fma)(p, r_pow2, pow2), times, less), streaming);
        }
    if (streaming)
        tl_stream_end();
}

/* The subtrahend has more digits than a float. */
TL_TARGET static void NAME(sub_scalar_)(const void *start, size_t count, double subtrahend, void *out, int streaming) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(vec) high = OP(set)((REAL)subtrahend), low = OP(set)((REAL)(subtrahend - (double)(REAL)subtrahend));
    for (size_t i = 0; i < count; i += OP(WIDTH))
        NAME(store_)((ELEMENT *)out + i, OP(sub)(OP(sub)(LOAD(x + i), high), low), streaming);
    if (streaming)
        tl_stream_end();
}

TL_TARGET static void NAME(sum_)(const void *start, size_t count, double *sum, double *lost) {
    const ELEMENT *x = (const ELEMENT *)start;
    double part[4][16] = {{0}}, error[4][16] = {{0}};
    for (size_t i = 0; i < count; i += 64)
        for (size_t k = 0; k < 4; k++)
            for (size_t j = 0; j < 16; j += OP(WIDTH))
                OP(accumulate)(part[k] + j, error[k] + j, LOAD(x + i + 16 * k + j));
    for (size_t k = 0; k < 4; k++)
        for (size_t j = 0; j < 16; j++) {
            JOIN(two_sum_, BACKEND)(sum + j, lost + j, part[k][j]);
            lost[j] += error[k][j];
        }
}

TL_TARGET static void NAME(to_f64_)(const void *start, size_t count, double *out) {
    const ELEMENT *x = (const ELEMENT *)start;
    for (size_t i = 0; i < count; i += OP(WIDTH))
        OP(store_f64)(out + i, LOAD(x + i));
}

TL_TARGET static void NAME(to_compute_)(const void *start, size_t count, void *out) {
    const ELEMENT *x = (const ELEMENT *)start;
    for (size_t i = 0; i < count; i += OP(WIDTH))
        OP(store)((REAL *)out + i, LOAD(x + i));
}

/* Adds 64 products of elements at x with those of each vector to as many lanes. */
TL_TARGET TL_INLINE void NAME(add_products_)(const ELEMENT *x, const char *vectors, ptrdiff_t stride, size_t count,
                                             int from_memory, OP(vec) lanes[DOT_VECTORS][TL_LANES / OP(WIDTH)]) {
    for (size_t j = 0; j < TL_LANES; j += OP(WIDTH)) {
        if (from_memory && j * sizeof *x % 64 == 0)
            tl_prefetch_stream(x + j);
        OP(vec) value = LOAD(x + j);
        for (size_t v = 0; v < count; v++) {
            const REAL *with = (const REAL *)(const void *)(vectors + (ptrdiff_t)v * stride);
            lanes[v][j / OP(WIDTH)] = OP(mul_add)(value, OP(load)(with + j), lanes[v][j / OP(WIDTH)]);
        }
    }
}

/* The last products, fewer than 64. */
TL_TARGET TL_INLINE void NAME(add_last_products_)(const ELEMENT *x, size_t depth, const char *vectors, ptrdiff_t stride,
                                                  size_t count, OP(vec) lanes[DOT_VECTORS][TL_LANES / OP(WIDTH)]) {
    ELEMENT last[TL_LANES] = {0};
    REAL with[DOT_VECTORS][TL_LANES] = {{0}};
    memcpy(last, (const void *)x, depth * sizeof *x);
    for (size_t v = 0; v < count; v++)
        memcpy(with[v], vectors + (ptrdiff_t)v * stride, depth * sizeof **with);
    NAME(add_products_)(last, (const char *)with, sizeof *with, count, 0, lanes);
}

/* The products of a TL_DOT_CHUNK are added in 64 lanes, from zero; then these to 16 in double. */
TL_TARGET TL_INLINE void NAME(dot_rows_of_)(const ELEMENT *x, size_t depth, const char *vectors, ptrdiff_t stride,
                                            size_t count, int from_memory, double *dots) {
    double sum[DOT_VECTORS][16] = {{0}}, lost[16] = {0};
    for (size_t start = 0; start < depth; start += TL_DOT_CHUNK) {
        OP(vec) lanes[DOT_VECTORS][TL_LANES / OP(WIDTH)];
        size_t end = depth - start < TL_DOT_CHUNK ? depth : start + TL_DOT_CHUNK, at = start;
        for (size_t v = 0; v < count; v++)
            for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++)
                lanes[v][j] = OP(set)(0);
        for (; at + TL_LANES <= end; at += TL_LANES)
            NAME(add_products_)(x + at, vectors + at * sizeof(REAL), stride, count, from_memory, lanes);
        if (at < end)
            NAME(add_last_products_)(x + at, end - at, vectors + at * sizeof(REAL), stride, count, lanes);
        for (size_t v = 0; v < count; v++) {
            for (size_t half = TL_LANES / 2; half >= 16; half /= 2)
                for (size_t j = 0; j < half / OP(WIDTH); j++)
                    lanes[v][j] = OP(add)(lanes[v][j], lanes[v][j + half / OP(WIDTH)]);
            for (size_t j = 0; j < 16; j += OP(WIDTH))
                OP(accumulate)(sum[v] + j, lost + j, lanes[v][j / OP(WIDTH)]);
        }
    }
    for (size_t v = 0; v < count; v++) {
        for (size_t half = 8; half > 0; half /= 2)
            for (size_t j = 0; j < half; j++)
                sum[v][j] += sum[v][j + half];
        dots[v] = sum[v][0];
    }
}

TL_TARGET static void NAME(dot_rows_)(const void *start, size_t depth, const void *others, ptrdiff_t stride,
                                      size_t count, int from_memory, double *dots) {
    const ELEMENT *x = (const ELEMENT *)start;
    const char *vectors = (const char *)others;
    if (DOT_VECTORS == 4 && count == 4)
        NAME(dot_rows_of_)(x, depth, vectors, stride, 4, from_memory, dots);
    else if (DOT_VECTORS == 4 && count == 3)
        NAME(dot_rows_of_)(x, depth, vectors, stride, 3, from_memory, dots);
    else if (DOT_VECTORS == 4 && count == 2)
        NAME(dot_rows_of_)(x, depth, vectors, stride, 2, from_memory, dots);
    else
        for (size_t v = 0; v < count; v++)
            NAME(dot_rows_of_)(x, depth, vectors + (ptrdiff_t)v * stride, 0, 1, from_memory && v == 0, dots + v);
}

#define STRIP 64 /* classes of half precision that are converted at a time */

/* TL_GROUP rows side by side, converted to REAL: in strips, whose rows are copied where they are not whole. */
TL_TARGET static void NAME(interleave_)(const char *const *rows, size_t classes, void *out) {
    REAL *group = (REAL *)out, strip[TL_GROUP * STRIP];
    const char *strips[TL_GROUP];
    const size_t row_bytes = classes * sizeof(ELEMENT);
    if (sizeof(ELEMENT) == sizeof(REAL)) {
        OP(interleave)(rows, classes, group);
        return;
    }
    int is_dense = classes <= STRIP; /* whether the rows follow each other, and can be converted as one */
    for (size_t r = 1; r < TL_GROUP; r++)
        is_dense &= rows[r] == rows[r - 1] + row_bytes;
    for (size_t i = 0; is_dense && i < TL_GROUP * classes; i += OP(WIDTH))
        OP(store)(strip + i, LOAD((const ELEMENT *)(const void *)rows[0] + i));
    for (size_t r = 0; r < TL_GROUP; r++)
        strips[r] = (const char *)(strip + r * (is_dense ? classes : STRIP));
    for (size_t k = 0; k < classes; k += STRIP) {
        size_t n = classes - k < STRIP ? classes - k : STRIP;
        for (size_t r = 0; r < TL_GROUP && !is_dense; r++) {
            const ELEMENT *from = (const ELEMENT *)(const void *)rows[r] + k;
            ELEMENT last[STRIP] = {0};
            if (n < STRIP)
                memcpy(last, (const void *)from, n * sizeof *from);
            for (size_t i = 0; i < n; i += OP(WIDTH))
                OP(store)(strip + r * STRIP + i, LOAD((n < STRIP ? last : from) + i));
        }
        OP(interleave)(strips, n, group + TL_GROUP * k);
    }
}

/* The rows of a group, rounded. */
TL_TARGET static void NAME(deinterleave_)(const void *in, size_t classes, char *const *rows) {
    const REAL *group = (const REAL *)in;
    REAL strip[TL_GROUP][STRIP];
    char *strips[TL_GROUP];
    if (sizeof(ELEMENT) == sizeof(REAL)) {
        OP(deinterleave)(group, classes, rows);
        return;
    }
    for (size_t r = 0; r < TL_GROUP; r++)
        strips[r] = (char *)strip[r];
    memset(strip, 0, sizeof strip);
    for (size_t k = 0; k < classes; k += STRIP) {
        size_t n = classes - k < STRIP ? classes - k : STRIP;
        OP(deinterleave)(group + TL_GROUP * k, n, strips);
        for (size_t r = 0; r < TL_GROUP; r++) {
            ELEMENT rounded[STRIP];
            for (size_t i = 0; i < n; i += OP(WIDTH))
                STORE(rounded + i, OP(load)(strip[r] + i));
            memcpy(rows[r] + k * sizeof *rounded, rounded, n * sizeof *rounded);
        }
    }
}

/* The same for `count` class-major rows: the elements of a class are neighbours. Groups have TL_GROUP rows, the
 * last perhaps with fewer. Each plane of a class is visited once. */
TL_TARGET static void NAME(interleave_planes_)(const char *first, ptrdiff_t class_stride, size_t classes, size_t count,
                                               void *groups) {
    for (size_t k = 0; k < classes; k++)
        for (size_t r = 0; r < count; r += TL_GROUP) {
            const ELEMENT *x = (const ELEMENT *)(const void *)(first + (ptrdiff_t)k * class_stride) + r;
            REAL *to = (REAL *)groups + classes * r + TL_GROUP * k;
            ELEMENT last[TL_GROUP] = {0};
            if (count - r < TL_GROUP)
                x = (const ELEMENT *)memcpy(last, (const void *)x, (count - r) * sizeof *x);
            for (size_t i = 0; i < TL_GROUP; i += OP(WIDTH))
                OP(store)(to + i, LOAD(x + i));
        }
}

TL_TARGET static void NAME(deinterleave_planes_)(const void *groups, ptrdiff_t class_stride, size_t classes,
                                                 size_t count, char *first) {
    for (size_t k = 0; k < classes; k++)
        for (size_t r = 0; r < count; r += TL_GROUP) {
            const REAL *from = (const REAL *)groups + classes * r + TL_GROUP * k;
            char *to = first + (ptrdiff_t)k * class_stride + r * sizeof(ELEMENT);
            ELEMENT rounded[TL_GROUP];
            for (size_t i = 0; i < TL_GROUP; i += OP(WIDTH))
                STORE(rounded + i, OP(load)(from + i));
            memcpy(to, rounded, (count - r < TL_GROUP ? count - r : TL_GROUP) * sizeof *rounded);
        }
}

#undef STRIP
#undef NAME
#undef DTYPE
#undef ELEMENT
#undef LOAD
#undef STORE
#undef STREAM
