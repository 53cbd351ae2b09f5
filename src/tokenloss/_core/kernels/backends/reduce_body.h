/* Reductions over the elements of a row: sums of exponentials, moments, divergences, maxima. Included by dtype_body.h,
 * whose definitions it uses.
 *
 * The terms of a chunk are summed in one fixed tree, 8 in each lane: powers in fours (float) or eights (double), then
 * in the 16 double lanes; rests in two chains of 4 and moments in one of 8, then 64 -> 16 lanes, then in double. The
 * result does not depend on the width of a vector. */

/* The sums of a column of a chunk, a vector of lanes of 8 elements each; the sums of pairs and fours at first. */
typedef struct {
    OP(vec) powers[4], rests[2], moments;
} NAME(column_);

/* Adds element i of each lane, and returns its power and k. */
TL_TARGET TL_INLINE void NAME(add_elements_)(const ELEMENT *x, const ELEMENT *other, size_t i, enum tl_mode mode,
                                             int clamps, OP(acc) * acc, NAME(column_) * to, OP(vec) * k,
                                             OP(vec) * power) {
    OP(vec) value = LOAD(x), y = value;
    if (mode == KL)
        y = LOAD(other);
    OP(vec) bounded = clamps ? OP(max_keep_nan)(acc->min_arg, value) : value, *rest = &to->rests[i / 4];
    const OP(exp_parts) exp = OP(exp_of)(bounded, acc, clamps);
    *k = exp.k;
    *power = exp.power;
    *rest = i % 4 == 0 ? OP(mul)(exp.q, exp.r_power) : OP(fma)(exp.q, exp.r_power, *rest);
    if (mode == SUMEXP)
        return;
    OP(vec) factor = OP(sub)(bounded, acc->shift), term = OP(add_rest)(&exp, exp.power);
    acc->maximum[i % 2] = OP(max_skip_nan)(value, acc->maximum[i % 2]);
    if (mode == KL && clamps) {
        OP(vec) unmatched = OP(if_less)(y, OP(set)(-OP(OTHER_LIMIT)), value, acc->unmatched);
        acc->unmatched = OP(max_skip_nan)(unmatched, acc->unmatched);
        y = OP(max_keep_nan)(OP(set)(-OP(OTHER_LIMIT)), y);
    }
    if (mode == KL)
        factor = OP(sub)(factor, OP(sub)(y, acc->threshold));
    to->moments = i == 0 ? OP(mul)(term, factor) : OP(fma)(term, factor, to->moments);
}

/* Asks for the cache lines of later chunks in the order of addresses, which memory serves best, although a chunk is
 * read in columns: each pair asks for its share of a chunk's lines. Half precision computes longer than it reads, and
 * loses time by asking twice for a line. */
TL_TARGET TL_INLINE void NAME(prefetch_share_)(const ELEMENT *x, size_t j, size_t i) {
    const size_t share = 2 * OP(WIDTH) * sizeof *x, start = (4 * j + i) * share;
    const char *data = (const char *)(const void *)x;
    for (size_t line = start; line < start + share; line += 64)
        if (line % 64 == 0)
            sizeof *x == 2 ? tl_prefetch(data + line + 8192) : tl_prefetch_stream(data + line);
}

