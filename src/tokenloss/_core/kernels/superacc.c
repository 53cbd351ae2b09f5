#include "superacc.h"

#include "scalar_math.h"

#define FEW_TERMS 8 /* fewer are added one by one: a group of zeros for the rest would take longer */

_Static_assert(TL_SUM_GROUP == 64, "one bit for each term of a group");

static void propagate_carries(int64_t *limbs, int count) {
    int64_t carry = 0;
    for (int i = 0; i < count; i++) {
        int64_t limb = limbs[i] + carry;
        int64_t low = limb & 0xffffffff;
        carry = limb >> 32; /* arithmetic, as all compilers have it */
        limbs[i] = low;
    }
    limbs[count - 1] += carry * ((int64_t)1 << 32); /* the top limb keeps the sign */
}

/* What bins take, their units as rounders, and the limbs that they are poured into: multiples of 2^-(1074 + offset). */
static const struct {
    double below, above;
    const double *rounders;
    size_t bins;
    unsigned offset;
    int limbs;
} kinds[] = {{TL_SUM_BELOW, TL_SUM_ABOVE, TL_SUM_ROUNDER, TL_SUM_BINS, 0, TL_SUM_LIMBS},
             {TL_SQUARE_BELOW, TL_SQUARE_ABOVE, TL_SQUARE_ROUNDER, TL_SQUARE_BINS, 1074, TL_SQUARES_LIMBS}};

/* Counts terms that were added to limbs, and propagates the carries when it is time. */
static void count_terms(tl_sum_kind kind, tl_superacc *sum, int64_t terms) {
    sum->uncarried += terms;
    if (TL_UNLIKELY(sum->uncarried >= TL_MAX_UNCARRIED)) {
        propagate_carries(sum->limb, kinds[kind].limbs);
        sum->uncarried = 0;
    }
}

void tl_superacc_add(tl_superacc *sum, double term) {
    unsigned position;
    int negative;
    if (TL_UNLIKELY(!(term - term == 0))) {
        sum->special += term;
        return;
    }
    uint64_t mantissa = tl_split(term, &position, &negative);
    tl_add_shifted(sum->limb, position, mantissa, negative);
    count_terms(TL_SUM, sum, 1);
}

void tl_superacc_add_product(tl_superacc *products, double a, double b) {
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
    count_terms(TL_SQUARES, products, 1);
}

static void pour(tl_sum_kind kind, tl_superacc *sum, const tl_bins *bins) {
    for (size_t k = 0; k < kinds[kind].bins; k++) {
        unsigned position;
        int negative;
        uint64_t units = 0;
        for (size_t i = 0; i < TL_BIN_LANES; i++)
            units += bins->bin[k][i];
        tl_split(kinds[kind].rounders[k], &position, &negative); /* its last bit is the unit */
        negative = (int)(units >> 63);
        tl_add_shifted(sum->limb, position + kinds[kind].offset, negative ? 0 - units : units, negative);
        count_terms(kind, sum, 1);
    }
}

static void empty(tl_sum_kind kind, tl_superacc *sum, tl_bins *bins) {
    if (bins->groups == 0)
        return;
    pour(kind, sum, bins);
    memset(bins, 0, sizeof *bins);
}

/* Replaces terms that do not fit by 0; their bits are set in what it returns. */
static uint64_t keep_fitting(tl_sum_kind kind, double *terms) {
    uint64_t others = 0;
    for (size_t i = 0; i < TL_SUM_GROUP; i++) {
        double size = tl_abs(terms[i]);
        int fits = size == 0 || (size > kinds[kind].below && size < kinds[kind].above);
        terms[i] = fits ? terms[i] : 0;
        others |= (uint64_t)!fits << i;
    }
    return others;
}

/* Adds terms to bins that have room for a group. Returns how many were taken; those of the first 64 whose bits are set
 * in `others` were not added. */
