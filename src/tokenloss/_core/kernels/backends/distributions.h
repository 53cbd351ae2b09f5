/* Where masses are not 0, for losses of distributions: see ../distributions.h. */

/* The bits of 64 elements of `size` bytes that are not 0, by words: of each element, the top bit of a word is set if
 * the element has a bit, and these are moved together. `kept` has the bits that count. */
TL_TARGET TL_INLINE uint64_t JOIN(nonzero_words_, BACKEND)(const char *data, size_t size, uint64_t low, uint64_t kept) {
    uint64_t found = 0, word;
    for (size_t i = 0; i < 8 * size; i++) {
        memcpy(&word, data + 8 * i, sizeof word);
        word &= kept;
        word = (((word & low) + low) | word) & ~low;
        if (size == 1)
            word = (word >> 7) * 0x0102040810204080u >> 56;
        else if (size == 2)
            word = (word >> 15) * 0x0001000200040008u >> 48 & 15;
        else if (size == 4)
            word = (word >> 31 & 1) | (word >> 62 & 2);
        else
            word >>= 63;
        found |= word << (8 / size * i);
    }
    return found;
}

TL_TARGET static uint64_t JOIN(nonzeros_, BACKEND)(const void *masses, int dtype) {
    const char *data = (const char *)masses;
    uint64_t found = 0;
    if (dtype == TL_FLOAT32) {
        for (size_t i = 0; i < 64; i += f32_WIDTH)
            found |= (uint64_t)f32_mask_nonzero(f32_load((const float *)masses + i)) << i;
        return found;
    }
    if (dtype == TL_FLOAT64) {
        for (size_t i = 0; i < 64; i += f64_WIDTH)
            found |= (uint64_t)f64_mask_nonzero(f64_load((const double *)masses + i)) << i;
        return found;
    }
    if (TL_BIG_ENDIAN) {
        for (int i = 0; i < 64; i++)
            found |= (uint64_t)(tl_load(data + i * tl_itemsize(dtype), dtype) != 0) << i;
        return found;
    }
    switch (tl_itemsize(dtype)) {
    case 1: return JOIN(nonzero_words_, BACKEND)(data, 1, 0x7f7f7f7f7f7f7f7fu, ~(uint64_t)0);
    case 2:
        return JOIN(nonzero_words_, BACKEND)(data, 2, 0x7fff7fff7fff7fffu,
                                             dtype < TL_FLOAT_DTYPES ? 0x7fff7fff7fff7fffu : ~(uint64_t)0);
    case 4: return JOIN(nonzero_words_, BACKEND)(data, 4, 0x7fffffff7fffffffu, ~(uint64_t)0);
    default: return JOIN(nonzero_words_, BACKEND)(data, 8, 0x7fffffffffffffffu, ~(uint64_t)0);
    }
}
