/* What AVX2 and AVX-512 have for vectors of either dtype, under names that differ in a prefix and a suffix: included by
 * both, once for each dtype, with FLOATS(f), INTS(f) and WHOLE(f) as the intrinsics f for numbers, for integers as long,
 * and for bits, and with
 *
 *     SAME(a, b), COMPARE(a, b, how)   a mask, for integers and for numbers
 *     CHOOSE(mask, a, b)               a where the mask is set, else b
 *     MASK_BITS(mask)                  a bit of each element
 *     COUNT(n, mask)                   n, and 1 more in elements where the mask is set
 *     ANY(a, b)                        whether a and b have a bit in common */
OPERATION INT_VEC OP(set_bits)(UINT bits) { return SET_INTS(bits); }
OPERATION INT_VEC OP(load_bits)(const UINT *p) { return WHOLE(loadu)((const INT_VEC *)(const void *)p); }
/* a and b are the same integer ? c : d */
OPERATION VEC OP(if_same)(INT_VEC a, INT_VEC b, VEC c, VEC d) { return CHOOSE(SAME(a, b), c, d); }

OPERATION VEC OP(set)(REAL value) { return FLOATS(set1)(value); }
OPERATION VEC OP(load)(const REAL *p) { return FLOATS(loadu)(p); }
OPERATION void OP(store)(REAL *p, VEC a) { FLOATS(storeu)(p, a); }
OPERATION void OP(stream)(REAL *p, VEC a) { FLOATS(stream)(p, a); }
OPERATION VEC OP(add)(VEC a, VEC b) { return FLOATS(add)(a, b); }
OPERATION VEC OP(sub)(VEC a, VEC b) { return FLOATS(sub)(a, b); }
OPERATION VEC OP(mul)(VEC a, VEC b) { return FLOATS(mul)(a, b); }
OPERATION VEC OP(div)(VEC a, VEC b) { return FLOATS(div)(a, b); }
OPERATION VEC OP(fma)(VEC a, VEC b, VEC c) { return FLOATS(fmadd)(a, b, c); }
OPERATION VEC OP(min)(VEC a, VEC b) { return FLOATS(min)(a, b); }
OPERATION VEC OP(max_keep_nan)(VEC a, VEC b) { return FLOATS(max)(a, b); }
OPERATION VEC OP(max_skip_nan)(VEC a, VEC b) { return FLOATS(max)(a, b); }
/* a < b ? c : d, and a == b ? c : d; a nan compares as false */
OPERATION VEC OP(if_less)(VEC a, VEC b, VEC c, VEC d) { return CHOOSE(COMPARE(a, b, _CMP_LT_OQ), c, d); }
OPERATION VEC OP(if_equal)(VEC a, VEC b, VEC c, VEC d) { return CHOOSE(COMPARE(a, b, _CMP_EQ_OQ), c, d); }
OPERATION uint32_t OP(mask_ge)(VEC a, VEC b) { return MASK_BITS(COMPARE(a, b, _CMP_GE_OQ)); }
OPERATION uint32_t OP(mask_nonzero)(VEC a) { return MASK_BITS(COMPARE(a, FLOATS(setzero)(), _CMP_NEQ_UQ)); }
OPERATION INT_VEC OP(count_ge)(INT_VEC n, VEC a, VEC b) { return COUNT(n, COMPARE(a, b, _CMP_GE_OQ)); }

/* the bits of a as an integer: plus, and, or a constant; the exponent field of a positive number as an integer; 2^n of an
 * integer, plus the exponent field of 1, in the low bits of a number of ulp 1 */
OPERATION VEC OP(plus_bits)(VEC a, UINT bits) { return FROM_BITS(INTS(add)(TO_BITS(a), SET_INTS(bits))); }
OPERATION VEC OP(and_bits)(VEC a, UINT bits) { return FROM_BITS(WHOLE(and)(TO_BITS(a), SET_INTS(bits))); }
OPERATION VEC OP(with_bits)(VEC a, UINT bits) { return FROM_BITS(WHOLE(or)(TO_BITS(a), SET_INTS(bits))); }
OPERATION VEC OP(exponent_field)(VEC a) { return FROM_BITS(INTS(srli)(TO_BITS(a), MANTISSA)); }
OPERATION VEC OP(pow2)(VEC shifted) { return FROM_BITS(INTS(slli)(TO_BITS(shifted), MANTISSA)); }
OPERATION INT_VEC OP(or_bits)(INT_VEC a, VEC b, VEC c) { return WHOLE(or)(a, WHOLE(or)(TO_BITS(b), TO_BITS(c))); }
/* whether a bit of a mask is set in any element, and a sign */
OPERATION int OP(any_of_bits)(INT_VEC a, UINT mask) { return ANY(a, SET_INTS(mask)); }
OPERATION int OP(any_negative)(INT_VEC bits) { return ANY(bits, SET_INTS((UINT)1 << (8 * sizeof(REAL) - 1))); }

#undef REAL
#undef UINT
#undef VEC
#undef OP
#undef FLOATS
#undef INTS
#undef SET_INTS
#undef TO_BITS
#undef FROM_BITS
#undef MANTISSA
#undef SAME
#undef ANY
