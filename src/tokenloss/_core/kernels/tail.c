#include "tail.h"

#include "logsumexp.h"

#define LEAST_TOTAL 0x1p-40 /* of the terms relative to the maximum: below, the guess of the maximum was too high */
#define GROUP 32 /* sizes of classes that are added before a draw looks at each of them */
#define LOWEST (-0x1.fffffep127) /* the lowest finite logit of float32 */

/* The end of the chunk that starts at `start`, in a part that ends at `end`. */
static int64_t chunk_end(int64_t start, int64_t end) { return end - start < TL_CHUNK ? end : start + TL_CHUNK; }

/* Loads the chunk [start, end) with -inf in place of the excluded classes; those before `*next` are below.
 * Returns whether there are some. */
static int load_tail(const tl_backend *backend, const tl_row *row, const tl_tail *tail, int64_t start, int64_t end,
                     double offset, int dtype, int64_t *next, tl_chunk_buf *buf) {
    int64_t i = *next;
    while (i < tail->count && tail->excluded[i] < start)
        i++;
    *next = i;
    int is_cut = i < tail->count && tail->excluded[i] < end;
    if (!is_cut && end - start == TL_CHUNK && tl_can_read_in_place(row, dtype, offset))
        return 0;
    tl_load_chunk(backend, row, start, end - start, -1, offset, dtype, buf);
    for (; i < tail->count && tail->excluded[i] < end; i++)
        tl_store((char *)&buf->at + (tail->excluded[i] - start) * tl_itemsize(dtype), dtype, -(double)INFINITY);
    return is_cut;
}

/* Adds the chunk [start, end) to an accumulator. */
static void add_chunk(const tl_backend *backend, tl_reduce_kind kind, const tl_row *row, const tl_tail *tail,
                      int64_t start, int64_t end, int64_t *next, tl_lse_acc *state, tl_chunk_buf *buf) {
    int dtype = tl_offset_dtype(row->compute_dtype, state->offset);
    const void *x = row->data + start * row->stride;
    int is_cut = load_tail(backend, row, tail, start, end, state->offset, dtype, next, buf);
    state->is_padded = is_cut || end - start < TL_CHUNK;
    if (state->is_padded || !tl_can_read_in_place(row, dtype, state->offset))
        x = &buf->at;
    backend->reduce[kind][dtype](x, (size_t)(end - start), state);
}

