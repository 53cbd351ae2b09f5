/* Fuzzes the kernels: see run.sh. Bytes of the input choose rows, their layout in memory, and what is computed; every
 * backend of the machine must find what the portable one finds in plain rows, bit for bit. All memory that is read or
 * written is allocated to the byte, so that AddressSanitizer sees a step beyond. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "scalar_math.h"

#define LONGEST (3 * TL_BLOCK + 100)
#define PART 1024 /* classes, of which parts of rows are multiples */
#define MOST_BEST 40

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
    int has_mass, has_weight, in_place, large;
    double scale, cap, smoothing, factor, of_softmax, shift, lowest;
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
    *row = (tl_row){copy.data, all->count, copy.stride, copy.dtype, of->dtype, all->scale, all->cap, 0};
    if (tl_is_scaled_or_capped(row))
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

/* -- the questions --------------------------------------------------------------------------------------------------*/

static void compare_losses(const tl_row *row, int64_t target) {
    tl_lse_acc others;
    compare("maximum", tl_maximum(backend, row));
    tl_lse_row(backend, row, target, &others, &cancel);
    double logit = tl_logit_at(backend, row, target), log_odds = tl_log_odds_against(&others, row, logit);
    tl_lse lse = tl_lse_finish_with(&others, row, logit, log_odds);
    compare("loss", tl_softplus(log_odds));
    compare("offset of a logsumexp", lse.offset);
    compare("log of a logsumexp", lse.log);
}

/* Rows in class-major layout, each of which begins with another class; plain ones are reduced one by one. */
static void compare_class_major(const question *all, int is_plain) {
    static char transposed[TL_TRANSPOSED_BYTES];
    static numbers rotated;
    tl_row rows[4];
    tl_lse_acc states[4];
    int64_t excluded[4];
    layout how = all->row_layout;
    how.stride = all->interleaved * tl_itemsize(all->row.dtype);
    placed memory = make_room(all->row.dtype, 0, all->count * all->interleaved,
                              (layout){0, tl_itemsize(all->row.dtype), how.misaligned});
    ptrdiff_t size = tl_itemsize(all->row.dtype);
    rotated.dtype = all->row.dtype;
    for (int64_t r = 0; r < all->interleaved; r++) {
        int64_t split = (r * 37) % all->count;
        memcpy(rotated.memory, (const char *)all->row.memory + split * size, (size_t)((all->count - split) * size));
        memcpy((char *)rotated.memory + (all->count - split) * size, all->row.memory, (size_t)(split * size));
        placed copy = place_row(all, &rotated, 0, all->count,
                                is_plain ? plain(rotated.dtype) : (layout){how.swapped, size, 0}, &rows[r]);
        excluded[r] = r % 2 ? -1 : all->target;
        if (is_plain)
            tl_lse_row(backend, &rows[r], excluded[r], &states[r], &cancel);
        for (int64_t i = 0; i < all->count; i++)
            memcpy(memory.data + i * how.stride + r * size, copy.data + i * size, (size_t)size);
        rows[r].data = memory.data + r * size;
        rows[r].stride = how.stride;
        free(copy.memory);
    }
    if (!is_plain)
        tl_lse_class_major(backend, rows, excluded, (int)all->interleaved, transposed, states, &cancel);
    for (int64_t r = 0; r < all->interleaved; r++)
        compare("logsumexp of class-major rows", tl_logsumexp(tl_lse_finish(&states[r], &rows[r])));
    free(memory.memory);
}

static void compare_token(const tl_token_stats *token, const tl_topk *best) {
    compare("token's loss", token->nll);
    compare("token's logsumexp", token->logsumexp);
    compare("token's entropy", token->entropy);
    compare_bits("rank", (uint64_t)token->rank);
    compare_bits("argmax", (uint64_t)token->argmax);
    for (int64_t i = 0; i < best->most; i++) {
        compare("best log-probability", best->value[i]);
        compare_bits("best class", (uint64_t)best->id[i]);
    }
}

