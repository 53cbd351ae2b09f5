/* One element of any dtype and byte order, to float, double or int64, exactly. */
#pragma once

#include "platform.h"

typedef enum {
    TL_FLOAT16,
    TL_BFLOAT16,
    TL_FLOAT32,
    TL_FLOAT64,
    TL_INT8,
    TL_INT16,
    TL_INT32,
    TL_INT64,
    TL_UINT8, /* bool too */
    TL_UINT16,
    TL_UINT32,
    TL_UINT64,
    TL_DTYPES,
} tl_dtype;

#define TL_FLOAT_DTYPES 4 /* the first four: dtypes of logits */
#define TL_SWAPPED 16      /* added to a dtype whose bytes are in the other order */

_Static_assert(TL_FLOAT64 == TL_FLOAT_DTYPES - 1 && TL_DTYPES <= TL_SWAPPED, "codes of dtypes overlap");

TL_INLINE int tl_itemsize(int dtype) {
    static const unsigned char sizes[] = {2, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8};
    _Static_assert(sizeof sizes == TL_DTYPES, "one size for each dtype");
    return sizes[dtype & ~TL_SWAPPED];
}

/* The dtype that holds all numbers of another: float64 for itself, else float32. */
TL_INLINE int tl_single_or_double(int dtype) { return (dtype & ~TL_SWAPPED) == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32; }
TL_INLINE float tl_from_bfloat16(uint16_t bits) { return tl_float_from_bits((uint32_t)bits << 16); }

TL_INLINE float tl_from_float16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) /* inf and nan, made quiet as hardware does */
        return tl_float_from_bits(sign | 0x7f800000 | magnitude << 13 | (magnitude > 0x7c00 ? 0x400000u : 0));
    if (magnitude < 0x400) /* zero and subnormal: a small integer times 2^-24 */
        return tl_float_from_bits(sign) + (sign ? -0x1p-24f : 0x1p-24f) * (float)magnitude;
    return tl_float_from_bits(sign | ((magnitude << 13) + 0x38000000));
}

TL_INLINE uint16_t tl_swap16(uint16_t bits) { return (uint16_t)(bits << 8 | bits >> 8); }
TL_INLINE uint32_t tl_swap32(uint32_t bits) {
    return bits << 24 | (bits & 0xff00) << 8 | (bits >> 8 & 0xff00) | bits >> 24;
}
TL_INLINE uint64_t tl_swap64(uint64_t bits) {
    return (uint64_t)tl_swap32((uint32_t)bits) << 32 | tl_swap32((uint32_t)(bits >> 32));
}

/* The element's bits in native order, from an address of any alignment. */
TL_INLINE uint16_t tl_load16(const char *address, int dtype) {
    uint16_t bits;
    memcpy(&bits, address, sizeof bits);
    return dtype & TL_SWAPPED ? tl_swap16(bits) : bits;
}
TL_INLINE uint32_t tl_load32(const char *address, int dtype) {
    uint32_t bits;
    memcpy(&bits, address, sizeof bits);
    return dtype & TL_SWAPPED ? tl_swap32(bits) : bits;
}
TL_INLINE uint64_t tl_load64(const char *address, int dtype) {
    uint64_t bits;
    memcpy(&bits, address, sizeof bits);
    return dtype & TL_SWAPPED ? tl_swap64(bits) : bits;
}

/* Copies an element, swapped if the dtype is. */
TL_INLINE void tl_copy_element(const char *from, char *to, int dtype) {
    uint16_t half;
    uint32_t single;
    uint64_t wide;
    switch (tl_itemsize(dtype)) {
    case 2: half = tl_load16(from, dtype); memcpy(to, &half, sizeof half); break;
    case 4: single = tl_load32(from, dtype); memcpy(to, &single, sizeof single); break;
    default: wide = tl_load64(from, dtype); memcpy(to, &wide, sizeof wide);
    }
}

