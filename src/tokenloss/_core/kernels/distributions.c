/* See distributions.h. */
#include "distributions.h"

#include "loss.h"

#define PANEL 2048 /* elements that are worked on at once where masses are dense */
#define WIDTH 128  /* of them in a row, at most */
#define LIST 1024  /* classes with mass that are listed */
#define SEARCHED 64   /* elements that are searched for mass at once */

_Static_assert(PANEL / WIDTH >= 16, "16 rows side by side");
_Static_assert(PANEL % TL_READ_MULTIPLE == 0, "backends convert whole multiples");

/* The sums of rows so far, and what their roundings lost. */
typedef struct {
    double sum[TL_DISTRIBUTION_ROWS], lost[TL_DISTRIBUTION_ROWS];
} sums_of_rows;

/* -- dense masses: panels of elements ------------------------------------------------------------------------------ */

/* Copies elements one after another: `width` classes of each row. The size of elements is a constant of the caller. */
TL_INLINE void pack_as(size_t size, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride, const int *rows,
                       int count, size_t width, char *to) {
    for (int i = 0; i < count; i++) {
        const char *from = data + rows[i] * row_stride;
        for (size_t k = 0; k < width; k++, to += size, from += class_stride)
            memcpy(to, from, size);
    }
}

static void pack(const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride, size_t size, const int *rows,
                 int count, size_t width, char *to) {
    if (class_stride == (ptrdiff_t)size)
        for (int i = 0; i < count; i++)
            memcpy(to + (size_t)i * width * size, data + rows[i] * row_stride, width * size);
    else if (size == 2)
        pack_as(2, data, row_stride, class_stride, rows, count, width, to);
    else if (size == 4)
        pack_as(4, data, row_stride, class_stride, rows, count, width, to);
    else
        pack_as(8, data, row_stride, class_stride, rows, count, width, to);
}

/* Loads `width` classes of each row, one row after another. */
static void load_panel(const tl_backend *backend, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride,
                       int dtype, const int *rows, int count, size_t width, double *to) {
    char packed[8 * PANEL];
    size_t size = (size_t)tl_itemsize(dtype), total = (size_t)count * width, whole = total;
    int is_flat = class_stride == (ptrdiff_t)size && rows[count - 1] - rows[0] == count - 1 &&
                  (count == 1 || row_stride == (ptrdiff_t)(width * size));
    const char *from = data + rows[0] * row_stride;
    if (is_flat) {
        whole = total / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
        memcpy(packed, from + whole * size, (total - whole) * size);
        backend->to_f64[dtype](from, whole, to);
    } else {
        pack(data, row_stride, class_stride, size, rows, count, width, packed);
        whole = 0;
    }
    size_t left = total - whole, padded = (left + TL_READ_MULTIPLE - 1) / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
    memset(packed + left * size, 0, (padded - left) * size);
    backend->to_f64[dtype](packed, padded, to + whole);
}

/* Multiplies masses by class weights, from class `first` on. A mass of 0 stays 0. */
static void weigh(const tl_distributions *of, int64_t first, int count, size_t width, double *mass) {
    double weight[WIDTH];
    if (!of->weight)
        return;
    for (size_t k = 0; k < width; k++)
        weight[k] = tl_load(of->weight + (first + (int64_t)k) * of->weight_class, of->weight_dtype);
    for (int i = 0; i < count; i++, mass += width)
        for (size_t k = 0; k < width; k++)
            mass[k] = mass[k] == 0 ? 0 : mass[k] * weight[k];
}

