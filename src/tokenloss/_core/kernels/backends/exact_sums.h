/* Exact sums of many doubles by extraction: see ../superacc.h. Each number is cut into multiples of the units of some
 * levels, and each level adds up its parts without rounding, in 16 lanes. */

/* The part of a number that is a multiple of a unit, for |rest| <= 2^51 units and rounder = 1.5 2^52 units: adding that
 * rounds it there. What is left is exact. */
TL_TARGET TL_INLINE f64_vec f64_extract(f64_vec *rest, f64_vec rounder) {
    f64_vec part = f64_sub(f64_add(*rest, rounder), rounder);
    *rest = f64_sub(*rest, part);
    return part;
}

/* 0 where the size of a number is 0 or in (below, above), else that size. */
TL_TARGET TL_INLINE f64_vec f64_if_unfit(f64_vec x, double below, double above) {
    f64_vec size = f64_and_bits(x, 0x7fffffffffffffffu), zero = f64_set(0);
    return f64_if_less(size, f64_set(above), f64_if_less(f64_set(below), size, zero, size), size); /* nan: itself */
}

/* x x - square, exactly: what the rounding of a square lost. */
TL_TARGET TL_INLINE f64_vec f64_square_lost(f64_vec x, f64_vec square) {
#if f64_WIDTH > 1
    return f64_fma(x, x, f64_sub(f64_set(0), square));
#else /* Dekker's product: an emulated fused operation takes longer */
    f64_vec wide = f64_mul(f64_set(134217729), x), high = f64_sub(wide, f64_sub(wide, x)), low = f64_sub(x, high);
    f64_vec middle = f64_mul(f64_mul(f64_set(2), high), low);
    return f64_add(f64_add(f64_sub(f64_mul(high, high), square), middle), f64_mul(low, low));
#endif
}

#define EXACT_VECTORS (16 / f64_WIDTH)

TL_TARGET static size_t JOIN(add_exactly_, BACKEND)(const double *x, size_t groups, double (*level)[16]) {
    f64_vec rounder[TL_SUM_LEVELS];
    for (int k = 0; k < TL_SUM_LEVELS; k++)
        rounder[k] = f64_set(TL_SUM_ROUNDER[k]);
    for (size_t done = 0; done < groups; done++, x += TL_SUM_GROUP) {
        f64_vec sum[TL_SUM_LEVELS][EXACT_VECTORS];
        f64_bits unfit = f64_no_bits();
        for (int k = 0; k < TL_SUM_LEVELS; k++)
            for (int j = 0; j < EXACT_VECTORS; j++)
                sum[k][j] = f64_load(&level[k][j * f64_WIDTH]);
        for (size_t i = 0; i < TL_SUM_GROUP; i += 16)
            for (int j = 0; j < EXACT_VECTORS; j++) {
                f64_vec rest = f64_load(x + i + (size_t)(j * f64_WIDTH)), odd;
                odd = f64_if_unfit(rest, TL_SUM_BELOW, TL_SUM_ABOVE);
                unfit = f64_or_bits(unfit, odd, odd);
                for (int k = 0; k < TL_SUM_LEVELS; k++)
                    sum[k][j] = f64_add(sum[k][j], f64_extract(&rest, rounder[k]));
            }
        if (TL_UNLIKELY(f64_any_bits(unfit)))
            return done;
        for (int k = 0; k < TL_SUM_LEVELS; k++)
            for (int j = 0; j < EXACT_VECTORS; j++)
                f64_store(&level[k][j * f64_WIDTH], sum[k][j]);
    }
    return groups;
}

TL_TARGET static size_t JOIN(add_squares_exactly_, BACKEND)(const double *x, size_t groups, double (*level)[16]) {
    f64_vec rounder[TL_SQUARE_LEVELS];
    for (int k = 0; k < TL_SQUARE_LEVELS; k++)
        rounder[k] = f64_set(TL_SQUARE_ROUNDER[k]);
    for (size_t done = 0; done < groups; done++, x += TL_SUM_GROUP) {
        f64_vec sum[TL_SQUARE_LEVELS][EXACT_VECTORS];
        f64_bits unfit = f64_no_bits();
        for (int k = 0; k < TL_SQUARE_LEVELS; k++)
            for (int j = 0; j < EXACT_VECTORS; j++)
                sum[k][j] = f64_load(&level[k][j * f64_WIDTH]);
        for (size_t i = 0; i < TL_SUM_GROUP; i += 16)
            for (int j = 0; j < EXACT_VECTORS; j++) {
                f64_vec v = f64_load(x + i + (size_t)(j * f64_WIDTH)), square = f64_mul(v, v);
                f64_vec lost = f64_square_lost(v, square), odd = f64_if_unfit(v, TL_SQUARE_BELOW, TL_SQUARE_ABOVE);
                unfit = f64_or_bits(unfit, odd, odd);
                for (int k = 0; k < TL_SQUARE_LEVELS - 1; k++) {
                    sum[k][j] = f64_add(sum[k][j], f64_extract(&square, rounder[k]));
                    sum[k + 1][j] = f64_add(sum[k + 1][j], f64_extract(&lost, rounder[k + 1]));
                }
            }
        if (TL_UNLIKELY(f64_any_bits(unfit)))
            return done;
        for (int k = 0; k < TL_SQUARE_LEVELS; k++)
            for (int j = 0; j < EXACT_VECTORS; j++)
                f64_store(&level[k][j * f64_WIDTH], sum[k][j]);
    }
    return groups;
}

/* Adds x to *sum; returns the rounding error (Knuth's TwoSum), nan where the sum is not finite. */
TL_TARGET TL_INLINE f64_vec f64_add_with_error(f64_vec *sum, f64_vec x) {
    f64_vec before = *sum, after = f64_add(before, x), added = f64_sub(after, before);
    *sum = after;
    return f64_add(f64_sub(before, f64_sub(after, added)), f64_sub(x, added));
}

TL_TARGET static void JOIN(add_with_errors_, BACKEND)(const double *x, size_t count, tl_error_free_sum *to) {
    f64_vec sum[TL_SUM_LANES / f64_WIDTH], error[TL_SUM_LANES / f64_WIDTH], lost[TL_SUM_LANES / f64_WIDTH];
    for (size_t j = 0; j < TL_SUM_LANES / f64_WIDTH; j++) {
        sum[j] = f64_load(&to->sum[j * f64_WIDTH]);
        error[j] = f64_load(&to->error[j * f64_WIDTH]);
        lost[j] = f64_load(&to->lost[j * f64_WIDTH]);
    }
    for (size_t i = 0; i < count; i += TL_SUM_LANES)
        for (size_t j = 0; j < TL_SUM_LANES / f64_WIDTH; j++) {
            f64_vec rest = f64_add_with_error(&sum[j], f64_load(x + i + j * f64_WIDTH));
            rest = f64_add_with_error(&error[j], rest);
            lost[j] = f64_add(lost[j], f64_and_bits(rest, 0x7fffffffffffffffu));
        }
    for (size_t j = 0; j < TL_SUM_LANES / f64_WIDTH; j++) {
        f64_store(&to->sum[j * f64_WIDTH], sum[j]);
        f64_store(&to->error[j * f64_WIDTH], error[j]);
        f64_store(&to->lost[j * f64_WIDTH], lost[j]);
    }
}
