/* See distributions.h. */
#include "distributions.h"

#include "loss.h"

#define PANEL (TL_LONG_DISTRIBUTION * TL_GROUP) /* elements that are loaded at once where masses are dense */
#define LIST 1024     /* classes with mass that are listed */
#define SEARCHED 64   /* elements that are searched for mass at once */
#define SAMPLED 16    /* elements that tell whether masses are dense */

_Static_assert(TL_DISTRIBUTION_ROWS % TL_GROUP == 0 && LIST % TL_GROUP == 0, "whole groups");
_Static_assert(PANEL % TL_READ_MULTIPLE == 0, "backends convert whole multiples");

/* The sums of rows so far, and what their roundings lost; those of a long row that a list is about, in lanes. */
typedef struct {
    double sum[TL_DISTRIBUTION_ROWS], lost[TL_DISTRIBUTION_ROWS], lane[TL_GROUP], lane_lost[TL_GROUP];
    int row; /* the long row, -1 if there is none */
} sums_of_rows;

static int is_long(const tl_distributions *of) { return of->classes > TL_LONG_DISTRIBUTION; }

/* -- dense masses: groups of short rows side by side, or the lanes of a long row
 * --------------------------------------- */

typedef union { /* of any dtype, with room for what conversions write beyond the end */
    uint16_t u16[PANEL + TL_READ_MULTIPLE];
    float f32[PANEL + TL_READ_MULTIPLE];
    double f64[PANEL + TL_READ_MULTIPLE];
} panel;

/* Copies classes of rows, class by class. The size of elements is a constant of the caller. */
TL_INLINE void copy_as(size_t size, const char *const *rows, size_t n_rows, ptrdiff_t class_stride, size_t width,
                       char *to) {
    for (size_t k = 0; k < width; k++)
        for (size_t r = 0; r < n_rows; r++, to += size)
            memcpy(to, rows[r] + (ptrdiff_t)k * class_stride, size);
}

/* Classes of a group of rows, or of one row, as float32 or float64: class by class, and zeros up to a whole group. They
 * are in the panel, or where they were. */
