/* Short rows (TL_SHORT_ROW classes at most), a row in each lane: included for float32 and float64 after
 * dtype_body.h, with DTYPE, REAL and OP defined as there. Rows have at least one class.
 *
 * A group is TL_GROUP rows side by side: element k of row r is at [TL_GROUP k + r]. Each row's additions are those of
 * reduce_body.h, in their order, which for a single chunk depends only on the class number; so the bits are the same.
 * Classes that a row does not have would add 0 there, and are left out here. */

#define NAME(what) JOIN(JOIN(what, DTYPE), JOIN(_, BACKEND))

/* The maxima of a group, and the reference exponents: those of tl_lse_begin, and 0 for rows that are far out. */
TL_TARGET TL_INLINE void NAME(group_maximum_)(const REAL *group, size_t classes, double *maximum, double *exponent) {
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
            f64_store(maximum + r + i * f64_WIDTH, f64_add(wide[i], f64_set(0)));
            f64_store(exponent + r + i * f64_WIDTH, f64_exponent_near(wide[i]));
        }
    }
}

typedef struct {
    f64_vec sum[PARTS], comp[PARTS];
} NAME(lane_);

/* Adds a term, times a factor of at most 24 bits if REAL is float. */
TL_TARGET TL_INLINE void NAME(add_times_)(NAME(lane_) * lane, OP(vec) term, double factor) {
    f64_vec wide[PARTS];
    OP(widen)(term, wide);
    for (size_t i = 0; i < PARTS; i++) {
        if (factor != 1) /* known to the compiler */
            wide[i] = f64_mul(wide[i], f64_set(factor));
        f64_vec before = lane->sum[i], after = f64_add(before, wide[i]);
        if (sizeof(REAL) == sizeof(double)) {
            f64_vec other = f64_sub(after, before);
            f64_vec lost = f64_add(f64_sub(before, f64_sub(after, other)), f64_sub(wide[i], other));
            lane->comp[i] = f64_add(lane->comp[i], lost);
        }
        lane->sum[i] = after;
    }
}

TL_TARGET TL_INLINE void NAME(add_)(NAME(lane_) * lane, OP(vec) term) { NAME(add_times_)(lane, term, 1); }

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

TL_TARGET TL_INLINE void NAME(end_lanes_of_)(NAME(lane_) * lanes, size_t count, int of_exps, double scale,
                                             double *total) {
    for (size_t i = 0; i < PARTS; i++) {
        NAME(add_halves_)(lanes, i, 8, count, of_exps);
        NAME(add_halves_)(lanes, i, 4, count, of_exps);
        NAME(add_halves_)(lanes, i, 2, count, of_exps);
        NAME(add_halves_)(lanes, i, 1, count, of_exps);
        f64_vec sum = f64_add(lanes[0].sum[i], lanes[0].comp[i]);
        f64_store(total + i * f64_WIDTH, f64_mul(sum, f64_set(scale)));
    }
}

/* The compensated sum of the first `count` lanes of 16, scaled by a power of two; the others would be 0. See
 * tl_lanes_sum_compensated. */
TL_TARGET TL_OUTLINE void NAME(end_lanes_)(NAME(lane_) * lanes, size_t count, double scale, double *total) {
    NAME(end_lanes_of_)(lanes, count, 0, scale, total);
}

TL_TARGET TL_OUTLINE void NAME(end_exps_)(NAME(lane_) * lanes, size_t count, double *total) {
    if (count == 16) /* known to the compiler */
        NAME(end_lanes_of_)(lanes, 16, 1, OP(UNSCALE), total);
    else
        NAME(end_lanes_of_)(lanes, count, 1, OP(UNSCALE), total);
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
        f64_store(largest + i * f64_WIDTH, f64_mul(most, f64_set(OP(UNSCALE))));
        f64_store(in_order + i * f64_WIDTH, f64_mul(sum, f64_set(OP(UNSCALE))));
    }
}

