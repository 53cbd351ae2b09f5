/* The folds of one dtype on one instruction set. Included once for each pair, with these defined:
 *
 *   DTYPE       ends the functions' names      ELEMENT   type in memory
 *   LOAD(p)     a vector of elements, converted to REAL
 *   REAL, OP(f) float and f32_f, or double and f64_f: the operations of simd_*.h
 *
 * Each term is exp(x - n ln 2) 2^(n - exponent), n the nearest integer to x / ln 2. The exponential does not depend on
 * the reference, which scales all terms by a power of two and so changes no bit of the sum. Of ln 2, only the leading
 * bits are subtracted here: what that does to a sum is mended once for all, in log_of_sum.
 *
 * With exp(r) = 1 + r p(r), the powers of two and the rests r p(r) 2^k are added apart: the first are nearly exact, the
 * second are small, and so are their roundings. Both are added in a fixed tree: of the 8 in a lane of a granule, then
 * 64 lanes to 16, in double where roundings matter. */

#define NAME(what) JOIN(JOIN(what, DTYPE), JOIN(_, BACKEND))

TL_TARGET TL_INLINE OP(vec) NAME(pair_)(const ELEMENT *x, OP(vec) lowest, OP(vec) magic, OP(bits) *seen, OP(vec) *powers) {
    OP(vec) shifted[2], power[2], rests = OP(set)(0);
    for (int i = 0; i < 2; i++) {
        OP(vec) bounded = OP(max)(lowest, LOAD(x + TL_LANES * i)); /* where the power becomes 0; a nan stays */
        shifted[i] = OP(fma)(bounded, OP(set)(OP(LOG2E)), magic);
        OP(vec) r = OP(fma)(OP(sub)(shifted[i], magic), OP(set)(-OP(LN2)), bounded);
        OP(vec) p = OP(set)(OP(EXP)[0]);
        for (size_t k = 1; k < sizeof OP(EXP) / sizeof OP(EXP)[0]; k++)
            p = OP(fma)(p, r, OP(set)(OP(EXP)[k]));
        power[i] = OP(power)(shifted[i]);
        r = OP(mul)(r, power[i]);
        rests = i == 0 ? OP(mul)(p, r) : OP(fma)(p, r, rests);
    }
    *seen = OP(either)(*seen, shifted[0], shifted[1]);
    *powers = OP(add)(power[0], power[1]);
    return rests;
}

/* Adds the granule at x, of which the elements from `count` on are known to add nothing. */
TL_TARGET TL_INLINE void NAME(granule_)(const ELEMENT *x, size_t count, OP(vec) lowest, OP(vec) magic, OP(bits) *seen,
                                        tl_state *state) {
    OP(vec) rests[TL_LANES / OP(WIDTH)];
    for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++) {
        OP(vec) rest[4], power[4];
        for (size_t k = 0; k < 4; k++) {
            size_t at = 2 * TL_LANES * k + OP(WIDTH) * j;
            if (count == TL_GRANULE && j * OP(WIDTH) * sizeof *x % 64 == 0) {
                tl_prefetch_stream(x + at);
                tl_prefetch_stream(x + at + TL_LANES);
            }
            rest[k] = power[k] = OP(set)(0);
            if (at < count)
                rest[k] = NAME(pair_)(x + at, lowest, magic, &seen[k % 2], &power[k]);
        }
        rests[j] = OP(add)(OP(add)(rest[0], rest[1]), OP(add)(rest[2], rest[3]));
        power[0] = OP(add)(OP(add)(power[0], power[1]), OP(add)(power[2], power[3]));
        OP(accumulate)(state->sum + OP(WIDTH) * j % 16, state->error + OP(WIDTH) * j % 16, power[0]);
    }
    for (size_t half = TL_LANES / 2; half >= 16; half /= 2)
        for (size_t j = 0; j < half / OP(WIDTH); j++)
            rests[j] = OP(add)(rests[j], rests[j + half / OP(WIDTH)]);
    for (size_t j = 0; j < 16 / OP(WIDTH); j++)
        OP(accumulate)(state->sum + OP(WIDTH) * j, state->error + OP(WIDTH) * j, rests[j]);
}

TL_TARGET static void NAME(sum_)(const void *start, size_t count, tl_state *state) {
    const ELEMENT *x = (const ELEMENT *)start;
    OP(vec) lowest = OP(set)((REAL)((double)(state->exponent - OP(BIAS)) * 0x1.62e42fefa39efp-1));
    OP(vec) magic = OP(set)((REAL)(OP(ROUNDER) + (REAL)(OP(BIAS) - state->exponent)));
    OP(bits) seen[2] = {OP(no_bits)(), OP(no_bits)()};
    for (; count >= TL_GRANULE; count -= TL_GRANULE, x += TL_GRANULE)
        NAME(granule_)(x, TL_GRANULE, lowest, magic, seen, state);
    if (count > 0)
        NAME(granule_)(x, count, lowest, magic, seen, state);
    if (OP(beyond)(seen[0]) || OP(beyond)(seen[1]))
        state->overflowed = 1;
}

TL_TARGET static void NAME(maximum_)(const void *start, size_t count, tl_state *state) {
    const ELEMENT *x = (const ELEMENT *)start;
    OP(vec) maximum[8];
    for (size_t k = 0; k < 8; k++)
        maximum[k] = OP(set)(-(REAL)INFINITY);
    for (size_t i = 0; i < count; i += 8 * OP(WIDTH))
        for (size_t k = 0; k < 8; k++) {
            if (k * OP(WIDTH) * sizeof *x % 64 == 0)
                tl_prefetch_stream(x + i + k * OP(WIDTH));
            maximum[k] = OP(max)(LOAD(x + i + k * OP(WIDTH)), maximum[k]);
        }
    for (size_t k = 0; k < 8; k++) {
        REAL value[OP(WIDTH)];
        OP(store)(value, maximum[k]);
        for (size_t j = 0; j < OP(WIDTH); j++)
            if ((double)value[j] > state->maximum)
                state->maximum = (double)value[j];
    }
}

#undef NAME
#undef DTYPE
#undef ELEMENT
#undef LOAD
