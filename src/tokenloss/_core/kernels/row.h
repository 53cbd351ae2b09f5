/* A row of logits in memory, and chunks of it in the form that the functions of a backend read. */
#pragma once

#include "backend.h"

/* With a scale or a softcap the logits are softcap tanh(logit_scale x / softcap), or x where that is infinite, and are
 * computed in double. With a scale alone they may be logit_scale (x - shift), where logit_scale x would overflow. Of
 * probabilities, the logits are the logarithms, in double too: nan of what is none. */
typedef struct {
    const char *data;
    int64_t count;
    ptrdiff_t stride;   /* in bytes */
    int dtype;          /* one of TL_FLOAT_DTYPES, perhaps with TL_SWAPPED */
    int compute_dtype;  /* the dtype of the row or a wider one; rows with an offset use float32 or float64 */
    double logit_scale; /* 1 if there is none */
    double softcap;     /* 0 if there is none */
    double shift;       /* 0 if there is none */
    int of_probs;       /* whether elements are probabilities: then there is none of these three */
} tl_row;

/* Whether logits are not what is in memory, apart from a shift. */
TL_INLINE int tl_is_transformed(const tl_row *row) {
    return row->logit_scale != 1 || row->softcap != 0 || row->of_probs;
}

/* The row without its transform: the elements as they are in memory. */
TL_INLINE tl_row tl_raw(const tl_row *row) {
    tl_row raw = *row;
    raw.logit_scale = 1;
    raw.softcap = raw.shift = 0;
    raw.of_probs = 0;
    raw.compute_dtype = raw.dtype & ~TL_SWAPPED;
    return raw;
}

/* Copies elements, and swaps their bytes if the dtype is swapped. The other two copy a row to contiguous native
 * elements, and back. */
void tl_copy_elements(const char *from, ptrdiff_t from_stride, char *to, ptrdiff_t to_stride, int64_t count, int dtype);
void tl_copy_native(const tl_row *row, void *to);
void tl_copy_to_row(const void *from, const tl_row *row);

/* The logits of elements, a multiple of TL_GROUP, that are given in a native dtype. */
void tl_widen_logits(const tl_backend *backend, const tl_row *row, int dtype, const void *x, size_t count, double *out);

/* The elements [start, end) of a row. */
TL_INLINE tl_row tl_part_of(const tl_row *row, int64_t start, int64_t end) {
    tl_row part = *row;
    part.data += start * part.stride;
    part.count = end - start;
    return part;
}

/* Writes all logits of a row, as its native dtype or a wider one: as double, if it is transformed. */
void tl_cast_row(const tl_backend *backend, const tl_row *row, int dtype, void *out);

/* Turns elements, a multiple of TL_GROUP, into logits in place; the logit of one element, and of a class. */
void tl_transform(const tl_backend *backend, const tl_row *row, double *x, size_t count);
double tl_transformed(const tl_backend *backend, const tl_row *row, double raw);
double tl_logit_at(const tl_backend *backend, const tl_row *row, int64_t index);

/* Groups of 16 rows, each in a lane. */
TL_INLINE tl_few_rows tl_few_of_groups(const void *groups, size_t classes, int dtype) {
    size_t class_bytes = TL_GROUP * (size_t)tl_itemsize(dtype);
    return (tl_few_rows){groups, class_bytes * classes, (ptrdiff_t)class_bytes, classes, 0, 0};
}

/* A chunk of a row, copied where the row cannot be read in place. It remembers what it holds, so that a chunk that is
 * needed twice is loaded once; it must therefore be used for one row, and each chunk always with the same count and
 * excluded class. */
typedef struct {
    union {
        uint16_t u16[TL_CHUNK];
        float f32[TL_CHUNK];
        double f64[TL_CHUNK];
    } at;
    int64_t start; /* index of the first element; -1 if the buffer is empty */
    double offset; /* what was subtracted */
    int dtype;
} tl_chunk_buf;

TL_INLINE void tl_chunk_invalidate(tl_chunk_buf *buf) {
    buf->start = buf->dtype = -1;
    buf->offset = 0;
}

/* A count rounded up to what the functions of a backend read. */
TL_INLINE int64_t tl_padded(int64_t count) {
    return (count + TL_READ_MULTIPLE - 1) / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
}

/* The dtype of chunks from which an offset was subtracted. */
TL_INLINE int tl_offset_dtype(int dtype, double offset) {
    return offset == 0 || dtype == TL_FLOAT64 ? dtype : TL_FLOAT32;
}

/* Whether a backend can read the elements where they are. */
TL_INLINE int tl_can_read_in_place(const tl_row *row, int dtype, double offset) {
    return row->dtype == dtype && row->stride == tl_itemsize(dtype) && offset == 0 && !tl_is_transformed(row);
}

/* Loads the elements [start, start + count), at most a chunk, as this dtype and less the offset. The class `excluded`
 * (if it is not negative) becomes -inf, as does the padding up to tl_padded(count). */
void tl_load_chunk(const tl_backend *backend, const tl_row *row, int64_t start, int64_t count, int64_t excluded,
                   double offset, int dtype, tl_chunk_buf *buf);

/* Two rows of one length that are read together, as one dtype and less their offsets; `at` is what was read last. */
typedef struct {
    const tl_row *row[2];
    double offset[2];
    int dtype;
    const void *at[2];
    tl_chunk_buf buf[2];
} tl_two_rows;
void tl_begin_two(const tl_row *row, const tl_row *other, int dtype, tl_two_rows *rows); /* without offsets */

/* Sets `at` to the elements from `start` on and returns how many there are before `end`: whole chunks if both rows can
 * be read in place, otherwise one chunk at most, which is loaded. */
int64_t tl_read_two(const tl_backend *backend, tl_two_rows *rows, int64_t start, int64_t end);
