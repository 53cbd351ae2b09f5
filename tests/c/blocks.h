/* Blocks of rows, for golden.c and guarded.c: their results must be those of the functions for single rows to the bit,
 * whatever the layout and the number of rows, and nothing else may be written. */
#ifndef TOKENLOSS_TESTS_BLOCKS_H
#define TOKENLOSS_TESTS_BLOCKS_H

#include <stdio.h>
#include <stdlib.h>

#include "calls.h"
#include "kernels.h"
#include "loss_of_row.h"
#include "losses.h"
#include "rows.h"

#define LONGEST_IN_BLOCK (TL_SHORT_ROW + 1)

/* Rows one after another, from another one on, with gaps between classes, backwards, or with bytes swapped; class-major
 * rows that are all neighbours, of two images, or swapped. */
typedef enum {
    ROWS_IN_ORDER,
    ROWS_ROTATED,
    ROWS_APART,
    ROWS_BACKWARDS,
    ROWS_SWAPPED,
    PLANES,
    PLANES_OF_IMAGES,
    PLANES_SWAPPED,
    BLOCK_LAYOUTS
} block_layout;

/* What a block is for; and where its memory is, so many bytes. */
typedef enum {
    BLOCK_LOGITS,
    BLOCK_RESULTS,
    BLOCK_MASSES,
    BLOCK_WEIGHTS,
    BLOCK_SCRATCH,
    BLOCK_OTHER_SCRATCH,
    BLOCK_PARTS
} block_part;
typedef char *block_place(block_part part, size_t bytes);

typedef struct {
    block_layout layout, out_layout;
    int64_t classes;
    int count, dtype, kind; /* of rows; of their elements, as fill knows them */
    uint64_t wanted;
    double logit_scale, softcap;
    const loss_case *loss;
    block_place *place;
} block_case;

/* Where each row begins, in memory of `extent` bytes. */
typedef struct {
    tl_row row;
    ptrdiff_t at[TL_BLOCK_ROWS], extent;
    char *memory;
} block_rows;

static int same(double a, double b) { return tl_to_bits(a) == tl_to_bits(b) || (a != a && b != b); }

static void require(int holds, const char *what, const tl_row *row) {
    if (!holds) {
        printf("%s of %s differs, %d classes\n", what, dtype_names[row->dtype & ~TL_SWAPPED], (int)row->count);
        exit(1);
    }
}

static int is_in_planes(block_layout layout) { return layout >= PLANES; }

static block_rows place_rows(const block_case *of, block_part part, block_layout layout) {
    ptrdiff_t size = tl_itemsize(of->dtype), apart = layout == ROWS_APART ? 3 * size : size;
    ptrdiff_t in_row = (ptrdiff_t)of->classes * apart;
    int images = layout == PLANES_OF_IMAGES ? 2 : 1, of_image = (of->count + images - 1) / images;
    block_rows rows = {.row = {NULL, of->classes, apart, of->dtype, of->dtype, 1, 0, 0, 0}, .extent = 0};
    if (is_in_planes(layout))
        rows.row.stride = of_image * size;
    if (layout == ROWS_BACKWARDS)
        rows.row.stride = -size;
    if (layout == ROWS_SWAPPED || layout == PLANES_SWAPPED)
        rows.row.dtype |= TL_SWAPPED;
    for (int r = 0; r < of->count; r++) {
        rows.at[r] = layout == ROWS_ROTATED ? (r + 7) % of->count * in_row : r * in_row;
        if (layout == ROWS_BACKWARDS)
            rows.at[r] += in_row - size;
        if (is_in_planes(layout))
            rows.at[r] = r / of_image * rows.row.stride * (ptrdiff_t)of->classes + r % of_image * size;
        ptrdiff_t last = rows.at[r] + ((ptrdiff_t)of->classes - 1) * rows.row.stride;
        ptrdiff_t end = (last > rows.at[r] ? last : rows.at[r]) + size;
        rows.extent = end > rows.extent ? end : rows.extent;
    }
    rows.memory = of->place(part, (size_t)rows.extent);
    return rows;
}

static tl_row row_in(const block_rows *rows, int r) {
    tl_row row = rows->row;
    row.data = rows->memory + rows->at[r];
    return row;
}