/* Adds elements 2 i and 2 i + 1 of each lane of column j; those from `count` on are -inf. */
TL_TARGET TL_INLINE void NAME(add_pair_)(const ELEMENT *x, const ELEMENT *other, size_t count, size_t j, size_t i,
                                         enum tl_mode mode, int clamps, OP(acc) * acc, NAME(column_) * to) {
    OP(vec) k[2], power[2];
    const size_t at = 2 * TL_LANES * i + OP(WIDTH) * j;
    if (count == TL_CHUNK)
        NAME(prefetch_share_)(x, j, i);
    if (at >= count) {
        to->powers[i] = OP(set)(0);
        if (i % 2 == 0)
            to->rests[i / 2] = OP(set)(0);
        if (i == 0)
            to->moments = OP(set)(0);
        return;
    }
    NAME(add_elements_)(x + at, other + at, 2 * i, mode, clamps, acc, to, &k[0], &power[0]);
    NAME(add_elements_)(x + at + TL_LANES, other + at + TL_LANES, 2 * i + 1, mode, clamps, acc, to, &k[1], &power[1]);
    acc->or_bits[i % 2] = OP(or_bits)(acc->or_bits[i % 2], k[0], k[1]);
    to->powers[i] = OP(add)(power[0], power[1]);
    COMPUTE_NOW(to->powers[i], acc->or_bits[i % 2]);
}

/* The sums of column j of a chunk. */
TL_TARGET TL_INLINE NAME(column_) NAME(reduce_column_)(const ELEMENT *x, size_t count, size_t j, OP(acc) * acc,
                                                       enum tl_mode mode, int clamps, const ELEMENT *other) {
    NAME(column_) of;
    /* no loop: compilers would not unroll every one */
    NAME(add_pair_)(x, other, count, j, 0, mode, clamps, acc, &of);
    NAME(add_pair_)(x, other, count, j, 1, mode, clamps, acc, &of);
    NAME(add_pair_)(x, other, count, j, 2, mode, clamps, acc, &of);
    NAME(add_pair_)(x, other, count, j, 3, mode, clamps, acc, &of);
    of.rests[0] = OP(add)(of.rests[0], of.rests[1]);
    of.powers[0] = OP(add)(of.powers[0], of.powers[1]);
    of.powers[1] = OP(add)(of.powers[2], of.powers[3]);
    if (OP(SUMS) == 1)
        of.powers[0] = OP(add)(of.powers[0], of.powers[1]);
    return of;
}

/* The number of elements of a chunk that are >= the threshold, unless none is. */
TL_TARGET TL_INLINE void NAME(count_chunk_)(const ELEMENT *x, size_t count, OP(acc) * acc) {
    if (!OP(mask_ge)(OP(max_skip_nan)(acc->maximum[0], acc->maximum[1]), acc->threshold))
        return;
    for (size_t i = 0; i < count; i += 2 * OP(WIDTH))
        for (size_t c = 0; c < 2; c++)
            acc->count_ge[c] = OP(count_ge)(acc->count_ge[c], LOAD(x + i + c * OP(WIDTH)), acc->threshold);
}

