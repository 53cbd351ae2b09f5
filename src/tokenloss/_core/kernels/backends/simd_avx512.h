/* AVX-512 F, DQ, BW and VL. */
#include <immintrin.h>

#define TL_TARGET TL_FOR("avx512f,avx512dq,avx512bw,avx512vl")
#define OPERATION TL_TARGET TL_INLINE
#define f32_WIDTH 16
#define f64_WIDTH 8
typedef __m512 f32_vec;
typedef __m512d f64_vec;
typedef __m512i f32_bits;
typedef __m512i f64_bits;

#define INTRINSIC(f) _mm512_##f
#define WHOLE(f) _mm512_##f##_si512
#define FROM_BITS(a) FLOATS(castsi512)(a)
#define SET_LONG _mm512_set1_epi64
#define SAME(a, b) INT_MASKS(cmpeq)(a, b)
#define COMPARE(a, b, how) FLOAT_MASKS(cmp)(a, b, how)
#define CHOOSE(mask, a, b) FLOATS(mask_blend)(mask, b, a)
#define MASK_BITS(mask) (mask)
#define COUNT(n, mask) INTS(mask_sub)(n, mask, n, SET_INTS((UINT)-1))
#define ANY_OF_THREE(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0xfe)
#define ANY(a, b) (INT_MASKS(test)(a, b) != 0)
#define HALF_VEC __m256i
#define HALF_WIDE(f) _mm256_##f
#define HALF_WHOLE(f) _mm256_##f##_si256
#define LOW_HALF(a) _mm512_castps512_ps256(a)
#define HIGH_HALF(a) _mm512_extractf32x8_ps(a, 1)
#define BOTH_HALVES(low, high) _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)
#define LOW_WORDS(a) _mm512_cvtepi32_epi16(a)
#define PERMUTED(table, at) _mm512_permutexvar_epi32(at, table)
#include "simd_x86.h"

OPERATION __m512i f32_load_ids(const int64_t *p) {
    __m256i low = _mm512_cvtepi64_epi32(_mm512_loadu_si512(p)), high = _mm512_cvtepi64_epi32(_mm512_loadu_si512(p + 8));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
#define HAS_LOAD_FIRST
OPERATION __m512 f32_load_first(const float *p, size_t n, float other) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(other), (__mmask16)((1u << n) - 1), p);
}
OPERATION __m512d f64_load_first(const double *p, size_t n, double other) {
    return _mm512_mask_loadu_pd(_mm512_set1_pd(other), (__mmask8)((1u << n) - 1), p);
}
OPERATION void half_load_first(const uint16_t *p, size_t n, uint16_t other, uint16_t *to) {
    __m256i first = _mm256_mask_loadu_epi16(_mm256_set1_epi16((short)other), (__mmask16)((1u << n) - 1), p);
    _mm256_storeu_si256((__m256i *)(void *)to, first);
}
OPERATION __m512 f32_load_bfloat16(const uint16_t *p) { /* one permutation puts words into upper halves */
    const __m512i place = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 16);
    __m512i bits = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, place, bits));
}
OPERATION __m512i f32_load_powers(const uint32_t *powers, int guard) {
    __m512i all = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)powers));
    return _mm512_sub_epi32(all, _mm512_set1_epi32((int)((unsigned)guard << 20)));
}

/* for tables without bits from 2^20 on: see f32_ROW_GUARD */
#define f32_power_without f32_power_without
OPERATION __m512 f32_power_without(__m512 k, __m512i table, __m512i none) {
    __m512i bits = _mm512_castps_si512(k), entry = _mm512_permutexvar_epi32(bits, table);
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_slli_epi32(bits, 20), entry, none, 0x54));
}

/* pieces of 128 bits of rows[0], rows[4], ..., which are `offset` bytes into them */
OPERATION __m512 f32_load_pieces(const char *const *rows, size_t offset) {
    __m512 all = _mm512_castps128_ps512(_mm_loadu_ps((const float *)(const void *)(rows[0] + offset)));
    for (int i = 1; i < 4; i++)
        all = _mm512_mask_broadcast_f32x4(all, (__mmask16)(0xf << 4 * i),
                                          _mm_loadu_ps((const float *)(const void *)(rows[4 * i] + offset)));
    return all;
}
OPERATION void f32_store_pieces(char *const *rows, size_t offset, __m512 all) {
    _mm_storeu_ps((float *)(void *)(rows[0] + offset), _mm512_castps512_ps128(all));
    _mm_storeu_ps((float *)(void *)(rows[4] + offset), _mm512_extractf32x4_ps(all, 1));
    _mm_storeu_ps((float *)(void *)(rows[8] + offset), _mm512_extractf32x4_ps(all, 2));
    _mm_storeu_ps((float *)(void *)(rows[12] + offset), _mm512_extractf32x4_ps(all, 3));
}
OPERATION __m512 f32_column(const float *p, int n, int k) {
    const __m512i row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(row, _mm512_set1_epi32(n)), _mm512_set1_epi32(k));
    __m512 of_two = _mm512_permutex2var_ps(_mm512_loadu_ps(p), at, _mm512_loadu_ps(p + 16));
    if (n == 2)
        return of_two;
    return _mm512_mask_permutexvar_ps(of_two, (__mmask16)(0xffff << (34 - k) / 3), at, _mm512_loadu_ps(p + 32));
}
OPERATION void f32_join_pairs(const float *from, float *p) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
    _mm512_storeu_ps(p, _mm512_permutex2var_ps(a, low, b));
    _mm512_storeu_ps(p + 16, _mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b));
}
OPERATION void f32_join_triples(const float *from, float *p) {
    const __m512i row = _mm512_setr_epi32(0, 16, 0, 1, 17, 1, 2, 18, 2, 3, 19, 3, 4, 20, 4, 5);
    __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16), c = _mm512_loadu_ps(from + 32);
    _mm512_storeu_ps(p, _mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(a, row, b), 0x4924, row, c));
    __m512i next = _mm512_setr_epi32(21, 5, 6, 22, 6, 7, 23, 7, 8, 24, 8, 9, 25, 9, 10, 26);
    _mm512_storeu_ps(p + 16, _mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(a, next, b), 0x2492, next, c));
    next = _mm512_setr_epi32(10, 11, 27, 11, 12, 28, 12, 13, 29, 13, 14, 30, 14, 15, 31, 15);
    _mm512_storeu_ps(p + 32, _mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(a, next, b), 0x9249, next, c));
}