static void fill_rows(const block_case *of, const block_rows *rows) {
    double equal = 20 * centred();
    for (int r = 0; r < of->count; r++) {
        tl_row row = row_in(rows, r);
        for (int64_t k = 0; k < of->classes; k++) {
            char element[8], *to = (char *)(uintptr_t)row.data + k * row.stride;
            int size = tl_itemsize(row.dtype);
            fill(element, of->dtype, of->kind, equal);
            for (int i = 0; i < size; i++)
                to[i] = element[row.dtype & TL_SWAPPED ? size - 1 - i : i];
        }
    }
}

/* A block, its results, and what they should be, of single rows. */
typedef struct {
    const tl_backend *backend;
    const block_case *of;
    tl_cancel *cancel;
    block_rows logits, results;
    tl_row_block rows;
    tl_out_block out;
    tl_block_lse lse;
    tl_loss losses[TL_BLOCK_ROWS];
    double values[TL_BLOCK_ROWS];
    double expected_values[TL_BLOCK_ROWS];
    double expected[TL_BLOCK_ROWS][LONGEST_IN_BLOCK]; /* in native order, of the rows' dtype */
} tested_block;

static tl_row expected_row(tested_block *block, int r) {
    tl_row row = {(char *)block->expected[r], block->of->classes, tl_itemsize(block->of->dtype), block->of->dtype,
                  block->of->dtype, 1, 0, 0, 0};
    return row;
}

static int is_expected(const tested_block *block, int r) { return (int)(block->of->wanted >> r & 1); }

/* Compares what was written for each wanted row, and sees that all else is as it was; class-major rows that are not
 * wanted may have become 0. */
static void require_results(tested_block *block, const char *what) {
    const tl_row *like = &block->results.row;
    for (int r = 0; r < block->of->count; r++) {
        tl_row row = row_in(&block->results, r), expected = expected_row(block, r);
        for (int64_t k = 0; k < row.count; k++) {
            char *at = (char *)(uintptr_t)row.data + k * row.stride;
            double value = tl_load(at, row.dtype);
            if (is_expected(block, r))
                require(same(value, tl_load(expected.data + k * expected.stride, expected.dtype)), what, like);
            if (is_expected(block, r) || (block->rows.class_major && tl_to_bits(value) == 0))
                memset(at, 0x55, (size_t)tl_itemsize(row.dtype));
        }
    }
    for (ptrdiff_t i = 0; i < block->results.extent; i++)
        require(block->results.memory[i] == 0x55, "what lies beside the results", like);
}

static void require_values(const tested_block *block, const char *what) {
    for (int r = 0; r < block->of->count; r++)
        require(!is_expected(block, r) || same(block->values[r], block->expected_values[r]), what, &block->logits.row);
}

/* Excludes a class of each row, or none; memory is as it may have been left by other rows. */
static void prepare_block(tested_block *block, int without_class) {
    size_t bytes = tl_row_block_bytes(block->of->classes, block->rows.class_major);
    memset(block->rows.scratch, 0xff, bytes > 1 ? bytes - 1 : bytes);
    memset(&block->lse, 0xff, sizeof block->lse);
    block->rows.has_excluded = without_class;
    for (int r = 0; r < block->of->count; r++) {
        int64_t excluded = block->losses[r].target;
        if (without_class && excluded < 0 && is_expected(block, r))
            excluded = tl_soft_target_argmax(block->backend, &block->losses[r].soft, block->of->classes,
                                             block->cancel);
        block->rows.excluded[r] = without_class && is_expected(block, r) ? excluded : -1;
    }
}

/* The distance of rows that lie evenly, or else 0. */
static ptrdiff_t distance_between(const block_rows *rows, int count) {
    ptrdiff_t apart = count > 1 ? rows->at[1] - rows->at[0] : 0;
    for (int r = 1; r < count; r++)
        apart = rows->at[r] - rows->at[r - 1] == apart ? apart : 0;
    return apart;
}

/* Writes the logsumexps of all rows at once, and of the rows that are left by a block. */
static void check_logsumexps_at_once(tested_block *block) {
    tl_row_block others = block->rows;
    tl_row first = row_in(&block->logits, 0);
    ptrdiff_t apart = distance_between(&block->logits, block->of->count);
    double values[TL_BLOCK_ROWS];
    if (apart == 0 || first.count < 2 || first.count > TL_FEW_CLASSES || tl_is_transformed(&first))
        return;
    first = block->rows.row;
    first.data = block->rows.data[0];
    uint64_t left;
    const size_t count = (size_t)others.count;
    const size_t done = tl_lse_of_few(block->backend, &first, apart, count, block->values, &left);
    others.wanted &= done < count ? left << done : 0;
    tl_logsumexp_of_block(block->backend, &others, values, block->cancel);
    for (int r = 0; r < others.count; r++)
        if (tl_is_wanted(&others, r))
            block->values[r] = values[r];
    require_values(block, "logsumexp of several rows");
}

