/* Softmax, log_softmax and the gradient of the loss. The rows were reduced before and are mostly still in a cache. */
#include "elementwise.h"

void tl_store_at(const tl_row *out, int64_t index, double value) {
    assert(index >= 0 && index < out->count);
    tl_store((char *)(uintptr_t)out->data + index * out->stride, out->dtype, value);
}

void tl_fill(const tl_row *out, double value) {
    if (value == 0 && out->stride == tl_itemsize(out->dtype)) {
        memset((char *)(uintptr_t)out->data, 0, (size_t)(out->count * out->stride));
        return;
    }
    for (int64_t i = 0; i < out->count; i++)
        tl_store_at(out, i, value);
}

/* Writes a chunk of this dtype to the output from `start` on. */
static void write_chunk(const tl_row *out, int64_t start, int64_t count, int dtype, tl_chunk_buf *buf) {
    tl_row part = tl_part_of(out, start, start + count);
    int narrows = dtype == TL_FLOAT64 && out->dtype == TL_FLOAT32;
    for (int64_t i = 0; narrows && i < count; i++)
        buf->at.f32[i] = (float)buf->at.f64[i];
    if (narrows || out->dtype == dtype)
        tl_copy_to_row(&buf->at, &part);
    else
        for (int64_t i = 0; i < count; i++)
            tl_store_at(&part, i, tl_load((const char *)&buf->at + i * tl_itemsize(dtype), dtype));
}

typedef struct {
    int logarithm;
    double exponent, factor, subtrahend;
    int large;
} map_op;

static void map_chunk(const tl_backend *backend, const map_op *op, int dtype, const void *x, size_t count, void *out,
                      int streaming) {
    const char *from = (const char *)x;
    char *to = (char *)out;
    backend->exp_scaled_rows[dtype](&from, 1, count, op->logarithm ? NULL : &op->exponent, &op->factor, &op->subtrahend,
                                    &to, streaming);
}

/* Maps each element of a row: in place where possible, else chunk by chunk. */
static void map_row(const tl_backend *backend, const tl_row *row, double offset, const map_op *op, const tl_row *out,
                    tl_cancel *cancel) {
    assert(row->count == out->count);
    int dtype = tl_offset_dtype(row->compute_dtype, offset);
    int in_place = tl_can_read_in_place(row, dtype, offset) && tl_can_read_in_place(out, dtype, 0);
    in_place &= row->count >= TL_GROUP;
    for (int64_t start = 0, count; start < row->count; start += count) {
        int64_t left = row->count - start;
        if (in_place) {
            char *to = (char *)(uintptr_t)out->data + start * out->stride;
            count = left < 2 * TL_CANCEL_INTERVAL ? left : TL_CANCEL_INTERVAL;
            map_chunk(backend, op, dtype, row->data + start * row->stride, (size_t)count, to, op->large);
        } else {
            tl_chunk_buf buf;
            tl_chunk_invalidate(&buf);
            count = left < TL_CHUNK ? left : TL_CHUNK;
            tl_load_chunk(backend, row, start, count, -1, offset, dtype, &buf);
            size_t padded = (size_t)tl_padded(count);
            map_chunk(backend, op, dtype, &buf.at, padded, &buf.at, 0);
            write_chunk(out, start, count, dtype, &buf);
        }
        if (start / TL_CANCEL_INTERVAL != (start + count) / TL_CANCEL_INTERVAL && tl_canceled(cancel))
            return;
    }
}

/* Keeps the offset of a logsumexp apart only where that is too large for an exact argument reduction. */
static tl_lse split_far_offset(tl_lse lse) {
    double logsumexp = tl_logsumexp(lse);
    if (tl_abs(logsumexp) <= TL_MAX_EXACT_REDUCTION) {
        lse.offset = 0;
        lse.log = logsumexp;
    }
    return lse;
}

void tl_softmax_by_sum(const tl_backend *backend, const tl_row *row, int is_log, const tl_row *out, int large,
                       tl_cancel *cancel) {
    tl_lse_acc state;
    tl_lse_row(backend, row, -1, &state, cancel);
    double sum = tl_lanes_sum_compensated(state.sum, state.comp);
    if (!(sum > 0 && sum - sum == 0)) {
        tl_fill(out, (double)NAN);
        return;
    }
    if (is_log) {
        tl_lse lse = split_far_offset(tl_lse_finish(&state, row->compute_dtype));
        map_op op = {1, 0, 0, lse.log, large};
        map_row(backend, row, lse.offset, &op, out, cancel);
    } else {
        const int is_double = row->compute_dtype == TL_FLOAT64;
        double exponent = (double)(state.ref_exp - (is_double ? TL_DOUBLE_KEPT_BITS : TL_FLOAT_KEPT_BITS));
        map_op op = {0, exponent, (is_double ? TL_DOUBLE_UNKEPT : TL_FLOAT_UNKEPT) / sum, 0, large};
        map_row(backend, row, state.offset, &op, out, cancel);
    }
}

void tl_add_masses(const tl_row *row, const tl_soft_target *soft, double grad_scale, double softmax_factor,
                   int64_t start, int64_t count, size_t apart, const double *logit, double *probability) {
    for (int64_t k = start; k < start + count; k++, logit += apart, probability += apart)
        *probability = grad_scale * (softmax_factor * *probability - tl_soft_target_at(soft, k)) *
                       tl_softcap_grad(row, *logit);
}

void tl_gradient(const tl_backend *backend, const tl_row *row, tl_lse lse, double grad_scale, double softmax_factor,
                 const tl_soft_target *soft, const tl_row *out, int large, tl_cancel *cancel) {
    lse = split_far_offset(lse);
    double offset = lse.offset;
    int plain = !tl_is_transformed(row) && !soft->mass && !soft->weight;
    int dtype = plain ? tl_offset_dtype(row->compute_dtype, offset) : TL_FLOAT64;
    map_op op = {0, 0, 0, 0, large};
    assert(tl_abs(lse.log) < 2 * TL_MAX_EXACT_REDUCTION);
    op.factor = tl_softmax_factor(lse.log, dtype, &op.exponent);
    if (plain) {
        op.factor = grad_scale * softmax_factor * op.factor;
        op.subtrahend = grad_scale * soft->eps_over_v;
        map_row(backend, row, offset, &op, out, cancel);
        return;
    }
    for (int64_t start = 0, count; start < row->count; start += count) {
        tl_chunk_buf buf;
        double probability[TL_CHUNK];
        tl_chunk_invalidate(&buf);
        count = row->count - start < TL_CHUNK ? row->count - start : TL_CHUNK;
        int64_t padded = tl_padded(count);
        tl_load_chunk(backend, row, start, count, -1, 0, dtype, &buf);
        for (int64_t i = 0; i < padded; i++)
            probability[i] = buf.at.f64[i] - offset;
        map_chunk(backend, &op, dtype, probability, (size_t)padded, probability, 0);
        tl_add_masses(row, soft, grad_scale, softmax_factor, start, count, 1, buf.at.f64, probability);
        memcpy(buf.at.f64, probability, (size_t)count * sizeof *probability);
        write_chunk(out, start, count, dtype, &buf);
        if (start / TL_CANCEL_INTERVAL != (start + count) / TL_CANCEL_INTERVAL && tl_canceled(cancel))
            return;
    }
}
