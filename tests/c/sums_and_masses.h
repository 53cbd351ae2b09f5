/* Functions of many values or rows at once give what the plainest loop gives: for golden.c, which runs them everywhere.
 */
#ifndef TOKENLOSS_TEST_SUMS_AND_MASSES_H
#define TOKENLOSS_TEST_SUMS_AND_MASSES_H

#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "losses.h"
#include "rows.h"
#include "superacc.h"

static void need_same(int holds, const char *what) {
    if (!holds) {
        printf("%s differ\n", what);
        exit(1);
    }
}

static int have_same_bits(double a, double b) { return tl_to_bits(a) == tl_to_bits(b) || (a != a && b != b); }

/* A number of a size that the bins of an exact sum take, or of any. */
static double some_number(int i) {
    double any = tl_from_bits(random_bits());
    return i % 97 == 0 ? any : centred() * tl_from_bits((uint64_t)(1023 - i % 29) << 52);
}

static void check_exact_sums(const tl_backend *backend) {
    static double terms[5000];
    static unsigned char bytes[2][4 * TL_SQUARES_LIMBS];
    for (int round = 0; round < 40; round++) {
        tl_superacc sum[2] = {{.special = 0}}, one_by_one[2] = {{.special = 0}};
        int count = round < 20 ? round * 13 : 5000;
        for (int i = 0; i < count; i++) {
            terms[i] = some_number(round % 4 ? i : i * 97);
            terms[i] = terms[i] - terms[i] == 0 ? terms[i] : 0;
            tl_superacc_add(&one_by_one[TL_SUM], terms[i]);
            tl_superacc_add_product(&one_by_one[TL_SQUARES], terms[i], terms[i]);
        }
        for (int kind = TL_SUM; kind <= TL_SQUARES; kind++) {
            tl_superacc_add_many(backend, (tl_sum_kind)kind, &sum[kind], terms, (size_t)count);
            int limbs = tl_superacc_limbs((tl_sum_kind)kind, &sum[kind], bytes[0]);
            need_same(tl_superacc_limbs((tl_sum_kind)kind, &one_by_one[kind], bytes[1]) == limbs, "limbs");
            need_same(memcmp(bytes[0], bytes[1], 4 * (size_t)limbs) == 0, kind ? "exact sums of squares" : "exact sums");
        }
    }
}

static void check_masked_targets(const tl_backend *backend) {
    for (int round = 0; round < 400; round++) {
        tl_target_range range = {1 + round % 7, round % 3 ? -100 : 2, round % 5 != 0};
        int64_t targets[64], expected[64];
        char kept[64];
        int count = round % 65, found = 0;
        for (int i = 0; i < count; i++) {
            static const int64_t odd[] = {-100, 2, -1, INT64_MIN, INT64_MAX, INT64_MIN + 1};
            uint64_t bits = random_bits();
            targets[i] = round % 4 && bits >> 60 ? (int64_t)(bits % (uint64_t)range.classes) : odd[bits % 6];
            kept[i] = (char)(bits >> 40 & 3);
            int masked = (range.has_ignored && targets[i] == range.ignored) || (round % 2 && kept[i] == 0);
            int is_class = targets[i] >= 0 && targets[i] < range.classes;
            expected[i] = masked ? TL_MASKED : targets[i] < 0 ? -1 : targets[i]; /* any negative one is no class */
            found |= masked ? TL_SOME_MASKED : is_class ? 0 : TL_SOME_BAD;
        }
        need_same(backend->mask_targets(&range, round % 2 ? kept : NULL, 1, (size_t)count, targets) == found,
                  "targets");
        for (int i = 0; i < count; i++) {
            int64_t id = targets[i] < 0 && targets[i] != TL_MASKED ? -1 : targets[i];
            need_same(id == expected[i], "masked targets");
        }
    }
}

static void check_nonzeros(const tl_backend *backend) {
    for (int round = 0; round < 60; round++)
        for (int dtype = 0; dtype < TL_DTYPES; dtype++) {
            char masses[64 * 8] = {0};
            uint64_t expected = 0;
            int size = tl_itemsize(dtype);
            for (int k = 0; k < 64 * size; k++)
                masses[k] = (char)(random_bits() >> 60 ? 0 : random_bits() >> (round % 2 ? 0 : 63) << 7 >> round % 8);
            for (int k = 0; k < 64; k++)
                expected |= (uint64_t)(tl_load(masses + k * size, dtype) != 0) << k;
            need_same(backend->nonzeros(masses, dtype) == expected, "places of masses");
        }
}

#define MOST_CLASSES 700

/* Masses that are one-hot, sparse, about as many as not, or dense. */
static void fill_masses(char *masses, int dtype, int64_t rows, int64_t classes, int kind) {
    memset(masses, 0, (size_t)(rows * classes * tl_itemsize(dtype)));
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = 0; k < classes; k++) {
            int64_t own = (row * 7 + 3) % classes;
            double mass = (double)(random_bits() >> 11) * 0x1p-53;
            int is_zero = kind == 0 ? k != own : random_bits() >> 62 >= (uint64_t)kind;
            tl_store(masses + (row * classes + k) * tl_itemsize(dtype), dtype, is_zero ? 0 : kind == 0 ? 1 : mass);
        }
}