/* Adds a chunk, whose elements from `count` on are -inf. */
TL_TARGET TL_INLINE void NAME(reduce_chunk_)(const ELEMENT *x, size_t count, OP(acc) * acc, tl_lanes *sum,
                                             tl_lanes *moment_sum, enum tl_mode mode, int clamps,
                                             const ELEMENT *other) {
    OP(vec) rests[TL_LANES / OP(WIDTH)], moments[TL_LANES / OP(WIDTH)], maximum[2];
    for (size_t i = 0; i < 2; i++) {
        maximum[i] = acc->maximum[i];
        acc->maximum[i] = OP(set)(-(REAL)INFINITY);
    }
    for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++) {
        NAME(column_) of = NAME(reduce_column_)(x, count, j, acc, mode, clamps, other);
        for (size_t s = 0; s < OP(SUMS); s++)
            OP(accumulate)(sum, OP(WIDTH) * j % 16, of.powers[s]);
        rests[j] = of.rests[0];
        if (mode != SUMEXP)
            moments[j] = of.moments;
    }
    if (mode == MOMENT)
        NAME(count_chunk_)(x, count, acc);
    for (size_t i = 0; i < 2; i++)
        acc->maximum[i] = OP(max_skip_nan)(acc->maximum[i], maximum[i]);
    for (size_t half = TL_LANES / 2; half >= 16; half /= 2)
        for (size_t j = 0; j < half / OP(WIDTH); j++) {
            rests[j] = OP(add)(rests[j], rests[j + half / OP(WIDTH)]);
            if (mode != SUMEXP)
                moments[j] = OP(add)(moments[j], moments[j + half / OP(WIDTH)]);
        }
    for (size_t j = 0; j < 16 / OP(WIDTH); j++) {
        OP(accumulate_rest)(sum, OP(WIDTH) * j, rests[j]);
        if (mode != SUMEXP)
            OP(accumulate)(moment_sum, OP(WIDTH) * j, moments[j]);
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

/* Adds whole chunks and perhaps a last one. Returns 0, with nothing changed, if an argument needs a clamp it lacks. */
TL_TARGET TL_INLINE int NAME(try_reduce_)(const ELEMENT *x, size_t count, tl_lse_acc *state, enum tl_mode mode,
                                          int clamps) {
    const double shift = mode == SUMEXP ? 0 : state->moment->shift;
    const double threshold = mode == KL ? state->moment->other_shift : state->threshold;
    OP(acc) acc = OP(acc_init)(state->ref_exp, clamps, shift, threshold);
    tl_lanes sum = OP(load_lanes)(state->sum, state->comp), moment;
    const ELEMENT *other = mode == KL ? (const ELEMENT *)state->moment->other : x;
    if (mode != SUMEXP)
        moment = OP(load_lanes)(state->moment->sum, state->moment->comp);
    for (size_t done = 0; done < count; done += TL_CHUNK, x += TL_CHUNK, other += TL_CHUNK) {
        const size_t n = !clamps || count - done > TL_CHUNK ? TL_CHUNK : count - done;
        NAME(reduce_chunk_)(x, n, &acc, &sum, &moment, mode, clamps, other);
    }
    int out_of_range = OP(is_out_of_range)(&acc);
    if (!clamps && (out_of_range || !is_finite_sum(sum)))
        return 0;
    OP(store_lanes)(&sum, state->sum, state->comp);
    if (mode != SUMEXP) {
        OP(store_lanes)(&moment, state->moment->sum, state->moment->comp);
        state->maximum = NAME(max_of_)(acc.maximum, 2, state->maximum);
        state->count_ge += OP(sum_counts)(acc.count_ge[0]) + OP(sum_counts)(acc.count_ge[1]);
    }
    if (mode == KL)
        state->moment->is_unmatched |= clamps && OP(mask_ge)(acc.unmatched, OP(set)(OP(LOWEST)));
    state->exp_overflow |= out_of_range;
    return 1;
}

TL_TARGET TL_INLINE void NAME(reduce_)(const ELEMENT *x, size_t count, tl_lse_acc *state, enum tl_mode mode) {
    if (!state->clamps && !state->is_padded && NAME(try_reduce_)(x, count, state, mode, 0))
        return;
    state->clamps |= !state->is_padded; /* a row that has logits far below its maximum may have more */
    NAME(try_reduce_)(x, count, state, mode, 1);
}

/* The maximum and, if wanted, the number of elements >= threshold. */
TL_TARGET TL_INLINE void NAME(max_count_of_)(const ELEMENT *x, size_t count, tl_lse_acc *state, int counting) {
    OP(vec) maximum[8], threshold = OP(set)((REAL)state->threshold);
    OP(bits) count_ge[2] = {OP(set_bits)(0), OP(set_bits)(0)};
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

#define REDUCTION(name, function, mode) \
    TL_TARGET static void NAME(name)(const void *x, size_t count, tl_lse_acc *state) { \
        NAME(function)((const ELEMENT *)x, count, state, mode); \
    }
REDUCTION(sumexp_, reduce_, SUMEXP)
REDUCTION(moment_, reduce_, MOMENT)
REDUCTION(kl_, reduce_, KL)
REDUCTION(max_, max_count_of_, 0)
REDUCTION(max_count_, max_count_of_, 1)
#undef REDUCTION
