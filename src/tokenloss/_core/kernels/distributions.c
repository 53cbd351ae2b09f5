/* See distributions.h. */
#include "distributions.h"

#include "row_block.h"

#define ELEMENTS 2048 /* of rows that are loaded side by side at once */
#define LIST 1024     /* classes with mass that are listed */
#define SEARCHED 64   /* elements that are searched for mass at once */
#define SAMPLED 16    /* elements that tell whether masses are dense */

_Static_assert(TL_DISTRIBUTION_ROWS % TL_GROUP == 0 && LIST % TL_GROUP == 0, "whole groups");
_Static_assert(TL_LONG_DISTRIBUTION * TL_GROUP <= ELEMENTS, "a group of the longest short rows");

static int is_long(const tl_distributions *of) { return of->classes > TL_LONG_DISTRIBUTION; }

/* -- dense masses: short rows side by side, or the lanes of a long row --------------------------------------------- */

/* The dtype that masses are read as: that of the scores, or float64. */
static int dtype_of_masses(const tl_distributions *of) {
    return of->score_dtype == TL_FLOAT64 ? TL_FLOAT64 : tl_single_or_double(of->mass_dtype);
}

/* The masses, and the scores, of a row of the block, in the dtype that they are read as. */
static tl_row masses_of_row(const tl_distributions *of, int row) {
    return (tl_row){of->mass + row * of->mass_row, of->classes, of->mass_class, of->mass_dtype, dtype_of_masses(of), 1,
                    0, 0, 0};
}

static tl_row scores_of_row(const tl_distributions *of, int row) {
    const int dtype = tl_single_or_double(of->score_dtype);
    return (tl_row){of->score + row * of->score_row, of->classes, of->score_class, of->score_dtype, dtype, 1, 0, 0, 0};
}

/* The class weight of each element, from a class on. */
static void load_weights(const tl_distributions *of, int64_t first, size_t n_rows, size_t width, double *weight) {
    for (size_t k = 0; of->weight && k < width; k++)
        for (size_t r = 0; r < n_rows; r++)
            *weight++ = tl_load(of->weight + (first + (int64_t)k) * of->weight_class, of->weight_dtype);
}

/* An element of rows of this dtype. */
static double element_of(const tl_few_rows *rows, int dtype, size_t i, size_t k) {
    const ptrdiff_t size = tl_itemsize(dtype), row = (ptrdiff_t)(i % TL_GROUP), class_id = (ptrdiff_t)k;
    const char *group = rows->data + i / TL_GROUP * rows->group_bytes;
    if (rows->are_apart)
        return tl_load(group + row * rows->apart + class_id * size, dtype);
    return tl_load(group + row * size + class_id * rows->class_stride, dtype);
}

/* Adds terms, as add_losses of a backend. Returns whether a score with mass is refused; sums of rows with a nan, of
 * `count` of them, become nan. */
static int add_losses(const tl_backend *backend, const tl_distributions *of, const tl_few_rows *scores,
                      const tl_few_rows *masses, int count, const double *weight, double *sum, double *lost) {
    int refused = 0, mass_dtype = dtype_of_masses(of), score_dtype = tl_single_or_double(of->score_dtype);
    if (!backend->add_losses[score_dtype](scores, masses, mass_dtype == TL_FLOAT64, tl_padded_rows(count),
                                          of->weight ? weight : NULL, of->clip, sum, lost))
        return 0;
    for (size_t i = 0; i < (size_t)count; i++)
        for (size_t k = 0; k < scores->classes; k++) {
            double score = element_of(scores, score_dtype, i, k);
            if (element_of(masses, mass_dtype, i, k) == 0)
                continue;
            refused |= tl_is_refused(of->clip, score);
            if (score != score)
                sum[i] = score;
        }
    return refused;
}