static tl_topk make_best(const question *all) {
    size_t most = (size_t)all->most_best;
    return (tl_topk){all->most_best, 0, allocate(most * sizeof(double)), allocate(most * sizeof(int64_t))};
}

static void free_best(tl_topk *best) {
    free(best->value);
    free(best->id);
}

static void compare_token_stats(const question *all, const tl_row *row) {
    tl_topk best = make_best(all);
    tl_token_stats token;
    tl_token_stats_row(backend, row, all->target, &token, best.most ? &best : NULL, &cancel);
    compare_token(&token, &best);
    free_best(&best);
    tl_lse_acc state;
    tl_lse_row(backend, row, -1, &state, &cancel);
    double logsumexp = tl_logsumexp_of(backend, row, &state, -1, NULL, &cancel);
    compare("logsumexp", logsumexp);
    if (logsumexp == logsumexp ? tl_to_bits(logsumexp) != tl_to_bits(token.logsumexp)
                               : token.logsumexp == token.logsumexp) {
        fprintf(stderr, "a token's logsumexp on %s is %a, that of its row %a\n", backend->name, token.logsumexp,
                logsumexp);
        abort();
    }
}

/* The same range by range, of which only one is in memory at a time; plain rows are one range. */
static void compare_parts(const question *all, const tl_row *whole, const tl_soft_target *soft, layout how,
                          int is_plain) {
    tl_topk best = make_best(all);
    tl_token_stats token;
    tl_lse_acc state;
    tl_dot_acc dot = {{0}, {0}, {0}, {0}};
    int64_t length = is_plain ? all->count : all->part;
    double target_raw = tl_load(whole->data + all->target * whole->stride, whole->dtype), mass;
    for (int64_t start = 0, end; start < all->count; start = end) {
        tl_row part;
        end = all->count - start < length ? all->count : start + length;
        placed copy = place_row(all, &all->row, start, end, how, &part);
        tl_lse_range(backend, &part, start, end, PART, all->target, &state, &cancel);
        tl_target_dot_range(backend, &part, soft, start, end, all->shift, &dot, &cancel);
        tl_token_stats_range(backend, &part, start, end, PART, all->target, target_raw, &token,
                             best.most ? &best : NULL, &cancel);
        free(copy.memory);
    }
    tl_token_stats_end(backend, whole, target_raw, &token, best.most ? &best : NULL);
    compare("loss by parts", tl_softplus(tl_log_odds_against(&state, whole, tl_softcap(backend, whole, target_raw))));
    compare("sum by parts", tl_target_dot_end(&dot, &mass));
    compare("mass by parts", mass);
    compare_token(&token, &best);
    free_best(&best);
}

static void compare_divergences(const tl_row *row, const tl_row *other_row) {
    tl_row base = *row, other = *other_row;
    base.logit_scale = other.logit_scale = 1;
    base.softcap = other.softcap = 0;
    base.compute_dtype = base.dtype & ~TL_SWAPPED;
    other.compute_dtype = other.dtype & ~TL_SWAPPED;
    if (base.compute_dtype != other.compute_dtype)
        base.compute_dtype = other.compute_dtype =
            base.compute_dtype == TL_FLOAT64 || other.compute_dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
    compare("divergence", tl_kl_divergence(backend, &base, &other, &cancel));
    compare("divergence the other way", tl_kl_divergence(backend, &other, &base, &cancel));
}

static void compare_soft_targets(const question *all, const tl_row *row, const tl_soft_target *soft) {
    double mass[64], total;
    compare("sum of masses' logits", tl_target_dot(backend, row, soft, all->shift, &total, &cancel));
    compare("sum of masses", total);
    if (!soft->mass)
        return;
    int64_t found;
    compare_bits("argmax class", (uint64_t)tl_soft_target_argmax(backend, soft, all->count, &found, &cancel));
    compare_bits("classes with a mass", (uint64_t)found);
    for (int64_t start = 0, some; (some = tl_soft_target_next(backend, soft, all->count, &start, mass, &cancel));
         start += some)
        for (int64_t i = 0; i < some; i++)
            if (tl_contributes(mass[i])) { /* where runs end may depend on what can be skipped */
                compare_bits("class of a mass", (uint64_t)(start + i));
                compare("mass", mass[i]);
            }
}

