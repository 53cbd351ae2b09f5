#include "row.h"

/* Makes the elements [from, to) of a chunk -inf, the neutral element. */
static void fill_neg_inf(tl_chunk_buf *buf, int64_t from, int64_t to) {
    const uint16_t half = buf->dtype == TL_FLOAT16 ? 0xfc00 : 0xff80;
    if (buf->dtype == TL_FLOAT64)
        for (int64_t i = from; i < to; i++)
            buf->at.f64[i] = -(double)INFINITY;
    else if (buf->dtype == TL_FLOAT32)
        for (int64_t i = from; i < to; i++)
            buf->at.f32[i] = -INFINITY;
    else
        for (int64_t i = from; i < to; i++)
            buf->at.u16[i] = half;
}

/* Copies elements of a dtype whose size the compiler knows. */
TL_INLINE void copy_each(const char *from, ptrdiff_t from_stride, char *to, ptrdiff_t to_stride, int64_t count,
                         int dtype) {
    for (int64_t i = 0; i < count; i++, from += from_stride, to += to_stride)
        tl_copy_element(from, to, dtype);
}

void tl_copy_elements(const char *from, ptrdiff_t from_stride, char *to, ptrdiff_t to_stride, int64_t count,
                      int dtype) {
    const int size = tl_itemsize(dtype), swapped = dtype & TL_SWAPPED;
    if (from_stride == size && to_stride == size && !swapped)
        memcpy(to, from, (size_t)(count * size));
    else if (size == 2)
        copy_each(from, from_stride, to, to_stride, count, TL_FLOAT16 | swapped);
    else if (size == 4)
        copy_each(from, from_stride, to, to_stride, count, TL_FLOAT32 | swapped);
    else
        copy_each(from, from_stride, to, to_stride, count, TL_FLOAT64 | swapped);
}

void tl_copy_native(const tl_row *row, void *to) {
    tl_copy_elements(row->data, row->stride, (char *)to, tl_itemsize(row->dtype), row->count, row->dtype);
}

void tl_copy_to_row(const void *from, const tl_row *row) {
    tl_copy_elements((const char *)from, tl_itemsize(row->dtype), (char *)(uintptr_t)row->data, row->stride, row->count,
                     row->dtype);
}

/* Copies elements to a chunk, in native byte order. */
static void copy_chunk(const tl_row *row, int64_t start, int64_t count, tl_chunk_buf *buf) {
    tl_row part = tl_part_of(row, start, start + count);
    tl_copy_native(&part, &buf->at);
    buf->dtype = row->dtype & ~TL_SWAPPED;
}

void tl_transform(const tl_backend *backend, const tl_row *row, double *x, size_t count) {
    if (TL_UNLIKELY(row->shift != 0))
        for (size_t i = 0; i < count; i++)
            x[i] -= row->shift;
    if (row->of_probs)
        backend->logs(x, count);
    else if (tl_is_transformed(row))
        backend->softcap(x, count, row->logit_scale, row->softcap);
}

void tl_widen_logits(const tl_backend *backend, const tl_row *row, int dtype, const void *x, size_t count, double *out) {
    int only_scales = row->softcap == 0 && row->shift == 0 && !row->of_probs;
    backend->to_f64[dtype](x, count, only_scales ? row->logit_scale : 1, out);
    if (!only_scales)
        tl_transform(backend, row, out, count);
}

/* Converts elements to a chunk of this dtype: transformed, less the offset. */
static void convert_chunk(const tl_backend *backend, const tl_row *row, const void *x, size_t count, double offset,
                          int dtype, tl_chunk_buf *buf) {
    double narrowed[TL_CHUNK], *wide = dtype == TL_FLOAT64 ? buf->at.f64 : narrowed;
    buf->dtype = dtype;
    int from = row->dtype & ~TL_SWAPPED;
    if (dtype == TL_FLOAT32 && from != TL_FLOAT64 && offset == 0 && !tl_is_transformed(row)) {
        backend->to_compute[from](x, count, buf->at.f32);
        return;
    }
    tl_widen_logits(backend, row, from, x, count, wide);
    if (offset != 0)
        for (size_t i = 0; i < count; i++)
            wide[i] -= offset;
    if (dtype != TL_FLOAT64)
        for (size_t i = 0; i < count; i++)
            buf->at.f32[i] = (float)wide[i];
}