/* Places the rows of some samples in planes: `together` rows of a sample side by side, class after class. */
static void place_samples(const char *from, int size, int64_t classes, int rows, int together, char *to) {
    for (int r = 0; r < rows; r++)
        for (int64_t k = 0; k < classes; k++)
            memcpy(to + ((r / together * classes + k) * together + r % together) * size,
                   from + (r * classes + k) * size, (size_t)size);
}

/* The same rows in samples: those of a block that have losses, and no others. */
static void check_samples(const tl_backend *backend, const tl_distributions *of, int rows, const double *expected) {
    static char masses[8 * 80 * MOST_CLASSES], scores[8 * 80 * MOST_CLASSES];
    tl_distributions block = *of;
    int taken[80];
    double nll[80];
    block.sample_rows = 1 + die(rows < 20 ? rows : 20);
    rows = rows / block.sample_rows * block.sample_rows;
    if (block.classes > TL_PART || block.sample_rows * block.classes > TL_TERMS || rows == 0)
        return;
    place_samples(of->mass, (int)of->mass_class, of->classes, rows, block.sample_rows, masses);
    place_samples(of->score, (int)of->score_class, of->classes, rows, block.sample_rows, scores);
    block.mass = masses;
    block.score = scores;
    block.mass_row = block.score_row = of->mass_class;
    for (int i = 0; i < rows; i++)
        taken[i] = i;
    need_same(tl_nll_of_distributions(backend, &block, taken, rows, nll), "samples that are accepted");
    for (int i = 0; i < rows; i++)
        need_same(have_same_bits(nll[i], expected[i]), "losses of distributions in samples");
}

/* A block of rows against each of them. */
static void check_distributions(const tl_backend *backend, int dtype, int64_t classes, int rows, int kind, int is_log,
                                tl_cancel *cancel) {
    static char masses[8 * 80 * MOST_CLASSES], scores[8 * 80 * MOST_CLASSES], weights[4 * MOST_CLASSES];
    int size = tl_itemsize(dtype), taken[80], count = 0;
    double nll[80];
    const tl_clip clip = clip_of(is_log, dtype);
    fill_masses(masses, dtype, rows, classes, kind);
    for (int64_t i = 0; i < rows * classes; i++) {
        double score = (double)(random_bits() >> 11) * 0x1p-53;
        tl_store(scores + i * size, dtype,
                 random_bits() % 50 == 0 ? (is_log ? -(double)INFINITY : 0)
                 : is_log                ? -score
                                         : score);
    }
    for (int64_t k = 0; k < classes; k++) /* weights of 0, but for infinite losses, which a block would not accept */
        tl_store(weights + 4 * k, TL_FLOAT32, (double)(k % 3 + is_log));
    for (int i = 0; i < rows; i++)
        if (kind < 3 || random_bits() >> 63)
            taken[count++] = i;
    tl_distributions block = {masses,
                              scores,
                              classes % 2 ? weights : NULL,
                              (ptrdiff_t)(size * classes),
                              size,
                              (ptrdiff_t)(size * classes),
                              size,
                              4,
                              dtype,
                              dtype,
                              TL_FLOAT32,
                              classes,
                              &clip,
                              0,
                              0};
    if (count == 0)
        return;
    need_same(tl_nll_of_distributions(backend, &block, taken, count, nll), "distributions that are accepted");
    for (int i = 0; i < count; i++) {
        const int64_t first = taken[i] * classes * size;
        tl_soft_target soft = {masses + first, size, dtype, block.weight, 4, TL_FLOAT32, 1, 0};
        tl_row row = {scores + first, classes, size, dtype, dtype, 1, 0, 0, 0};
        tl_refused refused;
        double by_itself = tl_nll_of_distribution(backend, &row, &soft, &clip, &refused, cancel);
        need_same(have_same_bits(nll[i], by_itself), "losses of distributions");
    }
    if (count == rows)
        check_samples(backend, &block, rows, nll);
}

static void check_sums_and_masses(const tl_backend *backend, tl_cancel *cancel) {
    static const int64_t lengths[] = {1, 2, 3, 7, 16, 33, 64, 65, 127, 128, 129, 200, MOST_CLASSES};
    seed = 1;
    check_exact_sums(backend);
    check_masked_targets(backend);
    check_nonzeros(backend);
    for (int dtype = 0; dtype < TL_FLOAT_DTYPES; dtype++)
        for (int i = 0; i < 13; i++)
            for (int kind = 0; kind < 5; kind++)
                check_distributions(backend, dtype, lengths[i], 1 + (i * 29 + kind * 17) % 80, kind, kind % 2, cancel);
}

#endif
