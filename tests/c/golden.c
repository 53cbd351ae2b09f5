/* Prints hashes of the results of every kernel on every backend of the machine it runs on: see test_kernels.py.
 *
 * Each row is also read unaligned, strided, byte-swapped, and range by range, which must not change a bit; nor must
 * blocks of rows, or vectors of logarithms.
 * Arguments: N and K, to hash every Nth kind of rows, beginning with K; and a mask of the kinds that the portable
 * backend hashes, which takes twenty times as long where it emulates FMA. */
#include <stdio.h>
#include <stdlib.h>

#include "blocks.h"
#include "calls.h"
#include "hashes.h"
#include "kernels.h"
#include "losses.h"
#include "rows.h"
#include "scalar_math.h"
#include "sums_and_masses.h"
#include "superacc.h"
#include "vectors.h"

static const char *const kinds[] = {"normal", "wide", "far", "equal", "special", "any_bits"};

static double logsumexp(const tl_backend *backend, const tl_row *row, tl_cancel *cancel) {
    tl_lse_acc state;
    tl_lse_row(backend, row, -1, &state, cancel);
    return tl_logsumexp(tl_lse_finish(&state, row->compute_dtype));
}

static double nll(const tl_backend *backend, const tl_row *row, int64_t target, tl_cancel *cancel) {
    tl_loss loss = plain_loss(target);
    return loss_of_row(backend, row, &loss, cancel);
}

/* The loss for a class id by way of the logsumexp of the others, as of ranges, whatever the row. */
static double loss_by_logsumexp(const tl_backend *backend, const tl_row *row, const tl_loss *loss, tl_cancel *cancel) {
    tl_loss without_grad = *loss;
    tl_lse_acc others;
    without_grad.grad = NULL;
    tl_lse_row(backend, row, loss->target, &others, cancel);
    return loss_of_class(backend, row, &without_grad, &others, cancel);
}

#define LAYOUTS 3 /* odd address; every third element, backwards; bytes swapped */

static tl_row laid_out(const tl_row *row, int layout) {
    static char copy[3 * 8 * LONGEST + 1];
    ptrdiff_t size = tl_itemsize(row->dtype);
    tl_row other = *row;
    other.stride = layout == 1 ? -3 * size : size;
    other.data = layout == 1 ? copy + 3 * size * (row->count - 1) : copy + 1;
    other.dtype = layout == 2 ? row->dtype | TL_SWAPPED : row->dtype;
    for (int64_t i = 0; i < row->count; i++)
        for (ptrdiff_t k = 0; k < size; k++)
            ((char *)(uintptr_t)other.data)[i * other.stride + k] =
                row->data[i * size + (layout == 2 ? size - 1 - k : k)];
    return other;
}

static void check_layouts(const tl_backend *backend, const tl_row *row, int64_t target, tl_cancel *cancel) {
    double loss = nll(backend, row, target, cancel);
    for (int layout = 0; layout < LAYOUTS; layout++) {
        tl_row other = laid_out(row, layout);
        require(same(loss, nll(backend, &other, target, cancel)), "layout", row);
    }
}

/* Divergences have the same bits alone, range by range and, if symmetric, of both rows in each other's place: each pair
 * is checked in one of these ways, the next one in another, for emulated FMA is slow. */
