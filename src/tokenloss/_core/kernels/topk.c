#include "topk.h"

#include <assert.h>
#include <math.h>

#include "reduce.h"
#include "scalar_math.h"

/* Entries are a heap whose root is the worst, or pairs of 8 bytes. The arrays of values and ids have room for 2k pairs,
 * and k of them are selected whenever there are 2k: a candidate takes the same time for any k. A heap is faster where k
 * is a small part of the classes, since thresholds leave few candidates then, and it holds doubles. */
typedef enum { HEAP, PAIRS } topk_form;

static topk_form form_of(const tl_row *row, const tl_topk *topk) {
    int is_large = topk->most > TL_CHUNK || (topk->most > 64 && topk->most > row->count / 8);
    return is_large && (row->dtype & ~TL_SWAPPED) != TL_FLOAT64 && row->count <= UINT32_MAX ? PAIRS : HEAP;
}

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

/* A pair is the bits of a float above an id of 32 bits. */
TL_INLINE uint64_t pair_of(float value, int64_t id) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint64_t)bits << 32 | (uint32_t)id;
}

TL_INLINE float value_of(uint64_t pair) { return tl_float_from_bits((uint32_t)(pair >> 32)); }

TL_INLINE uint64_t load_pair(const void *pairs, int64_t i) {
    uint64_t pair;
    memcpy(&pair, (const char *)pairs + i * (int64_t)sizeof pair, sizeof pair);
    return pair;
}

TL_INLINE void store_pair(void *pairs, int64_t i, uint64_t pair) {
    memcpy((char *)pairs + i * (int64_t)sizeof pair, &pair, sizeof pair);
}

/* An integer that is larger for larger values, and the same for zeros of both signs. */
TL_INLINE uint32_t order_of(uint64_t pair) {
    uint32_t bits = (uint32_t)(pair >> 32);
    return bits >> 31 ? 0 - bits : bits | 0x80000000u;
}

TL_INLINE float value_of_order(uint32_t order) {
    return tl_float_from_bits(order >> 31 ? order ^ 0x80000000u : 0 - order);
}

/* Two arrays of pairs. */
typedef struct {
    const void *at[2];
    int64_t count[2];
} pair_lists;

/* Digits of a radix selection among many pairs, whose counts fit in the first cache, and among few. */
#define DIGIT_BITS 9
#define FEW_DIGIT_BITS 6
#define FEW TL_CHUNK

/* Counts the digits at `shift`, below `limit`, of those orders whose higher digits are those of `prefix`. */
static void count_digits(const pair_lists *lists, uint32_t prefix, int shift, uint32_t limit, int64_t *counts) {
    int64_t odd[1 << DIGIT_BITS]; /* neighbours often have the same digit, and would wait for each other */
    memset(counts, 0, limit * sizeof *counts);
    memset(odd, 0, limit * sizeof *odd);
    for (int l = 0; l < 2; l++)
        for (int64_t i = 0; i < lists->count[l]; i++) {
            uint32_t digit = (order_of(load_pair(lists->at[l], i)) ^ prefix) >> shift;
            if (digit < limit)
                (i % 2 ? odd : counts)[digit]++;
        }
    for (uint32_t i = 0; i < limit; i++)
        counts[i] += odd[i];
}

/* Copies the pairs whose orders are those of `prefix` down to `shift`, which are few: the lists are then these. */
static void gather(pair_lists *lists, uint32_t prefix, int shift, uint64_t *few) {
    int64_t count = 0;
    for (int l = 0; l < 2; l++)
        for (int64_t i = 0; i < lists->count[l]; i++) {
            uint64_t pair = load_pair(lists->at[l], i);
            if ((order_of(pair) ^ prefix) >> shift == 0)
                few[count++] = pair;
        }
    *lists = (pair_lists){{few, few}, {count, 0}};
}

/* The order of the k-th largest pair, found digit by digit, and how many equals of it are among the k largest. */
static uint32_t find_kth(pair_lists lists, int64_t k, int64_t *equals) {
    uint64_t few[FEW];
    uint32_t order = order_of(load_pair(lists.at[0], 0)), spread = 0;
    int above = 0;
    assert(k > 0 && lists.count[0] > 0 && k <= lists.count[0] + lists.count[1]);
    for (int l = 0; l < 2; l++)
        for (int64_t i = 0; i < lists.count[l]; i++)
            spread |= order_of(load_pair(lists.at[l], i)) ^ order;
    while (above < 32 && spread >> above != 0)
        above++;
    uint32_t prefix = above < 32 ? order >> above << above : 0;
    while (above > 0) {
        int64_t counts[1 << DIGIT_BITS], all = lists.count[0] + lists.count[1];
        int bits = all > FEW ? DIGIT_BITS : FEW_DIGIT_BITS, shift = above > bits ? above - bits : 0;
        uint32_t limit = (uint32_t)1 << (above - shift), digit = limit - 1;
        count_digits(&lists, prefix, shift, limit, counts);
        for (; counts[digit] < k; digit--)
            k -= counts[digit];
        prefix |= digit << shift;
        if (all > FEW && counts[digit] <= FEW)
            gather(&lists, prefix, shift, few);
        above = shift;
    }
    *equals = k;
    return prefix;
}