/* Classes of a long row as if each of TL_GROUP neighbours were a row: where they are, or in the buffer, with zeros. */
static tl_few_rows load_chunk(const tl_backend *backend, const tl_row *row, int64_t start, int64_t count,
                              tl_chunk_buf *buf) {
    const ptrdiff_t size = tl_itemsize(row->compute_dtype);
    const char *data = row->data + start * row->stride;
    if (count % TL_GROUP != 0 || !tl_can_read_in_place(row, row->compute_dtype, 0)) {
        tl_chunk_invalidate(buf);
        tl_load_chunk(backend, row, start, count, -1, 0, row->compute_dtype, buf);
        memset((char *)&buf->at + count * size, 0, (size_t)((tl_padded(count) - count) * size));
        data = (const char *)&buf->at;
    }
    return (tl_few_rows){data, 0, TL_GROUP * size, tl_groups_for((int)count), 0, 0};
}

/* Adds all classes of a long row. */
static int add_long_row(const tl_backend *backend, const tl_distributions *of, int row, double *sum) {
    const tl_row masses = masses_of_row(of, row), scores = scores_of_row(of, row);
    int refused = 0, in_place = !of->weight && tl_can_read_in_place(&masses, masses.compute_dtype, 0) &&
                                tl_can_read_in_place(&scores, scores.compute_dtype, 0);
    tl_chunk_buf mass_buf, score_buf;
    double weight[TL_CHUNK], lane[TL_GROUP] = {0}, lost[TL_GROUP] = {0};
    for (int64_t start = 0, count; start < of->classes; start += count) {
        count = of->classes - start;
        count = !in_place && count > TL_CHUNK ? TL_CHUNK : count;
        count -= count > TL_GROUP ? count % TL_GROUP : 0; /* the last few are copied */
        load_weights(of, start, 1, (size_t)count, weight);
        tl_few_rows score = load_chunk(backend, &scores, start, count, &score_buf);
        tl_few_rows mass = load_chunk(backend, &masses, start, count, &mass_buf);
        refused |= add_losses(backend, of, &score, &mass, TL_GROUP, weight, lane, lost);
    }
    *sum = tl_lanes_sum_or_infinite(lane, lost);
    return refused;
}

/* Rows in their compute dtype: where they are, if they are whole groups of neighbours, or side by side in `groups`. */
static tl_few_rows load_rows(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, const int *rows, int count,
                             double *groups) {
    const int dtype = tl_single_or_double(row->dtype), is_wider = dtype != row->compute_dtype;
    const ptrdiff_t size = tl_itemsize(row->compute_dtype);
    const size_t classes = (size_t)row->count, group_bytes = classes * TL_GROUP * (size_t)size;
    const size_t elements = classes * tl_padded_rows(count);
    const char *first = row->data + rows[0] * apart;
    char *loaded = (char *)groups + (is_wider ? elements * sizeof(float) : 0); /* floats that become doubles */
    tl_row_block block; /* of which no more is set than is needed */
    if (row->dtype == row->compute_dtype && count % TL_GROUP == 0 && rows[count - 1] - rows[0] == count - 1) {
        if (row->stride == size)
            return (tl_few_rows){first, (size_t)(TL_GROUP * apart), 0, classes, 1, apart};
        if (apart == size)
            return (tl_few_rows){first, TL_GROUP * (size_t)size, row->stride, classes, 0, 0};
    }
    block.row = *row;
    for (int start = 0, n; start < count; start += n) {
        n = count - start < TL_BLOCK_ROWS ? count - start : TL_BLOCK_ROWS;
        for (int i = 0; i < n; i++)
            block.data[i] = row->data + rows[start + i] * apart;
        tl_load_groups(backend, &block, n, dtype, loaded + (size_t)start * classes * (size_t)tl_itemsize(dtype));
    }
    for (size_t i = 0; is_wider && i < elements; i++)
        groups[i] = (double)((const float *)(const void *)loaded)[i];
    return (tl_few_rows){(const char *)groups, group_bytes, TL_GROUP * size, classes, 0, 0};
}

