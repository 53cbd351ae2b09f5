/* Short rows (TL_SHORT_ROW classes at most), a row in each lane: included for float32 and float64 after
 * dtype_body.h, with DTYPE, REAL and OP defined as there. Rows have at least one class.
 *
 * A group is TL_GROUP rows side by side: element k of row r is at [TL_GROUP k + r]. Each row's additions are those of
 * reduce_body.h, in their order, which for a single chunk depends only on the class number; so the bits are the same.
 * Classes that a row does not have would add 0 there, and are left out here. */

#define NAME(what) JOIN(JOIN(what, DTYPE), JOIN(_, BACKEND))

/* The largest of each of a vector of rows, -inf of none: nan is skipped. */
TL_TARGET TL_INLINE OP(vec) NAME(largest_of_)(const char *x, ptrdiff_t stride, size_t classes) {
    OP(vec) largest[4];
    for (size_t i = 0; i < 4; i++)
        largest[i] = OP(set)(-(REAL)INFINITY);
    for (size_t k = 0; k < classes; k++, x += stride)
        largest[k % 4] = OP(max_skip_nan)(OP(load)((const REAL *)(const void *)x), largest[k % 4]);
    return OP(max_skip_nan)(OP(max_skip_nan)(largest[2], largest[3]), OP(max_skip_nan)(largest[0], largest[1]));
}

/* The maxima of a group, and the reference exponents: those of tl_lse_begin, and 0 for rows that are far out. */
TL_TARGET TL_INLINE void NAME(group_maximum_)(const char *x, ptrdiff_t stride, size_t classes, double *maximum,
                                             double *exponent) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        f64_vec wide[PARTS];
        OP(widen)(NAME(largest_of_)(x + r * sizeof(REAL), stride, classes), wide);
        for (size_t i = 0; i < PARTS; i++) {
            f64_store(maximum + r + i * f64_WIDTH, f64_add(wide[i], f64_set(0)));
            f64_store(exponent + r + i * f64_WIDTH, f64_exponent_near(wide[i]));
        }
    }
}

typedef struct {
    f64_vec sum[PARTS], comp[PARTS];
} NAME(lane_);

TL_TARGET TL_INLINE void NAME(add_)(NAME(lane_) * lane, OP(vec) term) {
    OP(add_times)(lane->sum, lane->comp, term, 1);
}

/* tl_lanes_sum_compensated of the first `count` of 16 lanes, scaled by a power of two; the others would be 0. */
TL_TARGET TL_OUTLINE void NAME(end_lanes_)(NAME(lane_) * lanes, size_t count, double scale, double *total) {
    for (size_t i = 0; i < PARTS; i++) {
        for (size_t half = 8; half > 0; half /= 2)
            for (size_t l = 0; l < half && l + half < count; l++) {
                f64_vec lost = f64_add_with_error(&lanes[l].sum[i], lanes[l + half].sum[i]);
                lanes[l].comp[i] = f64_add(lanes[l].comp[i], f64_add(lanes[l + half].comp[i], lost));
            }
        f64_vec sum = f64_add(lanes[0].sum[i], lanes[0].comp[i]);
        f64_store(total + i * f64_WIDTH, f64_mul(sum, f64_set(scale)));
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

/* The sums of lane `first` of 64 (every 64th element), as reduce_columns_ adds them. Returns how many are of powers. */
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
                                         const REAL *other, const tl_next_rows *next, size_t row,
                                         tl_short_sums *sums, tl_short_moments *moments) {
    NAME(lane_) lanes[16], moment_lanes[16];
    OP(acc) acc;
    const size_t count = classes < 16 ? classes : 16;
    OP(reference)(sums->ref_exp + row, OP(HEADROOM), &acc);
    if (mode != SUMEXP)
        acc.shift = OP(load_narrowed)(moments->shift + row);
    if (mode == KL)
        acc.threshold = OP(load_narrowed)(moments->other_shift + row);
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
        OP(add_times)(lanes[l].sum, lanes[l].comp, NAME(sum_of_4_)(rest, columns), (double)OP(LEADING));
        if (mode != SUMEXP)
            OP(widen)(NAME(sum_of_4_)(moment, columns), moment_lanes[l].sum);
    } while (++l < count);
    NAME(end_lanes_)(lanes, count, OP(UNSCALE), sums->sum + row);
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
                                             const tl_next_rows *next, tl_short_sums *sums,
                                             tl_short_moments *moments) {
    const f64_vec largest_near = f64_set(TL_MAX_EXACT_REDUCTION);
    for (size_t g = 0; g < count; g++)
        NAME(group_maximum_)((const char *)groups + TL_GROUP * classes * g * sizeof(REAL),
                             (ptrdiff_t)(TL_GROUP * sizeof(REAL)), classes, sums->maximum + TL_GROUP * g,
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
            NAME(sum_rows_)(x, classes, 1, mode, other, &ahead, r, sums, moments);
        else
            NAME(sum_rows_)(x, classes, 0, mode, other, &ahead, r, sums, moments);
    }
}

