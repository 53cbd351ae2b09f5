/* Short rows (TL_SHORT_ROW classes at most), a row in each lane: included for float32 and float64 after
 * dtype_body.h, with DTYPE, REAL and OP defined as there. Rows have at least one class.
 *
 * A group is TL_GROUP rows side by side: element k of row r is at [TL_GROUP k + r]. Each row's additions are those of
 * dtype_body.h, in their order, which for a single chunk depends on the class number alone; so the bits are the same.
 * Classes that a row does not have would add 0 there, and are left out here. */

#define NAME(what) JOIN(JOIN(what, DTYPE), JOIN(_, BACKEND))
#define PARTS (OP(WIDTH) / f64_WIDTH) /* vectors of double that hold a vector of REAL */

/* A vector for each row's reference exponent: see f32_acc. */
TL_TARGET TL_INLINE void NAME(reference_)(const double *exponents, OP(vec) * min_arg, OP(vec) * round_magic) {
    f64_vec above[PARTS], below[PARTS];
    const f64_vec bias = f64_set(OP(BIAS)), ln2 = f64_set(TL_LN2);
    for (size_t i = 0; i < PARTS; i++) {
        f64_vec exponent = f64_load(exponents + i * f64_WIDTH);
        above[i] = f64_sub(bias, exponent);
        below[i] = f64_mul(f64_sub(exponent, bias), ln2);
    }
    *round_magic = OP(add)(OP(set)(OP(ROUNDER)), OP(narrow)(above));
    *min_arg = OP(narrow)(below);
}

/* The maxima of a group, and the reference exponents: those of tl_lse_begin, and 0 for rows that are far out. Returns
 * the largest size of a maximum in each lane. */
TL_TARGET TL_INLINE f64_vec NAME(group_maximum_)(const REAL *group, size_t classes, f64_vec largest_size,
                                                 double *maximum, double *exponent) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(vec) largest[4];
        f64_vec wide[PARTS];
        for (size_t i = 0; i < 4; i++)
            largest[i] = OP(set)(-(REAL)INFINITY);
        for (size_t k = 0; k < classes; k++)
            largest[k % 4] = OP(max_skip_nan)(OP(load)(group + TL_GROUP * k + r), largest[k % 4]);
        largest[0] = OP(max_skip_nan)(largest[0], largest[1]);
        largest[2] = OP(max_skip_nan)(largest[2], largest[3]);
        OP(widen)(OP(max_skip_nan)(largest[0], largest[2]), wide);
        for (size_t i = 0; i < PARTS; i++) {
            const f64_vec zero = f64_set(0);
            f64_store(maximum + r + i * f64_WIDTH, f64_add(wide[i], zero));
            f64_vec size = f64_and_bits(wide[i], 0x7fffffffffffffffu);
            largest_size = f64_if_less(largest_size, size, size, largest_size);
            f64_vec near = f64_if_less(f64_set(TL_MAX_EXACT_REDUCTION), size, zero, wide[i]);
            f64_vec half = f64_if_less(near, zero, f64_set(-0.5), f64_set(0.5));
            f64_store(exponent + r + i * f64_WIDTH, f64_trunc(f64_add(f64_mul(near, f64_set(TL_LOG2E)), half)));
        }
    }
    return largest_size;
}

typedef struct {
    f64_vec sum[PARTS], comp[PARTS];
} NAME(lane_);

TL_TARGET TL_INLINE void NAME(add_)(NAME(lane_) * lane, OP(vec) term) {
    f64_vec wide[PARTS];
    OP(widen)(term, wide);
    for (size_t i = 0; i < PARTS; i++) {
        f64_vec before = lane->sum[i], after = f64_add(before, wide[i]);
        if (sizeof(REAL) == sizeof(double)) {
            f64_vec other = f64_sub(after, before);
            f64_vec lost = f64_add(f64_sub(before, f64_sub(after, other)), f64_sub(wide[i], other));
            lane->comp[i] = f64_add(lane->comp[i], lost);
        }
        lane->sum[i] = after;
    }
}

/* Adds lanes [half, count) to the first ones, and what the roundings lost to `comp`. In sums of exponentials, which are
 * not negative, the larger one can be subtracted first, with the same result. */
