/* Short rows (TL_SHORT_ROW classes at most), a row in each lane: of float32 and float64. Rows have at least one class.
 *
 * A group is TL_GROUP rows side by side: element k of row r is at [TL_GROUP k + r]. Each row's additions are those of
 * reduce_body.h, in their order, which for a single chunk depends only on the class number; so the bits are the same.
 * Classes that a row does not have would add 0 there, and are left out here. */

/* The largest of each of a vector of rows, -inf of none: nan is skipped. */
TL_TARGET TL_INLINE OP(vec) NAME(largest_of_)(const char *x, ptrdiff_t stride, size_t classes) {
    OP(vec) largest[4];
    for (size_t i = 0; i < 4; i++)
        largest[i] = OP(set)(-(REAL)INFINITY);
    for (size_t k = 0; k < classes; k++, x += stride)
        largest[k % 4] = OP(max_skip_nan)(OP(load)((const REAL *)(const void *)x), largest[k % 4]);
    return OP(max_skip_nan)(OP(max_skip_nan)(largest[2], largest[3]), OP(max_skip_nan)(largest[0], largest[1]));
}

/* The largest of each of a vector of rows, and what the logits of other rows are shifted by: the one of the first class
 * that has the largest, as other_shift_of of kl.c. */
TL_TARGET TL_INLINE OP(vec) NAME(largest_and_other_)(const char *x, ptrdiff_t stride, size_t classes, const char *other,
                                                     double *other_shift) {
    OP(vec) largest = OP(set)(-(REAL)INFINITY), at = OP(load)((const REAL *)(const void *)other);
    for (size_t k = 0; k < classes; k++, x += stride, other += stride) {
        const OP(vec) value = OP(load)((const REAL *)(const void *)x);
        at = OP(if_less)(largest, value, OP(load)((const REAL *)(const void *)other), at);
        largest = OP(max_skip_nan)(value, largest);
    }
    at = OP(max_keep_nan)(OP(set)(-OP(OTHER_LIMIT)), at);
    OP(store_f64)(other_shift, OP(if_less)(at, OP(set)((REAL)INFINITY), at, OP(set)(0)));
    return largest;
}

/* Writes the maxima of a group and its reference exponents, as tl_lse_begin sets them, or 0 for rows that are far out.
 * Also writes the shifts of other rows, unless `other` is NULL. */
TL_TARGET TL_INLINE void NAME(group_maximum_)(const char *x, ptrdiff_t stride, size_t classes, double *maximum,
                                              double *exponent, const char *other, double *other_shift) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        f64_vec wide[PARTS];
        const size_t at = r * sizeof(REAL);
        OP(widen)(other ? NAME(largest_and_other_)(x + at, stride, classes, other + at, other_shift + r)
                        : NAME(largest_of_)(x + at, stride, classes), wide);
        for (size_t i = 0; i < PARTS; i++) {
            f64_store(maximum + r + i * f64_WIDTH, f64_add(wide[i], f64_set(0)));
            f64_store(exponent + r + i * f64_WIDTH, f64_exponent_near(wide[i]));
        }
    }
}

/* tl_lanes_sum_compensated of the first `count` of 16 lanes, scaled by a power of two; the others would be 0. */
TL_TARGET TL_INLINE void NAME(end_lanes_)(OP(lane) * lanes, size_t count, int are_positive, double *total) {
    OP(add_lanes)(lanes, count, 1, are_positive);
    for (size_t i = 0; i < PARTS; i++)
        f64_store(total + i * f64_WIDTH, f64_mul(f64_add(lanes->sum[i], lanes->lost[i]), f64_set(OP(UNSCALE))));
}

/* The next rows of a vector that begins at row r. For contiguous rows, all bytes are asked for in some order. */
TL_TARGET TL_INLINE tl_next_rows NAME(next_of_)(const tl_next_rows *next, size_t r) {
    if (!next || !next->data)
        return (tl_next_rows){NULL, 0, 0};
    const ptrdiff_t class_stride = next->class_stride ? next->class_stride : (ptrdiff_t)sizeof(OP(vec));
    return (tl_next_rows){next->data + (ptrdiff_t)r * next->row_stride, next->row_stride, class_stride};
}

