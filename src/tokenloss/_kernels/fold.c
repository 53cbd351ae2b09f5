#include "scalar_math.h"
#include "walk.h"

/* A row refers to an exponent near its maximum. Below the first bound, terms that were flushed (2^-126 and less) might
 * matter; above the second, the float32 nearest to ln 2, wrong by 1.9e-9, was subtracted too many times. */
#define LEAST_SUM 0x1p-58
#define GREATEST_SUM 0x1p36

/* Nearer to 0, the 2e-7 that a logsumexp may be wrong by are more than a millionth of it. It is found there from the logit
 * of the class that outweighs the others, and from these. If that logit is not negative, it lies at most so far below the
 * logsumexp and has exp(-0.25) = 0.78 of the sum; its lane has no less. Two classes cannot have more than half each. */
#define NEAR_ZERO 0.25
#define OUTWEIGHING 0.75 /* share of the sum of a lane that may hold such a class */
#define FALL 0.5 /* of its logit below the logsumexp; exp(-0.5) = 0.61 */

#define PATIENCE_SECONDS 0.05

int tl_gave_up(tl_patience *patience) {
    if (tl_is_raised(patience->stopped))
        return 1;
    if (patience->ask) {
        double now = tl_seconds();
        /* a clock that was set back must not silence us */
        if (now - patience->last_asked > PATIENCE_SECONDS || now < patience->last_asked) {
            patience->last_asked = now;
            if (patience->ask(patience->argument))
                tl_raise(patience->stopped);
        }
    }
    return tl_is_raised(patience->stopped);
}

/* Makes the elements [from, to) of the scratch -inf, the neutral element. */
static void blank(tl_scratch *scratch, int64_t from, int64_t to) {
    const uint16_t half = scratch->dtype == TL_FLOAT16 ? 0xfc00 : 0xff80;
    if (scratch->dtype == TL_FLOAT64)
        for (int64_t i = from; i < to; i++)
            scratch->at.wide[i] = -(double)INFINITY;
    else if (scratch->dtype == TL_FLOAT32)
        for (int64_t i = from; i < to; i++)
            scratch->at.single[i] = -INFINITY;
    else
        for (int64_t i = from; i < to; i++)
            scratch->at.half[i] = half;
}

/* Copies elements in native order. */
static void copy(const tl_row *row, int64_t start, int64_t count, tl_scratch *scratch) {
    const char *from = row->data + start * row->stride;
    int size = tl_itemsize(row->dtype);
    if (row->stride == size && !(row->dtype & TL_SWAPPED)) {
        memcpy(&scratch->at, from, (size_t)(count * size));
    } else if (size == 2) {
        for (int64_t i = 0; i < count; i++, from += row->stride)
            scratch->at.half[i] = tl_load16(from, row->dtype);
    } else if (size == 4) {
        for (int64_t i = 0; i < count; i++, from += row->stride)
            scratch->at.single[i] = tl_float_from_bits(tl_load32(from, row->dtype));
    } else {
        for (int64_t i = 0; i < count; i++, from += row->stride)
            scratch->at.wide[i] = tl_from_bits(tl_load64(from, row->dtype));
    }
    scratch->dtype = row->dtype & ~TL_SWAPPED;
}

/* Makes of elements what the row stands for, less the offset, in this dtype. */
static void convert(const tl_backend *backend, const tl_row *row, const void *x, size_t count, double offset, int dtype,
                    tl_scratch *scratch) {
    double narrowed[TL_GRANULE], *wide = dtype == TL_FLOAT64 ? scratch->at.wide : narrowed;
    scratch->dtype = dtype;
    int from = row->dtype & ~TL_SWAPPED;
    if (dtype == TL_FLOAT32 && from != TL_FLOAT64 && offset == 0 && !tl_squashed(row)) {
        backend->convert[from](x, count, scratch->at.single);
        return;
    }
    backend->widen[from](x, count, wide);
    if (TL_RARELY(row->shift != 0))
        for (size_t i = 0; i < count; i++)
            wide[i] -= row->shift;
    if (tl_squashed(row))
        backend->squash(wide, count, row->scale, row->cap);
    if (offset != 0)
        for (size_t i = 0; i < count; i++)
            wide[i] -= offset;
    if (dtype != TL_FLOAT64)
        for (size_t i = 0; i < count; i++)
            scratch->at.single[i] = (float)wide[i];
}