/* Adds all classes of some rows, PANEL elements at most or 16 rows. Returns whether a score is refused. */
static int add_dense_rows(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                          double *sum, double *lost) {
    double mass[PANEL], nll[PANEL];
    int refused = 0, is_probability = of->clip->lowest == of->clip->lowest;
    for (int64_t first = 0; first < of->classes; first += WIDTH) {
        size_t width = of->classes - first < WIDTH ? (size_t)(of->classes - first) : WIDTH;
        size_t total = (size_t)count * width, padded = (size_t)(count + 15) / 16 * 16 * width;
        load_panel(backend, of->mass + first * of->mass_class, of->mass_row, of->mass_class, of->mass_dtype, rows,
                   count, width, mass);
        load_panel(backend, of->score + first * of->score_class, of->score_row, of->score_class, of->score_dtype, rows,
                   count, width, nll);
        backend->ignore_where_zero(mass, total, is_probability ? 1 : 0, nll);
        weigh(of, first, count, width, mass);
        refused |= tl_negative_log(backend, of->clip, nll, total);
        for (size_t i = 0; i < total; i++)
            nll[i] *= mass[i];
        memset(nll + total, 0, (padded - total) * sizeof *nll);
        for (int i = 0; i < count; i += 16)
            backend->add_rows(nll + (size_t)i * width, width, sum + i, lost + i);
    }
    return refused;
}