static void check_logsumexps(tested_block *block) {
    for (int r = 0; r < block->of->count; r++) {
        tl_row row = row_in(&block->logits, r);
        block->expected_values[r] = logsumexp_of_row(block->backend, &row, block->cancel);
    }
    block->rows.keeps_logits = 0;
    prepare_block(block, 0);
    tl_logsumexp_of_block(block->backend, &block->rows, block->values, block->cancel);
    require_values(block, "logsumexp in a block");
    check_logsumexps_at_once(block);
}

/* Writes rows at once up to one without a softmax, and the others after it in a block. */
static void check_softmaxes_at_once(tested_block *block, int is_log) {
    tl_row_block others = block->rows;
    tl_row first = row_in(&block->logits, 0), out = row_in(&block->results, 0);
    ptrdiff_t apart = distance_between(&block->logits, block->of->count);
    ptrdiff_t out_apart = distance_between(&block->results, block->of->count);
    if (apart == 0 || out_apart == 0 || others.wanted != ~(uint64_t)0 >> (TL_BLOCK_ROWS - others.count))
        return;
    size_t done = tl_softmax_rows(block->backend, &first, apart, (size_t)others.count, is_log, &out, out_apart);
    others.wanted = done < (size_t)others.count ? others.wanted >> done << done : 0;
    tl_softmax_of_block(block->backend, &others, is_log, &block->out, block->cancel);
    require_results(block, is_log ? "log_softmax of several rows" : "softmax of several rows");
}

static void check_softmaxes(tested_block *block, int is_log) {
    for (int r = 0; r < block->of->count; r++) {
        tl_row row = row_in(&block->logits, r), to = expected_row(block, r);
        tl_softmax(block->backend, &row, is_log, &to, 0, block->cancel);
    }
    tl_softmax_of_block(block->backend, &block->rows, is_log, &block->out, block->cancel);
    require_results(block, is_log ? "log_softmax in a block" : "softmax in a block");
    check_softmaxes_at_once(block, is_log);
}

static void find_losses(tested_block *block, int has_grad, int keeps_logits) {
    const tl_out_block *grads = has_grad ? &block->out : NULL;
    const tl_masses none = {NULL, 0};
    block->rows.keeps_logits = keeps_logits;
    prepare_block(block, 1);
    tl_odds_of_block(block->backend, &block->rows, &block->lse, block->cancel);
    tl_losses_of_block(block->backend, &block->rows, &block->lse, block->losses, &none, grads, block->values,
                       block->cancel);
    require_values(block, "loss in a block");
}

static void check_losses(tested_block *block) {
    static tl_row to[TL_BLOCK_ROWS];
    for (int r = 0; r < block->of->count; r++) {
        tl_row row = row_in(&block->logits, r), expected = expected_row(block, r);
        if (!is_expected(block, r))
            continue;
        block->losses[r].grad = &expected;
        block->expected_values[r] = loss_of_row(block->backend, &row, &block->losses[r], block->cancel);
        block->losses[r].grad = NULL;
    }
    find_losses(block, 0, block->of->loss->smoothing != 0);
    for (int r = 0; r < block->of->count; r++)
        to[r] = row_in(&block->results, r);
    find_losses(block, 1, 1);
    require_results(block, "gradient in a block");
    if (block->of->layout != block->of->out_layout)
        return;
    memcpy(block->results.memory, block->logits.memory, (size_t)block->logits.extent); /* over the logits */
    for (int r = 0; r < block->of->count; r++)
        block->rows.data[r] = to[r].data;
    find_losses(block, 1, 1);
    for (int r = 0; r < block->of->count; r++) {
        tl_row expected = expected_row(block, r);
        for (int64_t k = 0; k < expected.count && is_expected(block, r); k++)
            require(same(tl_load(to[r].data + k * to[r].stride, to[r].dtype),
                         tl_load(expected.data + k * expected.stride, expected.dtype)),
                    "gradient over the logits of a block", &expected);
    }
}