/* Adds all classes of short rows; there is room for whole groups of sums. */
static int add_short_rows(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                          double *sum) {
    const tl_row masses = masses_of_row(of, 0), scores = scores_of_row(of, 0);
    char memory[(2 * ELEMENTS + TL_GROUP) * sizeof(double) + TL_GROUP_ALIGNMENT];
    double weight[ELEMENTS], *groups = (double *)(void *)(memory + (-(uintptr_t)memory & (TL_GROUP_ALIGNMENT - 1)));
    int refused = 0, at_once = ELEMENTS / (int)of->classes / TL_GROUP * TL_GROUP;
    load_weights(of, 0, TL_GROUP, (size_t)of->classes, weight);
    for (int i = 0, n; i < count; i += n) {
        n = count - i < at_once ? count - i : at_once;
        tl_few_rows score = load_rows(backend, &scores, of->score_row, rows + i, n, groups);
        tl_few_rows mass = load_rows(backend, &masses, of->mass_row, rows + i, n, groups + ELEMENTS + TL_GROUP);
        refused |= add_losses(backend, of, &score, &mass, n, weight, sum + i, NULL);
    }
    return refused;
}

static int add_dense(const tl_backend *backend, const tl_distributions *of, const int *rows, int count, double *nll) {
    int refused = 0;
    if (!is_long(of))
        return add_short_rows(backend, of, rows, count, nll);
    for (int i = 0; i < count; i++)
        refused |= add_long_row(backend, of, rows[i], &nll[i]);
    return refused;
}

/* -- sparse masses: lists of classes ------------------------------------------------------------------------------- */

/* The losses of rows so far, and the terms of the last of them. */
typedef struct {
    double *nll;
    int row; /* -1 if there is none */
    tl_term_sums terms;
} sums_of_rows;

typedef struct {
    int count, is_continued; /* whether some were added already */
    int32_t at[LIST];        /* row times classes plus class, as if no row were left out of the block */
    int32_t row[LIST], class_id[LIST];
} class_list;

/* Whether each row has one class, and all are listed. */
static int is_one_each(const tl_distributions *of, const int *rows, int count, const class_list *list) {
    uint32_t classes = (uint32_t)of->classes, wrong = 0;
    if (list->is_continued || list->count != count)
        return 0;
    for (int i = 0; i < count; i++)
        wrong |= (uint32_t)list->at[i] - (uint32_t)rows[i] * classes >= classes;
    return !wrong;
}

/* Finds the row and class of each; `next` is the first row that may have one. */
static void split_positions(const tl_distributions *of, const int *rows, int *next, class_list *list) {
    const int32_t classes = (int32_t)of->classes;
    int row = *next;
    for (int i = 0; i < list->count; i++) {
        while (list->at[i] - rows[row] * classes >= classes)
            row++;
        list->class_id[i] = list->at[i] - rows[row] * classes;
        list->row[i] = row;
    }
    *next = row;
}

/* Loads the listed elements, as those scores are that a clip is of. If rows follow each other as classes do, `rows` is
 * NULL. */
TL_INLINE void load_listed_as(int dtype, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride,
                              const int *rows, const class_list *list, const tl_clip *clip, void *to) {
    if (!rows)
        for (int i = 0; i < list->count; i++)
            tl_set_score(clip, to, (size_t)i, tl_load(data + list->at[i] * class_stride, dtype));
    else
        for (int i = 0; i < list->count; i++)
            tl_set_score(clip, to, (size_t)i,
                         tl_load(data + rows[list->row[i]] * row_stride + list->class_id[i] * class_stride, dtype));
}

