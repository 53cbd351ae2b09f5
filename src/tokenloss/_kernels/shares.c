/* Sums over all classes of a row: of distributions, and of label smoothing. Stretches of targets that are zeros are
 * skipped, and the scores beside them not read. */
#include "scalar_math.h"
#include "walk.h"

#define LANES 16 /* of tl_weighed */

/* Moves start to a stretch that may hold shares other than 0; returns the stretch's end. After a stretch without any
 * zero the next may be long: so few shares as lie in 64 bytes are looked at only where most are zeros. */
static int64_t next_stretch(const tl_backend *backend, const tl_shares *shares, int64_t count, int dense, int64_t *start,
                            tl_patience *patience) {
    int64_t pause = (*start / TL_PAUSE + 1) * TL_PAUSE, until = count < pause ? count : pause;
    ptrdiff_t size = tl_itemsize(shares->share_dtype);
    int64_t most = dense ? TL_GRANULE : size > 4 ? LANES : 64 / size;
    if (*start % TL_PAUSE == 0 && *start != 0 && tl_gave_up(patience))
        return *start = count;
    if (!dense) {
        *start = backend->skip_zeros(shares->share, (ptrdiff_t)*start * size, (ptrdiff_t)until * size) / size;
        *start -= *start % LANES; /* each class has its lane, whatever was skipped */
    }
    return until - *start < most ? until : *start + most;
}

/* Whether all shares have to be looked at. */
static int always_dense(const tl_shares *shares) {
    return !shares->share || shares->uniform != 0 || shares->share_stride != tl_itemsize(shares->share_dtype);
}

/* Writes the shares of classes from `start` on; returns whether none is 0. */
static int shares_of(const tl_shares *shares, int64_t start, int64_t count, double *share) {
    int dense = count > 0;
    if (shares->share || shares->weight)
        for (int64_t i = 0; i < count; i++)
            dense &= tl_has_share(share[i] = tl_share_of(shares, start + i));
    else
        for (int64_t i = 0; i < count; i++)
            share[i] = shares->uniform;
    return dense;
}

int tl_next_shares(const tl_backend *backend, const tl_shares *shares, int64_t count, int64_t *start, double *share,
                   tl_patience *patience) {
    int length = 0;
    while (length == 0 && *start < count) { /* a stretch is empty where zeros end at a pause */
        int64_t end = next_stretch(backend, shares, count, always_dense(shares), start, patience);
        length = end - *start < 64 ? (int)(end - *start) : 64;
    }
    shares_of(shares, *start, length, share);
    return length;
}

int64_t tl_likeliest(const tl_backend *backend, const tl_shares *shares, int64_t count, int64_t *found,
                     tl_patience *patience) {
    int64_t likeliest = -1, n = 0;
    int dense = always_dense(shares);
    double largest = 0, share[TL_GRANULE];
    for (int64_t k = 0, end; k < count; k = end) {
        end = next_stretch(backend, shares, count, dense, &k, patience);
        dense = shares_of(shares, k, end - k, share) || always_dense(shares);
        for (int64_t i = 0; i < end - k; i++) {
            int has_share = tl_has_share(share[i]);
            n += has_share;
            if (has_share && (likeliest < 0 || share[i] > largest)) {
                likeliest = k + i;
                largest = share[i];
            }
        }
    }
    *found = n;
    return likeliest;
}

/* tl_weigh where all shares are the same. */
static double weigh_uniform(const tl_backend *backend, const tl_row *row, double share, double anchor,
                            tl_patience *patience) {
    double sum[16] = {0}, lost[16] = {0};
    double offset = tl_abs(anchor) > TL_FAR_OUT ? anchor : 0; /* else sums of scores keep the digits that matter */
    int dtype = offset == 0 ? row->folded : TL_FLOAT64, in_place = tl_in_place(row, dtype, offset);
    for (int64_t start = 0, count; start < row->count; start += count) {
        int64_t left = row->count - start;
        count = left < TL_GRANULE ? left / TL_PADDED * TL_PADDED : TL_GRANULE;
        if (in_place && count > 0) {
            backend->total[dtype](row->data + start * row->stride, (size_t)count, sum, lost);
        } else {
            tl_scratch scratch;
            tl_clear(&scratch);
            count = count > 0 ? count : left;
            tl_gather(backend, row, start, count, -1, offset, dtype, &scratch);
            int64_t size = tl_itemsize(dtype), padded = (count + TL_PADDED - 1) / TL_PADDED * TL_PADDED;
            memset((char *)&scratch.at + count * size, 0, (size_t)((padded - count) * size));
            backend->total[dtype](&scratch.at, (size_t)padded, sum, lost);
        }
        if (start % TL_PAUSE == 0 && tl_gave_up(patience))
            return 0;
    }
    double total = tl_sum_of(sum, lost);
    total = total == total ? total : tl_total(sum);
    return share * ((double)row->count * (anchor - offset) - total);
}

void tl_weigh_part(const tl_backend *backend, const tl_row *row, const tl_shares *shares, int64_t start, int64_t end,
                   double anchor, tl_weighed *weighed, tl_patience *patience) {
    tl_scratch scratch;
    int dense = always_dense(shares);
    for (int64_t k = start, until; k < end; k = until) {
        double share[TL_GRANULE];
        until = next_stretch(backend, shares, end, dense, &k, patience);
        assert((k % LANES == 0 || k == end) && until - k >= 0 && until - k <= TL_GRANULE);
        int64_t length = until - k, padded = (length + TL_PADDED - 1) / TL_PADDED * TL_PADDED;
        dense = shares_of(shares, k, length, share) || always_dense(shares);
        for (int64_t i = length; i < padded; i++)
            share[i] = 0;
        tl_clear(&scratch);
        tl_gather(backend, row, k, length, -1, 0, TL_FLOAT64, &scratch);
        backend->weigh(share, scratch.at.wide, (size_t)padded, anchor, weighed);
    }
}

double tl_weigh_end(const tl_weighed *weighed, double *total) {
    double loss = tl_sum_of(weighed->loss, weighed->loss_lost), share = tl_sum_of(weighed->share, weighed->share_lost);
    *total = share == share ? share : tl_total(weighed->share);
    return loss == loss ? loss : tl_total(weighed->loss);
}

double tl_weigh(const tl_backend *backend, const tl_row *row, const tl_shares *shares, double anchor, double *total,
                tl_patience *patience) {
    tl_weighed weighed = {{0}, {0}, {0}, {0}};
    if (!shares->share && !shares->weight) {
        *total = shares->uniform * (double)row->count;
        double loss = weigh_uniform(backend, row, shares->uniform, anchor, patience);
        if (loss - loss == 0) /* else the sum of the scores may be all that is beyond a double */
            return loss;
    }
    tl_weigh_part(backend, row, shares, 0, row->count, anchor, &weighed, patience);
    return tl_weigh_end(&weighed, total);
}
