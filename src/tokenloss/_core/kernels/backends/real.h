/* Code for floats and for doubles: PICK says which, and is defined before a file is included for either. OP(f) is f32_f
 * or f64_f: simd_portable.h says what operations there are. */
#pragma once

#define REAL PICK(float, double)
#define UINT PICK(uint32_t, uint64_t)
#define OP(f) PICK(f32_##f, f64_##f)
#define MANTISSA PICK(23, 52) /* bits before the exponent */
