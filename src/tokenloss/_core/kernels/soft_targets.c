/* Sums over a row's classes weighted by a target distribution. Runs of zeros are skipped, their logits not read. */
#include "soft_targets.h"

#include "logsumexp.h"

#define LANES 16 /* of tl_dot_acc */

/* Whether effective masses are those in memory, which are floats. */
static int are_plain(const tl_soft_target *soft) {
    return soft->mass && (soft->mass_dtype & ~TL_SWAPPED) < TL_FLOAT_DTYPES && !soft->weight && soft->eps_over_v == 0 &&
           soft->one_minus_eps == 1;
}

int tl_masses_dtype(const tl_soft_target *soft) {
    return are_plain(soft) ? tl_single_or_double(soft->mass_dtype) : TL_FLOAT64;
}

/* Whether all masses before `end` have to be read, are few, or seem not to be 0, judging by two neighbors. */
static int starts_dense(const tl_soft_target *soft, int64_t start, int64_t end) {
    if (!soft->mass || soft->eps_over_v != 0 || soft->mass_stride != tl_itemsize(soft->mass_dtype) ||
        (are_plain(soft) && end - start <= TL_CHUNK))
        return 1;
    for (int64_t k = start; k < start + 2 && k < end; k++)
        if (tl_load(soft->mass + k * soft->mass_stride, soft->mass_dtype) == 0)
            return 0;
    return start < end;
}

/* Skips masses that are 0; returns the end of the next run. Runs are 512 classes where masses are dense and one cache
 * line where they are sparse. */
static int64_t next_run(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *start,
                        tl_cancel *cancel) {
    int64_t next_check = (*start / TL_CANCEL_INTERVAL + 1) * TL_CANCEL_INTERVAL,
            until = count < next_check ? count : next_check;
    const int dense = starts_dense(soft, *start, count);
    ptrdiff_t size = tl_itemsize(soft->mass_dtype);
    int64_t run_length = dense ? TL_CHUNK : size > 4 ? LANES : 64 / size;
    if (*start % TL_CANCEL_INTERVAL == 0 && *start != 0 && tl_canceled(cancel))
        return *start = count;
    if (!dense) {
        *start = backend->skip_zeros(soft->mass, (ptrdiff_t)*start * size, (ptrdiff_t)until * size) / size;
        *start -= *start % LANES; /* each class keeps its lane, whatever was skipped */
    }
    return until - *start < run_length ? until : *start + run_length;
}

/* Numbers of any dtype as a row. */
static tl_row row_of(const char *data, ptrdiff_t stride, int dtype, int64_t count) {
    return (tl_row){data, count, stride, dtype, dtype & ~TL_SWAPPED, 1, 0, 0, 0};
}

/* The elements [start, end) of a row as float32 or float64: where they are, or copied. */
static const void *run_of(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int dtype,
                          double *copy) {
    const tl_row run = tl_part_of(row, start, end);
    if (tl_can_read_in_place(row, dtype, 0))
        return run.data;
    if (run.count >= LANES && run.compute_dtype < TL_FLOAT_DTYPES)
        tl_cast_row(backend, &run, dtype, copy);
    else
        for (int64_t i = 0; i < run.count; i++) /* a chunk costs more */
            tl_store((char *)copy + i * tl_itemsize(dtype), dtype, tl_logit_at(backend, &run, i));
    return copy;
}

static void copy_run(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, double *copy) {
    const void *run = run_of(backend, row, start, end, TL_FLOAT64, copy);
    if (run != copy)
        memcpy(copy, run, (size_t)(end - start) * sizeof *copy);
}

