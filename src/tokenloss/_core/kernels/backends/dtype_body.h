/* The kernels of one dtype on one instruction set: of DTYPE, whose type in memory is ELEMENT, computed in REAL. HALF is
 * defined for float16 and bfloat16. */

#include "reduce_body.h"

/* The first n elements of a vector, with `other` after them. For halves, there are whole vectors before. */
TL_TARGET TL_INLINE OP(vec) NAME(load_first_)(const ELEMENT *x, size_t n, REAL other) {
#if defined HAS_LOAD_FIRST && !defined HALF
    return OP(load_first)(x, n, other);
#else
    ELEMENT first[OP(WIDTH)];
    STORE(first, OP(set)(other));
#ifdef HAS_LOAD_FIRST
    half_load_first(x, n, first[0], first);
#else
    memcpy(first, (const void *)x, n * sizeof *first);
#endif
    return LOAD(first);
#endif
}

/* Writes a vector past the caches; halves go to the caches, since they take longer to compute than to write. */
TL_TARGET TL_INLINE void NAME(stream_)(ELEMENT *p, OP(vec) a) {
    sizeof *p == sizeof(REAL) ? OP(stream)((REAL *)(void *)p, a) : STORE(p, a);
}

#define EACH for (size_t i = 0; i < columns; i++)

/* Adds n classes, `columns` of 16, to 16 lanes: powers as a tree, then in double; rests in the dtype of the vectors.
 * Powers are 0 where `none` has all bits (NULL: no target here) and where `past` does (NULL: n is 16 * columns): there,
 * the row's logit stands in for classes that do not exist. Operation by operation: vector by vector, those that wait
 * would fill a processor's scheduler. Compilers know `columns`, `clamps`, and what is NULL. */
TL_TARGET TL_INLINE void NAME(add_others_)(const ELEMENT *x, size_t n, size_t columns, const UINT *none,
                                           const UINT *past, REAL logit, int clamps, OP(acc) * acc, OP(vec) * rests,
                                           tl_lanes *sum) {
    const size_t full = !past ? columns : clamps ? 0 : columns - 1;
    for (size_t j = 0; j < 16; j += OP(WIDTH)) {
        OP(vec) power[OP(TERMS)], k[OP(TERMS)], r[OP(TERMS)], q[OP(TERMS)];
        for (size_t i = 0, at = j; i < columns; i++, at += 16) {
            if (at * sizeof *x % 64 == 0)
                tl_prefetch_stream(x + at);
            r[i] = i < full || at + OP(WIDTH) <= n ? LOAD(x + at)
                   : at < n ? NAME(load_first_)(x + at, n - at, logit) : OP(set)(logit);
        }
        EACH r[i] = clamps ? OP(max_keep_nan)(acc->min_arg, r[i]) : r[i];
        EACH k[i] = OP(fma)(r[i], OP(set)(OP(EIGHTHS)), acc->rounder);
        EACH q[i] = OP(sub)(k[i], acc->rounder);
        EACH r[i] = OP(fma)(q[i], OP(set)(-OP(LN2) / 8), r[i]);
        for (size_t i = 0; i < columns; i += 2)
            acc->or_bits[0] = OP(or_bits)(acc->or_bits[0], k[i], k[i + 1 < columns ? i + 1 : i]);
        EACH power[i] = none && !clamps ? OP(power_without)(k[i], acc->powers, OP(load_bits)(none + 16 * i + j))
                                        : OP(power)(k[i], acc->powers);
        EACH power[i] = clamps ? OP(zero_if_negative)(power[i]) : power[i];
        EACH power[i] = none && clamps ? OP(without)(power[i], OP(load_bits)(none + 16 * i + j)) : power[i];
        for (size_t i = full; i < columns; i++)
            power[i] = OP(without)(power[i], OP(load_bits)(past + 16 * i + j));
        EACH q[i] = OP(add)(r[i], OP(set)(OP(Q)[0]));
        for (size_t s = 1; s < sizeof OP(Q) / sizeof OP(Q)[0]; s++)
            EACH q[i] = OP(fma)(q[i], r[i], OP(set)(OP(Q)[s]));
        EACH r[i] = OP(mul)(r[i], power[i]);
        EACH rests[j / OP(WIDTH)] = OP(fma)(q[i], r[i], rests[j / OP(WIDTH)]);
        for (size_t i = columns; i < OP(TERMS); i++)
            power[i] = OP(set)(0);
        OP(add_powers)(power, j, sum);
    }
}
#undef EACH

