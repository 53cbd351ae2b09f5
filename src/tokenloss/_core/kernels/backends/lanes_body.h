/* What a reduction adds up: sums in 16 lanes of double, and counts. Lanes of doubles keep what their roundings lost.
 * Those of floats do not, and are SCALE times as large as they are stored. */

#define KEEPS_LOST (sizeof(REAL) == sizeof(double))

TL_TARGET TL_INLINE tl_lanes OP(load_lanes)(const double *sum, const double *comp) {
    tl_lanes lanes;
    for (size_t i = 0; i < LANE_VECTORS; i++) {
        lanes.sum[i] = f64_mul(f64_load(sum + i * f64_WIDTH), f64_set(OP(SCALE)));
        lanes.comp[i] = KEEPS_LOST ? f64_load(comp + i * f64_WIDTH) : f64_set(0);
    }
    return lanes;
}

TL_TARGET TL_INLINE void OP(store_lanes)(const tl_lanes *lanes, double *sum, double *comp) {
    for (size_t i = 0; i < LANE_VECTORS; i++) {
        f64_store(sum + i * f64_WIDTH, f64_mul(lanes->sum[i], f64_set(OP(UNSCALE))));
        if (KEEPS_LOST)
            f64_store(comp + i * f64_WIDTH, lanes->comp[i]);
    }
}

/* Lanes with what their roundings lost. */
TL_TARGET TL_INLINE tl_lanes OP(whole_lanes)(tl_lanes lanes) {
    for (size_t i = 0; KEEPS_LOST && i < LANE_VECTORS; i++)
        lanes.sum[i] = f64_add(lanes.sum[i], lanes.comp[i]);
    return lanes;
}

/* Adds terms, times a factor of at most 24 bits if they are floats, to PARTS vectors of lanes. */
TL_TARGET TL_INLINE void OP(add_times)(f64_vec *sum, f64_vec *comp, OP(vec) term, double factor) {
    f64_vec wide[PARTS];
    OP(widen)(term, wide);
    for (size_t i = 0; i < PARTS; i++) {
        f64_vec product = factor == 1 ? wide[i] : f64_mul(wide[i], f64_set(factor));
        if (KEEPS_LOST)
            comp[i] = f64_add(comp[i], f64_add_with_error(&sum[i], product));
        else if (factor == 1 || f64_WIDTH == 1)
            sum[i] = f64_add(sum[i], product);
        else /* the same bits, as the product is exact (portable code would have to emulate this) */
            sum[i] = f64_fma(wide[i], f64_set(factor), sum[i]);
    }
}

/* Adds a number >= 0 to a sum of others; returns the rounding error (Dekker's FastTwoSum). */
TL_TARGET TL_INLINE OP(vec) OP(add_positive)(OP(vec) * sum, OP(vec) term) {
    const OP(vec) after = OP(add)(*sum, term), more = OP(max_keep_nan)(*sum, term), less = OP(min)(*sum, term);
    *sum = after;
    return OP(sub)(less, OP(sub)(after, more));
}

/* A lane of each of a vector of rows. */
typedef struct {
    f64_vec sum[PARTS], lost[PARTS];
} OP(lane);

TL_TARGET TL_INLINE void OP(add_to_lane)(OP(lane) * lane, OP(vec) term) {
    OP(add_times)(lane->sum, lane->lost, term, 1);
}

/* Adds the first `count` of 16 lanes by halves to the first; if it `compensates`, what that loses to what they lost (of
 * floats, 0). */
TL_TARGET TL_INLINE void OP(add_lanes)(OP(lane) * lanes, size_t count, int compensates, int are_positive) {
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t l = 0; l < half && l + half < count; l++)
            for (size_t i = 0; i < PARTS; i++) {
                f64_vec *sum = &lanes[l].sum[i], *lost = &lanes[l].lost[i], x = lanes[l + half].sum[i];
                f64_vec error = are_positive ? f64_add_positive(sum, x) : f64_add_with_error(sum, x);
                if (compensates && (KEEPS_LOST || l + 3 * half < count))
                    error = f64_add(lanes[l + half].lost[i], error);
                if (compensates)
                    *lost = KEEPS_LOST || l + 2 * half < count ? f64_add(*lost, error) : error;
            }
}

/* Adds terms to the lanes from `lane` on. */
TL_TARGET TL_INLINE void OP(accumulate)(tl_lanes *lanes, size_t lane, OP(vec) term) {
    OP(add_times)(&lanes->sum[lane / f64_WIDTH], &lanes->comp[lane / f64_WIDTH], term, 1);
}

/* Adds LEADING times the terms, a product that is exact of floats. */
TL_TARGET TL_INLINE void OP(accumulate_rest)(tl_lanes *lanes, size_t lane, OP(vec) term) {
    OP(add_times)(&lanes->sum[lane / f64_WIDTH], &lanes->comp[lane / f64_WIDTH], term, (double)OP(LEADING));
}

TL_TARGET TL_INLINE void OP(store_f64)(double *p, OP(vec) a) {
    f64_vec wide[PARTS];
    OP(widen)(a, wide);
    for (size_t i = 0; i < PARTS; i++)
        f64_store(p + i * f64_WIDTH, wide[i]);
}

/* Numbers of double, rounded to REAL. */
TL_TARGET TL_INLINE OP(vec) OP(load_narrowed)(const double *x) {
    f64_vec wide[PARTS];
    for (size_t i = 0; i < PARTS; i++)
        wide[i] = f64_load(x + i * f64_WIDTH);
    return OP(narrow)(wide);
}

TL_TARGET TL_INLINE void OP(store_counts)(OP(bits) counts, int64_t *to) {
    UINT count[OP(WIDTH)];
    memcpy(count, &counts, sizeof count);
    for (size_t i = 0; i < OP(WIDTH); i++)
        to[i] = (int64_t)count[i];
}

TL_TARGET TL_INLINE int64_t OP(sum_counts)(OP(bits) counts) {
    int64_t count[OP(WIDTH)], total = 0;
    OP(store_counts)(counts, count);
    for (size_t i = 0; i < OP(WIDTH); i++)
        total += count[i];
    return total;
}

#undef KEEPS_LOST