static tl_kl checked_divergences(quantity of, const tl_backend *backend, const tl_row *base, const tl_row *other,
                                 tl_cancel *cancel) {
    static unsigned pair;
    tl_divergences all, some;
    tl_divergence_state state;
    tl_kl kl = take_divergences(of, backend, base, other, &all, cancel);
    switch (pair++ % 4) {
    case 0:
        some = tl_divergences_of(backend, base, other, kl.base, kl.other, TL_TV, cancel);
        require(same(some.tv, all.tv), "total variation alone", base);
        break;
    case 1:
        some = tl_divergences_of(backend, base, other, kl.base, kl.other, ALL_DIVERGENCES - TL_JS, cancel);
        require(same(some.tv, all.tv) && same(some.reverse_kl, all.reverse_kl) && same(some.hellinger, all.hellinger),
                "divergences without another", base);
        break;
    case 2:
        some = tl_divergences_of(backend, other, base, kl.other, kl.base, ALL_DIVERGENCES, cancel);
        require(same(some.js, all.js) && same(some.tv, all.tv) && same(some.hellinger, all.hellinger),
                "divergences of rows in each other's place", base);
        break;
    default:
        for (int dtype = base->compute_dtype;; dtype = TL_FLOAT64) {
            tl_divergences_begin(kl.base, kl.other, base->count, dtype, ALL_DIVERGENCES, &state);
            for (int64_t start = 0; start < base->count; start += PART)
                tl_divergences_range(backend, base, other, start,
                                     base->count - start < PART ? base->count : start + PART, &state, cancel);
            if (tl_divergences_end(&state, &some))
                break;
        }
        require(same(some.reverse_kl, all.reverse_kl) && same(some.js, all.js) && same(some.tv, all.tv) &&
                    same(some.hellinger, all.hellinger),
                "divergences by ranges", base);
    }
    return kl;
}

/* Whether two logsumexps differ by roundings at most. */
static int is_close(double a, double b, int dtype) {
    double size = tl_abs(b) > 1 ? tl_abs(b) : 1;
    return same(a, b) || tl_abs(a - b) <= (dtype == TL_FLOAT64 ? 1e-14 : 4e-7) * size;
}

/* All other quantities of a row, with the row before it as the other model's and as a soft target. */
static void take_all(const tl_backend *backend, const tl_row *row, const tl_row *other, int64_t target,
                     tl_cancel *cancel) {
    static double memory[LONGEST], values[7];
    static int64_t ids[7];
    static const float weights[] = {0.5f, 2, 1};
    tl_row out = {(char *)memory, row->count, tl_itemsize(row->dtype), row->dtype, row->dtype, 1, 0, 0, 0};
    tl_soft_target smooth = {NULL, 0, 0, (const char *)weights, 4, TL_FLOAT32, 0, 0.01};
    tl_soft_target soft = {other->data, other->stride, other->dtype, NULL, 0, 0, 0.25, 0};
    tl_topk best = {row->count < 7 ? row->count : 7, 0, values, ids, 0};
    tl_lse_acc state;
    tl_token_stats token = take_token(backend, row, target, &best, cancel);
    tl_lse_row(backend, row, -1, &state, cancel);
    double logsumexp = logsumexp_of_row(backend, row, cancel);
    require(is_close(token.logsumexp, logsumexp, row->compute_dtype), "logsumexp", row);
    tl_row laid = laid_out(row, (int)(row->count % LAYOUTS));
    take_tails(backend, &laid, &best, cancel);
    take(Q_kl, checked_divergences(Q_divergences, backend, row, other, cancel).kl);
    take_masses(backend, row, &soft, cancel);
    tl_lse lse = tl_lse_finish(&state, row->compute_dtype);
    if (tl_logsumexp(lse) - tl_logsumexp(lse) != 0)
        return;
    smooth.weight = row->count <= 3 ? smooth.weight : NULL;
    tl_gradient(backend, row, lse, 0.125, 1.5, &smooth, &out, row->count % 2 == 1, cancel);
    take_row(Q_gradient, &out);
    tl_gradient(backend, row, lse, 0.125, 1.5, &soft, &out, row->count % 2 == 1, cancel);
    take_row(Q_gradient, &out);
    take_softmaxes(backend, row, &out, row->count % 2 == 1, cancel);
}

/* The losses of scores for each distribution. */
static void take_nlls_of(quantity of, const tl_backend *backend, const tl_row *scores, const tl_loss *losses,
                         const tl_clip *clip, tl_cancel *cancel) {
    for (int i = 0; i < LOSS_CASES; i++)
        if (losses[i].target < 0)
            take_nll(of, backend, scores, &losses[i].soft, clip, cancel);
}


