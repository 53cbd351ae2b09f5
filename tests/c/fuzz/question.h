/* What the fuzzer of the kernels asks: its input says which rows, in which layout; results are compared in order. */
#ifndef TOKENLOSS_TESTS_QUESTION_H
#define TOKENLOSS_TESTS_QUESTION_H

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "scalar_math.h"

#define LONGEST (3 * TL_BLOCK + 100)
#define PART 1024 /* classes, of which parts of rows are multiples */
#define MOST_BEST 250

/* -- what the input says --------------------------------------------------------------------------------------------*/

typedef struct {
    const uint8_t *next, *end;
} input;

static uint64_t take_bytes(input *from, int count) { /* zeros after the end */
    uint64_t bits = 0;
    for (int i = 0; i < count && from->next < from->end; i++)
        bits |= (uint64_t)*from->next++ << (8 * i);
    return bits;
}

static int64_t take_below(input *from, int64_t bound) {
    return (int64_t)(take_bytes(from, bound > 256 ? 2 : 1) % (uint64_t)bound);
}

static double take_one_of(input *from, const double *values, int64_t count) { return values[take_below(from, count)]; }

#define ONE_OF(from, ...) \
    take_one_of(from, (const double[]){__VA_ARGS__}, (int64_t)(sizeof (double[]){__VA_ARGS__} / sizeof(double)))

/* Where elements lie: bytes between them, and from an aligned address to the first. */
typedef struct {
    int swapped;
    ptrdiff_t stride, misaligned;
} layout;

static layout plain(int dtype) { return (layout){0, tl_itemsize(dtype), 0}; }

static layout take_layout(input *from, int dtype) {
    uint64_t bits = take_bytes(from, 1);
    ptrdiff_t size = tl_itemsize(dtype), stride = size;
    if (bits & 8) /* some elements apart, in either direction, or within larger records */
        stride = (ptrdiff_t[]){2, 3, -1, -3}[take_below(from, 4)] * size - take_below(from, 2) * (bits & 16 ? 1 : 0);
    if (stride > -size && stride < size)
        stride = -size;
    return (layout){bits & 32 ? TL_SWAPPED : 0, stride, (ptrdiff_t)(bits & 64 ? bits & 7 : 0)};
}

/* Numbers of one dtype, in native order. */
typedef struct {
    int dtype;
    double memory[LONGEST];
} numbers;

static uint64_t random_bits(uint64_t *seed) { /* splitmix64 */
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static char *element(numbers *of, int64_t i) { return (char *)of->memory + i * tl_itemsize(of->dtype); }

static void put(numbers *of, int64_t i, double value, uint64_t bits) {
    if (of->dtype < TL_FLOAT_DTYPES)
        tl_store(element(of, i), of->dtype, value);
    else
        memcpy(element(of, i), &bits, (size_t)tl_itemsize(of->dtype));
}

/* Numbers of some kind, and among them elements whose bits stand in the input. */
static void take_numbers(input *from, int64_t count, int64_t most_given, numbers *of) {
    uint64_t kind = take_bytes(from, 1), seed = take_bytes(from, 2);
    double center = ONE_OF(from, 0, 0, 0.5, -80, 700, 65536, -65537, 1e6, -3e38, 1e300);
    double width = ONE_OF(from, 4, 0, 1e-3, 40, 200, 1e5, 1e38, 1e307);
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = random_bits(&seed), die = random_bits(&seed);
        double value = center + width * ((double)(bits >> 11) * 0x1p-52 - 1);
        if (kind & 1 && die % 16 != 0)
            bits = 0, value = 0;
        if (kind & 2 && die % 7 == 0)
            value = -(double)INFINITY;
        if (kind & 4)
            value *= die & 1 ? 1e-3 : 1;
        if (kind & 8)
            bits &= 3;
        put(of, i, value, bits);
    }
    int64_t given = take_below(from, most_given), at = take_below(from, LONGEST), step = 1 + take_below(from, 256);
    for (int64_t i = 0; i < given && count > 0 && from->next < from->end; i++, at += step) {
        uint64_t bits = take_bytes(from, tl_itemsize(of->dtype));
        memcpy(element(of, at % count), &bits, (size_t)tl_itemsize(of->dtype)); /* of a little-endian machine */
    }
}

