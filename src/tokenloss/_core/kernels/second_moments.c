#include "second_moments.h"

#include "reduce.h"
#include "scalar_math.h"

tl_second_moments tl_second_moments_of(const tl_backend *backend, const tl_row *row, double logsumexp,
                                       tl_cancel *cancel) {
    tl_second_moments of;
    tl_moment_lanes lanes = {{{0}}};
    tl_chunk_buf buf;
    tl_chunk_invalidate(&buf);
    for (int64_t start = 0, next; start < row->count; start = next) {
        next = row->count - start < TL_CHUNK ? row->count : start + TL_CHUNK;
        tl_load_chunk(backend, row, start, next - start, -1, 0, TL_FLOAT64, &buf);
        size_t groups = (size_t)(next - start + TL_GROUP - 1) / TL_GROUP; /* the padding is -inf, up to more of them */
        backend->second_moments(buf.at.f64, groups * TL_GROUP, logsumexp, &lanes);
        if (next % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            break;
    }
    double mean = tl_lanes_sum_fast(lanes.sum[1]);
    of.squares = tl_lanes_sum_fast(lanes.sum[0]);
    of.variance = tl_lanes_sum_fast(lanes.sum[2]) - mean * mean;
    if (of.variance < 0) /* by rounding */
        of.variance = 0;
    if (logsumexp - logsumexp != 0)
        of.squares = of.variance = (double)NAN;
    return of;
}

double tl_probability_of(const tl_backend *backend, const tl_row *row, int64_t index, double logsumexp) {
    double p = tl_exp(tl_logit_at(backend, row, index) - logsumexp);
    return p > 1 ? 1 : p;
}