const void *tl_masses_of(const tl_backend *backend, const tl_soft_target *soft, int64_t start, int64_t end,
                         int dtype, double *mass) {
    const tl_row masses = row_of(soft->mass, soft->mass_stride, soft->mass_dtype, end);
    const tl_row weights = row_of(soft->weight, soft->weight_stride, soft->weight_dtype, end);
    const size_t count = (size_t)(end - start);
    double weight[TL_CHUNK];
    if (are_plain(soft))
        return run_of(backend, &masses, start, end, dtype, mass);
    memset(mass, 0, soft->mass ? 0 : count * sizeof *mass);
    if (soft->mass)
        copy_run(backend, &masses, start, end, mass);
    if (soft->weight)
        copy_run(backend, &weights, start, end, weight);
    backend->weigh_masses(mass, count, soft->one_minus_eps, soft->eps_over_v, soft->weight ? weight : NULL, 1);
    return mass;
}

tl_few_rows tl_weigh_groups(const tl_backend *backend, const tl_soft_target *soft, const tl_few_rows *masses, int dtype,
                            size_t groups, double *to) {
    const size_t classes = masses->classes;
    double weight[TL_CHUNK];
    for (size_t k = 0; soft->weight && k < classes; k++)
        weight[k] = tl_load(soft->weight + (ptrdiff_t)k * soft->weight_stride, soft->weight_dtype);
    for (size_t g = 0; g < groups; g++) {
        const char *mass = masses->data + g * masses->group_bytes;
        double *group = to + g * classes * TL_GROUP;
        for (size_t k = 0; k < classes; k++, mass += masses->class_stride)
            backend->to_f64[dtype](mass, TL_GROUP, 1, group + k * TL_GROUP);
        if (soft->weight || soft->eps_over_v != 0)
            backend->weigh_masses(group, classes * TL_GROUP, soft->one_minus_eps, soft->eps_over_v,
                                  soft->weight ? weight : NULL, TL_GROUP);
    }
    return tl_few_of_groups(to, classes, TL_FLOAT64);
}

int tl_soft_target_next(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *start,
                        double *mass, tl_cancel *cancel) {
    int length = 0;
    while (length == 0 && *start < count) { /* a run is empty where zeros end at a check for cancellation */
        int64_t end = next_run(backend, soft, count, start, cancel);
        length = end - *start < TL_SOFT_TARGET_RUN ? (int)(end - *start) : TL_SOFT_TARGET_RUN;
    }
    const void *from = tl_masses_of(backend, soft, *start, *start + length, TL_FLOAT64, mass);
    if (from != mass)
        memcpy(mass, from, (size_t)length * sizeof *mass);
    return length;
}

int64_t tl_soft_target_argmax(const tl_backend *backend, const tl_soft_target *soft, int64_t count, tl_cancel *cancel) {
    const int dtype = tl_masses_dtype(soft);
    double mass[TL_CHUNK], most, largest = 0;
    int64_t argmax = -1;
    int is_first = !are_plain(soft); /* whether a mass is the first that contributes, as nan does if it is not plain */
    for (int64_t k = 0, end, first; k < count; k = end) {
        end = next_run(backend, soft, count, &k, cancel);
        const void *run = tl_masses_of(backend, soft, k, end, dtype, mass);
        for (int64_t i = 0; is_first && i < end - k; i++) {
            if (mass[i] != mass[i])
                return k + i;
            is_first = !tl_contributes(mass[i]);
        }
        first = (int64_t)backend->largest[dtype](run, (size_t)(end - k), &most);
        argmax = most > largest ? k + first : argmax;
        largest = most > largest ? most : largest;
    }
    for (int64_t k = argmax < 0 ? 0 : count, end; k < count; k = end) { /* none is above 0, but some may contribute */
        end = next_run(backend, soft, count, &k, cancel);
        for (int64_t i = k; i < end; i++) {
            const double one = tl_soft_target_at(soft, i);
            const int is_larger = tl_contributes(one) && (argmax < 0 || one > largest);
            argmax = is_larger ? i : argmax;
            largest = is_larger ? one : largest;
        }
    }
    return argmax;
}