typedef enum {
    LOSSES,
    CLASS_MAJOR,
    TOKEN,
    PARTS,
    DIVERGENCES,
    SOFT_TARGETS,
    OUTPUTS,
    CONVERSIONS,
    PRODUCTS,
    PROBABILITIES,
    QUESTIONS
} topic;

/* What the kernels compute, and of which rows. */
typedef struct {
    topic topic;
    int64_t count, target, interleaved, most_best, part, depth;
    numbers row, other, mass, weight;
    layout row_layout, other_layout, mass_layout, weight_layout, out_layout;
    int has_mass, has_weight, in_place, large, has_grad, by_class;
    int rows, rows_in_planes, masks_rows; /* of a block */
    int others_in_planes, weighs_rows, marks_masked; /* of rows that need no block */
    ptrdiff_t gap; /* elements between such rows, or planes of them; where it is negative, the next one lies before */
    double scale, cap, smoothing, z_loss, factor, of_softmax, shift, lowest;
} question;

static void ask(input *from, question *all) {
    static const int64_t borders[] = {TL_READ_MULTIPLE,    TL_CHUNK,     PART,        TL_BLOCK,
                                      TL_BLOCK + TL_CHUNK, 2 * TL_BLOCK, 3 * TL_BLOCK};
    uint64_t bits = take_bytes(from, 2), length = take_bytes(from, 1);
    all->topic = (topic)take_below(from, QUESTIONS);
    all->count = 1 + take_below(from, 200); /* mostly, for long rows take long */
    if (length > 160)
        all->count = borders[take_below(from, length < 224 ? 2 : 7)] - 2 + take_below(from, 5);
    if (length > 248)
        all->count = 1 + take_below(from, LONGEST);
    all->target = take_below(from, all->count);
    all->row.dtype = (int)(bits & 3);
    all->other.dtype = bits & 32 ? all->row.dtype : (int)take_below(from, TL_FLOAT_DTYPES);
    all->mass.dtype = (int)take_below(from, TL_DTYPES);
    all->weight.dtype = (int)take_below(from, TL_DTYPES);
    all->row_layout = take_layout(from, all->row.dtype);
    all->other_layout = take_layout(from, all->other.dtype);
    all->mass_layout = take_layout(from, all->mass.dtype);
    all->weight_layout = take_layout(from, all->weight.dtype);
    all->out_layout = take_layout(from, all->row.dtype);
    all->has_mass = (bits >> 6 & 1) != 0;
    all->has_weight = (bits >> 7 & 1) != 0;
    all->in_place = (bits >> 8 & 1) != 0;
    all->large = (bits >> 9 & 1) != 0;
    all->z_loss = bits & 1 << 12 ? 1e-3 : 0;
    all->has_grad = (bits >> 13 & 1) != 0;
    all->by_class = !all->has_mass || (bits >> 14 & 1) != 0;
    all->scale = all->cap = 0;
    if (bits & 1 << 10)
        all->scale = ONE_OF(from, 1, 0, 0.75, 1e-3, 30, 5e-324, 1e300);
    if (bits & 1 << 11)
        all->cap = ONE_OF(from, 30, 1, 1e-3, 1e5, 5e-324, 1e300);
    if (!(bits & 1 << 10))
        all->scale = 1;
    all->smoothing = ONE_OF(from, 0, 0.1, 1, 1e-9);
    all->factor = ONE_OF(from, 1, 0.125, 1e-6, -3, INFINITY, NAN);
    all->of_softmax = ONE_OF(from, 1, 1.5, 0, 1e4);
    all->shift = ONE_OF(from, 0, 1.5, -65537, 1e6);
    all->lowest = ONE_OF(from, 1e-12, 0, 0.25);
    all->interleaved = 1 + take_below(from, 4);
    all->most_best = take_below(from, (all->count < MOST_BEST ? all->count : MOST_BEST) + 1);
    all->part = PART * (1 + take_below(from, 4));
    all->depth = 1 + take_below(from, all->count);
    take_numbers(from, all->count, 64, &all->row);
    take_numbers(from, all->count, 64, &all->other);
    take_numbers(from, all->count, 16, &all->mass);
    take_numbers(from, all->count, 16, &all->weight);
    uint64_t block = take_bytes(from, 2); /* last, so that older inputs ask what they did */
    all->rows_in_planes = (block >> 8 & 1) != 0;
    all->masks_rows = (block >> 9 & 1) != 0;
    all->rows = 1 + (int)(block % 256) % tl_row_block_rows(all->count, all->rows_in_planes);
    all->others_in_planes = (block >> 10 & 1) != 0;
    all->weighs_rows = (block >> 11 & 1) != 0;
    all->marks_masked = (block >> 12 & 1) != 0;
    all->gap = (ptrdiff_t[]){0, 1, 21, -3}[block >> 13 & 3];
}

