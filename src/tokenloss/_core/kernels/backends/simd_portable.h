/* The operations of all instruction sets, here of vectors of one element in plain C. Where the baseline has no fused
 * multiply-add, an exact one of + - *. */
#include "../elements.h"
#include "../scalar_math.h"

#include "real.h"

#define TL_TARGET
#define f32_WIDTH 1
#define f64_WIDTH 1
typedef float f32_vec;
typedef double f64_vec;
typedef uint32_t f32_bits;
typedef uint64_t f64_bits;

#define PICK(of_float, of_double) of_double
#include "simd_portable_body.h"
#undef PICK
#define PICK(of_float, of_double) of_float
#include "simd_portable_body.h"

TL_INLINE uint32_t f32_load_ids(const int64_t *p) { return (uint32_t)*p; } /* class ids, the low halves of theirs */

TL_INLINE float f32_load_float16(const uint16_t *p) { return tl_from_float16(tl_load16((const char *)p, TL_FLOAT16)); }
TL_INLINE float f32_load_bfloat16(const uint16_t *p) {
    return tl_from_bfloat16(tl_load16((const char *)p, TL_BFLOAT16));
}
/* rounded to nearest even; no nan comes here */
TL_INLINE void f32_store_float16(uint16_t *p, float value) { tl_store((char *)p, TL_FLOAT16, (double)value); }
TL_INLINE void f32_store_bfloat16(uint16_t *p, float value) { tl_store((char *)p, TL_BFLOAT16, (double)value); }

/* a + b and what its rounding lost. */
TL_INLINE double f64_two_sum(double a, double b, double *lost) {
    double sum = a + b, other = sum - a;
    *lost = (a - (sum - other)) + (b - other);
    return sum;
}

/* a + b rounded to odd: where it is not exact, the last bit is set, so that rounding it again to fewer bits is right. */
TL_INLINE double f64_add_to_odd(double a, double b) {
    double lost, sum = f64_two_sum(a, b, &lost);
    uint64_t bits = tl_to_bits(sum);
    if ((lost < 0 || lost > 0) && !(bits & 1)) /* not nan */
        sum = tl_from_bits((lost > 0) == (sum > 0) ? bits + 1 : bits - 1);
    return sum;
}

#if TL_BASELINE_FMA
TL_INLINE float f32_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
TL_INLINE float f32_fma(float a, float b, float c) {
    double product = (double)a * (double)b, sum = product + (double)c; /* the product is exact */
    /* rounding twice is wrong only where the first result is halfway between two floats, or is no normal one */
    if (TL_UNLIKELY((tl_to_bits(sum) & 0x1fffffff) == 0x10000000 || tl_abs(sum) < 0x1p-126))
        sum = f64_add_to_odd(product, (double)c);
    return (float)sum;
}
#endif

#define f32_PIECE 1
/* rows from columns, which are TL_GROUP apart */
#define f32_join_pairs(from, p) (f32_store(p, (from)[0]), f32_store((p) + 1, (from)[TL_GROUP]))
#define f32_join_triples(from, p) (f32_join_pairs(from, p), f32_store((p) + 2, (from)[2 * TL_GROUP]))
TL_INLINE void f32_widen(float a, double *wide) { *wide = (double)a; }
TL_INLINE void f32_load_widened(const float *p, double *wide) { *wide = (double)f32_load(p); }
/* the bits of each element as a signed integer */
TL_INLINE void f32_widen_bits(float a, double *wide) {
    uint32_t bits = f32_to_bits(a);
    *wide = (double)bits - (bits >> 31 != 0 ? 0x1p32 : 0);
}
TL_INLINE float f32_narrow(const double *wide) { return (float)*wide; }

#if TL_BASELINE_FMA
TL_INLINE double f64_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
/* A function that is called, for it is no faster inlined. */
TL_OUTLINE double f64_fma(double a, double b, double c) {
    /* The exact product by Veltkamp's and Dekker's splitting, then Boldo's and Melquiond's addition of three terms
     * ("Emulation of FMA and correctly rounded sums", 2008): the two small ones are rounded to odd. Where the product's
     * low part would underflow, all is done in units of the least subnormal number, 2^-1074. */
    if (TL_UNLIKELY(!(tl_abs(a * b + c) < (double)INFINITY))) /* whose rounding errors would be nan */
        return a * b + c;
    if (TL_UNLIKELY(tl_abs(a) > 0x1p990 || tl_abs(b) > 0x1p990)) { /* splitting would overflow */
        a *= tl_abs(a) > 0x1p990 ? 0x1p-600 : 0x1p600;
        b *= tl_abs(b) > 0x1p990 ? 0x1p-600 : 0x1p600;
    }
    int tiny = tl_abs(a * b) < 0x1p-960 && a != 0 && b != 0 && tl_abs(c) < 0x1p-900;
    if (TL_UNLIKELY(tiny)) {
        a *= 0x1p537;
        b *= 0x1p537;
        c = c * 0x1p537 * 0x1p537;
    }
    double product = a * b;
    double wide = 134217729.0 * a, a_high = wide - (wide - a), a_low = a - a_high;
    wide = 134217729.0 * b;
    double b_high = wide - (wide - b), b_low = b - b_high;
    double product_low = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low);
    double carried_low, sum_low;
    double carried = f64_two_sum(c, product_low, &carried_low);
    double sum = f64_two_sum(product, carried, &sum_low);
    double odd = f64_add_to_odd(sum_low, carried_low);
    if (TL_UNLIKELY(tiny)) {
        double lost;
        sum = f64_two_sum(sum, odd, &lost);
        double result = sum * 0x1p-537 * 0x1p-537; /* rounds again, which is wrong only where sum looks like a tie */
        if (lost != 0 && tl_abs(sum - result * 0x1p537 * 0x1p537) == 0.5)
            result = (sum + (lost > 0 ? 0.25 : -0.25)) * 0x1p-537 * 0x1p-537;
        return result;
    }
    return sum + odd;
}
#endif

/* integers plus the bits of numbers */
TL_INLINE uint64_t f64_add_bits(uint64_t a, double b) { return a + tl_to_bits(b); }

#define f64_PIECE 1
#define f64_join_pairs(from, p) (f64_store(p, (from)[0]), f64_store((p) + 1, (from)[TL_GROUP]))
/* sums of each of f64_WIDTH vectors, by halves */
TL_INLINE double f64_sum_each(const double *v) { return *v; }
