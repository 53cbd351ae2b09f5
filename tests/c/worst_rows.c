/* Searches for the rows whose logsumexp and losses are furthest from the exact ones, by hill climbing: see
 * test_kernels.py. Prints the largest error of each dtype and family of rows, and the row. */
#include <math.h>
#include <stdio.h>

#include "kernels.h"
#include "loss_of_row.h"
#include "losses.h"
#include "rows.h"

#define PERIOD 8                       /* terms that a lane adds in a chunk */
#define LONGEST_ROW ((int64_t)1 << 20) /* besides the leading chunk and the target */
#define STARTS 120
#define STEPS 2500
#define LONG_ROWS 60
#define RANDOM_ROWS 2000
#define LN2 0.693147180559945309417L

/* A dtype, and whether logits are scaled or capped; the name of both. */
typedef struct {
    const char *name;
    int dtype, compute_dtype;
    double logit_scale, softcap;
} setting;

static const setting settings[] = {
    {"float16", TL_FLOAT16, TL_FLOAT16, 1, 0},           {"bfloat16", TL_BFLOAT16, TL_BFLOAT16, 1, 0},
    {"float32", TL_FLOAT32, TL_FLOAT32, 1, 0},           {"float64", TL_FLOAT64, TL_FLOAT64, 1, 0},
    {"scaled_float32", TL_FLOAT32, TL_FLOAT64, 0.75, 0}, {"capped_bfloat16", TL_BFLOAT16, TL_FLOAT64, 1.25, 30},
};

/* Aligned: all lanes add the same terms. Far: a leading chunk lies far below, and gives the reference exponent. Masked:
 * it is -inf, and the reference exponent 0. Target: the loss of a class that may be likely. Certain: of one that is
 * nearly certain, and its error relative to the loss. Long: the worst of the others, repeated. */
typedef enum { ALIGNED, FAR, MASKED, TARGET, CERTAIN, CLIMBED, LONG = CLIMBED, RANDOM, FAMILIES } family;
static const char *const family_names[] = {"aligned", "far", "masked", "target", "certain", "long", "random"};

/* A row that is tried. It may begin with a chunk of equal logits. The others repeat a pattern: class i has logit number
 * i / 64 % period of it, which is base + eighths ln 2 / 8 + rest. A target may be added. */
typedef struct {
    double base, leading, above, rest[PERIOD];
    int eighths[PERIOD], period;
    int64_t count;
} candidate;

/* The errors that are furthest above and below 0, and their rows. */
typedef struct {
    double error[2];
    candidate row[2];
} worst;

static const tl_backend *backend;
static volatile int stopped;
static tl_cancel never = {NULL, NULL, &stopped, 0}, *cancel = &never;
static double elements[LONGEST_ROW + TL_CHUNK + 1]; /* of any dtype */

static double rounded(double value, int dtype) {
    char element[8];
    tl_store(element, dtype, value);
    return tl_load(element, dtype);
}

static long double logit_of(const setting *of, double raw) {
    long double scaled = (long double)raw * (long double)of->logit_scale, cap = (long double)of->softcap;
    return cap != 0 && isfinite(scaled) ? cap * tanhl(scaled / cap) : scaled; /* a cap leaves infinities as they are */
}

/* A row of `count` elements, and its exact logsumexp. */
typedef struct {
    tl_row row;
    long double logsumexp;
} built_row;

static void fill_with(const setting *of, int64_t start, int64_t count, double value) {
    const int64_t size = tl_itemsize(of->dtype);
    char *at = (char *)elements + start * size;
    tl_store(at, of->dtype, value);
    for (int64_t done = 1, n; done < count; done += n) {
        n = done < count - done ? done : count - done;
        memcpy(at + done * size, at, (size_t)(n * size));
    }
}

static tl_row row_of(const setting *of, int64_t count) {
    return (tl_row){(const char *)elements,
                    count,
                    tl_itemsize(of->dtype),
                    of->dtype,
                    of->compute_dtype,
                    of->logit_scale,
                    of->softcap,
                    0,
                    0};
}