TL_TARGET TL_INLINE void NAME(add_halves_)(NAME(lane_) * lanes, size_t i, size_t half, size_t count, int of_exps) {
    for (size_t l = 0; l < half && l + half < count; l++) {
        f64_vec a = lanes[l].sum[i], b = lanes[l + half].sum[i], sum = f64_add(a, b), other = f64_sub(sum, a), lost;
        if (of_exps)
            lost = f64_sub(f64_min(a, b), f64_sub(sum, f64_max_keep_nan(a, b)));
        else
            lost = f64_add(f64_sub(a, f64_sub(sum, other)), f64_sub(b, other));
        if (!of_exps || half < 8 || sizeof(REAL) == sizeof(double)) /* else nothing was lost before */
            lost = f64_add(lanes[l].comp[i], f64_add(lanes[l + half].comp[i], lost));
        lanes[l].comp[i] = lost;
        lanes[l].sum[i] = sum;
    }
}

/* tl_lanes_sum_compensated of 16 lanes, of which the first `count` are there. */
TL_TARGET TL_INLINE void NAME(end_lanes_)(NAME(lane_) * lanes, size_t count, int of_exps, double *total) {
    for (size_t i = 0; i < PARTS; i++) {
        NAME(add_halves_)(lanes, i, 8, count, of_exps);
        NAME(add_halves_)(lanes, i, 4, count, of_exps);
        NAME(add_halves_)(lanes, i, 2, count, of_exps);
        NAME(add_halves_)(lanes, i, 1, count, of_exps);
        f64_store(total + i * f64_WIDTH, f64_add(lanes[0].sum[i], lanes[0].comp[i]));
    }
}

/* The largest of the lanes, and their plain sum. */
TL_TARGET TL_INLINE void NAME(compare_lanes_)(const NAME(lane_) * lanes, size_t count, double *largest,
                                              double *in_order) {
    for (size_t i = 0; i < PARTS; i++) {
        f64_vec most = f64_set(0), sum = f64_set(0);
        for (size_t l = 0; l < count; l++) {
            most = f64_if_less(most, lanes[l].sum[i], lanes[l].sum[i], most);
            sum = f64_add(sum, lanes[l].sum[i]);
        }
        f64_store(largest + i * f64_WIDTH, most);
        f64_store(in_order + i * f64_WIDTH, sum);
    }
}

/* Asks memory for a part of what is read or written next: one line for each full vector. */
TL_TARGET TL_INLINE void NAME(prefetch_)(const tl_next_rows *next, size_t k) {
    if (sizeof(OP(vec)) >= 32 && next->data)
        tl_prefetch(next->data + (ptrdiff_t)k * next->class_stride);
}

/* The next rows of a vector that begins at row r. Of contiguous rows, all bytes are asked for in some order. */
TL_TARGET TL_INLINE tl_next_rows NAME(next_of_)(const tl_next_rows *next, size_t r) {
    tl_next_rows of = {next->data, next->row_stride,
                       next->class_stride ? next->class_stride : (ptrdiff_t)sizeof(OP(vec))};
    if (next->data)
        of.data += (ptrdiff_t)r * next->row_stride;
    return of;
}

/* A term of the sum: its power of two and the remainder. */
TL_TARGET TL_INLINE OP(vec) NAME(short_term_)(const REAL *x, size_t k, const OP(acc) * acc, const tl_next_rows *next,
                                              OP(vec) * pow2, OP(vec) * r) {
    OP(vec) n_biased;
    NAME(prefetch_)(next, k);
    return NAME(exp_)(OP(max_keep_nan)(acc->min_arg, OP(load)(x + TL_GROUP * k)), acc, &n_biased, pow2, r);
}

/* The sums of one lane of 64: of elements first, first + 64, ..., as reduce_column_ adds them. */
TL_TARGET TL_INLINE void NAME(reduce_lane_)(const REAL *x, size_t first, size_t classes, const OP(acc) * acc,
                                            const tl_next_rows *next, OP(vec) * pow2_of, OP(vec) * remainder_of) {
    OP(vec) r_pow2[4], pow2[4], p, r;
    const size_t pairs = (classes - first + 2 * TL_LANES - 1) / (2 * TL_LANES);
    size_t k = 0;
    do {
        size_t at = first + 2 * TL_LANES * k;
        p = NAME(short_term_)(x, at, acc, next, &pow2[k], &r);
        r_pow2[k] = OP(mul)(p, r);
        if (at + TL_LANES < classes) {
            OP(vec) second;
            p = NAME(short_term_)(x, at + TL_LANES, acc, next, &second, &r);
            r_pow2[k] = OP(fma)(p, r, r_pow2[k]);
            pow2[k] = OP(add)(pow2[k], second);
        }
    } while (++k < pairs);
    *pow2_of = pairs > 1 ? OP(add)(pow2[0], pow2[1]) : pow2[0];
    *remainder_of = pairs > 1 ? OP(add)(r_pow2[0], r_pow2[1]) : r_pow2[0];
    if (pairs > 2) {
        *pow2_of = OP(add)(*pow2_of, pairs > 3 ? OP(add)(pow2[2], pow2[3]) : pow2[2]);
        *remainder_of = OP(add)(*remainder_of, pairs > 3 ? OP(add)(r_pow2[2], r_pow2[3]) : r_pow2[2]);
    }
}

