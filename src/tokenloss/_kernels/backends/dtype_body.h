/* The folds of one dtype on one instruction set. Included once for each pair, with these defined:
 *
 *   DTYPE       ends the functions' names      ELEMENT   type in memory
 *   LOAD(p)     a vector of elements, converted to REAL
 *   STORE(p, a) the same back, rounded; STREAM(p, a) past the caches
 *   REAL, OP(f) float and f32_f, or double and f64_f: the operations of simd_*.h. max(a, b) of a nan b is nan, while
 *               larger(a, b) is a > b ? a : b, and so passes over a nan a
 *
 * Each term is exp(x - n ln 2) 2^(n - exponent), n the nearest integer to x / ln 2. The exponential does not depend on
 * the reference, which scales all terms by a power of two and so changes no bit of the sum. Of ln 2, only the leading
 * bits are subtracted here: what that does to a sum is mended once for all, in tl_lse_log.
 *
 * With exp(r) = 1 + r p(r), the powers of two and the rests r p(r) 2^k are added apart: the first are nearly exact, the
 * second are small, and so are their roundings. Both are added in a fixed tree: of the 8 in a lane of a granule, then
 * 64 lanes to 16, in double where roundings matter. */

#define NAME(what) JOIN(JOIN(what, DTYPE), JOIN(_, BACKEND))

/* The power of two of exp(x) and, returned, the polynomial p(r). `rest` becomes r times the power. */
TL_TARGET TL_INLINE OP(vec)
    NAME(exp_)(OP(vec) x, const OP(scale) * scale, OP(vec) * shifted, OP(vec) * power, OP(vec) * rest) {
    *shifted = OP(fma)(x, OP(set)(OP(LOG2E)), scale->magic);
    OP(vec) r = OP(fma)(OP(sub)(*shifted, scale->magic), OP(set)(-OP(LN2)), x);
    OP(vec) p = OP(set)(OP(EXP)[0]);
    for (size_t k = 1; k < sizeof OP(EXP) / sizeof OP(EXP)[0]; k++)
        p = OP(fma)(p, r, OP(set)(OP(EXP)[k]));
    *power = OP(power)(*shifted);
    *rest = OP(mul)(r, *power);
    return p;
}

/* What a granule does besides adding terms: it adds each times x - center, finds the maximum, and how many reach the
 * threshold; and adds to the sum of all classes, too; or adds each times (x - center) - (other - threshold), and finds
 * the maximum and the least other. */
enum NAME(besides_) { NAME(nothing_), NAME(center_), NAME(whole_), NAME(other_) };

/* The sums of column j of the granule at x, of the powers of two, the rests and the moments: a vector's width of lanes.
 */
TL_TARGET TL_INLINE void NAME(column_)(const ELEMENT *x, size_t count, size_t j, OP(scale) * scale,
                                       enum NAME(besides_) besides, const ELEMENT *other, OP(vec) * power_of,
                                       OP(vec) * rest_of, OP(vec) * moment_of) {
    OP(vec) rest[4], power[4], moment[4];
    for (size_t k = 0; k < 4; k++) {
        size_t at = 2 * TL_LANES * k + OP(WIDTH) * j;
        if (count == TL_CHUNK && j * OP(WIDTH) * sizeof *x % 64 == 0) {
            tl_prefetch_stream(x + at);
            tl_prefetch_stream(x + at + TL_LANES);
        }
        rest[k] = power[k] = moment[k] = OP(set)(0);
        if (at >= count)
            continue;
        OP(vec) shifted[2], powers[2];
        for (size_t i = 0; i < 2; i++) {
            OP(vec) value = LOAD(x + at + TL_LANES * i), r;
            OP(vec) bounded = OP(max)(scale->lowest, value);
            OP(vec) p = NAME(exp_)(bounded, scale, &shifted[i], &powers[i], &r);
            rest[k] = i == 0 ? OP(mul)(p, r) : OP(fma)(p, r, rest[k]);
            if (besides == NAME(nothing_))
                continue;
            OP(vec) distance = OP(sub)(bounded, scale->center);
            scale->maximum[i] = OP(larger)(value, scale->maximum[i]);
            if (besides != NAME(other_)) {
                scale->reached[i] = OP(count)(scale->reached[i], value, scale->threshold);
            } else {
                OP(vec) beside = LOAD(other + at + TL_LANES * i);
                scale->least = OP(min)(scale->least, beside);
                beside = OP(sub)(OP(max)(OP(set)(-OP(HUGE)), beside), scale->threshold);
                distance = OP(sub)(distance, beside);
            }
            OP(vec) term = OP(fma)(p, r, powers[i]);
            moment[k] = i == 0 ? OP(mul)(term, distance) : OP(fma)(term, distance, moment[k]);
        }
        scale->seen[k % 2] = OP(either)(scale->seen[k % 2], shifted[0], shifted[1]);
        power[k] = OP(add)(powers[0], powers[1]);
    }
    *rest_of = OP(add)(OP(add)(rest[0], rest[1]), OP(add)(rest[2], rest[3]));
    *moment_of = OP(add)(OP(add)(moment[0], moment[1]), OP(add)(moment[2], moment[3]));
    *power_of = OP(add)(OP(add)(power[0], power[1]), OP(add)(power[2], power[3]));
}

