/* What a block of rows writes for each class: see row_block.h. */
#include "elementwise.h"
#include "row_block.h"

/* Writes the rows of a group whose places are given, by way of planes: of any stride and byte order. */
static void store_group(const tl_backend *backend, const char *group, const tl_row *to, char *const *data) {
    const int native = to->dtype & ~TL_SWAPPED, size = tl_itemsize(native);
    double planes[TL_PLANES_AT_ONCE * TL_GROUP];
    for (int64_t k = 0, n; k < to->count; k += n, group += n * TL_GROUP * tl_itemsize(tl_single_or_double(native))) {
        n = to->count - k < TL_PLANES_AT_ONCE ? to->count - k : TL_PLANES_AT_ONCE;
        backend->deinterleave_planes[native](group, TL_GROUP * size, (size_t)n, TL_GROUP, (char *)planes);
        for (int r = 0; r < TL_GROUP; r++)
            if (data[r])
                tl_copy_elements((const char *)planes + r * size, TL_GROUP * size, data[r] + k * to->stride, to->stride,
                                 n, to->dtype);
    }
}

/* Writes the rows of a group, of floats or of doubles for doubles, from row `start` on, of those whose bits are set. */
static void store_rows(const tl_backend *backend, const tl_row_block *rows, int start, uint64_t which,
                       const char *group, const tl_out_block *out) {
    char *data[TL_GROUP];
    int count = rows->count - start < TL_GROUP ? rows->count - start : TL_GROUP, size = tl_itemsize(out->row.dtype);
    size_t classes = (size_t)rows->row.count;
    uint64_t all = ~(uint64_t)0 >> (TL_BLOCK_ROWS - count);
    int is_contiguous = out->row.stride == size || classes == 1;
    int is_native = out->row.dtype < TL_SWAPPED;
    if (is_native && !is_contiguous && (which >> start & all) == all && count > 1 &&
        tl_are_neighbours((const char *const *)out->data, start, count, size)) {
        backend->deinterleave_planes[out->row.dtype](group, out->row.stride, classes, (size_t)count, out->data[start]);
        return;
    }
    for (int r = 0; r < TL_GROUP; r++) { /* vectors write what is not wanted to one memory */
        int is_written = r < count && (which >> (start + r) & 1);
        data[r] = is_written ? out->data[start + r] : is_native && is_contiguous ? tl_unread_row_of(rows) : NULL;
    }
    if (is_native && is_contiguous)
        backend->deinterleave[out->row.dtype](group, classes, data);
    else
        store_group(backend, group, &out->row, data);
}

static int is_native_row(const tl_row *row) {
    return row->dtype < TL_SWAPPED && row->stride == tl_itemsize(row->dtype);
}

uint64_t tl_map_rows(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                     const double *logsumexp, tl_gradient_parts *parts, const tl_out_block *out) {
    size_t padded = tl_padded_rows(rows->count), classes = (size_t)rows->row.count;
    int is_interruptible = rows->row.count <= TL_CANCEL_INTERVAL, dtype = rows->row.compute_dtype;
    int along_classes = rows->row.count >= TL_GROUP && is_interruptible && /* nothing is asked between rows */
                        is_native_row(&rows->row) && is_native_row(&out->row);
    uint64_t which = along_classes ? rows->wanted : lse->grouped;
    assert(!tl_is_transformed(&rows->row)); /* rows that are not wanted might have results by then */
    which &= backend->softmax_factors(logsumexp, NULL, padded, dtype, parts->exponent, parts->factor);
    if (which == 0)
        return 0;
    if (along_classes) {
        char *to[TL_BLOCK_ROWS];
        for (int i = 0; i < rows->count; i++)
            to[i] = which >> i & 1 ? out->data[i] : NULL;
        backend->exp_scaled_rows[dtype](rows->data, (size_t)rows->count, classes, parts->exponent, parts->factor,
                                        parts->subtrahend, to, out->nontemporal_stores);
        return which;
    }
    dtype = lse->group_dtype;
    assert(dtype == tl_single_or_double(out->row.dtype));
    tl_few_rows groups = tl_few_of_groups(tl_groups_of(rows), classes, dtype);
    backend->lane_gradients[dtype](&groups, tl_padded_rows(lse->in_groups), NULL, parts, &groups);
    uint64_t stored = which;
    if (rows->class_major && which == rows->wanted) { /* whole planes can be written */
        stored = ~(uint64_t)0 >> (TL_BLOCK_ROWS - rows->count);
        for (int i = 0; stored != which && i < rows->count; i++)
            for (int64_t k = 0; !tl_is_wanted(rows, i) && k < rows->row.count; k++)
                tl_store_to_groups((tl_groups){tl_groups_of(rows), dtype}, tl_place_in_groups(rows, i, k), 0);
    }
    for (int start = 0; start < rows->count; start += TL_GROUP)
        store_rows(backend, rows, start, stored, groups.data + (size_t)(start / TL_GROUP) * groups.group_bytes, out);
    return which;
}