static size_t add_to_bins(const tl_backend *backend, tl_sum_kind kind, tl_bins *bins, const double *terms, size_t count,
                          uint64_t *others) {
    size_t groups = count / TL_SUM_GROUP, room = TL_BIN_GROUPS - bins->groups, added = 0;
    *others = 0;
    if (groups > 0)
        added = backend->add_exactly(terms, groups < room ? groups : room, kind == TL_SQUARES, bins->bin);
    bins->groups += added;
    if (added > 0)
        return added * TL_SUM_GROUP;
    double group[TL_SUM_GROUP] = {0};
    count = groups > 0 ? TL_SUM_GROUP : count;
    memcpy(group, terms, count * sizeof *group);
    if (groups > 0 || !backend->add_exactly(group, 1, kind == TL_SQUARES, bins->bin)) {
        *others = keep_fitting(kind, group);
        backend->add_exactly(group, 1, kind == TL_SQUARES, bins->bin);
    }
    bins->groups++;
    return count;
}

void tl_superacc_add_many(const tl_backend *backend, tl_sum_kind kind, tl_superacc *sum, const double *terms,
                          size_t count) {
    for (size_t taken; count > 0; terms += taken, count -= taken) {
        uint64_t others = ~(~(uint64_t)0 << count % TL_SUM_GROUP);
        if (sum->bins.groups == TL_BIN_GROUPS)
            empty(kind, sum, &sum->bins);
        taken = count < FEW_TERMS ? count : add_to_bins(backend, kind, &sum->bins, terms, count, &others);
        for (; others != 0; others &= others - 1) {
            double term = terms[tl_lowest_bit(others)];
            if (kind == TL_SQUARES)
                tl_superacc_add_product(sum, term, term);
            else
                tl_superacc_add(sum, term);
        }
    }
}

void tl_superacc_pour(tl_superacc *sum, tl_bins *bins) { empty(TL_SUM, sum, bins); }

void tl_superacc_merge(tl_sum_kind kind, tl_superacc *sum, const tl_superacc *other) {
    assert(sum->uncarried < TL_MAX_UNCARRIED + TL_SQUARE_BINS && other->uncarried < TL_MAX_UNCARRIED + TL_SQUARE_BINS);
    for (int i = 0; i < kinds[kind].limbs; i++)
        sum->limb[i] += other->limb[i];
    sum->special += other->special;
    count_terms(kind, sum, other->uncarried + 1); /* what has no carries is a term */
    if (other->bins.groups > 0)
        pour(kind, sum, &other->bins);
}

double tl_superacc_round(tl_superacc *sum, int exponent) {
    if (sum->special != 0)
        return sum->special;
    empty(TL_SUM, sum, &sum->bins);
    propagate_carries(sum->limb, TL_SUM_LIMBS);
    int64_t opposite[TL_SUM_LIMBS], *limb = sum->limb;
    const int negative = limb[TL_SUM_LIMBS - 1] < 0;
    if (negative) {
        for (int i = 0; i < TL_SUM_LIMBS; i++)
            opposite[i] = -limb[i];
        limb = opposite;
        propagate_carries(limb, TL_SUM_LIMBS);
    }
    assert(limb[TL_SUM_LIMBS - 1] >= 0);
    int top = TL_SUM_LIMBS - 1;
    while (top > 0 && limb[top] == 0)
        top--;
    if (top < 2) /* at most 64 bits, the lowest 53 of which doubles fill: exact */
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

int tl_superacc_limbs(tl_sum_kind kind, tl_superacc *sum, unsigned char *bytes) {
    empty(kind, sum, &sum->bins);
    propagate_carries(sum->limb, kinds[kind].limbs);
    for (int i = 0; i < kinds[kind].limbs; i++)
        for (int k = 0; k < 4; k++)
            bytes[4 * i + k] = (unsigned char)((uint64_t)sum->limb[i] >> (8 * k));
    return kinds[kind].limbs;
}
