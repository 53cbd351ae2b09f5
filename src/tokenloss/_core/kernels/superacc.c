#include "superacc.h"

#include <assert.h>

#include "scalar_math.h"

#define FEW_TERMS 8 /* fewer are added one by one: a group of zeros for the rest would take longer */

_Static_assert(TL_SUM_GROUP == 64, "one bit for each term of a group");

void tl_propagate_carries(int64_t *limbs, int count) {
    int64_t carry = 0;
    for (int i = 0; i < count; i++) {
        int64_t limb = limbs[i] + carry;
        int64_t low = limb & 0xffffffff;
        carry = limb >> 32; /* arithmetic, as all compilers have it */
        limbs[i] = low;
    }
    limbs[count - 1] += carry * ((int64_t)1 << 32); /* the top limb keeps the sign */
}

/* Counts terms that were added to limbs, and propagates the carries when it is time. */
static void count_terms(int64_t *limb, int limbs, int64_t *uncarried, int64_t terms) {
    *uncarried += terms;
    if (TL_UNLIKELY(*uncarried >= TL_MAX_UNCARRIED)) {
        tl_propagate_carries(limb, limbs);
        *uncarried = 0;
    }
}

void tl_superacc_sq_add_product(tl_superacc_sq *products, double a, double b) {
    if (TL_UNLIKELY(!(a - a == 0 && b - b == 0)))
        return;
    unsigned position, position_of_b;
    int negative, negative_b;
    uint64_t mantissa = tl_split(a, &position, &negative), mantissa_of_b = tl_split(b, &position_of_b, &negative_b);
    uint64_t high = mantissa >> 32, low = mantissa & 0xffffffffu;
    uint64_t high_of_b = mantissa_of_b >> 32, low_of_b = mantissa_of_b & 0xffffffffu;
    position += position_of_b;
    negative ^= negative_b;
    tl_add_shifted(products->limb, position, low * low_of_b, negative);
    tl_add_shifted(products->limb, position + 32, low * high_of_b, negative);
    tl_add_shifted(products->limb, position + 32, high * low_of_b, negative);
    tl_add_shifted(products->limb, position + 64, high * high_of_b, negative);
    count_terms(products->limb, TL_SQUARES_LIMBS, &products->uncarried, 1);
}

void tl_superacc_sq_add(tl_superacc_sq *squares, double term) { tl_superacc_sq_add_product(squares, term, term); }

/* Adds the bins to limbs that hold multiples of 2^-(1074 + offset). */
static void pour(const tl_bins *bins, const double *rounders, size_t count, int64_t *limb, int limbs, unsigned offset,
                 int64_t *uncarried) {
    if (bins->groups == 0)
        return;
    for (size_t k = 0; k < count; k++) {
        unsigned position;
        int negative;
        uint64_t units = 0;
        for (size_t i = 0; i < TL_BIN_LANES; i++)
            units += bins->bin[k][i];
        tl_split(rounders[k], &position, &negative); /* its last bit is the unit */
        negative = (int)(units >> 63);
        tl_add_shifted(limb, position + offset, negative ? 0 - units : units, negative);
    }
    count_terms(limb, limbs, uncarried, (int64_t)count);
}

static void pour_sum(tl_superacc *sum) {
    pour(&sum->bins, TL_SUM_ROUNDER, TL_SUM_BINS, sum->limb, TL_SUM_LIMBS, 0, &sum->uncarried);
    memset(&sum->bins, 0, sizeof sum->bins);
}

static void pour_squares(tl_superacc_sq *squares) {
    pour(&squares->bins, TL_SQUARE_ROUNDER, TL_SQUARE_BINS, squares->limb, TL_SQUARES_LIMBS, 1074, &squares->uncarried);
    memset(&squares->bins, 0, sizeof squares->bins);
}

/* What bins take, and the function of a backend that adds it to them. */
typedef struct {
    double below, above;
    size_t (*add)(const double *x, size_t groups, uint64_t (*bin)[TL_BIN_LANES]);
} bins_kind;

/* Replaces terms that do not fit by 0; their bits are set in what it returns. */
static uint64_t keep_fitting(const bins_kind *kind, double *terms) {
    uint64_t others = 0;
    for (size_t i = 0; i < TL_SUM_GROUP; i++) {
        double size = tl_abs(terms[i]);
        int fits = size == 0 || (size > kind->below && size < kind->above);
        terms[i] = fits ? terms[i] : 0;
        others |= (uint64_t)!fits << i;
    }
    return others;
}

/* Adds terms to bins that have room for a group. Returns how many were taken; those of the first 64 whose bits are set
 * in `others` were not added. */
static size_t add_to_bins(const bins_kind *kind, tl_bins *bins, const double *terms, size_t count, uint64_t *others) {
    size_t groups = count / TL_SUM_GROUP, room = TL_BIN_GROUPS - bins->groups, added = 0;
    *others = 0;
    if (groups > 0)
        added = kind->add(terms, groups < room ? groups : room, bins->bin);
    bins->groups += added;
    if (added > 0)
        return added * TL_SUM_GROUP;
    double group[TL_SUM_GROUP] = {0};
    count = groups > 0 ? TL_SUM_GROUP : count;
    memcpy(group, terms, count * sizeof *group);
    if (groups > 0 || !kind->add(group, 1, bins->bin)) {
        *others = keep_fitting(kind, group);
        kind->add(group, 1, bins->bin);
    }
    bins->groups++;
    return count;
}