/* An integer. Unsigned ones above the int64 range become negative, and so are no class id. */
TL_INLINE int64_t tl_load_integer(const char *address, int dtype) {
    int64_t native;
    if (dtype == TL_INT64) { /* nearly always */
        memcpy(&native, address, sizeof native);
        return native;
    }
    switch (dtype & ~TL_SWAPPED) {
    case TL_INT8: return (int8_t)*address;
    case TL_INT16: return (int16_t)tl_load16(address, dtype);
    case TL_INT32: return (int32_t)tl_load32(address, dtype);
    case TL_UINT8: return (uint8_t)*address;
    case TL_UINT16: return tl_load16(address, dtype);
    case TL_UINT32: return tl_load32(address, dtype);
    default: return (int64_t)tl_load64(address, dtype);
    }
}

TL_INLINE double tl_load(const char *address, int dtype) {
    switch (dtype & ~TL_SWAPPED) {
    case TL_FLOAT16: return (double)tl_from_float16(tl_load16(address, dtype));
    case TL_BFLOAT16: return (double)tl_from_bfloat16(tl_load16(address, dtype));
    case TL_FLOAT32: return (double)tl_float_from_bits(tl_load32(address, dtype));
    case TL_FLOAT64: return tl_from_bits(tl_load64(address, dtype));
    case TL_UINT64: return (double)tl_load64(address, dtype);
    default: return (double)tl_load_integer(address, dtype);
    }
}

/* A half with this many bits of mantissa, to the nearest, ties to even. */
TL_INLINE uint16_t tl_to_half(double value, int mantissa) {
    const int dropped = 52 - mantissa, bias = (1 << (14 - mantissa)) - 1;
    const uint64_t bits = tl_to_bits(value), size = bits & 0x7fffffffffffffffu, sign = bits >> 48 & 0x8000;
    const uint64_t half_ulp = (uint64_t)1 << (dropped - 1), infinity = 0x7fffu >> mantissa << mantissa;
    if (size > 0x7ff0000000000000u)
        return (uint16_t)(infinity | infinity >> 1);
    if (size >> 52 < (uint64_t)(1024 - bias)) { /* subnormal: an integer times the least number */
        double least_inverse = tl_from_bits((uint64_t)(1022 + bias + mantissa) << 52);
        return (uint16_t)(sign | (tl_to_bits(tl_from_bits(size) * least_inverse + 0x1p52) & 0xffff));
    }
    const uint64_t rounded = (size + half_ulp - 1 + (size >> dropped & 1)) >> dropped;
    const uint64_t biased = rounded - ((uint64_t)(1023 - bias) << mantissa);
    return (uint16_t)(sign | (biased < infinity ? biased : infinity));
}

/* Rounds a double to one of the four dtypes of logits, in either byte order. */
TL_INLINE void tl_store(char *address, int dtype, double value) {
    const float single = (float)value;
    uint16_t half;
    switch (tl_itemsize(dtype)) {
    case 2:
        half = tl_to_half(value, (dtype & ~TL_SWAPPED) == TL_BFLOAT16 ? 7 : 10);
        tl_copy_element((const char *)&half, address, dtype);
        break;
    case 4: tl_copy_element((const char *)&single, address, dtype); break;
    default: tl_copy_element((const char *)&value, address, dtype);
    }
}

/* `count` integers that are `stride` bytes apart. */
TL_INLINE void tl_load_integers(const char *address, ptrdiff_t stride, int dtype, int count, int64_t *loaded) {
    int32_t single;
    if (dtype == TL_INT64 && stride == sizeof *loaded) /* nearly always */
        memcpy(loaded, address, (size_t)count * sizeof *loaded);
    else if (dtype == TL_INT32 && stride == sizeof single)
        for (int i = 0; i < count; i++) { /* vectors of them */
            memcpy(&single, address + i * (ptrdiff_t)sizeof single, sizeof single);
            loaded[i] = single;
        }
    else
        for (int i = 0; i < count; i++)
            loaded[i] = tl_load_integer(address + i * stride, dtype);
}
