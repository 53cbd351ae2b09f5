#include "topk.h"

#include <assert.h>
#include <math.h>

#include "reduce.h"
#include "scalar_math.h"

/* Whether entry i ranks below another: a lower value, or an equal one of a higher class. */
static int topk_less(const tl_topk *topk, int64_t i, double value, int64_t id) {
    return topk->value[i] < value || (topk->value[i] == value && topk->id[i] > id);
}

static void topk_put(tl_topk *topk, int64_t i, double value, int64_t id) {
    topk->value[i] = value;
    topk->id[i] = id;
}

/* Puts an entry in place of the root and restores the heap. */
static void topk_sift(tl_topk *topk, int64_t count, double value, int64_t id) {
    int64_t i = 0;
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child + 1 < count && topk_less(topk, child + 1, topk->value[child], topk->id[child]))
            child++;
        if (child >= count || !topk_less(topk, child, value, id))
            break;
        topk_put(topk, i, topk->value[child], topk->id[child]);
        i = child;
    }
    topk_put(topk, i, value, id);
}

static void topk_push(tl_topk *topk, double value, int64_t id) {
    assert(topk->most > 0 && topk->count <= topk->most);
    if (topk->count == topk->most) {
        topk_sift(topk, topk->count, value, id);
        return;
    }
    int64_t i = topk->count++;
    for (; i > 0 && !topk_less(topk, (i - 1) / 2, value, id); i = (i - 1) / 2)
        topk_put(topk, i, topk->value[(i - 1) / 2], topk->id[(i - 1) / 2]);
    topk_put(topk, i, value, id);
}

void tl_topk_sort(tl_topk *topk) {
    for (int64_t count = topk->count; count > 1; count--) {
        double value = topk->value[count - 1];
        int64_t id = topk->id[count - 1];
        topk_put(topk, count - 1, topk->value[0], topk->id[0]);
        topk_sift(topk, count - 1, value, id);
    }
    for (int64_t i = topk->count; i < topk->most; i++)
        topk_put(topk, i, (double)NAN, -1);
}

/* The next larger number in this dtype. */
static double next_above(double value, int dtype) {
    if (dtype == TL_FLOAT64) {
        uint64_t bits = tl_to_bits(value == 0 ? 0 : value);
        return tl_from_bits(value < 0 ? bits - 1 : bits + 1);
    }
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    return (double)(value == 0 ? 0x1p-149f : tl_float_from_bits(value < 0 ? bits - 1 : bits + 1));
}

void tl_topk_scan(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, double maximum,
                  tl_topk *topk) {
    int32_t found[TL_BLOCK];
    while (start < end) {
        /* short runs at first, since each raises the threshold */
        int64_t length = start < TL_READ_MULTIPLE ? TL_READ_MULTIPLE : start,
                until = length < end - start ? start + length : end;
        double threshold = -(double)INFINITY;
        if (topk->count == topk->most) {
            if (!(maximum > topk->value[0]))
                return;
            threshold = next_above(topk->value[0], raw->compute_dtype);
        }
        int64_t count = tl_indices_ge(backend, raw, start, until, threshold, found);
        for (int64_t i = 0; i < count; i++) {
            double raw_logit = tl_load(raw->data + (start + found[i]) * raw->stride, raw->dtype);
            if (topk->count < topk->most || raw_logit > topk->value[0])
                topk_push(topk, raw_logit, start + found[i]);
        }
        start = until;
    }
}