void tl_gather(const tl_backend *backend, const tl_row *row, int64_t start, int64_t count, int64_t skip, double offset,
               int dtype, tl_scratch *scratch) {
    assert(start >= 0 && count >= 0 && count <= TL_GRANULE && start + count <= row->count);
    if (scratch->start == start && scratch->offset == offset && scratch->dtype == dtype)
        return;
    int64_t padded = (count + TL_PADDED - 1) / TL_PADDED * TL_PADDED;
    if (dtype == (row->dtype & ~TL_SWAPPED) && offset == 0 && !tl_squashed(row)) {
        copy(row, start, count, scratch);
        blank(scratch, count, padded);
    } else if (row->dtype < TL_SWAPPED && row->stride == tl_itemsize(row->dtype) && padded == count) {
        convert(backend, row, row->data + start * row->stride, (size_t)padded, offset, dtype, scratch);
    } else {
        tl_scratch native;
        copy(row, start, count, &native);
        blank(&native, count, padded);
        convert(backend, row, &native.at, (size_t)padded, offset, dtype, scratch);
        blank(scratch, count, padded);
    }
    if (skip >= start && skip < start + count)
        blank(scratch, skip - start, skip - start + 1);
    scratch->start = start;
    scratch->offset = offset;
}

double tl_squash(const tl_backend *backend, const tl_row *row, double score) {
    double lanes[16] = {score - row->shift};
    if (tl_squashed(row))
        backend->squash(lanes, 16, row->scale, row->cap);
    return lanes[0];
}

double tl_score(const tl_backend *backend, const tl_row *row, int64_t index) {
    assert(index >= 0 && index < row->count);
    return tl_squash(backend, row, tl_load(row->data + index * row->stride, row->dtype));
}

/* Begins the lane of the sum of all classes, at the granule of the class that is left out. */
static void meet(const tl_state *state, int64_t hole, int dtype) {
    tl_whole *whole = state->whole;
    double x = whole->logit - state->offset;
    if (!(x < ((double)state->exponent + 64) * TL_LN2)) /* its power of two might overflow; or it is nan */
        whole->stage = TL_APART;
    if (whole->stage == TL_APART)
        return;
    whole->stage = TL_SHARED;
    whole->hole = hole;
    whole->sum = state->sum[whole->lane];
    whole->error = state->error[whole->lane];
    tl_store((char *)whole->own, dtype, x);
}

void tl_walk(const tl_backend *backend, tl_fold_id fold, const tl_row *row, int64_t start, int64_t end, int64_t skip,
             tl_state *state, tl_scratch *scratch) {
    assert(start >= 0 && start <= end && end <= row->count);
    int dtype = tl_offset_dtype(row->folded, state->offset);
    int in_place = tl_in_place(row, dtype, state->offset);
    tl_whole *whole = fold == TL_MOMENT ? state->whole : NULL;
    while (start < end) {
        int64_t until = skip >= start && skip < end ? skip : end;
        int64_t count = in_place ? (until - start) / TL_GRANULE * TL_GRANULE : 0;
        const void *x = row->data + start * row->stride;
        if (count == 0) {
            count = end - start < TL_GRANULE ? end - start : TL_GRANULE;
            tl_gather(backend, row, start, count, skip, state->offset, dtype, scratch);
            x = &scratch->at;
            if (whole && until < start + count)
                meet(state, skip - start, dtype);
        }
        backend->fold[whole && whole->stage == TL_SHARED ? TL_BOTH : fold][dtype](x, (size_t)count, state);
        if (whole)
            whole->hole = -1;
        start += count;
    }
}

double tl_maximum_between(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                          tl_scratch *scratch) {
    tl_state state;
    state.offset = 0;
    state.maximum = -(double)INFINITY;
    state.threshold = 0;
    tl_walk(backend, TL_MAXIMUM, row, start, end, skip, &state, scratch);
    return state.maximum + 0; /* of zeros of both signs, backends keep either */
}

double tl_maximum(const tl_backend *backend, const tl_row *row) {
    tl_scratch scratch;
    tl_clear(&scratch);
    return tl_maximum_between(backend, row, 0, row->count, -1, &scratch);
}