static void load_listed(int dtype, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride, const int *rows,
                        const class_list *list, const tl_clip *clip, void *to) {
    switch (dtype) { /* for a loop of each */
    case TL_FLOAT16: load_listed_as(TL_FLOAT16, data, row_stride, class_stride, rows, list, clip, to); break;
    case TL_BFLOAT16: load_listed_as(TL_BFLOAT16, data, row_stride, class_stride, rows, list, clip, to); break;
    case TL_FLOAT32: load_listed_as(TL_FLOAT32, data, row_stride, class_stride, rows, list, clip, to); break;
    case TL_FLOAT64: load_listed_as(TL_FLOAT64, data, row_stride, class_stride, rows, list, clip, to); break;
    case TL_INT64: load_listed_as(TL_INT64, data, row_stride, class_stride, rows, list, clip, to); break;
    default: load_listed_as(dtype, data, row_stride, class_stride, rows, list, clip, to);
    }
}

/* Ends the sum of a row, of which some classes were listed, and begins another. */
static void begin_row(const tl_distributions *of, int row, sums_of_rows *sums) {
    if (sums->row >= 0)
        sums->nll[sums->row] = tl_sum_of_terms(&sums->terms);
    sums->terms = (tl_term_sums){.lanes = is_long(of) ? TL_GROUP : 1};
    sums->row = row;
}

/* Adds terms, each to the sum of its row. */
static void add_terms(const tl_distributions *of, const class_list *list, const double *term, int one_each,
                      sums_of_rows *sums) {
    for (int i = 0; one_each && i < list->count; i++)
        sums->nll[i] = 0 + term[i];
    for (int i = 0; !one_each && i < list->count; i++) {
        if (list->row[i] != sums->row)
            begin_row(of, list->row[i], sums);
        tl_add_term(of->clip, of->classes, list->class_id[i], term[i], &sums->terms);
    }
}

/* Adds the listed classes. Returns whether one is refused: its score, or its mass if that is an integer. */
static int add_listed(const tl_backend *backend, const tl_distributions *of, const int *rows, int count, int *next,
                      class_list *list, sums_of_rows *sums) {
    static const tl_clip as_double = {.is_single = 0};
    double mass[LIST], score[LIST], nll[LIST];
    int one_each = is_one_each(of, rows, count, list), refused = 0;
    const int *mass_rows = of->mass_row == of->classes * of->mass_class ? NULL : rows;
    const int *score_rows = of->score_row == of->classes * of->score_class ? NULL : rows;
    if (!one_each || mass_rows || score_rows || of->weight)
        split_positions(of, rows, next, list);
    load_listed(of->mass_dtype, of->mass, of->mass_row, of->mass_class, mass_rows, list, &as_double, mass);
    load_listed(of->score_dtype, of->score, of->score_row, of->score_class, score_rows, list, of->clip, score);
    if (of->mass_dtype >= TL_FLOAT_DTYPES) {
        refused |= !one_each;
        for (int i = 0; i < list->count; i++)
            refused |= mass[i] != 1;
    }
    refused |= tl_negative_log(backend, of->clip, score, (size_t)list->count, nll);
    for (int i = 0; i < list->count; i++)
        nll[i] *= mass[i];
    if (of->weight)
        for (int i = 0; i < list->count; i++)
            nll[i] *= tl_load(of->weight + list->class_id[i] * of->weight_class, of->weight_dtype);
    add_terms(of, list, nll, one_each, sums);
    list->count = 0;
    return refused;
}

/* Lists the elements of a group that are not 0. */
TL_INLINE void list_group(uint64_t found, int32_t at, class_list *list) {
    int count = list->count;
    for (; found != 0; found &= found - 1)
        list->at[count++] = at + (int32_t)tl_lowest_bit(found);
    list->count = count;
}

/* The classes with mass of consecutive rows, from the row `first` of the block on. */
typedef struct {
    const char *data;
    int64_t count; /* elements */
    int32_t at;    /* position of the first */
} run_of_rows;

static run_of_rows next_run(const tl_distributions *of, const int *rows, int count, int *i) {
    run_of_rows run = {of->mass + rows[*i] * of->mass_row, of->classes, rows[*i] * (int32_t)of->classes};
    int is_flat = of->mass_row == of->classes * tl_itemsize(of->mass_dtype);
    for (++*i; is_flat && *i < count && rows[*i] == rows[*i - 1] + 1; ++*i)
        run.count += of->classes;
    return run;
}