/* Adds rests to the sums, and begins them anew: after each chunk. */
TL_TARGET TL_INLINE void NAME(add_rests_)(OP(vec) * rests, tl_lanes *sum) {
    for (size_t j = 0; j < 16; j += OP(WIDTH)) {
        OP(accumulate_rest)(sum, j, rests[j / OP(WIDTH)]);
        rests[j / OP(WIDTH)] = OP(set)(0);
    }
}

/* Adds whole groups of a chunk. */
TL_TARGET TL_INLINE void NAME(add_groups_)(const ELEMENT *x, size_t count, const UINT *none, int clamps, OP(acc) * acc,
                                           OP(vec) * rests, tl_lanes *sum) {
    for (size_t i = 0; i < count; i += 16 * OP(TERMS))
        NAME(add_others_)(x + i, 16 * OP(TERMS), OP(TERMS), none ? none + i : NULL, NULL, 0, clamps, acc, rests, sum);
}

/* Adds the classes of a row of any length but its target; `past` is for those after whole groups. */
TL_TARGET TL_INLINE void NAME(sum_others_)(const ELEMENT *x, size_t classes, REAL logit, int64_t target, int clamps,
                                           const UINT *past, OP(acc) * acc, tl_lanes *sum) {
    enum { GROUP = 16 * OP(TERMS) };
    const size_t whole = classes / GROUP * GROUP;
    OP(vec) rests[16 / OP(WIDTH)];
    tl_lanes lanes = *sum;
    for (size_t j = 0; j < 16 / OP(WIDTH); j++)
        rests[j] = OP(set)(0);
    for (size_t i = 0; i < whole; i += TL_CHUNK) {
        const size_t count = whole - i < TL_CHUNK ? whole - i : TL_CHUNK;
        if (whole <= TL_CHUNK || (size_t)target - i < TL_CHUNK) /* short rows without a branch on their targets */
            NAME(add_groups_)(x + i, count, OP(at_target)(target - (int64_t)i), clamps, acc, rests, &lanes);
        else
            NAME(add_groups_)(x + i, count, NULL, clamps, acc, rests, &lanes);
        if (count == TL_CHUNK)
            NAME(add_rests_)(rests, &lanes);
    }
#define LAST(columns) \
    case columns: \
        NAME(add_others_)(x + whole, classes - whole, columns, OP(at_target)(target - (int64_t)whole), past, logit, \
                          clamps, acc, rests, &lanes); \
        break;
    switch (clamps ? OP(TERMS) * (whole < classes) : (classes - whole + 15) / 16) { /* loops that compilers unroll */
        LAST(1) LAST(2) LAST(3) LAST(4)
#if OP(TERMS) == 8
        LAST(5) LAST(6) LAST(7) LAST(8)
#endif
    }
#undef LAST
    NAME(add_rests_)(rests, &lanes);
    *sum = lanes;
}