/* Asks memory for a part of what is read or written next: one line for each full vector. */
TL_TARGET TL_INLINE void NAME(prefetch_)(const tl_next_rows *next, size_t k) {
    if (sizeof(OP(vec)) >= 32 && next->data)
        tl_prefetch(next->data + (ptrdiff_t)k * next->class_stride);
}

/* The next rows of a vector that begins at row r. For contiguous rows, all bytes are asked for in some order. */
TL_TARGET TL_INLINE tl_next_rows NAME(next_of_)(const tl_next_rows *next, size_t r) {
    tl_next_rows of = {next->data, next->row_stride,
                       next->class_stride ? next->class_stride : (ptrdiff_t)sizeof(OP(vec))};
    if (next->data)
        of.data += (ptrdiff_t)r * next->row_stride;
    return of;
}

/* A number for each row. */
TL_TARGET TL_INLINE OP(vec) NAME(of_rows_)(const double *numbers) {
    f64_vec wide[PARTS];
    for (size_t i = 0; i < PARTS; i++)
        wide[i] = f64_load(numbers + i * f64_WIDTH);
    return OP(narrow)(wide);
}

/* What is added up of a lane of 64: powers, in as many sums as its elements need, rests, moments. */
typedef struct {
    OP(vec) powers[OP(SUMS)], rest, moment;
} NAME(terms_);

/* Adds class k of the rows at x, as add_elements_ does, and returns its power: `is_first` and `mode` are known to the
 * compiler. Memory is asked for a part of what is read next. In `maximum`, a divergence keeps by how much x exceeds the
 * other row's. */
TL_TARGET TL_INLINE OP(vec)
    NAME(add_class_)(const REAL *x, size_t k, OP(acc) * acc, enum tl_mode mode, const REAL *other,
                     const tl_next_rows *next, int is_first, NAME(terms_) * to) {
    OP(vec) value = OP(load)(x + TL_GROUP * k), bounded = OP(max_keep_nan)(acc->min_arg, value);
    NAME(prefetch_)(next, k);
    const OP(exp_parts) exp = OP(exp_of)(bounded, acc, 1);
    if (mode != SUMEXP) {
        OP(vec) factor = OP(sub)(bounded, acc->shift), term = OP(add_rest)(&exp, exp.power);
        if (mode == KL) {
            OP(vec) y = OP(load)(other + TL_GROUP * k);
            acc->maximum[0] = OP(max_skip_nan)(OP(sub)(value, y), acc->maximum[0]);
            y = OP(sub)(OP(max_keep_nan)(OP(set)(-OP(OTHER_LIMIT)), y), acc->threshold);
            factor = OP(sub)(factor, y);
        }
        to->moment = is_first ? OP(mul)(term, factor) : OP(fma)(term, factor, to->moment);
    }
    to->rest = is_first ? OP(mul)(exp.q, exp.r_power) : OP(fma)(exp.q, exp.r_power, to->rest);
    return exp.power;
}

/* The sums of one lane of 64: of elements first, first + 64, ..., as reduce_columns_ adds them. Returns how many of its
 * sums of powers there are. */
TL_TARGET TL_INLINE size_t NAME(reduce_lane_)(const REAL *x, size_t first, size_t classes, OP(acc) * acc,
                                              enum tl_mode mode, const REAL *other, const tl_next_rows *next,
                                              NAME(terms_) * of) {
    OP(vec) pair[4], first_rest = OP(set)(0);
    const size_t pairs = (classes - first + 2 * TL_LANES - 1) / (2 * TL_LANES);
    pair[0] = NAME(add_class_)(x, first, acc, mode, other, next, 1, of);
    for (size_t k = 0;;) {
        size_t at = first + TL_LANES * (2 * k + 1);
        if (at < classes)
            pair[k] = OP(add)(pair[k], NAME(add_class_)(x, at, acc, mode, other, next, 0, of));
        if (++k == pairs)
            break;
        if (k == 2) { /* the second chain of rests */
            first_rest = of->rest;
            of->rest = OP(set)(0);
        }
        pair[k] = NAME(add_class_)(x, at + TL_LANES, acc, mode, other, next, 0, of);
    }
    of->powers[0] = pairs > 1 ? OP(add)(pair[0], pair[1]) : pair[0];
    if (pairs < 3)
        return 1;
    of->rest = OP(add)(first_rest, of->rest);
    OP(vec) high = pairs > 3 ? OP(add)(pair[2], pair[3]) : pair[2];
    of->powers[OP(SUMS) - 1] = OP(SUMS) == 1 ? OP(add)(of->powers[0], high) : high;
    return OP(SUMS);
}

