#include "logsumexp.h"

#include <assert.h>

#include "scalar_math.h"

/* A row refers to an exponent near its maximum. Below the first bound, terms that were flushed (2^-126 and less) might
 * matter; above the second, the float32 nearest to ln 2, wrong by 1.9e-9, was subtracted too many times. */
#define LEAST_SUM 0x1p-58
#define GREATEST_SUM 0x1p36

/* Nearer to 0, the 2e-7 that a logsumexp may be wrong by are more than a millionth of it. It is found there from the
 * logit of the class that outweighs the others, and from these. If that logit is not negative, it lies at most so far
 * below the logsumexp and has exp(-0.25) = 0.78 of the sum; its lane has no less. Two classes cannot have more than
 * half each. */
#define NEAR_ZERO 0.25
#define OUTWEIGHING 0.75 /* share of the sum of a lane that may hold such a class */
#define FALL 0.5 /* of its logit below the logsumexp; exp(-0.5) = 0.61 */

void tl_moment_reshift(double maximum, int dtype, tl_lse_acc *state) {
    tl_moment *moment = state->moment;
    double center = dtype == TL_FLOAT64 ? maximum : (double)(float)maximum, sum = tl_lanes_sum_in_order(state->sum);
    if (sum != 0)
        moment->sum[0] += (moment->center - center) * sum;
    moment->center = center;
}

int tl_lse_rebase(double maximum, int dtype, tl_lse_acc *state) {
    if (maximum == -(double)INFINITY)
        return 1;
    if (maximum == (double)INFINITY) {
        state->sum[0] = (double)NAN;
        return 0;
    }
    double offset = tl_abs(maximum) > TL_MAX_EXACT_REDUCTION ? maximum : 0, moved = offset - state->offset;
    int64_t exponent = offset == 0 ? (int64_t)(maximum * TL_LOG2E + (maximum < 0 ? -0.5 : 0.5)) : 0;
    assert(exponent > -(1 << 17) && exponent < 1 << 17); /* TL_MAX_EXACT_REDUCTION / ln 2, and whole in a float */
    if (tl_lanes_sum_fast(state->sum) != 0) {
        int64_t fall = state->exponent - exponent;
        double factor = moved == 0 ? tl_scale(1, fall) : tl_exp((double)fall / TL_LOG2E - moved);
        for (int i = 0; i < 16; i++) {
            state->sum[i] *= factor;
            state->error[i] *= factor;
            if (state->moment) {
                state->moment->sum[i] *= factor;
                state->moment->error[i] *= factor;
            }
        }
    }
    state->offset = offset;
    state->exponent = exponent;
    state->overflowed = 0;
    if (state->moment) {
        state->moment->center -= moved;
        tl_moment_reshift(maximum - offset, dtype, state);
    }
    return 1;
}

int tl_lse_begin(double maximum, int dtype, tl_moment *moment, tl_lse_acc *state) {
    memset(state, 0, sizeof *state);
    if (moment)
        memset(moment, 0, sizeof *moment);
    state->moment = moment;
    return tl_lse_rebase(maximum, dtype, state);
}

/* Whether a state of this total is far from its reference. */
static int is_astray(double total, const tl_lse_acc *state) {
    return !(total >= LEAST_SUM && total <= GREATEST_SUM) || state->overflowed;
}

int tl_sum_out_of_range(const tl_lse_acc *state) { return is_astray(tl_lanes_sum_fast(state->sum), state); }

tl_lse_acc tl_with_all(const tl_lse_acc *state) {
    tl_lse_acc all = *state;
    all.sum[state->whole->lane] = state->whole->sum;
    all.error[state->whole->lane] = state->whole->error;
    return all;
}

/* What a block is folded from, to go back to. */
typedef struct {
    tl_lse_acc state;
    tl_moment moment;
    double sum, error; /* of the lane of all classes */
} mark;

static void go_back(const mark *before, tl_lse_acc *state) {
    *state = before->state;
    if (state->moment)
        *state->moment = before->moment;
    if (state->whole) {
        state->whole->sum = before->sum;
        state->whole->error = before->error;
    }
}