/* What is added up of a lane of 64: powers, in as many sums as its elements need, rests, moments. */
typedef struct {
    OP(vec) powers[OP(SUMS)], rest, moment;
} NAME(terms_);

/* Adds class k of the rows at x, as add_elements_ does, and returns its power. `mode` is a literal. Prefetches a part of
 * what is read next. In `maximum`, a divergence keeps by how much x exceeds the other row's. */
TL_TARGET TL_INLINE OP(vec)
    NAME(add_class_)(const char *x, ptrdiff_t stride, size_t k, OP(acc) * acc, enum tl_mode mode, const char *other,
                     const tl_next_rows *next, NAME(terms_) * to) {
    OP(vec) value = OP(load)((const REAL *)(const void *)(x + (ptrdiff_t)k * stride));
    OP(vec) bounded = OP(max_keep_nan)(acc->min_arg, value);
    if (sizeof(OP(vec)) >= 32 && next->data) /* one line for each full vector */
        tl_prefetch(next->data + (ptrdiff_t)k * next->class_stride);
    const OP(exp_parts) exp = OP(exp_of)(bounded, acc, 1);
    if (mode != SUMEXP) {
        OP(vec) factor = OP(sub)(bounded, acc->shift), term = OP(add_rest)(&exp, exp.power);
        if (mode == KL) {
            OP(vec) y = OP(load)((const REAL *)(const void *)(other + (ptrdiff_t)k * stride));
            acc->maximum[0] = OP(max_skip_nan)(OP(sub)(value, y), acc->maximum[0]);
            y = OP(sub)(OP(max_keep_nan)(OP(set)(-OP(OTHER_LIMIT)), y), acc->threshold);
            factor = OP(sub)(factor, y);
        }
        to->moment = OP(fma)(term, factor, to->moment);
    }
    to->rest = OP(fma)(exp.q, exp.r_power, to->rest);
    return exp.power;
}

