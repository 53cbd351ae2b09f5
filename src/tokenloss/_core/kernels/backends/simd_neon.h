/* NEON of 64-bit ARM, where it is part of every machine; simd_portable.h says what operations do. */
#include <arm_neon.h>

#include "real.h"

#define TL_TARGET
#define f32_WIDTH 4
#define f64_WIDTH 2
typedef float32x4_t f32_vec;
typedef float64x2_t f64_vec;
typedef float32x4x2_t f32_pair;
typedef float64x2x2_t f64_pair;
typedef uint32x4_t f32_bits;
typedef uint64x2_t f64_bits;

#define FLOATS(f) PICK(f##_f32, f##_f64)
#define INTS(f) PICK(f##_u32, f##_u64)
#define TO_BITS(a) PICK(vreinterpretq_u32_f32, vreinterpretq_u64_f64)(a)
#define FROM_BITS(a) PICK(vreinterpretq_f32_u32, vreinterpretq_f64_u64)(a)
#define PICK(of_float, of_double) of_double
#include "simd_neon_body.h"
#undef PICK
#define PICK(of_float, of_double) of_float
#include "simd_neon_body.h"

TL_INLINE uint32x4_t f32_load_ids(const int64_t *p) {
    return vreinterpretq_u32_s32(vcombine_s32(vmovn_s64(vld1q_s64(p)), vmovn_s64(vld1q_s64(p + 2))));
}

TL_INLINE float32x4_t f32_load_float16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
TL_INLINE float32x4_t f32_load_bfloat16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
TL_INLINE void f32_store_float16(uint16_t *p, float32x4_t a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
/* for a sum of 0x7fff and a bit, gcc 14 emits raddhn: halves go up */
TL_INLINE void f32_store_bfloat16(uint16_t *p, float32x4_t a) {
    a = f32_if_equal(a, a, a, f32_and_bits(a, 0xffff0000u)); /* rounding would carry the low bits of a nan beyond it */
    uint32x4_t bits = vreinterpretq_u32_f32(a), is_odd = vtstq_u32(bits, vdupq_n_u32(0x10000));
    vst1_u16(p, vaddhn_u32(bits, vsubq_u32(vdupq_n_u32(0x7fff), is_odd)));
}
typedef uint8x16x2_t f32_table;
TL_INLINE uint8x16x2_t f32_load_powers(const uint32_t *powers, int guard) {
    const uint32x4_t drop = vdupq_n_u32((uint32_t)guard << 20);
    uint8x16x2_t table = {{vreinterpretq_u8_u32(vsubq_u32(vld1q_u32(powers), drop)),
                           vreinterpretq_u8_u32(vsubq_u32(vld1q_u32(powers + 4), drop))}};
    return table;
}
TL_INLINE float32x4_t f32_power(float32x4_t k, uint8x16x2_t table) {
    uint32x4_t bits = vreinterpretq_u32_f32(k), entry = vandq_u32(bits, vdupq_n_u32(7));
    entry = vmlaq_u32(vdupq_n_u32(0x03020100), entry, vdupq_n_u32(0x04040404));
    entry = vreinterpretq_u32_u8(vqtbl2q_u8(table, vreinterpretq_u8_u32(entry)));
    return vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32(bits, 20), entry));
}
TL_INLINE float32x4_t f32_zero_if_negative(float32x4_t a) {
    return vreinterpretq_f32_s32(vmaxq_s32(vreinterpretq_s32_f32(a), vdupq_n_s32(0)));
}

#define f32_PIECE 4 /* elements of a piece of a row, of 128 bits */
TL_INLINE void f32_transpose_pieces(float32x4_t *v) {
    float64x2_t ab_low = vreinterpretq_f64_f32(vzip1q_f32(v[0], v[1])),
                ab_high = vreinterpretq_f64_f32(vzip2q_f32(v[0], v[1])),
                cd_low = vreinterpretq_f64_f32(vzip1q_f32(v[2], v[3])),
                cd_high = vreinterpretq_f64_f32(vzip2q_f32(v[2], v[3]));
    v[0] = vreinterpretq_f32_f64(vzip1q_f64(ab_low, cd_low));
    v[1] = vreinterpretq_f32_f64(vzip2q_f64(ab_low, cd_low));
    v[2] = vreinterpretq_f32_f64(vzip1q_f64(ab_high, cd_high));
    v[3] = vreinterpretq_f32_f64(vzip2q_f64(ab_high, cd_high));
}
TL_INLINE void f32_join_triples(const float *from, float *p) {
    float32x4x3_t of = {{vld1q_f32(from), vld1q_f32(from + 16), vld1q_f32(from + 32)}};
    vst3q_f32(p, of);
}
TL_INLINE void f32_widen(float32x4_t a, float64x2_t *wide) {
    wide[0] = vcvt_f64_f32(vget_low_f32(a));
    wide[1] = vcvt_high_f64_f32(a);
}
TL_INLINE void f32_load_widened(const float *p, float64x2_t *wide) { f32_widen(vld1q_f32(p), wide); }
TL_INLINE void f32_widen_bits(float32x4_t a, float64x2_t *wide) {
    int32x4_t bits = vreinterpretq_s32_f32(a);
    wide[0] = vcvtq_f64_s64(vmovl_s32(vget_low_s32(bits)));
    wide[1] = vcvtq_f64_s64(vmovl_high_s32(bits));
}
TL_INLINE float32x4_t f32_narrow(const float64x2_t *wide) { return vcvt_high_f32_f64(vcvt_f32_f64(wide[0]), wide[1]); }

typedef uint8x16x4_t f64_table;
TL_INLINE uint8x16x4_t f64_load_powers(const uint64_t *powers, int guard) {
    const uint64x2_t drop = vdupq_n_u64((uint64_t)guard << 49);
    uint8x16x4_t table;
    for (int i = 0; i < 4; i++)
        table.val[i] = vreinterpretq_u8_u64(vsubq_u64(vld1q_u64(powers + 2 * i), drop));
    return table;
}
TL_INLINE float64x2_t f64_power(float64x2_t k, uint8x16x4_t table) {
    static const uint32_t bytes[4] = {0x03020100, 0x07060504, 0x03020100, 0x07060504};
    uint32x4_t low = vreinterpretq_u32_f64(k), entry = vandq_u32(vtrn1q_u32(low, low), vdupq_n_u32(7));
    entry = vmlaq_u32(vld1q_u32(bytes), entry, vdupq_n_u32(0x08080808));
    uint64x2_t power = vreinterpretq_u64_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(entry)));
    return vreinterpretq_f64_u64(vaddq_u64(vshlq_n_u64(vreinterpretq_u64_f64(k), 49), power));
}
TL_INLINE float64x2_t f64_zero_if_negative(float64x2_t a) {
    int64x2_t bits = vreinterpretq_s64_f64(a);
    return vreinterpretq_f64_s64(vbicq_s64(bits, vshrq_n_s64(bits, 63)));
}
TL_INLINE uint64x2_t f64_add_bits(uint64x2_t a, float64x2_t b) { return vaddq_u64(a, vreinterpretq_u64_f64(b)); }

#define f64_PIECE 2
TL_INLINE void f64_transpose_pieces(float64x2_t *v) {
    float64x2_t low = vzip1q_f64(v[0], v[1]);
    v[1] = vzip2q_f64(v[0], v[1]);
    v[0] = low;
}
TL_INLINE float64x2_t f64_sum_each(const float64x2_t *v) { return vpaddq_f64(v[0], v[1]); }