/* A row of probabilities against itself backwards, and against logits. */
static void take_probs(const tl_backend *backend, const tl_row *row, const tl_row *logits, tl_cancel *cancel) {
    tl_row probs = *row, backwards, other = *logits;
    tl_token_stats token;
    probs.of_probs = 1;
    probs.compute_dtype = other.compute_dtype = TL_FLOAT64;
    backwards = probs;
    backwards.data += (row->count - 1) * row->stride;
    backwards.stride = -row->stride;
    const tl_kl found[] = {checked_divergences(Q_divergences_of_probs, backend, &probs, &backwards, cancel),
                           checked_divergences(Q_divergences_of_probs, backend, &probs, &other, cancel),
                           checked_divergences(Q_divergences_of_probs, backend, &other, &probs, cancel)};
    for (int i = 0; i < 3; i++) {
        take(Q_kl_of_probs, found[i].kl);
        take(Q_kl_of_probs, tl_logsumexp(found[i].base));
        take(Q_kl_of_probs, tl_logsumexp(found[i].other));
    }
    tl_token_stats_row(backend, &probs, row->count / 2, &token, NULL, cancel);
    take(Q_token_of_probs, token.nll);
    take(Q_token_of_probs, token.logsumexp);
    take(Q_token_of_probs, token.entropy);
}

/* A row as log-probabilities, and as probabilities, before and after softmax: most scores before it are refused. */
static void take_nlls(const tl_backend *backend, const tl_row *row, const tl_loss *losses, tl_cancel *cancel) {
    static double memory[LONGEST + TL_GROUP], found[LONGEST + TL_GROUP];
    tl_row scores = {(char *)memory, row->count, tl_itemsize(row->dtype), row->dtype, row->dtype, 1, 0, 0, 0};
    const tl_clip clips[] = {clip_of(0, row->dtype), clip_of(1, row->dtype)};
    take_nlls_of(Q_nll_of_log_probabilities, backend, row, losses, &clips[1], cancel);
    take_nlls_of(Q_nll_of_probabilities, backend, row, losses, &clips[0], cancel);
    tl_lse_acc state;
    tl_lse_row(backend, row, -1, &state, cancel);
    tl_lse lse = tl_lse_finish(&state, row->compute_dtype);
    if (tl_logsumexp(lse) - tl_logsumexp(lse) == 0) {
        tl_softmax(backend, row, 0, &scores, 0, cancel);
        take_nlls_of(Q_nll_of_probabilities, backend, &scores, losses, &clips[0], cancel);
        take_probs(backend, &scores, row, cancel);
    }
    for (int is_log = 0; is_log < 2; is_log++) {
        for (int64_t k = 0; k < row->count; k++)
            tl_set_score(&clips[is_log], memory, (size_t)k, tl_load(row->data + k * row->stride, row->dtype));
        tl_negative_log(backend, &clips[is_log], memory, (size_t)row->count, found);
        for (int64_t k = 0; k < row->count; k++)
            take(Q_negative_log, found[k]);
    }
    for (int i = 0; i < LOSS_CASES; i++) {
        if (losses[i].target >= 0)
            continue;
        int is_one_hot = tl_one_hot_class(backend, &losses[i].soft, row->count, cancel) >= 0;
        require(is_one_hot == (loss_cases[i].kind == ONE_HOT), "a one-hot distribution", row);
        take_bits(Q_is_one_hot, (uint64_t)is_one_hot);
    }
}

/* A row of which the part alone is there, among nan. */
static tl_row only_part(const tl_row *row, int64_t start, int64_t end) {
    static char copy[8 * LONGEST];
    memset(copy, 0xff, sizeof copy);
    memcpy(copy + start * row->stride, row->data + start * row->stride, (size_t)((end - start) * row->stride));
    tl_row part = *row;
    part.data = copy;
    return part;
}

typedef struct {
    double dot, mass, values[7];
    int64_t ids[7];
    tl_token_stats token;
} found;

