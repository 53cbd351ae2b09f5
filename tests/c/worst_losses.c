/* Searches for the rows of 2 to 16384 classes, of float64 to 4096, whose losses for class ids are furthest from the
 * exact ones, among random rows and by hill climbing: see test_kernels.py. Prints the largest errors of each dtype and
 * number of classes.
 * Arguments: the number of random rows of each dtype, of climbs for each line, and the seed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "nll.h"
#include "rows.h"

#define KINDS 10   /* of random rows */
#define PATTERN 64 /* logits that climbing rows repeat */
#define TRIED 16   /* changes of a row that are tried at a time */
#define STEPS 1500
#define RARE 0x1p-80 /* smaller odds against the target are computed as those of longer rows */

static const int lengths[] = {2, 3, 5, 10, 32, 64, 65, 100, 512, 513, 1000, 16384};
static const int dtypes[] = {TL_FLOAT32, TL_FLOAT64};
#define LENGTHS (sizeof lengths / sizeof *lengths)

/* Rows that lie one after the other, and their losses; of rows that are far out, nothing is known. */
typedef struct {
    tl_row_block rows;
    tl_block_nll of;
    uint64_t near;
} loss_block;

static const tl_backend *backend;
static union {
    float single[TL_BLOCK_ROWS * TL_NLL_CLASSES];
    double wide[TL_BLOCK_ROWS * TL_NLL_CLASSES];
} elements;
static char *scratch;

static double element(int dtype, size_t i) {
    return dtype == TL_FLOAT32 ? (double)elements.single[i] : elements.wide[i];
}

static void set_element(int dtype, size_t i, double value) {
    if (dtype == TL_FLOAT32)
        elements.single[i] = (float)value;
    else
        elements.wide[i] = value;
}

static void find_losses(int dtype, int classes, int count, loss_block *block) {
    const ptrdiff_t size = tl_itemsize(dtype);
    tl_groups groups;
    block->rows.row = (tl_row){.count = classes, .stride = size, .dtype = dtype, .compute_dtype = dtype};
    block->rows.row.logit_scale = 1;
    block->rows.count = count;
    block->rows.has_excluded = 1;
    block->rows.wanted = ~(uint64_t)0 >> (64 - count);
    block->rows.scratch = scratch;
    for (int r = 0; r < count; r++)
        block->rows.data[r] = (const char *)&elements + (ptrdiff_t)r * classes * size;
    block->near = tl_nll_of_block(backend, &block->rows, &block->of, &groups);
}

/* exp(x - y), with more digits than the dtype has. */
static long double exp_of(int dtype, double x, double y) {
    return dtype == TL_FLOAT32 ? (long double)exp(x - y) : expl((long double)x - (long double)y);
}

/* Errors in double are relative to a loss or logsumexp beyond 1. */
static long double in_its_unit(int dtype, long double error, double logit, long double loss) {
    return dtype == TL_FLOAT32 ? error : error / fmaxl(1, fmaxl(loss, fabsl((long double)logit + loss)));
}

/* Random rows ----------------------------------------------------------------------------------------------------*/

typedef struct {
    double absolute, relative, sum;
    int64_t count, far;
} errors;

/* Normal logits of several scales, some of them -inf, shifted, with a target that is nearly certain, or all equal. */
static void fill_random(int dtype, int kind, int classes, int64_t target, size_t first) {
    static const double scales[KINDS] = {1, 3, 10, 30, 0.01, 3, 3, 60, 3, 3};
    double shift = kind == 5 ? 1000 * centred() : kind == 9 ? uniform(0, 20000) : 0;
    for (int k = 0; k < classes; k++) {
        double x = kind == 8 && k > 0 ? element(dtype, first) : scales[kind] * centred() + shift;
        if (kind == 1 && k != target && random_bits() % 4 == 0)
            x = -(double)INFINITY;
        if (kind == 6 && k == target)
            x += uniform(0, 50);
        set_element(dtype, first + (size_t)k, x);
    }
}