int tl_lse_block(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                 tl_lse_acc *state, tl_chunk_buf *buf) {
    tl_reduce_kind fold = TL_REDUCE_SUMEXP;
    tl_all_classes *whole = state->whole;
    mark before;
    if (state->moment) {
        fold = TL_REDUCE_MOMENT;
        state->maximum = -(double)INFINITY;
        state->reached = 0;
        before.moment = *state->moment;
    }
    before.sum = whole ? whole->sum : 0;
    before.error = whole ? whole->error : 0;
    before.state = *state;
    tl_reduce_range(backend, fold, row, start, end, skip, state, buf);
    double sum = tl_lanes_sum_fast(state->sum);
    int astray = is_astray(sum, state);
    /* where either sum is moved, the other may not be, or elsewhere; with room for roundings */
    if (whole && whole->stage == TL_SHARED && (astray || sum < 2 * LEAST_SUM || !(sum + whole->sum < GREATEST_SUM / 2)))
        whole->stage = TL_APART;
    if (TL_UNLIKELY(astray)) {
        go_back(&before, state);
        if (!tl_lse_rebase(tl_maximum_between(backend, row, start, end, skip, buf), row->compute_dtype, state))
            return 0;
        tl_reduce_range(backend, fold, row, start, end, skip, state, buf);
        sum = tl_lanes_sum_fast(state->sum);
    } else if (state->moment && TL_UNLIKELY(tl_moment_shift_stale(state))) {
        double maximum = state->maximum;
        go_back(&before, state);
        tl_moment_reshift(maximum, tl_offset_dtype(row->compute_dtype, state->offset), state);
        tl_reduce_range(backend, fold, row, start, end, skip, state, buf);
    }
    return sum == sum;
}

/* Begins the state of a row, whose first granule tells where it lies, but for rare rows. */
static int begin(const tl_backend *backend, const tl_row *row, int64_t skip, tl_lse_acc *state, tl_chunk_buf *buf) {
    tl_chunk_invalidate(buf);
    int64_t first = row->count < TL_CHUNK ? row->count : TL_CHUNK;
    return tl_lse_begin(tl_maximum_between(backend, row, 0, first, skip, buf), row->compute_dtype, NULL, state);
}