/* Sums the column of the class that is left out once more, while that stands in the granule, which is buf: changes the
 * column's powers, and the rest of the class's lane of 16. */
TL_TARGET static void NAME(fill_)(const ELEMENT *x, size_t count, OP(scale) * scale, const tl_all_classes *whole,
                                  REAL *powers, REAL *rests) {
    size_t column = (size_t)whole->hole % TL_LANES / OP(WIDTH);
    ELEMENT *hole = (ELEMENT *)(uintptr_t)(x + whole->hole), blank = *hole;
    REAL *r = rests + whole->lane;
    OP(vec) power, rest, moment;
    memcpy((void *)hole, whole->own, sizeof *hole);
    NAME(column_)(x, count, column, scale, NAME(nothing_), NULL, &power, &rest, &moment);
    *hole = blank;
    OP(store)(powers + OP(WIDTH) * column, power);
    OP(store)(rests + OP(WIDTH) * column, rest);
    r[0] = (r[0] + r[32]) + (r[16] + r[48]);
}

/* Adds the granule at x, of which the elements from `count` on are known to add nothing. */
TL_TARGET TL_INLINE void NAME(granule_)(const ELEMENT *x, size_t count, OP(scale) * scale, tl_lanes *sum,
                                        tl_lanes *moment_sum, tl_all_classes *all, enum NAME(besides_) besides,
                                        const ELEMENT *other) {
    OP(vec) rests[TL_LANES / OP(WIDTH)], moments[TL_LANES / OP(WIDTH)];
    REAL powers_of[TL_LANES], rests_of[TL_LANES];
    tl_all_classes *whole = besides == NAME(whole_) ? all : NULL;
    for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++) {
        OP(vec) power;
        NAME(column_)(x, count, j, scale, besides, other, &power, &rests[j], &moments[j]);
        OP(accumulate)(sum->sum + OP(WIDTH) * j % 16, sum->error + OP(WIDTH) * j % 16, power);
        if (besides == NAME(whole_))
            OP(store)(powers_of + OP(WIDTH) * j, power);
    }
    if (besides == NAME(whole_) && TL_UNLIKELY(whole->hole >= 0)) {
        OP(scale) unseen = *scale;
        for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++)
            OP(store)(rests_of + OP(WIDTH) * j, rests[j]);
        NAME(fill_)(x, count, &unseen, whole, powers_of, rests_of);
    }
    for (size_t half = TL_LANES / 2; half >= 16; half /= 2)
        for (size_t j = 0; j < half / OP(WIDTH); j++) {
            rests[j] = OP(add)(rests[j], rests[j + half / OP(WIDTH)]);
            moments[j] = OP(add)(moments[j], moments[j + half / OP(WIDTH)]);
        }
    for (size_t j = 0; j < 16 / OP(WIDTH); j++) {
        OP(accumulate)(sum->sum + OP(WIDTH) * j, sum->error + OP(WIDTH) * j, rests[j]);
        if (besides != NAME(nothing_))
            OP(accumulate)(moment_sum->sum + OP(WIDTH) * j, moment_sum->error + OP(WIDTH) * j, moments[j]);
        if (besides == NAME(whole_) && whole->hole < 0)
            OP(store)(rests_of + OP(WIDTH) * j, rests[j]);
    }
    if (besides == NAME(whole_)) {
        for (size_t k = whole->lane; k < TL_LANES; k += 16)
            OP(accumulate_one)(&whole->sum, &whole->error, powers_of[k]);
        OP(accumulate_one)(&whole->sum, &whole->error, rests_of[whole->lane]);
    }
}

