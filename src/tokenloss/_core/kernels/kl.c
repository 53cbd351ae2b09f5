/* KL(softmax(base) || softmax(other)) = mean of base - other under softmax(base) - (logsumexp(base) -
 * logsumexp(other)), in one pass. Both rows are shifted by their logits at the argmax of the base: if the base is
 * nearly certain, differences are close to 0 where its mass is, and cancellation is harmless. */
#include "kl.h"

#include <assert.h>
#include <float.h>

#include "logsumexp.h"
#include "scalar_math.h"

/* Makes elements that are not above the floor -inf: x - inf is -inf, and x - 0 is x. */
static void drop_below(void *x, int dtype, size_t count, double floor) {
    const float least = (float)floor;
    double *wide = x;
    float *narrow = x;
    if (dtype == TL_FLOAT64)
        for (size_t i = 0; i < count; i++)
            wide[i] -= tl_from_bits(0x7ff0000000000000u & (0 - (uint64_t)(wide[i] <= floor)));
    else
        for (size_t i = 0; i < count; i++)
            narrow[i] -= tl_float_from_bits(0x7f800000u & (0 - (uint32_t)(narrow[i] <= least)));
}

/* Whether the logit of a class is above the floor. */
TL_INLINE int is_possible(const tl_backend *backend, const tl_row *row, int64_t class, double floor) {
    return tl_logit_at(backend, row, class) > floor;
}

int tl_has_infinite_kl(const tl_backend *backend, const tl_row *base, double floor, const tl_row *other, int64_t start,
                       int64_t end) {
    for (int64_t i = start; i < end; i++)
        if (!is_possible(backend, other, i, -(double)INFINITY) && is_possible(backend, base, i, floor))
            return 1;
    return 0;
}

static int can_read_in_place(const tl_kl_side *of, int dtype) {
    return of->floor == -(double)INFINITY && tl_can_read_in_place(of->row, dtype, of->state.offset);
}

/* The elements from `start` on: in place if possible, else from the chunk buffer. */
static const void *elements(const tl_backend *backend, tl_kl_side *of, int64_t start, int64_t count, int dtype) {
    if (count % TL_CHUNK == 0 && can_read_in_place(of, dtype))
        return of->row->data + start * of->row->stride;
    tl_load_chunk(backend, of->row, start, count, -1, of->state.offset, dtype, of->buf);
    if (of->floor > -(double)INFINITY)
        drop_below(&of->buf->at, dtype, (size_t)count, of->floor - of->state.offset);
    return &of->buf->at;
}

/* Accumulates the elements [start, end) of both rows. Returns 1 if a class makes the divergence infinite. */
static int reduce_both(const tl_backend *backend, tl_kl_side *base, tl_kl_side *other, int64_t start, int64_t end) {
    int dtype = base->row->compute_dtype, found = 0;
    if (base->floor > -(double)INFINITY)
        dtype = tl_single_or_double(dtype);
    int is_whole = can_read_in_place(base, dtype) && can_read_in_place(other, dtype);
    while (start < end) {
        int64_t count = is_whole ? (end - start) / TL_CHUNK * TL_CHUNK : 0;
        if (count == 0)
            count = end - start < TL_CHUNK ? end - start : TL_CHUNK;
        const void *p = elements(backend, base, start, count, dtype);
        const void *q = elements(backend, other, start, count, dtype);
        if (TL_UNLIKELY(backend->kl[dtype](p, q, (size_t)count, &base->state, &other->state)))
            found |= tl_has_infinite_kl(backend, base->row, base->floor, other->row, start, start + count);
        start += count;
    }
    return found;
}

static double maximum_of(const tl_backend *backend, tl_kl_side *of, int64_t start, int64_t end) {
    double maximum = tl_maximum_between(backend, of->row, start, end, -1, of->buf);
    return maximum > of->floor ? maximum : -(double)INFINITY;
}