static void make_block_losses(tested_block *block) {
    const block_case *of = block->of;
    size_t mass_bytes = (size_t)(of->classes * tl_itemsize(of->loss->mass_dtype));
    char *masses = of->place(BLOCK_MASSES, mass_bytes * (size_t)of->count);
    char *weights = of->place(BLOCK_WEIGHTS, 4 * (size_t)of->classes);
    for (int r = 0; r < of->count; r++) {
        int64_t target = (int64_t)(random_bits() % (uint64_t)of->classes);
        memset(&block->losses[r], 0xff, sizeof block->losses[r]); /* nothing asks for that of an unwanted row */
        if (!is_expected(block, r))
            continue;
        block->losses[r] = make_loss(of->loss, of->classes, target, masses + mass_bytes * (size_t)r, weights);
        block->losses[r].grad_scale *= r % 3 + 1;
    }
}

/* Rows that were not found are left to the functions for single rows; of normal ones in whole groups there are none. */
static void require_found(const tested_block *block, uint64_t found, const char *what) {
    const block_case *of = block->of;
    int is_easy = of->kind == 0 && of->classes <= TL_SHORT_ROW && of->count % TL_GROUP == 0;
    require((found & ~of->wanted) == 0 && (found == of->wanted || !is_easy), what, &block->logits.row);
}

/* Statistics of tokens, and sometimes the best classes. */
static void check_tokens(tested_block *block) {
    enum { BEST = 5 };
    static double values[TL_BLOCK_ROWS][BEST], expected_values[BEST];
    static int64_t ids[TL_BLOCK_ROWS][BEST], expected_ids[BEST];
    tl_topk tops[TL_BLOCK_ROWS], top = {0, 0, expected_values, expected_ids, 0};
    tl_token_block tokens;
    const tl_row *like = &block->logits.row;
    int64_t classes = block->of->classes, most = classes < BEST ? classes : BEST;
    memset(block->rows.scratch, 0xff, tl_row_block_bytes(classes, block->rows.class_major) - 1);
    block->rows.has_excluded = block->rows.keeps_logits = 1;
    for (int r = 0; r < block->of->count; r++) {
        block->rows.excluded[r] = is_expected(block, r) ? (int64_t)(random_bits() % (uint64_t)classes) : -1;
        tops[r] = (tl_topk){most, 0, values[r], ids[r], 0};
    }
    int has_top = random_bits() % 2 == 0;
    uint64_t found =
        tl_token_stats_of_block(block->backend, &block->rows, has_top ? tops : NULL, &tokens, block->cancel);
    require_found(block, found, "tokens found in a block");
    for (int r = 0; r < block->of->count; r++) {
        tl_row row = row_in(&block->logits, r);
        tl_token_stats token;
        if (!(found >> r & 1))
            continue;
        top.most = most;
        tl_token_stats_row(block->backend, &row, block->rows.excluded[r], &token, has_top ? &top : NULL, block->cancel);
        require(same(tokens.nll[r], token.nll), "nll of a token in a block", like);
        require(same(tokens.logsumexp[r], token.logsumexp), "logsumexp of a token in a block", like);
        require(same(tokens.entropy[r], token.entropy), "entropy of a token in a block", like);
        require(tokens.rank[r] == token.rank && tokens.argmax[r] == token.argmax, "rank of a token in a block", like);
        for (int64_t i = 0; has_top && i < most; i++)
            require(same(values[r][i], expected_values[i]) && ids[r][i] == expected_ids[i],
                    "best classes of a token in a block", like);
    }
}