/* The first of 4 lanes, and the others that there are: as 64 lanes are added to 16. */
TL_TARGET TL_INLINE OP(vec) NAME(sum_of_4_)(const OP(vec) * lane, size_t count) {
    OP(vec) sum = count > 2 ? OP(add)(lane[0], lane[2]) : lane[0];
    return count > 1 ? OP(add)(sum, count > 3 ? OP(add)(lane[1], lane[3]) : lane[1]) : sum;
}

/* The sums of OP(WIDTH) rows, from r on: those of reduce_chunk_. `is_tiny` means at compile time that the rows have at
 * most TL_LANES classes; `moments` are for all modes but SUMEXP. */
TL_TARGET TL_INLINE void NAME(sum_rows_)(const REAL *x, size_t classes, int is_tiny, enum tl_mode mode,
                                         const REAL *other, const tl_next_rows *next, int wants_lanes, size_t row,
                                         tl_short_sums *sums, tl_short_moments *moments) {
    NAME(lane_) lanes[16], moment_lanes[16];
    OP(acc) acc;
    const size_t count = classes < 16 ? classes : 16;
    OP(reference)(sums->ref_exp + row, OP(HEADROOM), &acc);
    if (mode != SUMEXP)
        acc.shift = NAME(of_rows_)(moments->shift + row);
    if (mode == KL)
        acc.threshold = NAME(of_rows_)(moments->other_shift + row);
    acc.maximum[0] = OP(set)(-(REAL)INFINITY);
    size_t l = 0;
    do { /* at least one lane and column, which compilers then know */
        OP(vec) rest[4], moment[4];
        const size_t columns = ((classes < TL_LANES ? classes : TL_LANES) - l + 15) / 16;
        size_t q = 0;
        for (size_t i = 0; i < PARTS; i++)
            lanes[l].comp[i] = moment_lanes[l].comp[i] = f64_set(0);
        do {
            NAME(terms_) of;
            size_t sums_of_powers = 1;
            if (is_tiny)
                of.powers[0] = NAME(add_class_)(x, l + 16 * q, &acc, mode, other, next, 1, &of);
            else
                sums_of_powers = NAME(reduce_lane_)(x, l + 16 * q, classes, &acc, mode, other, next, &of);
            rest[q] = of.rest;
            if (mode != SUMEXP)
                moment[q] = of.moment;
            if (q == 0)
                OP(widen)(of.powers[0], lanes[l].sum);
            else
                NAME(add_)(&lanes[l], of.powers[0]);
            if (sums_of_powers > 1)
                NAME(add_)(&lanes[l], of.powers[OP(SUMS) - 1]);
        } while (++q < columns);
        NAME(add_times_)(&lanes[l], NAME(sum_of_4_)(rest, columns), (double)OP(LEADING));
        if (mode != SUMEXP)
            OP(widen)(NAME(sum_of_4_)(moment, columns), moment_lanes[l].sum);
    } while (++l < count);
    if (wants_lanes)
        NAME(compare_lanes_)(lanes, count, sums->largest_lane + row, sums->in_order + row);
    if (is_tiny && count < 16) /* where a call would be a twentieth of the time */
        NAME(end_lanes_of_)(lanes, count, 1, OP(UNSCALE), sums->sum + row);
    else
        NAME(end_exps_)(lanes, count, sums->sum + row);
    if (mode != SUMEXP)
        NAME(end_lanes_)(moment_lanes, count, OP(UNSCALE), moments->sum + row);
    if (mode == KL) {
        f64_vec most[PARTS];
        OP(widen)(acc.maximum[0], most);
        for (size_t i = 0; i < PARTS; i++)
            f64_store(moments->most_above + row + i * f64_WIDTH, most[i]);
    }
}