static const void *load(const tl_backend *backend, const char *const *rows, size_t n_rows, ptrdiff_t class_stride,
                        int dtype, size_t width, void *to) {
    size_t size = (size_t)tl_itemsize(dtype), total = n_rows * width;
    size_t padded = size == 2 ? (size_t)tl_padded((int64_t)total) : (total + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    int is_contiguous = class_stride == (ptrdiff_t)size;
    uint16_t halves[PANEL + TL_READ_MULTIPLE];
    char *copy = size == 2 ? (char *)halves : (char *)to;
    if (is_contiguous && n_rows == TL_GROUP) {
        backend->interleave[dtype](rows, width, to);
        return to;
    }
    if (is_contiguous && size > 2 && total % TL_GROUP == 0 && (uintptr_t)rows[0] % size == 0)
        return rows[0];
    if (is_contiguous)
        memcpy(copy, rows[0], total * size);
    else if (size == 2)
        copy_as(2, rows, n_rows, class_stride, width, copy);
    else if (size == 4)
        copy_as(4, rows, n_rows, class_stride, width, copy);
    else
        copy_as(8, rows, n_rows, class_stride, width, copy);
    memset(copy + total * size, 0, (padded - total) * size);
    if (size == 2)
        backend->to_compute[dtype](copy, padded, to);
    return to;
}

/* The class weight of each element, from a class on. */
static void load_weights(const tl_distributions *of, int64_t first, size_t n_rows, size_t width, double *weight) {
    for (size_t k = 0; of->weight && k < width; k++)
        for (size_t r = 0; r < n_rows; r++)
            *weight++ = tl_load(of->weight + (first + (int64_t)k) * of->weight_class, of->weight_dtype);
}

/* Looks at the scores with mass of a group. Returns whether one is refused. Sums of lanes with a nan become nan. */
TL_INLINE int check_group(const tl_distributions *of, const void *mass, int is_single_mass, const void *score,
                          size_t first, size_t steps, double *sum) {
    int refused = 0;
    for (size_t i = 0; i < steps * TL_GROUP; i++) {
        double given = tl_score_at(of->clip, score, first + i);
        int has_mass = is_single_mass ? ((const float *)mass)[first + i] != 0 : ((const double *)mass)[first + i] != 0;
        refused |= has_mass & tl_is_refused(of->clip, given);
        if (TL_UNLIKELY(has_mass && given != given))
            sum[i % TL_GROUP] = given;
    }
    return refused;
}

/* Adds terms to the sums of groups. Returns whether a score is refused. */
static int add_groups(const tl_backend *backend, const tl_distributions *of, const void *mass, const void *score,
                      size_t steps, size_t groups, const double *weight, double *sum, double *lost) {
    int mass_dtype = tl_single_or_double(of->mass_dtype), refused = 0;
    if (!backend->add_losses(mass, mass_dtype, score, steps, groups, of->weight ? weight : NULL, of->clip, sum, lost))
        return 0;
    for (size_t g = 0; g < groups; g++)
        refused |= check_group(of, mass, mass_dtype == TL_FLOAT32, score, g * steps * TL_GROUP, steps,
                               sum + g * TL_GROUP);
    return refused;
}

/* Adds all classes of a long row, a panel at a time. */
static int add_long_row(const tl_backend *backend, const tl_distributions *of, int row, double *sum) {
    panel of_masses, of_scores;
    double weight[PANEL], lane[TL_GROUP] = {0}, lost[TL_GROUP] = {0};
    const char *mass = of->mass + row * of->mass_row, *score = of->score + row * of->score_row;
    int refused = 0;
    for (int64_t first = 0, width; first < of->classes; first += width) {
        width = of->classes - first < PANEL ? of->classes - first : PANEL;
        width -= width > TL_GROUP ? width % TL_GROUP : 0; /* the last few are copied */
        load_weights(of, first, 1, (size_t)width, weight);
        const void *masses = load(backend, &mass, 1, of->mass_class, of->mass_dtype, (size_t)width, &of_masses);
        const void *scores = load(backend, &score, 1, of->score_class, of->score_dtype, (size_t)width, &of_scores);
        size_t steps = (size_t)(width + TL_GROUP - 1) / TL_GROUP;
        refused |= add_groups(backend, of, masses, scores, steps, 1, weight, lane, lost);
        mass += width * of->mass_class;
        score += width * of->score_class;
    }
    *sum = tl_lanes_sum_or_infinite(lane, lost);
    return refused;
}

/* The first elements of a group of rows: the last of `count` stands for those that are not there. */
static void find_rows(const char *data, ptrdiff_t row_stride, const int *rows, int count, const char **found) {
    for (int i = 0; i < TL_GROUP; i++)
        found[i] = data + rows[i < count ? i : count - 1] * row_stride;
}

/* Loads all classes of some short rows, as groups. */
static void load_short_rows(const tl_backend *backend, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride,
                            int dtype, const int *rows, int count, size_t width, panel *to) {
    const char *at[TL_GROUP];
    size_t size = dtype == TL_FLOAT64 ? sizeof(double) : sizeof(float), whole = 0;
    if (dtype >= TL_FLOAT32 && class_stride == (ptrdiff_t)size && rows[count - 1] - rows[0] == count - 1) {
        whole = (size_t)count / TL_GROUP * TL_GROUP; /* no row is left out */
        backend->interleave_apart[dtype](data + rows[0] * row_stride, row_stride, width, whole / TL_GROUP, to);
    }
    for (int i = (int)whole; i < count; i += TL_GROUP) {
        find_rows(data, row_stride, rows + i, count - i, at);
        load(backend, at, TL_GROUP, class_stride, dtype, width, (char *)to + (size_t)i * width * size);
    }
}

/* Adds all classes of short rows. */
static int add_short_rows(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                          sums_of_rows *sums) {
    panel mass, score;
    double weight[PANEL];
    int refused = 0, at_once = PANEL / (int)of->classes / TL_GROUP * TL_GROUP;
    size_t width = (size_t)of->classes;
    load_weights(of, 0, TL_GROUP, width, weight);
    for (int i = 0, n; i < count; i += n) {
        n = count - i < at_once ? count - i : at_once;
        load_short_rows(backend, of->mass, of->mass_row, of->mass_class, of->mass_dtype, rows + i, n, width, &mass);
        load_short_rows(backend, of->score, of->score_row, of->score_class, of->score_dtype, rows + i, n, width,
                        &score);
        size_t groups = (size_t)(n + TL_GROUP - 1) / TL_GROUP;
        refused |= add_groups(backend, of, &mass, &score, width, groups, weight, sums->sum + i, sums->lost + i);
    }
    return refused;
}

static int add_dense(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                     sums_of_rows *sums) {
    int refused = 0;
    if (!is_long(of))
        return add_short_rows(backend, of, rows, count, sums);
    for (int i = 0; i < count; i++)
        refused |= add_long_row(backend, of, rows[i], &sums->sum[i]);
    return refused;
}

/* -- sparse masses: lists of classes ------------------------------------------------------------------------------- */

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

/* Ends the sum of a long row, of which some classes were listed. */
static void end_long_row(sums_of_rows *sums) {
    if (sums->row >= 0)
        sums->sum[sums->row] = tl_lanes_sum_or_infinite(sums->lane, sums->lane_lost);
    sums->row = -1;
}

/* Adds terms, each to the sum of its row. */
static void add_terms(const tl_distributions *of, const class_list *list, const double *term, int one_each,
                      sums_of_rows *sums) {
    for (int i = 0; one_each && i < list->count; i++)
        sums->sum[i] = 0 + term[i];
    for (int i = 0; !one_each && i < list->count; i++) {
        int row = list->row[i], lane = list->class_id[i] % TL_GROUP;
        if (!is_long(of)) {
            tl_add_term(of->clip, term[i], &sums->sum[row], &sums->lost[row]);
            continue;
        }
        if (row != sums->row) {
            end_long_row(sums);
            memset(sums->lane, 0, sizeof sums->lane);
            memset(sums->lane_lost, 0, sizeof sums->lane_lost);
            sums->row = row;
        }
        tl_add_term(of->clip, term[i], &sums->lane[lane], &sums->lane_lost[lane]);
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
                      sums_of_rows *sums) {
    class_list list;
    int refused = 0, next = 0, is_integer = of->mass_dtype >= TL_FLOAT_DTYPES;
    int64_t searched = 0, n_found = 0;
    list.count = list.is_continued = 0;
    for (int i = 0; i < count;) {
        run_of_rows run = next_run(of, rows, count, &i);
        for (int64_t k = 0; k < run.count; k += SEARCHED) {
            if (list.count > LIST - SEARCHED) {
                if (!is_integer && (searched + k) / 2 < n_found + list.count)
                    return 2;
                n_found += list.count;
                refused |= is_integer | add_listed(backend, of, rows, count, &next, &list, sums);
                list.is_continued = 1;
            }
            uint64_t found = next_nonzeros(backend, &run, of->mass_dtype, &k);
            list_group(found, run.at + (int32_t)k, &list);
        }
        searched += run.count;
    }
    refused |= add_listed(backend, of, rows, count, &next, &list, sums);
    end_long_row(sums);
    return refused;
}

/* Whether lists do not pay, since most classes seem to have mass, by a few of the first rows, or there are hardly any. */
static int samples_are_dense(const tl_distributions *of, const int *rows, int count) {
    int64_t total = count * of->classes, step = of->classes < SAMPLED ? 1 : of->classes / SAMPLED, k = 0;
    int sampled = total < SAMPLED ? (int)total : SAMPLED, found = 0, row = 0;
    for (int i = 0; i < sampled; i++, k += step) {
        row += k == of->classes;
        k = k == of->classes ? 0 : k;
        found += tl_load(of->mass + rows[row] * of->mass_row + k * of->mass_class, of->mass_dtype) != 0;
    }
    return of->classes <= 3 || 2 * found > sampled;
}

int tl_nll_of_distributions(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                            double *nll) {
    sums_of_rows sums;
    int refused = 2, is_float = of->mass_dtype < TL_FLOAT_DTYPES;
    memset(&sums, 0, sizeof sums);
    sums.row = -1;
    if (!is_float || (of->mass_class == tl_itemsize(of->mass_dtype) && !samples_are_dense(of, rows, count)))
        refused = add_sparse(backend, of, rows, count, &sums);
    if (refused == 2) {
        memset(&sums, 0, sizeof sums); /* what a list has begun */
        refused = add_dense(backend, of, rows, count, &sums);
    }
    for (int i = 0; i < count; i++) /* of an infinite sum, the errors are nan */
        nll[i] = sums.lost[i] - sums.lost[i] == 0 ? sums.sum[i] + sums.lost[i] : sums.sum[i];
    for (int i = 0; of->weight && i < count; i++) /* perhaps a weight of 0 times an infinite loss, which adds 0 */
        refused |= nll[i] != nll[i];
    return !refused;
}