int64_t tl_collect(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold,
                   int32_t *found) {
    int64_t length = end - start, count = 0, i = 0;
    tl_row raw = tl_raw(row);
    tl_scratch scratch;
    assert(start >= 0 && length >= 0 && length <= TL_BLOCK && end <= row->count);
    if (tl_in_place(&raw, raw.folded, 0)) {
        i = length / TL_PADDED * TL_PADDED;
        count = (int64_t)backend->collect[raw.folded](raw.data + start * raw.stride, (size_t)i, threshold, found);
    }
    tl_clear(&scratch);
    for (int64_t next; i < length; i = next) {
        next = length - i < TL_GRANULE ? length : i + TL_GRANULE;
        tl_gather(backend, &raw, start + i, next - i, -1, 0, raw.folded, &scratch);
        size_t padded = (size_t)(next - i + TL_PADDED - 1) / TL_PADDED * TL_PADDED;
        int64_t until = count + (int64_t)backend->collect[raw.folded](&scratch.at, padded, threshold, found + count);
        for (; count < until && found[count] + i < length; count++)
            found[count] += (int32_t)i;
    }
    return count;
}

int64_t tl_find(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double threshold) {
    int32_t found[TL_BLOCK];
    return tl_collect(backend, row, start, end, threshold, found) > 0 ? start + found[0] : end;
}

double tl_total(const double *lanes) {
    double sum = 0;
    for (int i = 0; i < 16; i++)
        sum += lanes[i];
    return sum;
}

void tl_center(double maximum, int dtype, tl_state *state) {
    tl_moment *moment = state->moment;
    double center = dtype == TL_FLOAT64 ? maximum : (double)(float)maximum, sum = tl_total(state->sum);
    if (sum != 0)
        moment->sum[0] += (moment->center - center) * sum;
    moment->center = center;
}

int tl_refer_to(double maximum, int dtype, tl_state *state) {
    if (maximum == -(double)INFINITY)
        return 1;
    if (maximum == (double)INFINITY) {
        state->sum[0] = (double)NAN;
        return 0;
    }
    double offset = tl_abs(maximum) > TL_FAR_OUT ? maximum : 0, moved = offset - state->offset;
    int64_t exponent = offset == 0 ? (int64_t)(maximum * TL_LOG2E + (maximum < 0 ? -0.5 : 0.5)) : 0;
    assert(exponent > -(1 << 17) && exponent < 1 << 17); /* TL_FAR_OUT / ln 2, and whole in a float */
    if (tl_total(state->sum) != 0) {
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
        tl_center(maximum - offset, dtype, state);
    }
    return 1;
}

int tl_begin(double maximum, int dtype, tl_moment *moment, tl_state *state) {
    memset(state, 0, sizeof *state);
    if (moment)
        memset(moment, 0, sizeof *moment);
    state->moment = moment;
    return tl_refer_to(maximum, dtype, state);
}

/* Whether a state of this total is far from its reference. */
static int is_astray(double total, const tl_state *state) {
    return !(total >= LEAST_SUM && total <= GREATEST_SUM) || state->overflowed;
}

int tl_astray(const tl_state *state) { return is_astray(tl_total(state->sum), state); }

tl_state tl_with_all(const tl_state *state) {
    tl_state all = *state;
    all.sum[state->whole->lane] = state->whole->sum;
    all.error[state->whole->lane] = state->whole->error;
    return all;
}

/* What a block is folded from, to go back to. */
typedef struct {
    tl_state state;
    tl_moment moment;
    double sum, error; /* of the lane of all classes */
} mark;

static void go_back(const mark *before, tl_state *state) {
    *state = before->state;
    if (state->moment)
        *state->moment = before->moment;
    if (state->whole) {
        state->whole->sum = before->sum;
        state->whole->error = before->error;
    }
}