/* What logits of the other row are shifted by: its logit at the argmax of the base, as far as the dtype holds it. */
static double other_shift_of(double logit, int dtype) {
    if (!(logit > -TL_MIN_FMA_SAFE && logit - logit == 0))
        logit = logit < 0 ? -TL_MIN_FMA_SAFE : 0;
    if (dtype == TL_FLOAT64)
        return logit;
    return logit < (double)-FLT_MAX ? (double)-FLT_MAX : (double)(float)logit;
}

/* The first class of [start, end) that has the maximum; `end` if that is not finite. */
static int64_t argmax_of(const tl_backend *backend, tl_kl_side *of, int64_t start, int64_t end, double maximum) {
    if (maximum - maximum != 0)
        return end;
    for (int64_t count; start < end; start += count) {
        int32_t found[TL_CHUNK];
        int dtype = of->row->compute_dtype;
        count = end - start < TL_CHUNK ? end - start : TL_CHUNK;
        tl_load_chunk(backend, of->row, start, count, -1, 0, dtype, of->buf);
        if (backend->indices_ge[dtype](&of->buf->at, (size_t)tl_padded(count), maximum, found) > 0)
            return start + found[0];
    }
    return end;
}

/* Moves the shifts to the class of the maximum of the base in [start, end). */
static void kl_reshift(const tl_backend *backend, tl_kl_side *base, tl_kl_side *other, int64_t start, int64_t end,
                       double maximum) {
    tl_moment *moment = base->state.moment;
    int64_t class = argmax_of(backend, base, start, end, maximum);
    if (class == end)
        return;
    double shift = maximum - base->state.offset, sum = tl_lanes_sum_in_order(base->state.sum);
    double other_shift =
        other_shift_of(tl_logit_at(backend, other->row, class) - other->state.offset, base->row->compute_dtype);
    if (base->row->compute_dtype != TL_FLOAT64)
        shift = (double)(float)shift;
    if (sum != 0)
        moment->sum[0] += ((moment->shift - shift) - (moment->other_shift - other_shift)) * sum;
    moment->shift = shift;
    moment->other_shift = other_shift;
}

/* Rebases what is out of range, so that the elements [start, end) can be accumulated. Returns 0 if a sum is nan. */
static int kl_rebase(const tl_backend *backend, tl_kl_side *base, tl_kl_side *other, int64_t start, int64_t end,
                     int base_out_of_range, int other_out_of_range) {
    double maximum = maximum_of(backend, base, start, end), offset = other->state.offset;
    if (base_out_of_range && !tl_lse_rebase(maximum, base->row->compute_dtype, &base->state))
        return 0;
    if (other_out_of_range &&
        !tl_lse_rebase(maximum_of(backend, other, start, end), other->row->compute_dtype, &other->state))
        return 0;
    base->state.moment->other_shift -= other->state.offset - offset;
    kl_reshift(backend, base, other, start, end, maximum);
    return 1;
}

/* Reads rows from now on, by way of two buffers. */
static void set_rows(const tl_row *base, const tl_row *other, tl_chunk_buf *bufs, tl_kl_acc *acc) {
    acc->base.row = base;
    acc->other.row = other;
    acc->base.buf = bufs;
    acc->other.buf = bufs + 1;
    tl_chunk_invalidate(bufs);
    tl_chunk_invalidate(bufs + 1);
}

static int begin(const tl_backend *backend, tl_kl_side *of, double floor, tl_moment *moment) {
    of->floor = floor;
    int64_t first = of->row->count < TL_CHUNK ? of->row->count : TL_CHUNK;
    return tl_lse_begin(maximum_of(backend, of, 0, first), of->row->compute_dtype, moment, &of->state);
}

/* Whether differences of the rows may be too large for a float. */
static int is_far_out(const tl_kl_acc *acc) {
    return (acc->base.state.offset != 0 || acc->other.state.offset != 0) &&
           acc->base.row->compute_dtype != TL_FLOAT64;
}

