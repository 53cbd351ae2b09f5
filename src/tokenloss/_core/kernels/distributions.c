/* See distributions.h. */
#include "distributions.h"

#include "row_block.h"

#define LIST 1024   /* classes with mass that are listed */
#define SEARCHED 64 /* elements that are searched for mass at once */
#define SAMPLED 16  /* elements that tell whether masses are dense */
#define DENSE_BLOCKS 7 /* blocks after a dense one that are taken to be dense without a look */

_Static_assert(TL_DISTRIBUTION_ROWS % TL_GROUP == 0 && LIST % TL_GROUP == 0, "whole groups");

/* -- dense masses -------------------------------------------------------------------------------------------------- */

/* The dtype that masses are read as: that of the scores, or float64. */
static int dtype_of_masses(const tl_distributions *of) {
    return of->score_dtype == TL_FLOAT64 ? TL_FLOAT64 : tl_single_or_double(of->mass_dtype);
}

#define COPIED (2 * TL_TERMS) /* elements of rows that are copied together */

/* Elements next to each other, in another dtype: where they are if they have it, or copied. */
static const char *load(const tl_backend *backend, const char *data, int dtype, int compute_dtype, int count,
                        void *copy) {
    const tl_row row = {data, count, tl_itemsize(dtype), dtype, compute_dtype, 1, 0, 0, 0};
    if (dtype != compute_dtype)
        tl_cast_row(backend, &row, compute_dtype, copy);
    return dtype == compute_dtype ? data : copy;
}

/* Adds terms, as a backend's add_losses; sums with a nan become nan. Returns whether a score with mass is refused. */
static int add_losses(const tl_backend *backend, const tl_distributions *of, const char *scores, const char *masses,
                      int count, int classes, const double *weight, const tl_sums_at *to) {
    double mass[COPIED];
    float score[COPIED]; /* of halves */
    int refused = 0, mass_dtype = dtype_of_masses(of), score_dtype = tl_single_or_double(of->score_dtype);
    scores = load(backend, scores, of->score_dtype, score_dtype, count, score);
    masses = load(backend, masses, of->mass_dtype, mass_dtype, count, mass);
    if (!backend->add_losses[score_dtype](scores, masses, mass_dtype == TL_FLOAT64, (size_t)count, (size_t)classes,
                                          of->weight ? weight : NULL, of->clip, to))
        return 0;
    for (int i = 0; i < count; i++) {
        double one = tl_load(scores + i * tl_itemsize(score_dtype), score_dtype);
        if (tl_load(masses + i * tl_itemsize(mass_dtype), mass_dtype) == 0)
            continue;
        refused |= tl_is_refused(of->clip, one);
        if (one != one)
            to->sum[i / classes] = one;
    }
    return refused;
}

/* The elements of rows, or of a part of a single row, next to each other: where they are, or copied. */
static const char *gather(const char *data, int dtype, ptrdiff_t apart, ptrdiff_t stride, const int *rows, int count,
                          int64_t classes, char *copy) {
    const ptrdiff_t size = tl_itemsize(dtype), bytes = (ptrdiff_t)classes * size;
    if (stride == size && (count == 1 || (apart == bytes && rows[count - 1] - rows[0] == count - 1)))
        return data + rows[0] * apart;
    for (int i = 0; i < count; i++)
        tl_copy_elements(data + rows[i] * apart, stride, copy + i * bytes, size, classes, dtype);
    return copy;
}