int tl_fold_block(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                  tl_state *state, tl_scratch *scratch) {
    tl_fold_id fold = TL_SUM;
    tl_whole *whole = state->whole;
    mark before;
    if (state->moment) {
        fold = TL_MOMENT;
        state->maximum = -(double)INFINITY;
        state->reached = 0;
        before.moment = *state->moment;
    }
    before.sum = whole ? whole->sum : 0;
    before.error = whole ? whole->error : 0;
    before.state = *state;
    tl_walk(backend, fold, row, start, end, skip, state, scratch);
    double sum = tl_total(state->sum);
    int astray = is_astray(sum, state);
    /* where either sum is moved, the other may not be, or elsewhere; with room for roundings */
    if (whole && whole->stage == TL_SHARED && (astray || sum < 2 * LEAST_SUM || !(sum + whole->sum < GREATEST_SUM / 2)))
        whole->stage = TL_APART;
    if (TL_RARELY(astray)) {
        go_back(&before, state);
        if (!tl_refer_to(tl_maximum_between(backend, row, start, end, skip, scratch), row->folded, state))
            return 0;
        tl_walk(backend, fold, row, start, end, skip, state, scratch);
        sum = tl_total(state->sum);
    } else if (state->moment && TL_RARELY(tl_off_center(state))) {
        double maximum = state->maximum;
        go_back(&before, state);
        tl_center(maximum, tl_offset_dtype(row->folded, state->offset), state);
        tl_walk(backend, fold, row, start, end, skip, state, scratch);
    }
    return sum == sum;
}

/* Begins the state of a row, whose first granule tells where it lies, but for rare rows. */
static int begin(const tl_backend *backend, const tl_row *row, int64_t skip, tl_state *state, tl_scratch *scratch) {
    tl_clear(scratch);
    int64_t first = row->count < TL_GRANULE ? row->count : TL_GRANULE;
    return tl_begin(tl_maximum_between(backend, row, 0, first, skip, scratch), row->folded, NULL, state);
}

void tl_fold_part(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block, int64_t skip,
                  tl_state *state, tl_patience *patience) {
    tl_scratch scratch;
    int going;
    assert(start % block == 0 && block <= TL_BLOCK && skip < row->count);
    if (start == 0) {
        going = begin(backend, row, skip, state, &scratch);
    } else {
        double sum = tl_total(state->sum);
        going = sum == sum;
        tl_clear(&scratch);
    }
    for (int64_t next; going && start < end; start = next) {
        next = end - start < block ? end : start + block;
        going = tl_fold_block(backend, row, start, next, skip, state, &scratch);
        if (next % TL_PAUSE == 0 && tl_gave_up(patience))
            return;
    }
}

void tl_fold_row(const tl_backend *backend, const tl_row *row, int64_t skip, tl_state *state, tl_patience *patience) {
    tl_fold_part(backend, row, 0, row->count, TL_BLOCK, skip, state, patience);
}

/* Copies elements [start, start + length) of rows that lie beside each other, so that each row is contiguous. */
static void turn(const tl_row *rows, int count, int64_t start, int64_t length, char *turned) {
    int size = tl_itemsize(rows->dtype);
    for (int64_t i = 0; i < length; i++) {
        tl_prefetch(rows[0].data + (start + i + 16) * rows->stride);
        for (int r = 0; r < count; r++) {
            const char *from = rows[r].data + (start + i) * rows->stride;
            char *to = turned + (r * TL_TURNED_ROW + i) * size;
            uint16_t half;
            uint32_t single;
            uint64_t wide;
            switch (size) {
            case 2: half = tl_load16(from, rows->dtype); memcpy(to, &half, 2); break;
            case 4: single = tl_load32(from, rows->dtype); memcpy(to, &single, 4); break;
            default: wide = tl_load64(from, rows->dtype); memcpy(to, &wide, 8);
            }
        }
    }
}

void tl_fold_beside(const tl_backend *backend, const tl_row *rows, const int64_t *skips, int count, void *turned,
                    tl_state *states, tl_patience *patience) {
    int going[TL_BESIDE];
    assert(count >= 0 && count <= TL_BESIDE);
    if (count == 0)
        return;
    tl_row part = *rows;
    part.stride = tl_itemsize(rows->dtype);
    part.dtype = rows->dtype & ~TL_SWAPPED;
    for (int64_t start = 0; start == 0 || start < rows->count; start += TL_BLOCK) {
        part.count = rows->count - start < TL_BLOCK ? rows->count - start : TL_BLOCK;
        turn(rows, count, start, part.count, turned);
        for (int r = 0; r < count; r++) {
            tl_scratch scratch;
            tl_clear(&scratch);
            part.data = (const char *)turned + r * TL_TURNED_ROW * part.stride;
            int64_t skip = skips[r] - start;
            if (start == 0)
                going[r] = begin(backend, &part, skip, &states[r], &scratch);
            if (going[r])
                going[r] = tl_fold_block(backend, &part, 0, part.count, skip, &states[r], &scratch);
        }
        if (tl_gave_up(patience))
            return;
    }
}

