/* AVX2 with FMA and F16C. */
#include <immintrin.h>
#include <math.h>

#define TL_TARGET TL_FOR("avx2,fma,f16c")
#define OPERATION TL_TARGET TL_INLINE
#define f32_WIDTH 8
#define f64_WIDTH 4
typedef __m256 f32_vec;
typedef __m256d f64_vec;
typedef __m256i f32_bits;
typedef __m256i f64_bits;

OPERATION __m256i f32_set_bits(uint32_t bits) { return _mm256_set1_epi32((int)bits); }
OPERATION __m256i f64_set_bits(uint64_t bits) { return _mm256_set1_epi64x((long long)bits); }
OPERATION __m256i f32_load_bits(const uint32_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
OPERATION __m256i f64_load_bits(const uint64_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
/* class ids, the low halves of theirs */
OPERATION __m256i f32_load_ids(const int64_t *p) {
    __m256 low = _mm256_loadu_ps((const float *)(const void *)p);
    __m256 high = _mm256_loadu_ps((const float *)(const void *)(p + 4));
    return _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88)), 0xd8);
}
/* a and b are the same integer ? c : d */
OPERATION __m256 f32_if_same(__m256i a, __m256i b, __m256 c, __m256 d) {
    return _mm256_blendv_ps(d, c, _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)));
}
OPERATION __m256d f64_if_same(__m256i a, __m256i b, __m256d c, __m256d d) {
    return _mm256_blendv_pd(d, c, _mm256_castsi256_pd(_mm256_cmpeq_epi64(a, b)));
}