/* Writes the row without its target, and sums one period of it. */
static built_row build(const setting *of, const candidate *from) {
    const int64_t leading = from->leading == 0 ? 0 : TL_CHUNK, chunks = from->count / TL_CHUNK;
    double pattern[PERIOD];
    long double maximum = -(long double)INFINITY, sum = 0, low = 0;
    for (int j = 0; j < PERIOD; j++) {
        int k = j % from->period;
        pattern[j] = rounded(from->base + from->eighths[k] * (double)(LN2 / 8) + from->rest[k], of->dtype);
        fill_with(of, leading + TL_LANES * j, TL_LANES, pattern[j]);
        maximum = fmaxl(maximum, logit_of(of, pattern[j]));
    }
    const int64_t size = tl_itemsize(of->dtype);
    char *first = (char *)elements + leading * size;
    for (int64_t done = TL_CHUNK, n; done < from->count; done += n) {
        n = done < from->count - done ? done : from->count - done;
        memcpy(first + done * size, first, (size_t)(n * size));
    }
    for (int j = 0; j < PERIOD; j++) {
        int64_t left = from->count % TL_CHUNK - TL_LANES * j;
        left = left < 0 ? 0 : left > TL_LANES ? TL_LANES : left;
        sum += (long double)(chunks * TL_LANES + left) * expl(logit_of(of, pattern[j]) - maximum);
    }
    if (leading) {
        low = rounded(from->leading, of->dtype);
        fill_with(of, 0, leading, (double)low);
        sum += TL_CHUNK * expl(logit_of(of, (double)low) - maximum);
    }
    return (built_row){row_of(of, leading + from->count), maximum + logl(sum)};
}

/* Errors of doubles are relative to a value beyond 1. */
static double in_its_unit(const setting *of, long double error, long double value) {
    return (double)(of->compute_dtype == TL_FLOAT64 ? error / fmaxl(1, fabsl(value)) : error);
}

static double logsumexp_error(const setting *of, const tl_row *row, long double exact) {
    long double error = (long double)logsumexp_of_row(backend, row, cancel) - exact;
    return in_its_unit(of, error, exact);
}

/* The error of the loss of one more class, whose logit is so far above the others. */
static double loss_error(const setting *of, built_row *built, double above, int is_relative) {
    const int64_t target = built->row.count++;
    double raw = rounded((double)((built->logsumexp + (long double)above) / (long double)of->logit_scale), of->dtype);
    fill_with(of, target, 1, raw);
    const tl_loss loss = plain_loss(target);
    long double logit = logit_of(of, raw), log_odds = built->logsumexp - logit;
    long double exact = log_odds > 0 ? log_odds + log1pl(expl(-log_odds)) : log1pl(expl(log_odds));
    long double error = (long double)loss_of_row(backend, &built->row, &loss, cancel) - exact;
    if (is_relative)
        return (double)(error / exact);
    return in_its_unit(of, error, fmaxl(fabsl(built->logsumexp), exact));
}

static double error_of(const setting *of, const candidate *row, family kind) {
    built_row built = build(of, row);
    return kind == TARGET || kind == CERTAIN ? loss_error(of, &built, row->above, kind == CERTAIN)
                                             : logsumexp_error(of, &built.row, built.logsumexp);
}

/* Where rows lie: near 0, far out, or beyond what is reduced without an offset. */
static double some_base(const setting *of, family kind) {
    double far = exp(uniform(0, log(TL_MAX_EXACT_REDUCTION))) * (die(2) ? 1 : -1);
    if (kind == MASKED)
        return uniform(-9, 25); /* sums from 0.5 on are in range */
    if (kind == CERTAIN || of->softcap != 0 || die(2))
        return uniform(-1, 1);
    return die(8) == 0 && of->dtype != TL_FLOAT16 ? 50 * far : far;
}

static void change_rest(double *rest) {
    const double bound = (double)LN2 / 16 + 0.001;
    *rest = die(2) ? uniform(-bound, bound) : *rest + uniform(-0.001, 0.001);
}

static void change_place(const setting *of, family kind, candidate *row) {
    if (kind == FAR && die(2))
        row->leading = row->base - (die(2) ? uniform(0, 25) : uniform(5, 9));
    else if (kind == CERTAIN && die(4))
        row->above = die(2) ? uniform(0, 30) : uniform(0, of->softcap != 0 ? of->softcap - 10 : 650);
    else if (kind == TARGET && die(2))
        row->above = uniform(-20, 3);
    else {
        double base = some_base(of, kind);
        row->leading += kind == FAR ? base - row->base : 0;
        row->base = base;
        if (kind == MASKED)
            row->count = TL_CHUNK * (1 + die(die(2) ? 1 : TL_BLOCK / TL_CHUNK - 1));
    }
}

/* Powers within 26 octaves: the least of them do not change a float that holds the largest. */
static void change(const setting *of, family kind, candidate *row) {
    int j = die(PERIOD);
    switch (die(8)) {
    case 0: row->period = 1 + die(PERIOD); break;
    case 1: change_place(of, kind, row); break;
    case 2:
    case 3:
    case 4: row->eighths[j] = die(3) ? -die(26) : -die(8 * 26); break;
    default: change_rest(&row->rest[j]);
    }
}