static void add_error(int dtype, const loss_block *block, int r, errors *all) {
    const size_t classes = (size_t)block->rows.row.count, first = (size_t)r * classes;
    const size_t target = (size_t)block->rows.excluded[r];
    const double logit = element(dtype, first + target);
    long double odds = 0;
    for (size_t k = 0; k < classes; k++)
        if (k != target)
            odds += exp_of(dtype, element(dtype, first + k), logit);
    const long double exact = log1pl(odds), error = (long double)block->of.nll[r] - exact;
    const double size = (double)fabsl(in_its_unit(dtype, error, logit, exact));
    all->absolute = fmax(all->absolute, size);
    if (odds >= (long double)RARE)
        all->relative = fmax(all->relative, (double)fabsl(error / exact));
    all->sum += (double)error;
    all->count++;
}

static void try_random(int dtype, int classes, int64_t count) {
    errors all = {0};
    const int rows = tl_row_block_rows(classes, 0);
    for (int64_t i = 0; i < count; i += rows) {
        loss_block block;
        for (int r = 0; r < rows; r++) {
            block.rows.excluded[r] = die(classes);
            fill_random(dtype, (int)(i / rows % KINDS), classes, block.rows.excluded[r],
                        (size_t)r * (size_t)classes);
        }
        find_losses(dtype, classes, rows, &block);
        for (int r = 0; r < rows; r++)
            if (block.near >> r & 1)
                add_error(dtype, &block, r, &all);
            else
                all.far++;
    }
    printf("%s random absolute %.3g relative %.3g mean %.2g of %d classes, %lld rows, %lld far out\n",
           dtype_names[dtype], all.absolute, all.relative, all.sum / (double)all.count, classes, (long long)all.count,
           (long long)all.far);
}

/* Climbing -------------------------------------------------------------------------------------------------------*/

/* A row that is tried: class k lies above[k / run % period] above the target. */
typedef struct {
    double logit, above[PATTERN];
    int64_t target;
    int period;
} candidate;

/* Classes that follow each other with one logit: all lanes of a longer row add the same. */
static int run_of(int classes) { return classes <= TL_FEW_CLASSES ? 1 : 16; }

static double some_difference(void) { return die(2) ? uniform(-3, 3) : uniform(-18, 3); }

static candidate some_row(int classes, int is_relative) {
    const double shift = die(2) ? uniform(is_relative ? -52 : -9, is_relative ? 0 : 20) : 0;
    const double equal = some_difference();
    const int is_flat = die(4) == 0;
    candidate row = {.logit = die(2) ? uniform(-1, 1) : uniform(-30, 30), .target = die(classes)};
    const int runs = classes / run_of(classes), longest = runs < PATTERN ? runs : PATTERN;
    row.period = 1 + die(die(2) && longest > 4 ? 4 : longest);
    for (int j = 0; j < PATTERN; j++)
        row.above[j] = shift + (is_flat ? equal : some_difference());
    return row;
}

static void change(int classes, candidate *row) {
    const int j = die(row->period);
    switch (die(10)) {
    case 0: row->target = die(classes); break;
    case 1: row->logit = die(2) ? uniform(-40, 40) : row->logit + uniform(-1, 1); break;
    case 2: row->logit += uniform(-0.001, 0.001); break;
    case 3: row->above[j] = row->above[die(row->period)]; break;
    case 4:
    case 5: row->above[j] += uniform(-3, 3); break;
    case 6:
    case 7: row->above[j] += uniform(-0.1, 0.1); break;
    case 8: row->above[j] += uniform(-1e-5, 1e-5); break;
    default:
        for (double by = uniform(-0.1, 0.1) * (die(2) ? 1 : 1e-4), *at = row->above; at < row->above + PATTERN; at++)
            *at += by;
    }
}

