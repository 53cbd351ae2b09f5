#include "fold.h"

#include "scalar_math.h"

/* The direct reduction x - n ln 2 is exact to |x| = 2^16, which holds every float16. Rows whose maximum lies farther
 * out are folded as x - offset, through scratch. */
#define FAR_OUT 65536.0

/* A row refers to an exponent near its maximum. Below the first bound, terms that were flushed (2^-126 and less) might
 * matter; above the second, the float32 nearest to ln 2, wrong by 1.9e-9, was subtracted too many times. */
#define LEAST_SUM 0x1p-58
#define GREATEST_SUM 0x1p36

#define PATIENCE_SECONDS 0.05

int tl_gave_up(tl_patience *patience) {
    if (*patience->stopped)
        return 1;
    if (patience->ask) {
        double now = tl_seconds();
        /* a clock that was set back must not silence us */
        if (now - patience->last_asked > PATIENCE_SECONDS || now < patience->last_asked) {
            patience->last_asked = now;
            if (patience->ask(patience->argument))
                *patience->stopped = 1;
        }
    }
    return *patience->stopped;
}

/* A granule of a row, copied where it cannot be folded in place. */
typedef struct {
    union {
        uint16_t half[TL_GRANULE];
        float single[TL_GRANULE];
        double wide[TL_GRANULE];
    } at;
    int64_t start; /* the element that comes first; -1 at the beginning */
    double offset; /* what was subtracted */
    int dtype;     /* the row's own in native order, or float32/float64 where an offset was subtracted */
} tl_scratch;

/* Makes the elements [from, to) of the scratch -inf, the neutral element. */
static void blank(tl_scratch *scratch, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++)
        switch (scratch->dtype) {
        case TL_FLOAT16: scratch->at.half[i] = 0xfc00; break;
        case TL_BFLOAT16: scratch->at.half[i] = 0xff80; break;
        case TL_FLOAT32: scratch->at.single[i] = -INFINITY; break;
        default: scratch->at.wide[i] = -(double)INFINITY;
        }
}

/* Copies elements [start, start + count) into scratch, less the offset and without the one at `skip`, padded with -inf
 * as folds want it. */
static void gather(const tl_row *row, int64_t start, int64_t count, int64_t skip, double offset, tl_scratch *scratch) {
    if (scratch->start == start && scratch->offset == offset)
        return;
    int dtype = row->dtype & ~TL_SWAPPED;
    const char *from = row->data + start * row->stride;
    if (offset != 0) {
        dtype = dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
        for (int64_t i = 0; i < count; i++, from += row->stride) {
            double value = tl_load(from, row->dtype) - offset;
            if (dtype == TL_FLOAT64)
                scratch->at.wide[i] = value;
            else
                scratch->at.single[i] = (float)value;
        }
    } else if (row->stride == tl_itemsize(dtype) && row->dtype == dtype) {
        memcpy(&scratch->at, from, (size_t)(count * row->stride));
    } else if (tl_itemsize(dtype) == 2) {
        for (int64_t i = 0; i < count; i++, from += row->stride)
            scratch->at.half[i] = tl_load16(from, row->dtype);
    } else if (tl_itemsize(dtype) == 4) {
        for (int64_t i = 0; i < count; i++, from += row->stride)
            scratch->at.single[i] = tl_float_from_bits(tl_load32(from, row->dtype));
    } else {
        for (int64_t i = 0; i < count; i++, from += row->stride)
            scratch->at.wide[i] = tl_from_bits(tl_load64(from, row->dtype));
    }
    scratch->start = start;
    scratch->offset = offset;
    scratch->dtype = dtype;
    blank(scratch, count, (count + TL_PADDED - 1) / TL_PADDED * TL_PADDED);
    if (skip >= start && skip < start + count)
        blank(scratch, skip - start, skip - start + 1);
}

/* Folds the elements [start, end) but for `skip`: in place where they can be, else granule by granule from scratch. */
static void walk(tl_fold *const *folds, const tl_row *row, int64_t start, int64_t end, int64_t skip, tl_state *state,
                 tl_scratch *scratch) {
    int in_place = row->stride == tl_itemsize(row->dtype) && !(row->dtype & TL_SWAPPED) && state->offset == 0;
    while (start < end) {
        int64_t until = skip >= start && skip < end ? skip : end;
        int64_t count = in_place ? (until - start) / TL_GRANULE * TL_GRANULE : 0;
        if (count > 0) {
            folds[row->dtype](row->data + start * row->stride, (size_t)count, state);
        } else {
            count = end - start < TL_GRANULE ? end - start : TL_GRANULE;
            gather(row, start, count, skip, state->offset, scratch);
            folds[scratch->dtype](&scratch->at, (size_t)count, state);
        }
        start += count;
    }
}

static double maximum_between(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                              tl_scratch *scratch) {
    tl_state state;
    state.offset = 0;
    state.maximum = -(double)INFINITY;
    walk(backend->maximum, row, start, end, skip, &state, scratch);
    return state.maximum;
}

double tl_maximum(const tl_backend *backend, const tl_row *row) {
    tl_scratch scratch;
    scratch.start = -1;
    return maximum_between(backend, row, 0, row->count, -1, &scratch);
}