/* Adds all classes of rows by way of copies: as many rows at a time as have COPIED, or TL_TERMS of a long one. */
TL_OUTLINE int add_copies(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                          double *nll) {
    const int is_long = of->classes > TL_PART, multiple = of->classes <= 64 ? 32 : 8;
    const int at_once = is_long ? 1 : COPIED / (int)of->classes / multiple * multiple;
    char mass[COPIED * sizeof(double)], score[COPIED * sizeof(double)];
    double weight[TL_TERMS + 2 * TL_GROUP], part[TL_TERMS / TL_PART + TL_GROUP];
    int refused = 0;
    for (int i = 0, n; i < count; i += n) {
        const tl_sums_at to = {is_long ? part : nll + i, 0, 0};
        double sum = 0, lost = 0;
        n = count - i < at_once ? count - i : at_once;
        for (int64_t k = 0; k < of->classes; k += TL_TERMS) {
            const int64_t classes = of->classes - k < TL_TERMS ? of->classes - k : TL_TERMS;
            if (is_long || i == 0)
                for (int64_t j = 0; of->weight && j < TL_TERMS + 2 * TL_GROUP; j++)
                    weight[j] = tl_load(of->weight + (k + j) % of->classes * of->weight_class, of->weight_dtype);
            refused |= add_losses(backend, of,
                                  gather(of->score + k * of->score_class, of->score_dtype, of->score_row,
                                         of->score_class, rows + i, n, classes, score),
                                  gather(of->mass + k * of->mass_class, of->mass_dtype, of->mass_row, of->mass_class,
                                         rows + i, n, classes, mass),
                                  n * (int)classes, is_long ? TL_PART : (int)of->classes, weight, &to);
            for (int j = 0; is_long && j * TL_PART < classes; j++)
                tl_add_part(part[j], &sum, &lost);
        }
        if (is_long)
            nll[i] = tl_sum_of_parts(sum, lost);
    }
    return refused;
}

#define PLANE_ROWS 512 /* whose classes are added one after another */

/* Whether planes have just this many rows, few enough to read 16 classes at once, and follow each other. */
static int are_adjacent(const tl_distributions *of, int rows) {
    return rows <= PLANE_ROWS && of->score_class == rows * of->score_row && of->mass_class == rows * of->mass_row;
}

/* Adds some classes of planes, each of as many rows, from class k on. If they are several, they follow each other. */
static int add_classes(const tl_backend *backend, const tl_distributions *of, int rows, int k, int classes,
                       const tl_sums_at *to) {
    double weight[TL_TERMS + 2 * TL_GROUP];
    for (int c = 0; of->weight && c < classes; c++) {
        const double one = tl_load(of->weight + (k + c) * of->weight_class, of->weight_dtype);
        for (int j = c * rows; j < (c + 1) * rows + 2 * TL_GROUP; j++)
            weight[j] = one;
    }
    return add_losses(backend, of, of->score + k * of->score_class, of->mass + k * of->mass_class, rows * classes, 1,
                      weight, to);
}

/* Copies the sums of some rows, where those from the first one on have theirs. */
static void copy_sums(const double *sum, const int *rows, int first, int count, double *nll) {
    if (rows[count - 1] - first == count - 1)
        memcpy(nll, sum, (size_t)count * sizeof *sum);
    else
        for (int i = 0; i < count; i++)
            nll[i] = sum[rows[i] - first];
}

/* Adds all classes of samples: the planes of a few rows, and after these those of the next ones. As many samples at a
 * time as have TL_TERMS. */
static int add_samples(const tl_backend *backend, const tl_distributions *of, const int *rows, int count, double *nll) {
    const int in_sample = of->sample_rows, classes = (int)of->classes, elements = classes * in_sample;
    const int at_once = TL_TERMS / elements, samples = rows[count - 1] / in_sample + 1;
    double term[TL_TERMS + 2 * TL_GROUP], weight[TL_TERMS + 2 * TL_GROUP], sum[TL_DISTRIBUTION_ROWS + TL_GROUP];
    int refused = 0;
    for (int j = 0; of->weight && j < TL_TERMS + 2 * TL_GROUP; j++)
        weight[j] = tl_load(of->weight + j / in_sample % classes * of->weight_class, of->weight_dtype);
    for (int s = 0, n; s < samples; s += n) {
        const tl_sums_at to = {term, 0, 0};
        n = samples - s < at_once ? samples - s : at_once;
        refused |= add_losses(backend, of, of->score + s * elements * of->score_row,
                              of->mass + s * elements * of->mass_row, n * elements, 1, weight, &to);
        for (int i = 0; i < n; i++)
            backend->sum_planes(term + i * elements, (size_t)classes, (size_t)in_sample, sum + (s + i) * in_sample);
    }
    copy_sums(sum, rows, 0, count, nll);
    return refused;
}