/* The same where each lane has one element. */
TL_TARGET TL_INLINE void NAME(single_of_lane_)(const REAL *x, size_t first, const OP(acc) * acc,
                                               const tl_next_rows *next, OP(vec) * pow2, OP(vec) * remainder) {
    OP(vec) r, p = NAME(short_term_)(x, first, acc, next, pow2, &r);
    *remainder = OP(mul)(p, r);
}

/* The sums of OP(WIDTH) rows of a group: those of reduce_chunk_. `is_tiny` says at compile time that the rows have at
 * most TL_LANES classes. */
TL_TARGET TL_INLINE void NAME(sum_rows_)(const REAL *x, size_t classes, int is_tiny, const double *exponent,
                                         const tl_next_rows *next, double *sum, double *largest, double *in_order) {
    NAME(lane_) lanes[16];
    OP(acc) acc;
    const size_t count = classes < 16 ? classes : 16;
    NAME(reference_)(exponent, &acc.min_arg, &acc.round_magic);
    size_t l = 0;
    do { /* at least one lane and column, which compilers then know */
        OP(vec) pow2, remainders[4];
        const size_t columns = is_tiny ? (classes - l + 15) / 16 : 4;
        size_t q = 0;
        for (size_t i = 0; i < PARTS; i++)
            lanes[l].comp[i] = f64_set(0);
        do {
            if (is_tiny)
                NAME(single_of_lane_)(x, l + 16 * q, &acc, next, &pow2, &remainders[q]);
            else
                NAME(reduce_lane_)(x, l + 16 * q, classes, &acc, next, &pow2, &remainders[q]);
            if (q == 0)
                OP(widen)(pow2, lanes[l].sum);
            else
                NAME(add_)(&lanes[l], pow2);
        } while (++q < columns);
        if (columns > 2)
            remainders[0] = OP(add)(remainders[0], remainders[2]);
        if (columns > 1)
            remainders[0] = OP(add)(remainders[0],
                                    columns > 3 ? OP(add)(remainders[1], remainders[3]) : remainders[1]);
        NAME(add_)(&lanes[l], remainders[0]);
    } while (++l < count);
    if (largest)
        NAME(compare_lanes_)(lanes, count, largest, in_order);
    if (count == 16) /* known to the compiler */
        NAME(end_lanes_)(lanes, 16, 1, sum);
    else
        NAME(end_lanes_)(lanes, count, 1, sum);
}

/* Stage by stage, since the latency of a stage would be waited for in every group. */
TL_TARGET static void NAME(short_sumexp_)(const void *groups, size_t count, size_t classes, const tl_next_rows *next,
                                          int wants_lanes, tl_short_sums *sums) {
    f64_vec largest_size = f64_set(0);
    for (size_t g = 0; g < count; g++)
        largest_size = NAME(group_maximum_)((const REAL *)groups + TL_GROUP * classes * g, classes, largest_size,
                                            sums->maximum + TL_GROUP * g, sums->ref_exp + TL_GROUP * g);
    largest_size = f64_if_less(f64_set(TL_MAX_EXACT_REDUCTION), largest_size, f64_set(1), f64_set(0));
    sums->has_far_maximum = f64_mask_nonzero(largest_size) != 0;
    for (size_t r = 0; r < TL_GROUP * count; r += OP(WIDTH)) {
        const REAL *x = (const REAL *)groups + TL_GROUP * classes * (r / TL_GROUP) + r % TL_GROUP;
        double *largest = wants_lanes ? sums->largest_lane + r : NULL;
        const tl_next_rows ahead = NAME(next_of_)(next, r);
        if (classes <= TL_LANES)
            NAME(sum_rows_)(x, classes, 1, sums->ref_exp + r, &ahead, sums->sum + r, largest, sums->in_order + r);
        else
            NAME(sum_rows_)(x, classes, 0, sums->ref_exp + r, &ahead, sums->sum + r, largest, sums->in_order + r);
    }
}