/* -- numbers in memory ----------------------------------------------------------------------------------------------*/

static void *allocate(size_t size) {
    void *memory = malloc(size);
    if (!memory && size)
        abort();
    return memory;
}

/* Elements from `start` on as they lie in memory, and where those from 0 on would. */
typedef struct {
    char *memory;
    size_t size;
    ptrdiff_t stride;
    char *data;
    int dtype;
} placed;

static placed make_room(int dtype, int64_t start, int64_t end, layout how) {
    ptrdiff_t size = tl_itemsize(dtype), apart = how.stride < 0 ? -how.stride : how.stride,
              span = (end - start - 1) * apart + size;
    placed room = {NULL, (size_t)(how.misaligned + span), how.stride, NULL, dtype | how.swapped};
    room.memory = allocate(room.size);
    memset(room.memory, 0x55, room.size);
    room.data = room.memory + how.misaligned + (how.stride < 0 ? span - size : 0) - start * how.stride;
    return room;
}

/* These elements in a layout. */
static placed place(const numbers *of, int64_t start, int64_t end, layout how) {
    placed copy = make_room(of->dtype, start, end, how);
    ptrdiff_t size = tl_itemsize(of->dtype);
    for (int64_t i = start; i < end; i++) {
        const char *from = (const char *)of->memory + i * size;
        char *to = copy.data + i * copy.stride;
        memcpy(to, from, (size_t)size);
        for (ptrdiff_t k = 0; how.swapped && k < size; k++)
            to[k] = from[size - 1 - k];
    }
    return copy;
}

/* A row of what is asked of which these elements alone are there. */
static placed place_row(const question *all, const numbers *of, int64_t start, int64_t end, layout how, tl_row *row) {
    placed copy = place(of, start, end, how);
    *row = (tl_row){copy.data, all->count, copy.stride, copy.dtype, of->dtype, all->scale, all->cap, 0, 0};
    if (tl_is_transformed(row))
        row->compute_dtype = TL_FLOAT64;
    return copy;
}

/* -- what was found -------------------------------------------------------------------------------------------------*/

static uint64_t expected[16 * LONGEST];
static size_t found;
static int is_first;
static const tl_backend *backend;
static volatile int stopped;
static tl_cancel cancel = {NULL, NULL, &stopped, 0};

/* Keeps a number, or compares it with the one that was kept at this place. */
static void compare_bits(const char *what, uint64_t bits) {
    if (is_first) {
        if (found == sizeof expected / sizeof *expected)
            abort();
        expected[found] = bits;
    } else if (expected[found] != bits) {
        fprintf(stderr, "%s on %s is %016" PRIx64 " (%g), not %016" PRIx64 " (%g)\n", what, backend->name, bits,
                tl_from_bits(bits), expected[found], tl_from_bits(expected[found]));
        abort();
    }
    found++;
}

static void compare(const char *what, double value) {
    compare_bits(what, value == value ? tl_to_bits(value) : 0x7ff8000000000000u);
}

static void compare_row(const char *what, const placed *row, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        compare(what, tl_load(row->data + i * row->stride, row->dtype));
}

/* Compares results, and sees that nothing was written between them. */
static void compare_written(const char *what, const placed *out, int64_t count) {
    compare_row(what, out, count);
    for (int64_t i = 0; i < count; i++)
        memset(out->data + i * out->stride, 0x55, (size_t)tl_itemsize(out->dtype));
    for (size_t i = 0; i < out->size; i++)
        if (out->memory[i] != 0x55) {
            fprintf(stderr, "%s on %s was written between its elements\n", what, backend->name);
            abort();
        }
}

#endif
