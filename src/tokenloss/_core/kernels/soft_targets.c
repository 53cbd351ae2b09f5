/* Sums over a row's classes weighted by a target distribution. Runs of zeros are skipped, their logits not read. */
#include "soft_targets.h"

#include <assert.h>

#include "logsumexp.h"
#include "scalar_math.h"

#define LANES 16 /* of tl_dot_acc */

/* Skips masses that are 0; returns the end of the next run. Runs are 512 classes where masses are dense and one cache
 * line where they are sparse. */
static int64_t next_run(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int dense, int64_t *start,
                        tl_cancel *cancel) {
    int64_t next_check = (*start / TL_CANCEL_INTERVAL + 1) * TL_CANCEL_INTERVAL,
            until = count < next_check ? count : next_check;
    ptrdiff_t size = tl_itemsize(soft->mass_dtype);
    int64_t run_length = dense ? TL_CHUNK : size > 4 ? LANES : 64 / size;
    if (*start % TL_CANCEL_INTERVAL == 0 && *start != 0 && tl_cancelled(cancel))
        return *start = count;
    if (!dense) {
        *start = backend->skip_zeros(soft->mass, (ptrdiff_t)*start * size, (ptrdiff_t)until * size) / size;
        *start -= *start % LANES; /* each class keeps its lane, whatever was skipped */
    }
    return until - *start < run_length ? until : *start + run_length;
}

/* Whether all masses have to be read. */
static int always_dense(const tl_soft_target *soft) {
    return !soft->mass || soft->eps_over_v != 0 || soft->mass_stride != tl_itemsize(soft->mass_dtype);
}

/* Whether most masses seem not to be 0, by those of two neighbours. */
static int starts_dense(const tl_soft_target *soft, int64_t start, int64_t count) {
    if (always_dense(soft))
        return 1;
    for (int64_t k = start; k < start + 2 && k < count; k++)
        if (tl_load(soft->mass + k * soft->mass_stride, soft->mass_dtype) == 0)
            return 0;
    return start < count;
}