/* Fills a group with masses: of the rows whose bits are set, one at least, or what all rows have without masses. */
static void fill_masses(const tl_loss *losses, int64_t classes, uint64_t which, double *mass) {
    tl_soft_target shared = losses[tl_lowest_bit(which)].soft;
    const int has_masses = shared.mass != NULL;
    shared.mass = NULL;
    for (int64_t k = 0; k < classes; k++) {
        const double each = tl_soft_target_at(&shared, k);
        for (int r = 0; r < TL_GROUP; r++)
            mass[k * TL_GROUP + r] = each;
    }
    for (; has_masses && which != 0; which &= which - 1)
        for (int64_t k = 0, r = tl_lowest_bit(which); k < classes; k++)
            mass[k * TL_GROUP + r] = tl_soft_target_at(&losses[r].soft, k);
}

uint64_t tl_write_wide_gradients(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse,
                                 const double *logsumexp, const double *softmax_factor, const tl_loss *losses,
                                 const tl_masses *masses, const tl_out_block *out) {
    double exponent[TL_BLOCK_ROWS], factor[TL_BLOCK_ROWS], scale[TL_BLOCK_ROWS];
    const size_t elements = tl_group_elements(rows), padded = tl_padded_rows(lse->in_groups);
    const size_t classes = (size_t)rows->row.count;
    const int dtype = lse->group_dtype, narrows = dtype > tl_single_or_double(out->row.dtype);
    uint64_t which = lse->grouped & rows->wanted;
    for (size_t i = 0; i < padded; i++) {
        scale[i] = (int)i < rows->count ? losses[i].grad_scale * rows->row.logit_scale : 0;
        factor[i] = scale[i] * softmax_factor[i];
    }
    which &= backend->softmax_factors(logsumexp, scale, padded, dtype, exponent, factor);
    for (int start = 0; start < rows->count && which >> start != 0; start += TL_GROUP) {
        const size_t at = (size_t)start / TL_GROUP * elements;
        const void *group = tl_groups_of(rows) + at * (size_t)tl_itemsize(lse->group_dtype);
        double *gradient = (double *)(void *)tl_wide_groups_of(rows);
        float *singles = (float *)(void *)(gradient + elements);
        const uint64_t of_group = which >> start & ((1u << TL_GROUP) - 1);
        const int are_grouped = of_group != 0 && (of_group & ~(masses->usable >> start)) == 0;
        const double *mass = are_grouped ? masses->at + at : gradient;
        const tl_mass_gradients of = {exponent + start, factor + start,    scale + start,
                                      0,                rows->row.softcap, out->row.dtype & ~TL_SWAPPED};
        if (of_group == 0)
            continue;
        if (!are_grouped)
            fill_masses(losses + start, rows->row.count, of_group, gradient);
        const tl_few_rows from = tl_few_of_groups(group, classes, dtype);
        const tl_few_rows of_masses = tl_few_of_groups(mass, classes, TL_FLOAT64);
        const tl_few_rows to = tl_few_of_groups(dtype == TL_FLOAT64 ? gradient : (void *)singles, classes, dtype);
        backend->mass_gradients[dtype](&from, &of_masses, 1, TL_GROUP, &of, &to);
        for (size_t i = 0; narrows && i < elements; i++)
            singles[i] = (float)gradient[i]; /* vectors write them; rounding once is rounding once */
        store_rows(backend, rows, start, which, narrows ? (const char *)singles : to.data, out);
    }
    return which;
}

