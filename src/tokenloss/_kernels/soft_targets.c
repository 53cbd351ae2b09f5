/* Sums over all classes of a row: of distributions, and of label smoothing. Stretches of targets that are zeros are
 * skipped, and the scores beside them not read. */
#include "soft_targets.h"

#include <assert.h>

#include "logsumexp.h"
#include "scalar_math.h"

#define LANES 16 /* of tl_dot_acc */

/* Moves start to a stretch that may hold shares other than 0; returns the stretch's end. After a stretch without any
 * zero the next may be long: so few shares as lie in 64 bytes are looked at only where most are zeros. */
static int64_t next_stretch(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int dense,
                            int64_t *start, tl_cancel *cancel) {
    int64_t pause = (*start / TL_CANCEL_INTERVAL + 1) * TL_CANCEL_INTERVAL, until = count < pause ? count : pause;
    ptrdiff_t size = tl_itemsize(soft->mass_dtype);
    int64_t most = dense ? TL_CHUNK : size > 4 ? LANES : 64 / size;
    if (*start % TL_CANCEL_INTERVAL == 0 && *start != 0 && tl_cancelled(cancel))
        return *start = count;
    if (!dense) {
        *start = backend->skip_zeros(soft->mass, (ptrdiff_t)*start * size, (ptrdiff_t)until * size) / size;
        *start -= *start % LANES; /* each class has its lane, whatever was skipped */
    }
    return until - *start < most ? until : *start + most;
}

/* Whether all shares have to be looked at. */
static int always_dense(const tl_soft_target *soft) {
    return !soft->mass || soft->eps_over_v != 0 || soft->mass_stride != tl_itemsize(soft->mass_dtype);
}

/* Writes the shares of classes from `start` on; returns whether none is 0. */
static int shares_of(const tl_soft_target *soft, int64_t start, int64_t count, double *share) {
    int dense = count > 0;
    if (soft->mass || soft->weight)
        for (int64_t i = 0; i < count; i++)
            dense &= tl_contributes(share[i] = tl_soft_target_at(soft, start + i));
    else
        for (int64_t i = 0; i < count; i++)
            share[i] = soft->eps_over_v;
    return dense;
}

int tl_soft_target_next(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *start,
                        double *share, tl_cancel *cancel) {
    int length = 0;
    while (length == 0 && *start < count) { /* a stretch is empty where zeros end at a pause */
        int64_t end = next_stretch(backend, soft, count, always_dense(soft), start, cancel);
        length = end - *start < TL_SOFT_TARGET_RUN ? (int)(end - *start) : TL_SOFT_TARGET_RUN;
    }
    shares_of(soft, *start, length, share);
    return length;
}

int64_t tl_soft_target_argmax(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *found,
                              tl_cancel *cancel) {
    int64_t argmax = -1, n = 0;
    int dense = always_dense(soft);
    double largest = 0, share[TL_CHUNK];
    for (int64_t k = 0, end; k < count; k = end) {
        end = next_stretch(backend, soft, count, dense, &k, cancel);
        dense = shares_of(soft, k, end - k, share) || always_dense(soft);
        for (int64_t i = 0; i < end - k; i++) {
            int has_share = tl_contributes(share[i]);
            n += has_share;
            if (has_share && (argmax < 0 || share[i] > largest)) {
                argmax = k + i;
                largest = share[i];
            }
        }
    }
    *found = n;
    return argmax;
}

/* tl_target_dot where all shares are the same. */
static double weigh_uniform(const tl_backend *backend, const tl_row *row, double share, double anchor,
                            tl_cancel *cancel) {
    double sum[16] = {0}, lost[16] = {0};
    double offset =
        tl_abs(anchor) > TL_MAX_EXACT_REDUCTION ? anchor : 0; /* else sums of scores keep the digits that matter */
    int dtype = offset == 0 ? row->compute_dtype : TL_FLOAT64, in_place = tl_can_read_in_place(row, dtype, offset);
    for (int64_t start = 0, count; start < row->count; start += count) {
        int64_t left = row->count - start;
        count = left < TL_CHUNK ? left / TL_READ_MULTIPLE * TL_READ_MULTIPLE : TL_CHUNK;
        if (in_place && count > 0) {
            backend->sum[dtype](row->data + start * row->stride, (size_t)count, sum, lost);
        } else {
            tl_chunk_buf buf;
            tl_chunk_invalidate(&buf);
            count = count > 0 ? count : left;
            tl_load_chunk(backend, row, start, count, -1, offset, dtype, &buf);
            int64_t size = tl_itemsize(dtype),
                    padded = (count + TL_READ_MULTIPLE - 1) / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
            memset((char *)&buf.at + count * size, 0, (size_t)((padded - count) * size));
            backend->sum[dtype](&buf.at, (size_t)padded, sum, lost);
        }
        if (start % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
            return 0;
    }
    double total = tl_lanes_sum_compensated(sum, lost);
    total = total == total ? total : tl_lanes_sum_in_order(sum);
    return share * ((double)row->count * (anchor - offset) - total);
}

void tl_target_dot_range(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, int64_t start,
                         int64_t end, double anchor, tl_dot_acc *dot, tl_cancel *cancel) {
    tl_chunk_buf buf;
    int dense = always_dense(soft);
    for (int64_t k = start, until; k < end; k = until) {
        double share[TL_CHUNK];
        until = next_stretch(backend, soft, end, dense, &k, cancel);
        assert((k % LANES == 0 || k == end) && until - k >= 0 && until - k <= TL_CHUNK);
        int64_t length = until - k, padded = (length + TL_READ_MULTIPLE - 1) / TL_READ_MULTIPLE * TL_READ_MULTIPLE;
        dense = shares_of(soft, k, length, share) || always_dense(soft);
        for (int64_t i = length; i < padded; i++)
            share[i] = 0;
        tl_chunk_invalidate(&buf);
        tl_load_chunk(backend, row, k, length, -1, 0, TL_FLOAT64, &buf);
        backend->target_dot(share, buf.at.wide, (size_t)padded, anchor, dot);
    }
}

double tl_target_dot_end(const tl_dot_acc *dot, double *total) {
    double loss = tl_lanes_sum_compensated(dot->loss, dot->loss_lost),
           share = tl_lanes_sum_compensated(dot->share, dot->share_lost);
    *total = share == share ? share : tl_lanes_sum_in_order(dot->share);
    return loss == loss ? loss : tl_lanes_sum_in_order(dot->loss);
}

double tl_target_dot(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, double anchor,
                     double *total, tl_cancel *cancel) {
    tl_dot_acc dot = {{0}, {0}, {0}, {0}};
    if (!soft->mass && !soft->weight) {
        *total = soft->eps_over_v * (double)row->count;
        double loss = weigh_uniform(backend, row, soft->eps_over_v, anchor, cancel);
        if (loss - loss == 0) /* else the sum of the scores may be all that is beyond a double */
            return loss;
    }
    tl_target_dot_range(backend, row, soft, 0, row->count, anchor, &dot, cancel);
    return tl_target_dot_end(&dot, total);
}
