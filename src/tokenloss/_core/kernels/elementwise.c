/* Softmax, log_softmax and the gradient of the loss. The rows were reduced before and are mostly still in a cache. */
#include "elementwise.h"

#include <assert.h>

#include "scalar_math.h"

/* The factor of exp(x) 2^-exponent in exp(x - logsumexp). */
static double factor_of(double logsumexp, int dtype, double *exponent) {
    double ln2 = dtype == TL_FLOAT64 ? TL_LN2 : TL_FLOAT_LN2, log2_value = logsumexp * TL_LOG2E;
    assert(tl_abs(logsumexp) < 2 * TL_MAX_EXACT_REDUCTION);
    int64_t n = (int64_t)(log2_value + (log2_value < 0 ? -0.5 : 0.5));
    *exponent = (double)(n - tl_kept_bits(dtype));
    double log = (double)n * ln2 - logsumexp;
    return tl_scale(tl_exp(dtype == TL_FLOAT64 ? log : log + TL_FLOAT_TERM_BIAS), -tl_kept_bits(dtype));
}

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
static void write_chunk(const tl_row *out, int64_t start, int64_t count, int dtype, const tl_chunk_buf *buf) {
    ptrdiff_t size = tl_itemsize(dtype);
    if (out->dtype == dtype && out->stride == size) {
        memcpy((char *)(uintptr_t)out->data + start * size, &buf->at, (size_t)(count * size));
        return;
    }
    if (dtype == TL_FLOAT64 && out->dtype == TL_FLOAT32) {
        for (int64_t i = 0; i < count; i++) {
            float rounded = (float)buf->at.f64[i];
            memcpy((char *)(uintptr_t)out->data + (start + i) * out->stride, &rounded, sizeof rounded);
        }
        return;
    }
    for (int64_t i = 0; i < count; i++)
        tl_store_at(out, start + i, tl_load((const char *)&buf->at + i * size, dtype));
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
    if (op->logarithm)
        backend->sub_row[dtype](from, count, op->subtrahend, to, streaming);
    else
        backend->exp_scaled_rows[dtype](&from, 1, count, &op->exponent, &op->factor, &op->subtrahend, &to, streaming);
}

/* Maps each element of a row: in place where possible, else chunk by chunk. */
static void map_row(const tl_backend *backend, const tl_row *row, double offset, const map_op *op, const tl_row *out,
                    tl_cancel *cancel) {
    assert(row->count == out->count);
    int dtype = tl_offset_dtype(row->compute_dtype, offset);
    int in_place = tl_can_read_in_place(row, dtype, offset) && tl_can_read_in_place(out, dtype, 0);
    for (int64_t start = 0, count; start < row->count; start += count) {
        int64_t left = row->count - start;
        count = left < TL_BLOCK ? left / TL_READ_MULTIPLE * TL_READ_MULTIPLE : TL_BLOCK;
        if (start == 0 && left > TL_BLOCK) /* later blocks write whole cache lines */
            count -= (int64_t)((uintptr_t)out->data % 64) / tl_itemsize(dtype);
        if (in_place && count > 0) {
            char *to = (char *)(uintptr_t)out->data + start * out->stride;
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
        if (start / TL_CANCEL_INTERVAL != (start + count) / TL_CANCEL_INTERVAL && tl_cancelled(cancel))
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

/* The sum that divides a softmax: of the rounded exponentials themselves, unless the row is longer than TL_MAX_KEPT. */
static double softmax_sum(const tl_backend *backend, const tl_row *row, tl_lse_acc *state, tl_cancel *cancel) {
    tl_chunk_buf buf;
    if (row->count > TL_MAX_KEPT) {
        tl_lse_row(backend, row, -1, state, cancel);
        return tl_lanes_sum_compensated(state->sum, state->comp);
    }
    tl_chunk_invalidate(&buf);
    if (!tl_lse_begin(tl_maximum_between(backend, row, 0, row->count, -1, &buf), row->compute_dtype, NULL, state))
        return (double)NAN;
    tl_reduce_range(backend, TL_REDUCE_SOFTMAX, row, 0, row->count, -1, state, &buf);
    for (int l = 0; l < 16; l++)
        state->sum[l] += state->comp[l];
    return tl_scale(tl_lanes_sum_fast(state->sum), -tl_kept_bits(row->compute_dtype));
}

void tl_softmax(const tl_backend *backend, const tl_row *row, int is_log, const tl_row *out, int large,
                tl_cancel *cancel) {
    tl_lse_acc state;
    double sum = softmax_sum(backend, row, &state, cancel);
    if (!(sum > 0 && sum - sum == 0)) {
        tl_fill(out, (double)NAN);
        return;
    }
    if (is_log) {
        double ref_exp = (double)state.ref_exp;
        if (row->count <= TL_MAX_KEPT)
            tl_normalize_sum(&sum, &ref_exp);
        tl_lse lse = {state.offset, tl_log_of_sum(sum, ref_exp, row->compute_dtype)};
        lse = split_far_offset(lse);
        map_op op = {1, 0, 0, lse.log, large};
        map_row(backend, row, lse.offset, &op, out, cancel);
    } else {
        double exponent = (double)(state.ref_exp - tl_kept_bits(row->compute_dtype));
        map_op op = {0, exponent, tl_softmax_factor_of(sum, row->compute_dtype), 0, large};
        map_row(backend, row, state.offset, &op, out, cancel);
    }
}

void tl_gradient(const tl_backend *backend, const tl_row *row, tl_lse lse, double grad_scale, double softmax_factor,
                 const tl_soft_target *soft, const tl_row *out, int large, tl_cancel *cancel) {
    lse = split_far_offset(lse);
    double offset = lse.offset;
    int is_uniform = !soft->mass && !soft->weight, plain = !tl_is_transformed(row) && is_uniform;
    int dtype = plain ? tl_offset_dtype(row->compute_dtype, offset) : TL_FLOAT64;
    map_op op = {0, 0, 0, 0, large};
    op.factor = factor_of(lse.log, dtype, &op.exponent);
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
        double mass[TL_CHUNK];
        for (int64_t i = 0; i < count; i++)
            mass[i] = is_uniform ? soft->eps_over_v : tl_soft_target_at(soft, start + i);
        for (int64_t i = 0; i < count; i++) {
            double softcap_grad = tl_softcap_grad(row, buf.at.f64[i]);
            buf.at.f64[i] = tl_gradient_of_class(grad_scale, softmax_factor, probability[i], mass[i], softcap_grad);
        }
        write_chunk(out, start, count, dtype, &buf);
        if (start / TL_CANCEL_INTERVAL != (start + count) / TL_CANCEL_INTERVAL && tl_cancelled(cancel))
            return;
    }
}