/* Adds up to TL_PART classes of planes: each in its lane, several at a time if planes follow each other. */
static int add_lanes(const tl_backend *backend, const tl_distributions *of, int rows, double *sum) {
    double memory[TL_GROUP * PLANE_ROWS + 2 * TL_GROUP], *lane = memory + (-(uintptr_t)memory & 63) / 8;
    const int classes = (int)of->classes, lanes = classes < TL_GROUP ? classes : TL_GROUP;
    const int adjacent = are_adjacent(of, rows), at_once = adjacent ? TL_TERMS / rows : 1;
    int refused = 0;
    for (int k = 0, n; k < classes; k += n) {
        const int first = k % lanes, left = classes - k < lanes - first ? classes - k : lanes - first;
        const ptrdiff_t next = k + 1 < classes ? of->score_class : rows * of->score_row - k * of->score_class;
        const tl_sums_at to = {lane + first * rows, k >= lanes,
                               adjacent || of->score_dtype != TL_FLOAT32 ? 0 : next - TL_AHEAD};
        n = left < at_once ? left : at_once;
        refused |= add_classes(backend, of, rows, k, n, &to);
    }
    backend->sum_planes(lane, (size_t)lanes, (size_t)rows, sum);
    return refused;
}

/* Adds all classes of rows in planes. Rows in between are read as well. */
TL_OUTLINE int add_planes(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                          double *nll) {
    double sum[PLANE_ROWS + TL_GROUP], part[2][PLANE_ROWS];
    int refused = 0;
    for (int i = 0, end, n; i < count; i = end) {
        end = count - i < PLANE_ROWS ? count : i + PLANE_ROWS;
        while (rows[end - 1] - rows[i] >= PLANE_ROWS)
            end--;
        n = rows[end - 1] - rows[i] + 1;
        memset(part, 0, of->classes > TL_PART ? sizeof part : 0);
        for (int64_t k = 0; k < of->classes; k += TL_PART) {
            tl_distributions some = *of;
            some.classes = of->classes - k < TL_PART ? of->classes - k : TL_PART;
            some.mass += rows[i] * of->mass_row + k * of->mass_class;
            some.score += rows[i] * of->score_row + k * of->score_class;
            some.weight = of->weight ? of->weight + k * of->weight_class : NULL;
            refused |= add_lanes(backend, &some, n, sum);
            for (int r = 0; of->classes > TL_PART && r < n; r++)
                tl_add_part(sum[r], &part[0][r], &part[1][r]);
        }
        for (int r = 0; of->classes > TL_PART && r < n; r++)
            sum[r] = tl_sum_of_parts(part[0][r], part[1][r]);
        copy_sums(sum, rows + i, rows[i], end - i, nll + i);
    }
    return refused;
}

static int add_dense(const tl_backend *backend, const tl_distributions *of, const int *rows, int count, double *nll) {
    const int span = rows[count - 1] - rows[0] + 1;
    const int are_planes = of->mass_row == tl_itemsize(of->mass_dtype) && of->score_row == tl_itemsize(of->score_dtype);
    if (are_planes && span <= 2 * count && (span >= TL_BLOCK_ROWS || are_adjacent(of, span))) {
        const int refused = add_planes(backend, of, rows, count, nll);
        if (!refused || span == count) /* or else it may be a row in between */
            return refused;
    }
    return add_copies(backend, of, rows, count, nll);
}

/* -- sparse masses: lists of classes ------------------------------------------------------------------------------- */

typedef struct {
    int count, row[LIST]; /* the place of each row among those that are not left out */
    int64_t class_id[LIST];
} class_list;

/* Loads the listed elements in the form of scores that `clip` is for; load_listed has a loop for each common dtype. */
TL_INLINE void load_listed_as(int dtype, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride,
                              const int *rows, const class_list *list, const tl_clip *clip, void *to) {
    for (int i = 0; i < list->count; i++)
        tl_set_score(clip, to, (size_t)i,
                     tl_load(data + rows[i] * row_stride + list->class_id[i] * class_stride, dtype));
}

