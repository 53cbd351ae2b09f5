/* Where masses are not 0, and sums of rows side by side, for losses of distributions: see ../distributions.h. */

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

/* Adds the next terms of rows in lanes, `n` classes of each from `offset` bytes on; n is a constant of the caller. */
TL_TARGET TL_INLINE void JOIN(add_pieces_, BACKEND)(const char *const *rows, size_t offset, size_t n, f64_vec *sum,
                                                    f64_vec *lost) {
    for (size_t j = 0; j < 16 / f64_WIDTH; j++) {
        f64_vec term[f64_PIECE];
        for (size_t k = 0; k < f64_PIECE; k++)
            term[k] = f64_load_pieces(rows + j * f64_WIDTH + k, offset, n);
        f64_transpose_pieces(term);
        for (size_t k = 0; k < n; k++) { /* Knuth's two-sum */
            f64_vec before = sum[j], other;
            sum[j] = f64_add(before, term[k]);
            other = f64_sub(sum[j], before);
            other = f64_add(f64_sub(before, f64_sub(sum[j], other)), f64_sub(term[k], other));
            lost[j] = f64_add(lost[j], other);
        }
    }
}

TL_TARGET static void JOIN(add_rows_, BACKEND)(const double *terms, size_t count, double *sum, double *lost) {
    const char *rows[16];
    f64_vec sums[16 / f64_WIDTH], rests[16 / f64_WIDTH];
    const size_t size = sizeof *terms, whole = count / f64_PIECE * f64_PIECE;
    for (size_t i = 0; i < 16; i++)
        rows[i] = (const char *)(terms + i * count);
    for (size_t j = 0; j < 16 / f64_WIDTH; j++) {
        sums[j] = f64_load(sum + j * f64_WIDTH);
        rests[j] = f64_load(lost + j * f64_WIDTH);
    }
    for (size_t k = 0; k < whole; k += f64_PIECE)
        JOIN(add_pieces_, BACKEND)(rows, k * size, f64_PIECE, sums, rests);
    for (size_t k = whole; k < count; k++)
        JOIN(add_pieces_, BACKEND)(rows, k * size, 1, sums, rests);
    for (size_t j = 0; j < 16 / f64_WIDTH; j++) {
        f64_store(sum + j * f64_WIDTH, sums[j]);
        f64_store(lost + j * f64_WIDTH, rests[j]);
    }
}

TL_TARGET static void JOIN(ignore_where_zero_, BACKEND)(const double *mass, size_t count, double neutral,
                                                        double *score) {
    const f64_vec replacement = f64_set(neutral), zero = f64_set(0);
    size_t whole = count / f64_WIDTH * f64_WIDTH;
    for (size_t i = 0; i < whole; i += f64_WIDTH)
        f64_store(score + i, f64_if_equal(f64_load(mass + i), zero, replacement, f64_load(score + i)));
    for (size_t i = whole; i < count; i++)
        score[i] = mass[i] == 0 ? neutral : score[i];
}
