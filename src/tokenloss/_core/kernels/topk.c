#include "topk.h"

#include <assert.h>
#include <math.h>

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

static void heap_sort(tl_topk *topk) {
    for (int64_t count = topk->count; count > 1; count--) {
        double value = topk->value[count - 1];
        int64_t id = topk->id[count - 1];
        topk_put(topk, count - 1, topk->value[0], topk->id[0]);
        heap_sift(topk, count - 1, value, id);
    }
}

void tl_topk_sort(tl_topk *topk) {
    heap_sort(topk);
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

TL_INLINE float float_at(const char *x, int64_t i) {
    float value;
    memcpy(&value, x + i * (int64_t)sizeof value, sizeof value);
    return value;
}

/* Raises the maxima of lanes, a quarter of a chunk or a whole one, by a chunk. */
static void raise_lanes(float *lane, int64_t lanes, const char *x) {
    const int64_t n = TL_CHUNK / 4;
    if (lanes == n)
        for (int64_t i = 0; i < n; i++) {
            float maximum = larger(float_at(x, i + n), larger(float_at(x, i), lane[i]));
            lane[i] = larger(float_at(x, i + 3 * n), larger(float_at(x, i + 2 * n), maximum));
        }
    else
        for (int64_t i = 0; i < TL_CHUNK; i++)
            lane[i] = larger(float_at(x, i), lane[i]);
}

/* The maxima of lanes over the logits of [start, end), rounded to float. */
static void find_lanes(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, float *lane,
                       int64_t lanes) {
    tl_chunk_buf buf;
    for (int64_t i = 0; i < lanes; i++)
        lane[i] = -INFINITY;
    for (int64_t next; start < end; start = next) {
        next = end - start < TL_CHUNK ? end : start + TL_CHUNK;
        const char *x = raw->data + start * raw->stride;
        if (next - start < TL_CHUNK || !tl_can_read_in_place(raw, TL_FLOAT32, 0)) {
            tl_chunk_invalidate(&buf);
            tl_load_chunk(backend, raw, start, next - start, -1, 0, TL_FLOAT32, &buf);
            for (int64_t i = tl_padded(next - start); i < TL_CHUNK; i++)
                buf.at.f32[i] = -INFINITY;
            x = (const char *)&buf.at;
        }
        raise_lanes(lane, lanes, x);
    }
}

/* The least maximum of at least k lanes: the lanes, or pairs of them, pairs of these, ... */
static float least_lane(float *lane, int64_t lanes, int64_t k) {
    float least = INFINITY;
    for (; lanes / 2 >= k; lanes /= 2)
        for (int64_t i = 0; i < lanes / 2; i++)
            lane[i] = larger(lane[i], lane[i + lanes / 2]);
    for (int64_t i = 0; i < lanes; i++)
        least = lane[i] < least ? lane[i] : least;
    return least;
}

/* The k-th largest lane, which takes longer, and which fewer logits reach. */
static float kth_lane(const float *lane, int64_t lanes, int64_t k) {
    double values[TL_CHUNK];
    int64_t ids[TL_CHUNK];
    tl_topk best = {k, 0, values, ids, 0};
    for (int64_t i = 0; i < lanes; i++)
        heap_push(&best, (double)lane[i], i);
    return (float)values[0];
}

/* Gets the worst of the k best so far. Returns 0 if there are fewer. */
static int find_worst(const tl_topk *topk, double *worst) {
    if (topk->count < topk->most)
        return 0;
    *worst = topk->value[0];
    return 1;
}

/* A number that at least k logits of [start, end) reach, or -inf. A lane has every 128th or 512th class, so that few
 * other logits reach it in rows in any order as well as in ascending ones. */
static double reached_by(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end,
                         const tl_topk *topk) {
    float lane[TL_CHUNK];
    int64_t k = topk->most, lanes = k <= TL_CHUNK / 4 ? TL_CHUNK / 4 : TL_CHUNK;
    find_lanes(backend, raw, start, end, lane, lanes);
    int is_exact = k > 32 && topk->count < k; /* for the first block */
    float least = is_exact ? kth_lane(lane, lanes, k) : least_lane(lane, lanes, k);
    if (raw->compute_dtype == TL_FLOAT64 && least > -INFINITY) /* which may have been rounded up */
        return -next_above(-(double)least, TL_FLOAT32);
    return (double)least;
}

void tl_topk_scan(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, double maximum,
                  tl_topk *topk) {
    int32_t found[TL_BLOCK];
    double worst, least = -(double)INFINITY;
    int64_t first = start, candidates = 0;
    int is_full = find_worst(topk, &worst);
    assert(topk->most > 0);
    if (is_full && !(maximum > worst))
        return;
    /* where the block before had many, this may be an ascending row */
    if ((!is_full || topk->candidates >= topk->most) && topk->most <= TL_CHUNK && topk->most < end - start)
        least = reached_by(backend, raw, start, end, topk);
    for (int64_t next; start < end; start = next) {
        double threshold = least;
        int64_t length = start - first < TL_READ_MULTIPLE ? TL_READ_MULTIPLE : start - first;
        is_full = find_worst(topk, &worst); /* as soon as can be, since it raises the threshold */
        if (is_full && !(maximum > worst))
            break;
        if (is_full && !(worst < least))
            threshold = next_above(worst, raw->compute_dtype);
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
