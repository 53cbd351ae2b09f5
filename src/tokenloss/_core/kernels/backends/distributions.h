/* Where masses are not 0, for losses of distributions: see ../distributions.h. */

/* The bits of 64 elements that are not 0, but for the sign of a float. */
#define NONZERO_BITS(type, kept) \
    for (size_t i = 0; i < 64; i++) { \
        type bits; \
        memcpy(&bits, data + i * sizeof bits, sizeof bits); \
        found |= (uint64_t)((bits & (kept)) != 0) << i; \
    }

TL_TARGET static uint64_t JOIN(nonzeros_, BACKEND)(const void *masses, int dtype) {
    const char *data = (const char *)masses;
    uint64_t found = 0;
    if (dtype == TL_FLOAT32)
        for (size_t i = 0; i < 64; i += f32_WIDTH)
            found |= (uint64_t)f32_mask_nonzero(f32_load((const float *)masses + i)) << i;
    else if (dtype == TL_FLOAT64)
        for (size_t i = 0; i < 64; i += f64_WIDTH)
            found |= (uint64_t)f64_mask_nonzero(f64_load((const double *)masses + i)) << i;
    else if (tl_itemsize(dtype) == 1)
        NONZERO_BITS(uint8_t, 0xff)
    else if (tl_itemsize(dtype) == 2)
        NONZERO_BITS(uint16_t, dtype < TL_FLOAT_DTYPES ? 0x7fff : 0xffff)
    else if (tl_itemsize(dtype) == 4)
        NONZERO_BITS(uint32_t, ~(uint32_t)0)
    else
        NONZERO_BITS(uint64_t, ~(uint64_t)0)
    return found;
}