/* Which of the next elements of a run are not 0, SEARCHED of them or as many as there are. If none is, moves *at to
 * where there may be some. */
static uint64_t next_nonzeros(const tl_backend *backend, const run_of_rows *run, int dtype, int64_t *at) {
    char rest[8 * SEARCHED];
    ptrdiff_t size = tl_itemsize(dtype);
    const char *group = run->data + *at * size;
    if (run->count - *at < SEARCHED) {
        memset(rest, 0, sizeof rest);
        memcpy(rest, group, (size_t)((run->count - *at) * size));
        group = rest;
    }
    uint64_t found = backend->nonzeros(group, dtype);
    if (found == 0 && run->count - *at > SEARCHED)
        *at = backend->skip_zeros(run->data, (ptrdiff_t)(*at + SEARCHED) * size, (ptrdiff_t)run->count * size) / size -
              SEARCHED;
    return found;
}

/* Adds the classes with mass, a list of them at a time. Returns 1 if something is refused, and 2 if most classes have
 * mass, so that the sums are of no use. */
static int add_sparse(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                      double *nll) {
    class_list list;
    sums_of_rows sums;
    int refused = 0, next = 0, is_integer = of->mass_dtype >= TL_FLOAT_DTYPES;
    int64_t searched = 0, n_found = 0;
    for (int i = 0; i < count; i++)
        nll[i] = 0;
    sums.nll = nll;
    sums.row = -1;
    begin_row(of, -1, &sums);
    list.count = list.is_continued = 0;
    for (int i = 0; i < count;) {
        run_of_rows run = next_run(of, rows, count, &i);
        for (int64_t k = 0; k < run.count; k += SEARCHED) {
            if (list.count > LIST - SEARCHED) {
                if (!is_integer && (searched + k) / 2 < n_found + list.count)
                    return 2;
                n_found += list.count;
                refused |= is_integer | add_listed(backend, of, rows, count, &next, &list, &sums);
                list.is_continued = 1;
            }
            uint64_t found = next_nonzeros(backend, &run, of->mass_dtype, &k);
            list_group(found, run.at + (int32_t)k, &list);
        }
        searched += run.count;
    }
    refused |= add_listed(backend, of, rows, count, &next, &list, &sums);
    begin_row(of, -1, &sums);
    return refused;
}

/* Whether lists do not pay, since most classes seem to have mass, by a few of the first rows, or there are few. */
static int samples_are_dense(const tl_distributions *of, const int *rows, int count) {
    int64_t total = count * of->classes, step = of->classes < SAMPLED ? 1 : of->classes / SAMPLED, k = 0;
    int sampled = total < SAMPLED ? (int)total : SAMPLED, found = 0, row = 0;
    if (of->classes * tl_itemsize(tl_single_or_double(of->mass_dtype)) <= TL_FEW_MASSES)
        return 1;
    for (int i = 0; i < sampled; i++, k += step) {
        row += k == of->classes;
        k = k == of->classes ? 0 : k;
        found += tl_load(of->mass + rows[row] * of->mass_row + k * of->mass_class, of->mass_dtype) != 0;
    }
    return 2 * found > sampled;
}

int tl_nll_of_distributions(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                            double *nll) {
    int refused = 2, is_float = of->mass_dtype < TL_FLOAT_DTYPES;
    if (!is_float || (of->mass_class == tl_itemsize(of->mass_dtype) && !samples_are_dense(of, rows, count)))
        refused = add_sparse(backend, of, rows, count, nll);
    if (refused == 2)
        refused = add_dense(backend, of, rows, count, nll);
    for (int i = 0; of->weight && i < count; i++) /* perhaps a weight of 0 times an infinite loss, which adds 0 */
        refused |= nll[i] != nll[i];
    return !refused;
}
