/* What AVX2 and AVX-512 have under names that differ only in a prefix: included by both, with
 *
 *     INTRINSIC(f), WHOLE(f)           the intrinsics f for elements, and for vectors of bits
 *     FROM_BITS(a)                     bits as numbers
 *     SAME(a, b), COMPARE(a, b, how)   a mask, for integers and for numbers
 *     CHOOSE(mask, a, b)               a where the mask is set, else b
 *     MASK_BITS(mask)                  a bit for each element
 *     COUNT(n, mask)                   n, and 1 more in elements where the mask is set
 *     ANY(a, b)                        whether two vectors have a bit in common */
#define REAL float
#define UINT uint32_t
#define OP(f) f32_##f
#define FLOATS(f) INTRINSIC(f##_ps)
#define FLOAT_MASKS(f) INTRINSIC(f##_ps_mask)
#define INTS(f) INTRINSIC(f##_epi32)
#define INT_MASKS(f) INTRINSIC(f##_epi32_mask)
#define SET_INTS(bits) INTRINSIC(set1_epi32)((int)(bits))
#define TO_BITS(a) WHOLE(castps)(a)
#define MANTISSA 23 /* bits before the exponent */
#include "simd_x86_body.h"
#define REAL double
#define UINT uint64_t
#define OP(f) f64_##f
#define FLOATS(f) INTRINSIC(f##_pd)
#define FLOAT_MASKS(f) INTRINSIC(f##_pd_mask)
#define INTS(f) INTRINSIC(f##_epi64)
#define INT_MASKS(f) INTRINSIC(f##_epi64_mask)
#define SET_INTS(bits) SET_LONG((long long)(bits))
#define TO_BITS(a) WHOLE(castpd)(a)
#define MANTISSA 52 /* bits before the exponent */
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
