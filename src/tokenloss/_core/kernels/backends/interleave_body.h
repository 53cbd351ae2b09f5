/* TL_GROUP rows of REAL side by side, and back: element k of row r is at [TL_GROUP k + r] of a group. */

#if OP(PIECE) == OP(WIDTH)
TL_TARGET TL_INLINE OP(vec) OP(load_pieces)(const char *const *rows, size_t offset) {
    return OP(load)((const REAL *)(const void *)(rows[0] + offset));
}
TL_TARGET TL_INLINE void OP(store_pieces)(char *const *rows, size_t offset, OP(vec) piece) {
    OP(store)((REAL *)(void *)(rows[0] + offset), piece);
}
#endif

/* OP(PIECE) classes from k on, a vector of rows each: rows that are given, or `apart` bytes from each other. */
TL_TARGET TL_INLINE void OP(load_classes)(const char *const *rows, const char *first, ptrdiff_t apart, size_t k,
                                          OP(vec) * v) {
    for (size_t i = 0; i < OP(PIECE); i++) {
        const char *at[OP(WIDTH)]; /* each piece of a vector */
        for (size_t j = 0; j < OP(WIDTH); j += OP(PIECE))
            at[j] = rows ? rows[i + j] : first + (ptrdiff_t)(i + j) * apart;
        v[i] = OP(load_pieces)(at, k * sizeof(REAL));
    }
    OP(transpose_pieces)(v);
}

/* The same of a group. Prefetches a share of the lines that follow the rows at `next`, if that is not NULL. */
TL_TARGET TL_INLINE void OP(interleave_piece)(const char *const *rows, const char *first, ptrdiff_t apart, size_t k,
                                              const char *next, REAL *group) {
    for (size_t at = k * TL_GROUP; next && at < (k + OP(PIECE)) * TL_GROUP; at += 64 / sizeof(REAL))
        tl_prefetch_stream(next + at * sizeof(REAL));
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(vec) v[OP(PIECE)];
        OP(load_classes)(rows ? rows + r : NULL, rows ? NULL : first + (ptrdiff_t)r * apart, apart, k, v);
        for (size_t i = 0; i < OP(PIECE); i++)
            OP(store)(group + TL_GROUP * (k + i) + r, v[i]);
    }
}

TL_TARGET TL_INLINE void OP(deinterleave_piece)(const REAL *group, size_t k, char *const *rows) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
        OP(vec) v[OP(PIECE)];
        for (size_t i = 0; i < OP(PIECE); i++)
            v[i] = OP(load)(group + TL_GROUP * (k + i) + r);
        OP(transpose_pieces)(v);
        for (size_t i = 0; i < OP(PIECE); i++)
            OP(store_pieces)(rows + r + i, k * sizeof(REAL), v[i]);
    }
}

/* Interleaves piece by piece, where the last piece overlaps the one before it, or class by class. */
TL_TARGET TL_INLINE void OP(interleave_any)(const char *const *rows, const char *first, ptrdiff_t apart,
                                            size_t classes, const char *next, REAL *group) {
    for (size_t r = 0; classes < OP(PIECE) && r < TL_GROUP; r++)
        for (size_t k = 0; k < classes; k++)
            memcpy(&group[TL_GROUP * k + r], (rows ? rows[r] : first + (ptrdiff_t)r * apart) + k * sizeof(REAL),
                   sizeof(REAL));
    for (size_t k = 0; k + OP(PIECE) < classes; k += OP(PIECE))
        OP(interleave_piece)(rows, first, apart, k, next, group);
    if (classes >= OP(PIECE))
        OP(interleave_piece)(rows, first, apart, classes - OP(PIECE), next, group);
}

TL_TARGET TL_OUTLINE void OP(interleave)(const char *const *rows, size_t classes, REAL *group) {
    OP(interleave_any)(rows, NULL, 0, classes, NULL, group);
}

