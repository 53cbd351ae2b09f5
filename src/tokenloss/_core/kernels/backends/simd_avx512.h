/* AVX-512 F, DQ, BW and VL. */
#include <immintrin.h>
#include <math.h>

#define TL_TARGET TL_FOR("avx512f,avx512dq,avx512bw,avx512vl")
#define OPERATION TL_TARGET TL_INLINE
#define f32_WIDTH 16
#define f64_WIDTH 8
typedef __m512 f32_vec;
typedef __m512d f64_vec;
typedef __m512i f32_bits;
typedef __m512i f64_bits;

OPERATION __m512i f32_set_bits(uint32_t bits) { return _mm512_set1_epi32((int)bits); }
OPERATION __m512i f64_set_bits(uint64_t bits) { return _mm512_set1_epi64((long long)bits); }
OPERATION __m512i f32_load_bits(const uint32_t *p) { return _mm512_loadu_si512(p); }
OPERATION __m512i f64_load_bits(const uint64_t *p) { return _mm512_loadu_si512(p); }
/* class ids, the low halves of theirs */
OPERATION __m512i f32_load_ids(const int64_t *p) {
    __m256i low = _mm512_cvtepi64_epi32(_mm512_loadu_si512(p)), high = _mm512_cvtepi64_epi32(_mm512_loadu_si512(p + 8));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
/* a and b are the same integer ? c : d */
OPERATION __m512 f32_if_same(__m512i a, __m512i b, __m512 c, __m512 d) {
    return _mm512_mask_mov_ps(d, _mm512_cmpeq_epi32_mask(a, b), c);
}
OPERATION __m512d f64_if_same(__m512i a, __m512i b, __m512d c, __m512d d) {
    return _mm512_mask_mov_pd(d, _mm512_cmpeq_epi64_mask(a, b), c);
}

OPERATION __m512 f32_set(float value) { return _mm512_set1_ps(value); }
OPERATION __m512 f32_load(const float *p) { return _mm512_loadu_ps(p); }
/* the first n elements; `other` after them */
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
OPERATION __m512 f32_load_float16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
OPERATION __m512 f32_load_bfloat16(const uint16_t *p) { /* one permutation puts words into upper halves */
    const __m512i place = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 16);
    __m512i bits = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, place, bits));
}
/* two columns of bfloat16 in one load: the even elements, and the odd ones; and their sums in the elements' order */
#define bfloat16_COLUMNS 2
OPERATION void bfloat16_load_columns(const uint16_t *p, __m512 *to) {
    __m512i bits = _mm512_loadu_si512(p);
    to[0] = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    to[1] = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000u)));
}
OPERATION void bfloat16_order_columns(__m512 *sums) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    __m512 even = sums[0], odd = sums[1];
    sums[0] = _mm512_permutex2var_ps(even, low, odd);
    sums[1] = _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd);
}
OPERATION void f32_store(float *p, __m512 a) { _mm512_storeu_ps(p, a); }
OPERATION void f32_store_float16(uint16_t *p, __m512 a) {
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* rounded to nearest even; no nan comes here */
OPERATION void f32_store_bfloat16(uint16_t *p, __m512 a) {
    __m512i bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}
OPERATION void f32_stream(float *p, __m512 a) { _mm512_stream_ps(p, a); }
OPERATION void half_stream(uint16_t *p, const uint16_t *halves) {
    _mm256_stream_si256((__m256i *)(void *)p, _mm256_loadu_si256((const __m256i *)(const void *)halves));
}
OPERATION __m512 f32_add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
OPERATION __m512 f32_sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
OPERATION __m512 f32_mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
OPERATION __m512 f32_max_keep_nan(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
OPERATION __m512 f32_max_skip_nan(__m512 a, __m512 b) { return f32_max_keep_nan(a, b); }
OPERATION __m512 f32_min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
OPERATION __m512 f32_div(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
/* a, but -inf where it is not above b; nan stays */
OPERATION __m512 f32_above(__m512 a, __m512 b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), a, _mm512_set1_ps(-INFINITY));
}
OPERATION uint32_t f32_mask_ge(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
OPERATION __m512i f32_count_ge(__m512i n, __m512 a, __m512 b) {
    return _mm512_mask_sub_epi32(n, _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), n, _mm512_set1_epi32(-1));
}
OPERATION __m512 f32_fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
/* 2^(k / 8), of k in the low bits of a float of ulp 1, times 1.538...: see f32_POWERS in template.h */
typedef __m512i f32_table;
OPERATION __m512i f32_load_powers(const uint32_t *powers, int guard) {
    __m512i all = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)powers));
    return _mm512_sub_epi32(all, _mm512_set1_epi32((int)((unsigned)guard << 20)));
}
OPERATION __m512 f32_power(__m512 k, __m512i table) {
    __m512i bits = _mm512_castps_si512(k);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(bits, 20), _mm512_permutexvar_epi32(bits, table)));
}
OPERATION __m512 f32_zero_if_negative(__m512 a) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_setzero_si512()));
}
OPERATION __m512i f32_or_bits(__m512i a, __m512 b, __m512 c) {
    return _mm512_ternarylogic_epi32(a, _mm512_castps_si512(b), _mm512_castps_si512(c), 0xfe);
}
/* a == b ? c : d; a nan compares as false */
OPERATION __m512 f32_if_less(__m512 a, __m512 b, __m512 c, __m512 d) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), d, c);
}
OPERATION __m512 f32_if_equal(__m512 a, __m512 b, __m512 c, __m512 d) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), d, c);
}
OPERATION int f32_any_negative(__m512i bits) { return _mm512_movepi32_mask(bits) != 0; }
OPERATION void f32_store_f64(double *p, __m512 a) {
    _mm512_storeu_pd(p, _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
    _mm512_storeu_pd(p + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
}

/* pieces of 128 bits of rows[0], rows[4], ..., which are `offset` bytes into them */
#define f32_PIECE 4
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
OPERATION void f32_transpose_pieces(__m512 *v) {
    __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1])),
            ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(v[0], v[1])),
            cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3])),
            cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(v[2], v[3]));
    v[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
    v[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
    v[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
    v[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
}
/* rows of two elements, and of three, as vectors that are TL_GROUP apart: one of the first elements, and so on */
OPERATION void f32_split_pairs(const float *p, float *to) {
    const __m512i place = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512 low = _mm512_loadu_ps(p), high = _mm512_loadu_ps(p + 16);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(low, place, high));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(low, _mm512_add_epi32(place, _mm512_set1_epi32(1)), high));
}
OPERATION void f32_split_triples(const float *p, float *to) {
    const __m512i place = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45);
    const __m512i own = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 low = _mm512_loadu_ps(p), middle = _mm512_loadu_ps(p + 16), high = _mm512_loadu_ps(p + 32);
    for (int k = 0; k < 3; k++) {
        __m512i at = _mm512_add_epi32(place, _mm512_set1_epi32(k)), last = _mm512_sub_epi32(at, _mm512_set1_epi32(16));
        __m512 found = _mm512_permutex2var_ps(low, at, middle); /* of places from 32 on, any */
        at = _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(at, _mm512_set1_epi32(32)), last, own);
        _mm512_storeu_ps(to + 16 * k, _mm512_permutex2var_ps(found, at, high));
    }
}
OPERATION void f32_widen(__m512 a, __m512d *wide) {
    wide[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    wide[1] = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
}
OPERATION void f32_load_widened(const float *p, __m512d *wide) {
    wide[0] = _mm512_cvtps_pd(_mm256_loadu_ps(p));
    wide[1] = _mm512_cvtps_pd(_mm256_loadu_ps(p + 8));
}
/* the bits of each element as a signed integer */
OPERATION void f32_widen_bits(__m512 a, __m512d *wide) {
    wide[0] = _mm512_cvtepi32_pd(_mm512_castsi512_si256(_mm512_castps_si512(a)));
    wide[1] = _mm512_cvtepi32_pd(_mm512_extracti32x8_epi32(_mm512_castps_si512(a), 1));
}
OPERATION __m512 f32_narrow(const __m512d *wide) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(wide[0])), _mm512_cvtpd_ps(wide[1]), 1);
}

