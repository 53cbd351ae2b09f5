/* TL_GROUP rows of REAL side by side, and back: element k of row r is at [TL_GROUP k + r] of a group. Included once for
 * float and once for double, with OP defined as in dtype_body.h. */

TL_TARGET TL_INLINE void OP(interleave)(const char *const *rows, size_t classes, REAL *group) {
    for (size_t k = 0; k < classes; k += OP(PIECE)) {
        size_t n = classes - k < OP(PIECE) ? classes - k : OP(PIECE);
        for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
            OP(vec) v[OP(PIECE)];
            for (size_t i = 0; i < OP(PIECE); i++)
                v[i] = OP(load_pieces)(rows + r + i, k * sizeof(REAL), n);
            OP(transpose_pieces)(v);
            for (size_t i = 0; i < n; i++)
                OP(store)(group + TL_GROUP * (k + i) + r, v[i]);
        }
    }
}

TL_TARGET TL_INLINE void OP(deinterleave)(const REAL *group, size_t classes, char *const *rows) {
    for (size_t k = 0; k < classes; k += OP(PIECE)) {
        size_t n = classes - k < OP(PIECE) ? classes - k : OP(PIECE);
        for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
            OP(vec) v[OP(PIECE)];
            for (size_t i = 0; i < OP(PIECE); i++)
                v[i] = OP(load)(group + TL_GROUP * (i < n ? k + i : k) + r);
            OP(transpose_pieces)(v);
            for (size_t i = 0; i < OP(PIECE); i++)
                OP(store_pieces)(rows + r + i, k * sizeof(REAL), n, v[i]);
        }
    }
}