void tl_load_chunk(const tl_backend *backend, const tl_row *row, int64_t start, int64_t count, int64_t excluded,
                   double offset, int dtype, tl_chunk_buf *buf) {
    assert(start >= 0 && count >= 0 && count <= TL_CHUNK && start + count <= row->count);
    if (buf->start == start && buf->offset == offset && buf->dtype == dtype)
        return;
    int64_t padded = tl_padded(count);
    for (int64_t i = 0; row->stride == tl_itemsize(row->dtype) && i < count * row->stride; i += 64)
        tl_prefetch_stream(row->data + start * row->stride + i); /* what follows, as the functions of a backend do */
    if (dtype == (row->dtype & ~TL_SWAPPED) && offset == 0 && !tl_is_transformed(row)) {
        copy_chunk(row, start, count, buf);
        fill_neg_inf(buf, count, padded);
    } else if (row->dtype < TL_SWAPPED && row->stride == tl_itemsize(row->dtype) && padded == count) {
        convert_chunk(backend, row, row->data + start * row->stride, (size_t)padded, offset, dtype, buf);
    } else {
        tl_chunk_buf native;
        copy_chunk(row, start, count, &native);
        fill_neg_inf(&native, count, padded);
        convert_chunk(backend, row, &native.at, (size_t)padded, offset, dtype, buf);
        fill_neg_inf(buf, count, padded);
    }
    if (excluded >= start && excluded < start + count)
        fill_neg_inf(buf, excluded - start, excluded - start + 1);
    buf->start = start;
    buf->offset = offset;
}

void tl_begin_two(const tl_row *row, const tl_row *other, int dtype, tl_two_rows *rows) {
    rows->row[0] = row;
    rows->row[1] = other;
    rows->offset[0] = rows->offset[1] = 0;
    rows->dtype = dtype;
    tl_chunk_invalidate(&rows->buf[0]);
    tl_chunk_invalidate(&rows->buf[1]);
}

int64_t tl_read_two(const tl_backend *backend, tl_two_rows *rows, int64_t start, int64_t end) {
    int64_t count = (end - start) / TL_CHUNK * TL_CHUNK;
    for (int i = 0; i < 2; i++) {
        rows->at[i] = rows->row[i]->data + start * rows->row[i]->stride;
        count = tl_can_read_in_place(rows->row[i], rows->dtype, rows->offset[i]) ? count : 0;
    }
    if (count > 0)
        return count;
    count = end - start < TL_CHUNK ? end - start : TL_CHUNK;
    for (int i = 0; i < 2; i++) {
        tl_load_chunk(backend, rows->row[i], start, count, -1, rows->offset[i], rows->dtype, &rows->buf[i]);
        rows->at[i] = &rows->buf[i].at;
    }
    return count;
}

void tl_cast_row(const tl_backend *backend, const tl_row *row, int dtype, void *out) {
    int64_t size = tl_itemsize(dtype), whole = row->count / TL_GROUP * TL_GROUP;
    if (row->dtype < TL_SWAPPED && row->stride == tl_itemsize(row->dtype) && whole > 0 &&
        (dtype == TL_FLOAT64 || (dtype == TL_FLOAT32 && row->dtype != TL_FLOAT64 && !tl_is_transformed(row)))) {
        for (int64_t at = 0, count = whole;; at = row->count - TL_GROUP, count = TL_GROUP) { /* the last ones overlap */
            const char *x = row->data + at * row->stride;
            if (dtype == TL_FLOAT64)
                tl_widen_logits(backend, row, row->dtype, x, (size_t)count, (double *)out + at);
            else
                backend->to_compute[row->dtype](x, (size_t)count, (float *)out + at);
            if (at + count == row->count)
                return;
        }
    }
    for (int64_t start = 0, count; start < row->count; start += count) {
        tl_chunk_buf buf;
        tl_chunk_invalidate(&buf);
        count = row->count - start < TL_CHUNK ? row->count - start : TL_CHUNK;
        tl_load_chunk(backend, row, start, count, -1, 0, dtype, &buf);
        memcpy((char *)out + start * size, &buf.at, (size_t)(count * size));
    }
}

double tl_transformed(const tl_backend *backend, const tl_row *row, double raw) {
    if (row->softcap == 0 && !row->of_probs) /* the bits of the backends */
        return row->logit_scale * (raw - row->shift);
    double lanes[TL_GROUP] = {raw};
    tl_transform(backend, row, lanes, TL_GROUP);
    return lanes[0];
}

double tl_logit_at(const tl_backend *backend, const tl_row *row, int64_t index) {
    assert(index >= 0 && index < row->count);
    return tl_transformed(backend, row, tl_load(row->data + index * row->stride, row->dtype));
}