OPERATION __m256 f32_set(float value) { return _mm256_set1_ps(value); }
OPERATION __m256 f32_load(const float *p) { return _mm256_loadu_ps(p); }
/* the first n elements; `other` after them */
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
OPERATION __m256 f32_load_float16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
OPERATION __m256 f32_load_bfloat16(const uint16_t *p) {
    __m128i bits = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
/* two columns of bfloat16 in one load: the even elements, and the odd ones; and their sums in the elements' order */
#define bfloat16_COLUMNS 2
OPERATION void bfloat16_load_columns(const uint16_t *p, __m256 *to) {
    __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)p);
    to[0] = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    to[1] = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000u)));
}
OPERATION void bfloat16_order_columns(__m256 *sums) {
    __m256 low = _mm256_unpacklo_ps(sums[0], sums[1]), high = _mm256_unpackhi_ps(sums[0], sums[1]);
    sums[0] = _mm256_permute2f128_ps(low, high, 0x20);
    sums[1] = _mm256_permute2f128_ps(low, high, 0x31);
}
OPERATION void f32_store(float *p, __m256 a) { _mm256_storeu_ps(p, a); }
OPERATION void f32_store_float16(uint16_t *p, __m256 a) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* rounded to nearest even; no nan comes here */
OPERATION void f32_store_bfloat16(uint16_t *p, __m256 a) {
    __m256i bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    bits = _mm256_srli_epi32(bits, 16);
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    _mm_storeu_si128((__m128i *)(void *)p, halves);
}
OPERATION void f32_stream(float *p, __m256 a) { _mm256_stream_ps(p, a); }
OPERATION void half_stream(uint16_t *p, const uint16_t *halves) {
    _mm_stream_si128((__m128i *)(void *)p, _mm_loadu_si128((const __m128i *)(const void *)halves));
}
OPERATION __m256 f32_add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
OPERATION __m256 f32_sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
OPERATION __m256 f32_mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
OPERATION __m256 f32_max_keep_nan(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
OPERATION __m256 f32_max_skip_nan(__m256 a, __m256 b) { return f32_max_keep_nan(a, b); }
OPERATION __m256 f32_min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
OPERATION __m256 f32_div(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
/* a, but -inf where it is not above b; nan stays */
OPERATION __m256 f32_above(__m256 a, __m256 b) {
    return _mm256_blendv_ps(a, _mm256_set1_ps(-INFINITY), _mm256_cmp_ps(a, b, _CMP_LE_OQ));
}
OPERATION uint32_t f32_mask_ge(__m256 a, __m256 b) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}
OPERATION __m256i f32_count_ge(__m256i n, __m256 a, __m256 b) {
    return _mm256_sub_epi32(n, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
OPERATION __m256 f32_fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
/* 2^(k / 8), of k in the low bits of a float of ulp 1, times 1.538...: see f32_POWERS in template.h */
typedef __m256i f32_table;
OPERATION __m256i f32_load_powers(const uint32_t *powers, int guard) {
    const __m256i drop = _mm256_set1_epi32((int)((unsigned)guard << 20));
    return _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)(const void *)powers), drop);
}
OPERATION __m256 f32_power(__m256 k, __m256i table) {
    __m256i bits = _mm256_castps_si256(k);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(bits, 20), _mm256_permutevar8x32_epi32(table, bits)));
}
OPERATION __m256 f32_zero_if_negative(__m256 a) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_setzero_si256()));
}
OPERATION __m256i f32_or_bits(__m256i a, __m256 b, __m256 c) {
    return _mm256_or_si256(a, _mm256_or_si256(_mm256_castps_si256(b), _mm256_castps_si256(c)));
}
/* a == b ? c : d; a nan compares as false */
OPERATION __m256 f32_if_less(__m256 a, __m256 b, __m256 c, __m256 d) {
    return _mm256_blendv_ps(d, c, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
OPERATION __m256 f32_if_equal(__m256 a, __m256 b, __m256 c, __m256 d) {
    return _mm256_blendv_ps(d, c, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
OPERATION int f32_any_negative(__m256i bits) { return _mm256_movemask_ps(_mm256_castsi256_ps(bits)) != 0; }
OPERATION void f32_store_f64(double *p, __m256 a) {
    _mm256_storeu_pd(p, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
    _mm256_storeu_pd(p + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}

/* pieces of 128 bits of rows[0] and rows[4], which are `offset` bytes into them */
#define f32_PIECE 4
OPERATION __m256 f32_load_pieces(const char *const *rows, size_t offset) {
    __m128 low = _mm_loadu_ps((const float *)(const void *)(rows[0] + offset));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low),
                                _mm_loadu_ps((const float *)(const void *)(rows[4] + offset)), 1);
}
OPERATION void f32_store_pieces(char *const *rows, size_t offset, __m256 all) {
    _mm_storeu_ps((float *)(void *)(rows[0] + offset), _mm256_castps256_ps128(all));
    _mm_storeu_ps((float *)(void *)(rows[4] + offset), _mm256_extractf128_ps(all, 1));
}
OPERATION void f32_transpose_pieces(__m256 *v) {
    __m256d ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(v[0], v[1])),
            ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(v[0], v[1])),
            cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(v[2], v[3])),
            cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(v[2], v[3]));
    v[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
    v[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
    v[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
    v[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
}
/* rows of two elements, and of three, as vectors that are TL_GROUP apart: one of the first elements, and so on */
OPERATION void f32_split_pairs(const float *p, float *to) {
    __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
    __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    _mm256_storeu_ps(to, _mm256_shuffle_ps(low, high, 0x88));
    _mm256_storeu_ps(to + 16, _mm256_shuffle_ps(low, high, 0xdd));
}
OPERATION void f32_split_triples(const float *p, float *to) {
    __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8), c = _mm256_loadu_ps(p + 16);
    __m256 first = _mm256_blend_ps(_mm256_blend_ps(a, b, 0x92), c, 0x24);
    __m256 second = _mm256_blend_ps(_mm256_blend_ps(a, b, 0x24), c, 0x49);
    __m256 third = _mm256_blend_ps(_mm256_blend_ps(a, b, 0x49), c, 0x92);
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(first, _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5)));
    _mm256_storeu_ps(to + 16, _mm256_permutevar8x32_ps(second, _mm256_setr_epi32(1, 4, 7, 2, 5, 0, 3, 6)));
    _mm256_storeu_ps(to + 32, _mm256_permutevar8x32_ps(third, _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7)));
}
OPERATION void f32_widen(__m256 a, __m256d *wide) {
    wide[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    wide[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}
OPERATION void f32_load_widened(const float *p, __m256d *wide) {
    wide[0] = _mm256_cvtps_pd(_mm_loadu_ps(p));
    wide[1] = _mm256_cvtps_pd(_mm_loadu_ps(p + 4));
}
/* the bits of each element as a signed integer */
OPERATION void f32_widen_bits(__m256 a, __m256d *wide) {
    wide[0] = _mm256_cvtepi32_pd(_mm256_castsi256_si128(_mm256_castps_si256(a)));
    wide[1] = _mm256_cvtepi32_pd(_mm256_extracti128_si256(_mm256_castps_si256(a), 1));
}
OPERATION __m256 f32_narrow(const __m256d *wide) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(wide[0])), _mm256_cvtpd_ps(wide[1]), 1);
}

