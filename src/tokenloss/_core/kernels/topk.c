#include "topk.h"

#include "reduce.h"
#include "scalar_math.h"

static void topk_put(tl_topk *topk, int64_t i, double value, int64_t id) {
    topk->value[i] = value;
    topk->id[i] = id;
}

/* Whether entry i of a heap ranks below another. */
static int heap_less(const tl_topk *topk, int64_t i, double value, int64_t id) {
    return topk->value[i] < value || (topk->value[i] == value && topk->id[i] > id);
}

/* Puts an entry in place of the root and restores the heap. */
static void heap_sift(tl_topk *topk, int64_t count, double value, int64_t id) {
    int64_t i = 0;
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child + 1 < count && heap_less(topk, child + 1, topk->value[child], topk->id[child]))
            child++;
        if (child >= count || !heap_less(topk, child, value, id))
            break;
        topk_put(topk, i, topk->value[child], topk->id[child]);
        i = child;
    }
    topk_put(topk, i, value, id);
}

static void heap_push(tl_topk *topk, double value, int64_t id) {
    if (topk->count == topk->most) {
        if (value > topk->value[0])
            heap_sift(topk, topk->count, value, id);
        return;
    }
    int64_t i = topk->count++;
    for (; i > 0 && !heap_less(topk, (i - 1) / 2, value, id); i = (i - 1) / 2)
        topk_put(topk, i, topk->value[(i - 1) / 2], topk->id[(i - 1) / 2]);
    topk_put(topk, i, value, id);
}

void tl_topk_sort(tl_topk *topk) {
    for (int64_t count = topk->count; count > 1; count--) {
        double value = topk->value[count - 1];
        int64_t id = topk->id[count - 1];
        topk_put(topk, count - 1, topk->value[0], topk->id[0]);
        heap_sift(topk, count - 1, value, id);
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

/* The larger one; `other` if x is nan. */
TL_INLINE float larger(float x, float other) { return x > other ? x : other; }

/* A number above `worst` that at least k logits of [start, end) reach, rounded to float, or -inf: the k-th largest of the
 * maxima of lanes, of every 512th class (256th ... for small k). Few other logits reach it in shuffled or ascending rows. */
static double reached_by(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, int64_t k,
                         double worst) {
    float lane[TL_CHUNK];
    double values[TL_CHUNK];
    int64_t ids[TL_CHUNK], lanes = TL_CHUNK;
    tl_topk best = {k, 0, values, ids, 0};
    tl_chunk_buf buf;
    for (int64_t i = 0; i < TL_CHUNK; i++)
        lane[i] = -INFINITY;
    for (int64_t next; start < end; start = next) {
        next = end - start < TL_CHUNK ? end : start + TL_CHUNK;
        tl_chunk_invalidate(&buf);
        tl_load_chunk(backend, raw, start, next - start, -1, 0, TL_FLOAT32, &buf);
        for (int64_t i = 0; i < tl_padded(next - start); i++)
            lane[i] = larger(buf.at.f32[i], lane[i]);
    }
    for (; lanes / 2 >= 2 * k; lanes /= 2)
        for (int64_t i = 0; i < lanes / 2; i++)
            lane[i] = larger(lane[i], lane[i + lanes / 2]);
    for (int64_t i = lanes; i-- > 0;) /* of an ascending row, only k lanes are pushed */
        if ((double)lane[i] > worst)
            heap_push(&best, (double)lane[i], i);
    if (best.count < k)
        return -(double)INFINITY;
    return raw->compute_dtype == TL_FLOAT64 ? -next_above(-values[0], TL_FLOAT32) : values[0]; /* it may be rounded up */
}

void tl_topk_scan(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, double maximum,
                  tl_topk *topk) {
    int32_t found[TL_BLOCK];
    const double *worst = topk->value; /* of the k best so far, if there are as many */
    double least = -(double)INFINITY;
    int64_t first = start, candidates = 0;
    int is_full = topk->count == topk->most;
    assert(topk->most > 0);
    if (is_full && !(maximum > *worst))
        return;
    /* where the block before had many, this may be an ascending row */
    if ((!is_full || topk->candidates >= topk->most) && topk->most <= TL_CHUNK && topk->most < end - start)
        least = reached_by(backend, raw, start, end, topk->most, is_full ? *worst : least);
    for (int64_t next; start < end; start = next) {
        double threshold = least;
        int64_t length = start - first < TL_READ_MULTIPLE ? TL_READ_MULTIPLE : start - first;
        is_full = topk->count == topk->most; /* as soon as can be, since it raises the threshold */
        if (is_full && !(maximum > *worst))
            break;
        if (is_full && !(*worst < least))
            threshold = next_above(*worst, raw->compute_dtype);
        next = is_full || end - start < length ? end : start + length;
        int64_t count = tl_indices_ge(backend, raw, start, next, threshold, found);
        for (int64_t i = 0; i < count; i++) {
            int64_t id = start + found[i];
            heap_push(topk, tl_load(raw->data + id * raw->stride, raw->dtype), id);
        }
        candidates += count;
    }
    topk->candidates = candidates;
}