typedef enum { SOFTMAX, LOG_SOFTMAX, GRADIENT, WRITTEN } written;

/* What is written for each class, to a row of its own or over the logits. */
static void compare_outputs(const question *all, const tl_row *row, const tl_soft_target *soft, int is_plain) {
    static const char *const names[] = {"softmax", "log_softmax", "gradient"};
    tl_lse_acc state;
    tl_lse_row(backend, row, -1, &state, &cancel);
    tl_lse lse = tl_lse_finish(&state, row);
    double logsumexp = tl_logsumexp(lse);
    compare("logsumexp", logsumexp);
    if (logsumexp - logsumexp != 0) /* all that is written then is nan */
        return;
    int large = all->large && !is_plain;
    for (written what = 0; what < WRITTEN; what++) {
        if (what == LOG_SOFTMAX && tl_is_scaled_or_capped(row))
            continue;
        tl_row logits = *row, out_row;
        placed copy = {0}, out;
        if (all->in_place && !is_plain) {
            copy = place_row(all, &all->row, 0, all->count, all->row_layout, &logits);
            out = copy;
        } else {
            out = make_room(all->row.dtype, 0, all->count, is_plain ? plain(all->row.dtype) : all->out_layout);
        }
        out_row = (tl_row){out.data, all->count, out.stride, out.dtype, all->row.dtype, 1, 0, 0};
        if (what == SOFTMAX)
            tl_softmax(backend, &logits, lse, &out_row, large, &cancel);
        else if (what == LOG_SOFTMAX)
            tl_log_softmax(backend, &logits, lse, &out_row, large, &cancel);
        else
            tl_gradient(backend, &logits, lse, all->factor, all->of_softmax, soft, &out_row, large, &cancel);
        if (copy.memory)
            compare_row(names[what], &out, all->count);
        else
            compare_written(names[what], &out, all->count);
        free(out.memory);
    }
}

static void compare_conversions(const question *all, const tl_row *row) {
    for (int dtype = TL_FLOAT32; dtype <= TL_FLOAT64; dtype++) {
        tl_row raw = {row->data, row->count, row->stride, row->dtype, row->dtype & ~TL_SWAPPED, 1, 0, 0};
        placed out = make_room(dtype, 0, all->count, plain(dtype));
        tl_cast_row(backend, &raw, dtype, out.data);
        compare_written("conversion", &out, all->count);
        free(out.memory);
    }
}

/* Products of some rows of weights, of native order, with 5 vectors that begin on cache lines. */
static void compare_products(const question *all, int is_plain) {
    static _Alignas(64) char vectors[5 * (8 * LONGEST + 128)];
    int dtype = all->row.dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
    ptrdiff_t size = tl_itemsize(dtype), stride = (all->depth * size / 64 + 2) * 64;
    int64_t rows = all->count / all->depth < 3 ? all->count / all->depth : 3, count = 1 + all->target % 5;
    layout how = plain(all->row.dtype);
    how.misaligned = is_plain ? 0 : all->row_layout.misaligned;
    placed weights = place(&all->row, 0, rows * all->depth, how);
    for (int64_t v = 0; v < count; v++)
        for (int64_t i = 0; i < all->depth; i++) {
            const char *from = (const char *)all->other.memory + (v + i) % all->count * tl_itemsize(all->other.dtype);
            tl_store(vectors + v * stride + i * size, dtype, tl_load(from, all->other.dtype));
        }
    placed out = make_room(dtype, 0, rows * count, plain(dtype));
    tl_row row = {weights.data, all->depth, weights.stride, weights.dtype, weights.dtype, 1, 0, 0};
    tl_vectors with = {vectors, stride, count}, into = {out.data, rows * size, count};
    tl_matvec(backend, &row, all->depth * weights.stride, rows, &with, &into);
    compare_written("product", &out, rows * count);
    free(out.memory);
    free(weights.memory);
}

