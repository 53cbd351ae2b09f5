#include "topk.h"

#include <assert.h>
#include <math.h>

#include "reduce.h"
#include "scalar_math.h"

/* Whether entry i of the best is worse than another: lower, or as high and of a higher class. */
static int worse(const tl_topk *best, int64_t i, double value, int64_t id) {
    return best->value[i] < value || (best->value[i] == value && best->id[i] > id);
}

static void set(tl_topk *best, int64_t i, double value, int64_t id) {
    best->value[i] = value;
    best->id[i] = id;
}

/* Puts an entry where the heap's root was. */
static void sift(tl_topk *best, int64_t count, double value, int64_t id) {
    int64_t i = 0;
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child + 1 < count && worse(best, child + 1, best->value[child], best->id[child]))
            child++;
        if (child >= count || !worse(best, child, value, id))
            break;
        set(best, i, best->value[child], best->id[child]);
        i = child;
    }
    set(best, i, value, id);
}

static void keep(tl_topk *best, double value, int64_t id) {
    assert(best->most > 0 && best->count <= best->most);
    if (best->count == best->most) {
        sift(best, best->count, value, id);
        return;
    }
    int64_t i = best->count++;
    for (; i > 0 && !worse(best, (i - 1) / 2, value, id); i = (i - 1) / 2)
        set(best, i, best->value[(i - 1) / 2], best->id[(i - 1) / 2]);
    set(best, i, value, id);
}

void tl_topk_sort(tl_topk *best) {
    for (int64_t count = best->count; count > 1; count--) {
        double value = best->value[count - 1];
        int64_t id = best->id[count - 1];
        set(best, count - 1, best->value[0], best->id[0]);
        sift(best, count - 1, value, id);
    }
    for (int64_t i = best->count; i < best->most; i++)
        set(best, i, (double)NAN, -1);
}

/* The next score above this one in its precision. */
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
                  tl_topk *best) {
    int32_t found[TL_BLOCK];
    while (start < end) {
        /* short stretches at first, for each raises the bar */
        int64_t length = start < TL_READ_MULTIPLE ? TL_READ_MULTIPLE : start,
                until = length < end - start ? start + length : end;
        double threshold = -(double)INFINITY;
        if (best->count == best->most) {
            if (!(maximum > best->value[0]))
                return;
            threshold = next_above(best->value[0], raw->compute_dtype);
        }
        int64_t count = tl_indices_ge(backend, raw, start, until, threshold, found);
        for (int64_t i = 0; i < count; i++) {
            double score = tl_load(raw->data + (start + found[i]) * raw->stride, raw->dtype);
            if (best->count < best->most || score > best->value[0])
                keep(best, score, start + found[i]);
        }
        start = until;
    }
}
