/* A matrix times few vectors is bound by memory: each row of the matrix is read once for all vectors. */
#include "matvec.h"

#include <assert.h>

#define L2_BLOCK_BYTES (1 << 17) /* of rows, which stay in the second cache */

void tl_matvec(const tl_backend *backend, const tl_row *weights, ptrdiff_t stride, int64_t count,
               const tl_vectors *vectors, const tl_vectors *out) {
    assert(weights->dtype < TL_SWAPPED && (weights->count < 2 || weights->stride == tl_itemsize(weights->dtype)));
    int64_t block_rows = L2_BLOCK_BYTES / (weights->count * tl_itemsize(weights->dtype) + 1) / TL_DOT_ROWS + 1;
    int dtype = tl_single_or_double(weights->dtype), size = tl_itemsize(dtype);
    block_rows *= TL_DOT_ROWS;
    for (int64_t start = 0; start < count; start += block_rows)
        for (int64_t v = 0; v < vectors->count; v += TL_DOT_VECTORS) {
            int64_t end = count - start < block_rows ? count : start + block_rows;
            tl_vectors some = {vectors->data + v * vectors->stride, vectors->stride, vectors->count - v};
            some.count = some.count < TL_DOT_VECTORS ? some.count : TL_DOT_VECTORS;
            for (int64_t k = start; k < end; k += TL_DOT_ROWS) {
                double dots[TL_DOT_ROWS][TL_DOT_VECTORS];
                int64_t rows = end - k < TL_DOT_ROWS ? end - k : TL_DOT_ROWS;
                backend->dot_rows[weights->dtype](weights->data + k * stride, stride, (size_t)rows,
                                                  (size_t)weights->count, &some, v == 0, dots);
                for (int64_t i = 0; i < some.count; i++)
                    for (int64_t r = 0; r < rows; r++)
                        tl_store(out->data + (v + i) * out->stride + (k + r) * size, dtype, dots[r][i]);
            }
        }
}