static void load_listed(int dtype, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride, const int *rows,
                        const class_list *list, const tl_clip *clip, void *to) {
    dtype == TL_FLOAT32   ? load_listed_as(TL_FLOAT32, data, row_stride, class_stride, rows, list, clip, to)
    : dtype == TL_FLOAT64 ? load_listed_as(TL_FLOAT64, data, row_stride, class_stride, rows, list, clip, to)
                          : load_listed_as(dtype, data, row_stride, class_stride, rows, list, clip, to);
}

/* Adds the listed classes, all of rows [first, end). Returns whether a score or an integer mass is refused. */
static int add_listed(const tl_backend *backend, const tl_distributions *of, const int *rows, int first, int end,
                      const class_list *list, double *nll) {
    static const tl_clip as_double = {.is_single = 0};
    const int is_integer = of->mass_dtype >= TL_FLOAT_DTYPES;
    double mass[LIST], score[LIST], term[LIST];
    int is_one_each = list->count == end - first, row_of[LIST];
    for (int i = 0; i < list->count; i++)
        row_of[i] = rows[list->row[i]];
    load_listed(of->mass_dtype, of->mass, of->mass_row, of->mass_class, row_of, list, &as_double, mass);
    load_listed(of->score_dtype, of->score, of->score_row, of->score_class, row_of, list, of->clip, score);
    int refused = tl_negative_log(backend, of->clip, score, (size_t)list->count, term);
    for (int i = 0; i < list->count; i++) {
        is_one_each &= list->row[i] == first + i;
        refused |= is_integer & (mass[i] != 1);
        term[i] *= mass[i];
    }
    for (int i = 0; of->weight && i < list->count; i++)
        term[i] *= tl_load(of->weight + list->class_id[i] * of->weight_class, of->weight_dtype);
    for (int i = 0, row = first; row < end; row++) {
        tl_term_sums sums;
        if (is_one_each) {
            nll[row] = 0 + term[row - first];
            continue;
        }
        for (sums = (tl_term_sums){0}; i < list->count && list->row[i] == row; i++)
            tl_add_term(list->class_id[i], term[i], &sums);
        tl_end_part(&sums);
        nll[row] = tl_sum_of_parts(sums.sum, sums.lost);
    }
    return refused | (is_integer & !is_one_each);
}

/* Which of the next masses of row i, SEARCHED at most, are not 0. If none is, moves *at to where there may be some. */
static uint64_t next_nonzeros(const tl_backend *backend, const tl_distributions *of, const int *rows, int count, int i,
                              int64_t *at) {
    char rest[8 * SEARCHED];
    const ptrdiff_t size = tl_itemsize(of->mass_dtype), left = (ptrdiff_t)(of->classes - *at);
    const char *row = of->mass + rows[i] * of->mass_row, *masses = row + *at * size;
    const int64_t after = of->mass_row == of->classes * size ? (rows[count - 1] - rows[i]) * of->classes : 0;
    if (left + after < SEARCHED) {
        memset(rest, 0, sizeof rest);
        memcpy(rest, masses, (size_t)(left * size));
        masses = rest;
    }
    const uint64_t found = backend->nonzeros(masses, of->mass_dtype);
    if (left < SEARCHED)
        return found & ~(~(uint64_t)0 << left);
    if (found == 0 && left > SEARCHED)
        *at = backend->skip_zeros(row, (ptrdiff_t)(*at + SEARCHED) * size, (ptrdiff_t)of->classes * size) / size -
              SEARCHED;
    return found;
}

/* Adds the classes with mass, a list of them at a time. Returns 1 if something is refused, and 2 if most classes have
 * mass, so that the sums are of no use. */
static int add_sparse(const tl_backend *backend, const tl_distributions *of, const int *rows, int count, double *nll) {
    const int is_integer = of->mass_dtype >= TL_FLOAT_DTYPES;
    class_list list;
    int refused = 0, first = 0;
    list.count = 0;
    for (int i = 0; i < count; i++) {
        int before = list.count;
        for (int64_t k = 0; k < of->classes; k += SEARCHED) {
            if (list.count > LIST - SEARCHED) { /* full: the classes of complete rows, if any, are added */
                if (!is_integer && ((i - first) * of->classes + k) / 2 < list.count)
                    return 2;
                if (is_integer || before == 0)
                    return 1;
                list.count = before;
                refused |= add_listed(backend, of, rows, first, i, &list, nll);
                list.count = before = 0; /* and this row is searched again */
                first = i;
                k = -SEARCHED;
                continue;
            }
            uint64_t found = next_nonzeros(backend, of, rows, count, i, &k);
            for (; found != 0; found &= found - 1, list.count++) {
                list.row[list.count] = i;
                list.class_id[list.count] = k + tl_lowest_bit(found); /* k has not moved if any bit is set */
            }
        }
    }
    return refused | add_listed(backend, of, rows, first, count, &list, nll);
}