void tl_kl_begin(const tl_backend *backend, const tl_row *base, const tl_row *other, double floor, int64_t block,
                 tl_kl_acc *acc) {
    tl_chunk_buf bufs[2];
    assert(base->count == other->count && base->compute_dtype == other->compute_dtype);
    acc->is_infinite = 0;
    acc->stage = TL_KL_NAN;
    set_rows(base, other, bufs, acc);
    if (!begin(backend, &acc->base, floor, &acc->moment) || !begin(backend, &acc->other, -(double)INFINITY, NULL))
        return;
    acc->stage = is_far_out(acc) ? TL_KL_TOO_FAR : TL_KL_OPEN;
    if (acc->stage == TL_KL_OPEN)
        kl_rebase(backend, &acc->base, &acc->other, 0, base->count < block ? base->count : block, 0, 0);
}

void tl_kl_block(const tl_backend *backend, const tl_row *base_row, const tl_row *other_row, int64_t start, int64_t end,
                 tl_kl_acc *acc) {
    tl_kl_side *base = &acc->base, *other = &acc->other;
    tl_chunk_buf bufs[2];
    if (acc->stage != TL_KL_OPEN)
        return;
    set_rows(base_row, other_row, bufs, acc);
    base->state.maximum = -(double)INFINITY;
    tl_lse_acc base_before = base->state, other_before = other->state;
    tl_moment moment_before = acc->moment;
    int found = reduce_both(backend, base, other, start, end);
    int base_out_of_range = tl_sum_out_of_range(&base->state), other_out_of_range = tl_sum_out_of_range(&other->state);
    if (TL_UNLIKELY(base_out_of_range || other_out_of_range || tl_moment_shift_stale(&base->state))) {
        base->state = base_before;
        other->state = other_before;
        acc->moment = moment_before;
        acc->stage = TL_KL_NAN;
        if (!kl_rebase(backend, base, other, start, end, base_out_of_range, other_out_of_range))
            return;
        acc->stage = is_far_out(acc) ? TL_KL_TOO_FAR : TL_KL_OPEN;
        if (acc->stage == TL_KL_TOO_FAR)
            return;
        found = reduce_both(backend, base, other, start, end);
    }
    acc->is_infinite |= found;
    double sums = tl_lanes_sum_fast(base->state.sum) + tl_lanes_sum_fast(other->state.sum);
    if (sums != sums)
        acc->stage = TL_KL_NAN;
}