/* What is found in a row part by part. */
static found find_by_parts(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, int64_t target,
                           int64_t length, tl_cancel *cancel) {
    found all = {.dot = 0};
    tl_topk best = {row->count < 7 ? row->count : 7, 0, all.values, all.ids, 0};
    tl_dot_acc dot = {{0}, {0}, {0}, {0}, 0};
    double target_raw = tl_load(row->data + target * row->stride, row->dtype),
           logit = tl_transformed(backend, row, target_raw);
    for (int64_t start = 0, end; start < row->count; start = end) {
        end = row->count - start < length ? row->count : start + length;
        tl_row part = only_part(row, start, end);
        tl_target_dot_range(backend, &part, soft, start, end, logit - logit == 0 ? logit : 0, &dot, cancel);
        tl_token_stats_range(backend, &part, start, end, PART, target, target_raw, &all.token, &best, cancel);
    }
    all.dot = tl_target_dot_end(&dot, &all.mass);
    tl_token_stats_end(backend, row, target_raw, &all.token, &best);
    return all;
}

static void take_parts(const tl_backend *backend, const tl_row *row, const tl_row *other, int64_t target,
                       tl_cancel *cancel) {
    tl_soft_target soft = {other->data, other->stride, other->dtype, NULL, 0, 0, 0.25, 0};
    found whole = find_by_parts(backend, row, &soft, target, LONGEST, cancel);
    tl_loss plain = plain_loss(target);
    double loss = loss_by_ranges(backend, row, &plain, PART, cancel);
    require(same(loss, loss_by_logsumexp(backend, row, &plain, cancel)), "loss by ranges", row);
    require(same(loss, whole.token.nll), "token's loss", row);
    take(Q_tiles_nll, loss);
    take(Q_tiles_soft_target_loss, whole.dot);
    take(Q_tiles_soft_target_loss, whole.mass);
    take(Q_tiles_logsumexp, whole.token.logsumexp);
    take(Q_tiles_entropy, whole.token.entropy);
    for (int64_t length = PART; length < row->count; length *= 3) {
        found parts = find_by_parts(backend, row, &soft, target, length, cancel);
        require(same(parts.dot, whole.dot) && same(parts.mass, whole.mass), "sum by parts", row);
        require(same(parts.token.nll, whole.token.nll) && same(parts.token.logsumexp, whole.token.logsumexp) &&
                    same(parts.token.entropy, whole.token.entropy) && parts.token.rank == whole.token.rank &&
                    parts.token.argmax == whole.token.argmax,
                "token by parts", row);
        for (int i = 0; i < 7; i++)
            require(same(parts.values[i], whole.values[i]) && parts.ids[i] == whole.ids[i], "best by parts", row);
    }
}

/* Whether two ways to a loss agree within their errors; for float64, 4e-15 of a logsumexp of TL_MAX_EXACT_REDUCTION. */
static int nearly_same(double a, double b, const tl_row *row) {
    double tolerance = row->compute_dtype == TL_FLOAT64 ? 3e-10 : 3e-7;
    return same(a, b) || tl_abs(a - b) <= tolerance * (1 + tl_abs(b));
}

/* Of every `step`-th loss: the loss of a row, its gradient, and the loss of its ranges. */
static void take_losses(const tl_backend *backend, const tl_row *row, const tl_loss *losses, int first, int step,
                        tl_cancel *cancel) {
    static double memory[LONGEST];
    tl_row grad = {(char *)memory, row->count, tl_itemsize(row->dtype), row->dtype, row->dtype, 1, 0, 0, 0};
    for (int i = first; i < LOSS_CASES; i += step) {
        tl_row other = laid_out(row, i % LAYOUTS);
        tl_loss loss = losses[i];
        double in_layout = loss_of_row(backend, &other, &loss, cancel);
        double ranges = loss_by_ranges(backend, row, &loss, PART, cancel);
        double longer = loss_by_ranges(backend, row, &loss, 3 * PART, cancel);
        loss.grad = &grad;
        double value = loss_of_row(backend, row, &loss, cancel), whole = value;
        require(same(value, in_layout), "layout, or loss with its gradient,", row);
        require(nearly_same(ranges, value, row), "loss near that by ranges", row);
        if (loss.target >= 0)
            whole = loss_by_logsumexp(backend, row, &loss, cancel);
        require(!is_same_in_ranges(&loss_cases[i]) || same(ranges, whole), "loss by ranges", row);
        require(is_same_in_any_ranges(&loss_cases[i]) ? same(longer, ranges) : nearly_same(longer, ranges, row),
                "loss by longer ranges", row);
        take(loss_quantity(i), value);
        take_row((quantity)(loss_quantity(i) + 1), &grad);
        take((quantity)(loss_quantity(i) + 2), ranges);
    }
}

