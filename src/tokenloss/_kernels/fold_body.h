/* The fold of one dtype on one instruction set. Included once for each pair, with these defined:
 *
 *   TL_TARGET   attributes of the instruction set
 *   NAME        of the function            ELEMENT   type in memory
 *   LOAD(p)     a vector of elements, converted to REAL
 *   REAL, OP(f) float and f32_f, or double and f64_f: the operations of simd_*.h
 *
 * Each term is exp(x - n ln 2) 2^(n - exponent), n the nearest integer to x / ln 2. The exponential does not depend on
 * the reference, which scales all terms by a power of two and so changes no bit of the sum.
 *
 * With exp(r) = 1 + r p(r), the powers of two and the rests r p(r) 2^k are added apart: the first are nearly exact, the
 * second are small, and so are their roundings. Both are added in a fixed tree: of the 8 in a lane of a granule, then
 * 64 lanes to 16, then in double. */

TL_TARGET TL_INLINE OP(vec) JOIN(NAME, _pair)(const ELEMENT *x, OP(vec) lowest, OP(vec) magic, OP(vec) *maximum,
                                              OP(vec) *powers) {
    OP(vec) power[2], rests = OP(set)(0);
    for (int i = 0; i < 2; i++) {
        OP(vec) raw = LOAD(x + TL_LANES * i);
        *maximum = OP(max)(raw, *maximum);
        OP(vec) bounded = OP(max)(lowest, raw); /* where the power of two becomes 0; a nan stays */
        OP(vec) shifted = OP(fma)(bounded, OP(set)(OP(LOG2E)), magic);
        OP(vec) n = OP(sub)(shifted, magic);
        OP(vec) r = OP(fma)(n, OP(set)(-OP(LN2_HIGH)), bounded);
        r = OP(fma)(n, OP(set)(-OP(LN2_LOW)), r);
        OP(vec) p = OP(set)(OP(EXP)[0]);
        for (size_t k = 1; k < sizeof OP(EXP) / sizeof OP(EXP)[0]; k++)
            p = OP(fma)(p, r, OP(set)(OP(EXP)[k]));
        power[i] = OP(power)(shifted);
        r = OP(mul)(r, power[i]);
        rests = i == 0 ? OP(mul)(p, r) : OP(fma)(p, r, rests);
    }
    *powers = OP(add)(power[0], power[1]);
    return rests;
}

/* Adds the granule at x, of which the elements from `count` on are known to add nothing. */
TL_TARGET TL_INLINE void JOIN(NAME, _granule)(const ELEMENT *x, size_t count, OP(vec) lowest, OP(vec) magic,
                                              OP(vec) *maximum, tl_state *state) {
    OP(vec) rests[TL_LANES / OP(WIDTH)], powers[TL_LANES / OP(WIDTH)];
    for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++) {
        OP(vec) rest[4], power[4];
        for (size_t k = 0; k < 4; k++) {
            size_t at = 2 * TL_LANES * k + OP(WIDTH) * j;
            if (count == TL_GRANULE && j * OP(WIDTH) * sizeof *x % 64 == 0) {
                tl_prefetch((const char *)(x + at) + TL_AHEAD);
                tl_prefetch((const char *)(x + at + TL_LANES) + TL_AHEAD);
            }
            rest[k] = power[k] = OP(set)(0);
            if (at < count)
                rest[k] = JOIN(NAME, _pair)(x + at, lowest, magic, &maximum[k % 2], &power[k]);
        }
        rests[j] = OP(add)(OP(add)(rest[0], rest[1]), OP(add)(rest[2], rest[3]));
        powers[j] = OP(add)(OP(add)(power[0], power[1]), OP(add)(power[2], power[3]));
    }
    for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++) {
        size_t at = OP(WIDTH) * j % 16;
        OP(accumulate)(state->sum + at, state->error + at, powers[j]);
        OP(accumulate)(state->sum + at, state->error + at, rests[j]);
    }
}

TL_TARGET static void NAME(const void *start, size_t count, tl_state *state) {
    const ELEMENT *x = (const ELEMENT *)start;
    OP(vec) lowest = OP(set)((REAL)((double)(state->exponent - OP(BIAS)) * 0x1.62e42fefa39efp-1));
    OP(vec) magic = OP(set)((REAL)(OP(ROUNDER) + (REAL)(OP(BIAS) - state->exponent)));
    OP(vec) maximum[2] = {OP(set)(-(REAL)INFINITY), OP(set)(-(REAL)INFINITY)};
    for (; count >= TL_GRANULE; count -= TL_GRANULE, x += TL_GRANULE)
        JOIN(NAME, _granule)(x, TL_GRANULE, lowest, magic, maximum, state);
    if (count > 0)
        JOIN(NAME, _granule)(x, count, lowest, magic, maximum, state);
    REAL value[OP(WIDTH)];
    OP(store)(value, OP(max)(maximum[0], maximum[1]));
    for (size_t j = 0; j < OP(WIDTH); j++)
        if ((double)value[j] > state->maximum)
            state->maximum = (double)value[j];
}

#undef NAME
#undef ELEMENT
#undef LOAD