/* Pairs of rows: those of single rows, whose loss and divergence are those of the functions for one of them alone. */
static void check_pairs(tested_block *block, const tl_row_block *others) {
    tl_row_block base = block->rows, other = *others;
    tl_pair pairs[TL_BLOCK_ROWS];
    int dtype = block->of->dtype;
    base.has_excluded = other.has_excluded = 1;
    for (int r = 0; r < block->of->count; r++)
        base.excluded[r] = other.excluded[r] = is_expected(block, r) ? r % block->of->classes : -1;
    for (tl_definitions definitions = TL_EXACT; definitions <= TL_LLAMA_CPP; definitions++) {
        tl_pair_of_block(block->backend, &base, &other, dtype, definitions, TL_TV | TL_JS, pairs, block->cancel);
        for (int r = 0; r < block->of->count; r++) {
            tl_row row = tl_row_of_block(&base, r), other_row = tl_row_of_block(&other, r);
            tl_loss loss = {.soft = {.one_minus_eps = 1}, .target = base.excluded[r], .target_weight = 1};
            if (!is_expected(block, r))
                continue;
            tl_pair pair =
                tl_pair_row(block->backend, &row, &other_row, loss.target, dtype, definitions, block->cancel);
            require(same(pairs[r].nll, pair.nll) && same(pairs[r].base_nll, pair.base_nll), "losses of a pair", &row);
            require(same(pairs[r].kl, pair.kl) && same(pairs[r].change, pair.change), "divergence of a pair", &row);
            require(pairs[r].is_same_top == pair.is_same_top, "tops of a pair", &row);
            require(same(pairs[r].base_margin, pair.base_margin) && same(pairs[r].margin, pair.margin),
                    "margins of a pair", &row);
            require(pairs[r].is_identical == pair.is_identical, "same bits of a pair", &row);
            require(same(tl_logsumexp(pairs[r].base_lse), tl_logsumexp(pair.base_lse)), "logsumexp of a base", &row);
            require(same(pair.nll, loss_of_row(block->backend, &other_row, &loss, block->cancel)), "loss of a pair",
                    &row);
            if (definitions == TL_LLAMA_CPP)
                continue;
            tl_kl alone = tl_kl_divergence(block->backend, &row, &other_row, block->cancel);
            tl_divergences further = tl_divergences_of(block->backend, &row, &other_row, alone.base, alone.other,
                                                       TL_TV | TL_JS, block->cancel);
            require(same(pair.kl, alone.kl), "divergence of a pair alone", &row);
            require(same(pairs[r].further.tv, further.tv) && same(pairs[r].further.js, further.js),
                    "further divergences of a pair", &row);
        }
    }
}

/* Further divergences of a block, given those of its rows: all at once, and one, which the size chooses. */
static void check_further(tested_block *block, const tl_row_block *base, const tl_row_block *others,
                          const tl_kl *kl, const tl_divergences *alone) {
    int one = TL_REVERSE_KL << (block->of->classes + block->of->count) % 4;
    tl_divergences found[TL_BLOCK_ROWS];
    for (int wanted = ALL_DIVERGENCES;; wanted = one) {
        tl_divergences_of_block(block->backend, base, others, kl, wanted, found, block->cancel);
        for (int r = 0; r < block->of->count; r++) {
            tl_row row = tl_row_of_block(base, r);
            if (!is_expected(block, r))
                continue;
            int fits = (!(wanted & TL_TV) || same(found[r].tv, alone[r].tv)) &&
                       (!(wanted & TL_JS) || same(found[r].js, alone[r].js)) &&
                       (!(wanted & TL_HELLINGER) || same(found[r].hellinger, alone[r].hellinger)) &&
                       (!(wanted & TL_REVERSE_KL) || same(found[r].reverse_kl, alone[r].reverse_kl));
            require(fits, "further divergences in a block", &row);
        }
        if (wanted != ALL_DIVERGENCES)
            break;
    }
}

/* Divergences from other rows, which lie where results did: unscaled ones, whatever the base's are. */
static void check_divergences(tested_block *block) {
    tl_kl kl[TL_BLOCK_ROWS];
    tl_row_block other = block->rows;
    size_t bytes = tl_row_block_bytes(block->of->classes, block->rows.class_major);
    fill_rows(block->of, &block->results);
    block->results.row.compute_dtype = block->rows.row.compute_dtype;
    other.row = block->results.row;
    other.scratch = block->of->place(BLOCK_OTHER_SCRATCH, bytes);
    memset(block->rows.scratch, 0xff, bytes - 1);
    memset(other.scratch, 0xff, bytes - 1);
    block->rows.has_excluded = other.has_excluded = block->rows.keeps_logits = other.keeps_logits = 0;
    for (int r = 0; r < block->of->count; r++) {
        block->rows.data[r] = block->logits.memory + block->logits.at[r];
        block->rows.excluded[r] = other.excluded[r] = -1;
        other.data[r] = block->results.memory + block->results.at[r];
    }
    tl_row_block probs = block->rows, other_probs = other;
    probs.row.of_probs = other_probs.row.of_probs = 1;
    probs.row.compute_dtype = other_probs.row.compute_dtype = TL_FLOAT64;
    const tl_row_block *const pairs[][2] = {{&block->rows, &other}, {&other, &block->rows}, {&probs, &other_probs}};
    for (int i = tl_is_transformed(&block->rows.row) ? 1 : 2; i >= 0; i--) {
        const tl_row_block *base = pairs[i][0], *others = pairs[i][1];
        uint64_t found = tl_kl_of_block(block->backend, base, others, kl, block->cancel);
        require_found(block, found, "divergences found in a block");
        tl_divergences further[TL_BLOCK_ROWS];
        for (int r = 0; r < block->of->count; r++) {
            tl_row row = tl_row_of_block(base, r), other_row = tl_row_of_block(others, r);
            tl_kl alone = tl_kl_divergence(block->backend, &row, &other_row, block->cancel);
            if (found >> r & 1)
                require(same(kl[r].kl, alone.kl), "divergence in a block", &row);
            kl[r] = alone;
            if (is_expected(block, r))
                further[r] = tl_divergences_of(block->backend, &row, &other_row, alone.base, alone.other,
                                               ALL_DIVERGENCES, block->cancel);
        }
        check_further(block, base, others, kl, further);
    }
    if (!tl_is_transformed(&block->rows.row))
        check_pairs(block, &other);
}