/* Keeps the k best pairs: the worst of them last, the others in the order of ids, as all of them came. */
static void pairs_select(tl_topk *topk) {
    int64_t most = topk->most, kept = 0, equals;
    pair_lists lists = {{topk->value, topk->id}, {most, topk->count - most}};
    uint32_t order = find_kth(lists, most, &equals);
    uint64_t worst = 0;
    void *out = topk->value;
    for (int l = 0; l < 2; l++)
        for (int64_t i = 0; i < lists.count[l]; i++) {
            uint64_t pair = load_pair(lists.at[l], i);
            uint32_t here = order_of(pair);
            equals -= here == order;
            if (here == order && equals == 0)
                worst = pair;
            store_pair(out, kept, pair); /* fewer than k precede the worst, so that there is a place */
            kept += (here > order) | ((here == order) & (equals > 0));
        }
    assert(kept == most - 1);
    store_pair(out, kept, worst);
    topk->count = most;
}

/* Gets the worst of the k best so far. Returns 0 if that is not known: there are fewer than k entries, or they are
 * pairs of a row that all have room, from which the best are selected at the end. */
static int find_worst(const tl_row *row, const tl_topk *topk, topk_form form, double *worst) {
    if (topk->count < topk->most || (form == PAIRS && row->count <= 2 * topk->most))
        return 0;
    *worst = form == PAIRS ? (double)value_of(load_pair(topk->value, topk->most - 1)) : topk->value[0];
    return 1;
}

static void pairs_add(const tl_row *row, tl_topk *topk, double value, int64_t id) {
    int64_t most = topk->most, i = topk->count;
    double worst;
    if (find_worst(row, topk, PAIRS, &worst) && !(value > worst))
        return;
    store_pair(i < most ? (void *)topk->value : (void *)topk->id, i < most ? i : i - most, pair_of((float)value, id));
    topk->count++;
    if (row->count > 2 * most && (topk->count == most || topk->count == 2 * most))
        pairs_select(topk);
}

/* Sorts pairs by a stable radix sort from one array to the other, since equal ones are in the order of ids. Makes
 * values and ids of them. */
static void pairs_sort(tl_topk *topk) {
    int64_t starts[4][256] = {{0}};
    if (topk->count > topk->most)
        pairs_select(topk);
    int64_t count = topk->count;
    void *from = topk->value, *to = topk->id;
    for (int64_t i = 0; i < count; i++) {
        uint32_t order = ~order_of(load_pair(from, i));
        for (int d = 0; d < 4; d++)
            starts[d][order >> 8 * d & 255]++;
    }
    for (int d = 0; d < 4; d++) {
        int64_t sum = 0, largest = 0;
        for (int i = 0; i < 256; i++) {
            int64_t here = starts[d][i];
            largest = here > largest ? here : largest;
            starts[d][i] = sum;
            sum += here;
        }
        if (largest == count)
            continue;
        for (int64_t i = 0; i < count; i++) {
            uint64_t pair = load_pair(from, i);
            store_pair(to, starts[d][~order_of(pair) >> 8 * d & 255]++, pair);
        }
        void *other = from;
        from = to;
        to = other;
    }
    for (int64_t i = 0; i < count; i++) {
        uint64_t pair = load_pair(from, i);
        topk_put(topk, i, (double)value_of(pair), (int64_t)(uint32_t)pair);
    }
}

void tl_topk_sort(const tl_row *row, tl_topk *topk) {
    if (form_of(row, topk) == PAIRS)
        pairs_sort(topk);
    else
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
    uint64_t pairs[TL_CHUNK];
    int64_t equals;
    for (int64_t i = 0; i < lanes; i++)
        pairs[i] = pair_of(lane[i], 0);
    return value_of_order(find_kth((pair_lists){{pairs, pairs}, {lanes, 0}}, k, &equals));
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
    topk_form form = form_of(raw, topk);
    double worst, least = -(double)INFINITY;
    int64_t first = start, candidates = 0;
    int is_full = find_worst(raw, topk, form, &worst);
    assert(topk->most > 0);
    if (is_full && !(maximum > worst))
        return;
    /* where the block before had many, this may be an ascending row */
    if ((!is_full || topk->candidates >= topk->most) && topk->most <= TL_CHUNK && topk->most < end - start)
        least = reached_by(backend, raw, start, end, topk);
    for (int64_t next; start < end; start = next) {
        double threshold = least;
        int64_t length = start - first < TL_READ_MULTIPLE ? TL_READ_MULTIPLE : start - first;
        is_full = find_worst(raw, topk, form, &worst); /* as soon as can be, since it raises the threshold */
        if (is_full && !(maximum > worst))
            break;
        if (is_full && !(worst < least))
            threshold = next_above(worst, raw->compute_dtype);
        next = is_full || end - start < length ? end : start + length;
        int64_t count = tl_indices_ge(backend, raw, start, next, threshold, found);
        for (int64_t i = 0; i < count; i++) {
            int64_t id = start + found[i];
            double raw_logit = tl_load(raw->data + id * raw->stride, raw->dtype);
            if (form == PAIRS)
                pairs_add(raw, topk, raw_logit, id);
            else
                heap_push(topk, raw_logit, id);
        }
        candidates += count;
    }
    topk->candidates = candidates;
}