static void compare_probabilities(const question *all) {
    placed p = make_room(TL_FLOAT64, 0, all->count, plain(TL_FLOAT64));
    for (int64_t i = 0; i < all->count; i++)
        tl_store(p.data + i * p.stride, TL_FLOAT64,
                 tl_load((const char *)all->row.memory + i * tl_itemsize(all->row.dtype), all->row.dtype));
    backend->clipped_losses((double *)(void *)p.data, (size_t)all->count, all->lowest, 1 - all->lowest);
    compare_row("clipped loss", &p, all->count);
    free(p.memory);
}

static void compare_zeros(const question *all) {
    placed masses = place(&all->mass, 0, all->count, plain(all->mass.dtype));
    ptrdiff_t start = all->target % 64 * tl_itemsize(all->mass.dtype), size = (ptrdiff_t)masses.size;
    compare_bits("end of zeros", (uint64_t)backend->skip_zeros(masses.data, start < size ? start : size, size));
    free(masses.memory);
}

static void compare_all(const question *all, int is_plain) {
    tl_row row, other;
    layout row_layout = is_plain ? plain(all->row.dtype) : all->row_layout;
    placed row_copy = place_row(all, &all->row, 0, all->count, row_layout, &row);
    placed other_copy =
        place_row(all, &all->other, 0, all->count, is_plain ? plain(all->other.dtype) : all->other_layout, &other);
    placed mass = place(&all->mass, 0, all->count, is_plain ? plain(all->mass.dtype) : all->mass_layout);
    placed weight = place(&all->weight, 0, all->count, is_plain ? plain(all->weight.dtype) : all->weight_layout);
    tl_soft_target soft = {NULL, 0, 0, NULL, 0, 0, 1 - all->smoothing, all->smoothing / (double)all->count};
    if (all->has_mass)
        soft.mass = mass.data, soft.mass_stride = mass.stride, soft.mass_dtype = mass.dtype;
    if (all->has_weight)
        soft.weight = weight.data, soft.weight_stride = weight.stride, soft.weight_dtype = weight.dtype;
    found = 0;
    switch (all->topic) {
    case LOSSES: compare_losses(&row, all->target); break;
    case CLASS_MAJOR: compare_class_major(all, is_plain); break;
    case TOKEN: compare_token_stats(all, &row); break;
    case PARTS: compare_parts(all, &row, &soft, row_layout, is_plain); break;
    case DIVERGENCES: compare_divergences(&row, &other); break;
    case SOFT_TARGETS:
        compare_soft_targets(all, &row, &soft);
        compare_zeros(all);
        break;
    case OUTPUTS: compare_outputs(all, &row, &soft, is_plain); break;
    case CONVERSIONS: compare_conversions(all, &row); break;
    case PRODUCTS: compare_products(all, is_plain); break;
    default: compare_probabilities(all);
    }
    free(row_copy.memory);
    free(other_copy.memory);
    free(mass.memory);
    free(weight.memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static question all;
    static const tl_backend *runnable[TL_BACKENDS]; /* to ask the machine takes long */
    if (!runnable[TL_PORTABLE])
        for (int id = 0; id < TL_BACKENDS; id++)
            runnable[id] = tl_find_backend((tl_backend_id)id);
    input from = {data, data + size};
    ask(&from, &all);
    is_first = 1;
    backend = &tl_portable;
    compare_all(&all, 1);
    is_first = 0;
    for (int id = 0; id < TL_BACKENDS; id++)
        if ((backend = runnable[id]))
            compare_all(&all, 0);
    return 0;
}