static int add_dense(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                     sums_of_rows *sums) {
    int width = of->classes < WIDTH ? (int)of->classes : WIDTH, refused = 0, at_once = PANEL / width / 16 * 16;
    for (int i = 0; i < count; i += at_once)
        refused |= add_dense_rows(backend, of, rows + i, count - i < at_once ? count - i : at_once, sums->sum + i,
                                  sums->lost + i);
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

/* Loads the listed elements. If rows follow each other as classes do, `rows` is NULL. */
TL_INLINE void load_listed_as(int dtype, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride,
                              const int *rows, const class_list *list, double *to) {
    if (!rows)
        for (int i = 0; i < list->count; i++)
            to[i] = tl_load(data + list->at[i] * class_stride, dtype);
    else
        for (int i = 0; i < list->count; i++)
            to[i] = tl_load(data + rows[list->row[i]] * row_stride + list->class_id[i] * class_stride, dtype);
}

static void load_listed(int dtype, const char *data, ptrdiff_t row_stride, ptrdiff_t class_stride, const int *rows,
                        const class_list *list, double *to) {
    switch (dtype) { /* for a loop of each */
    case TL_FLOAT16: load_listed_as(TL_FLOAT16, data, row_stride, class_stride, rows, list, to); break;
    case TL_BFLOAT16: load_listed_as(TL_BFLOAT16, data, row_stride, class_stride, rows, list, to); break;
    case TL_FLOAT32: load_listed_as(TL_FLOAT32, data, row_stride, class_stride, rows, list, to); break;
    case TL_FLOAT64: load_listed_as(TL_FLOAT64, data, row_stride, class_stride, rows, list, to); break;
    case TL_INT64: load_listed_as(TL_INT64, data, row_stride, class_stride, rows, list, to); break;
    default: load_listed_as(dtype, data, row_stride, class_stride, rows, list, to);
    }
}

/* Adds terms, each to the sum of its row. */
static void add_terms(const class_list *list, const double *mass, const double *nll, int one_each, sums_of_rows *sums) {
    if (one_each) {
        for (int i = 0; i < list->count; i++)
            sums->sum[i] = 0 + mass[i] * nll[i];
        return;
    }
    for (int i = 0; i < list->count; i++) { /* Knuth's two-sum */
        double *sum = &sums->sum[list->row[i]], before = *sum, term = mass[i] * nll[i], other;
        *sum += term;
        other = *sum - before;
        sums->lost[list->row[i]] += (before - (*sum - other)) + (term - other);
    }
}

/* Adds the listed classes. Returns whether one is refused: its score, or its mass if that is an integer. */
static int add_listed(const tl_backend *backend, const tl_distributions *of, const int *rows, int count, int *next,
                      class_list *list, sums_of_rows *sums) {
    double mass[LIST], nll[LIST];
    int one_each = is_one_each(of, rows, count, list), refused = 0;
    const int *mass_rows = of->mass_row == of->classes * of->mass_class ? NULL : rows;
    const int *score_rows = of->score_row == of->classes * of->score_class ? NULL : rows;
    if (!one_each || mass_rows || score_rows || of->weight)
        split_positions(of, rows, next, list);
    load_listed(of->mass_dtype, of->mass, of->mass_row, of->mass_class, mass_rows, list, mass);
    load_listed(of->score_dtype, of->score, of->score_row, of->score_class, score_rows, list, nll);
    if (of->mass_dtype >= TL_FLOAT_DTYPES) {
        refused |= !one_each;
        for (int i = 0; i < list->count; i++)
            refused |= mass[i] != 1;
    }
    if (of->weight)
        for (int i = 0; i < list->count; i++)
            mass[i] *= tl_load(of->weight + list->class_id[i] * of->weight_class, of->weight_dtype);
    refused |= tl_negative_log(backend, of->clip, nll, (size_t)list->count);
    add_terms(list, mass, nll, one_each, sums);
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

/* Which of the next elements of a run are not 0, SEARCHED of them or as many as there are. If none is, moves *at to where
 * there may be some. */
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
static int add_sparse(const tl_backend *backend, const tl_distributions *of, const int *rows, int count, int *n_found,
                      sums_of_rows *sums) {
    class_list list;
    int refused = 0, next = 0, is_integer = of->mass_dtype >= TL_FLOAT_DTYPES;
    int64_t searched = 0;
    list.count = list.is_continued = *n_found = 0;
    for (int i = 0; i < count;) {
        run_of_rows run = next_run(of, rows, count, &i);
        for (int64_t k = 0; k < run.count; k += SEARCHED) {
            if (list.count > LIST - SEARCHED) {
                if (!is_integer && (searched + k) / 2 < *n_found + list.count)
                    return 2;
                *n_found += list.count;
                refused |= is_integer | add_listed(backend, of, rows, count, &next, &list, sums);
                list.is_continued = 1;
            }
            uint64_t found = next_nonzeros(backend, &run, of->mass_dtype, &k);
            list_group(found, run.at + (int32_t)k, &list);
        }
        searched += run.count;
    }
    *n_found += list.count;
    return refused | add_listed(backend, of, rows, count, &next, &list, sums);
}

/* Whether a guess of the density still holds, by the first elements. */
static int still_dense(const tl_backend *backend, const tl_distributions *of, int first_row) {
    int n_found = 0;
    if (of->classes < SEARCHED)
        return 1;
    uint64_t found = backend->nonzeros(of->mass + first_row * of->mass_row, of->mass_dtype);
    for (; found != 0; found &= found - 1)
        n_found++;
    return n_found >= SEARCHED / 4;
}

int tl_nll_of_distributions(const tl_backend *backend, const tl_distributions *of, const int *rows, int count,
                            int *dense, double *nll) {
    sums_of_rows sums;
    int refused = 2, n_found = 0, can_list = of->mass_class == tl_itemsize(of->mass_dtype);
    memset(&sums, 0, sizeof sums);
    if (can_list && !*dense) {
        refused = add_sparse(backend, of, rows, count, &n_found, &sums);
        *dense = of->mass_dtype < TL_FLOAT_DTYPES && n_found > of->classes * count / 2;
    }
    if (refused == 2) {
        memset(&sums, 0, sizeof sums);
        refused = add_dense(backend, of, rows, count, &sums);
        *dense = !can_list || still_dense(backend, of, rows[0]);
    }
    for (int i = 0; i < count; i++) /* of an infinite sum, the errors are nan */
        nll[i] = sums.lost[i] - sums.lost[i] == 0 ? sums.sum[i] + sums.lost[i] : sums.sum[i];
    for (int i = 0; of->weight && i < count; i++) /* perhaps a weight of 0 times an infinite loss, which adds 0 */
        refused |= nll[i] != nll[i];
    return !refused;
}
