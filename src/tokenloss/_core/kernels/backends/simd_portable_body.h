/* Plain C for floats and for doubles: included by simd_portable.h for each. */
TL_INLINE UINT OP(to_bits)(REAL a) {
    UINT bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
TL_INLINE REAL OP(from_bits)(UINT bits) {
    REAL a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
TL_INLINE UINT OP(set_bits)(UINT bits) { return bits; }
TL_INLINE UINT OP(load_bits)(const UINT *p) { return *p; }
/* a and b are the same integer ? c : d */
TL_INLINE REAL OP(if_same)(UINT a, UINT b, REAL c, REAL d) { return a == b ? c : d; }
TL_INLINE REAL OP(set)(REAL value) { return value; }
TL_INLINE REAL OP(load)(const REAL *p) {
    REAL value;
    memcpy(&value, (const void *)p, sizeof value);
    return value;
}
TL_INLINE void OP(store)(REAL *p, REAL value) { memcpy((void *)p, &value, sizeof value); }
TL_INLINE void OP(stream)(REAL *p, REAL value) { *p = value; }
TL_INLINE REAL OP(add)(REAL a, REAL b) { return a + b; }
TL_INLINE REAL OP(sub)(REAL a, REAL b) { return a - b; }
TL_INLINE REAL OP(mul)(REAL a, REAL b) { return a * b; }
TL_INLINE REAL OP(div)(REAL a, REAL b) { return a / b; }
TL_INLINE REAL OP(min)(REAL a, REAL b) { return a < b ? a : b; }
/* the first of a nan b is nan; the second is a > b ? a : b, so it passes over a nan a */
TL_INLINE REAL OP(max_keep_nan)(REAL a, REAL b) { return a > b ? a : b; }
TL_INLINE REAL OP(max_skip_nan)(REAL a, REAL b) { return a > b ? a : b; }
/* a < b ? c : d, and a == b ? c : d; a nan compares as false */
TL_INLINE REAL OP(if_less)(REAL a, REAL b, REAL c, REAL d) { return a < b ? c : d; }
TL_INLINE REAL OP(if_equal)(REAL a, REAL b, REAL c, REAL d) { return a == b ? c : d; }
TL_INLINE uint32_t OP(mask_ge)(REAL a, REAL b) { return a >= b; }
TL_INLINE uint32_t OP(mask_nonzero)(REAL a) { return a != 0; }
TL_INLINE UINT OP(count_ge)(UINT n, REAL a, REAL b) { return n + (a >= b); }

/* the bits of a as an integer: plus, and, or a constant; the exponent field of a positive number as an integer; 2^n of
 * an integer n, plus the exponent field of 1, in the low bits of a number of ulp 1 */
TL_INLINE REAL OP(plus_bits)(REAL a, UINT bits) { return OP(from_bits)(OP(to_bits)(a) + bits); }
TL_INLINE REAL OP(and_bits)(REAL a, UINT bits) { return OP(from_bits)(OP(to_bits)(a) & bits); }
TL_INLINE REAL OP(with_bits)(REAL a, UINT bits) { return OP(from_bits)(OP(to_bits)(a) | bits); }
TL_INLINE REAL OP(exponent_field)(REAL a) { return OP(from_bits)(OP(to_bits)(a) >> MANTISSA); }
TL_INLINE REAL OP(pow2)(REAL shifted) { return OP(from_bits)(OP(to_bits)(shifted) << MANTISSA); }
/* a, but 0 where `none` has all bits; the bits that any of the three has */
TL_INLINE REAL OP(without)(REAL a, UINT none) { return OP(from_bits)(OP(to_bits)(a) & ~none); }
TL_INLINE UINT OP(or_bits)(UINT a, REAL b, REAL c) { return a | OP(to_bits)(b) | OP(to_bits)(c); }
/* whether any element has a bit of a mask */
TL_INLINE int OP(any_of_bits)(UINT a, UINT mask) { return (a & mask) != 0; }
TL_INLINE REAL OP(zero_if_negative)(REAL a) { return OP(to_bits)(a) >> (8 * sizeof a - 1) != 0 ? 0 : a; }

/* 2^(k / 8), of k in the low bits of a number of ulp 1: see f32_POWERS and f64_POWERS in template.h */
typedef struct {
    const UINT *powers;
    UINT drop;
} OP(table);
TL_INLINE OP(table) OP(load_powers)(const UINT *powers, int guard) {
    return (OP(table)){powers, (UINT)guard << (MANTISSA - 3)};
}
TL_INLINE REAL OP(power)(REAL k, OP(table) table) {
    UINT bits = OP(to_bits)(k);
    return OP(from_bits)((bits << (MANTISSA - 3)) + (table.powers[bits & 7] - table.drop));
}
/* element k of each row of n, 2 or 3; rows follow each other */
TL_INLINE REAL OP(column)(const REAL *p, int n, int k) {
    (void)n;
    return OP(load)(p + k);
}

TL_INLINE void OP(transpose_pieces)(REAL *v) { (void)v; }