/* Accumulates two whole rows. */
static void read_rows(const tl_backend *backend, const tl_row *base, const tl_row *other, double floor, tl_kl_acc *acc,
                      tl_cancel *cancel) {
    int64_t count = base->count;
    tl_kl_begin(backend, base, other, floor, TL_BLOCK, acc);
    for (int64_t start = 0, end; start < count && acc->stage == TL_KL_OPEN; start = end) {
        end = count - start < TL_BLOCK ? count : start + TL_BLOCK;
        tl_kl_block(backend, base, other, start, end, acc);
        if (end % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            return;
    }
}

tl_kl tl_kl_finish(const tl_row *base, const tl_row *other, tl_kl_acc *acc) {
    const double nan = (double)NAN;
    tl_kl found = {nan, {0, nan}, {0, nan}};
    if (acc->stage != TL_KL_OPEN)
        return found;
    found.base = tl_lse_finish(&acc->base.state, base);
    found.other = tl_lse_finish(&acc->other.state, other);
    if (found.base.log == -(double)INFINITY)
        return found;
    double mean = tl_moment_mean(&acc->base.state);
    if (mean - mean != 0 && !acc->is_infinite && base->compute_dtype != TL_FLOAT64)
        acc->stage = TL_KL_TOO_FAR;
    found.kl = mean - ((found.base.log - acc->moment.shift) - (found.other.log - acc->moment.other_shift));
    if (acc->is_infinite)
        found.kl = (double)INFINITY;
    else if (found.kl < 0)
        found.kl = 0;
    return found;
}

tl_kl tl_kl_end(const tl_backend *backend, const tl_row *base_row, const tl_row *other_row, tl_kl_acc *acc,
                tl_cancel *cancel) {
    tl_kl found = tl_kl_finish(base_row, other_row, acc);
    if (acc->stage != TL_KL_TOO_FAR)
        return found;
    tl_row base = *base_row, other = *other_row;
    base.compute_dtype = other.compute_dtype = TL_FLOAT64;
    read_rows(backend, &base, &other, acc->base.floor, acc, cancel);
    return tl_kl_finish(&base, &other, acc);
}

/* Sums over two rows of probabilities, or over 16 such pairs side by side, with the errors of their additions. */
typedef struct {
    double sum[3][TL_GROUP], error[3][TL_GROUP];
    int is_infinite[TL_GROUP];
} prob_acc;

/* The sum of p log(p / q) where a quotient overflows, and whether it is infinite. */
static double prob_dot(const double *p, const double *q, size_t count, int *is_infinite) {
    double dot = 0;
    for (size_t i = 0; i < count; i += TL_GROUP)
        *is_infinite |= p[i] > 0 && q[i] <= 0;
    for (size_t i = 0; i < count && !*is_infinite; i += TL_GROUP)
        dot += p[i] > 0 ? p[i] * (tl_log(p[i]) - tl_log(q[i])) : 0;
    return dot;
}

/* Adds a chunk at most, in whole groups. */
static void add_probs(const tl_backend *backend, const double *p, const double *q, size_t count, prob_acc *acc) {
    tl_prob_sums found;
    backend->prob_sums(p, q, count, &found);
    for (size_t l = 0; l < TL_GROUP; l++)
        if (TL_UNLIKELY(found.most[l] > DBL_MAX))
            found.dot[l] = prob_dot(p + l, q + l, count - l, &acc->is_infinite[l]);
    const double *of[] = {found.p, found.q, found.dot};
    for (int k = 0; k < 3; k++)
        for (int l = 0; l < TL_GROUP; l++) { /* two-sums */
            double before = acc->sum[k][l], x = of[k][l], total = before + x, other = total - before;
            acc->error[k][l] += (before - (total - other)) + (x - other);
            acc->sum[k][l] = total;
        }
}

/* The sums of p, q and p log(p / q) in each lane become the divergence and the logsumexps. */
static void end_probs(const tl_backend *backend, const prob_acc *acc, int count, tl_kl *found) {
    const tl_clip unclipped = {.highest = (double)INFINITY, .greatest = (double)INFINITY};
    double sums[2 * TL_GROUP], minus_log[2 * TL_GROUP];
    for (int l = 0; l < TL_GROUP; l++)
        for (int k = 0; k < 2; k++)
            sums[2 * l + k] = acc->sum[k][l] + acc->error[k][l];
    tl_negative_log(backend, &unclipped, sums, 2 * TL_GROUP, minus_log);
    for (int l = 0; l < count; l++) {
        double base = 0 - minus_log[2 * l], other = 0 - minus_log[2 * l + 1], dot = acc->sum[2][l] + acc->error[2][l];
        double kl = dot / (acc->sum[0][l] + acc->error[0][l]) - (base - other);
        if (acc->is_infinite[l] && base == base && other == other)
            kl = (double)INFINITY;
        found[l] = (tl_kl){kl < 0 ? 0 : kl, {0, base}, {0, other}};
    }
}

/* Loads some probabilities as doubles, this far apart, among zeros. */
static void load_probs(const tl_backend *backend, const tl_row *row, int64_t start, int64_t count, int64_t apart,
                       double x[TL_CHUNK]) {
    double values[TL_CHUNK];
    tl_row part = tl_raw(row);
    part.data += start * part.stride;
    part.count = count;
    if (count * apart < TL_CHUNK || apart > 1)
        memset(x, 0, TL_CHUNK * sizeof *x);
    tl_cast_row(backend, &part, TL_FLOAT64, apart > 1 ? values : x);
    for (int64_t i = 0; apart > 1 && i < count; i++)
        x[i * apart] = values[i];
}

/* Two rows of probabilities: no exponentials, and a single logarithm for each class. A short row has the bits that a
 * group gives it: it is the only one, in the first lane. */
static tl_kl kl_of_probs(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel) {
    int is_short = base->count <= TL_SHORT_ROW;
    int64_t apart = is_short ? TL_GROUP : 1, step = TL_CHUNK / apart;
    double p[TL_CHUNK], q[TL_CHUNK];
    prob_acc acc = {0};
    tl_kl found;
    for (int64_t start = 0, count; start < base->count; start += count) {
        count = base->count - start < step ? base->count - start : step;
        load_probs(backend, base, start, count, apart, p);
        load_probs(backend, other, start, count, apart, q);
        add_probs(backend, p, q, (size_t)((count * apart + TL_GROUP - 1) / TL_GROUP * TL_GROUP), &acc);
        if (start % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            break;
    }
    for (int l = 1; l < TL_GROUP && !is_short; l++)
        acc.is_infinite[0] |= acc.is_infinite[l];
    for (int k = 0; k < 3 && !is_short; k++) {
        acc.sum[k][0] = tl_lanes_sum_compensated(acc.sum[k], acc.error[k]);
        acc.error[k][0] = 0;
    }
    end_probs(backend, &acc, 1, &found);
    return found;
}

const double *tl_load_wide_groups(const tl_backend *backend, const tl_row_block *rows, int count) {
    tl_row_block wide = *rows;
    wide.row.compute_dtype = TL_FLOAT64;
    return tl_scale_groups(backend, &wide, count, tl_load_raw_groups(backend, &wide, count)).at;
}

/* Short rows of probabilities. */
static uint64_t kl_of_prob_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other,
                                 tl_kl *found_of) {
    tl_row_block raw = *base, raw_other = *other;
    if (base->row.count > TL_SHORT_ROW || !base->scratch)
        return 0;
    raw.row = tl_raw(&base->row);
    raw_other.row = tl_raw(&other->row);
    const double *p = tl_load_wide_groups(backend, &raw, base->count);
    const double *q = tl_load_wide_groups(backend, &raw_other, base->count);
    size_t elements = tl_group_elements(base);
    for (int first = 0; first < base->count; first += TL_GROUP, p += elements, q += elements) {
        prob_acc acc = {0};
        for (size_t start = 0; start < elements; start += TL_CHUNK) {
            size_t count = elements - start < TL_CHUNK ? elements - start : TL_CHUNK;
            add_probs(backend, p + start, q + start, count, &acc);
        }
        int left = base->count - first;
        end_probs(backend, &acc, left < TL_GROUP ? left : TL_GROUP, found_of + first);
    }
    return base->wanted;
}

tl_kl tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel) {
    tl_kl_acc acc;
    if (base->of_probs && other->of_probs)
        return kl_of_probs(backend, base, other, cancel);
    read_rows(backend, base, other, -(double)INFINITY, &acc, cancel);
    return tl_kl_end(backend, base, other, &acc, cancel);
}