int64_t tl_one_hot_class(const tl_backend *backend, const tl_soft_target *soft, int64_t count, tl_cancel *cancel) {
    const tl_soft_target plain = {soft->mass, soft->mass_stride, soft->mass_dtype, .one_minus_eps = 1};
    double mass[TL_SOFT_TARGET_RUN];
    int64_t start = 0, class_id = -1;
    for (int n; (n = tl_soft_target_next(backend, &plain, count, &start, mass, cancel)) > 0; start += n)
        for (int i = 0; i < n; i++) {
            if (mass[i] != 0 && (mass[i] != 1 || class_id >= 0))
                return -1;
            class_id = mass[i] != 0 ? start + i : class_id;
        }
    return class_id;
}

/* tl_target_dot where all masses are equal. */
static double target_dot_uniform(const tl_backend *backend, const tl_row *row, double mass, double shift,
                                 tl_cancel *cancel) {
    tl_lane_sums lanes = {{0}, {0}};
    double memory[TL_CHUNK + 2], *copy = memory + 2;
    memory[0] = memory[1] = 0; /* AVX2 reads there before a short piece of halves */
    double offset = tl_abs(shift) > TL_MAX_EXACT_REDUCTION ? shift : 0; /* else sums keep the digits that matter */
    const int dtype = offset == 0 && row->count >= LANES ? row->compute_dtype : TL_FLOAT64;
    for (int64_t start = 0, count; start < row->count; start += count) {
        count = row->count - start < TL_CHUNK ? row->count - start : TL_CHUNK;
        const char *run = run_of(backend, row, start, start + count, dtype, copy);
        for (int64_t i = 0; offset != 0 && i < count; i++)
            copy[i] = tl_load(run + 8 * i, TL_FLOAT64) - offset;
        backend->sum[dtype](offset != 0 ? (const void *)copy : run, (size_t)count, lanes.sum, lanes.comp);
        if ((start + count) % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            return 0;
    }
    return mass * ((double)row->count * (shift - offset) - tl_lanes_sum_or_infinite(lanes.sum, lanes.comp));
}

void tl_target_dot_range(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, int64_t start,
                         int64_t end, double shift, tl_dot_acc *dot, tl_cancel *cancel) {
    const int dtype = tl_single_or_double(row->compute_dtype) == TL_FLOAT64 ? TL_FLOAT64 : tl_masses_dtype(soft);
    dot->compensates = row->compute_dtype == TL_FLOAT64;
    for (int64_t k = start, until; k < end; k = until) {
        double mass[TL_CHUNK], logits[TL_CHUNK];
        until = next_run(backend, soft, end, &k, cancel);
        assert((k % LANES == 0 || k == end) && until - k >= 0 && until - k <= TL_CHUNK);
        backend->target_dot[dtype](tl_masses_of(backend, soft, k, until, dtype, mass),
                                   run_of(backend, row, k, until, dtype, logits), (size_t)(until - k), shift, dot);
    }
}

double tl_target_dot_end(const tl_dot_acc *dot, double *total) {
    if (!dot->compensates) {
        *total = tl_lanes_sum_fast(dot->mass);
        return tl_lanes_sum_fast(dot->dot);
    }
    *total = tl_lanes_sum_or_infinite(dot->mass, dot->mass_comp);
    return tl_lanes_sum_or_infinite(dot->dot, dot->dot_comp);
}

double tl_target_dot(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, double shift,
                     double *total, tl_cancel *cancel) {
    tl_dot_acc dot;
    if (!soft->mass && !soft->weight) {
        *total = soft->eps_over_v * (double)row->count;
        double loss = target_dot_uniform(backend, row, soft->eps_over_v, shift, cancel);
        if (loss - loss == 0) /* else only the sum of the logits may be too large for a double */
            return loss;
    }
    memset(&dot, 0, sizeof dot);
    tl_target_dot_range(backend, row, soft, 0, row->count, shift, &dot, cancel);
    return tl_target_dot_end(&dot, total);
}
