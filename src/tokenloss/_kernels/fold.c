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

typedef union {
    uint16_t half[TL_GRANULE];
    float single[TL_GRANULE];
    double wide[TL_GRANULE];
} granule;

/* Element i of the scratch becomes -inf, the neutral element. */
static void blank(granule *scratch, int dtype, int64_t i) {
    switch (dtype) {
    case TL_FLOAT16: scratch->half[i] = 0xfc00; break;
    case TL_BFLOAT16: scratch->half[i] = 0xff80; break;
    case TL_FLOAT32: scratch->single[i] = -INFINITY; break;
    default: scratch->wide[i] = -(double)INFINITY;
    }
}

/* Copies elements [start, start + count) into scratch, but for the one at `skip`, and pads it with -inf. Returns the
 * dtype that the scratch then has: the row's own in native order, or float32/float64 less the offset. */
static int gather(const tl_row *row, int64_t start, int64_t count, int64_t skip, double offset, granule *scratch) {
    int dtype = row->dtype & ~TL_SWAPPED;
    const char *from = row->data + start * row->stride;
    if (offset != 0) {
        dtype = dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
        for (int64_t i = 0; i < count; i++, from += row->stride) {
            double value = tl_load(from, row->dtype) - offset;
            if (dtype == TL_FLOAT64)
                scratch->wide[i] = value;
            else
                scratch->single[i] = (float)value;
        }
    } else if (row->stride == tl_itemsize(dtype) && row->dtype == dtype) {
        memcpy(scratch, from, (size_t)(count * row->stride));
    } else {
        for (int64_t i = 0; i < count; i++, from += row->stride) {
            uint64_t bits = tl_load_bits(from, row->dtype);
            switch (tl_itemsize(dtype)) {
            case 2: scratch->half[i] = (uint16_t)bits; break;
            case 4: scratch->single[i] = tl_float_from_bits((uint32_t)bits); break;
            default: memcpy(&scratch->wide[i], &bits, sizeof bits);
            }
        }
    }
    for (int64_t i = count; i < TL_GRANULE; i++)
        blank(scratch, dtype, i);
    if (skip >= start && skip < start + count)
        blank(scratch, dtype, skip - start);
    return dtype;
}

/* Folds the elements [start, end) but for `skip`: in place where they can be, else granule by granule from scratch. */
static void walk(tl_fold *const *folds, const tl_row *row, int64_t start, int64_t end, int64_t skip, tl_state *state) {
    granule scratch;
    int in_place = row->stride == tl_itemsize(row->dtype) && !(row->dtype & TL_SWAPPED) && state->offset == 0;
    while (start < end) {
        int64_t until = skip >= start && skip < end ? skip : end;
        int64_t count = in_place ? (until - start) / TL_GRANULE * TL_GRANULE : 0;
        if (count > 0) {
            folds[row->dtype](row->data + start * row->stride, (size_t)count, state);
        } else {
            count = end - start < TL_GRANULE ? end - start : TL_GRANULE;
            int dtype = gather(row, start, count, skip, state->offset, &scratch);
            folds[dtype](&scratch, (size_t)count, state);
        }
        start += count;
    }
}

static double maximum_between(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip) {
    tl_state state;
    state.offset = 0;
    state.maximum = -(double)INFINITY;
    walk(backend->maximum, row, start, end, skip, &state);
    return state.maximum;
}

double tl_maximum(const tl_backend *backend, const tl_row *row) {
    return maximum_between(backend, row, 0, row->count, -1);
}

/* Moves the state to a reference near the maximum of the elements [start, end). Returns 0 if that is +inf. */
static int refer_to_maximum(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t skip,
                            tl_state *state) {
    double maximum = maximum_between(backend, row, start, end, skip);
    if (maximum == -(double)INFINITY)
        return 1;
    if (maximum == (double)INFINITY) {
        state->sum[0] = (double)NAN;
        return 0;
    }
    double offset = tl_abs(maximum) > FAR_OUT ? maximum : 0;
    int64_t exponent = offset == 0 ? (int64_t)(maximum * TL_LOG2E + (maximum < 0 ? -0.5 : 0.5)) : 0;
    int64_t fall = state->exponent - exponent;
    double factor = state->offset == offset ? tl_scale(1, fall)
                                            : tl_exp((state->offset - offset) + (double)fall / TL_LOG2E);
    for (int i = 0; i < 16; i++)
        if (state->sum[i] != 0) {
            state->sum[i] *= factor;
            state->error[i] *= factor;
        }
    state->offset = offset;
    state->exponent = exponent;
    state->overflowed = 0;
    return 1;
}

static double total(const tl_state *state) {
    double sum = 0;
    for (int i = 0; i < 16; i++)
        sum += state->sum[i];
    return sum;
}

/* The state of the whole row but for `skip`. Its sum is nan if a nan or +inf was met. */
static void fold_row(const tl_backend *backend, const tl_row *row, int64_t skip, tl_state *state,
                     tl_patience *patience) {
    memset(state, 0, sizeof *state);
    /* the first granule tells where the row lies, but for rare rows */
    if (!refer_to_maximum(backend, row, 0, row->count < TL_GRANULE ? row->count : TL_GRANULE, skip, state))
        return;
    for (int64_t start = 0; start < row->count; start += TL_BLOCK) {
        int64_t end = row->count - start < TL_BLOCK ? row->count : start + TL_BLOCK;
        tl_state before = *state;
        walk(backend->sum, row, start, end, skip, state);
        double sum = total(state);
        if (TL_RARELY(!(sum >= LEAST_SUM && sum <= GREATEST_SUM) || state->overflowed)) {
            *state = before;
            if (!refer_to_maximum(backend, row, start, end, skip, state))
                return;
            walk(backend->sum, row, start, end, skip, state);
            sum = total(state);
            if (sum != sum)
                return;
        }
        if (end % (16 * TL_BLOCK) == 0 && tl_gave_up(patience))
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

double tl_logsumexp(const tl_backend *backend, const tl_row *row, tl_patience *patience) {
    tl_state state;
    fold_row(backend, row, -1, &state, patience);
    return state.offset + log_of_sum(&state, row->dtype);
}

double tl_nll(const tl_backend *backend, const tl_row *row, int64_t target, tl_patience *patience) {
    double logit = tl_load(row->data + target * row->stride, row->dtype);
    if (!(logit <= 0x1.fffffffffffffp1023)) /* +inf or nan */
        return (double)NAN;
    tl_state state;
    fold_row(backend, row, target, &state, patience);
    return tl_softplus((state.offset - logit) + log_of_sum(&state, row->dtype));
}
