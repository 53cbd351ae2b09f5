/* The kernels of one dtype on one instruction set. Included once for each pair, with these defined:
 *
 *   DTYPE       ends the functions' names      ELEMENT   type in memory
 *   LOAD(p)     a vector of elements, converted to REAL
 *   STORE(p, a) the same back, rounded; STREAM(p, a) past the caches
 *   REAL, OP(f) float and f32_f, or double and f64_f: the operations of simd_*.h
 *
 * max_keep_nan(a, b) of a nan b is nan; max_skip_nan(a, b) is a > b ? a : b, so it passes over a nan a.
 *
 * and perhaps, where several vectors are loaded at a time and their elements are not in order:
 *
 *   COLUMNS               how many; LOAD_COLUMNS(p, to) loads them
 *   ORDER_COLUMNS(sums)   puts their sums in order
 *
 * HALF is defined for dtypes that float32 computes for: where arguments are clamped, chunks are converted to it. With
 * CONVERTS_MOMENTS, so are all elements of moments, whose own loops take 3 % longer with AVX-512.
 */

#define NAME(what) JOIN(JOIN(what, DTYPE), JOIN(_, BACKEND))

#include "reduce_body.h"

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

TL_TARGET TL_INLINE void NAME(store_)(ELEMENT *out, OP(vec) value, int streaming) {
    if (streaming)
        STREAM(out, value);
    else
        STORE(out, value);
}

TL_TARGET static void NAME(exp_scaled_)(const void *start, size_t count, int64_t exponent, double factor,
                                        double subtrahend, void *out, int streaming) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(acc) acc = OP(acc_init)(exponent + OP(HEADROOM), 1, 0, 0);
    const OP(vec) times = OP(set)((REAL)factor), less = OP(set)(0 - (REAL)subtrahend);
    for (size_t i = 0; i < count; i += 4 * OP(WIDTH))
        for (size_t k = i; k < i + 4 * OP(WIDTH); k += OP(WIDTH)) {
            const OP(exp_parts) exp = OP(exp_of)(OP(max_keep_nan)(acc.min_arg, LOAD(x + k)), &acc, 1);
            NAME(store_)((ELEMENT *)out + k, OP(mul_add)(OP(add_rest)(&exp, exp.power), times, less), streaming);
        }
    if (streaming)
        tl_stream_end();
}

/* The subtrahend has more digits than a float. */
TL_TARGET static void NAME(sub_scalar_)(const void *start, size_t count, double subtrahend, void *out, int streaming) {
    const ELEMENT *x = (const ELEMENT *)start;
    const OP(vec) high = OP(set)((REAL)subtrahend), low = OP(set)((REAL)(subtrahend - (double)(REAL)subtrahend));
    for (size_t i = 0; i < count; i += OP(WIDTH))
        NAME(store_)((ELEMENT *)out + i, OP(sub)(OP(sub)(LOAD(x + i), high), low), streaming);
    if (streaming)
        tl_stream_end();
}

TL_TARGET static void NAME(sum_)(const void *start, size_t count, double *sum, double *lost) {
    const ELEMENT *x = (const ELEMENT *)start;
    double part[16], error[16];
    tl_lanes lanes[4];
    memset(lanes, 0, sizeof lanes);
    for (size_t i = 0; i < count; i += 64)
        for (size_t k = 0; k < 4; k++)
            for (size_t j = 0; j < 16; j += OP(WIDTH))
                OP(accumulate)(&lanes[k], j, LOAD(x + i + 16 * k + j));
    for (size_t k = 0; k < 4; k++) {
        f64_store_lanes(&lanes[k], part, error);
        TL_ROLLED /* for `lanes` to be registers */
        for (size_t j = 0; j < 16; j++) {
            JOIN(two_sum_, BACKEND)(sum + j, lost + j, part[j]);
            lost[j] += error[j];
        }
    }
}

TL_TARGET static void NAME(to_f64_)(const void *start, size_t count, double *out) {
    const ELEMENT *x = (const ELEMENT *)start;
    for (size_t i = 0; i < count; i += OP(WIDTH))
        OP(store_f64)(out + i, LOAD(x + i));
}

TL_TARGET static void NAME(to_compute_)(const void *start, size_t count, void *out) {
    const ELEMENT *x = (const ELEMENT *)start;
    for (size_t i = 0; i < count; i += OP(WIDTH))
        OP(store)((REAL *)out + i, LOAD(x + i));
}