void tl_lse_range(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block, int64_t skip,
                  tl_lse_acc *state, tl_cancel *cancel) {
    tl_chunk_buf buf;
    int going;
    assert(start % block == 0 && block <= TL_BLOCK && skip < row->count);
    if (start == 0) {
        going = begin(backend, row, skip, state, &buf);
    } else {
        double sum = tl_lanes_sum_fast(state->sum);
        going = sum == sum;
        tl_chunk_invalidate(&buf);
    }
    for (int64_t next; going && start < end; start = next) {
        next = end - start < block ? end : start + block;
        going = tl_lse_block(backend, row, start, next, skip, state, &buf);
        if (next % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            return;
    }
}

void tl_lse_row(const tl_backend *backend, const tl_row *row, int64_t skip, tl_lse_acc *state, tl_cancel *cancel) {
    tl_lse_range(backend, row, 0, row->count, TL_BLOCK, skip, state, cancel);
}

/* Copies elements [start, start + length) of rows that lie beside each other, so that each row is contiguous. */
static void transpose(const tl_row *rows, int count, int64_t start, int64_t length, char *transposed) {
    int size = tl_itemsize(rows->dtype);
    for (int64_t i = 0; i < length; i++) {
        tl_prefetch(rows[0].data + (start + i + 16) * rows->stride);
        for (int r = 0; r < count; r++) {
            const char *from = rows[r].data + (start + i) * rows->stride;
            char *to = transposed + (r * TL_TRANSPOSED_ROW + i) * size;
            uint16_t half;
            uint32_t single;
            uint64_t wide;
            switch (size) {
            case 2:
                half = tl_load16(from, rows->dtype);
                memcpy(to, &half, 2);
                break;
            case 4:
                single = tl_load32(from, rows->dtype);
                memcpy(to, &single, 4);
                break;
            default: wide = tl_load64(from, rows->dtype); memcpy(to, &wide, 8);
            }
        }
    }
}

void tl_lse_class_major(const tl_backend *backend, const tl_row *rows, const int64_t *skips, int count,
                        void *transposed, tl_lse_acc *states, tl_cancel *cancel) {
    int going[TL_MAX_CLASS_MAJOR_ROWS];
    assert(count >= 0 && count <= TL_MAX_CLASS_MAJOR_ROWS);
    if (count == 0)
        return;
    tl_row part = *rows;
    part.stride = tl_itemsize(rows->dtype);
    part.dtype = rows->dtype & ~TL_SWAPPED;
    for (int64_t start = 0; start == 0 || start < rows->count; start += TL_BLOCK) {
        part.count = rows->count - start < TL_BLOCK ? rows->count - start : TL_BLOCK;
        transpose(rows, count, start, part.count, transposed);
        for (int r = 0; r < count; r++) {
            tl_chunk_buf buf;
            tl_chunk_invalidate(&buf);
            part.data = (const char *)transposed + r * TL_TRANSPOSED_ROW * part.stride;
            int64_t skip = skips[r] - start;
            if (start == 0)
                going[r] = begin(backend, &part, skip, &states[r], &buf);
            if (going[r])
                going[r] = tl_lse_block(backend, &part, 0, part.count, skip, &states[r], &buf);
        }
        if (tl_cancelled(cancel))
            return;
    }
}

double tl_lse_log(const tl_lse_acc *state, const tl_row *row) {
    /* what was subtracted for ln 2, and so what the exponent is worth */
    double ln2 = row->compute_dtype == TL_FLOAT64 ? TL_LN2 : 0x1.62e43p-1;
    return (double)state->exponent * ln2 + tl_log(tl_lanes_sum_compensated(state->sum, state->error));
}

double tl_moment_mean(const tl_lse_acc *state) {
    return tl_lanes_sum_compensated(state->moment->sum, state->moment->error) /
           tl_lanes_sum_compensated(state->sum, state->error);
}

tl_lse tl_lse_finish(const tl_lse_acc *state, const tl_row *row) {
    tl_lse lse = {state->offset, tl_lse_log(state, row)};
    return lse;
}

double tl_log_odds_against(const tl_lse_acc *rest, const tl_row *row, double logit) {
    return tl_log_odds_against_lse(tl_lse_finish(rest, row), logit);
}

tl_lse tl_lse_add_class(tl_lse rest, double logit, double gap) {
    tl_lse lse = {logit, tl_softplus(gap)};
    if (gap > 0 || logit == -(double)INFINITY) {
        lse = rest;
        if (gap > 0)
            lse.log += tl_softplus(-gap);
    }
    return lse;
}

tl_lse tl_lse_finish_with(const tl_lse_acc *rest, const tl_row *row, double logit, double gap) {
    return tl_lse_add_class(tl_lse_finish(rest, row), logit, gap);
}

/* The class whose logit lies above a bound that no two can pass; the count of classes if there is none. */
static int64_t find_above(const tl_backend *backend, const tl_row *row, double bound) {
    tl_row raw = tl_raw(row);
    tl_chunk_buf buf;
    tl_chunk_invalidate(&buf);
    for (int64_t start = 0, end; start < row->count; start = end) {
        end = row->count - start < TL_BLOCK ? row->count : start + TL_BLOCK;
        double maximum = tl_maximum_between(backend, &raw, start, end, -1, &buf);
        if (tl_softcap(backend, row, maximum) > bound)
            return tl_find(backend, &raw, start, end, maximum);
    }
    return row->count;
}

/* As tl_logsumexp_of, of a row whose plain logsumexp is near 0. */
static double near_zero(const tl_backend *backend, const tl_row *row, double logsumexp, int64_t skipped,
                        const tl_lse_acc *rest, tl_cancel *cancel) {
    tl_lse_acc folded;
    if (skipped < 0 || !(tl_logit_at(backend, row, skipped) > logsumexp - FALL)) {
        skipped = find_above(backend, row, logsumexp - FALL);
        if (skipped == row->count)
            return logsumexp;
        tl_lse_row(backend, row, skipped, &folded, cancel);
        rest = &folded;
    }
    double logit = tl_logit_at(backend, row, skipped);
    return tl_logsumexp(tl_lse_finish_with(rest, row, logit, tl_log_odds_against(rest, row, logit)));
}

double tl_logsumexp_of(const tl_backend *backend, const tl_row *row, const tl_lse_acc *state, int64_t skipped,
                       const tl_lse_acc *rest, tl_cancel *cancel) {
    double logsumexp = tl_logsumexp(tl_lse_finish(state, row)), most = 0;
    if (!(tl_abs(logsumexp) < NEAR_ZERO))
        return logsumexp;
    for (int i = 0; i < 16; i++)
        most = state->sum[i] > most ? state->sum[i] : most;
    if (most < OUTWEIGHING * tl_lanes_sum_in_order(state->sum))
        return logsumexp;
    return near_zero(backend, row, logsumexp, skipped, rest, cancel);
}