/* The maximum of a power of two of vectors (which it overwrites) and of `before`, as trees: a chain of comparisons in
 * scalars would take longer than the exponentials of a short row. A nan in the only vector is passed over. */
TL_TARGET TL_INLINE double NAME(larger_)(OP(vec) * maxima, size_t count, double before) {
    REAL value[OP(WIDTH)];
    for (size_t half = count / 2; half > 0; half /= 2)
        for (size_t k = 0; k < half; k++)
            maxima[k] = OP(larger)(maxima[k], maxima[k + half]);
    OP(store)(value, OP(larger)(maxima[0], OP(set)((REAL)before)));
    for (size_t half = OP(WIDTH) / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            value[j] = value[j] > value[j + half] ? value[j] : value[j + half];
    return (double)value[0];
}

TL_TARGET TL_INLINE void NAME(add_)(const ELEMENT *x, size_t count, tl_lse_acc *state, enum NAME(besides_) besides) {
    double center = besides == NAME(nothing_) ? 0 : state->moment->center;
    OP(scale) scale = OP(scale_of)(state->exponent, center, state->threshold);
    tl_lanes sum, moment;
    OP(load_lanes)(&sum, state->sum, state->error);
    if (besides != NAME(nothing_))
        OP(load_lanes)(&moment, state->moment->sum, state->moment->error);
    for (; count >= TL_CHUNK; count -= TL_CHUNK, x += TL_CHUNK)
        NAME(granule_)(x, TL_CHUNK, &scale, &sum, &moment, state->whole, besides, NULL);
    if (count > 0)
        NAME(granule_)(x, count, &scale, &sum, &moment, state->whole, besides, NULL);
    OP(store_lanes)(&sum, state->sum, state->error);
    if (besides != NAME(nothing_))
        OP(store_lanes)(&moment, state->moment->sum, state->moment->error);
    state->overflowed |= OP(beyond)(&scale);
    if (besides != NAME(nothing_)) {
        state->maximum = NAME(larger_)(scale.maximum, 2, state->maximum);
        state->reached += OP(total_count)(scale.reached[0]) + OP(total_count)(scale.reached[1]);
    }
}

TL_TARGET static void NAME(sum_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(add_)((const ELEMENT *)x, count, state, NAME(nothing_));
}

TL_TARGET static void NAME(moment_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(add_)((const ELEMENT *)x, count, state, NAME(center_));
}

TL_TARGET static void NAME(both_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(add_)((const ELEMENT *)x, count, state, NAME(whole_));
}

TL_TARGET static int NAME(divergence_)(const void *base, const void *other, size_t count, tl_lse_acc *base_state,
                                       tl_lse_acc *other_state) {
    const ELEMENT *p = (const ELEMENT *)base, *q = (const ELEMENT *)other;
    OP(scale) p_scale = OP(scale_of)(base_state->exponent, base_state->moment->center, base_state->moment->beside);
    OP(scale) q_scale = OP(scale_of)(other_state->exponent, 0, 0);
    tl_lanes p_sum, q_sum, moment;
    OP(load_lanes)(&p_sum, base_state->sum, base_state->error);
    OP(load_lanes)(&q_sum, other_state->sum, other_state->error);
    OP(load_lanes)(&moment, base_state->moment->sum, base_state->moment->error);
    for (; count >= TL_CHUNK; count -= TL_CHUNK, p += TL_CHUNK, q += TL_CHUNK) {
        NAME(granule_)(q, TL_CHUNK, &q_scale, &q_sum, NULL, NULL, NAME(nothing_), NULL);
        NAME(granule_)(p, TL_CHUNK, &p_scale, &p_sum, &moment, NULL, NAME(other_), q);
    }
    if (count > 0) {
        NAME(granule_)(q, count, &q_scale, &q_sum, NULL, NULL, NAME(nothing_), NULL);
        NAME(granule_)(p, count, &p_scale, &p_sum, &moment, NULL, NAME(other_), q);
    }
    OP(store_lanes)(&p_sum, base_state->sum, base_state->error);
    OP(store_lanes)(&q_sum, other_state->sum, other_state->error);
    OP(store_lanes)(&moment, base_state->moment->sum, base_state->moment->error);
    base_state->overflowed |= OP(beyond)(&p_scale);
    other_state->overflowed |= OP(beyond)(&q_scale);
    base_state->maximum = NAME(larger_)(p_scale.maximum, 2, base_state->maximum);
    OP(vec) minus_least = OP(sub)(OP(set)(0), p_scale.least);
    return NAME(larger_)(&minus_least, 1, 0) > OP(HUGE);
}

/* The maximum and, if wanted, how many reach the threshold. */
TL_TARGET TL_INLINE void NAME(extent_)(const ELEMENT *x, size_t count, tl_lse_acc *state, int counting) {
    OP(vec) maximum[8], threshold = OP(set)((REAL)state->threshold);
    OP(bits) reached[2] = {OP(no_bits)(), OP(no_bits)()};
    for (size_t k = 0; k < 8; k++)
        maximum[k] = OP(set)(-(REAL)INFINITY);
    for (size_t i = 0; i < count; i += 8 * OP(WIDTH))
        for (size_t k = 0; k < 8; k++) {
            if (k * OP(WIDTH) * sizeof *x % 64 == 0)
                tl_prefetch_stream(x + i + k * OP(WIDTH));
            OP(vec) value = LOAD(x + i + k * OP(WIDTH));
            maximum[k] = OP(larger)(value, maximum[k]);
            if (counting)
                reached[k % 2] = OP(count)(reached[k % 2], value, threshold);
        }
    state->maximum = NAME(larger_)(maximum, 8, state->maximum);
    if (counting)
        state->reached += OP(total_count)(reached[0]) + OP(total_count)(reached[1]);
}

TL_TARGET static void NAME(maximum_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(extent_)((const ELEMENT *)x, count, state, 0);
}

TL_TARGET static void NAME(look_)(const void *x, size_t count, tl_lse_acc *state) {
    NAME(extent_)((const ELEMENT *)x, count, state, 1);
}

TL_TARGET static size_t NAME(collect_)(const void *start, size_t count, double threshold, int32_t *found) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(vec) least = OP(set)((REAL)threshold), none = OP(set)(-(REAL)INFINITY);
    size_t collected = 0;
    for (size_t i = 0; i < count; i += TL_READ_MULTIPLE) {
        OP(vec) maximum[4] = {none, none, none, none};
        for (size_t k = 0; k < TL_READ_MULTIPLE / OP(WIDTH); k++)
            maximum[k % 4] = OP(larger)(LOAD(x + i + k * OP(WIDTH)), maximum[k % 4]);
        maximum[0] = OP(larger)(OP(larger)(maximum[0], maximum[1]), OP(larger)(maximum[2], maximum[3]));
        if (!OP(reach)(maximum[0], least))
            continue;
        for (size_t half = i; half < i + TL_READ_MULTIPLE; half += 64) {
            uint64_t reached = 0;
            for (size_t k = 0; k < 64; k += OP(WIDTH))
                reached |= (uint64_t)OP(reach)(LOAD(x + half + k), least) << k;
            for (; reached; reached &= reached - 1)
                found[collected++] = (int32_t)(half + tl_lowest_bit(reached));
        }
    }
    return collected;
}

