/* Included by simd_x86.h for floats and for doubles. */
OPERATION OP(bits) OP(set_bits)(UINT bits) { return SET_INTS(bits); }
OPERATION OP(bits) OP(load_bits)(const UINT *p) { return WHOLE(loadu)((const OP(bits) *)(const void *)p); }
OPERATION OP(vec) OP(if_same)(OP(bits) a, OP(bits) b, OP(vec) c, OP(vec) d) { return CHOOSE(SAME(a, b), c, d); }

OPERATION OP(vec) OP(set)(REAL value) { return FLOATS(set1)(value); }
OPERATION OP(vec) OP(load)(const REAL *p) { return FLOATS(loadu)(p); }
OPERATION void OP(store)(REAL *p, OP(vec) a) { FLOATS(storeu)(p, a); }
OPERATION void OP(stream)(REAL *p, OP(vec) a) { FLOATS(stream)(p, a); }
OPERATION OP(vec) OP(add)(OP(vec) a, OP(vec) b) { return FLOATS(add)(a, b); }
OPERATION OP(vec) OP(sub)(OP(vec) a, OP(vec) b) { return FLOATS(sub)(a, b); }
OPERATION OP(vec) OP(mul)(OP(vec) a, OP(vec) b) { return FLOATS(mul)(a, b); }
OPERATION OP(vec) OP(div)(OP(vec) a, OP(vec) b) { return FLOATS(div)(a, b); }
OPERATION OP(vec) OP(fma)(OP(vec) a, OP(vec) b, OP(vec) c) { return FLOATS(fmadd)(a, b, c); }
OPERATION OP(vec) OP(min)(OP(vec) a, OP(vec) b) { return FLOATS(min)(a, b); }
OPERATION OP(vec) OP(max_keep_nan)(OP(vec) a, OP(vec) b) { return FLOATS(max)(a, b); }
OPERATION OP(vec) OP(max_skip_nan)(OP(vec) a, OP(vec) b) { return FLOATS(max)(a, b); }
OPERATION OP(vec) OP(if_less)(OP(vec) a, OP(vec) b, OP(vec) c, OP(vec) d) {
    return CHOOSE(COMPARE(a, b, _CMP_LT_OQ), c, d);
}
OPERATION OP(vec) OP(if_equal)(OP(vec) a, OP(vec) b, OP(vec) c, OP(vec) d) {
    return CHOOSE(COMPARE(a, b, _CMP_EQ_OQ), c, d);
}
OPERATION uint32_t OP(mask_ge)(OP(vec) a, OP(vec) b) { return MASK_BITS(COMPARE(a, b, _CMP_GE_OQ)); }
OPERATION uint32_t OP(mask_nonzero)(OP(vec) a) { return MASK_BITS(COMPARE(a, FLOATS(setzero)(), _CMP_NEQ_UQ)); }
OPERATION OP(bits) OP(count_ge)(OP(bits) n, OP(vec) a, OP(vec) b) { return COUNT(n, COMPARE(a, b, _CMP_GE_OQ)); }

OPERATION OP(vec) OP(plus_bits)(OP(vec) a, UINT bits) { return FROM_BITS(INTS(add)(TO_BITS(a), SET_INTS(bits))); }
OPERATION OP(vec) OP(and_bits)(OP(vec) a, UINT bits) { return FROM_BITS(WHOLE(and)(TO_BITS(a), SET_INTS(bits))); }
OPERATION OP(vec) OP(with_bits)(OP(vec) a, UINT bits) { return FROM_BITS(WHOLE(or)(TO_BITS(a), SET_INTS(bits))); }
OPERATION OP(vec) OP(exponent_field)(OP(vec) a) { return FROM_BITS(INTS(srli)(TO_BITS(a), MANTISSA)); }
OPERATION OP(vec) OP(pow2)(OP(vec) shifted) { return FROM_BITS(INTS(slli)(TO_BITS(shifted), MANTISSA)); }
OPERATION OP(vec) OP(without)(OP(vec) a, OP(bits) none) { return FROM_BITS(WHOLE(andnot)(none, TO_BITS(a))); }
OPERATION OP(bits) OP(or_bits)(OP(bits) a, OP(vec) b, OP(vec) c) { return ANY_OF_THREE(a, TO_BITS(b), TO_BITS(c)); }
OPERATION int OP(any_of_bits)(OP(bits) a, UINT mask) { return ANY(a, SET_INTS(mask)); }