double tl_sum_of(const double *lanes, const double *errors) {
    double lane[16], error[16];
    for (int i = 0; i < 16; i++) {
        lane[i] = lanes[i];
        error[i] = errors[i];
    }
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) {
            double sum = lane[i] + lane[i + half], other = sum - lane[i];
            error[i] += error[i + half] + ((lane[i] - (sum - other)) + (lane[i + half] - other));
            lane[i] = sum;
        }
    return lane[0] + error[0];
}

double tl_log_of_sum(const tl_state *state, const tl_row *row) {
    /* what was subtracted for ln 2, and so what the exponent is worth */
    double ln2 = row->folded == TL_FLOAT64 ? TL_LN2 : 0x1.62e43p-1;
    return (double)state->exponent * ln2 + tl_log(tl_sum_of(state->sum, state->error));
}

double tl_mean(const tl_state *state) {
    return tl_sum_of(state->moment->sum, state->moment->error) / tl_sum_of(state->sum, state->error);
}

tl_normalizer tl_normalize(const tl_state *state, const tl_row *row) {
    tl_normalizer normalizer = {state->offset, tl_log_of_sum(state, row)};
    return normalizer;
}

double tl_gap(const tl_state *rest, const tl_row *row, double logit) { return tl_gap_to(tl_normalize(rest, row), logit); }

tl_normalizer tl_add_logit(tl_normalizer rest, double logit, double gap) {
    tl_normalizer normalizer = {logit, tl_softplus(gap)};
    if (gap > 0 || logit == -(double)INFINITY) {
        normalizer = rest;
        if (gap > 0)
            normalizer.log += tl_softplus(-gap);
    }
    return normalizer;
}

tl_normalizer tl_normalize_with(const tl_state *rest, const tl_row *row, double logit, double gap) {
    return tl_add_logit(tl_normalize(rest, row), logit, gap);
}

/* The class whose logit lies above a bound that no two can pass; the count of classes if there is none. */
static int64_t find_above(const tl_backend *backend, const tl_row *row, double bound) {
    tl_row raw = tl_raw(row);
    tl_scratch scratch;
    tl_clear(&scratch);
    for (int64_t start = 0, end; start < row->count; start = end) {
        end = row->count - start < TL_BLOCK ? row->count : start + TL_BLOCK;
        double maximum = tl_maximum_between(backend, &raw, start, end, -1, &scratch);
        if (tl_squash(backend, row, maximum) > bound)
            return tl_find(backend, &raw, start, end, maximum);
    }
    return row->count;
}

/* As tl_logsumexp_of, of a row whose plain logsumexp is near 0. */
static double near_zero(const tl_backend *backend, const tl_row *row, double logsumexp, int64_t skipped,
                        const tl_state *rest, tl_patience *patience) {
    tl_state folded;
    if (skipped < 0 || !(tl_score(backend, row, skipped) > logsumexp - FALL)) {
        skipped = find_above(backend, row, logsumexp - FALL);
        if (skipped == row->count)
            return logsumexp;
        tl_fold_row(backend, row, skipped, &folded, patience);
        rest = &folded;
    }
    double logit = tl_score(backend, row, skipped);
    return tl_logsumexp(tl_normalize_with(rest, row, logit, tl_gap(rest, row, logit)));
}

double tl_logsumexp_of(const tl_backend *backend, const tl_row *row, const tl_state *state, int64_t skipped,
                       const tl_state *rest, tl_patience *patience) {
    double logsumexp = tl_logsumexp(tl_normalize(state, row)), most = 0;
    if (!(tl_abs(logsumexp) < NEAR_ZERO))
        return logsumexp;
    for (int i = 0; i < 16; i++)
        most = state->sum[i] > most ? state->sum[i] : most;
    if (most < OUTWEIGHING * tl_total(state->sum))
        return logsumexp;
    return near_zero(backend, row, logsumexp, skipped, rest, patience);
}