/* Three numbers for each row, as vectors. */
TL_TARGET TL_INLINE OP(vec) NAME(of_rows_)(const double *numbers) {
    f64_vec wide[PARTS];
    for (size_t i = 0; i < PARTS; i++)
        wide[i] = f64_load(numbers + i * f64_WIDTH);
    return OP(narrow)(wide);
}

/* exp_scaled_ of each row, in place. */
TL_TARGET static void NAME(short_exp_)(void *group, size_t classes, const double *exponent, const double *factor,
                                        const double *subtrahend, const tl_next_rows *next) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(acc) acc;
        NAME(reference_)(exponent + r, &acc.min_arg, &acc.round_magic);
        const OP(vec) times = NAME(of_rows_)(factor + r),
                      less = OP(sub)(OP(set)(0), NAME(of_rows_)(subtrahend + r));
        const tl_next_rows ahead = NAME(next_of_)(next, r);
        REAL *x = (REAL *)group + r;
        for (size_t k = 0; k < classes; k++) {
            NAME(prefetch_)(&ahead, k);
            OP(vec) n_biased, pow2, r_pow2, bounded = OP(max_keep_nan)(acc.min_arg, OP(load)(x + TL_GROUP * k));
            OP(vec) p = NAME(exp_)(bounded, &acc, &n_biased, &pow2, &r_pow2);
            OP(store)(x + TL_GROUP * k, OP(fma)(OP(fma)(p, r_pow2, pow2), times, less));
        }
    }
}

/* sub_scalar_ of each row, in place. */
TL_TARGET static void NAME(short_sub_)(void *group, size_t classes, const double *subtrahend,
                                       const tl_next_rows *next) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        const OP(vec) high = NAME(of_rows_)(subtrahend + r);
        f64_vec wide[PARTS];
        OP(widen)(high, wide);
        for (size_t i = 0; i < PARTS; i++)
            wide[i] = f64_sub(f64_load(subtrahend + r + i * f64_WIDTH), wide[i]);
        const OP(vec) low = OP(narrow)(wide);
        const tl_next_rows ahead = NAME(next_of_)(next, r);
        REAL *x = (REAL *)group + r;
        for (size_t k = 0; k < classes; k++) {
            NAME(prefetch_)(&ahead, k);
            OP(store)(x + TL_GROUP * k, OP(sub)(OP(sub)(OP(load)(x + TL_GROUP * k), high), low));
        }
    }
}

/* Adds the elements [start, end) of lane l of 16 to it: as sum_ does, from parts of every 64th element. */
TL_TARGET TL_INLINE void NAME(sum_lane_)(const REAL *x, size_t l, size_t start, size_t end, NAME(lane_) * lane) {
    for (size_t q = start + l; q < start + TL_LANES && q < end; q += 16) {
        NAME(lane_) part;
        for (size_t i = 0; i < PARTS; i++)
            part.sum[i] = part.comp[i] = f64_set(0);
        for (size_t k = q; k < end; k += TL_LANES)
            NAME(add_)(&part, OP(load)(x + TL_GROUP * k));
        for (size_t i = 0; i < PARTS; i++) {
            f64_vec before = lane->sum[i], after = f64_add(before, part.sum[i]), other = f64_sub(after, before);
            f64_vec lost = f64_add(f64_sub(before, f64_sub(after, other)), f64_sub(part.sum[i], other));
            lane->comp[i] = f64_add(f64_add(lane->comp[i], lost), part.comp[i]);
            lane->sum[i] = after;
        }
    }
}

/* The plain sum of each row of a group, as tl_target_dot finds it where all masses are equal: first that of whole
 * multiples of what backends read, then the rest. */
TL_TARGET static void NAME(short_sum_)(const void *group, size_t classes, double *sum) {
    const size_t count = classes < 16 ? classes : 16, whole = classes / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        NAME(lane_) lanes[16];
        const REAL *x = (const REAL *)group + r;
        size_t l = 0;
        do {
            for (size_t i = 0; i < PARTS; i++)
                lanes[l].sum[i] = lanes[l].comp[i] = f64_set(0);
            NAME(sum_lane_)(x, l, 0, whole, &lanes[l]);
            NAME(sum_lane_)(x, l, whole, classes, &lanes[l]);
        } while (++l < count);
        NAME(end_lanes_)(lanes, count, 0, sum + r);
    }
}

#undef NAME
#undef DTYPE
#undef PARTS