/* Whole groups of rows that are worked on side by side: of few classes, or planes. */
#define LANE_BYTES (TL_SHORT_ROW * (int)sizeof(float)) /* of the classes of a row */
static int are_lanes(const tl_row *row, ptrdiff_t apart) {
    int size = tl_itemsize(row->dtype), most = LANE_BYTES / (size == 2 ? 8 : size); /* halves take memory twice */
    most = row->stride == size ? TL_GROUP - 1 : apart == size ? most : 0;
    return row->dtype < TL_SWAPPED && row->count > 0 && row->count <= most;
}

/* The same for halves, by way of groups of floats; returns how many rows were written, from the first on. */
static size_t softmax_of_halves(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, size_t count, int is_log,
                                double *memory, const tl_row *out, ptrdiff_t out_apart) {
    double at[TL_GROUP * LANE_BYTES / sizeof(double) / 2 + 8];
    char *groups = (char *)at + (-(uintptr_t)at & (TL_GROUP_ALIGNMENT - 1));
    const size_t most = (size_t)tl_row_block_rows(row->count, 0) / 2;
    const tl_few_rows few = tl_few_of_groups(groups, (size_t)row->count, TL_FLOAT32);
    size_t done = 0;
    for (size_t n; count - done >= TL_GROUP; done += n) {
        const tl_few_rows from = tl_few_rows_at(row, done, apart), to = tl_few_rows_at(out, done, out_apart);
        n = count - done < most ? (count - done) / TL_GROUP * TL_GROUP : most;
        tl_move_lanes(backend, &from, row->dtype, n, groups, 0);
        if (backend->lane_softmax[TL_FLOAT32](&few, n / TL_GROUP, is_log, memory, &few) < n / TL_GROUP)
            break;
        tl_move_lanes(backend, &to, out->dtype, n, groups, 1);
    }
    return done;
}

size_t tl_softmax_rows(const tl_backend *backend, const tl_row *row, ptrdiff_t apart, size_t count, int is_log,
                       const tl_row *out, ptrdiff_t out_apart) {
    double memory[TL_GROUP * LANE_BYTES / sizeof(double) + 8];
    if (are_lanes(row, apart) && are_lanes(out, out_apart)) {
        tl_few_rows from = tl_few_rows_at(row, 0, apart), to = tl_few_rows_at(out, 0, out_apart);
        if (row->dtype != tl_single_or_double(row->dtype))
            return softmax_of_halves(backend, row, apart, count, is_log, memory, out, out_apart);
        return TL_GROUP * backend->lane_softmax[row->dtype](&from, count / TL_GROUP, is_log, memory, &to);
    }
    if (row->count < TL_GROUP || row->count > TL_MAX_KEPT || !is_native_row(row) || !is_native_row(out))
        return 0;
    return backend->softmax_rows[row->dtype](row->data, apart, count, (size_t)row->count, is_log,
                                             (char *)(uintptr_t)out->data, out_apart);
}

/* One row of any layout by way of copies, a whole group of one of few classes; returns whether it was written. */
static int softmax_of_copy(const tl_backend *backend, const tl_row *row, int is_log, const tl_row *out) {
    double copy[TL_MAX_KEPT];
    tl_row native = *row;
    tl_copy_native(row, copy);
    native.data = (const char *)copy;
    native.dtype &= ~TL_SWAPPED;
    native.stride = tl_itemsize(native.dtype);
    if (!tl_softmax_rows(backend, &native, 0, row->count < TL_GROUP ? TL_GROUP : 1, is_log, &native, 0))
        return 0;
    tl_copy_to_row(copy, out);
    return 1;
}

void tl_softmax(const tl_backend *backend, const tl_row *row, int is_log, const tl_row *out, int large,
                tl_cancel *cancel) {
    int is_kept = row->count > 0 && row->count <= TL_MAX_KEPT && !tl_is_transformed(row) && row->shift == 0;
    if (!is_kept || !softmax_of_copy(backend, row, is_log, out))
        tl_softmax_by_sum(backend, row, is_log, out, large, cancel);
}