static candidate some_row(const setting *of, family kind) {
    candidate row = {.base = some_base(of, kind), .count = TL_CHUNK, .period = 1 + die(PERIOD)};
    for (int j = 0; j < PERIOD; j++) {
        row.eighths[j] = die(2) ? -die(26) : -die(8 * 26);
        change_rest(&row.rest[j]);
    }
    row.leading = kind == MASKED ? -(double)INFINITY : kind == FAR ? row.base - uniform(0, 25) : 0;
    return row;
}

static void keep_worst(double error, const candidate *row, worst *found) {
    const int sign = error < 0;
    if (!(fabs(error) <= fabs(found->error[sign]))) { /* nan too */
        found->error[sign] = error;
        found->row[sign] = *row;
    }
}

static void climb(const setting *of, family kind, worst *found) {
    for (int start = 0; start < STARTS; start++) {
        const double sign = start % 2 ? 1 : -1;
        candidate row = some_row(of, kind);
        double error = error_of(of, &row, kind);
        for (int step = 0; step < STEPS; step++) {
            candidate next = row;
            for (int changes = 1 + die(2); changes > 0; changes--)
                change(of, kind, &next);
            double next_error = error_of(of, &next, kind);
            if (!(sign * next_error < sign * error)) {
                row = next;
                error = next_error;
            }
        }
        keep_worst(error, &row, found);
    }
}

/* The worst rows, flat ones and any others, with up to 2^20 classes. */
static void try_long(const setting *of, const worst *found, worst *longest) {
    for (int i = 0; i < LONG_ROWS; i++) {
        const family kind = (family)(i / 2 % 3);
        candidate row = i % 8 < 6 ? found[kind == FAR ? FAR : ALIGNED].row[i % 2] : some_row(of, kind);
        row.count = i < LONG_ROWS / 2 ? LONGEST_ROW : (int64_t)exp(uniform(log(TL_CHUNK), log((double)LONGEST_ROW)));
        if (kind == FAR)
            row.leading = row.base - uniform(0, 24);
        if (kind == MASKED) {
            double octaves = floor(log2((double)row.count));
            row.leading = -(double)INFINITY;
            row.base -= (octaves - die(10)) * (double)LN2;
        }
        if (i % 8 == 7)
            row.period = 1;
        keep_worst(error_of(of, &row, LONG), &row, longest);
    }
}

/* Rows of all lengths up to 2000 with normal logits; the row that is kept has only the number of classes. */
static void try_random(const setting *of, worst *found) {
    for (int64_t i = 0; i < RANDOM_ROWS; i++) {
        candidate row = {.count = 1 + i, .period = 1, .base = exp(uniform(log(0.01), log(100)))};
        long double maximum = -(long double)INFINITY, sum = 0;
        for (int64_t k = 0; k < row.count; k++) {
            double raw = rounded(row.base * centred(), of->dtype);
            fill_with(of, k, 1, raw);
            maximum = fmaxl(maximum, logit_of(of, raw));
        }
        for (int64_t k = 0; k < row.count; k++)
            sum += expl(logit_of(of, tl_load((char *)elements + k * tl_itemsize(of->dtype), of->dtype)) - maximum);
        built_row built = {row_of(of, row.count), maximum + logl(sum)};
        keep_worst(logsumexp_error(of, &built.row, built.logsumexp), &row, found);
        row.above = uniform(-20, 3);
        keep_worst(loss_error(of, &built, row.above, 0), &row, found);
    }
}

static void print_worst(const setting *of, family kind, const worst *found) {
    const int sign = !(fabs(found->error[0]) >= fabs(found->error[1]));
    const candidate *row = &found->row[sign];
    printf("%s %s %.3g of %lld classes", of->name, family_names[kind], found->error[sign], (long long)row->count);
    if (row->leading != 0)
        printf(", after a chunk of %.9g", row->leading);
    if (row->above != 0)
        printf(", a target %.9g above", row->above);
    if (kind == RANDOM)
        printf(", deviation %.3g", row->base);
    for (int j = 0; j < row->period && kind != RANDOM; j++)
        printf("%s%.9g", j ? " " : ": ",
               rounded(row->base + row->eighths[j] * (double)(LN2 / 8) + row->rest[j], of->dtype));
    printf("\n");
}

int main(void) {
    for (int id = 0; id < TL_BACKENDS && !backend; id++)
        backend = tl_find_backend((tl_backend_id)id);
    for (size_t s = 0; s < sizeof settings / sizeof *settings; s++) {
        worst found[FAMILIES] = {0};
        seed = s;
        for (family kind = ALIGNED; kind < CLIMBED; kind++)
            climb(&settings[s], kind, &found[kind]);
        try_long(&settings[s], found, &found[LONG]);
        try_random(&settings[s], &found[RANDOM]);
        for (family kind = ALIGNED; kind < FAMILIES; kind++)
            print_worst(&settings[s], kind, &found[kind]);
        fflush(stdout);
    }
    return 0;
}
