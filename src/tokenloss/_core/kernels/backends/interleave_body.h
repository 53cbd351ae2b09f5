/* TL_GROUP rows of REAL side by side, and back: element k of row r is at [TL_GROUP k + r] of a group. Included once for
 * float and once for double, with OP defined as in dtype_body.h. */

/* `n` classes from k on, OP(PIECE) at most. */
TL_TARGET TL_INLINE void OP(interleave_piece)(const char *const *rows, size_t k, size_t n, REAL *group) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(vec) v[OP(PIECE)];
        for (size_t i = 0; i < OP(PIECE); i++)
            v[i] = OP(load_pieces)(rows + r + i, k * sizeof(REAL), n);
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

TL_TARGET TL_OUTLINE void OP(interleave)(const char *const *rows, size_t classes, REAL *group) {
    const size_t whole = classes / OP(PIECE) * OP(PIECE);
    for (size_t k = 0; k < whole; k += OP(PIECE))
        OP(interleave_piece)(rows, k, OP(PIECE), group);
    if (whole < classes)
        OP(interleave_piece)(rows, whole, classes - whole, group);
}

TL_TARGET TL_OUTLINE void OP(deinterleave)(const REAL *group, size_t classes, char *const *rows) {
    const size_t whole = classes / OP(PIECE) * OP(PIECE);
    for (size_t k = 0; k < whole; k += OP(PIECE))
        OP(deinterleave_piece)(group, k, OP(PIECE), rows);
    if (whole < classes)
        OP(deinterleave_piece)(group, whole, classes - whole, rows);
}