TL_TARGET TL_OUTLINE void OP(deinterleave)(const REAL *group, size_t classes, char *const *rows) {
    for (size_t r = 0; classes < OP(PIECE) && r < TL_GROUP; r++)
        for (size_t k = 0; k < classes; k++)
            memcpy(rows[r] + k * sizeof(REAL), &group[TL_GROUP * k + r], sizeof(REAL));
    for (size_t k = 0; k + OP(PIECE) < classes; k += OP(PIECE))
        OP(deinterleave_piece)(group, k, rows);
    if (classes >= OP(PIECE))
        OP(deinterleave_piece)(group, classes - OP(PIECE), rows);
}

/* Rows that lie `apart` bytes from each other. */
TL_TARGET TL_OUTLINE void OP(interleave_apart)(const char *first, ptrdiff_t apart, size_t classes, const char *next,
                                               REAL *group) {
    OP(interleave_any)(NULL, first, apart, classes, next, group);
}

/* Rows of n classes, 2 or 3, that follow each other. */
TL_TARGET TL_INLINE void OP(split_rows)(const REAL *x, int n, REAL *group) {
    for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH), x += (size_t)n * OP(WIDTH)) {
        OP(vec) v[3];
        for (int k = 0; k < n; k++)
            v[k] = OP(column)(x, n, k);
        for (int k = 0; k < n; k++)
            OP(store)(group + TL_GROUP * (size_t)k + r, v[k]);
    }
}

TL_TARGET TL_INLINE void OP(interleave_rows)(const char *first, ptrdiff_t apart, size_t classes, const char *next,
                                             REAL *group) {
    const int are_neighbours = apart == (ptrdiff_t)(classes * sizeof(REAL));
    if (are_neighbours && classes == 2)
        OP(split_rows)((const REAL *)(const void *)first, 2, group);
    else if (are_neighbours && classes == 3)
        OP(split_rows)((const REAL *)(const void *)first, 3, group);
    else
        OP(interleave_apart)(first, apart, classes, next, group);
}

/* The place where a group of rows is side by side, `memory` unless it already is; and the stride of its classes. What
 * follows these rows is prefetched on request. */
TL_TARGET TL_INLINE const char *OP(group_of)(const tl_few_rows *rows, size_t g, size_t classes, int prefetches,
                                             char *memory, ptrdiff_t *stride) {
    const char *data = rows->data + (ptrdiff_t)(g * rows->group_bytes);
    prefetches &= rows->apart > 0;
    *stride = rows->are_apart ? (ptrdiff_t)(TL_GROUP * sizeof(REAL)) : rows->class_stride;
    if (!rows->are_apart)
        return data;
    OP(interleave_rows)(data, rows->apart, classes, prefetches ? data : NULL, (REAL *)(void *)memory);
    return memory;
}

/* Writes a group where rows that are apart lie. */
TL_TARGET TL_INLINE void OP(put_group)(const REAL *group, const tl_few_rows *rows, size_t g, size_t classes) {
    char *first = (char *)(uintptr_t)rows->data + (ptrdiff_t)(g * rows->group_bytes), *row[TL_GROUP];
    REAL *x = (REAL *)(void *)first;
    int are_neighbours = rows->apart == (ptrdiff_t)(classes * sizeof(REAL));
    if (are_neighbours && classes == 2)
        for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH))
            OP(join_pairs)(group + r, x + 2 * r);
    else if (are_neighbours && classes == 3 && sizeof(REAL) == sizeof(float))
        for (size_t r = 0; r < TL_GROUP; r += f32_WIDTH)
            f32_join_triples((const float *)(const void *)(group + r), (float *)(void *)(x + 3 * r));
    else
        are_neighbours = 0;
    if (are_neighbours)
        return;
    for (size_t r = 0; r < TL_GROUP; r++)
        row[r] = first + (ptrdiff_t)r * rows->apart;
    OP(deinterleave)(group, classes, row);
}