TL_TARGET static void NAME(short_sumexp_)(const void *groups, size_t count, size_t classes, const tl_next_rows *next,
                                          tl_short_sums *sums) {
    NAME(short_reduce_)(groups, count, classes, SUMEXP, next, sums, NULL);
}

TL_TARGET static void NAME(short_moments_)(const void *groups, size_t count, size_t classes, const tl_next_rows *next,
                                           tl_short_sums *sums, tl_short_moments *moments) {
    if (moments->other)
        NAME(short_reduce_)(groups, count, classes, KL, next, sums, moments);
    else
        NAME(short_reduce_)(groups, count, classes, MOMENT, next, sums, moments);
}

/* The lowest class of the maximum is the number of classes before which none has it. */
TL_TARGET static void NAME(short_ranks_)(const void *groups, size_t count, size_t classes, const double *threshold,
                                         tl_short_ranks *ranks) {
    for (size_t row = 0; row < TL_GROUP * count; row += OP(WIDTH)) {
        const REAL *x = (const REAL *)groups + TL_GROUP * classes * (row / TL_GROUP) + row % TL_GROUP;
        OP(vec) so_far = OP(set)(-(REAL)INFINITY);
        const OP(vec) largest = NAME(largest_of_)((const char *)x, (ptrdiff_t)(TL_GROUP * sizeof(REAL)), classes);
        const OP(vec) least = OP(load_narrowed)(threshold + row);
        OP(bits) count_ge = OP(set_bits)(0), since_largest = OP(set_bits)(0);
        for (size_t k = 0; k < classes; k++) {
            OP(vec) value = OP(load)(x + TL_GROUP * k);
            so_far = OP(max_skip_nan)(value, so_far);
            count_ge = OP(count_ge)(count_ge, value, least);
            since_largest = OP(count_ge)(since_largest, so_far, largest);
        }
        OP(store_counts)(count_ge, ranks->count_ge + row);
        OP(store_counts)(since_largest, ranks->argmax + row);
        for (size_t r = row; r < row + OP(WIDTH); r++)
            ranks->argmax[r] = (int64_t)classes - ranks->argmax[r];
    }
}

/* Computes the exponentials of a vector of rows and keeps them. For near rows they are relative to 1, and the bits of
 * all k are collected; for others they are relative to the reference exponents. */
TL_TARGET TL_INLINE void NAME(keep_exps_)(const char *x, ptrdiff_t stride, size_t classes, int is_near, OP(acc) * acc,
                                          REAL *kept) {
    for (size_t k = 0; k < classes; k++) {
        const OP(vec) value = OP(load)((const REAL *)(const void *)(x + (ptrdiff_t)k * stride));
        OP(exp_parts) exp = OP(exp_of)(is_near ? value : OP(max_keep_nan)(acc->min_arg, value), acc, !is_near);
        if (is_near)
            acc->or_bits[0] = OP(or_bits)(acc->or_bits[0], exp.k, exp.k);
        OP(store)(kept + TL_GROUP * k, OP(whole_of)(&exp));
    }
}

/* Adds up kept exponentials of a vector of rows as softmax_rows_ does: lane l of 16 has the classes l, l + 16, ...,
 * four of each group of 64 in the compute dtype; then lanes are added as a tree. */
TL_TARGET TL_INLINE void NAME(add_kept_)(const REAL *kept, size_t classes, f64_vec *sum) {
    const size_t count = classes < 16 ? classes : 16;
    NAME(lane_) lanes[16];
    for (size_t l = 0; l < count; l++) {
        for (size_t i = 0; i < PARTS; i++)
            lanes[l].comp[i] = f64_set(0);
        for (size_t k = l; k < classes; k += 64) {
            OP(vec) exp[4];
            for (size_t i = 0; i < 4; i++)
                exp[i] = k + 16 * i < classes ? OP(load)(kept + TL_GROUP * (k + 16 * i)) : OP(set)(0);
            if (classes > 16)
                exp[0] = OP(add)(OP(add)(exp[0], exp[1]), OP(add)(exp[2], exp[3]));
            if (k < 16)
                OP(widen)(exp[0], lanes[l].sum);
            else
                NAME(add_)(&lanes[l], exp[0]);
        }
    }
    for (size_t i = 0; i < PARTS; i++) {
        for (size_t l = 0; l < count && sizeof(REAL) == sizeof(double); l++)
            lanes[l].sum[i] = f64_add(lanes[l].sum[i], lanes[l].comp[i]);
        for (size_t half = 8; half > 0; half /= 2)
            for (size_t l = 0; l < half && l + half < count; l++)
                lanes[l].sum[i] = f64_add(lanes[l].sum[i], lanes[l + half].sum[i]);
        sum[i] = lanes[0].sum[i];
    }
}