/* Whether lists do not pay, since most classes seem to have mass, by some of the first row, or there are few. */
static int seem_dense(const tl_distributions *of, const int *rows) {
    const int64_t step = of->classes < SAMPLED ? 1 : of->classes / SAMPLED;
    int sampled = 0, nonzero = 0;
    for (int64_t k = 0; sampled < SAMPLED && k < of->classes; k += step, sampled++)
        nonzero += tl_load(of->mass + rows[0] * of->mass_row + k * of->mass_class, of->mass_dtype) != 0;
    return 2 * nonzero > sampled || of->classes * tl_itemsize(tl_single_or_double(of->mass_dtype)) <= TL_FEW_MASSES;
}

/* Consecutive rows, each in a lane: of few classes, where they are. */
static tl_few_rows in_lanes(const tl_distributions *of, const char *data, ptrdiff_t row, ptrdiff_t class_stride) {
    return (tl_few_rows){data, 0, class_stride, (size_t)of->classes, class_stride == tl_itemsize(of->score_dtype), row};
}

/* Adds whole groups of rows of few classes, as long as each row has a single mass: of these, as rows of one class.
 * Returns how many rows, and adds to `refused` whether a score is. */
static int add_single_masses(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                             int *refused, double *nll) {
    const int size = tl_itemsize(of->score_dtype);
    double score[TL_DISTRIBUTION_ROWS], mass[TL_DISTRIBUTION_ROWS]; /* or floats */
    if (of->classes > TL_PICKED_CLASSES || rows[count - 1] - rows[0] != count - 1 || of->weight ||
        of->mass_dtype != of->score_dtype || of->score_dtype != tl_single_or_double(of->score_dtype) ||
        (of->mass_class != size && of->mass_row != size) || (of->score_class != size && of->score_row != size))
        return 0;
    tl_few_rows scores = in_lanes(of, of->score + rows[0] * of->score_row, of->score_row, of->score_class);
    tl_few_rows masses = in_lanes(of, of->mass + rows[0] * of->mass_row, of->mass_row, of->mass_class);
    count = TL_GROUP * (int)backend->pick_masses[of->score_dtype](&scores, &masses, (size_t)(count / TL_GROUP), score,
                                                                  mass);
    const tl_sums_at to = {nll, 0, 0};
    *refused |= count > 0 && add_losses(backend, of, (const char *)score, (const char *)mass, count, 1, NULL, &to);
    return count;
}

int tl_nll_of_distributions(const tl_backend *backend, tl_distributions *of, const int *rows, int count, double *nll) {
    const int is_float = of->mass_dtype < TL_FLOAT_DTYPES;
    int refused = 0, status = 2, single = 0;
    if (of->sample_rows > 0)
        status = add_samples(backend, of, rows, count, nll);
    else if (of->dense_blocks == 0) {
        single = add_single_masses(backend, of, rows, count, &refused, nll);
        if (single == count)
            return !refused;
        rows += single;
        nll += single;
        count -= single;
        if (!is_float || (of->mass_class == tl_itemsize(of->mass_dtype) && !seem_dense(of, rows)))
            status = add_sparse(backend, of, rows, count, nll);
    }
    if (status == 2) {
        const int after_this = single == 0 && of->classes <= TL_PART ? DENSE_BLOCKS : 0;
        of->dense_blocks = of->dense_blocks > 0 ? of->dense_blocks - 1 : after_this;
        status = add_dense(backend, of, rows, count, nll);
    }
    for (int i = 0; of->weight && i < count; i++) /* perhaps a weight of 0 times an infinite loss, which adds 0 */
        refused |= nll[i] != nll[i];
    return !(refused | status);
}
