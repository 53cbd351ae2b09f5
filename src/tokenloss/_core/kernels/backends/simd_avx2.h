/* AVX2 with FMA and F16C. */
#include <immintrin.h>

#define TL_TARGET TL_FOR("avx2,fma,f16c")
#define OPERATION TL_TARGET TL_INLINE
#define f32_WIDTH 8
#define f64_WIDTH 4
typedef __m256 f32_vec;
typedef __m256d f64_vec;
typedef __m256i f32_bits;
typedef __m256i f64_bits;

#define INTRINSIC(f) _mm256_##f
#define WHOLE(f) _mm256_##f##_si256
#define FROM_BITS(a) FLOATS(castsi256)(a)
#define SET_LONG _mm256_set1_epi64x
#define SAME(a, b) FROM_BITS(INTS(cmpeq)(a, b))
#define COMPARE(a, b, how) FLOATS(cmp)(a, b, how)
#define CHOOSE(mask, a, b) FLOATS(blendv)(b, a, mask)
#define MASK_BITS(mask) (uint32_t)FLOATS(movemask)(mask)
#define COUNT(n, mask) INTS(sub)(n, TO_BITS(mask))
#define ANY_OF_THREE(a, b, c) _mm256_or_si256(a, _mm256_or_si256(b, c))
#define ANY(a, b) (!_mm256_testz_si256(a, b))
#define HALF_VEC __m128i
#define HALF_WIDE(f) _mm_##f
#define HALF_WHOLE(f) _mm_##f##_si128
#define LOW_HALF(a) _mm256_castps256_ps128(a)
#define HIGH_HALF(a) _mm256_extractf128_ps(a, 1)
#define BOTH_HALVES(low, high) _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1)
#define LOW_WORDS(a) _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1))
#define PERMUTED(table, at) _mm256_permutevar8x32_epi32(table, at)
#include "simd_x86.h"

OPERATION __m256i f32_load_ids(const int64_t *p) {
    __m256 low = _mm256_loadu_ps((const float *)(const void *)p);
    __m256 high = _mm256_loadu_ps((const float *)(const void *)(p + 4));
    return _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88)), 0xd8);
}
#define HAS_LOAD_FIRST
OPERATION __m256 f32_load_first(const float *p, size_t n, float other) {
    __m256i is_first = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(_mm256_set1_ps(other), _mm256_maskload_ps(p, is_first), _mm256_castsi256_ps(is_first));
}
OPERATION __m256d f64_load_first(const double *p, size_t n, double other) {
    __m256i is_first = _mm256_cmpgt_epi64(_mm256_set1_epi64x((long long)n), _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_blendv_pd(_mm256_set1_pd(other), _mm256_maskload_pd(p, is_first), _mm256_castsi256_pd(is_first));
}
/* there are more elements before them, which are read and shifted out */
OPERATION void half_load_first(const uint16_t *p, size_t n, uint16_t other, uint16_t *to) {
    static const uint8_t places[32] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    __m128i last = _mm_loadu_si128((const __m128i *)(const void *)(p + n - 8));
    __m128i is_first = _mm_cmpgt_epi16(_mm_set1_epi16((short)n), _mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7));
    last = _mm_shuffle_epi8(last, _mm_loadu_si128((const __m128i *)(const void *)(places + 16 - 2 * n)));
    _mm_storeu_si128((__m128i *)(void *)to, _mm_blendv_epi8(_mm_set1_epi16((short)other), last, is_first));
}
OPERATION __m256 f32_load_bfloat16(const uint16_t *p) { /* one permutation puts words into upper halves */
    const __m256i place = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9, -1, -1,
                                           10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(both, place));
}
OPERATION __m256i f32_load_powers(const uint32_t *powers, int guard) {
    const __m256i drop = _mm256_set1_epi32((int)((unsigned)guard << 20));
    return _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)(const void *)powers), drop);
}