static void take_converted(const tl_backend *backend, const tl_row *row) {
    static double memory[LONGEST + 1], others[LONGEST + 1];
    for (int dtype = TL_FLOAT32; dtype <= TL_FLOAT64; dtype++) {
        tl_row out = {(char *)memory, row->count, tl_itemsize(dtype), dtype, dtype, 1, 0, 0, 0};
        memset(memory, 0x55, sizeof memory);
        tl_cast_row(backend, row, dtype, memory);
        require(((char *)memory)[row->count * out.stride] == 0x55, "what lies behind a conversion", row);
        take_row(Q_cast, &out);
        for (int layout = 0; layout < LAYOUTS; layout++) {
            tl_row other = laid_out(row, layout);
            tl_cast_row(backend, &other, dtype, others);
            for (int64_t i = 0; i < row->count * out.stride; i += out.stride)
                require(same(tl_load((char *)memory + i, dtype), tl_load((char *)others + i, dtype)), "conversion",
                        row);
        }
    }
}

/* Products of up to 3 rows, unaligned and apart, with up to 5 vectors. */
static void take_products(const tl_backend *backend, int dtype, int kind) {
    static const int64_t depths[] = {1, 63, 64, 1000, 1025, 2048};
    static double weights[3 * 2050], vectors[5 * 2048], memory[5 * 3];
    int wide = dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
    for (int d = 0; d < 6; d++) {
        tl_row row = {(char *)weights + 1, depths[d], tl_itemsize(dtype), dtype, dtype, 1, 0, 0, 0};
        ptrdiff_t between = (ptrdiff_t)(row.count + 1) * row.stride, size = tl_itemsize(wide);
        for (int64_t i = 0; i < 3 * (row.count + 1); i++)
            fill((char *)weights + 1 + i * row.stride, dtype, kind, 0.3);
        for (int64_t i = 0; i < 5 * row.count; i++)
            fill((char *)vectors + i * size, wide, kind == 5 ? 1 : kind, -0.7);
        for (int64_t rows = 1; rows <= 3; rows++)
            for (int64_t count = 1; count <= 5; count++) {
                tl_vectors with = {(char *)vectors, (ptrdiff_t)row.count * size, count},
                           out = {(char *)memory, 3 * size, count};
                tl_row products = {(char *)memory, 15, size, wide, wide, 1, 0, 0, 0};
                memset(memory, 0, sizeof memory);
                tl_matvec(backend, &row, between, rows, &with, &out);
                take_row(Q_matvec, &products);
            }
    }
}

/* Rows whose logsumexp is near 0, with one class that outweighs the others, about as much as they, or less. */
static void take_near_zero(const tl_backend *backend, int dtype, tl_cancel *cancel) {
    static const double leaders[] = {0, 1e-9, -1e-9, 1e-3, -1e-3, 0.2, -0.2, -0.6, -3};
    static const double others[] = {-0.1, -1, -5, -20, -40, -300};
    static double memory[LONGEST];
    static const int64_t lengths[] = {1,           2, 3, 64, 100, TL_CHUNK, TL_CHUNK + 1, TL_BLOCK - 1, TL_BLOCK + 700,
                                      2 * TL_BLOCK};
    for (int i = 0; i < 10 * 9 * 6; i += 11) { /* of each length, leader and level some */
        tl_row row = {(char *)memory, lengths[i % 10], tl_itemsize(dtype), dtype, dtype, 1, 0, 0, 0};
        double leader = leaders[i / 10 % 9], level = others[i / 90] - (i % 2 ? tl_log((double)row.count) : 0);
        for (int64_t k = 0; k < row.count; k++)
            tl_store_at(&row, k, level + centred() * level / 100);
        int64_t argmax = (int64_t)(random_bits() % (uint64_t)row.count), targets[] = {argmax, 0, row.count - 1};
        tl_store_at(&row, argmax, leader);
        for (int scaled = 0; scaled < 2; scaled++) {
            double logsumexp = logsumexp_of_row(backend, &row, cancel);
            take(Q_logsumexp_near_0, logsumexp);
            for (int t = 0; t < 3; t++) {
                tl_token_stats token;
                tl_token_stats_row(backend, &row, targets[t], &token, NULL, cancel);
                require(is_close(token.logsumexp, logsumexp, row.compute_dtype), "logsumexp near 0", &row);
            }
            for (int layout = 0; layout < LAYOUTS; layout++) {
                tl_row other = laid_out(&row, layout);
                require(same(logsumexp_of_row(backend, &other, cancel), logsumexp), "layout near 0", &row);
            }
            row.compute_dtype = TL_FLOAT64;
            row.logit_scale = 0.75;
            row.softcap = i % 3 ? 30 : 0;
        }
    }
}

