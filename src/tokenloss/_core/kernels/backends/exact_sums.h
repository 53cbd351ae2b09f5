/* Exact sums of many doubles in bins: see ../superacc.h and ../backend.h. */

/* Adds to a bin what a number is in units of it, for at most 2^51 units and rounder = 1.5 2^52 units: adding that rounds
 * the number to a multiple of the unit, which is then the number of units that its low bits are more than the
 * rounder's. What is left is exact, and at most half a unit. Returns number plus rounder. */
TL_TARGET TL_INLINE f64_vec f64_add_to_bin(f64_bits *bin, f64_vec *rest, f64_vec rounder) {
    f64_vec rounded = f64_add(*rest, rounder);
    *bin = f64_add_bits(*bin, rounded);
    *rest = f64_sub(*rest, f64_sub(rounded, rounder));
    return rounded;
}

/* Adds a number to the first two bins of a sum, or, if it is `small`, to all three. The rounders' bits go with it, and
 * are taken away when bins are stored; from the third one at once. */
TL_TARGET TL_INLINE void f64_add_to_bins(f64_bits *sum, f64_vec x, int is_small) {
    (void)f64_add_to_bin(&sum[0], &x, f64_set(TL_SUM_ROUNDER[0]));
    (void)f64_add_to_bin(&sum[1], &x, f64_set(TL_SUM_ROUNDER[1]));
    if (TL_UNLIKELY(is_small)) {
        (void)f64_add_to_bin(&sum[2], &x, f64_set(TL_SUM_ROUNDER[2]));
        sum[2] = f64_add_bits(sum[2], f64_set(tl_from_bits(0 - tl_to_bits(TL_SUM_ROUNDER[2]))));
    }
}

/* Stores a bin that has a rounder's bits in it `parts` times. */
TL_TARGET TL_INLINE void f64_store_bin(uint64_t *bin, f64_bits sum, uint64_t parts, double rounder) {
    sum = f64_add_bits(sum, f64_set(tl_from_bits(0 - parts * tl_to_bits(rounder))));
    memcpy(bin, &sum, sizeof sum);
}

/* 0 where the size of a number is 0 or in (below, above), else that size. */
TL_TARGET TL_INLINE f64_vec f64_if_unfit(f64_vec x, double below, double above) {
    f64_vec size = f64_and_bits(x, 0x7fffffffffffffffu), zero = f64_set(0);
    return f64_if_less(size, f64_set(above), f64_if_less(f64_set(below), size, zero, size), size); /* nan: itself */
}

/* Adds a group to some bins, unless a number in it does not fit; returns whether all do. The rounders' bits go with the
 * numbers, and are taken away again: once from each bin for each number, twice where a square has two parts. */
TL_TARGET TL_INLINE int JOIN(add_group_, BACKEND)(const double *x, int are_squares, size_t bins,
                                                  const double *rounders, uint64_t (*bin)[TL_BIN_LANES]) {
    const uint64_t least = tl_to_bits(rounders[0]) >> 52 << 52; /* of numbers as long as a rounder */
    f64_bits sum[TL_SQUARE_BINS], unfit = f64_set_bits(0), longer = f64_set_bits(0);
    for (size_t k = 0; k < bins; k++)
        sum[k] = f64_load_bits(bin[k]);
    for (size_t i = 0; i < TL_SUM_GROUP; i += f64_WIDTH) {
        f64_vec number = f64_load(x + i), odd = number;
        if (are_squares) {
            f64_vec square = f64_mul(number, number), lost = f64_fma(number, number, f64_sub(f64_set(0), square));
            odd = f64_if_unfit(number, TL_SQUARE_BELOW, TL_SQUARE_ABOVE);
            for (size_t k = 0; k + 1 < bins; k++) {
                (void)f64_add_to_bin(&sum[k], &square, f64_set(rounders[k]));
                (void)f64_add_to_bin(&sum[k + 1], &lost, f64_set(rounders[k + 1]));
            }
        } else { /* numbers that leave nothing are not too small */
            f64_vec of_first = f64_plus_bits(f64_add_to_bin(&sum[0], &number, f64_set(rounders[0])), 0 - least);
            for (size_t k = 1; k < bins; k++)
                odd = f64_add_to_bin(&sum[k], &number, f64_set(rounders[k]));
            longer = f64_or_bits(longer, of_first, of_first);
            odd = number;
        }
        unfit = f64_or_bits(unfit, odd, odd);
    }
    if (TL_UNLIKELY(f64_any_of_bits(unfit, 0x7fffffffffffffffu) | f64_any_of_bits(longer, (uint64_t)0xfff << 52)))
        return 0;
    for (size_t k = 0; k < bins; k++) { /* by vectors: a number among those that were just stored would be waited for */
        uint64_t parts = (are_squares && k > 0 && k + 1 < bins ? 2 : 1) * TL_SUM_GROUP / f64_WIDTH;
        f64_store_bin(bin[k], sum[k], parts, rounders[k]);
    }
    return 1;
}

TL_TARGET static size_t JOIN(add_exactly_, BACKEND)(const double *x, size_t groups, int are_squares,
                                                    uint64_t (*bin)[TL_BIN_LANES]) {
    for (size_t done = 0; done < groups; done++, x += TL_SUM_GROUP) /* the third bin is for numbers below 2^-28 */
        if (are_squares ? !JOIN(add_group_, BACKEND)(x, 1, TL_SQUARE_BINS, TL_SQUARE_ROUNDER, bin)
                        : !JOIN(add_group_, BACKEND)(x, 0, TL_SUM_BINS - 1, TL_SUM_ROUNDER, bin) &&
                              !JOIN(add_group_, BACKEND)(x, 0, TL_SUM_BINS, TL_SUM_ROUNDER, bin))
            return done;
    return groups;
}

/* Adds x to *sum; returns the rounding error (Knuth's TwoSum), nan where the sum is not finite. */
TL_TARGET TL_INLINE f64_vec f64_add_with_error(f64_vec *sum, f64_vec x) {
    f64_vec before = *sum, after = f64_add(before, x), added = f64_sub(after, before);
    *sum = after;
    return f64_add(f64_sub(before, f64_sub(after, added)), f64_sub(x, added));
}