void tl_superacc_add_many(const tl_backend *backend, tl_superacc *sum, const double *terms, size_t count) {
    const bins_kind kind = {TL_SUM_BELOW, TL_SUM_ABOVE, backend->add_exactly};
    for (size_t taken; count >= FEW_TERMS; terms += taken, count -= taken) {
        uint64_t others;
        if (sum->bins.groups == TL_BIN_GROUPS)
            pour_sum(sum);
        taken = add_to_bins(&kind, &sum->bins, terms, count, &others);
        for (; others != 0; others &= others - 1)
            tl_superacc_add(sum, terms[tl_lowest_bit(others)]);
    }
    for (size_t i = 0; i < count; i++)
        tl_superacc_add(sum, terms[i]);
}

void tl_superacc_sq_add_many(const tl_backend *backend, tl_superacc_sq *squares, const double *terms, size_t count) {
    const bins_kind kind = {TL_SQUARE_BELOW, TL_SQUARE_ABOVE, backend->add_squares_exactly};
    for (size_t taken; count >= FEW_TERMS; terms += taken, count -= taken) {
        uint64_t others;
        if (squares->bins.groups == TL_BIN_GROUPS)
            pour_squares(squares);
        taken = add_to_bins(&kind, &squares->bins, terms, count, &others);
        for (; others != 0; others &= others - 1)
            tl_superacc_sq_add(squares, terms[tl_lowest_bit(others)]);
    }
    for (size_t i = 0; i < count; i++)
        tl_superacc_sq_add(squares, terms[i]);
}

void tl_superacc_merge(tl_superacc *sum, const tl_superacc *other) {
    assert(sum->uncarried < TL_MAX_UNCARRIED + TL_SQUARE_BINS && other->uncarried < TL_MAX_UNCARRIED + TL_SQUARE_BINS);
    for (int i = 0; i < TL_SUM_LIMBS; i++)
        sum->limb[i] += other->limb[i];
    sum->special += other->special;
    count_terms(sum->limb, TL_SUM_LIMBS, &sum->uncarried, other->uncarried + 1); /* what has no carries is a term */
    pour(&other->bins, TL_SUM_ROUNDER, TL_SUM_BINS, sum->limb, TL_SUM_LIMBS, 0, &sum->uncarried);
}

void tl_superacc_sq_merge(tl_superacc_sq *squares, const tl_superacc_sq *other) {
    for (int i = 0; i < TL_SQUARES_LIMBS; i++)
        squares->limb[i] += other->limb[i];
    count_terms(squares->limb, TL_SQUARES_LIMBS, &squares->uncarried, other->uncarried + 1);
    pour(&other->bins, TL_SQUARE_ROUNDER, TL_SQUARE_BINS, squares->limb, TL_SQUARES_LIMBS, 1074,
         &squares->uncarried);
}

double tl_superacc_round(tl_superacc *sum) { return tl_superacc_round_scaled(sum, 0); }

double tl_superacc_round_scaled(tl_superacc *sum, int exponent) {
    if (sum->special != 0)
        return sum->special;
    pour_sum(sum);
    int64_t limb[TL_SUM_LIMBS];
    memcpy(limb, sum->limb, sizeof limb);
    tl_propagate_carries(limb, TL_SUM_LIMBS);
    int negative = limb[TL_SUM_LIMBS - 1] < 0;
    if (negative) {
        for (int i = 0; i < TL_SUM_LIMBS; i++)
            limb[i] = -limb[i];
        tl_propagate_carries(limb, TL_SUM_LIMBS);
    }
    assert(limb[TL_SUM_LIMBS - 1] >= 0);
    int top = TL_SUM_LIMBS - 1;
    while (top > 0 && limb[top] == 0)
        top--;
    if (top < 2) /* at most 64 bits, of which doubles fill the lowest 53: exact */
        return tl_scale((negative ? -1.0 : 1.0) * ((double)limb[1] * 0x1p32 + (double)limb[0]), exponent - 1074);
    /* the leading 64 bits, then whether anything follows them */
    uint64_t leading = (uint64_t)limb[top] << 32 | (uint64_t)limb[top - 1];
    uint64_t next = (uint64_t)limb[top - 2];
    int shift = 0;
    while (!(leading >> 63)) {
        leading = leading << 1 | (next >> 31 & 1);
        next = next << 1 & 0xffffffffu;
        shift++;
    }
    int sticky = next != 0;
    for (int i = top - 3; i >= 0 && !sticky; i--)
        sticky = limb[i] != 0;
    uint64_t mantissa = leading >> 11, half = leading & 0x7ff;
    if (half > 0x400 || (half == 0x400 && (sticky || (mantissa & 1))))
        mantissa++;
    double value = tl_scale((double)mantissa, 32 * (top - 1) - shift + 11 - 1074 + exponent);
    return negative ? -value : value;
}

static void write_bytes(int64_t *limbs, int count, unsigned char *bytes) {
    tl_propagate_carries(limbs, count);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 4; k++)
            bytes[4 * i + k] = (unsigned char)((uint64_t)limbs[i] >> (8 * k));
}

void tl_superacc_bytes(tl_superacc *sum, unsigned char *bytes) {
    pour_sum(sum);
    write_bytes(sum->limb, TL_SUM_LIMBS, bytes);
}

void tl_superacc_sq_bytes(tl_superacc_sq *squares, unsigned char *bytes) {
    pour_squares(squares);
    write_bytes(squares->limb, TL_SQUARES_LIMBS, bytes);
}