static void make_losses(int64_t count, int64_t target, tl_loss *losses) {
    static double masses[LOSS_CASES][LONGEST];
    static float weights[LOSS_CASES][LONGEST];
    for (int i = 0; i < LOSS_CASES; i++)
        losses[i] = make_loss(&loss_cases[i], count, target, (char *)masses[i], (char *)weights[i]);
}

static double memory[LONGEST], before[LONGEST]; /* a row, and the row before it */

/* Losses and logsumexps of rows of all lengths. */
static void take_lengths(const tl_backend *backend, int dtype, int kind, tl_cancel *cancel) {
    for (int i = 0; i < 170; i++) {
        tl_row row = {(char *)memory, length(i), tl_itemsize(dtype), dtype, dtype, 1, 0, 0, 0};
        double equal = 20 * centred();
        for (int64_t k = 0; k < row.count; k++)
            fill((char *)memory + k * row.stride, dtype, kind, equal);
        take(Q_logsumexp, logsumexp(backend, &row, cancel));
        for (int t = 0; t < 4 && row.count > 0; t++) {
            int64_t target = t == 0 ? 0 : t == 1 ? row.count - 1 : (int64_t)(random_bits() % (uint64_t)row.count);
            take(Q_nll, nll(backend, &row, target, cancel));
            if (t == 3)
                check_layouts(backend, &row, target, cancel);
        }
    }
}

/* All quantities, of rows of some lengths. */
static void take_rows(const tl_backend *backend, int dtype, int kind, tl_cancel *cancel) {
    static tl_loss losses[LOSS_CASES];
    for (int i = 0; i < 170; i += i < 130 ? 13 : 4) {
        tl_row row = {(char *)memory, length(i), tl_itemsize(dtype), dtype, dtype, 1, 0, 0, 0};
        tl_row other = row;
        other.data = (char *)before;
        memcpy(before, memory, sizeof before);
        double equal = 20 * centred();
        for (int64_t k = 0; k < row.count; k++)
            fill((char *)memory + k * row.stride, dtype, kind, equal);
        if (row.count == 0)
            continue;
        int64_t target = (int64_t)(random_bits() % (uint64_t)row.count);
        make_losses(row.count, target, losses);
        take_all(backend, &row, &other, target, cancel);
        take_losses(backend, &row, losses, 0, 1, cancel);
        take_nlls(backend, &row, losses, cancel);
        take_parts(backend, &row, &other, target, cancel);
        take_converted(backend, &row);
        row.compute_dtype = other.compute_dtype = TL_FLOAT64;
        row.logit_scale = 0.75;
        row.softcap = i % 2 ? 30 : 0;
        take_all(backend, &row, &other, target, cancel);
        take_losses(backend, &row, losses, i % 5, 5, cancel); /* double takes long where FMA is emulated */
        take_parts(backend, &row, &other, target, cancel);
    }
}

static char *block_memory(block_part part, size_t bytes) {
    static char memory[BLOCK_PARTS][1 << 20];
    require(bytes < sizeof *memory, "memory", &(tl_row){.count = (int64_t)bytes});
    return memory[part] + 1;
}

