/* Short rows (TL_SHORT_ROW classes at most), a row in each lane: included for float32 and float64 after
 * dtype_body.h, with DTYPE, REAL and OP defined as there.
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

/* tl_lanes_sum_compensated of 16 lanes, of which the first `count` are there; and, if wanted, the largest lane and the
 * plain sum. */
TL_TARGET TL_INLINE void NAME(end_lanes_)(NAME(lane_) * lanes, size_t count, double *total, double *largest,
                                           double *in_order) {
    for (size_t i = 0; i < PARTS; i++) {
        if (largest) {
            f64_vec most = f64_set(0), sum = f64_set(0);
            for (size_t l = 0; l < count; l++) {
                most = f64_if_less(most, lanes[l].sum[i], lanes[l].sum[i], most);
                sum = f64_add(sum, lanes[l].sum[i]);
            }
            f64_store(largest + i * f64_WIDTH, most);
            f64_store(in_order + i * f64_WIDTH, sum);
        }
        for (size_t half = 8; half > 0; half /= 2)
            for (size_t l = 0; l < half && l + half < count; l++) {
                f64_vec a = lanes[l].sum[i], b = lanes[l + half].sum[i], sum = f64_add(a, b), other = f64_sub(sum, a);
                f64_vec lost = f64_add(f64_sub(a, f64_sub(sum, other)), f64_sub(b, other));
                lanes[l].comp[i] = f64_add(lanes[l].comp[i], f64_add(lanes[l + half].comp[i], lost));
                lanes[l].sum[i] = sum;
            }
        f64_store(total + i * f64_WIDTH, f64_add(lanes[0].sum[i], lanes[0].comp[i]));
    }
}

/* The terms of one lane of 64 and their remainders: elements first, first + 64, ..., as reduce_column_ adds them. */
TL_TARGET TL_INLINE void NAME(reduce_lane_)(const REAL *x, size_t first, size_t classes, const OP(acc) * acc,
                                               OP(vec) * pow2_of, OP(vec) * remainder_of) {
    OP(vec) r_pow2[4], pow2[4], n_biased, r;
    const size_t pairs = (classes - first + 2 * TL_LANES - 1) / (2 * TL_LANES);
    size_t k = 0;
    do { /* at least one pair, which compilers then know */
        const REAL *at = x + TL_GROUP * (first + 2 * TL_LANES * k);
        OP(vec) p = NAME(exp_)(OP(max_keep_nan)(acc->min_arg, OP(load)(at)), acc, &n_biased, &pow2[k], &r);
        r_pow2[k] = OP(mul)(p, r);
        if (first + 2 * TL_LANES * k + TL_LANES < classes) {
            OP(vec) second;
            at += TL_GROUP * TL_LANES;
            p = NAME(exp_)(OP(max_keep_nan)(acc->min_arg, OP(load)(at)), acc, &n_biased, &second, &r);
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

/* The sums of OP(WIDTH) rows of a group: those of reduce_chunk_. */
TL_TARGET TL_INLINE void NAME(sum_rows_)(const REAL *x, size_t classes, const double *exponent, double *sum,
                                          double *largest, double *in_order) {
    NAME(lane_) lanes[16];
    OP(acc) acc;
    const size_t count = classes < 16 ? classes : 16;
    NAME(reference_)(exponent, &acc.min_arg, &acc.round_magic);
    for (size_t l = 0; l < count; l++) {
        OP(vec) pow2, remainders[4];
        const size_t columns = (classes < TL_LANES ? classes - l + 15 : TL_LANES) / 16;
        for (size_t i = 0; i < PARTS; i++)
            lanes[l].comp[i] = f64_set(0);
        NAME(reduce_lane_)(x, l, classes, &acc, &pow2, &remainders[0]);
        OP(widen)(pow2, lanes[l].sum);
        for (size_t q = 1; q < columns; q++) {
            NAME(reduce_lane_)(x, l + 16 * q, classes, &acc, &pow2, &remainders[q]);
            NAME(add_)(&lanes[l], pow2);
        }
        if (columns > 2)
            remainders[0] = OP(add)(remainders[0], remainders[2]);
        if (columns > 1)
            remainders[0] = OP(add)(remainders[0],
                                    columns > 3 ? OP(add)(remainders[1], remainders[3]) : remainders[1]);
        NAME(add_)(&lanes[l], remainders[0]);
    }
    NAME(end_lanes_)(lanes, count, sum, largest, in_order);
}

/* Stage by stage, since the latency of a stage would be waited for in every group. */
TL_TARGET static void NAME(short_sumexp_)(const void *groups, size_t count, size_t classes, tl_short_sums *sums,
                                           int wants_lanes) {
    const REAL *x = (const REAL *)groups;
    f64_vec largest_size = f64_set(0);
    for (size_t g = 0; g < count; g++)
        largest_size = NAME(group_maximum_)(x + TL_GROUP * classes * g, classes, largest_size,
                                            sums->maximum + TL_GROUP * g, sums->ref_exp + TL_GROUP * g);
    largest_size = f64_if_less(f64_set(TL_MAX_EXACT_REDUCTION), largest_size, f64_set(1), f64_set(0));
    sums->has_far_maximum = f64_mask_nonzero(largest_size) != 0;
    for (size_t r = 0; r < TL_GROUP * count; r += OP(WIDTH))
        NAME(sum_rows_)(x + TL_GROUP * classes * (r / TL_GROUP) + r % TL_GROUP, classes, sums->ref_exp + r,
                         sums->sum + r, wants_lanes ? sums->largest_lane + r : NULL, sums->in_order + r);
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
                                        const double *subtrahend) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(acc) acc;
        NAME(reference_)(exponent + r, &acc.min_arg, &acc.round_magic);
        const OP(vec) times = NAME(of_rows_)(factor + r),
                      less = OP(sub)(OP(set)(0), NAME(of_rows_)(subtrahend + r));
        REAL *x = (REAL *)group + r;
        for (size_t k = 0; k < classes; k++) {
            OP(vec) n_biased, pow2, r_pow2, bounded = OP(max_keep_nan)(acc.min_arg, OP(load)(x + TL_GROUP * k));
            OP(vec) p = NAME(exp_)(bounded, &acc, &n_biased, &pow2, &r_pow2);
            OP(store)(x + TL_GROUP * k, OP(fma)(OP(fma)(p, r_pow2, pow2), times, less));
        }
    }
}

/* sub_scalar_ of each row, in place. */
TL_TARGET static void NAME(short_sub_)(void *group, size_t classes, const double *subtrahend) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        const OP(vec) high = NAME(of_rows_)(subtrahend + r);
        f64_vec wide[PARTS];
        OP(widen)(high, wide);
        for (size_t i = 0; i < PARTS; i++)
            wide[i] = f64_sub(f64_load(subtrahend + r + i * f64_WIDTH), wide[i]);
        const OP(vec) low = OP(narrow)(wide);
        REAL *x = (REAL *)group + r;
        for (size_t k = 0; k < classes; k++)
            OP(store)(x + TL_GROUP * k, OP(sub)(OP(sub)(OP(load)(x + TL_GROUP * k), high), low));
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
        for (size_t l = 0; l < count; l++) {
            for (size_t i = 0; i < PARTS; i++)
                lanes[l].sum[i] = lanes[l].comp[i] = f64_set(0);
            NAME(sum_lane_)(x, l, 0, whole, &lanes[l]);
            NAME(sum_lane_)(x, l, whole, classes, &lanes[l]);
        }
        NAME(end_lanes_)(lanes, count, sum + r, NULL, NULL);
    }
}

#undef NAME
#undef DTYPE
#undef PARTS
