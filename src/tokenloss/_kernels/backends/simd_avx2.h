/* AVX2 with FMA and F16C. */
#define TL_TARGET TL_FOR("avx2,fma,f16c")
#define OPERATION TL_TARGET TL_INLINE
#define f32_WIDTH 8
#define f64_WIDTH 4
typedef __m256 f32_vec;
typedef __m256d f64_vec;
typedef __m256i f32_bits;
typedef __m256i f64_bits;

OPERATION __m256i f32_no_bits(void) { return _mm256_setzero_si256(); }
OPERATION __m256i f64_no_bits(void) { return _mm256_setzero_si256(); }

OPERATION __m256 f32_set(float value) { return _mm256_set1_ps(value); }
OPERATION __m256 f32_load(const float *p) { return _mm256_loadu_ps(p); }
OPERATION __m256 f32_load_float16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
OPERATION __m256 f32_load_bfloat16(const uint16_t *p) {
    __m128i bits = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
OPERATION void f32_store(float *p, __m256 a) { _mm256_storeu_ps(p, a); }
OPERATION void f32_store_float16(uint16_t *p, __m256 a) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
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
OPERATION uint32_t f32_mask_ge(__m256 a, __m256 b) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}
OPERATION __m256i f32_count_ge(__m256i n, __m256 a, __m256 b) {
    return _mm256_sub_epi32(n, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
OPERATION __m256 f32_fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
OPERATION __m256 f32_pow2(__m256 shifted) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23));
}
OPERATION __m256i f32_or_bits(__m256i a, __m256 b, __m256 c) {
    return _mm256_or_si256(a, _mm256_or_si256(_mm256_castps_si256(b), _mm256_castps_si256(c)));
}
OPERATION void f32_store_f64(double *p, __m256 a) {
    _mm256_storeu_pd(p, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
    _mm256_storeu_pd(p + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}
OPERATION void f32_accumulate(double *sum, double *error, __m256 term) {
    (void)error;
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(term)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(term, 1));
    _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), low));
    _mm256_storeu_pd(sum + 4, _mm256_add_pd(_mm256_loadu_pd(sum + 4), high));
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
OPERATION __m256i f64_or_bits(__m256i a, __m256d b, __m256d c) {
    return _mm256_or_si256(a, _mm256_or_si256(_mm256_castpd_si256(b), _mm256_castpd_si256(c)));
}
OPERATION int f64_any_bits(__m256i bits) { return !_mm256_testz_si256(bits, bits); }
