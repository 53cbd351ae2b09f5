#include "divergences.h"

/* Short rows are computed in double: where all of few terms are rounded alike, floats would be wrong by 3e-7. */
void tl_divergences_begin(tl_lse base, tl_lse other, int64_t count, int dtype, int wanted, tl_divergence_state *state) {
    const int is_wide = dtype == TL_FLOAT64 || count <= TL_SHORT_ROW || base.offset != 0 || other.offset != 0;
    *state = (tl_divergence_state){.sums = {.wanted = wanted, .base = base.log, .other = other.log},
                                   .base_offset = base.offset,
                                   .offset = other.offset,
                                   .dtype = is_wide ? TL_FLOAT64 : TL_FLOAT32,
                                   .has_softmaxes = base.log - base.log == 0 && other.log - other.log == 0};
}

void tl_divergences_range(const tl_backend *backend, const tl_row *base, const tl_row *other, int64_t start,
                          int64_t end, tl_divergence_state *state, tl_cancel *cancel) {
    tl_two_rows rows;
    assert(start % TL_CHUNK == 0 && end <= base->count && base->count == other->count);
    tl_begin_two(base, other, state->dtype, &rows);
    rows.offset[0] = state->base_offset;
    rows.offset[1] = state->offset;
    for (int64_t next; start < end && state->has_softmaxes; start = next) {
        next = start + tl_read_two(backend, &rows, start, end - start < TL_BLOCK ? end : start + TL_BLOCK);
        size_t padded = (size_t)tl_padded(next - start);
        if (TL_UNLIKELY(backend->divergences[state->dtype](rows.at[0], rows.at[1], padded, &state->sums)))
            state->is_infinite |= tl_has_infinite_kl(backend, other, base, start, next);
        if (next % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
            return;
    }
}

/* The square root of a number in [0, 1]: without libm, the same everywhere. */
static double root_of(double x) {
    double root = tl_exp(0.5 * tl_log(x));
    return root > 0 ? 0.5 * (root + x / root) : 0;
}

static double within(double value, double most) {
    return value < 0 ? 0 : value > most ? most : value;
}

/* The divergences for finite sums, or for infinite ones, the first of which is infinite, too. */
static tl_divergences of_sums(const double *sum, int wanted) {
    const double both = sum[TL_SUM_OF_BOTH], reverse_kl = 2 * sum[TL_SUM_OF_REVERSE_KL] / both;
    tl_divergences found = {reverse_kl < 0 ? 0 : reverse_kl, within(sum[TL_SUM_OF_JS] / both, TL_LN2),
                            within(2 * sum[TL_SUM_OF_TV] / both, 1), 0};
    if (wanted & TL_HELLINGER)
        found.hellinger = within(root_of(within(2 * sum[TL_SUM_OF_HELLINGER] / both, 1)), 1);
    return found;
}

int tl_divergences_end(const tl_divergence_state *state, tl_divergences *found) {
    const tl_divergence_acc *acc = &state->sums;
    double sum[TL_DIVERGENCE_SUMS];
    if (!state->has_softmaxes) {
        *found = (tl_divergences){(double)NAN, (double)NAN, (double)NAN, (double)NAN};
        if (acc->base == -(double)INFINITY && acc->other - acc->other == 0)
            found->reverse_kl = (double)INFINITY; /* all classes of the base are impossible */
        return 1;
    }
    for (int k = 0; k < TL_DIVERGENCE_SUMS; k++)
        sum[k] = tl_lanes_sum_compensated(acc->sum[k], acc->comp[k]);
    *found = of_sums(sum, acc->wanted);
    if (state->is_infinite)
        found->reverse_kl = (double)INFINITY;
    return state->is_infinite || found->reverse_kl - found->reverse_kl == 0 || state->dtype == TL_FLOAT64;
}

tl_divergences tl_divergences_of(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_lse base_lse,
                                 tl_lse lse, int wanted, tl_cancel *cancel) {
    tl_divergence_state state;
    tl_divergences found;
    for (int dtype = base->compute_dtype;; dtype = TL_FLOAT64) {
        tl_divergences_begin(base_lse, lse, base->count, dtype, wanted, &state);
        tl_divergences_range(backend, base, other, 0, base->count, &state, cancel);
        if (tl_divergences_end(&state, &found))
            return found;
    }
}

/* Reduces short rows side by side; returns which of the wanted ones were found. */
static uint64_t find_short(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other,
                           const tl_kl *kl, int wanted, tl_divergences *found) {
    const int count = tl_grouped_rows(base);
    tl_short_divergences sums;
    uint64_t usable = 0;
    memset(&sums, 0, sizeof sums);
    for (int i = 0; i < count; i++) {
        double logs = kl[i].base.log + kl[i].other.log;
        if (tl_is_wanted(base, i) && kl[i].base.offset == 0 && kl[i].other.offset == 0 && logs - logs == 0) {
            usable |= (uint64_t)1 << i;
            sums.base[i] = kl[i].base.log;
            sums.other[i] = kl[i].other.log;
        }
    }
    if (usable == 0)
        return 0;
    const double *p = tl_load_wide_groups(backend, base, count), *q = tl_load_wide_groups(backend, other, count);
    backend->short_divergences(p, q, tl_groups_for(count), (size_t)base->row.count, wanted, &sums);
    for (int i = 0; i < count; i++) {
        double sum[TL_DIVERGENCE_SUMS];
        for (int k = 0; k < TL_DIVERGENCE_SUMS; k++)
            sum[k] = sums.sum[k][i];
        found[i] = of_sums(sum, wanted);
        usable &= ~((uint64_t)(sums.unmatched[i] != -(double)INFINITY) << i);
    }
    return usable;
}

void tl_divergences_of_block(const tl_backend *backend, const tl_row_block *base, const tl_row_block *other,
                             const tl_kl *kl, int wanted, tl_divergences *found, tl_cancel *cancel) {
    uint64_t left = base->wanted & ~find_short(backend, base, other, kl, wanted, found);
    for (int i = 0; i < base->count; i++) {
        tl_row row = tl_row_of_block(base, i), other_row = tl_row_of_block(other, i);
        if (left >> i & 1)
            found[i] = tl_divergences_of(backend, &row, &other_row, kl[i].base, kl[i].other, wanted, cancel);
    }
}
