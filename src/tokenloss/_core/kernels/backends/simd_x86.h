/* What AVX2 and AVX-512 have under names that differ only in a prefix; simd_portable.h says what it does. Both define
 *
 *     INTRINSIC(f), WHOLE(f)           the intrinsics f for elements, and for vectors of bits
 *     FROM_BITS(a)                     bits as numbers
 *     SAME(a, b), COMPARE(a, b, how)   a mask, for integers and for numbers
 *     CHOOSE(mask, a, b)               a where the mask is set, else b
 *     MASK_BITS(mask)                  a bit for each element
 *     COUNT(n, mask)                   n, and 1 more in elements where the mask is set
 *     ANY(a, b)                        whether two vectors have a bit in common
 *     ANY_OF_THREE(a, b, c)            the bits that any of the three has
 *     HALF_WIDE(f), HALF_WHOLE(f)      the intrinsics f of vectors half as wide, which LOW_HALF and HIGH_HALF are
 *     LOW_WORDS(a)                     the low 16 bits of each integer
 *     PERMUTED(table, at)              the entry of a table for each integer */
#include "real.h"

#define FLOATS(f) PICK(INTRINSIC(f##_ps), INTRINSIC(f##_pd))
#define FLOAT_MASKS(f) PICK(INTRINSIC(f##_ps_mask), INTRINSIC(f##_pd_mask))
#define INTS(f) PICK(INTRINSIC(f##_epi32), INTRINSIC(f##_epi64))
#define INT_MASKS(f) PICK(INTRINSIC(f##_epi32_mask), INTRINSIC(f##_epi64_mask))
#define SET_INTS(bits) PICK(INTRINSIC(set1_epi32)((int)(bits)), SET_LONG((long long)(bits)))
#define TO_BITS(a) PICK(WHOLE(castps)(a), WHOLE(castpd)(a))
#define PICK(of_float, of_double) of_double
#include "simd_x86_body.h"
#undef PICK
#define PICK(of_float, of_double) of_float
#include "simd_x86_body.h"

#define f32_PIECE 4 /* elements of a piece of a row, of 128 bits */
OPERATION void f32_transpose_pieces(f32_vec *v) {
    f64_vec ab_low = INTRINSIC(castps_pd)(INTRINSIC(unpacklo_ps)(v[0], v[1])),
            ab_high = INTRINSIC(castps_pd)(INTRINSIC(unpackhi_ps)(v[0], v[1])),
            cd_low = INTRINSIC(castps_pd)(INTRINSIC(unpacklo_ps)(v[2], v[3])),
            cd_high = INTRINSIC(castps_pd)(INTRINSIC(unpackhi_ps)(v[2], v[3]));
    v[0] = INTRINSIC(castpd_ps)(INTRINSIC(unpacklo_pd)(ab_low, cd_low));
    v[1] = INTRINSIC(castpd_ps)(INTRINSIC(unpackhi_pd)(ab_low, cd_low));
    v[2] = INTRINSIC(castpd_ps)(INTRINSIC(unpacklo_pd)(ab_high, cd_high));
    v[3] = INTRINSIC(castpd_ps)(INTRINSIC(unpackhi_pd)(ab_high, cd_high));
}

OPERATION f32_vec f32_load_float16(const uint16_t *p) {
    return INTRINSIC(cvtph_ps)(HALF_WHOLE(loadu)((const HALF_VEC *)(const void *)p));
}
OPERATION void f32_store_float16(uint16_t *p, f32_vec a) {
    HALF_WHOLE(storeu)((HALF_VEC *)(void *)p, INTRINSIC(cvtps_ph)(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
OPERATION void f32_store_bfloat16(uint16_t *p, f32_vec a) {
    a = f32_if_equal(a, a, a, f32_and_bits(a, 0xffff0000u)); /* rounding would carry the low bits of a nan beyond it */
    f32_bits bits = WHOLE(castps)(a), odd = WHOLE(and)(INTRINSIC(srli_epi32)(bits, 16), INTRINSIC(set1_epi32)(1));
    bits = INTRINSIC(add_epi32)(bits, INTRINSIC(add_epi32)(odd, INTRINSIC(set1_epi32)(0x7fff)));
    HALF_WHOLE(storeu)((HALF_VEC *)(void *)p, LOW_WORDS(INTRINSIC(srli_epi32)(bits, 16)));
}
OPERATION void f32_widen(f32_vec a, f64_vec *wide) {
    wide[0] = INTRINSIC(cvtps_pd)(LOW_HALF(a));
    wide[1] = INTRINSIC(cvtps_pd)(HIGH_HALF(a));
}
OPERATION void f32_load_widened(const float *p, f64_vec *wide) {
    wide[0] = INTRINSIC(cvtps_pd)(HALF_WIDE(loadu_ps)(p));
    wide[1] = INTRINSIC(cvtps_pd)(HALF_WIDE(loadu_ps)(p + f64_WIDTH));
}
OPERATION void f32_widen_bits(f32_vec a, f64_vec *wide) {
    wide[0] = INTRINSIC(cvtepi32_pd)(HALF_WHOLE(castps)(LOW_HALF(a)));
    wide[1] = INTRINSIC(cvtepi32_pd)(HALF_WHOLE(castps)(HIGH_HALF(a)));
}
#define f32_load_widened_bits f32_load_widened_bits
OPERATION void f32_load_widened_bits(const float *p, f64_vec *wide) {
    wide[0] = INTRINSIC(cvtepi32_pd)(HALF_WHOLE(loadu)((const HALF_VEC *)(const void *)p));
    wide[1] = INTRINSIC(cvtepi32_pd)(HALF_WHOLE(loadu)((const HALF_VEC *)(const void *)(p + f64_WIDTH)));
}
OPERATION f32_vec f32_narrow(const f64_vec *wide) {
    return BOTH_HALVES(INTRINSIC(cvtpd_ps)(wide[0]), INTRINSIC(cvtpd_ps)(wide[1]));
}
typedef f32_bits f32_table;
OPERATION f32_vec f32_power(f32_vec k, f32_table table) {
    f32_bits bits = WHOLE(castps)(k);
    return FROM_BITS(INTRINSIC(add_epi32)(INTRINSIC(slli_epi32)(bits, 20), PERMUTED(table, bits)));
}
OPERATION f32_vec f32_zero_if_negative(f32_vec a) {
    return FROM_BITS(INTRINSIC(max_epi32)(WHOLE(castps)(a), WHOLE(setzero)()));
}
OPERATION f64_bits f64_add_bits(f64_bits a, f64_vec b) { return INTRINSIC(add_epi64)(a, WHOLE(castpd)(b)); }