/* Whether effective masses are those in memory, which are floats. */
static int are_plain(const tl_soft_target *soft) {
    return soft->mass && (soft->mass_dtype & ~TL_SWAPPED) < TL_FLOAT_DTYPES && !soft->weight && soft->eps_over_v == 0 &&
           soft->one_minus_eps == 1;
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

/* Writes the masses of classes from `start` on, as tl_soft_target_at. */
static void masses_of(const tl_backend *backend, const tl_soft_target *soft, int64_t start, int64_t count,
                      double *mass) {
    const tl_row masses = row_of(soft->mass, soft->mass_stride, soft->mass_dtype, count);
    const tl_row weights = row_of(soft->weight, soft->weight_stride, soft->weight_dtype, count);
    double copy[TL_CHUNK];
    const double *from = soft->mass ? run_of(backend, &masses, start, start + count, TL_FLOAT64, mass) : mass, *weight;
    for (int64_t i = 0; i < count; i++)
        mass[i] = soft->mass ? soft->eps_over_v + soft->one_minus_eps * from[i] : soft->eps_over_v;
    if (!soft->weight)
        return;
    weight = run_of(backend, &weights, start, start + count, TL_FLOAT64, copy);
    for (int64_t i = 0; i < count; i++) {
        double product = mass[i] * weight[i], nonzero = product == 0 ? -0.0 : product;
        mass[i] = mass[i] == 0 ? mass[i] : nonzero;
    }
}

int tl_soft_target_next(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *start,
                        double *mass, tl_cancel *cancel) {
    int length = 0;
    while (length == 0 && *start < count) { /* a run is empty where zeros end at a check for cancellation */
        int64_t end = next_run(backend, soft, count, always_dense(soft), start, cancel);
        length = end - *start < TL_SOFT_TARGET_RUN ? (int)(end - *start) : TL_SOFT_TARGET_RUN;
    }
    masses_of(backend, soft, *start, length, mass);
    return length;
}

/* The class of the largest of plain masses; -1 if none is above 0. */
static int64_t argmax_of_plain(const tl_backend *backend, const tl_soft_target *soft, int64_t count,
                               tl_cancel *cancel) {
    const tl_row masses = row_of(soft->mass, soft->mass_stride, soft->mass_dtype, count);
    const int dtype = tl_single_or_double(soft->mass_dtype);
    double copy[TL_CHUNK], most, largest = 0;
    int64_t argmax = -1;
    for (int64_t k = 0, end, first; k < count; k = end) {
        end = next_run(backend, soft, count, count <= TL_CHUNK || starts_dense(soft, k, count), &k, cancel);
        first = backend->largest_mass[dtype](run_of(backend, &masses, k, end, dtype, copy), (size_t)(end - k), &most);
        if (most > largest) {
            largest = most;
            argmax = k + first;
        }
    }
    return argmax;
}

int64_t tl_soft_target_argmax(const tl_backend *backend, const tl_soft_target *soft, int64_t count,
                              tl_cancel *cancel) {
    int64_t argmax = are_plain(soft) ? argmax_of_plain(backend, soft, count, cancel) : -1;
    int dense = starts_dense(soft, 0, count);
    double largest = 0, mass[TL_CHUNK];
    for (int64_t k = argmax < 0 ? 0 : count, end; k < count; k = end) {
        end = next_run(backend, soft, count, dense, &k, cancel);
        masses_of(backend, soft, k, end - k, mass);
        dense = starts_dense(soft, end, count);
        for (int64_t i = 0; i < end - k; i++)
            if (!(mass[i] <= largest) || argmax < 0) { /* seldom */
                int is_larger = tl_contributes(mass[i]) && (argmax < 0 || mass[i] > largest);
                argmax = is_larger ? k + i : argmax;
                largest = is_larger ? mass[i] : largest;
            }
    }
    return argmax;
}

int64_t tl_one_hot_class(const tl_backend *backend, const tl_soft_target *soft, int64_t count, tl_cancel *cancel) {
    tl_soft_target plain = *soft;
    double mass[TL_SOFT_TARGET_RUN];
    int64_t start = 0, class_id = -1;
    plain.weight = NULL;
    plain.one_minus_eps = 1;
    plain.eps_over_v = 0;
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
    double sum[16] = {0}, lost[16] = {0};
    double offset =
        tl_abs(shift) > TL_MAX_EXACT_REDUCTION ? shift : 0; /* else sums of logits keep the digits that matter */
    int dtype = offset == 0 ? row->compute_dtype : TL_FLOAT64, in_place = tl_can_read_in_place(row, dtype, offset);
    for (int64_t start = 0, count; start < row->count; start += count) {
        count = row->count - start < TL_CHUNK ? row->count - start : TL_CHUNK;
        if (in_place && row->count >= LANES) {
            backend->sum[dtype](row->data + start * row->stride, (size_t)count, sum, lost);
        } else {
            tl_chunk_buf buf;
            tl_chunk_invalidate(&buf);
            tl_load_chunk(backend, row, start, count, -1, offset, dtype, &buf);
            int64_t size = tl_itemsize(dtype), padded = tl_padded(count);
            memset((char *)&buf.at + count * size, 0, (size_t)((padded - count) * size));
            backend->sum[dtype](&buf.at, (size_t)padded, sum, lost);
        }
        if ((start + count) % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            return 0;
    }
    return mass * ((double)row->count * (shift - offset) - tl_lanes_sum_or_infinite(sum, lost));
}

void tl_target_dot_range(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, int64_t start,
                         int64_t end, double shift, tl_dot_acc *dot, tl_cancel *cancel) {
    const int is_plain = are_plain(soft), is_wide = tl_single_or_double(row->compute_dtype) == TL_FLOAT64 || !is_plain;
    const int dtype = is_wide ? TL_FLOAT64 : tl_single_or_double(soft->mass_dtype);
    const tl_row masses = row_of(soft->mass, soft->mass_stride, soft->mass_dtype, row->count);
    int dense = (is_plain && end - start <= TL_CHUNK) || starts_dense(soft, start, end);
    dot->compensates = row->compute_dtype == TL_FLOAT64;
    for (int64_t k = start, until; k < end; k = until) {
        double mass[TL_CHUNK], logits[TL_CHUNK];
        until = next_run(backend, soft, end, dense, &k, cancel);
        assert((k % LANES == 0 || k == end) && until - k >= 0 && until - k <= TL_CHUNK);
        const void *run = mass;
        if (is_plain)
            run = run_of(backend, &masses, k, until, dtype, mass);
        else
            masses_of(backend, soft, k, until - k, mass);
        backend->target_dot[dtype](run, run_of(backend, row, k, until, dtype, logits), (size_t)(until - k), shift, dot);
        dense = starts_dense(soft, until, end);
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
    tl_dot_acc dot = {{0}, {0}, {0}, {0}, 0};
    if (!soft->mass && !soft->weight) {
        *total = soft->eps_over_v * (double)row->count;
        double loss = target_dot_uniform(backend, row, soft->eps_over_v, shift, cancel);
        if (loss - loss == 0) /* else only the sum of the logits may be too large for a double */
            return loss;
    }
    tl_target_dot_range(backend, row, soft, 0, row->count, shift, &dot, cancel);
    return tl_target_dot_end(&dot, total);
}