/* Finds losses from what `store_eight` left of the sums of rows. Returns the bits of rows that are not far out. */
TL_TARGET TL_OUTLINE uint64_t NAME(losses_of_sums_)(double (*eight)[8], size_t count, const REAL *logit, double *nll,
                                                    double *odds) {
    const size_t padded = (count + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    double sum[TL_BLOCK_ROWS];
    uint64_t near = 0;
    for (size_t r = 0; r < padded; r += TL_GROUP)
        add_lanes_of_rows(eight + r, count - r, sum + r);
    for (size_t r = 0; r < padded; r += OP(WIDTH)) { /* of many rows, whose chains of operations run side by side */
        f64_vec wide[PARTS];
        memcpy(wide, sum + r, sizeof wide);
        OP(vec) lost, total = OP(split_sums)(wide, &lost), at = OP(load)(logit + r);
        OP(vec) u = OP(losses_of_vector)(at, total, lost, wide);
        near |= (uint64_t)OP(near_rows)(at, u, (double)OP(LEAST_ODDS)) << r;
        memcpy(nll + r, wide, sizeof wide);
        OP(store_f64)(odds + r, u);
    }
    return near;
}

/* Finds the losses of some rows, TL_BLOCK_ROWS at most, but of those without a class. Returns the bits of the ones that
 * are not far out. Powers of logits far below the target's are 0 if that `clamps`; else they are infinite or nan, and
 * losses right if all are near. If `carried` is not NULL, the sums of each row go on from there. */
TL_TARGET TL_INLINE uint64_t NAME(losses_of_rows_)(const char *const *rows, size_t count, size_t classes,
                                                   const int64_t *target, const REAL *logit, int clamps,
                                                   tl_lane_sums *carried, double *nll, double *odds) {
    const size_t padded = (count + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    enum { GROUP = 16 * OP(TERMS) };
    double eight[TL_BLOCK_ROWS][8];
    REAL rounder[TL_BLOCK_ROWS], min_arg[TL_BLOCK_ROWS];
    UINT past[2 * GROUP] = {0};
    OP(acc) acc;
    memset(past + GROUP, 0xff, sizeof past / 2);
    for (size_t r = 0; r < padded; r += OP(WIDTH)) {
        acc = OP(acc_for_target)(OP(load)(logit + r), 1, clamps ? GUARD : OP(ROW_GUARD));
        OP(store)(rounder + r, acc.rounder);
        OP(store)(min_arg + r, acc.min_arg);
    }
    for (size_t r = 0; r < count; r++) {
        acc.rounder = OP(set)(rounder[r]);
        acc.min_arg = OP(set)(min_arg[r]);
        tl_lanes lanes = carried ? f64_load_lanes(carried[r].sum, carried[r].comp) : zero_lanes();
        if (carried || (uint64_t)target[r] < classes)
            NAME(sum_others_)((const ELEMENT *)(const void *)rows[r], classes, logit[r], target[r], clamps,
                              past + GROUP - classes % GROUP, &acc, &lanes);
        if (clamps && OP(is_out_of_range)(&acc)) {
            lanes.sum[0] = f64_set((double)NAN);
            acc.or_bits[0] = OP(set_bits)(0);
        }
        if (carried)
            f64_store_lanes(&lanes, carried[r].sum, carried[r].comp);
        store_eight(OP(whole_lanes)(lanes), eight[r]);
    }
    const uint64_t near = NAME(losses_of_sums_)(eight, count, logit, nll, odds);
    return OP(is_out_of_range)(&acc) ? 0 : near;
}

TL_TARGET TL_OUTLINE uint64_t NAME(clamped_losses_)(const char *const *rows, size_t count, size_t classes,
                                                    const int64_t *target, const REAL *logit, tl_lane_sums *carried,
                                                    double *nll, double *odds) {
    return NAME(losses_of_rows_)(rows, count, classes, target, logit, 1, carried, nll, odds);
}

TL_TARGET static uint64_t NAME(row_losses_)(const char *const *rows, size_t count, size_t classes,
                                            const int64_t *target, tl_lane_sums *carried, double *logit, double *nll,
                                            double *odds) {
    REAL at[TL_BLOCK_ROWS] = {0};
    uint64_t near = 0, wanted = 0;
    for (size_t r = 0; r < count; r++) {
        const int is_class = carried || (uint64_t)target[r] < classes;
        wanted |= (uint64_t)is_class << r;
        if (carried)
            at[r] = (REAL)logit[r];
        else if (is_class)
            at[r] = (REAL)tl_load(rows[r] + (size_t)target[r] * sizeof(ELEMENT), JOIN(OF_, DTYPE));
    }
    for (size_t r = 0; !carried && r < count; r += OP(WIDTH))
        OP(store_f64)(logit + r, OP(load)(at + r));
    if (OP(WIDTH) > 1 && !carried)
        near = NAME(losses_of_rows_)(rows, count, classes, target, at, 0, NULL, nll, odds) & wanted;
    if (OP(WIDTH) == 1 || near != wanted)
        near = NAME(clamped_losses_)(rows, count, classes, target, at, carried, nll, odds) & wanted;
    return near;
}

TL_TARGET static size_t NAME(largest_)(const void *start, size_t count, double *largest) {
    const ELEMENT *x = (const ELEMENT *)start;
    const size_t whole = count / OP(WIDTH) * OP(WIDTH);
    const OP(vec) none = OP(set)(-(REAL)INFINITY);
    const OP(vec) last = whole < count ? NAME(load_first_)(x + whole, count - whole, -(REAL)INFINITY) : none;
    OP(vec) maximum[4] = {none, none, none, OP(max_skip_nan)(last, none)};
    size_t i = 0;
    for (; i + 4 * OP(WIDTH) <= count; i += 4 * OP(WIDTH))
        UNROLLED for (size_t u = 0; u < 4; u++)
            maximum[u] = OP(max_skip_nan)(LOAD(x + i + u * OP(WIDTH)), maximum[u]);
    for (; i < whole; i += OP(WIDTH))
        maximum[0] = OP(max_skip_nan)(LOAD(x + i), maximum[0]);
    *largest = NAME(max_of_)(maximum, 4, -(double)INFINITY);
    const OP(vec) most = OP(set)((REAL)*largest);
    for (i = 0; i < whole; i += OP(WIDTH)) {
        const uint32_t found = OP(mask_ge)(LOAD(x + i), most);
        if (found)
            return i + tl_lowest_bit(found);
    }
    return whole < count && OP(mask_ge)(last, most) ? whole + tl_lowest_bit(OP(mask_ge)(last, most)) : 0;
}

TL_TARGET static size_t NAME(indices_ge_)(const void *start, size_t count, double threshold, int32_t *found) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(vec) least = OP(set)((REAL)threshold), none = OP(set)(-(REAL)INFINITY);
    size_t collected = 0;
    for (size_t i = 0; i < count; i += TL_READ_MULTIPLE) {
        OP(vec) maximum[4] = {none, none, none, none};
        for (size_t k = 0; k < TL_READ_MULTIPLE / OP(WIDTH); k++)
            maximum[k % 4] = OP(max_skip_nan)(LOAD(x + i + k * OP(WIDTH)), maximum[k % 4]);
        maximum[0] =
            OP(max_skip_nan)(OP(max_skip_nan)(maximum[0], maximum[1]), OP(max_skip_nan)(maximum[2], maximum[3]));
        if (!OP(mask_ge)(maximum[0], least))
            continue;
        for (size_t half = i; half < i + TL_READ_MULTIPLE; half += 64) {
            uint64_t count_ge = 0;
            for (size_t k = 0; k < 64; k += OP(WIDTH))
                count_ge |= (uint64_t)OP(mask_ge)(LOAD(x + half + k), least) << k;
            for (; count_ge; count_ge &= count_ge - 1)
                found[collected++] = (int32_t)(half + tl_lowest_bit(count_ge));
        }
    }
    return collected;
}

TL_TARGET static void NAME(sum_)(const void *start, size_t count, double *sum, double *lost) {
    const ELEMENT *x = (const ELEMENT *)start;
    const size_t whole = count / 16 * 16;
    tl_lanes lanes = zero_lanes();
    for (size_t i = 0; i < whole; i += 16)
        for (size_t j = 0; j < 16; j += OP(WIDTH))
            OP(accumulate)(&lanes, j, LOAD(x + i + j));
    for (size_t j = 0, at = whole; j < 16 && at < count; j += OP(WIDTH), at += OP(WIDTH)) {
        OP(vec) value = at + OP(WIDTH) <= count ? LOAD(x + at) : NAME(load_first_)(x + at, count - at, 0);
        OP(accumulate)(&lanes, j, value);
    }
    for (size_t j = 0; j < LANE_VECTORS; j++) {
        double *to = sum + j * f64_WIDTH, *to_lost = lost + j * f64_WIDTH;
        f64_vec total = f64_load(to), more = f64_add_with_error(&total, lanes.sum[j]);
        f64_store(to, total);
        f64_store(to_lost, f64_add(f64_add(f64_load(to_lost), more), lanes.comp[j]));
    }
}

TL_TARGET static void NAME(to_f64_)(const void *start, size_t count, double factor, double *out) {
    const ELEMENT *x = (const ELEMENT *)start;
    for (size_t i = 0; i < count; i += OP(WIDTH)) {
        f64_vec wide[PARTS];
        OP(widen)(LOAD(x + i), wide);
        for (size_t j = 0; j < PARTS; j++)
            f64_store(out + i + j * f64_WIDTH, f64_mul(wide[j], f64_set(factor)));
    }
}

TL_TARGET static void NAME(to_compute_)(const void *start, size_t count, void *out) {
    const ELEMENT *x = (const ELEMENT *)start;
    for (size_t i = 0; i < count; i += OP(WIDTH))
        OP(store)((REAL *)out + i, LOAD(x + i));
}

/* Adds 16 products of the elements of each row with those of each vector to as many lanes. */
TL_TARGET TL_INLINE void NAME(add_products_)(const ELEMENT *const *x, const REAL *const *with, size_t at, size_t count,
                                             int from_memory, OP(vec) lanes[DOT_ROWS][DOT_VECTORS][16 / OP(WIDTH)]) {
    for (size_t j = 0; j < 16 / OP(WIDTH); j++) {
        OP(vec) value[DOT_ROWS];
        for (size_t r = 0; r < DOT_ROWS; r++) {
            const ELEMENT *next = x[r] + at + j * OP(WIDTH);
            if (from_memory && (j * OP(WIDTH) * sizeof *next) % 64 == 0)
                tl_prefetch_stream(next);
            value[r] = LOAD(next);
        }
        for (size_t v = 0; v < count; v++) {
            OP(vec) factor = OP(load)(with[v] + at + j * OP(WIDTH));
            for (size_t r = 0; r < DOT_ROWS; r++)
                lanes[r][v][j] = OP(mul_add)(value[r], factor, lanes[r][v][j]);
        }
    }
}

/* The products of some rows with `count` vectors. Those of a TL_DOT_CHUNK are added in 16 lanes, from zero; then these
 * in double. */
TL_TARGET TL_INLINE void NAME(dot_tile_)(const ELEMENT *const *x, const REAL *const *with, size_t depth, size_t count,
                                         int from_memory, double dots[DOT_ROWS][DOT_VECTORS]) {
    tl_lanes sums[DOT_ROWS][DOT_VECTORS];
    memset(sums, 0, sizeof sums);
    for (size_t start = 0; start < depth; start += TL_DOT_CHUNK) {
        OP(vec) lanes[DOT_ROWS][DOT_VECTORS][16 / OP(WIDTH)];
        size_t end = depth - start < TL_DOT_CHUNK ? depth : start + TL_DOT_CHUNK, at = start;
        for (size_t i = 0; i < DOT_ROWS * count; i++)
            for (size_t j = 0; j < 16 / OP(WIDTH); j++)
                lanes[i / count][i % count][j] = OP(set)(0);
        for (; at + 16 <= end; at += 16)
            NAME(add_products_)(x, with, at, count, from_memory, lanes);
        if (at < end) {
            ELEMENT last[DOT_ROWS][16] = {{0}};
            REAL factors[DOT_VECTORS][16] = {{0}};
            const ELEMENT *rows[DOT_ROWS];
            const REAL *vectors[DOT_VECTORS];
            for (size_t r = 0; r < DOT_ROWS; r++)
                rows[r] = (const ELEMENT *)memcpy((void *)last[r], (const void *)(x[r] + at), (end - at) * sizeof **x);
            for (size_t v = 0; v < count; v++)
                vectors[v] = (const REAL *)memcpy(factors[v], with[v] + at, (end - at) * sizeof **with);
            NAME(add_products_)(rows, vectors, 0, count, 0, lanes);
        }
        for (size_t i = 0; i < DOT_ROWS * count; i++)
            for (size_t j = 0; j < 16 / OP(WIDTH); j++)
                OP(accumulate)(&sums[i / count][i % count], j * OP(WIDTH), lanes[i / count][i % count][j]);
    }
    for (size_t i = 0; i < DOT_ROWS * count; i++)
        dots[i / count][i % count] = sum_of_lanes(sums[i / count][i % count]);
}

/* Writes the rounded products of some rows with the vectors from v on; products of row r go to element r of `out`. */
TL_TARGET TL_INLINE void NAME(dot_vectors_)(const ELEMENT *const *x, size_t depth, size_t r, size_t rows, int64_t v,
                                            const tl_vectors *vectors, const tl_vectors *out) {
    const REAL *with[DOT_VECTORS];
    double products[DOT_ROWS][DOT_VECTORS];
    const int64_t left = vectors->count - v;
    for (int64_t i = 0; i < DOT_VECTORS; i++) /* the last one is repeated */
        with[i] = (const REAL *)(const void *)(vectors->data + (v + (i < left ? i : left - 1)) * vectors->stride);
    if (left == 1)
        NAME(dot_tile_)(x, with, depth, 1, v == 0, products);
    else if (DOT_VECTORS > 2 && left == 2)
        NAME(dot_tile_)(x, with, depth, 2, v == 0, products);
    else
        NAME(dot_tile_)(x, with, depth, DOT_VECTORS, v == 0, products);
    for (int64_t i = 0; i < DOT_VECTORS && i < left; i++)
        for (size_t k = 0; k < DOT_ROWS && r + k < rows; k++) {
            const REAL product = (REAL)products[k][i];
            memcpy(out->data + (v + i) * out->stride + (r + k) * sizeof product, &product, sizeof product);
        }
}

TL_TARGET static void NAME(dot_rows_)(const char *start, ptrdiff_t stride, size_t rows, size_t depth,
                                      const tl_vectors *vectors, const tl_vectors *out) {
    for (int64_t some = 0; some < vectors->count; some += TL_DOT_VECTORS)
        for (size_t r = 0; r < rows; r += DOT_ROWS) {
            const ELEMENT *x[DOT_ROWS];
            for (size_t i = 0; i < DOT_ROWS; i++)
                x[i] = (const ELEMENT *)(const void *)(start + (ptrdiff_t)(r + i < rows ? r + i : rows - 1) * stride);
            for (int64_t v = some; v < vectors->count && v < some + TL_DOT_VECTORS; v += DOT_VECTORS)
                NAME(dot_vectors_)(x, depth, r, rows, v, vectors, out);
        }
}

#define STRIP 64 /* classes of half precision that are converted at a time */

/* TL_GROUP rows side by side, converted to REAL: in strips, whose rows are copied where they are not whole. */
TL_TARGET static void NAME(interleave_)(const char *const *rows, size_t classes, void *out) {
    REAL *group = (REAL *)out, strip[TL_GROUP * STRIP];
    const char *strips[TL_GROUP];
    const int is_half = sizeof(ELEMENT) != sizeof(REAL);
    int is_dense = !is_half || classes <= STRIP; /* whether the rows follow each other, and can be converted as one */
    for (size_t r = 1; r < TL_GROUP; r++)
        is_dense &= rows[r] == rows[r - 1] + classes * sizeof(ELEMENT);
    for (size_t i = 0; is_half && is_dense && i < TL_GROUP * classes; i += OP(WIDTH)) {
        if (i % (64 / sizeof(ELEMENT)) == 0)
            tl_prefetch_stream(rows[0] + i * sizeof(ELEMENT));
        OP(store)(strip + i, LOAD((const ELEMENT *)(const void *)rows[0] + i));
    }
    if (is_dense)
        OP(interleave_rows)(is_half ? (const char *)strip : rows[0], (ptrdiff_t)(classes * sizeof(REAL)), classes,
                            is_half ? NULL : rows[0], group);
    else if (!is_half)
        OP(interleave)(rows, classes, group);
    for (size_t k = 0; is_half && !is_dense && k < classes; k += STRIP) {
        size_t n = classes - k < STRIP ? classes - k : STRIP;
        for (size_t r = 0; r < TL_GROUP; r++) {
            strips[r] = (const char *)(strip + r * STRIP);
            const ELEMENT *from = (const ELEMENT *)(const void *)rows[r] + k;
            ELEMENT last[STRIP] = {0};
            if (n < STRIP)
                memcpy(last, (const void *)from, n * sizeof *from);
            for (size_t i = 0; i < n; i += OP(WIDTH))
                OP(store)(strip + r * STRIP + i, LOAD((n < STRIP ? last : from) + i));
        }
        OP(interleave)(strips, n, group + TL_GROUP * k);
    }
}

/* The rows of a group, rounded. */
TL_TARGET static void NAME(deinterleave_)(const void *in, size_t classes, char *const *rows) {
    const REAL *group = (const REAL *)in;
    const size_t row_bytes = classes * sizeof(ELEMENT);
    REAL strip[TL_GROUP * STRIP];
    char *strips[TL_GROUP];
    int is_dense = classes <= STRIP; /* as above */
    if (sizeof(ELEMENT) == sizeof(REAL)) {
        OP(deinterleave)(group, classes, rows);
        return;
    }
    for (size_t r = 1; r < TL_GROUP; r++)
        is_dense &= rows[r] == rows[r - 1] + row_bytes;
    if (is_dense) {
        const tl_few_rows to = {(const char *)strip, 0, 0, classes, 1, (ptrdiff_t)(classes * sizeof(REAL))};
        OP(put_group)(group, &to, 0, classes);
        for (size_t i = 0; i < TL_GROUP * classes; i += OP(WIDTH))
            STORE((ELEMENT *)(void *)rows[0] + i, OP(load)(strip + i));
        return;
    }
    for (size_t r = 0; r < TL_GROUP; r++)
        strips[r] = (char *)(strip + r * STRIP);
    memset(strip, 0, sizeof strip);
    for (size_t k = 0; k < classes; k += STRIP) {
        size_t n = classes - k < STRIP ? classes - k : STRIP;
        OP(deinterleave)(group + TL_GROUP * k, n, strips);
        for (size_t r = 0; r < TL_GROUP; r++) {
            ELEMENT rounded[STRIP];
            for (size_t i = 0; i < n; i += OP(WIDTH))
                STORE(rounded + i, OP(load)(strip + r * STRIP + i));
            memcpy(rows[r] + k * sizeof *rounded, rounded, n * sizeof *rounded);
        }
    }
}

/* The same for `count` class-major rows: the elements of a class are neighbours. Groups have TL_GROUP rows, the last
 * perhaps with fewer: its other lanes hold what follows these rows in memory, or 0. Each plane is visited once. */
TL_TARGET static void NAME(interleave_planes_)(const char *first, ptrdiff_t class_stride, size_t classes, size_t count,
                                               void *groups) {
    for (size_t k = 0; k < classes; k++) {
        const int is_end = (ptrdiff_t)(classes - 1 - k) * class_stride < (ptrdiff_t)sizeof(ELEMENT) * TL_GROUP;
        for (size_t r = 0; r < count; r += TL_GROUP) {
            const ELEMENT *x = (const ELEMENT *)(const void *)(first + (ptrdiff_t)k * class_stride) + r;
            REAL *to = (REAL *)groups + classes * r + TL_GROUP * k;
            ELEMENT last[TL_GROUP];
            if (is_end && count - r < TL_GROUP) { /* nothing may be read beyond; elsewhere, there are other planes */
                memset(last, 0, sizeof last);
                x = (const ELEMENT *)memcpy(last, (const void *)x, (count - r) * sizeof *x);
            }
            for (size_t i = 0; i < TL_GROUP; i += OP(WIDTH))
                OP(store)(to + i, LOAD(x + i));
        }
    }
}

TL_TARGET static void NAME(deinterleave_planes_)(const void *groups, ptrdiff_t class_stride, size_t classes,
                                                 size_t count, char *first) {
    for (size_t k = 0; k < classes; k++)
        for (size_t r = 0; r < count; r += TL_GROUP) {
            const REAL *from = (const REAL *)groups + classes * r + TL_GROUP * k;
            char *to = first + (ptrdiff_t)k * class_stride + r * sizeof(ELEMENT);
            ELEMENT last[TL_GROUP], *rounded = count - r < TL_GROUP ? last : (ELEMENT *)(void *)to;
            for (size_t i = 0; i < TL_GROUP; i += OP(WIDTH))
                STORE(rounded + i, OP(load)(from + i));
            if (rounded == last)
                memcpy(to, last, (count - r) * sizeof *last);
        }
}

#include "softmax_rows_body.h"

#undef STRIP
#undef HALF
#undef DTYPE
#undef ELEMENT
