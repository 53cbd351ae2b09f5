/* One element of any dtype and byte order, to float, double or int64, exactly. */
#ifndef TOKENLOSS_ELEMENTS_H
#define TOKENLOSS_ELEMENTS_H

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

#define TL_FOLDED_DTYPES 4 /* the first four: what a row of scores may be */
#define TL_SWAPPED 16      /* added to a dtype whose bytes are in the other order */

TL_INLINE int tl_itemsize(int dtype) {
    static const unsigned char sizes[] = {2, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8};
    return sizes[dtype & ~TL_SWAPPED];
}

TL_INLINE float tl_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

TL_INLINE float tl_from_bfloat16(uint16_t bits) { return tl_float_from_bits((uint32_t)bits << 16); }

TL_INLINE float tl_from_float16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest >= 0x7c00) /* inf and nan, made quiet as hardware does */
        return tl_float_from_bits(sign | 0x7f800000 | rest << 13 | (rest > 0x7c00 ? 0x400000u : 0));
    if (rest < 0x400) /* zero and subnormal: a small integer times 2^-24 */
        return tl_float_from_bits(sign) + (sign ? -0x1p-24f : 0x1p-24f) * (float)rest;
    return tl_float_from_bits(sign | ((rest << 13) + 0x38000000));
}

/* The element's bytes in native order, in the low bits. */
TL_INLINE uint64_t tl_load_bits(const char *address, int dtype) {
    int size = tl_itemsize(dtype);
    if (TL_RARELY(dtype & TL_SWAPPED)) {
        uint64_t bits = 0;
        for (int k = 0; k < size; k++)
            bits |= (uint64_t)(unsigned char)address[k] << 8 * (TL_BIG_ENDIAN ? k : size - 1 - k);
        return bits;
    }
    uint8_t b1;
    uint16_t b2;
    uint32_t b4;
    uint64_t b8;
    switch (size) {
    case 1: memcpy(&b1, address, 1); return b1;
    case 2: memcpy(&b2, address, 2); return b2;
    case 4: memcpy(&b4, address, 4); return b4;
    default: memcpy(&b8, address, 8); return b8;
    }
}

TL_INLINE double tl_load(const char *address, int dtype) {
    uint64_t bits = tl_load_bits(address, dtype);
    double value;
    switch (dtype & ~TL_SWAPPED) {
    case TL_FLOAT16: return (double)tl_from_float16((uint16_t)bits);
    case TL_BFLOAT16: return (double)tl_from_bfloat16((uint16_t)bits);
    case TL_FLOAT32: return (double)tl_float_from_bits((uint32_t)bits);
    case TL_FLOAT64: memcpy(&value, &bits, sizeof value); return value;
    case TL_INT8: return (double)(int8_t)bits;
    case TL_INT16: return (double)(int16_t)bits;
    case TL_INT32: return (double)(int32_t)bits;
    case TL_INT64: return (double)(int64_t)bits;
    default: return (double)bits;
    }
}

/* An integer; unsigned ones beyond int64 become its largest, which is no class id. */
TL_INLINE int64_t tl_load_integer(const char *address, int dtype) {
    uint64_t bits = tl_load_bits(address, dtype);
    switch (dtype & ~TL_SWAPPED) {
    case TL_INT8: return (int8_t)bits;
    case TL_INT16: return (int16_t)bits;
    case TL_INT32: return (int32_t)bits;
    case TL_UINT64: return bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
    default: return (int64_t)bits;
    }
}

#endif
