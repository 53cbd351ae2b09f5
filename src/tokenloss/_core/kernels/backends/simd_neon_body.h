/* What NEON has for vectors of floats and of doubles: included by simd_neon.h for each, with FLOATS(f) and INTS(f) as
 * the functions f for such numbers and for integers as long. */
TL_INLINE OP(bits) OP(set_bits)(UINT bits) { return INTS(vdupq_n)(bits); }
TL_INLINE OP(bits) OP(load_bits)(const UINT *p) { return INTS(vld1q)(p); }
TL_INLINE OP(vec) OP(if_same)(OP(bits) a, OP(bits) b, OP(vec) c, OP(vec) d) {
    return FLOATS(vbslq)(INTS(vceqq)(a, b), c, d);
}

TL_INLINE OP(vec) OP(set)(REAL value) { return FLOATS(vdupq_n)(value); }
TL_INLINE OP(vec) OP(load)(const REAL *p) { return FLOATS(vld1q)(p); }
TL_INLINE void OP(store)(REAL *p, OP(vec) a) { FLOATS(vst1q)(p, a); }
TL_INLINE void OP(stream)(REAL *p, OP(vec) a) { FLOATS(vst1q)(p, a); }
TL_INLINE OP(vec) OP(add)(OP(vec) a, OP(vec) b) { return FLOATS(vaddq)(a, b); }
TL_INLINE OP(vec) OP(sub)(OP(vec) a, OP(vec) b) { return FLOATS(vsubq)(a, b); }
TL_INLINE OP(vec) OP(mul)(OP(vec) a, OP(vec) b) { return FLOATS(vmulq)(a, b); }
TL_INLINE OP(vec) OP(div)(OP(vec) a, OP(vec) b) { return FLOATS(vdivq)(a, b); }
TL_INLINE OP(vec) OP(fma)(OP(vec) a, OP(vec) b, OP(vec) c) { return FLOATS(vfmaq)(c, a, b); }
TL_INLINE OP(vec) OP(min)(OP(vec) a, OP(vec) b) { return FLOATS(vminq)(a, b); }
TL_INLINE OP(vec) OP(max_keep_nan)(OP(vec) a, OP(vec) b) { return FLOATS(vmaxq)(a, b); }
TL_INLINE OP(vec) OP(max_skip_nan)(OP(vec) a, OP(vec) b) { return FLOATS(vbslq)(FLOATS(vcgtq)(a, b), a, b); }
TL_INLINE OP(vec) OP(if_less)(OP(vec) a, OP(vec) b, OP(vec) c, OP(vec) d) {
    return FLOATS(vbslq)(FLOATS(vcltq)(a, b), c, d);
}
TL_INLINE OP(vec) OP(if_equal)(OP(vec) a, OP(vec) b, OP(vec) c, OP(vec) d) {
    return FLOATS(vbslq)(FLOATS(vceqq)(a, b), c, d);
}
/* a bit of each element that is set */
TL_INLINE uint32_t OP(mask)(OP(bits) is_set) {
    static const UINT lane[] = {1, 2, 4, 8};
    return (uint32_t)INTS(vaddvq)(INTS(vandq)(is_set, INTS(vld1q)(lane)));
}
TL_INLINE uint32_t OP(mask_ge)(OP(vec) a, OP(vec) b) { return OP(mask)(FLOATS(vcgeq)(a, b)); }
TL_INLINE uint32_t OP(mask_nonzero)(OP(vec) a) { return OP(mask)(FLOATS(vceqzq)(a)) ^ ((1u << OP(WIDTH)) - 1); }
TL_INLINE OP(bits) OP(count_ge)(OP(bits) n, OP(vec) a, OP(vec) b) { return INTS(vsubq)(n, FLOATS(vcgeq)(a, b)); }

TL_INLINE OP(vec) OP(plus_bits)(OP(vec) a, UINT bits) {
    return FROM_BITS(INTS(vaddq)(TO_BITS(a), INTS(vdupq_n)(bits)));
}
TL_INLINE OP(vec) OP(and_bits)(OP(vec) a, UINT bits) {
    return FROM_BITS(INTS(vandq)(TO_BITS(a), INTS(vdupq_n)(bits)));
}
TL_INLINE OP(vec) OP(with_bits)(OP(vec) a, UINT bits) {
    return FROM_BITS(INTS(vorrq)(TO_BITS(a), INTS(vdupq_n)(bits)));
}
TL_INLINE OP(vec) OP(exponent_field)(OP(vec) a) { return FROM_BITS(INTS(vshrq_n)(TO_BITS(a), MANTISSA)); }
TL_INLINE OP(vec) OP(pow2)(OP(vec) shifted) { return FROM_BITS(INTS(vshlq_n)(TO_BITS(shifted), MANTISSA)); }
TL_INLINE OP(vec) OP(without)(OP(vec) a, OP(bits) none) { return FROM_BITS(INTS(vbicq)(TO_BITS(a), none)); }
TL_INLINE OP(bits) OP(or_bits)(OP(bits) a, OP(vec) b, OP(vec) c) {
    return INTS(vorrq)(a, INTS(vorrq)(TO_BITS(b), TO_BITS(c)));
}
TL_INLINE int OP(any_of_bits)(OP(bits) a, UINT mask) { return OP(mask)(INTS(vtstq)(a, INTS(vdupq_n)(mask))) != 0; }

TL_INLINE OP(vec) OP(column)(const REAL *p, int n, int k) {
    return n == 2 ? FLOATS(vld2q)(p).val[k] : FLOATS(vld3q)(p).val[k];
}
TL_INLINE void OP(join_pairs)(const REAL *from, REAL *p) {
    OP(pair) of = {{OP(load)(from), OP(load)(from + 16)}};
    FLOATS(vst2q)(p, of);
}