static void check_blocks(const tl_backend *backend, int dtype, int kind, tl_cancel *cancel) {
    for (int i = 0; i < BLOCK_LENGTHS; i++) {
        block_case of = some_block(block_lengths[i], dtype, kind, block_memory);
        check_block(backend, &of, cancel);
    }
}

static void take_probabilities_and_zeros(const tl_backend *backend) {
    seed = 1;
    for (int i = 0; i < 2000; i++) {
        double p[TL_GROUP], nll[TL_GROUP];
        const tl_clip clip = tl_new_clip(1, i % 2 ? 1e-12 : 0, i % 4 < 2 ? TL_FLOAT32 : TL_FLOAT64);
        for (size_t k = 0; k < TL_GROUP; k++)
            tl_set_score(&clip, p, k, i % 3 ? (double)(random_bits() >> 11) * 0x1p-53 : tl_from_bits(random_bits()));
        tl_negative_log(backend, &clip, p, TL_GROUP, nll);
        for (int k = 0; k < TL_GROUP; k++)
            take(Q_clipped_losses, nll[k]);
        char zeros[4096] = {0};
        zeros[random_bits() % sizeof zeros] = (char)(i % 5);
        take_bits(Q_skip_zeros, (uint64_t)backend->skip_zeros(zeros, i % 100, (ptrdiff_t)sizeof zeros - i % 77));
    }
}

static void take_scalar_math(void) {
    seed = 1;
    tl_superacc sum = {.special = 0};
    for (int i = 0; i < 100000; i++) {
        uint64_t bits = random_bits();
        double any = tl_from_bits(bits), some = centred() * 20;
        take(Q_exp, tl_exp(some));
        take(Q_exp, tl_exp(any));
        take(Q_log, tl_log(any));
        take(Q_log, tl_log(tl_abs(some)));
        take(Q_log1p, tl_log1p(tl_exp(some)));
        take(Q_softplus, tl_softplus(some));
        if (any - any == 0)
            tl_superacc_add(&sum, any);
        tl_superacc_add(&sum, some);
        if (i % 1000 == 0)
            take(Q_exact_sum, tl_superacc_round(&sum, 0));
    }
}

/* golden [PARTS PART]: of every PARTS kinds of rows one is hashed, for each dtype another. */
int main(int argc, char **argv) {
    char name[64];
    const int parts = argc > 2 ? atoi(argv[1]) : 1, part = argc > 2 ? atoi(argv[2]) : 0;
    const int kinds_of_portable = argc > 3 ? atoi(argv[3]) : 0x3f;
    volatile int stopped = 0;
    tl_cancel cancel = {NULL, NULL, &stopped, 0};
    for (int id = 0; id < TL_BACKENDS; id++) {
        const tl_backend *backend = tl_find_backend((tl_backend_id)id);
        if (!backend)
            continue;
        const int kinds_of_rows = id == TL_PORTABLE ? kinds_of_portable : 0x3f;
        check_sums_and_masses(backend, &cancel);
        for (int dtype = 0; dtype < TL_FLOAT_DTYPES; dtype++)
            for (int kind = 0; kind < 6; kind++) {
                if ((dtype + kind) % parts != part || !(kinds_of_rows >> kind & 1))
                    continue;
                seed = (uint64_t)(100 * dtype + kind);
                take_lengths(backend, dtype, kind, &cancel);
                take_rows(backend, dtype, kind, &cancel);
                take_products(backend, dtype, kind);
                check_blocks(backend, dtype, kind, &cancel);
                snprintf(name, sizeof name, "%s %s %s", backend->name, dtype_names[dtype], kinds[kind]);
                print_hashes(name);
            }
        for (int dtype = 0; dtype < TL_FLOAT_DTYPES; dtype++) {
            seed = (uint64_t)dtype;
            take_near_zero(backend, dtype, &cancel);
            snprintf(name, sizeof name, "%s %s", backend->name, dtype_names[dtype]);
            print_hashes(name);
        }
        check_vectors(backend);
        take_probabilities_and_zeros(backend);
        print_hashes(backend->name);
    }
    take_scalar_math();
    print_hashes("scalar_math");
    return 0;
}
