/* What is written for each class of a row: softmax, log_softmax, and the gradient of the loss. Rows were folded before,
 * and are mostly still in a cache. */
#include "elementwise.h"

#include <assert.h>

#include "scalar_math.h"

/* The reference of exponentials: powers lie this far above what they become, lest small results be flushed. */
static int64_t headroom(int dtype) { return dtype == TL_FLOAT64 ? 60 : 24; }

/* exp(x - logsumexp) = exp(x) 2^-exponent times this. */
static double factor_of(double logsumexp, int dtype, int64_t *exponent) {
    double ln2 = dtype == TL_FLOAT64 ? TL_LN2 : 0x1.62e43p-1, turns = logsumexp * TL_LOG2E;
    assert(tl_abs(logsumexp) < 2 * TL_MAX_EXACT_REDUCTION);
    int64_t n = (int64_t)(turns + (turns < 0 ? -0.5 : 0.5));
    *exponent = n - headroom(dtype);
    return tl_scale(tl_exp((double)n * ln2 - logsumexp), -headroom(dtype));
}

void tl_store_at(const tl_row *out, int64_t index, double value) {
    assert(index >= 0 && index < out->count);
    tl_store((char *)(uintptr_t)out->data + index * out->stride, out->dtype, value);
}

void tl_fill(const tl_row *out, double value) {
    for (int64_t i = 0; i < out->count; i++)
        tl_store_at(out, i, value);
}

/* Copies buf that was folded as `dtype` to elements of the output from `start` on. */
static void write(const tl_row *out, int64_t start, int64_t count, int dtype, const tl_chunk_buf *buf) {
    for (int64_t i = 0; i < count; i++) {
        double value = dtype == TL_FLOAT64    ? buf->at.wide[i]
                       : dtype == TL_FLOAT32  ? (double)buf->at.single[i]
                       : dtype == TL_BFLOAT16 ? (double)tl_from_bfloat16(buf->at.half[i])
                                              : (double)tl_from_float16(buf->at.half[i]);
        tl_store_at(out, start + i, value);
    }
}

typedef struct {
    int logarithm;
    int64_t exponent;
    double factor, subtrahend;
    int large;
} change;

static void apply(const tl_backend *backend, const change *what, int dtype, const void *x, size_t count, void *out,
                  int streaming) {
    if (what->logarithm)
        backend->sub_scalar[dtype](x, count, what->subtrahend, out, streaming);
    else
        backend->exp_scaled[dtype](x, count, what->exponent, what->factor, what->subtrahend, out, streaming);
}

/* Changes each element of a row: in place where that can be, else granule by granule through buf. */
static void change_row(const tl_backend *backend, const tl_row *row, double offset, const change *what,
                       const tl_row *out, tl_cancel *cancel) {
    assert(row->count == out->count);
    int dtype = tl_offset_dtype(row->compute_dtype, offset);
    int in_place = tl_can_read_in_place(row, dtype, offset) && tl_can_read_in_place(out, dtype, 0);
    int64_t until_aligned = (int64_t)(-(uintptr_t)out->data % 64) / tl_itemsize(dtype);
    int can_align = (uintptr_t)out->data % (uintptr_t)tl_itemsize(dtype) == 0;
    int streaming = what->large && can_align && out->data != row->data;
    for (int64_t start = 0, count; start < row->count; start += count) {
        int64_t left = row->count - start;
        count = left < TL_BLOCK ? left / TL_READ_MULTIPLE * TL_READ_MULTIPLE : TL_BLOCK;
        if (streaming && start == 0 && until_aligned > 0) {
            left = left < until_aligned ? left : until_aligned;
            count = 0;
        }
        if (in_place && count > 0) {
            char *to = (char *)(uintptr_t)out->data + start * out->stride;
            apply(backend, what, dtype, row->data + start * row->stride, (size_t)count, to, streaming);
        } else {
            tl_chunk_buf buf;
            tl_chunk_invalidate(&buf);
            count = left < TL_CHUNK ? left : TL_CHUNK;
            tl_load_chunk(backend, row, start, count, -1, offset, dtype, &buf);
            size_t padded = (size_t)(count + TL_READ_MULTIPLE - 1) / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
            apply(backend, what, dtype, &buf.at, padded, &buf.at, 0);
            write(out, start, count, dtype, &buf);
        }
        if (start / TL_CANCEL_INTERVAL != (start + count) / TL_CANCEL_INTERVAL && tl_cancelled(cancel))
            return;
    }
}

/* Far out, rows are changed less an offset, as they are folded. */
static tl_lse moved(tl_lse lse) {
    double logsumexp = tl_logsumexp(lse);
    if (tl_abs(logsumexp) <= TL_MAX_EXACT_REDUCTION) {
        lse.offset = 0;
        lse.log = logsumexp;
    }
    return lse;
}

void tl_log_softmax(const tl_backend *backend, const tl_row *row, tl_lse lse, const tl_row *out, int large,
                    tl_cancel *cancel) {
    lse = moved(lse);
    change what = {1, 0, 0, lse.log, large};
    change_row(backend, row, lse.offset, &what, out, cancel);
}

void tl_softmax(const tl_backend *backend, const tl_row *row, tl_lse lse, const tl_row *out, int large,
                tl_cancel *cancel) {
    tl_soft_target none = {NULL, 0, 0, NULL, 0, 0, 0, 0};
    tl_gradient(backend, row, lse, 1, 1, &none, out, large, cancel);
}

double tl_softcap_grad(const tl_row *row, double score) {
    if (row->softcap == 0)
        return row->logit_scale;
    double tanh = score / row->softcap;
    return row->logit_scale * (1 - tanh) * (1 + tanh);
}

void tl_gradient(const tl_backend *backend, const tl_row *row, tl_lse lse, double factor, double of_softmax,
                 const tl_soft_target *soft, const tl_row *out, int large, tl_cancel *cancel) {
    lse = moved(lse);
    double offset = lse.offset;
    int plain = !tl_is_scaled_or_capped(row) && !soft->mass && !soft->weight;
    int dtype = plain ? tl_offset_dtype(row->compute_dtype, offset) : TL_FLOAT64;
    change what = {0, 0, 0, 0, large};
    double per_exp = factor_of(lse.log, dtype, &what.exponent);
    if (plain) {
        what.factor = factor * of_softmax * per_exp;
        what.subtrahend = factor * soft->eps_over_v;
        change_row(backend, row, offset, &what, out, cancel);
        return;
    }
    for (int64_t start = 0, count; start < row->count; start += count) {
        tl_chunk_buf buf;
        double probability[TL_CHUNK];
        tl_chunk_invalidate(&buf);
        count = row->count - start < TL_CHUNK ? row->count - start : TL_CHUNK;
        int64_t padded = (count + TL_READ_MULTIPLE - 1) / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
        tl_load_chunk(backend, row, start, count, -1, 0, dtype, &buf);
        for (int64_t i = 0; i < padded; i++)
            probability[i] = buf.at.wide[i] - offset;
        backend->exp_scaled[dtype](probability, (size_t)padded, what.exponent, per_exp, 0, probability, 0);
        for (int64_t i = 0; i < count; i++) {
            double share = of_softmax * probability[i] - tl_soft_target_at(soft, start + i);
            buf.at.wide[i] = factor * share * tl_softcap_grad(row, buf.at.wide[i]);
        }
        write(out, start, count, dtype, &buf);
        if (start / TL_CANCEL_INTERVAL != (start + count) / TL_CANCEL_INTERVAL && tl_cancelled(cancel))
            return;
    }
}
