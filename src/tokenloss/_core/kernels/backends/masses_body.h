/* Sums over classes weighted by masses, for float and double. Included at the end of short_rows_body.h. */

/* Adds a term to a sum, and its rounding error to another if that is wanted. */
TL_TARGET TL_INLINE void NAME(add_wide_)(f64_vec *sum, f64_vec *comp, f64_vec term, int compensates) {
    if (compensates)
        *comp = f64_add(*comp, f64_add_with_error(sum, term));
    else
        *sum = f64_add(*sum, term);
}

/* Adds 16 classes. Where `is_tame`, products of 0 are not looked for: if one is of an infinity, the sum becomes nan. */
TL_TARGET TL_INLINE void NAME(add_16_)(const REAL *mass, const REAL *x, double shift, int is_tame, int compensates,
                                       tl_lanes *dot, tl_lanes *total) {
    for (size_t j = 0; j < 16; j += OP(WIDTH)) {
        f64_vec of_mass[PARTS], of_x[PARTS];
        OP(widen)(OP(load)(mass + j), of_mass);
        OP(widen)(OP(load)(x + j), of_x);
        for (size_t i = 0; i < PARTS; i++) {
            const size_t l = j / f64_WIDTH + i;
            f64_vec term = f64_mul(of_mass[i], f64_sub(f64_set(shift), of_x[i]));
            if (!is_tame)
                term = f64_if_equal(of_x[i], f64_set(shift), f64_set(0),
                                    f64_mass_term(of_mass[i], of_x[i], f64_set(shift)));
            NAME(add_wide_)(&dot->sum[l], &dot->comp[l], term, compensates);
            NAME(add_wide_)(&total->sum[l], &total->comp[l], of_mass[i], compensates);
        }
    }
}

/* Whether no lane is infinite or nan. */
TL_TARGET TL_INLINE int NAME(are_finite_)(const tl_lanes *lanes) {
    uint32_t found = 0;
    for (size_t i = 0; i < LANE_VECTORS; i++)
        found |= f64_mask_nonzero(f64_sub(lanes->sum[i], lanes->sum[i]));
    return found == 0;
}

/* Adds the classes of a row; the last few are copied, followed by masses of 0. Stores the sums and returns 1, or returns
 * 0 if they are not finite although `is_tame`. */
TL_TARGET TL_INLINE int NAME(add_masses_)(const REAL *mass, const REAL *x, size_t count, double shift, int is_tame,
                                          int compensates, tl_dot_acc *to) {
    tl_lanes dot = f64_load_lanes(to->dot, to->dot_comp), total = f64_load_lanes(to->mass, to->mass_comp);
    for (; count >= 16; count -= 16, mass += 16, x += 16)
        NAME(add_16_)(mass, x, shift, is_tame, compensates, &dot, &total);
    if (count > 0) {
        REAL last_mass[16] = {0}, last_x[16] = {0};
        memcpy(last_mass, (const void *)mass, count * sizeof *mass);
        memcpy(last_x, (const void *)x, count * sizeof *x);
        NAME(add_16_)(last_mass, last_x, shift, is_tame, compensates, &dot, &total);
    }
    if (is_tame && !(NAME(are_finite_)(&dot) && NAME(are_finite_)(&total)))
        return 0;
    f64_store_lanes(&dot, to->dot, to->dot_comp);
    f64_store_lanes(&total, to->mass, to->mass_comp);
    return 1;
}

TL_TARGET static void NAME(target_dot_)(const void *masses, const void *logits, size_t count, double shift,
                                        tl_dot_acc *to) {
    const REAL *mass = (const REAL *)masses, *x = (const REAL *)logits;
    if (sizeof(REAL) == sizeof(double) && to->compensates) {
        if (!NAME(add_masses_)(mass, x, count, shift, 1, 1, to))
            NAME(add_masses_)(mass, x, count, shift, 0, 1, to);
    } else if (!NAME(add_masses_)(mass, x, count, shift, 1, 0, to)) {
        NAME(add_masses_)(mass, x, count, shift, 0, 0, to);
    }
}