/* Keeps the exponentials of a group; returns whether its rows were near enough, and the sum of each is above 0. */
TL_TARGET TL_INLINE int NAME(exp_group_of_rows_)(const char *x, ptrdiff_t stride, size_t classes, int is_near,
                                                 int is_log, REAL *kept, double *operand) {
    double maximum[TL_GROUP], ref_exp[TL_GROUP] = {0};
    uint32_t good = 0;
    int is_far = 0;
    if (!is_near)
        NAME(group_maximum_)(x, stride, classes, maximum, ref_exp);
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        f64_vec sum[PARTS];
        OP(acc) acc = OP(acc_near)();
        if (!is_near)
            OP(reference)(ref_exp + r, OP(KEPT_BITS), &acc);
        NAME(keep_exps_)(x + r * sizeof(REAL), stride, classes, is_near, &acc, kept + r);
        is_far |= is_near && OP(is_beyond)(acc.or_bits[0], OP(NEAR_K));
        NAME(add_kept_)(kept + r, classes, sum);
        for (size_t i = 0; i < PARTS; i++) {
            const size_t at = r + i * f64_WIDTH;
            const f64_vec most = is_near ? f64_set(0) : f64_and_bits(f64_load(maximum + at), 0x7fffffffffffffffu);
            sum[i] = f64_if_less(f64_set(TL_MAX_EXACT_REDUCTION), most, f64_set(0), sum[i]);
            good |= NAME(end_softmax_)(sum[i], f64_load(ref_exp + at), is_log, operand + at) << at;
        }
    }
    return !is_far && good == ((uint32_t)1 << TL_GROUP) - 1;
}

TL_TARGET TL_OUTLINE int NAME(exp_far_group_)(const char *x, ptrdiff_t stride, size_t classes, int is_log, REAL *kept,
                                              double *operand) {
    return NAME(exp_group_of_rows_)(x, stride, classes, 0, is_log, kept, operand);
}

TL_TARGET TL_INLINE size_t NAME(lane_softmax_of_)(const tl_few_rows *rows, size_t groups, size_t classes, int is_log,
                                                  char *memory, const tl_few_rows *to) {
    REAL *kept = (REAL *)(void *)memory + (rows->are_apart ? TL_GROUP * classes : 0);
    double operand[TL_GROUP];
    for (size_t g = 0; g < groups; g++) {
        ptrdiff_t stride = 0, out_stride = to->are_apart ? (ptrdiff_t)(TL_GROUP * sizeof(REAL)) : to->class_stride;
        const char *x = OP(group_of)(rows, g, classes, memory, &stride);
        char *out = to->are_apart ? (char *)kept : (char *)(uintptr_t)to->data + g * to->group_bytes;
        if (!NAME(exp_group_of_rows_)(x, stride, classes, 1, is_log, kept, operand) &&
            !NAME(exp_far_group_)(x, stride, classes, is_log, kept, operand))
            return g;
        for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
            f64_vec wide[PARTS];
            for (size_t i = 0; i < PARTS; i++)
                wide[i] = f64_load(operand + r + i * f64_WIDTH);
            OP(vec) low, high = OP(split_sums)(wide, &low); /* more digits than a float */
            for (size_t k = 0; k < classes; k++) {
                const ptrdiff_t at = (ptrdiff_t)(r * sizeof(REAL));
                OP(vec) y = is_log ? OP(load)((const REAL *)(const void *)(x + (ptrdiff_t)k * stride + at))
                                   : OP(load)(kept + TL_GROUP * k + r);
                y = is_log ? OP(sub)(OP(sub)(y, high), low) : OP(mul)(y, high);
                OP(store)((REAL *)(void *)(out + (ptrdiff_t)k * out_stride + at), y);
            }
        }
        if (to->are_apart)
            OP(put_group)(kept, to, g, classes);
    }
    return groups;
}

TL_TARGET static size_t NAME(lane_softmax_)(const tl_few_rows *rows, size_t groups, int is_log, void *memory,
                                            const tl_few_rows *to) {
    char *aligned = (char *)memory + (-(uintptr_t)memory & 63);
    switch (rows->classes) { /* loops that compilers unroll */
    case 2: return NAME(lane_softmax_of_)(rows, groups, 2, is_log, aligned, to);
    case 3: return NAME(lane_softmax_of_)(rows, groups, 3, is_log, aligned, to);
    default: return NAME(lane_softmax_of_)(rows, groups, rows->classes, is_log, aligned, to);
    }
}

#include "masses_body.h"

#undef NAME
#undef DTYPE