/* The sums of lane `first` of 64 (every 64th element), as reduce_columns_ adds them. Returns how many are of powers. */
TL_TARGET TL_INLINE size_t NAME(reduce_lane_)(const char *x, ptrdiff_t stride, size_t first, size_t classes,
                                              OP(acc) * acc, enum tl_mode mode, const char *other,
                                              const tl_next_rows *next, NAME(terms_) * of) {
    OP(vec) pair[4], first_rest = OP(set)(0);
    size_t pairs = 0;
    for (size_t at = first; at < classes; at += TL_LANES, pairs++) {
        if (pairs == 2) { /* the second chain of rests */
            first_rest = of->rest;
            of->rest = OP(set)(0);
        }
        pair[pairs] = NAME(add_class_)(x, stride, at, acc, mode, other, next, of);
        at += TL_LANES;
        if (at < classes)
            pair[pairs] = OP(add)(pair[pairs], NAME(add_class_)(x, stride, at, acc, mode, other, next, of));
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

/* The sums of OP(WIDTH) rows from `row` on, which reduce_chunk_ computes for one. Unless `most_columns` is 0, rows have
 * at most 16 times as many classes, as compilers know; `moments` are for all modes but SUMEXP. */
TL_TARGET TL_INLINE void NAME(sum_rows_)(const char *x, const char *other, ptrdiff_t stride, size_t classes,
                                         size_t most_columns, enum tl_mode mode, const tl_next_rows *next, size_t row,
                                         tl_short_sums *sums, tl_short_moments *moments) {
    OP(lane) lanes[16], moment_lanes[16];
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
        size_t q = 0, columns = most_columns == 1 ? 1 : ((classes < TL_LANES ? classes : TL_LANES) - l + 15) / 16;
        for (size_t i = 0; i < PARTS; i++)
            lanes[l].lost[i] = moment_lanes[l].lost[i] = f64_set(0);
        do {
            NAME(terms_) of = {.rest = OP(set)(0), .moment = OP(set)(0)};
            size_t sums_of_powers = 1;
            if (most_columns)
                of.powers[0] = NAME(add_class_)(x, stride, l + 16 * q, &acc, mode, other, next, &of);
            else
                sums_of_powers = NAME(reduce_lane_)(x, stride, l + 16 * q, classes, &acc, mode, other, next, &of);
            rest[q] = of.rest;
            if (mode != SUMEXP) /* or else gcc clears memory for it */
                moment[q] = of.moment;
            if (q == 0)
                OP(widen)(of.powers[0], lanes[l].sum);
            else
                OP(add_to_lane)(&lanes[l], of.powers[0]);
            if (sums_of_powers > 1)
                OP(add_to_lane)(&lanes[l], of.powers[OP(SUMS) - 1]);
        } while (++q < columns);
        OP(add_times)(lanes[l].sum, lanes[l].lost, NAME(sum_of_4_)(rest, columns), (double)OP(LEADING));
        if (mode != SUMEXP)
            OP(widen)(NAME(sum_of_4_)(moment, columns), moment_lanes[l].sum);
    } while (++l < count);
    NAME(end_lanes_)(lanes, count, 1, sums->sum + row);
    if (mode != SUMEXP)
        NAME(end_lanes_)(moment_lanes, count, 0, moments->sum + row);
    if (mode == KL)
        OP(store_f64)(moments->most_above + row, acc.maximum[0]);
}

/* Stage by stage, since the latency of a stage would be waited for in every group. `columns` are the most. */
TL_TARGET TL_INLINE void NAME(short_reduce_)(const tl_few_rows *rows, size_t count, size_t classes, size_t columns,
                                             enum tl_mode mode, const tl_next_rows *next, char *memory,
                                             tl_short_sums *sums, tl_short_moments *moments) {
    const f64_vec largest_near = f64_set(TL_MAX_EXACT_REDUCTION);
    const size_t group_bytes = TL_GROUP * classes * sizeof(REAL);
    const char *x[TL_GROUPS];
    ptrdiff_t stride = 0;
    for (size_t g = 0; g < count; g++) {
        x[g] = OP(group_of)(rows, g, classes, 1, rows->are_apart ? memory + g * group_bytes : NULL,
                           &stride);
        NAME(group_maximum_)(x[g], stride, classes, sums->maximum + TL_GROUP * g, sums->ref_exp + TL_GROUP * g,
                             mode == KL ? moments->other.data + g * moments->other.group_bytes : NULL,
                             mode == KL ? moments->other_shift + TL_GROUP * g : NULL);
    }
    for (size_t r = 0; mode != SUMEXP && r < TL_GROUP * count; r += f64_WIDTH) {
        f64_vec shift = f64_load(sums->maximum + r), size = f64_and_bits(shift, 0x7fffffffffffffffu);
        f64_store(moments->shift + r, f64_if_less(largest_near, size, f64_set(0), shift));
    }
    for (size_t r = 0; r < TL_GROUP * count; r += OP(WIDTH)) {
        const tl_next_rows ahead = NAME(next_of_)(next, r);
        const size_t at = r % TL_GROUP * sizeof(REAL);
        const char *other = mode == KL ? moments->other.data + r / TL_GROUP * moments->other.group_bytes + at : NULL;
        NAME(sum_rows_)(x[r / TL_GROUP] + at, other, stride, classes, columns, mode, &ahead, r, sums, moments);
    }
}

/* The same with as many columns as there are. */
TL_TARGET TL_INLINE void NAME(reduce_short_)(const tl_few_rows *rows, size_t count, enum tl_mode mode,
                                             const tl_next_rows *next, char *memory, tl_short_sums *sums,
                                             tl_short_moments *moments) {
    const size_t classes = rows->classes;
    classes <= 16         ? NAME(short_reduce_)(rows, count, classes, 1, mode, next, memory, sums, moments)
    : classes <= TL_LANES ? NAME(short_reduce_)(rows, count, classes, 4, mode, next, memory, sums, moments)
                          : NAME(short_reduce_)(rows, count, classes, 0, mode, next, memory, sums, moments);
}

TL_TARGET static void NAME(short_sumexp_)(const tl_few_rows *rows, size_t count, const tl_next_rows *next, void *memory,
                                          tl_short_sums *sums) {
    rows->classes == 2   ? NAME(short_reduce_)(rows, count, 2, 1, SUMEXP, next, memory, sums, NULL) /* are unrolled */
    : rows->classes == 3 ? NAME(short_reduce_)(rows, count, 3, 1, SUMEXP, next, memory, sums, NULL)
                         : NAME(reduce_short_)(rows, count, SUMEXP, next, memory, sums, NULL);
}

TL_TARGET static void NAME(short_moments_)(const tl_few_rows *groups, size_t count, const tl_next_rows *next,
                                           tl_short_sums *sums, tl_short_moments *moments) {
    moments->other.data ? NAME(reduce_short_)(groups, count, KL, next, NULL, sums, moments)
                        : NAME(reduce_short_)(groups, count, MOMENT, next, NULL, sums, moments);
}

TL_TARGET static void NAME(short_ranks_)(const tl_few_rows *rows, size_t groups, const double *threshold,
                                         tl_short_ranks *ranks) {
    for (size_t row = 0; row < TL_GROUP * groups; row += OP(WIDTH)) {
        const char *x = rows->data + row / TL_GROUP * rows->group_bytes + row % TL_GROUP * sizeof(REAL);
        const OP(vec) least = OP(load_narrowed)(threshold + row);
        OP(vec) most = OP(set)(-(REAL)INFINITY), argmax = OP(set)(0); /* the latter has the bits of a class */
        OP(bits) count_ge = OP(set_bits)(0);
        for (size_t k = 0; k < rows->classes; k++, x += rows->class_stride) {
            const OP(vec) value = OP(load)((const REAL *)(const void *)x);
            count_ge = OP(count_ge)(count_ge, value, least);
            argmax = OP(if_less)(most, value, OP(with_bits)(OP(set)(0), (UINT)k), argmax);
            most = OP(max_skip_nan)(value, most);
        }
        OP(store_counts)(count_ge, ranks->count_ge + row);
        OP(store_counts)(OP(or_bits)(OP(set_bits)(0), argmax, argmax), ranks->argmax + row);
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
    OP(lane) lanes[16];
    for (size_t l = 0; l < count; l++) {
        for (size_t i = 0; i < PARTS; i++)
            lanes[l].lost[i] = f64_set(0);
        for (size_t k = l; k < classes; k += 64) {
            OP(vec) exp[4];
            for (size_t i = 0; i < 4; i++)
                exp[i] = k + 16 * i < classes ? OP(load)(kept + TL_GROUP * (k + 16 * i)) : OP(set)(0);
            if (classes > 16)
                exp[0] = OP(add)(OP(add)(exp[0], exp[1]), OP(add)(exp[2], exp[3]));
            if (k < 16)
                OP(widen)(exp[0], lanes[l].sum);
            else
                OP(add_to_lane)(&lanes[l], exp[0]);
        }
        for (size_t i = 0; i < PARTS && sizeof(REAL) == sizeof(double); i++)
            lanes[l].sum[i] = f64_add(lanes[l].sum[i], lanes[l].lost[i]);
    }
    OP(add_lanes)(lanes, count, 0, 0);
    for (size_t i = 0; i < PARTS; i++)
        sum[i] = lanes->sum[i];
}

/* Keeps the exponentials of a group; returns whether its rows were near enough, and the sum of each is above 0. */
TL_TARGET TL_INLINE int NAME(exp_group_of_rows_)(const char *x, ptrdiff_t stride, size_t classes, int is_near,
                                                 int is_log, REAL *kept, double *operand) {
    double maximum[TL_GROUP], ref_exp[TL_GROUP] = {0};
    uint32_t good = 0;
    int is_far = 0;
    if (!is_near)
        NAME(group_maximum_)(x, stride, classes, maximum, ref_exp, NULL, NULL);
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
        const char *x = OP(group_of)(rows, g, classes, 1, memory, &stride);
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
    return rows->classes == 2   ? NAME(lane_softmax_of_)(rows, groups, 2, is_log, aligned, to) /* are unrolled */
           : rows->classes == 3 ? NAME(lane_softmax_of_)(rows, groups, 3, is_log, aligned, to)
                                : NAME(lane_softmax_of_)(rows, groups, rows->classes, is_log, aligned, to);
}

#include "masses_body.h"
