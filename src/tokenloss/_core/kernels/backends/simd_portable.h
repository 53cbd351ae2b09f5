/* Vectors of one element, in plain C. Where the baseline has no fused multiply-add, an exact one of + - *. */
#include <math.h>

#include "../elements.h"
#include "../scalar_math.h"

#define TL_TARGET
#define f32_WIDTH 1
#define f64_WIDTH 1
typedef float f32_vec;
typedef double f64_vec;
typedef uint32_t f32_bits;
typedef uint64_t f64_bits;

TL_INLINE uint32_t f32_set_bits(uint32_t bits) { return bits; }
TL_INLINE uint64_t f64_set_bits(uint64_t bits) { return bits; }
TL_INLINE uint32_t f32_load_bits(const uint32_t *p) { return *p; }
TL_INLINE uint64_t f64_load_bits(const uint64_t *p) { return *p; }
TL_INLINE uint32_t f32_load_ids(const int64_t *p) { return (uint32_t)*p; } /* class ids, the low halves of theirs */
/* a and b are the same integer ? c : d */
TL_INLINE float f32_if_same(uint32_t a, uint32_t b, float c, float d) { return a == b ? c : d; }
TL_INLINE double f64_if_same(uint64_t a, uint64_t b, double c, double d) { return a == b ? c : d; }