void tl_softmax_of_block(const tl_backend *backend, const tl_row_block *rows, int is_log, const tl_out_block *out,
                         tl_cancel *cancel) {
    const ptrdiff_t apart = tl_copied_row(rows->row.count, rows->row.dtype);
    const int count = rows->are_copies && rows->row.count < TL_GROUP ? (int)tl_padded_rows(rows->count) : rows->count;
    for (int i = rows->count; i < count; i++) /* there is room for these */
        memcpy((char *)(uintptr_t)rows->data[0] + i * apart, rows->data[0], (size_t)apart);
    const tl_out_block first = tl_first_out(rows, out);
    for (int i = 0; i < rows->count;) {
        tl_row row = tl_row_of_block(rows, i), to = tl_row_of_out(&first, i);
        if (rows->are_copies)
            i += (int)tl_softmax_rows(backend, &row, apart, (size_t)(count - i), is_log, &to, apart);
        for (int end = i + TL_GROUP; i < end && i < rows->count; i++) { /* one of these is far out */
            row = tl_row_of_block(rows, i);
            to = tl_row_of_out(&first, i);
            tl_softmax(backend, &row, is_log, &to, first.nontemporal_stores, cancel);
        }
    }
    tl_write_copies(backend, rows, out);
}

TL_OUTLINE double load_any(const tl_row *row, int64_t k) { return tl_load(row->data + k * row->stride, row->dtype); }
static double raw_logit(const tl_row *row, int64_t k) {
    if (row->dtype == TL_FLOAT32)
        return (double)tl_float_from_bits(tl_load32(row->data + k * row->stride, TL_FLOAT32));
    return load_any(row, k);
}

int64_t tl_likeliest_class(const tl_row *row, const int64_t *ids, int64_t count, int64_t *likeliest,
                           tl_cancel *cancel) {
    double highest = -(double)INFINITY;
    int64_t lowest = INT64_MAX;
    for (int64_t k = 0; k < count; k++) {
        if (ids[k] < 0 || ids[k] >= row->count)
            return k;
        const double raw = raw_logit(row, ids[k]);
        const int64_t beaten = -(int64_t)(raw > highest), tied = -(int64_t)((raw == highest) & (ids[k] < lowest));
        highest = raw > highest ? raw : highest;
        lowest = (ids[k] & (beaten | tied)) | (lowest & ~(beaten | tied)); /* a branch would be mispredicted */
        if ((k + 1) % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel)) {
            *likeliest = TL_MASKED;
            return count;
        }
    }
    *likeliest = lowest < row->count ? lowest : 0; /* all are nan, and so is the loss of any class */
    return count;
}

/* condition ? a : b, without a branch. */
static double if_else(int condition, double a, double b) {
    uint64_t mask = -(uint64_t)condition;
    return tl_from_bits((tl_to_bits(a) & mask) | (tl_to_bits(b) & ~mask));
}

/* The log-probabilities of at most TL_GROUP classes. Equal logits have equal results, and rounding puts none above that
 * of the excluded class; 0 is never -0.0. */
static void class_log_probs(const tl_backend *backend, const tl_row *row, const tl_class_odds *odds,
                            const int64_t *ids, int64_t count, double *log_probs) {
    double lanes[TL_GROUP], most = 0 - odds->nll, offset = odds->lse.offset, log = odds->lse.log;
    int is_scaled = tl_is_transformed(row);
    for (int64_t k = 0; k < TL_GROUP && is_scaled; k++)
        lanes[k] = k < count ? raw_logit(row, ids[k]) - row->shift : 0;
    if (is_scaled)
        backend->softcap(lanes, TL_GROUP, row->logit_scale, row->softcap);
    for (int64_t k = 0; k < count; k++) {
        double logit = is_scaled ? lanes[k] : raw_logit(row, ids[k]), log_prob = (logit - offset) - log;
        log_probs[k] = if_else((logit == odds->logit) | (log_prob > most), most, log_prob);
    }
}

void tl_class_log_probs(const tl_backend *backend, const tl_row_block *rows, const tl_block_lse *lse, int i,
                        const int64_t *ids, int64_t count, double *log_probs, tl_cancel *cancel) {
    tl_row row = tl_row_of_block(rows, i);
    tl_class_odds odds = tl_odds_at(rows, lse, i);
    for (int64_t start = 0; start < count; start += TL_GROUP) {
        int64_t n = count - start < TL_GROUP ? count - start : TL_GROUP;
        class_log_probs(backend, &row, &odds, ids + start, n, log_probs + start);
        if ((start + n) % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            return;
    }
}