typedef __m512i f64_table;
OPERATION __m512i f64_load_powers(const uint64_t *powers, int guard) {
    return _mm512_sub_epi64(_mm512_loadu_si512(powers), _mm512_set1_epi64((long long)((uint64_t)guard << 49)));
}
OPERATION __m512d f64_power(__m512d k, __m512i table) {
    __m512i bits = _mm512_castpd_si512(k);
    return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_slli_epi64(bits, 49), _mm512_permutexvar_epi64(bits, table)));
}
OPERATION __m512d f64_zero_if_negative(__m512d a) {
    return _mm512_castsi512_pd(_mm512_max_epi64(_mm512_castpd_si512(a), _mm512_setzero_si512()));
}

#define f64_PIECE 4
OPERATION __m512d f64_load_pieces(const char *const *rows, size_t offset) {
    __m256d low = _mm256_loadu_pd((const double *)(const void *)(rows[0] + offset));
    return _mm512_insertf64x4(_mm512_castpd256_pd512(low),
                              _mm256_loadu_pd((const double *)(const void *)(rows[4] + offset)), 1);
}
OPERATION void f64_store_pieces(char *const *rows, size_t offset, __m512d all) {
    _mm256_storeu_pd((double *)(void *)(rows[0] + offset), _mm512_castpd512_pd256(all));
    _mm256_storeu_pd((double *)(void *)(rows[4] + offset), _mm512_extractf64x4_pd(all, 1));
}
OPERATION void f64_transpose_pieces(__m512d *v) {
    const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i odd = _mm512_add_epi64(even, _mm512_set1_epi64(2));
    __m512d ab_low = _mm512_unpacklo_pd(v[0], v[1]), ab_high = _mm512_unpackhi_pd(v[0], v[1]),
            cd_low = _mm512_unpacklo_pd(v[2], v[3]), cd_high = _mm512_unpackhi_pd(v[2], v[3]);
    v[0] = _mm512_permutex2var_pd(ab_low, even, cd_low);
    v[1] = _mm512_permutex2var_pd(ab_high, even, cd_high);
    v[2] = _mm512_permutex2var_pd(ab_low, odd, cd_low);
    v[3] = _mm512_permutex2var_pd(ab_high, odd, cd_high);
}
OPERATION __m512d f64_column(const double *p, int n, int k) {
    const __m512i row = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i at = _mm512_add_epi64(_mm512_mullo_epi64(row, _mm512_set1_epi64(n)), _mm512_set1_epi64(k));
    __m512d of_two = _mm512_permutex2var_pd(_mm512_loadu_pd(p), at, _mm512_loadu_pd(p + 8));
    if (n == 2)
        return of_two;
    return _mm512_mask_permutexvar_pd(of_two, (__mmask8)(0xff << (18 - k) / 3), at, _mm512_loadu_pd(p + 16));
}
OPERATION void f64_join_pairs(const double *from, double *p) {
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    __m512d a = _mm512_loadu_pd(from), b = _mm512_loadu_pd(from + 16);
    _mm512_storeu_pd(p, _mm512_permutex2var_pd(a, low, b));
    _mm512_storeu_pd(p + 8, _mm512_permutex2var_pd(a, _mm512_add_epi64(low, _mm512_set1_epi64(4)), b));
}
OPERATION __m512d f64_sum_each(const __m512d *v) {
    __m512d four[4], two[2];
    for (int i = 0; i < 4; i++) { /* 0 and 2, 1 and 3, 4 and 6, 5 and 7 */
        __m512d a = v[i + (i & 2)], b = v[i + (i & 2) + 2];
        four[i] = _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x44), _mm512_shuffle_f64x2(a, b, 0xee));
    }
    for (int i = 0; i < 2; i++)
        two[i] = _mm512_add_pd(_mm512_shuffle_f64x2(four[i], four[i + 2], 0x88),
                               _mm512_shuffle_f64x2(four[i], four[i + 2], 0xdd));
    return _mm512_add_pd(_mm512_unpacklo_pd(two[0], two[1]), _mm512_unpackhi_pd(two[0], two[1]));
}