TL_INLINE uint32_t f32_to_bits(float a) {
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
TL_INLINE float f32_set(float value) { return value; }
TL_INLINE float f32_load(const float *p) {
    float value;
    memcpy(&value, (const void *)p, sizeof value);
    return value;
}
TL_INLINE float f32_load_float16(const uint16_t *p) {
    uint16_t bits;
    memcpy(&bits, (const void *)p, 2);
    return tl_from_float16(bits);
}
TL_INLINE float f32_load_bfloat16(const uint16_t *p) {
    uint16_t bits;
    memcpy(&bits, (const void *)p, 2);
    return tl_from_bfloat16(bits);
}
TL_INLINE void f32_store(float *p, float value) { memcpy((void *)p, &value, sizeof value); }
TL_INLINE void f32_store_float16(uint16_t *p, float value) {
    uint16_t bits = tl_to_float16((double)value);
    memcpy((void *)p, &bits, 2);
}
/* rounded to nearest even; no nan comes here */
TL_INLINE void f32_store_bfloat16(uint16_t *p, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t rounded = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    memcpy((void *)p, &rounded, 2);
}
TL_INLINE void f32_stream(float *p, float value) { *p = value; }
TL_INLINE void half_stream(uint16_t *p, const uint16_t *halves) { *p = *halves; }
TL_INLINE float f32_add(float a, float b) { return a + b; }
TL_INLINE float f32_sub(float a, float b) { return a - b; }
TL_INLINE float f32_mul(float a, float b) { return a * b; }
TL_INLINE float f32_max_keep_nan(float a, float b) { return a > b ? a : b; }
TL_INLINE float f32_max_skip_nan(float a, float b) { return a > b ? a : b; }
TL_INLINE float f32_min(float a, float b) { return a < b ? a : b; }
TL_INLINE float f32_div(float a, float b) { return a / b; }
/* a, but -inf where it is not above b; nan stays */
TL_INLINE float f32_above(float a, float b) { return a <= b ? -INFINITY : a; }
TL_INLINE uint32_t f32_mask_ge(float a, float b) { return a >= b; }
TL_INLINE uint32_t f32_count_ge(uint32_t n, float a, float b) { return n + (a >= b); }

#if TL_BASELINE_FMA
TL_INLINE float f32_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
TL_INLINE float f32_fma(float a, float b, float c) {
    double product = (double)a * (double)b; /* exact */
    double sum = product + (double)c;
    uint64_t bits = tl_to_bits(sum);
    /* Rounding twice is wrong only where the first result is halfway between two floats: step off it towards the
     * exact sum. Below the normal numbers, floats are multiples of 2^-149. */
    int halfway = (bits & 0x1fffffff) == 0x10000000;
    if (TL_UNLIKELY(tl_abs(sum) < 0x1p-126))
        halfway = (int64_t)(sum * 0x1p150) % 2 != 0 && (double)(int64_t)(sum * 0x1p150) == sum * 0x1p150;
    if (TL_UNLIKELY(halfway)) {
        double other = sum - product;
        double lost = (product - (sum - other)) + ((double)c - other);
        if (lost != 0)
            sum = tl_from_bits((lost > 0) == (sum > 0) ? bits + 1 : bits - 1);
    }
    return (float)sum;
}
#endif

TL_INLINE uint32_t f32_or_bits(uint32_t a, float b, float c) {
    return a | f32_to_bits(b) | f32_to_bits(c);
}

/* 2^(k / 8), of k in the low bits of a float of ulp 1, times 1.538...: see f32_POWERS in template.h */
typedef struct {
    const uint32_t *powers;
    uint32_t drop;
} f32_table;
TL_INLINE f32_table f32_load_powers(const uint32_t *powers, int guard) {
    f32_table table = {powers, (uint32_t)guard << 20};
    return table;
}
TL_INLINE float f32_power(float k, f32_table table) {
    uint32_t bits = f32_to_bits(k);
    return tl_float_from_bits((bits << 20) + (table.powers[bits & 7] - table.drop));
}
TL_INLINE float f32_zero_if_negative(float a) {
    return f32_to_bits(a) >> 31 ? 0.0f : a;
}

/* a == b ? c : d; a nan compares as false */
TL_INLINE float f32_if_less(float a, float b, float c, float d) { return a < b ? c : d; }
TL_INLINE float f32_if_equal(float a, float b, float c, float d) { return a == b ? c : d; }
TL_INLINE int f32_any_negative(uint32_t bits) { return bits >> 31 != 0; }

#define bfloat16_COLUMNS 1
TL_INLINE void bfloat16_load_columns(const uint16_t *p, float *to) { *to = f32_load_bfloat16(p); }
TL_INLINE void bfloat16_order_columns(float *sums) { (void)sums; }

/* a piece of a row, one element, `offset` bytes into it */
#define f32_PIECE 1
#define f32_split_pairs(p, to) (void)((to)[0] = f32_load(p), (to)[TL_GROUP] = f32_load((p) + 1))
#define f32_split_triples(p, to) (f32_split_pairs(p, to), (void)((to)[2 * TL_GROUP] = f32_load((p) + 2)))
TL_INLINE float f32_load_pieces(const char *const *rows, size_t offset) {
    return f32_load((const float *)(const void *)(rows[0] + offset));
}
TL_INLINE void f32_store_pieces(char *const *rows, size_t offset, float piece) {
    f32_store((float *)(void *)(rows[0] + offset), piece);
}
TL_INLINE void f32_transpose_pieces(float *v) { (void)v; }
TL_INLINE void f32_widen(float a, double *wide) { *wide = (double)a; }
TL_INLINE void f32_load_widened(const float *p, double *wide) { *wide = (double)*p; }
/* the bits as a signed integer */
TL_INLINE void f32_widen_bits(float a, double *wide) {
    uint32_t bits = f32_to_bits(a);
    *wide = (double)bits - (bits >> 31 != 0 ? 0x1p32 : 0);
}
TL_INLINE float f32_narrow(const double *wide) { return (float)*wide; }

TL_INLINE double f64_set(double value) { return value; }
TL_INLINE double f64_load(const double *p) {
    double value;
    memcpy(&value, (const void *)p, sizeof value);
    return value;
}
TL_INLINE void f64_store(double *p, double value) { memcpy((void *)p, &value, sizeof value); }
TL_INLINE void f64_stream(double *p, double value) { *p = value; }
TL_INLINE double f64_add(double a, double b) { return a + b; }
TL_INLINE double f64_sub(double a, double b) { return a - b; }
TL_INLINE double f64_mul(double a, double b) { return a * b; }
TL_INLINE double f64_max_keep_nan(double a, double b) { return a > b ? a : b; }
TL_INLINE double f64_max_skip_nan(double a, double b) { return a > b ? a : b; }
TL_INLINE double f64_min(double a, double b) { return a < b ? a : b; }
TL_INLINE double f64_div(double a, double b) { return a / b; }
TL_INLINE double f64_above(double a, double b) { return a <= b ? -(double)INFINITY : a; }
TL_INLINE uint32_t f64_mask_ge(double a, double b) { return a >= b; }
TL_INLINE uint64_t f64_count_ge(uint64_t n, double a, double b) { return n + (a >= b); }

/* a + b and what its rounding lost. */
TL_INLINE double f64_two_sum(double a, double b, double *lost) {
    double sum = a + b, other = sum - a;
    *lost = (a - (sum - other)) + (b - other);
    return sum;
}

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
    double carried_low, sum_low, lost;
    double carried = f64_two_sum(c, product_low, &carried_low);
    double sum = f64_two_sum(product, carried, &sum_low);
    double odd = f64_two_sum(sum_low, carried_low, &lost);
    if (lost != 0) {
        uint64_t bits = tl_to_bits(odd);
        if (!(bits & 1))
            odd = tl_from_bits((lost > 0) == (odd > 0) ? bits + 1 : bits - 1);
    }
    if (TL_UNLIKELY(tiny)) {
        sum = f64_two_sum(sum, odd, &lost);
        double result = sum * 0x1p-537 * 0x1p-537; /* rounds again, which is wrong only where sum looks like a tie */
        if (lost != 0 && tl_abs(sum - result * 0x1p537 * 0x1p537) == 0.5)
            result = (sum + (lost > 0 ? 0.25 : -0.25)) * 0x1p-537 * 0x1p-537;
        return result;
    }
    return sum + odd;
}
#endif