OPERATION __m256d f64_set(double value) { return _mm256_set1_pd(value); }
OPERATION __m256d f64_load(const double *p) { return _mm256_loadu_pd(p); }
OPERATION void f64_store(double *p, __m256d a) { _mm256_storeu_pd(p, a); }
OPERATION void f64_store_f64(double *p, __m256d a) { _mm256_storeu_pd(p, a); }
OPERATION void f64_stream(double *p, __m256d a) { _mm256_stream_pd(p, a); }
OPERATION __m256d f64_add(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
OPERATION __m256d f64_sub(__m256d a, __m256d b) { return _mm256_sub_pd(a, b); }
OPERATION __m256d f64_mul(__m256d a, __m256d b) { return _mm256_mul_pd(a, b); }
OPERATION __m256d f64_max_keep_nan(__m256d a, __m256d b) { return _mm256_max_pd(a, b); }
OPERATION __m256d f64_max_skip_nan(__m256d a, __m256d b) { return f64_max_keep_nan(a, b); }
OPERATION __m256d f64_min(__m256d a, __m256d b) { return _mm256_min_pd(a, b); }
OPERATION __m256d f64_div(__m256d a, __m256d b) { return _mm256_div_pd(a, b); }
OPERATION __m256d f64_above(__m256d a, __m256d b) {
    return _mm256_blendv_pd(a, _mm256_set1_pd(-(double)INFINITY), _mm256_cmp_pd(a, b, _CMP_LE_OQ));
}
OPERATION uint32_t f64_mask_ge(__m256d a, __m256d b) {
    return (uint32_t)_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GE_OQ));
}
OPERATION __m256i f64_count_ge(__m256i n, __m256d a, __m256d b) {
    return _mm256_sub_epi64(n, _mm256_castpd_si256(_mm256_cmp_pd(a, b, _CMP_GE_OQ)));
}
OPERATION __m256d f64_fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
OPERATION __m256d f64_pow2(__m256d shifted) {
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted), 52));
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
OPERATION __m256i f64_or_bits(__m256i a, __m256d b, __m256d c) {
    return _mm256_or_si256(a, _mm256_or_si256(_mm256_castpd_si256(b), _mm256_castpd_si256(c)));
}
/* integers plus the bits of numbers */
OPERATION __m256i f64_add_bits(__m256i a, __m256d b) { return _mm256_add_epi64(a, _mm256_castpd_si256(b)); }
/* whether a bit of a mask is set in any element */
OPERATION int f32_any_of_bits(__m256i a, uint32_t mask) { return !_mm256_testz_si256(a, _mm256_set1_epi32((int)mask)); }
OPERATION int f64_any_of_bits(__m256i a, uint64_t mask) {
    return !_mm256_testz_si256(a, _mm256_set1_epi64x((long long)mask));
}
OPERATION int f64_any_negative(__m256i bits) { return _mm256_movemask_pd(_mm256_castsi256_pd(bits)) != 0; }