/* pieces of 128 bits of rows[0] and rows[4], which are `offset` bytes into them */
OPERATION __m256 f32_load_pieces(const char *const *rows, size_t offset) {
    __m128 low = _mm_loadu_ps((const float *)(const void *)(rows[0] + offset));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low),
                                _mm_loadu_ps((const float *)(const void *)(rows[4] + offset)), 1);
}
OPERATION void f32_store_pieces(char *const *rows, size_t offset, __m256 all) {
    _mm_storeu_ps((float *)(void *)(rows[0] + offset), _mm256_castps256_ps128(all));
    _mm_storeu_ps((float *)(void *)(rows[4] + offset), _mm256_extractf128_ps(all, 1));
}
OPERATION __m256 f32_column(const float *p, int n, int k) {
    const __m256i at = _mm256_setr_epi32(k, 3 + k, 6 + k, 9 + k, 12 + k, 15 + k, 18 + k, 21 + k); /* modulo 8 */
    __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
    if (n == 2) {
        __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
        return k == 0 ? _mm256_shuffle_ps(low, high, 0x88) : _mm256_shuffle_ps(low, high, 0xdd);
    }
    __m256 c = _mm256_loadu_ps(p + 16);
    a = k == 0   ? _mm256_blend_ps(_mm256_blend_ps(a, b, 0x92), c, 0x24)
        : k == 1 ? _mm256_blend_ps(_mm256_blend_ps(a, b, 0x24), c, 0x49)
                 : _mm256_blend_ps(_mm256_blend_ps(a, b, 0x49), c, 0x92);
    return _mm256_permutevar8x32_ps(a, at);
}
OPERATION void f32_join_pairs(const float *from, float *p) {
    __m256 a = _mm256_loadu_ps(from), b = _mm256_loadu_ps(from + 16);
    __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
}
OPERATION void f32_join_triples(const float *from, float *p) {
    __m256 a = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5));
    __m256 b = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + 16), _mm256_setr_epi32(5, 0, 3, 6, 1, 4, 7, 2));
    __m256 c = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + 32), _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7));
    _mm256_storeu_ps(p, _mm256_blend_ps(_mm256_blend_ps(a, b, 0x92), c, 0x24));
    _mm256_storeu_ps(p + 8, _mm256_blend_ps(_mm256_blend_ps(a, b, 0x24), c, 0x49));
    _mm256_storeu_ps(p + 16, _mm256_blend_ps(_mm256_blend_ps(a, b, 0x49), c, 0x92));
}
typedef struct {
    __m256i low, high; /* halves of the entries */
} f64_table;
OPERATION f64_table f64_load_powers(const uint64_t *powers, int guard) {
    const __m256i drop = _mm256_set1_epi64x((long long)((uint64_t)guard << 49)),
                  in_order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)powers),
            b = _mm256_loadu_si256((const __m256i *)(const void *)(powers + 4));
    a = _mm256_permutevar8x32_epi32(_mm256_sub_epi64(a, drop), in_order);
    b = _mm256_permutevar8x32_epi32(_mm256_sub_epi64(b, drop), in_order);
    f64_table table = {_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)};
    return table;
}
OPERATION __m256d f64_power(__m256d k, f64_table table) {
    __m256i bits = _mm256_castpd_si256(k), both = _mm256_shuffle_epi32(bits, 0xa0);
    __m256i entry = _mm256_blend_epi32(_mm256_permutevar8x32_epi32(table.low, both),
                                       _mm256_permutevar8x32_epi32(table.high, both), 0xaa);
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_slli_epi64(bits, 49), entry));
}
OPERATION __m256d f64_zero_if_negative(__m256d a) { return _mm256_blendv_pd(a, _mm256_setzero_pd(), a); }

#define f64_PIECE 4
OPERATION void f64_transpose_pieces(__m256d *v) {
    __m256d ab_low = _mm256_unpacklo_pd(v[0], v[1]), ab_high = _mm256_unpackhi_pd(v[0], v[1]),
            cd_low = _mm256_unpacklo_pd(v[2], v[3]), cd_high = _mm256_unpackhi_pd(v[2], v[3]);
    v[0] = _mm256_permute2f128_pd(ab_low, cd_low, 0x20);
    v[1] = _mm256_permute2f128_pd(ab_high, cd_high, 0x20);
    v[2] = _mm256_permute2f128_pd(ab_low, cd_low, 0x31);
    v[3] = _mm256_permute2f128_pd(ab_high, cd_high, 0x31);
}
OPERATION __m256d f64_column(const double *p, int n, int k) {
    __m256d a = _mm256_loadu_pd(p), b = _mm256_loadu_pd(p + 4);
    if (n == 2) {
        __m256d low = _mm256_permute2f128_pd(a, b, 0x20), high = _mm256_permute2f128_pd(a, b, 0x31);
        return k == 0 ? _mm256_unpacklo_pd(low, high) : _mm256_unpackhi_pd(low, high);
    }
    __m256d c = _mm256_loadu_pd(p + 8);
    return k == 0   ? _mm256_permute4x64_pd(_mm256_blend_pd(_mm256_blend_pd(a, b, 4), c, 2), 0x6c)
           : k == 1 ? _mm256_permute4x64_pd(_mm256_blend_pd(_mm256_blend_pd(a, b, 9), c, 4), 0xb1)
                    : _mm256_permute4x64_pd(_mm256_blend_pd(_mm256_blend_pd(a, b, 2), c, 9), 0xc6);
}
OPERATION void f64_join_pairs(const double *from, double *p) {
    __m256d a = _mm256_loadu_pd(from), b = _mm256_loadu_pd(from + 16);
    __m256d low = _mm256_unpacklo_pd(a, b), high = _mm256_unpackhi_pd(a, b);
    _mm256_storeu_pd(p, _mm256_permute2f128_pd(low, high, 0x20));
    _mm256_storeu_pd(p + 4, _mm256_permute2f128_pd(low, high, 0x31));
}
OPERATION __m256d f64_sum_each(const __m256d *v) {
    __m256d two[2];
    for (int i = 0; i < 2; i++)
        two[i] = _mm256_add_pd(_mm256_permute2f128_pd(v[i], v[i + 2], 0x20),
                               _mm256_permute2f128_pd(v[i], v[i + 2], 0x31));
    return _mm256_add_pd(_mm256_unpacklo_pd(two[0], two[1]), _mm256_unpackhi_pd(two[0], two[1]));
}