/* Sums the parts relative to a reference, and finds the largest logit; returns whether a term was too large. */
static int add_parts(const tl_backend *backend, const tl_row *row, double reference, tl_tail *tail, tl_lse_acc *total,
                     double *largest, tl_cancel *cancel) {
    tl_lse_acc state, possible = {.maximum = -(double)INFINITY};
    tl_chunk_buf buf;
    int64_t next = 0, again = 0;
    int overflows = 0;
    possible.threshold = row->compute_dtype == TL_FLOAT64 ? -0x1.fffffffffffffp1023 : LOWEST;
    tl_chunk_invalidate(&buf);
    tl_lse_begin(reference, row->compute_dtype, NULL, total);
    const tl_lse_acc begun = *total;
    tail->support = 0;
    for (int64_t part = 0, start = 0; part < tail->parts; part++) {
        int64_t until = (part + 1) * tail->length < row->count ? (part + 1) * tail->length : row->count;
        state = begun;
        possible.count_ge = 0;
        for (int64_t end; start < until; start = end) {
            end = chunk_end(start, until);
            add_chunk(backend, TL_REDUCE_SUMEXP, row, tail, start, end, &next, &state, &buf);
            add_chunk(backend, TL_REDUCE_MAX_COUNT, row, tail, start, end, &again, &possible, &buf);
            if (end % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
                return 0;
        }
        tail->mass[part] = tl_lanes_sum_or_infinite(state.sum, state.comp);
        tail->supports[part] = possible.count_ge;
        tail->support += possible.count_ge;
        total->sum[0] += tail->mass[part];
        overflows |= state.exp_overflow;
    }
    *largest = possible.maximum;
    return overflows;
}

void tl_tail_of(const tl_backend *backend, const tl_row *row, double maximum, tl_tail *tail, tl_cancel *cancel) {
    tl_lse_acc total;
    int64_t chunks = (row->count + TL_CHUNK - 1) / TL_CHUNK;
    tail->length = (chunks + TL_TAIL_PARTS - 1) / TL_TAIL_PARTS * TL_CHUNK;
    tail->parts = tail->length ? (row->count + tail->length - 1) / tail->length : 0;
    int is_known = maximum < (double)INFINITY;
    int overflows = add_parts(backend, row, is_known ? maximum : 0, tail, &total, &maximum, cancel);
    if ((overflows || !is_known || !(total.sum[0] >= LEAST_TOTAL)) && !tl_canceled(cancel))
        overflows = maximum == (double)INFINITY || add_parts(backend, row, maximum, tail, &total, &maximum, cancel);
    if (overflows) { /* +inf is among the logits */
        tail->support = 0;
        tail->log_mass = (double)NAN;
        return;
    }
    int dtype = tl_offset_dtype(row->compute_dtype, total.offset);
    tail->unit = dtype == TL_FLOAT64 ? 1 : tl_exp(TL_FLOAT_TERM_BIAS);
    for (int64_t part = 0; part < tail->parts; part++)
        tail->mass[part] *= tail->unit;
    tail->offset = total.offset;
    tail->exponent = (double)total.ref_exp;
    tail->log_mass = tl_logsumexp(tl_lse_finish(&total, row->compute_dtype));
}

/* The sizes of the classes of a chunk, and of each group of them. */
typedef struct {
    double of[TL_CHUNK], group[TL_CHUNK / GROUP], all;
} class_sizes;

/* Sizes of the chunk [start, end): their terms and, if they have support, `least`. */
static void size_chunk(const tl_backend *backend, const tl_row *row, const tl_tail *tail, int64_t start, int64_t end,
                       double least, class_sizes *sizes) {
    const double zero = 0;
    double logit[TL_CHUNK];
    tl_chunk_buf buf, terms;
    int64_t next = 0, count = tl_padded(end - start);
    int dtype = tl_single_or_double(row->compute_dtype);
    const char *x = row->data + start * row->stride;
    char *out = (char *)&terms.at;
    tl_chunk_invalidate(&buf);
    load_tail(backend, row, tail, start, end, tail->offset, dtype, &next, &buf);
    if (buf.start == start)
        x = (const char *)&buf.at;
    backend->exp_scaled_rows[dtype](&x, 1, (size_t)count, &tail->exponent, &tail->unit, &zero, &out, 0);
    memset(sizes, 0, sizeof *sizes);
    backend->to_f64[dtype](&terms.at, (size_t)count, 1, sizes->of);
    backend->to_f64[dtype](x, (size_t)count, 1, logit);
    for (int64_t i = 0; i < count; i++)
        sizes->of[i] += logit[i] > -(double)INFINITY ? least : 0;
    for (int64_t k = 0; k < TL_CHUNK / GROUP; k++) {
        double lanes[16] = {0}; /* the last 8 stay 0 */
        for (int64_t i = k * GROUP; i < (k + 1) * GROUP; i += 8)
            for (int64_t l = 0; l < 8; l++)
                lanes[l] += sizes->of[i + l];
        sizes->group[k] = tl_lanes_sum_fast(lanes);
        sizes->all += sizes->group[k];
    }
}

/* The last class of the tail before `end`, for a draw that rounding moves beyond it; or -1. */
static int64_t last_before(const tl_backend *backend, const tl_row *row, const tl_tail *tail, int64_t end) {
    int64_t last = tail->count - 1;
    for (int64_t k = end - 1; k >= 0; k--) {
        while (last >= 0 && tail->excluded[last] > k)
            last--;
        if ((last < 0 || tail->excluded[last] != k) && tl_logit_at(backend, row, k) > -(double)INFINITY)
            return k;
    }
    return -1;
}

/* The first class of a chunk up to which sizes exceed `left`; -1 if none does. */
static int64_t class_at(const class_sizes *sizes, double left) {
    for (int64_t k = 0; k < TL_CHUNK / GROUP; k++) {
        if (sizes->group[k] <= left) {
            left -= sizes->group[k];
            continue;
        }
        for (int64_t i = k * GROUP; i < (k + 1) * GROUP; i++) {
            if (sizes->of[i] > left)
                return i;
            left -= sizes->of[i];
        }
    }
    return -1;
}

void tl_tail_draw(const tl_backend *backend, const tl_row *row, const tl_tail *tail, double epsilon,
                  const double *uniform, int64_t count, int64_t *drawn) {
    double total = 0, all = 0, below = 0; /* the last is the sum of the parts before this one */
    int64_t part = 0, start = -1, end = 0; /* of the chunk whose sizes are known; -1 if none in this part is */
    double below_chunk = 0;
    class_sizes sizes;
    assert(tail->support > 0);
    for (int64_t i = 0; i < tail->parts; i++)
        total += tail->mass[i];
    double least = epsilon * total / (double)tail->support;
    for (int64_t i = 0; i < tail->parts; i++)
        all += tail->mass[i] + least * (double)tail->supports[i];
    for (int64_t i = 0; i < count; i++) {
        double at = ((double)i + uniform[i]) / (double)count * all;
        for (; part < tail->parts - 1; part++, start = -1) {
            double size = tail->mass[part] + least * (double)tail->supports[part];
            if (at < below + size)
                break;
            below += size;
        }
        int64_t until = (part + 1) * tail->length < row->count ? (part + 1) * tail->length : row->count;
        while (start < 0 || (end < until && at >= below_chunk + sizes.all)) {
            below_chunk = start < 0 ? below : below_chunk + sizes.all;
            start = start < 0 ? part * tail->length : end;
            end = chunk_end(start, until);
            size_chunk(backend, row, tail, start, end, least, &sizes);
        }
        int64_t place = class_at(&sizes, at - below_chunk);
        drawn[i] = place >= 0 ? start + place : last_before(backend, row, tail, end);
    }
}
