/* Softmax, log_softmax and the gradient of the loss. The rows were reduced before and are mostly still in a cache. */
#include "elementwise.h"

void tl_store_at(const tl_row *out, int64_t index, double value) {
    assert(index >= 0 && index < out->count);
    tl_store((char *)(uintptr_t)out->data + index * out->stride, out->dtype, value);
}

void tl_fill(const tl_row *out, double value) {
    if (value == 0 && out->stride == tl_itemsize(out->dtype)) {
        memset((char *)(uintptr_t)out->data, 0, (size_t)(out->count * out->stride));
        return;
    }
    for (int64_t i = 0; i < out->count; i++)
        tl_store_at(out, i, value);
}

/* Writes a chunk of this dtype to the output from `start` on; doubles for halves perhaps `are_rounded` to them. */
static void write_chunk(const tl_backend *backend, const tl_row *out, int64_t start, int64_t count, int dtype,
                        int are_rounded, const tl_chunk_buf *buf) {
    const tl_row part = tl_part_of(out, start, start + count);
    const int native = out->dtype & ~TL_SWAPPED, single = tl_single_or_double(native), size = tl_itemsize(native);
    const size_t padded = (size_t)tl_padded(count);
    const void *from = &buf->at;
    float narrowed[TL_CHUNK];
    uint16_t halves[TL_CHUNK];
    assert(dtype == native || dtype >= single);
    if (dtype == TL_FLOAT64 && native < TL_FLOAT32 && !are_rounded) { /* a float in between would be rounded twice */
        for (int64_t i = 0; i < count; i++)
            tl_store_at(&part, i, buf->at.f64[i]);
        return;
    }
    if (dtype > single) {
        for (size_t i = 0; i < padded; i++)
            narrowed[i] = (float)buf->at.f64[i];
        from = narrowed;
    }
    if (native < TL_FLOAT32 && dtype != native) {
        backend->deinterleave_planes[native](from, TL_GROUP * size, padded / TL_GROUP, TL_GROUP, (char *)halves);
        from = halves;
    }
    tl_copy_to_row(from, &part);
}

typedef struct {
    int logarithm;
    double exponent, factor, subtrahend;
    int large;
} map_op;

static void map_chunk(const tl_backend *backend, const map_op *op, int dtype, const void *x, size_t count, void *out,
                      int streaming) {
    const char *from = (const char *)x;
    char *to = (char *)out;
    backend->exp_scaled_rows[dtype](&from, 1, count, op->logarithm ? NULL : &op->exponent, &op->factor, &op->subtrahend,
                                    &to, streaming);
}

/* Maps each element of a row: in place where possible, else chunk by chunk. */
static void map_row(const tl_backend *backend, const tl_row *row, double offset, const map_op *op, const tl_row *out,
                    tl_cancel *cancel) {
    assert(row->count == out->count);
    int dtype = tl_offset_dtype(row->compute_dtype, offset);
    int in_place = tl_can_read_in_place(row, dtype, offset) && tl_can_read_in_place(out, dtype, 0);
    in_place &= row->count >= TL_GROUP;
    for (int64_t start = 0, count; start < row->count; start += count) {
        int64_t left = row->count - start;
        if (in_place) {
            char *to = (char *)(uintptr_t)out->data + start * out->stride;
            count = left < 2 * TL_CANCEL_INTERVAL ? left : TL_CANCEL_INTERVAL;
            map_chunk(backend, op, dtype, row->data + start * row->stride, (size_t)count, to, op->large);
        } else {
            tl_chunk_buf buf;
            tl_chunk_invalidate(&buf);
            count = left < TL_CHUNK ? left : TL_CHUNK;
            tl_load_chunk(backend, row, start, count, -1, offset, dtype, &buf);
            size_t padded = (size_t)tl_padded(count);
            map_chunk(backend, op, dtype, &buf.at, padded, &buf.at, 0);
            write_chunk(backend, out, start, count, dtype, 0, &buf);
        }
        if (start / TL_CANCEL_INTERVAL != (start + count) / TL_CANCEL_INTERVAL && tl_canceled(cancel))
            return;
    }
}

/* Keeps the offset of a logsumexp apart only where that is too large for an exact argument reduction. */
static tl_lse split_far_offset(tl_lse lse) {
    double logsumexp = tl_logsumexp(lse);
    if (tl_abs(logsumexp) <= TL_MAX_EXACT_REDUCTION) {
        lse.offset = 0;
        lse.log = logsumexp;
    }
    return lse;
}

