/* A matrix times few vectors is bound by memory: each row of the matrix is read once for all vectors. */
#include "matvec.h"

#include <assert.h>

void tl_cast_row(const tl_backend *backend, const tl_row *row, int dtype, void *out) {
    int64_t size = tl_itemsize(dtype), done = 0;
    if (row->dtype < TL_SWAPPED && row->stride == tl_itemsize(row->dtype) &&
        (row->dtype != TL_FLOAT64 || dtype == TL_FLOAT64)) {
        done = row->count / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
        if (dtype == TL_FLOAT64)
            backend->to_f64[row->dtype](row->data, (size_t)done, (double *)out);
        else
            backend->to_compute[row->dtype](row->data, (size_t)done, out);
    }
    for (int64_t count; done < row->count; done += count) {
        tl_chunk_buf buf;
        tl_chunk_invalidate(&buf);
        count = row->count - done < TL_CHUNK ? row->count - done : TL_CHUNK;
        tl_load_chunk(backend, row, done, count, -1, 0, dtype, &buf);
        memcpy((char *)out + done * size, &buf.at, (size_t)(count * size));
    }
}

#define VECTORS_PER_PASS 4            /* which stay in the first cache */
#define L2_BLOCK_BYTES (1 << 17) /* of rows, which stay in the second cache */

void tl_matvec(const tl_backend *backend, const tl_row *weights, ptrdiff_t stride, int64_t count,
               const tl_vectors *vectors, const tl_vectors *out) {
    assert(weights->dtype < TL_SWAPPED && (weights->count < 2 || weights->stride == tl_itemsize(weights->dtype)));
    int64_t block_rows = L2_BLOCK_BYTES / (weights->count * tl_itemsize(weights->dtype) + 1) + 1;
    int dtype = tl_single_or_double(weights->dtype), size = tl_itemsize(dtype);
    for (int64_t start = 0; start < count; start += block_rows)
        for (int64_t v = 0; v < vectors->count; v += VECTORS_PER_PASS) {
            int64_t end = count - start < block_rows ? count : start + block_rows;
            int64_t some = vectors->count - v < VECTORS_PER_PASS ? vectors->count - v : VECTORS_PER_PASS;
            for (int64_t k = start; k < end; k++) {
                double dots[VECTORS_PER_PASS];
                backend->dot_rows[weights->dtype](weights->data + k * stride, (size_t)weights->count,
                                                  vectors->data + v * vectors->stride, vectors->stride, (size_t)some,
                                                  v == 0, dots);
                for (int64_t i = 0; i < some; i++)
                    tl_store(out->data + (v + i) * out->stride + k * size, dtype, dots[i]);
            }
        }
}
