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

/* Whether backends can read the masses where they are, as they are. */
static int can_read_masses(const tl_soft_target *soft) {
    return soft->mass && (soft->mass_dtype == TL_FLOAT32 || soft->mass_dtype == TL_FLOAT64) && !soft->weight &&
           soft->eps_over_v == 0 && soft->one_minus_eps == 1 && soft->mass_stride == tl_itemsize(soft->mass_dtype);
}

/* Numbers of any dtype as doubles: those that lie one after another by loops that compilers make vectors of. */
static void load_numbers(const char *data, ptrdiff_t stride, int dtype, int64_t count, double *to) {
    float single;
    if (dtype == TL_FLOAT64 && stride == sizeof *to)
        memcpy(to, data, (size_t)count * sizeof *to);
    else if (dtype == TL_FLOAT32 && stride == sizeof single)
        for (int64_t i = 0; i < count; i++) {
            memcpy(&single, data + i * (ptrdiff_t)sizeof single, sizeof single);
            to[i] = (double)single;
        }
    else
        for (int64_t i = 0; i < count; i++)
            to[i] = tl_load(data + i * stride, dtype);
}

/* Writes the masses of classes from `start` on, as tl_soft_target_at; returns whether all of them contribute. */
static int masses_of(const tl_soft_target *soft, int64_t start, int64_t count, double *mass) {
    double weight[TL_CHUNK];
    uint64_t zeros = 0;
    if (soft->mass)
        load_numbers(soft->mass + start * soft->mass_stride, soft->mass_stride, soft->mass_dtype, count, mass);
    for (int64_t i = 0; i < count; i++)
        mass[i] = soft->mass ? soft->eps_over_v + soft->one_minus_eps * mass[i] : soft->eps_over_v;
    if (soft->weight)
        load_numbers(soft->weight + start * soft->weight_stride, soft->weight_stride, soft->weight_dtype, count, weight);
    for (int64_t i = 0; soft->weight && i < count; i++) {
        double product = mass[i] * weight[i], nonzero = product == 0 ? -0.0 : product;
        mass[i] = mass[i] == 0 ? mass[i] : nonzero;
    }
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = tl_to_bits(mass[i]);
        zeros |= ~(bits | (0 - bits)); /* the sign bit is set where all bits are 0 */
    }
    return count > 0 && zeros >> 63 == 0;
}

int tl_soft_target_next(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *start,
                        double *mass, tl_cancel *cancel) {
    int length = 0;
    while (length == 0 && *start < count) { /* a run is empty where zeros end at a check for cancellation */
        int64_t end = next_run(backend, soft, count, always_dense(soft), start, cancel);
        length = end - *start < TL_SOFT_TARGET_RUN ? (int)(end - *start) : TL_SOFT_TARGET_RUN;
    }
    masses_of(soft, *start, length, mass);
    return length;
}

/* The class of the largest mass of those that backends can read; -1 if none is above 0. */
static int64_t argmax_in_place(const tl_backend *backend, const tl_soft_target *soft, int64_t count,
                               tl_cancel *cancel) {
    double most, largest = 0;
    int64_t argmax = -1;
    for (int64_t k = 0, end, first; k < count; k = end) {
        end = next_run(backend, soft, count, count <= TL_CHUNK || starts_dense(soft, k, count), &k, cancel);
        first = backend->largest_mass[soft->mass_dtype](soft->mass + k * soft->mass_stride, (size_t)(end - k), &most);
        if (most > largest) {
            largest = most;
            argmax = k + first;
        }
    }
    return argmax;
}

int64_t tl_soft_target_argmax(const tl_backend *backend, const tl_soft_target *soft, int64_t count,
                              tl_cancel *cancel) {
    int64_t argmax = can_read_masses(soft) ? argmax_in_place(backend, soft, count, cancel) : -1;
    int dense = starts_dense(soft, 0, count);
    double largest = 0, mass[TL_CHUNK];
    for (int64_t k = argmax < 0 ? 0 : count, end; k < count; k = end) {
        end = next_run(backend, soft, count, dense, &k, cancel);
        dense = masses_of(soft, k, end - k, mass) || always_dense(soft);
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
    int dtype = soft->mass_dtype;
    int in_place = can_read_masses(soft) && dtype == row->compute_dtype && tl_can_read_in_place(row, dtype, 0);
    int dense = (in_place && end - start <= TL_CHUNK) || starts_dense(soft, start, end);
    dot->compensates = row->compute_dtype == TL_FLOAT64;
    for (int64_t k = start, until; k < end; k = until) {
        double mass[TL_CHUNK], logits[TL_CHUNK];
        until = next_run(backend, soft, end, dense, &k, cancel);
        assert((k % LANES == 0 || k == end) && until - k >= 0 && until - k <= TL_CHUNK);
        if (in_place) {
            const char *masses = soft->mass + k * soft->mass_stride;
            backend->target_dot[dtype](masses, row->data + k * row->stride, (size_t)(until - k), shift, dot);
            dense = starts_dense(soft, until, end);
            continue;
        }
        dense = masses_of(soft, k, until - k, mass) || always_dense(soft);
        tl_row run = tl_part_of(row, k, until);
        for (int64_t i = 0; run.count < LANES && i < run.count; i++) /* a chunk costs more */
            logits[i] = tl_logit_at(backend, &run, i);
        if (run.count >= LANES)
            tl_cast_row(backend, &run, TL_FLOAT64, logits);
        backend->target_dot[TL_FLOAT64](mass, logits, (size_t)run.count, shift, dot);
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