TL_TARGET TL_INLINE void NAME(put_)(ELEMENT *out, OP(vec) value, int streaming) {
    if (streaming)
        STREAM(out, value);
    else
        STORE(out, value);
}

TL_TARGET static void NAME(exps_)(const void *start, size_t count, int64_t exponent, double factor, double subtrahend,
                                  void *out, int streaming) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(scale) scale = OP(scale_of)(exponent, 0, 0);
    const OP(vec) times = OP(set)((REAL)factor), less = OP(set)(0 - (REAL)subtrahend);
    for (size_t i = 0; i < count; i += 4 * OP(WIDTH))
        for (size_t k = i; k < i + 4 * OP(WIDTH); k += OP(WIDTH)) {
            OP(vec) shifted, power, rest, bounded = OP(max)(scale.lowest, LOAD(x + k));
            OP(vec) p = NAME(exp_)(bounded, &scale, &shifted, &power, &rest);
            NAME(put_)((ELEMENT *)out + k, OP(fma)(OP(fma)(p, rest, power), times, less), streaming);
        }
    if (streaming)
        tl_stream_end();
}

/* The subtrahend has more digits than a float. */
TL_TARGET static void NAME(less_)(const void *start, size_t count, double subtrahend, void *out, int streaming) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(vec) high = OP(set)((REAL)subtrahend), low = OP(set)((REAL)(subtrahend - (double)(REAL)subtrahend));
    for (size_t i = 0; i < count; i += OP(WIDTH))
        NAME(put_)((ELEMENT *)out + i, OP(sub)(OP(sub)(LOAD(x + i), high), low), streaming);
    if (streaming)
        tl_stream_end();
}

