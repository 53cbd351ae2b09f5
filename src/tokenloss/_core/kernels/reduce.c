#include "reduce.h"

#include "scalar_math.h"

void tl_reduce_range(const tl_backend *backend, tl_reduce_kind kind, const tl_row *row, int64_t start, int64_t end,
                     int64_t excluded, tl_lse_acc *state, tl_chunk_buf *buf) {
    assert(start >= 0 && start <= end && end <= row->count);
    int dtype = tl_offset_dtype(row->compute_dtype, state->offset);
    int in_place = tl_can_read_in_place(row, dtype, state->offset);
    while (start < end) {
        int64_t until = excluded >= start && excluded < end ? excluded : end;
        int64_t count = in_place ? (until - start) / TL_CHUNK * TL_CHUNK : 0;
        const void *x = row->data + start * row->stride;
        state->is_padded = 0;
        if (count == 0) {
            count = end - start < TL_CHUNK ? end - start : TL_CHUNK;
            tl_load_chunk(backend, row, start, count, excluded, state->offset, dtype, buf);
            x = &buf->at;
            state->is_padded = count < TL_CHUNK || until < start + count;
        }
        backend->reduce[kind][dtype](x, (size_t)count, state);
        start += count;
    }
}

double tl_maximum_between(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t excluded,
                          tl_chunk_buf *buf) {
    tl_lse_acc state;
    state.offset = 0;
    state.maximum = -(double)INFINITY;
    state.threshold = 0;
    tl_reduce_range(backend, TL_REDUCE_MAX, row, start, end, excluded, &state, buf);
    return state.maximum + 0; /* of zeros of both signs, backends keep either */
}

double tl_maximum(const tl_backend *backend, const tl_row *row) {
    tl_chunk_buf buf;
    tl_chunk_invalidate(&buf);
    return tl_maximum_between(backend, row, 0, row->count, -1, &buf);
}

int64_t tl_indices_ge(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold,
                      int32_t *found) {
    int64_t length = end - start, count = 0, i = 0;
    const int dtype = row->compute_dtype;
    tl_chunk_buf buf;
    assert(start >= 0 && length >= 0 && length <= TL_BLOCK && end <= row->count);
    if (tl_can_read_in_place(row, dtype, 0)) {
        i = length / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
        count = (int64_t)backend->indices_ge[dtype](row->data + start * row->stride, (size_t)i, threshold, found);
    }
    tl_chunk_invalidate(&buf);
    for (int64_t next; i < length; i = next) {
        next = length - i < TL_CHUNK ? length : i + TL_CHUNK;
        tl_load_chunk(backend, row, start + i, next - i, -1, 0, dtype, &buf);
        size_t padded = (size_t)tl_padded(next - i);
        int64_t until = count + (int64_t)backend->indices_ge[dtype](&buf.at, padded, threshold, found + count);
        for (; count < until && found[count] + i < length; count++)
            found[count] += (int32_t)i;
    }
    return count;
}

int64_t tl_find(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold) {
    int32_t found[TL_BLOCK];
    return tl_indices_ge(backend, row, start, end, threshold, found) > 0 ? start + found[0] : end;
}

int64_t tl_find_first(const tl_backend *backend, const tl_row *row, double threshold) {
    int64_t found = 0;
    for (int64_t start = 0, end = 0; found == end && end < row->count; start = end) {
        end = row->count - start < TL_BLOCK ? row->count : start + TL_BLOCK;
        found = tl_find(backend, row, start, end, threshold);
    }
    return found < row->count ? found : 0;
}

double tl_lanes_sum_fast(const double *lanes) {
    double half[8];
    for (int i = 0; i < 8; i++)
        half[i] = lanes[i] + lanes[i + 8];
    return ((half[0] + half[4]) + (half[2] + half[6])) + ((half[1] + half[5]) + (half[3] + half[7]));
}

double tl_lanes_sum_in_order(const double *lanes) {
    double sum = 0;
    for (int i = 0; i < 16; i++)
        sum += lanes[i];
    return sum;
}

/* Adds lanes [half, 2 half) to lanes [0, half) by two-sums: inlined, so that compilers make vectors of them. */
TL_INLINE void add_halves(double *lane, double *error, int half) {
    for (int i = 0; i < half; i++) {
        double sum = lane[i] + lane[i + half], other = sum - lane[i];
        error[i] += error[i + half] + ((lane[i] - (sum - other)) + (lane[i + half] - other));
        lane[i] = sum;
    }
}

double tl_lanes_sum_compensated(const double *lanes, const double *errors) {
    double lane[16], error[16];
    memcpy(lane, lanes, sizeof lane);
    memcpy(error, errors, sizeof error);
    add_halves(lane, error, 8);
    add_halves(lane, error, 4);
    add_halves(lane, error, 2);
    add_halves(lane, error, 1);
    return lane[0] + error[0];
}

double tl_lanes_sum_or_infinite(const double *lanes, const double *errors) {
    double total = tl_lanes_sum_compensated(lanes, errors);
    return total == total ? total : tl_lanes_sum_in_order(lanes);
}