/* Adds 64 products of elements at x with those of each vector to as many lanes. */
TL_TARGET TL_INLINE void NAME(add_products_)(const ELEMENT *x, const char *vectors, ptrdiff_t stride, size_t count,
                                             int from_memory, OP(vec) (*lanes)[TL_LANES / OP(WIDTH)]) {
    for (size_t j = 0; j < TL_LANES; j += OP(WIDTH)) {
        if (from_memory && j * sizeof *x % 64 == 0)
            tl_prefetch_stream(x + j);
        OP(vec) value = LOAD(x + j);
        for (size_t v = 0; v < count; v++) {
            const REAL *with = (const REAL *)(const void *)(vectors + (ptrdiff_t)v * stride);
            lanes[v][j / OP(WIDTH)] = OP(mul_add)(value, OP(load)(with + j), lanes[v][j / OP(WIDTH)]);
        }
    }
}

/* Adds the last products, fewer than 64, to 64 lanes. */
TL_TARGET TL_OUTLINE void NAME(add_last_products_)(const ELEMENT *x, const void *vector, size_t depth,
                                                   OP(vec) (*lanes)[TL_LANES / OP(WIDTH)]) {
    ELEMENT last[TL_LANES] = {0};
    REAL with[TL_LANES] = {0};
    memcpy(last, (const void *)x, depth * sizeof *x);
    memcpy(with, vector, depth * sizeof *with);
    NAME(add_products_)(last, (const char *)with, 0, 1, 0, lanes);
}

/* Adds 64 lanes to 16 of double. */
TL_TARGET TL_OUTLINE void NAME(add_lanes_)(OP(vec) * lanes, tl_lanes *sums) {
    for (size_t half = TL_LANES / 2; half >= 16; half /= 2)
        for (size_t j = 0; j < half / OP(WIDTH); j++)
            lanes[j] = OP(add)(lanes[j], lanes[j + half / OP(WIDTH)]);
    for (size_t j = 0; j < 16; j += OP(WIDTH))
        OP(accumulate)(sums, j, lanes[j / OP(WIDTH)]);
}

/* The products of a TL_DOT_CHUNK are added in 64 lanes, from zero; then these to 16 in double. */
TL_TARGET TL_INLINE void NAME(dot_rows_of_)(const ELEMENT *x, size_t depth, const char *vectors, ptrdiff_t stride,
                                            size_t count, int from_memory, double *dots) {
    tl_lanes sums[DOT_VECTORS];
    memset(sums, 0, sizeof sums);
    for (size_t start = 0; start < depth; start += TL_DOT_CHUNK) {
        OP(vec) lanes[DOT_VECTORS][TL_LANES / OP(WIDTH)], stored[DOT_VECTORS][TL_LANES / OP(WIDTH)];
        size_t end = depth - start < TL_DOT_CHUNK ? depth : start + TL_DOT_CHUNK, at = start;
        for (size_t v = 0; v < count; v++)
            for (size_t j = 0; j < TL_LANES / OP(WIDTH); j++)
                lanes[v][j] = OP(set)(0);
        for (; at + TL_LANES <= end; at += TL_LANES)
            NAME(add_products_)(x + at, vectors + at * sizeof(REAL), stride, count, from_memory, lanes);
        memcpy(stored, lanes, sizeof *lanes * count); /* nothing takes the address of lanes: they stay in registers */
        for (size_t v = 0; v < count; v++) {
            const char *vector = vectors + (ptrdiff_t)v * stride + at * sizeof(REAL);
            if (at < end)
                NAME(add_last_products_)(x + at, vector, end - at, stored + v);
            NAME(add_lanes_)(stored[v], &sums[v]);
        }
    }
    for (size_t v = 0; v < count; v++)
        dots[v] = total_of_lanes(&sums[v]);
}

TL_TARGET static void NAME(dot_rows_)(const void *start, size_t depth, const void *others, ptrdiff_t stride,
                                      size_t count, int from_memory, double *dots) {
    const ELEMENT *x = (const ELEMENT *)start;
    const char *vectors = (const char *)others;
    if (DOT_VECTORS == 4 && count == 4)
        NAME(dot_rows_of_)(x, depth, vectors, stride, 4, from_memory, dots);
    else if (DOT_VECTORS == 4 && count == 3)
        NAME(dot_rows_of_)(x, depth, vectors, stride, 3, from_memory, dots);
    else if (DOT_VECTORS == 4 && count == 2)
        NAME(dot_rows_of_)(x, depth, vectors, stride, 2, from_memory, dots);
    else
        for (size_t v = 0; v < count; v++)
            NAME(dot_rows_of_)(x, depth, vectors + (ptrdiff_t)v * stride, 0, 1, from_memory && v == 0, dots + v);
}