void tl_softmax_by_sum(const tl_backend *backend, const tl_row *row, int is_log, const tl_row *out, int large,
                       tl_cancel *cancel) {
    tl_lse_acc state;
    tl_lse_row(backend, row, -1, &state, cancel);
    double sum = tl_lanes_sum_compensated(state.sum, state.comp);
    if (!(sum > 0 && sum - sum == 0)) {
        tl_fill(out, (double)NAN);
        return;
    }
    if (is_log) {
        tl_lse lse = split_far_offset(tl_lse_finish(&state, row->compute_dtype));
        map_op op = {1, 0, 0, lse.log, large};
        map_row(backend, row, lse.offset, &op, out, cancel);
    } else {
        const int is_double = row->compute_dtype == TL_FLOAT64;
        double exponent = (double)(state.ref_exp - (is_double ? TL_DOUBLE_KEPT_BITS : TL_FLOAT_KEPT_BITS));
        map_op op = {0, exponent, (is_double ? TL_DOUBLE_UNKEPT : TL_FLOAT_UNKEPT) / sum, 0, large};
        map_row(backend, row, state.offset, &op, out, cancel);
    }
}

/* Writes the gradients of all classes, from factors of probabilities and of masses: 16 neighboring classes in lanes. */
static void write_by_masses(const tl_backend *backend, const tl_row *row, tl_lse lse, double weight, double scale,
                            const tl_soft_target *soft, const tl_row *out, tl_cancel *cancel) {
    const int fits = lse.offset == 0 && tl_fits_float(weight) && tl_fits_float(scale) && !tl_is_transformed(row);
    const int dtype = fits ? tl_single_or_double(row->compute_dtype) : TL_FLOAT64;
    const int mass_dtype = dtype == TL_FLOAT64 ? dtype : tl_masses_dtype(soft);
    const int can_map_in_place = tl_can_read_in_place(row, dtype, 0) && tl_can_read_in_place(out, dtype, 0);
    double exponent, lanes[3][TL_GROUP];
    const double factor = weight * tl_softmax_factor(lse.log, dtype, &exponent);
    for (int l = 0; l < TL_GROUP; l++) {
        lanes[0][l] = exponent;
        lanes[1][l] = factor;
        lanes[2][l] = scale;
    }
    const tl_mass_gradients of = {lanes[0],   lanes[1],     lanes[2],
                                  lse.offset, row->softcap, out->dtype & ~TL_SWAPPED};
    for (int64_t start = 0, count; start < row->count; start += count) {
        tl_chunk_buf buf;
        double mass[TL_CHUNK];
        count = row->count - start < TL_CHUNK ? row->count - start : TL_CHUNK;
        const size_t groups = (size_t)tl_padded(count) / TL_GROUP, bytes = (size_t)(count * tl_itemsize(mass_dtype));
        const int in_place = can_map_in_place && count == TL_CHUNK;
        tl_chunk_invalidate(&buf);
        if (!in_place)
            tl_load_chunk(backend, row, start, count, -1, 0, dtype, &buf);
        const void *masses = tl_masses_of(backend, soft, start, start + count, mass_dtype, mass);
        if (tl_padded(count) != count) { /* what follows is no mass, and may not be read */
            if (masses != mass)
                memcpy(mass, masses, bytes);
            memset((char *)mass + bytes, 0, groups * TL_GROUP * (size_t)tl_itemsize(mass_dtype) - bytes);
            masses = mass;
        }
        const void *from = in_place ? (const void *)(row->data + start * row->stride) : &buf.at;
        const void *to = in_place ? (const void *)(out->data + start * out->stride) : &buf.at;
        const tl_few_rows rows = tl_few_of_groups(from, groups, dtype), grads = tl_few_of_groups(to, groups, dtype);
        const tl_few_rows of_masses = tl_few_of_groups(masses, groups, mass_dtype);
        backend->mass_gradients[dtype](&rows, &of_masses, mass_dtype == TL_FLOAT64, TL_GROUP, &of, &grads);
        if (!in_place)
            write_chunk(backend, out, start, count, dtype, 1, &buf);
        if (start / TL_CANCEL_INTERVAL != (start + count) / TL_CANCEL_INTERVAL && tl_canceled(cancel))
            return;
    }
}

void tl_gradient(const tl_backend *backend, const tl_row *row, tl_lse lse, double grad_scale, double softmax_factor,
                 const tl_soft_target *soft, const tl_row *out, int large, tl_cancel *cancel) {
    lse = split_far_offset(lse);
    assert(tl_abs(lse.log) < 2 * TL_MAX_EXACT_REDUCTION);
    if (tl_is_transformed(row) || soft->mass || soft->weight) {
        const double scale = grad_scale * row->logit_scale;
        write_by_masses(backend, row, lse, scale * softmax_factor, scale, soft, out, cancel);
        return;
    }
    map_op op = {0, 0, 0, grad_scale * soft->eps_over_v, large};
    const int dtype = tl_offset_dtype(row->compute_dtype, lse.offset);
    op.factor = grad_scale * softmax_factor * tl_softmax_factor(lse.log, dtype, &op.exponent);
    map_row(backend, row, lse.offset, &op, out, cancel);
}
