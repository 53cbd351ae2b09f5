/* What is written for each class of a row: softmax, log_softmax, and the gradient of the loss. Rows were folded before,
 * and are mostly still in a cache. */
#include "scalar_math.h"
#include "walk.h"

/* The reference of exponentials: powers lie this far above what they become, lest small results be flushed. */
static int64_t headroom(int dtype) { return dtype == TL_FLOAT64 ? 60 : 24; }

/* exp(x - logsumexp) = exp(x) 2^-exponent times this. */
static double factor_of(double logsumexp, int dtype, int64_t *exponent) {
    double ln2 = dtype == TL_FLOAT64 ? TL_LN2 : 0x1.62e43p-1, turns = logsumexp * TL_LOG2E;
    assert(tl_abs(logsumexp) < 2 * TL_FAR_OUT);
    int64_t n = (int64_t)(turns + (turns < 0 ? -0.5 : 0.5));
    *exponent = n - headroom(dtype);
    return tl_scale(tl_exp((double)n * ln2 - logsumexp), -headroom(dtype));
}

void tl_put(const tl_row *out, int64_t index, double value) {
    assert(index >= 0 && index < out->count);
    tl_store((char *)(uintptr_t)out->data + index * out->stride, out->dtype, value);
}

void tl_fill(const tl_row *out, double value) {
    for (int64_t i = 0; i < out->count; i++)
        tl_put(out, i, value);
}

/* Copies scratch that was folded as `dtype` to elements of the output from `start` on. */
static void write(const tl_row *out, int64_t start, int64_t count, int dtype, const tl_scratch *scratch) {
    for (int64_t i = 0; i < count; i++) {
        double value = dtype == TL_FLOAT64    ? scratch->at.wide[i]
                       : dtype == TL_FLOAT32  ? (double)scratch->at.single[i]
                       : dtype == TL_BFLOAT16 ? (double)tl_from_bfloat16(scratch->at.half[i])
                                              : (double)tl_from_float16(scratch->at.half[i]);
        tl_put(out, start + i, value);
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
        backend->less[dtype](x, count, what->subtrahend, out, streaming);
    else
        backend->exps[dtype](x, count, what->exponent, what->factor, what->subtrahend, out, streaming);
}

/* Changes each element of a row: in place where that can be, else granule by granule through scratch. */
static void change_row(const tl_backend *backend, const tl_row *row, double offset, const change *what,
                       const tl_row *out, tl_patience *patience) {
    assert(row->count == out->count);
    int dtype = tl_offset_dtype(row->folded, offset);
    int in_place = tl_in_place(row, dtype, offset) && tl_in_place(out, dtype, 0);
    int64_t until_aligned = (int64_t)(-(uintptr_t)out->data % 64) / tl_itemsize(dtype);
    int can_align = (uintptr_t)out->data % (uintptr_t)tl_itemsize(dtype) == 0;
    int streaming = what->large && can_align && out->data != row->data;
    for (int64_t start = 0, count; start < row->count; start += count) {
        int64_t left = row->count - start;
        count = left < TL_BLOCK ? left / TL_PADDED * TL_PADDED : TL_BLOCK;
        if (streaming && start == 0 && until_aligned > 0) {
            left = left < until_aligned ? left : until_aligned;
            count = 0;
        }
        if (in_place && count > 0) {
            char *to = (char *)(uintptr_t)out->data + start * out->stride;
            apply(backend, what, dtype, row->data + start * row->stride, (size_t)count, to, streaming);
        } else {
            tl_scratch scratch;
            tl_clear(&scratch);
            count = left < TL_GRANULE ? left : TL_GRANULE;
            tl_gather(backend, row, start, count, -1, offset, dtype, &scratch);
            size_t padded = (size_t)(count + TL_PADDED - 1) / TL_PADDED * TL_PADDED;
            apply(backend, what, dtype, &scratch.at, padded, &scratch.at, 0);
            write(out, start, count, dtype, &scratch);
        }
        if (start / TL_PAUSE != (start + count) / TL_PAUSE && tl_gave_up(patience))
            return;
    }
}

/* Far out, rows are changed less an offset, as they are folded. */
static tl_normalizer moved(tl_normalizer normalizer) {
    double logsumexp = tl_logsumexp(normalizer);
    if (tl_abs(logsumexp) <= TL_FAR_OUT) {
        normalizer.offset = 0;
        normalizer.log = logsumexp;
    }
    return normalizer;
}

void tl_log_softmax(const tl_backend *backend, const tl_row *row, tl_normalizer normalizer, const tl_row *out,
                    int large, tl_patience *patience) {
    normalizer = moved(normalizer);
    change what = {1, 0, 0, normalizer.log, large};
    change_row(backend, row, normalizer.offset, &what, out, patience);
}

void tl_softmax(const tl_backend *backend, const tl_row *row, tl_normalizer normalizer, const tl_row *out,
                int large, tl_patience *patience) {
    tl_shares none = {NULL, 0, 0, NULL, 0, 0, 0, 0};
    tl_gradient(backend, row, normalizer, 1, 1, &none, out, large, patience);
}

double tl_slope(const tl_row *row, double score) {
    if (row->cap == 0)
        return row->scale;
    double tanh = score / row->cap;
    return row->scale * (1 - tanh) * (1 + tanh);
}

void tl_gradient(const tl_backend *backend, const tl_row *row, tl_normalizer normalizer, double factor, double of_softmax,
                 const tl_shares *shares, const tl_row *out, int large, tl_patience *patience) {
    normalizer = moved(normalizer);
    double offset = normalizer.offset;
    int plain = !tl_squashed(row) && !shares->share && !shares->weight;
    int dtype = plain ? tl_offset_dtype(row->folded, offset) : TL_FLOAT64;
    change what = {0, 0, 0, 0, large};
    double per_exp = factor_of(normalizer.log, dtype, &what.exponent);
    if (plain) {
        what.factor = factor * of_softmax * per_exp;
        what.subtrahend = factor * shares->uniform;
        change_row(backend, row, offset, &what, out, patience);
        return;
    }
    for (int64_t start = 0, count; start < row->count; start += count) {
        tl_scratch scratch;
        double probability[TL_GRANULE];
        tl_clear(&scratch);
        count = row->count - start < TL_GRANULE ? row->count - start : TL_GRANULE;
        int64_t padded = (count + TL_PADDED - 1) / TL_PADDED * TL_PADDED;
        tl_gather(backend, row, start, count, -1, 0, dtype, &scratch);
        for (int64_t i = 0; i < padded; i++)
            probability[i] = scratch.at.wide[i] - offset;
        backend->exps[dtype](probability, (size_t)padded, what.exponent, per_exp, 0, probability, 0);
        for (int64_t i = 0; i < count; i++) {
            double share = of_softmax * probability[i] - tl_share_of(shares, start + i);
            scratch.at.wide[i] = factor * share * tl_slope(row, scratch.at.wide[i]);
        }
        write(out, start, count, dtype, &scratch);
        if (start / TL_PAUSE != (start + count) / TL_PAUSE && tl_gave_up(patience))
            return;
    }
}