#define f64_PIECE 4
OPERATION __m256d f64_load_pieces(const char *const *rows, size_t offset) {
    return _mm256_loadu_pd((const double *)(const void *)(rows[0] + offset));
}
OPERATION void f64_store_pieces(char *const *rows, size_t offset, __m256d all) {
    _mm256_storeu_pd((double *)(void *)(rows[0] + offset), all);
}
OPERATION void f64_transpose_pieces(__m256d *v) {
    __m256d ab_low = _mm256_unpacklo_pd(v[0], v[1]), ab_high = _mm256_unpackhi_pd(v[0], v[1]),
            cd_low = _mm256_unpacklo_pd(v[2], v[3]), cd_high = _mm256_unpackhi_pd(v[2], v[3]);
    v[0] = _mm256_permute2f128_pd(ab_low, cd_low, 0x20);
    v[1] = _mm256_permute2f128_pd(ab_high, cd_high, 0x20);
    v[2] = _mm256_permute2f128_pd(ab_low, cd_low, 0x31);
    v[3] = _mm256_permute2f128_pd(ab_high, cd_high, 0x31);
}
OPERATION void f64_split_pairs(const double *p, double *to) {
    __m256d a = _mm256_loadu_pd(p), b = _mm256_loadu_pd(p + 4);
    __m256d low = _mm256_permute2f128_pd(a, b, 0x20), high = _mm256_permute2f128_pd(a, b, 0x31);
    _mm256_storeu_pd(to, _mm256_unpacklo_pd(low, high));
    _mm256_storeu_pd(to + 16, _mm256_unpackhi_pd(low, high));
}
/* sums of two and of three neighbours, and of each of f64_WIDTH vectors, by halves */
OPERATION __m256d f64_sum_pairs(const double *p) {
    return _mm256_permute4x64_pd(_mm256_hadd_pd(_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)), 0xd8);
}
OPERATION __m256d f64_sum_triples(const double *p) {
    __m256d a = _mm256_loadu_pd(p), b = _mm256_loadu_pd(p + 4), c = _mm256_loadu_pd(p + 8);
    __m256d first = _mm256_blend_pd(_mm256_blend_pd(a, b, 4), c, 2);
    __m256d second = _mm256_blend_pd(_mm256_blend_pd(a, b, 9), c, 4);
    __m256d third = _mm256_blend_pd(_mm256_blend_pd(a, b, 2), c, 9);
    first = _mm256_add_pd(_mm256_permute4x64_pd(first, 0x6c), _mm256_permute4x64_pd(third, 0xc6));
    return _mm256_add_pd(first, _mm256_permute4x64_pd(second, 0xb1));
}
OPERATION __m256d f64_sum_each(const __m256d *v) {
    __m256d two[2];
    for (int i = 0; i < 2; i++)
        two[i] = _mm256_add_pd(_mm256_permute2f128_pd(v[i], v[i + 2], 0x20),
                               _mm256_permute2f128_pd(v[i], v[i + 2], 0x31));
    return _mm256_add_pd(_mm256_unpacklo_pd(two[0], two[1]), _mm256_unpackhi_pd(two[0], two[1]));
}

/* a < b ? c : d, and a == b ? c : d; a nan compares as false */
OPERATION __m256d f64_if_less(__m256d a, __m256d b, __m256d c, __m256d d) {
    return _mm256_blendv_pd(d, c, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}
OPERATION __m256d f64_if_equal(__m256d a, __m256d b, __m256d c, __m256d d) {
    return _mm256_blendv_pd(d, c, _mm256_cmp_pd(a, b, _CMP_EQ_OQ));
}
OPERATION __m256d f64_trunc(__m256d a) { return _mm256_round_pd(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
/* the bits of a as an integer: plus, and, or a constant; the exponent field of a positive number as an integer */
OPERATION __m256d f64_plus_bits(__m256d a, uint64_t bits) {
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), _mm256_set1_epi64x((long long)bits)));
}
OPERATION __m256d f64_and_bits(__m256d a, uint64_t bits) {
    return _mm256_castsi256_pd(_mm256_and_si256(_mm256_castpd_si256(a), _mm256_set1_epi64x((long long)bits)));
}
OPERATION __m256d f64_with_bits(__m256d a, uint64_t bits) {
    return _mm256_castsi256_pd(_mm256_or_si256(_mm256_castpd_si256(a), _mm256_set1_epi64x((long long)bits)));
}
OPERATION __m256d f64_exponent_field(__m256d a) {
    return _mm256_castsi256_pd(_mm256_srli_epi64(_mm256_castpd_si256(a), 52));
}
/* the same for float; 2^n of an integer n + 127 in the low bits of a float of ulp 1 */
OPERATION __m256 f32_plus_bits(__m256 a, uint32_t bits) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_set1_epi32((int)bits)));
}
OPERATION __m256 f32_and_bits(__m256 a, uint32_t bits) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32((int)bits)));
}
OPERATION __m256 f32_with_bits(__m256 a, uint32_t bits) {
    return _mm256_castsi256_ps(_mm256_or_si256(_mm256_castps_si256(a), _mm256_set1_epi32((int)bits)));
}
OPERATION __m256 f32_exponent_field(__m256 a) {
    return _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(a), 23));
}
OPERATION __m256 f32_pow2(__m256 shifted) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23));
}
OPERATION uint32_t f32_mask_nonzero(__m256 a) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_NEQ_UQ));
}
OPERATION uint32_t f64_mask_nonzero(__m256d a) {
    return (uint32_t)_mm256_movemask_pd(_mm256_cmp_pd(a, _mm256_setzero_pd(), _CMP_NEQ_UQ));
}
