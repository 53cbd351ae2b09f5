/* TL_GROUP rows of REAL side by side, and back: element k of row r is at [TL_GROUP k + r] of a group. Included once for
 * float and once for double, with OP defined as in dtype_body.h. */

/* `n` classes from k on, OP(PIECE) at most, of rows that are given, or `apart` bytes from the first to the second one
 * and so on. */
TL_TARGET TL_INLINE void OP(interleave_piece)(const char *const *rows, const char *first, ptrdiff_t apart, size_t k,
                                              size_t n, REAL *group) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(vec) v[OP(PIECE)];
        for (size_t i = 0; i < OP(PIECE); i++) {
            const char *at[OP(WIDTH)]; /* of each piece in a vector */
            for (size_t j = 0; j < OP(WIDTH); j += OP(PIECE))
                at[j] = rows ? rows[r + i + j] : first + (ptrdiff_t)(r + i + j) * apart;
            v[i] = OP(load_pieces)(at, k * sizeof(REAL), n);
        }
        OP(transpose_pieces)(v);
        for (size_t i = 0; i < n; i++)
            OP(store)(group + TL_GROUP * (k + i) + r, v[i]);
    }
}

TL_TARGET TL_INLINE void OP(deinterleave_piece)(const REAL *group, size_t k, size_t n, char *const *rows) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(vec) v[OP(PIECE)];
        for (size_t i = 0; i < OP(PIECE); i++)
            v[i] = OP(load)(group + TL_GROUP * (i < n ? k + i : k) + r);
        OP(transpose_pieces)(v);
        for (size_t i = 0; i < OP(PIECE); i++)
            OP(store_pieces)(rows + r + i, k * sizeof(REAL), n, v[i]);
    }
}

TL_TARGET TL_INLINE void OP(interleave_any)(const char *const *rows, const char *first, ptrdiff_t apart,
                                            size_t classes, REAL *group) {
    if (classes < OP(PIECE)) {
        OP(interleave_piece)(rows, first, apart, 0, classes, group);
        return;
    }
    for (size_t k = 0; k + OP(PIECE) < classes; k += OP(PIECE))
        OP(interleave_piece)(rows, first, apart, k, OP(PIECE), group);
    OP(interleave_piece)(rows, first, apart, classes - OP(PIECE), OP(PIECE), group); /* some perhaps again */
}

TL_TARGET TL_OUTLINE void OP(interleave)(const char *const *rows, size_t classes, REAL *group) {
    OP(interleave_any)(rows, NULL, 0, classes, group);
}

TL_TARGET static void OP(interleave_apart)(const char *first, ptrdiff_t apart, size_t classes, size_t groups,
                                           void *out) {
    for (size_t g = 0; g < groups; g++, first += TL_GROUP * apart) {
        REAL *group = (REAL *)out + TL_GROUP * classes * g;
        for (size_t i = 0; classes > 8 && i < TL_GROUP * classes * sizeof(REAL); i += 64)
            tl_prefetch(first + 4096 + i);
        if (OP(PIECE) == 4 && classes == 2 && apart == 2 * sizeof(float))
            for (size_t r = 0; r < TL_GROUP; r += f32_WIDTH) {
                float *even = (float *)out + TL_GROUP * 2 * g + r;
                f32_split_pairs((const float *)(const void *)first + 2 * r, even, even + TL_GROUP);
            }
        else
            OP(interleave_any)(NULL, first, apart, classes, group);
    }
}

TL_TARGET TL_OUTLINE void OP(deinterleave)(const REAL *group, size_t classes, char *const *rows) {
    const size_t whole = classes / OP(PIECE) * OP(PIECE);
    for (size_t k = 0; k < whole; k += OP(PIECE))
        OP(deinterleave_piece)(group, k, OP(PIECE), rows);
    if (whole < classes)
        OP(deinterleave_piece)(group, whole, classes - whole, rows);
}