#define STRIP 64 /* classes of half precision that are converted at a time */

/* TL_GROUP rows side by side, converted to REAL: in strips, whose rows are copied where they are not whole. */
TL_TARGET static void NAME(interleave_)(const char *const *rows, size_t classes, void *out) {
    REAL *group = (REAL *)out, strip[TL_GROUP * STRIP];
    const char *strips[TL_GROUP];
    const size_t row_bytes = classes * sizeof(ELEMENT);
    if (sizeof(ELEMENT) == sizeof(REAL)) {
        OP(interleave)(rows, classes, group);
        return;
    }
    int is_dense = classes <= STRIP; /* whether the rows follow each other, and can be converted as one */
    for (size_t r = 1; r < TL_GROUP; r++)
        is_dense &= rows[r] == rows[r - 1] + row_bytes;
    for (size_t i = 0; is_dense && i < TL_GROUP * classes; i += OP(WIDTH))
        OP(store)(strip + i, LOAD((const ELEMENT *)(const void *)rows[0] + i));
    for (size_t r = 0; r < TL_GROUP; r++)
        strips[r] = (const char *)(strip + r * (is_dense ? classes : STRIP));
    for (size_t k = 0; k < classes; k += STRIP) {
        size_t n = classes - k < STRIP ? classes - k : STRIP;
        for (size_t r = 0; r < TL_GROUP && !is_dense; r++) {
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
    REAL strip[TL_GROUP][STRIP];
    char *strips[TL_GROUP];
    if (sizeof(ELEMENT) == sizeof(REAL)) {
        OP(deinterleave)(group, classes, rows);
        return;
    }
    for (size_t r = 0; r < TL_GROUP; r++)
        strips[r] = (char *)strip[r];
    memset(strip, 0, sizeof strip);
    for (size_t k = 0; k < classes; k += STRIP) {
        size_t n = classes - k < STRIP ? classes - k : STRIP;
        OP(deinterleave)(group + TL_GROUP * k, n, strips);
        for (size_t r = 0; r < TL_GROUP; r++) {
            ELEMENT rounded[STRIP];
            for (size_t i = 0; i < n; i += OP(WIDTH))
                STORE(rounded + i, OP(load)(strip[r] + i));
            memcpy(rows[r] + k * sizeof *rounded, rounded, n * sizeof *rounded);
        }
    }
}

/* The same for `count` class-major rows: the elements of a class are neighbours. Groups have TL_GROUP rows, the
 * last perhaps with fewer. Each plane of a class is visited once. */
TL_TARGET static void NAME(interleave_planes_)(const char *first, ptrdiff_t class_stride, size_t classes, size_t count,
                                               void *groups) {
    for (size_t k = 0; k < classes; k++)
        for (size_t r = 0; r < count; r += TL_GROUP) {
            const ELEMENT *x = (const ELEMENT *)(const void *)(first + (ptrdiff_t)k * class_stride) + r;
            REAL *to = (REAL *)groups + classes * r + TL_GROUP * k;
            ELEMENT last[TL_GROUP] = {0};
            if (count - r < TL_GROUP)
                x = (const ELEMENT *)memcpy(last, (const void *)x, (count - r) * sizeof *x);
            for (size_t i = 0; i < TL_GROUP; i += OP(WIDTH))
                OP(store)(to + i, LOAD(x + i));
        }
}

TL_TARGET static void NAME(deinterleave_planes_)(const void *groups, ptrdiff_t class_stride, size_t classes,
                                                 size_t count, char *first) {
    for (size_t k = 0; k < classes; k++)
        for (size_t r = 0; r < count; r += TL_GROUP) {
            const REAL *from = (const REAL *)groups + classes * r + TL_GROUP * k;
            char *to = first + (ptrdiff_t)k * class_stride + r * sizeof(ELEMENT);
            ELEMENT rounded[TL_GROUP];
            for (size_t i = 0; i < TL_GROUP; i += OP(WIDTH))
                STORE(rounded + i, OP(load)(from + i));
            memcpy(to, rounded, (count - r < TL_GROUP ? count - r : TL_GROUP) * sizeof *rounded);
        }
}

#undef STRIP
#undef NAME
#undef COLUMNS
#undef ORDER_COLUMNS
#undef LOAD_COLUMNS
#undef HALF
#undef CONVERTS_MOMENTS
#undef DTYPE
#undef ELEMENT
#undef LOAD
#undef STORE
#undef STREAM
