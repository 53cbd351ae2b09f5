/* Divergences of short rows (TL_SHORT_ROW classes at most), a row in each lane, in double. Each row's terms and
 * additions are those of divergence_body.h, in their order, so the bits are the same. Classes that a row does not have
 * would add 0 there, and are left out here. */

/* Adds classes first, first + 16, first + 32 and first + 48, as far as they exist; or only `first` if `most` is 1.
 * `most` is a literal, so that the loops unroll. */
TL_TARGET TL_INLINE void NAME(add_four_)(const double *base, const double *other, size_t first, size_t classes,
                                         size_t most, const f64_pair_acc *acc, f64_table powers, int wanted,
                                         f64_vec *unmatched, f64_lane (*lanes)[16]) {
    f64_divergence_terms of;
    for (size_t i = 0; i < most; i++) {
        const size_t at = TL_GROUP * (first + 16 * i);
        int is_there = first + 16 * i < classes;
        f64_vec given = is_there ? f64_load(base + at) : f64_set(-(double)INFINITY);
        f64_vec of_other = is_there ? f64_load(other + at) : f64_set(-(double)INFINITY);
        f64_set_terms(&of, i, given, of_other, acc, powers, 1);
        *unmatched = f64_most_unmatched(given, of_other, *unmatched);
    }
    if (wanted & (TL_REVERSE_KL | TL_JS))
        f64_set_log_terms(&of, most, wanted);
    for (int k = 0; k < TL_DIVERGENCE_SUMS; k++)
        if (TL_WANTS_SUM(wanted, k))
            f64_add_to_lane(&lanes[k][first % 16], most == 1 ? of.term[k][0] : f64_sum_of_four(of.term[k]));
}

/* For f64_WIDTH rows from `row` on. */
TL_TARGET TL_INLINE void NAME(divergences_of_rows_)(const double *base, const double *other, size_t classes,
                                                    size_t row, int wanted, tl_short_divergences *of) {
    f64_lane lanes[TL_DIVERGENCE_SUMS][16];
    const size_t count = classes < 16 ? classes : 16;
    const f64_table powers = f64_load_powers(f64_POWERS, GUARD);
    const f64_pair_acc acc = {f64_root_init(of->base + row), f64_root_init(of->other + row),
                              f64_load(of->base + row), f64_load(of->other + row), f64_set(0)};
    f64_vec unmatched = f64_set(-(double)INFINITY);
    for (int k = 0; k < TL_DIVERGENCE_SUMS; k++)
        for (size_t l = 0; l < 16; l++)
            lanes[k][l].sum[0] = lanes[k][l].lost[0] = f64_set(0);
    for (size_t start = 0; start < classes; start += TL_LANES)
        for (size_t l = 0; l < 16 && start + l < classes; l++)
            if (start + l + 16 < classes)
                NAME(add_four_)(base, other, start + l, classes, 4, &acc, powers, wanted, &unmatched, lanes);
            else
                NAME(add_four_)(base, other, start + l, classes, 1, &acc, powers, wanted, &unmatched, lanes);
    for (int k = 0; k < TL_DIVERGENCE_SUMS; k++)
        NAME(end_lanes_)(lanes[k], count, 0, of->sum[k] + row);
    f64_store(of->unmatched + row, unmatched);
}

TL_TARGET static void NAME(short_divergences_)(const double *base, const double *other, size_t count,
                                               size_t classes, int wanted, tl_short_divergences *of) {
    enum { BUT_JS = TL_TV | TL_HELLINGER | TL_REVERSE_KL };
    for (size_t row = 0; row < TL_GROUP * count; row += f64_WIDTH) {
        const size_t at = TL_GROUP * classes * (row / TL_GROUP) + row % TL_GROUP;
        if (wanted == TL_TV)
            NAME(divergences_of_rows_)(base + at, other + at, classes, row, TL_TV, of);
        else if (wanted & TL_JS)
            NAME(divergences_of_rows_)(base + at, other + at, classes, row, BUT_JS | TL_JS, of);
        else
            NAME(divergences_of_rows_)(base + at, other + at, classes, row, BUT_JS, of);
    }
}