/* Stage by stage, since the latency of a stage would be waited for in every group. */
TL_TARGET TL_INLINE void NAME(short_reduce_)(const void *groups, size_t count, size_t classes, enum tl_mode mode,
                                             const tl_next_rows *next, int wants_lanes, tl_short_sums *sums,
                                             tl_short_moments *moments) {
    const f64_vec largest_near = f64_set(TL_MAX_EXACT_REDUCTION);
    for (size_t g = 0; g < count; g++)
        NAME(group_maximum_)((const REAL *)groups + TL_GROUP * classes * g, classes, sums->maximum + TL_GROUP * g,
                             sums->ref_exp + TL_GROUP * g);
    for (size_t r = 0; mode != SUMEXP && r < TL_GROUP * count; r += f64_WIDTH) {
        f64_vec shift = f64_load(sums->maximum + r), size = f64_and_bits(shift, 0x7fffffffffffffffu);
        f64_store(moments->shift + r, f64_if_less(largest_near, size, f64_set(0), shift));
    }
    for (size_t r = 0; r < TL_GROUP * count; r += OP(WIDTH)) {
        const size_t at = TL_GROUP * classes * (r / TL_GROUP) + r % TL_GROUP;
        const REAL *x = (const REAL *)groups + at, *other = NULL;
        if (mode == KL)
            other = (const REAL *)moments->other + at;
        const tl_next_rows ahead = NAME(next_of_)(next, r);
        /* with vectors, two kinds of rows would make divergences of more classes 8 % slower */
        if ((OP(WIDTH) == 1 || mode != KL) && classes <= TL_LANES)
            NAME(sum_rows_)(x, classes, 1, mode, other, &ahead, wants_lanes, r, sums, moments);
        else
            NAME(sum_rows_)(x, classes, 0, mode, other, &ahead, wants_lanes, r, sums, moments);
    }
}

TL_TARGET static void NAME(short_sumexp_)(const void *groups, size_t count, size_t classes, const tl_next_rows *next,
                                          int wants_lanes, tl_short_sums *sums) {
    NAME(short_reduce_)(groups, count, classes, SUMEXP, next, wants_lanes, sums, NULL);
}

TL_TARGET static void NAME(short_moments_)(const void *groups, size_t count, size_t classes, const tl_next_rows *next,
                                           tl_short_sums *sums, tl_short_moments *moments) {
    if (moments->other)
        NAME(short_reduce_)(groups, count, classes, KL, next, 0, sums, moments);
    else
        NAME(short_reduce_)(groups, count, classes, MOMENT, next, 0, sums, moments);
}

/* The lowest class of the maximum is the number of classes before which none has it. */
TL_TARGET static void NAME(short_ranks_)(const void *groups, size_t count, size_t classes, const double *threshold,
                                         tl_short_ranks *ranks) {
    for (size_t row = 0; row < TL_GROUP * count; row += OP(WIDTH)) {
        const REAL *x = (const REAL *)groups + TL_GROUP * classes * (row / TL_GROUP) + row % TL_GROUP;
        OP(vec) largest[4], so_far = OP(set)(-(REAL)INFINITY);
        const OP(vec) least = NAME(of_rows_)(threshold + row);
        OP(bits) count_ge = OP(set_bits)(0), since_largest = OP(set_bits)(0);
        for (size_t i = 0; i < 4; i++)
            largest[i] = so_far;
        for (size_t k = 0; k < classes; k++)
            largest[k % 4] = OP(max_skip_nan)(OP(load)(x + TL_GROUP * k), largest[k % 4]);
        largest[0] = OP(max_skip_nan)(largest[0], largest[1]);
        largest[0] = OP(max_skip_nan)(OP(max_skip_nan)(largest[2], largest[3]), largest[0]);
        for (size_t k = 0; k < classes; k++) {
            OP(vec) value = OP(load)(x + TL_GROUP * k);
            so_far = OP(max_skip_nan)(value, so_far);
            count_ge = OP(count_ge)(count_ge, value, least);
            since_largest = OP(count_ge)(since_largest, so_far, largest[0]);
        }
        OP(store_counts)(count_ge, ranks->count_ge + row);
        OP(store_counts)(since_largest, ranks->argmax + row);
        for (size_t r = row; r < row + OP(WIDTH); r++)
            ranks->argmax[r] = (int64_t)classes - ranks->argmax[r];
    }
}