/* All results of a block. */
static void check_block(const tl_backend *backend, const block_case *of, tl_cancel *cancel) {
    static tested_block block;
    int class_major = is_in_planes(of->layout);
    block.backend = backend;
    block.of = of;
    block.cancel = cancel;
    block.logits = place_rows(of, BLOCK_LOGITS, of->layout);
    block.results = place_rows(of, BLOCK_RESULTS, of->out_layout);
    block.rows = (tl_row_block){.row = block.logits.row, .count = of->count, .class_major = class_major};
    block.rows.scratch = of->place(BLOCK_SCRATCH, tl_row_block_bytes(of->classes, class_major));
    block.rows.wanted = of->wanted;
    block.out = (tl_out_block){.row = block.results.row, .nontemporal_stores = of->classes % 2 == 1};
    block.logits.row.logit_scale = block.rows.row.logit_scale = of->logit_scale;
    block.logits.row.softcap = block.rows.row.softcap = of->softcap;
    if (tl_is_transformed(&block.rows.row))
        block.logits.row.compute_dtype = block.rows.row.compute_dtype = TL_FLOAT64;
    fill_rows(of, &block.logits);
    for (int r = 0; r < of->count; r++) {
        block.rows.data[r] = block.logits.memory + block.logits.at[r];
        block.out.data[r] = block.results.memory + block.results.at[r];
    }
    memset(block.results.memory, 0x55, (size_t)block.results.extent);
    make_block_losses(&block);
    check_logsumexps(&block);
    if (!tl_is_transformed(&block.rows.row) && of->wanted == ~(uint64_t)0 >> (64 - of->count)) {
        check_softmaxes(&block, 0);
        check_softmaxes(&block, 1);
    }
    check_tokens(&block);
    check_losses(&block);
    check_divergences(&block);
}

/* Lengths of rows: all of few classes, those around the sizes of lanes and chunks, and some that are not short. */
static const int64_t block_lengths[] = {1,  2,  3,  4,  5,  6,   7,   8,   9,   10,  11,  12,  13,  14,  15,  16,  17,
                                        18, 19, 20, 31, 32, 33,  47,  48,  49,  63,  64,  65,  100, 127, 128, 129, 191,
                                        193, 255, 256, 257, 300, 320, 383, 384, 385, 447, 449, 500, 511, 512, 513};
#define BLOCK_LENGTHS ((int)(sizeof block_lengths / sizeof *block_lengths))

/* A block of some layout, number of rows and loss. */
static block_case some_block(int64_t classes, int dtype, int kind, block_place *place) {
    block_case of = {.layout = (block_layout)die(BLOCK_LAYOUTS), .classes = classes, .dtype = dtype, .kind = kind};
    int most = classes > TL_SHORT_ROW ? 20 : tl_row_block_rows(classes, is_in_planes(of.layout));
    of.out_layout = die(3) ? of.layout : (block_layout)die(BLOCK_LAYOUTS);
    of.count = die(4) ? 1 + die(most) : most;
    of.wanted = ~(uint64_t)0 >> (TL_BLOCK_ROWS - of.count);
    if (die(3) == 0)
        of.wanted &= random_bits() | random_bits();
    of.logit_scale = die(6) ? 1 : 0.75;
    of.softcap = die(12) ? 0 : 30;
    of.loss = &loss_cases[die(LOSS_CASES)];
    if (of.loss->kind == NO_MASS && of.loss->z_loss == 0) /* such rows come into no block */
        of.loss = &loss_cases[0];
    of.place = place;
    return of;
}

#endif