/* Writes a row; its exact odds against the target. */
static long double write_candidate(int dtype, int classes, const candidate *row, size_t first) {
    const size_t run = (size_t)run_of(classes), all = (size_t)classes, target = (size_t)row->target;
    const size_t size = (size_t)tl_itemsize(dtype), period = (size_t)row->period * run;
    char *start = (char *)&elements + first * size;
    long double odds = 0;
    set_element(dtype, first, row->logit);
    const double logit = element(dtype, first);
    for (size_t k = 0; k < period; k++)
        set_element(dtype, first + k, row->logit + row->above[k / run]);
    for (size_t k = 0; k < period; k += run) {
        size_t count = 0;
        for (size_t i = k; i < all; i += period)
            count += (all - i < run ? all - i : run) - (target >= i && target < i + run);
        odds += count == 0 ? 0 : (long double)count * exp_of(dtype, element(dtype, first + k), logit);
    }
    for (size_t done = period, n; done < all; done += n) {
        n = done < all - done ? done : all - done;
        memcpy(start + done * size, start, n * size);
    }
    set_element(dtype, first + target, logit);
    return odds;
}

/* The errors of candidates: 0 of those that are far out. */
static void find_errors(int dtype, int classes, int is_relative, const candidate *row, double *error) {
    loss_block block;
    long double odds[TRIED];
    for (int r = 0; r < TRIED; r++) {
        odds[r] = write_candidate(dtype, classes, &row[r], (size_t)r * (size_t)classes);
        block.rows.excluded[r] = row[r].target;
    }
    find_losses(dtype, classes, TRIED, &block);
    for (int r = 0; r < TRIED; r++) {
        const long double exact = log1pl(odds[r]), by = (long double)block.of.nll[r] - exact;
        const int is_known = (block.near >> r & 1) && odds[r] >= (long double)RARE;
        error[r] = !is_known     ? 0
                   : is_relative ? (double)(by / exact)
                                 : (double)in_its_unit(dtype, by, row[r].logit, exact);
    }
}

static void climb(int dtype, int classes, int is_relative, int climbs) {
    candidate worst[2] = {0};
    double largest[2] = {0};
    for (int i = 0; i < climbs; i++) {
        const double sign = i % 2 ? 1 : -1;
        candidate row = some_row(classes, is_relative), tried[TRIED];
        double error = 0, errors[TRIED];
        for (int step = 0; step < STEPS; step++) {
            for (int r = 0; r < TRIED; r++) {
                tried[r] = row;
                for (int changes = step == 0 ? r : 1 + die(3); changes > 0; changes--)
                    change(classes, &tried[r]);
            }
            find_errors(dtype, classes, is_relative, tried, errors);
            for (int r = 0; r < TRIED; r++)
                if (!(sign * errors[r] < sign * error)) {
                    row = tried[r];
                    error = errors[r];
                }
        }
        if (!(sign * error < sign * largest[i % 2])) {
            largest[i % 2] = error;
            worst[i % 2] = row;
        }
    }
    const int larger = largest[1] > -largest[0];
    const candidate *row = &worst[larger];
    printf("%s climbed %s %.3g to %.3g of %d classes: the target has class %lld and logit %.9g, others are above by",
           dtype_names[dtype], is_relative ? "relative" : "absolute", largest[0], largest[1], classes,
           (long long)row->target, row->logit);
    for (int j = 0; j < row->period; j++)
        printf(" %.9g", row->above[j]);
    printf("\n");
}

int main(int argc, char **argv) {
    const double rows = argc > 1 ? atof(argv[1]) : 2e5;
    const int climbs = argc > 2 ? atoi(argv[2]) : 4;
    for (int id = 0; id < TL_BACKENDS && !backend; id++)
        backend = tl_find_backend((tl_backend_id)id);
    scratch = (char *)malloc(tl_row_block_bytes(TL_SHORT_ROW, 0));
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (size_t i = 0; i < LENGTHS; i++) {
            seed = (argc > 3 ? (uint64_t)atoi(argv[3]) : 0) * 1000 + d * LENGTHS + i;
            const int most = (int)tl_nll_classes(dtypes[d]), classes = lengths[i] < most ? lengths[i] : most;
            try_random(dtypes[d], classes, (int64_t)(rows * fmin(0.2, 2.0 / classes)));
            for (int is_relative = 0; is_relative < 2; is_relative++)
                climb(dtypes[d], classes, is_relative, climbs);
            fflush(stdout);
        }
    free(scratch);
    return 0;
}
