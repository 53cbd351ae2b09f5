/* A matrix times few vectors is bound by memory: each row of the matrix is read once for all vectors. */
#include "matvec.h"

#define L2_BLOCK_BYTES (1 << 17) /* of rows, which stay in the second cache */

void tl_matvec(const tl_backend *backend, const tl_row *weights, ptrdiff_t stride, int64_t count,
               const tl_vectors *vectors, const tl_vectors *out) {
    assert(weights->dtype < TL_SWAPPED && (weights->count < 2 || weights->stride == tl_itemsize(weights->dtype)));
    const int64_t row_bytes = weights->count * tl_itemsize(weights->dtype) + 1;
    const int64_t block = (L2_BLOCK_BYTES / row_bytes / TL_DOT_ROWS + 1) * TL_DOT_ROWS;
    const int size = tl_itemsize(tl_single_or_double(weights->dtype));
    for (int64_t start = 0; start < count; start += block) {
        const size_t rows = (size_t)(count - start < block ? count - start : block);
        const tl_vectors part = {out->data + start * size, out->stride, vectors->count};
        backend->dot_rows[weights->dtype](weights->data + start * stride, stride, rows, (size_t)weights->count, vectors,
                                          &part);
    }
}