/* Loads a block into groups. */
static tl_groups load_groups(const tl_backend *backend, const tl_row_block *rows, int count) {
    assert(!rows->has_excluded);
    return tl_scale_groups(backend, rows, count, tl_load_raw_groups(backend, rows, count));
}

/* The other rows' shifts. */
static void find_other_shifts(const tl_backend *backend, const tl_row_block *other, int count, size_t in_groups,
                              tl_groups base, tl_groups q, double *other_shift) {
    tl_short_ranks ranks;
    memset(other_shift, 0, TL_BLOCK_ROWS * sizeof *other_shift);
    backend->short_ranks[base.dtype](base.at, in_groups, (size_t)other->row.count, other_shift, &ranks);
    for (int i = 0; i < count; i++) {
        size_t at = tl_place_in_groups(other, i, ranks.argmax[i]);
        other_shift[i] = other_shift_of(tl_load_from_groups(q, at), other->row.compute_dtype);
    }
}

/* Long class-major rows, which are transposed block by block. */
static uint64_t kl_of_long(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, double floor,
                           tl_kl *found_of, tl_cancel *cancel) {
    int size = tl_itemsize(base->row.dtype), other_size = tl_itemsize(other->row.dtype);
    int most = 64 / (size > other_size ? size : other_size); /* of a cache line of the wider one */
    for (int first = 0, count; first < base->count; first += count) {
        tl_row p[TL_MAX_CLASS_MAJOR_ROWS], q[TL_MAX_CLASS_MAJOR_ROWS];
        tl_kl_acc acc[TL_MAX_CLASS_MAJOR_ROWS];
        count = base->count - first < most ? base->count - first : most;
        for (int r = 0; r < count; r++) {
            p[r] = tl_row_of_block(base, first + r);
            q[r] = tl_row_of_block(other, first + r);
        }
        for (int64_t start = 0, end; start < p->count; start = end) {
            end = p->count - start < TL_BLOCK ? p->count : start + TL_BLOCK;
            tl_transpose(backend, p, count, start, end - start, base->scratch);
            tl_transpose(backend, q, count, start, end - start, other->scratch);
            for (int r = 0; r < count; r++) {
                tl_row row = tl_transposed_row(p, r, start, base->scratch);
                tl_row other_row = tl_transposed_row(q, r, start, other->scratch);
                if (start == 0)
                    tl_kl_begin(backend, &row, &other_row, floor, TL_BLOCK, &acc[r]);
                tl_kl_block(backend, &row, &other_row, start, end, &acc[r]);
            }
            if (tl_cancelled(cancel))
                return base->wanted;
        }
        for (int r = 0; r < count; r++)
            found_of[first + r] = tl_kl_end(backend, &p[r], &q[r], &acc[r], cancel);
    }
    return base->wanted;
}