TL_TARGET static void NAME(total_)(const void *start, size_t count, double *sum, double *lost) {
    const ELEMENT *x = (const ELEMENT *)start;
    double part[4][16] = {{0}}, error[4][16] = {{0}};
    for (size_t i = 0; i < count; i += 64)
        for (size_t k = 0; k < 4; k++)
            for (size_t j = 0; j < 16; j += OP(WIDTH))
                OP(accumulate)(part[k] + j, error[k] + j, LOAD(x + i + 16 * k + j));
    for (size_t k = 0; k < 4; k++)
        for (size_t j = 0; j < 16; j++) {
            JOIN(add_, BACKEND)(sum + j, lost + j, part[k][j]);
            lost[j] += error[k][j];
        }
}

TL_TARGET static void NAME(widen_)(const void *start, size_t count, double *out) {
    const ELEMENT *x = (const ELEMENT *)start;
    for (size_t i = 0; i < count; i += OP(WIDTH))
        OP(store_wide)(out + i, LOAD(x + i));
}

TL_TARGET static void NAME(convert_)(const void *start, size_t count, void *out) {
    const ELEMENT *x = (const ELEMENT *)start;
    for (size_t i = 0; i < count; i += OP(WIDTH))
        OP(store)((REAL *)out + i, LOAD(x + i));
}

/* Adds 64 products of elements at x with those of each vector to as many lanes. */
TL_TARGET TL_INLINE void NAME(add_products_)(const ELEMENT *x, const char *vectors, ptrdiff_t stride, size_t count,
                                             int from_memory, OP(vec) lanes[DOTS][TL_LANES / OP(WIDTH)]) {
    for (size_t j = 0; j < TL_LANES; j += OP(WIDTH)) {
        if (from_memory && j * sizeof *x % 64 == 0)
            tl_prefetch_stream(x + j);
        OP(vec) value = LOAD(x + j);
        for (size_t v = 0; v < count; v++) {
            const REAL *with = (const REAL *)(const void *)(vectors + (ptrdiff_t)v * stride);
            lanes[v][j / OP(WIDTH)] = OP(add_product)(value, OP(load)(with + j), lanes[v][j / OP(WIDTH)]);
        }
    }
}

/* The last products, fewer than 64. */
TL_TARGET TL_INLINE void NAME(add_last_products_)(const ELEMENT *x, size_t depth, const char *vectors, ptrdiff_t stride,
                                                  size_t count, OP(vec) lanes[DOTS][TL_LANES / OP(WIDTH)]) {
    ELEMENT last[TL_LANES] = {0};
    REAL with[DOTS][TL_LANES] = {{0}};
    memcpy(last, (const void *)x, depth * sizeof *x);
    for (size_t v = 0; v < count; v++)
        memcpy(with[v], vectors + (ptrdiff_t)v * stride, depth * sizeof **with);
    NAME(add_products_)(last, (const char *)with, sizeof *with, count, 0, lanes);
}

/* Each stretch's products are added in 64 lanes, from zero; then these to 16 in double. */
TL_TARGET TL_INLINE void NAME(dots_of_)(const ELEMENT *x, size_t depth, const char *vectors, ptrdiff_t stride,
                                        size_t count, int from_memory, double *dots) {
    double sum[DOTS][16] = {{0}}, lost[16] = {0};
    for (size_t start = 0; start < depth; start += TL_DOT_CHUNK) {
        OP(vec) lanes[DOTS][TL_LANES / OP(WIDTH)];
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

TL_TARGET static void NAME(dots_)(const void *start, size_t depth, const void *others, ptrdiff_t stride, size_t count,
                                  int from_memory, double *dots) {
    const ELEMENT *x = (const ELEMENT *)start;
    const char *vectors = (const char *)others;
    if (DOTS == 4 && count == 4)
        NAME(dots_of_)(x, depth, vectors, stride, 4, from_memory, dots);
    else if (DOTS == 4 && count == 3)
        NAME(dots_of_)(x, depth, vectors, stride, 3, from_memory, dots);
    else if (DOTS == 4 && count == 2)
        NAME(dots_of_)(x, depth, vectors, stride, 2, from_memory, dots);
    else
        for (size_t v = 0; v < count; v++)
            NAME(dots_of_)(x, depth, vectors + (ptrdiff_t)v * stride, 0, 1, from_memory && v == 0, dots + v);
}

#undef NAME
#undef DTYPE
#undef ELEMENT
#undef LOAD
#undef STORE
#undef STREAM