/* The exponential of class k of a vector of rows, which is kept in its place if that is wanted; 0 of no class. */
TL_TARGET TL_INLINE OP(vec) NAME(short_exp_at_)(REAL *x, size_t k, size_t classes, const OP(acc) * acc, int keeps) {
    if (k >= classes)
        return OP(set)(0);
    OP(vec) exp = OP(whole_exp)(OP(load)(x + TL_GROUP * k), acc);
    if (keeps)
        OP(store)(x + TL_GROUP * k, exp);
    return exp;
}

/* Adds `count` lanes of a vector of rows as a tree; 0 of rows that are far out. */
TL_TARGET TL_INLINE void NAME(add_lanes_as_tree_)(NAME(lane_) * lanes, size_t count, const double *maximum,
                                                  double *sum) {
    for (size_t i = 0; i < PARTS; i++) {
        for (size_t l = 0; l < count && sizeof(REAL) == sizeof(double); l++)
            lanes[l].sum[i] = f64_add(lanes[l].sum[i], lanes[l].comp[i]);
        for (size_t half = 8; half > 0; half /= 2)
            for (size_t l = 0; l < half && l + half < count; l++)
                lanes[l].sum[i] = f64_add(lanes[l].sum[i], lanes[l + half].sum[i]);
        const f64_vec size = f64_and_bits(f64_load(maximum + i * f64_WIDTH), 0x7fffffffffffffffu);
        f64_vec total = f64_mul(lanes[0].sum[i], f64_set(OP(UNKEPT)));
        f64_store(sum + i * f64_WIDTH, f64_if_less(f64_set(TL_MAX_EXACT_REDUCTION), size, f64_set(0), total));
    }
}

/* Adds up the exponentials of a group as sum_exps_ does, and keeps them in place of the logits. */
TL_TARGET static void NAME(short_softmax_)(void *group, size_t classes, int keeps, double *ref_exp, double *sum) {
    double maximum[TL_GROUP];
    const size_t count = classes < 16 ? classes : 16;
    NAME(group_maximum_)((const REAL *)group, classes, maximum, ref_exp);
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(acc) acc;
        NAME(lane_) lanes[16];
        REAL *x = (REAL *)group + r;
        OP(reference)(ref_exp + r, OP(KEPT_BITS), &acc);
        for (size_t l = 0; l < count; l++)
            for (size_t i = 0; i < PARTS; i++)
                lanes[l].sum[i] = lanes[l].comp[i] = f64_set(0);
        for (size_t start = 0; start < classes; start += 64)
            for (size_t k = start; k < classes && k < start + 16; k++) {
                OP(vec) first = NAME(short_exp_at_)(x, k, classes, &acc, keeps);
                if (classes > 16) {
                    OP(vec) second = NAME(short_exp_at_)(x, k + 16, classes, &acc, keeps),
                            third = NAME(short_exp_at_)(x, k + 32, classes, &acc, keeps),
                            fourth = NAME(short_exp_at_)(x, k + 48, classes, &acc, keeps);
                    first = OP(add)(OP(add)(first, second), OP(add)(third, fourth));
                }
                NAME(add_)(&lanes[k - start], first);
            }
        NAME(add_lanes_as_tree_)(lanes, count, maximum + r, sum + r);
    }
}

/* Multiplies each row of a group. */
TL_TARGET static void NAME(short_scale_)(void *group, size_t classes, const double *factor) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        const OP(vec) times = NAME(of_rows_)(factor + r);
        REAL *x = (REAL *)group + r;
        for (size_t k = 0; k < classes; k++)
            OP(store)(x + TL_GROUP * k, OP(mul)(OP(load)(x + TL_GROUP * k), times));
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

#include "masses_body.h"

#undef NAME
#undef DTYPE