uint64_t tl_kl_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other, double floor,
                        tl_kl *found_of, tl_cancel *cancel) {
    int count = tl_grouped_rows(base);
    size_t in_groups = tl_groups_for(count);
    double other_shift[TL_BLOCK_ROWS];
    tl_block_lse base_lse, other_lse;
    tl_short_moments moments;
    assert(base->row.count == other->row.count && base->row.compute_dtype == other->row.compute_dtype);
    if (base->row.of_probs && other->row.of_probs)
        return kl_of_prob_block(backend, base, other, found_of);
    if (base->class_major && base->row.count > TL_SHORT_ROW)
        return kl_of_long(backend, base, other, floor, found_of, cancel);
    if (count == 0)
        return 0;
    tl_groups p = load_groups(backend, base, count), q = load_groups(backend, other, count);
    if (floor != -(double)INFINITY)
        drop_below(p.at, p.dtype, tl_group_elements(base) * in_groups, floor);
    find_other_shifts(backend, other, count, in_groups, p, q, other_shift);
    moments.other = q.at;
    moments.other_shift = other_shift;
    tl_reduce_groups(backend, base, count, p, &moments, &base_lse);
    tl_reduce_groups(backend, other, count, q, NULL, &other_lse);
    tl_end_lse(backend, &base->row, tl_padded_rows(count), 0, &base_lse);
    tl_end_lse(backend, &other->row, tl_padded_rows(count), 0, &other_lse);
    uint64_t found = base_lse.grouped & other_lse.grouped;
    for (int i = 0; i < count; i++) {
        double sum = base_lse.sums.sum[i], other_sum = other_lse.sums.sum[i], mean = moments.sum[i] / sum;
        int infinite = moments.most_above[i] > DBL_MAX;
        double kl = mean - ((base_lse.log[i] - moments.shift[i]) - (other_lse.log[i] - other_shift[i]));
        found_of[i].kl = infinite ? (double)INFINITY : kl < 0 ? 0 : kl;
        found_of[i].base = (tl_lse){0, base_lse.log[i]};
        found_of[i].other = (tl_lse){0, other_lse.log[i]};
        found &= ~((uint64_t)!(sum > 0 && other_sum == other_sum && (infinite || mean - mean == 0)) << i);
    }
    return found;
}