OPERATION __m512d f64_set(double value) { return _mm512_set1_pd(value); }
OPERATION __m512d f64_load(const double *p) { return _mm512_loadu_pd(p); }
OPERATION void f64_store(double *p, __m512d a) { _mm512_storeu_pd(p, a); }
OPERATION void f64_store_f64(double *p, __m512d a) { _mm512_storeu_pd(p, a); }
OPERATION void f64_stream(double *p, __m512d a) { _mm512_stream_pd(p, a); }
OPERATION __m512d f64_add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }
OPERATION __m512d f64_sub(__m512d a, __m512d b) { return _mm512_sub_pd(a, b); }
OPERATION __m512d f64_mul(__m512d a, __m512d b) { return _mm512_mul_pd(a, b); }
OPERATION __m512d f64_max_keep_nan(__m512d a, __m512d b) { return _mm512_max_pd(a, b); }
OPERATION __m512d f64_max_skip_nan(__m512d a, __m512d b) { return f64_max_keep_nan(a, b); }
OPERATION __m512d f64_min(__m512d a, __m512d b) { return _mm512_min_pd(a, b); }
OPERATION __m512d f64_div(__m512d a, __m512d b) { return _mm512_div_pd(a, b); }
OPERATION __m512d f64_above(__m512d a, __m512d b) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LE_OQ), a, _mm512_set1_pd(-(double)INFINITY));
}
OPERATION uint32_t f64_mask_ge(__m512d a, __m512d b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
OPERATION __m512i f64_count_ge(__m512i n, __m512d a, __m512d b) {
    return _mm512_mask_sub_epi64(n, _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ), n, _mm512_set1_epi64(-1));
}
OPERATION __m512d f64_fma(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
OPERATION __m512d f64_pow2(__m512d shifted) {
    return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(shifted), 52));
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
OPERATION __m512i f64_or_bits(__m512i a, __m512d b, __m512d c) {
    return _mm512_ternarylogic_epi64(a, _mm512_castpd_si512(b), _mm512_castpd_si512(c), 0xfe);
}
/* integers plus the bits of numbers */
OPERATION __m512i f64_add_bits(__m512i a, __m512d b) { return _mm512_add_epi64(a, _mm512_castpd_si512(b)); }
/* whether a bit of a mask is set in any element */
OPERATION int f32_any_of_bits(__m512i a, uint32_t mask) {
    return _mm512_test_epi32_mask(a, _mm512_set1_epi32((int)mask)) != 0;
}
OPERATION int f64_any_of_bits(__m512i a, uint64_t mask) {
    return _mm512_test_epi64_mask(a, _mm512_set1_epi64((long long)mask)) != 0;
}
OPERATION int f64_any_negative(__m512i bits) { return _mm512_movepi64_mask(bits) != 0; }

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
OPERATION void f64_split_pairs(const double *p, double *to) {
    const __m512i place = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    __m512d low = _mm512_loadu_pd(p), high = _mm512_loadu_pd(p + 8);
    _mm512_storeu_pd(to, _mm512_permutex2var_pd(low, place, high));
    _mm512_storeu_pd(to + 16, _mm512_permutex2var_pd(low, _mm512_add_epi64(place, _mm512_set1_epi64(1)), high));
}
/* sums of two and of three neighbours, and of each of f64_WIDTH vectors, by halves */
OPERATION __m512d f64_sum_pairs(const double *p) {
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), one = _mm512_set1_epi64(1);
    __m512d low = _mm512_loadu_pd(p), high = _mm512_loadu_pd(p + 8);
    return _mm512_add_pd(_mm512_permutex2var_pd(low, even, high),
                         _mm512_permutex2var_pd(low, _mm512_add_epi64(even, one), high));
}
OPERATION __m512d f64_sum_triples(const double *p) {
    const __m512i place = _mm512_setr_epi64(0, 3, 6, 9, 12, 15, 18, 21);
    const __m512i own = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    __m512d v[3];
    for (int k = 0; k < 3; k++) {
        __m512i at = _mm512_add_epi64(place, _mm512_set1_epi64(k)), last = _mm512_sub_epi64(at, _mm512_set1_epi64(8));
        v[k] = _mm512_permutex2var_pd(_mm512_loadu_pd(p), at, _mm512_loadu_pd(p + 8)); /* of places from 16 on, any */
        at = _mm512_mask_blend_epi64(_mm512_cmplt_epi64_mask(at, _mm512_set1_epi64(16)), last, own);
        v[k] = _mm512_permutex2var_pd(v[k], at, _mm512_loadu_pd(p + 16));
    }
    return _mm512_add_pd(_mm512_add_pd(v[0], v[2]), v[1]);
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

/* a < b ? c : d, and a == b ? c : d; a nan compares as false */
OPERATION __m512d f64_if_less(__m512d a, __m512d b, __m512d c, __m512d d) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), d, c);
}
OPERATION __m512d f64_if_equal(__m512d a, __m512d b, __m512d c, __m512d d) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), d, c);
}
OPERATION __m512d f64_trunc(__m512d a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
/* the bits of a as an integer: plus, and, or a constant; the exponent field of a positive number as an integer */
OPERATION __m512d f64_plus_bits(__m512d a, uint64_t bits) {
    return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(a), _mm512_set1_epi64((long long)bits)));
}
OPERATION __m512d f64_and_bits(__m512d a, uint64_t bits) {
    return _mm512_castsi512_pd(_mm512_and_si512(_mm512_castpd_si512(a), _mm512_set1_epi64((long long)bits)));
}
OPERATION __m512d f64_with_bits(__m512d a, uint64_t bits) {
    return _mm512_castsi512_pd(_mm512_or_si512(_mm512_castpd_si512(a), _mm512_set1_epi64((long long)bits)));
}
OPERATION __m512d f64_exponent_field(__m512d a) {
    return _mm512_castsi512_pd(_mm512_srli_epi64(_mm512_castpd_si512(a), 52));
}
/* the same for float; 2^n of an integer n + 127 in the low bits of a float of ulp 1 */
OPERATION __m512 f32_plus_bits(__m512 a, uint32_t bits) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_set1_epi32((int)bits)));
}
OPERATION __m512 f32_and_bits(__m512 a, uint32_t bits) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32((int)bits)));
}
OPERATION __m512 f32_with_bits(__m512 a, uint32_t bits) {
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), _mm512_set1_epi32((int)bits)));
}
OPERATION __m512 f32_exponent_field(__m512 a) {
    return _mm512_castsi512_ps(_mm512_srli_epi32(_mm512_castps_si512(a), 23));
}
OPERATION __m512 f32_pow2(__m512 shifted) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23));
}
OPERATION uint32_t f32_mask_nonzero(__m512 a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
OPERATION uint32_t f64_mask_nonzero(__m512d a) { return _mm512_cmp_pd_mask(a, _mm512_setzero_pd(), _CMP_NEQ_UQ); }