TL_INLINE double f64_pow2(double shifted) { return tl_from_bits(tl_to_bits(shifted) << 52); }

typedef struct {
    const uint64_t *powers;
    uint64_t drop;
} f64_table;
TL_INLINE f64_table f64_load_powers(const uint64_t *powers, int guard) {
    f64_table table = {powers, (uint64_t)guard << 49};
    return table;
}
TL_INLINE double f64_power(double k, f64_table table) {
    uint64_t bits = tl_to_bits(k);
    return tl_from_bits((bits << 49) + (table.powers[bits & 7] - table.drop));
}
TL_INLINE double f64_zero_if_negative(double a) { return tl_to_bits(a) >> 63 ? 0.0 : a; }
TL_INLINE uint64_t f64_or_bits(uint64_t a, double b, double c) { return a | tl_to_bits(b) | tl_to_bits(c); }
/* integers plus the bits of numbers */
TL_INLINE uint64_t f64_add_bits(uint64_t a, double b) { return a + tl_to_bits(b); }
/* whether a bit of a mask is set in any element */
TL_INLINE int f32_any_of_bits(uint32_t a, uint32_t mask) { return (a & mask) != 0; }
TL_INLINE int f64_any_of_bits(uint64_t a, uint64_t mask) { return (a & mask) != 0; }
TL_INLINE int f64_any_negative(uint64_t bits) { return bits >> 63 != 0; }

#define f64_PIECE 1
#define f64_split_pairs(p, to) (void)((to)[0] = f64_load(p), (to)[TL_GROUP] = f64_load((p) + 1))
TL_INLINE double f64_load_pieces(const char *const *rows, size_t offset) {
    return f64_load((const double *)(const void *)(rows[0] + offset));
}
TL_INLINE void f64_store_pieces(char *const *rows, size_t offset, double piece) {
    f64_store((double *)(void *)(rows[0] + offset), piece);
}
TL_INLINE void f64_transpose_pieces(double *v) { (void)v; }
/* sums of two and of three neighbours, and of each of f64_WIDTH vectors */
TL_INLINE double f64_sum_pairs(const double *p) { return p[0] + p[1]; }
TL_INLINE double f64_sum_triples(const double *p) { return (p[0] + p[2]) + p[1]; }
TL_INLINE double f64_sum_each(const double *v) { return *v; }

/* a < b ? c : d, and a == b ? c : d; a nan compares as false */
TL_INLINE double f64_if_less(double a, double b, double c, double d) { return a < b ? c : d; }
TL_INLINE double f64_if_equal(double a, double b, double c, double d) { return a == b ? c : d; }
TL_INLINE double f64_trunc(double a) { return tl_abs(a) < 0x1p52 ? (double)(int64_t)a : a; }
/* the bits of a as an integer: plus, and, or a constant; the exponent field of a positive number as an integer */
TL_INLINE double f64_plus_bits(double a, uint64_t bits) { return tl_from_bits(tl_to_bits(a) + bits); }
TL_INLINE double f64_and_bits(double a, uint64_t bits) { return tl_from_bits(tl_to_bits(a) & bits); }
TL_INLINE double f64_with_bits(double a, uint64_t bits) { return tl_from_bits(tl_to_bits(a) | bits); }
TL_INLINE double f64_exponent_field(double a) { return tl_from_bits(tl_to_bits(a) >> 52); }
/* the same for float; 2^n of an integer n + 127 in the low bits of a float of ulp 1 */
TL_INLINE float f32_plus_bits(float a, uint32_t bits) { return tl_float_from_bits(f32_to_bits(a) + bits); }
TL_INLINE float f32_and_bits(float a, uint32_t bits) { return tl_float_from_bits(f32_to_bits(a) & bits); }
TL_INLINE float f32_with_bits(float a, uint32_t bits) { return tl_float_from_bits(f32_to_bits(a) | bits); }
TL_INLINE float f32_exponent_field(float a) { return tl_float_from_bits(f32_to_bits(a) >> 23); }
TL_INLINE float f32_pow2(float shifted) { return tl_float_from_bits(f32_to_bits(shifted) << 23); }
TL_INLINE uint32_t f32_mask_nonzero(float a) { return a != 0; }
TL_INLINE uint32_t f64_mask_nonzero(double a) { return a != 0; }