static double total(const tl_state *state) {
    double sum = 0;
    for (int i = 0; i < 16; i++)
        sum += state->sum[i];
    return sum;
}

/* Moves the state to a reference near this maximum. Returns 0 if that is +inf, and so the row's sum nan. */
static int refer_to(double maximum, tl_state *state) {
    if (maximum == -(double)INFINITY)
        return 1;
    if (maximum == (double)INFINITY) {
        state->sum[0] = (double)NAN;
        return 0;
    }
    double offset = tl_abs(maximum) > FAR_OUT ? maximum : 0;
    int64_t exponent = offset == 0 ? (int64_t)(maximum * TL_LOG2E + (maximum < 0 ? -0.5 : 0.5)) : 0;
    if (total(state) != 0) {
        int64_t fall = state->exponent - exponent;
        double factor = state->offset == offset ? tl_scale(1, fall)
                                                : tl_exp((state->offset - offset) + (double)fall / TL_LOG2E);
        for (int i = 0; i < 16; i++) {
            state->sum[i] *= factor;
            state->error[i] *= factor;
        }
    }
    state->offset = offset;
    state->exponent = exponent;
    state->overflowed = 0;
    return 1;
}

/* Folds the elements [start, end) but for `skip`, at most a block. Returns 0 if the row's sum is known to be nan, for a
 * nan or +inf was met. */
static int fold_block(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                      tl_state *state, tl_scratch *scratch) {
    tl_state before = *state;
    walk(backend->sum, row, start, end, skip, state, scratch);
    double sum = total(state);
    if (TL_RARELY(!(sum >= LEAST_SUM && sum <= GREATEST_SUM) || state->overflowed)) {
        *state = before;
        if (!refer_to(maximum_between(backend, row, start, end, skip, scratch), state))
            return 0;
        walk(backend->sum, row, start, end, skip, state, scratch);
        sum = total(state);
    }
    return sum == sum;
}

/* Begins the state of a row, whose first granule tells where it lies, but for rare rows. */
static int begin(const tl_backend *backend, const tl_row *row, int64_t skip, tl_state *state, tl_scratch *scratch) {
    memset(state, 0, sizeof *state);
    scratch->start = -1;
    int64_t first = row->count < TL_GRANULE ? row->count : TL_GRANULE;
    return refer_to(maximum_between(backend, row, 0, first, skip, scratch), state);
}

void tl_fold_row(const tl_backend *backend, const tl_row *row, int64_t skip, tl_state *state, tl_patience *patience) {
    tl_scratch scratch;
    int going = begin(backend, row, skip, state, &scratch);
    for (int64_t start = 0; going && start < row->count; start += TL_BLOCK) {
        int64_t end = row->count - start < TL_BLOCK ? row->count : start + TL_BLOCK;
        going = fold_block(backend, row, start, end, skip, state, &scratch);
        if (end % (16 * TL_BLOCK) == 0 && tl_gave_up(patience))
            return;
    }
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
    if (count == 0)
        return;
    tl_row part = {NULL, 0, tl_itemsize(rows->dtype), rows->dtype & ~TL_SWAPPED};
    for (int64_t start = 0; start == 0 || start < rows->count; start += TL_BLOCK) {
        part.count = rows->count - start < TL_BLOCK ? rows->count - start : TL_BLOCK;
        turn(rows, count, start, part.count, turned);
        for (int r = 0; r < count; r++) {
            tl_scratch scratch;
            scratch.start = -1;
            part.data = (const char *)turned + r * TL_TURNED_ROW * part.stride;
            int64_t skip = skips[r] - start;
            if (start == 0)
                going[r] = begin(backend, &part, skip, &states[r], &scratch);
            if (going[r])
                going[r] = fold_block(backend, &part, 0, part.count, skip, &states[r], &scratch);
        }
        if (tl_gave_up(patience))
            return;
    }
}

/* log(sum) of a row's state, less its offset. */
static double log_of_sum(const tl_state *state, int dtype) {
    /* what was subtracted for ln 2, and so what the exponent is worth */
    double ln2 = (dtype & ~TL_SWAPPED) == TL_FLOAT64 ? 0x1.62e42fefa39efp-1 : 0x1.62e43p-1;
    double lane[16], error[16];
    for (int i = 0; i < 16; i++) {
        lane[i] = state->sum[i];
        error[i] = state->error[i];
    }
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) {
            double sum = lane[i] + lane[i + half], other = sum - lane[i];
            error[i] += error[i + half] + ((lane[i] - (sum - other)) + (lane[i + half] - other));
            lane[i] = sum;
        }
    return (double)state->exponent * ln2 + tl_log(lane[0] + error[0]);
}

double tl_logsumexp(const tl_state *state, int dtype) { return state->offset + log_of_sum(state, dtype); }

double tl_nll(const tl_state *state, int dtype, double logit) {
    if (!(logit <= 0x1.fffffffffffffp1023)) /* +inf or nan */
        return (double)NAN;
    return tl_softplus((state->offset - logit) + log_of_sum(state, dtype));
}
