#include "superacc.h"

#include <assert.h>

#include "scalar_math.h"

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

void tl_superacc_sq_add(tl_superacc_sq *squares, double term) {
    if (TL_UNLIKELY(!(term - term == 0)))
        return;
    unsigned position;
    int negative;
    uint64_t mantissa = tl_split(term, &position, &negative);
    uint64_t high = mantissa >> 32, low = mantissa & 0xffffffffu;
    tl_add_shifted(squares->limb, 2 * position, low * low, 0);
    tl_add_shifted(squares->limb, 2 * position + 33, high * low, 0);
    tl_add_shifted(squares->limb, 2 * position + 64, high * high, 0);
    if (TL_UNLIKELY(++squares->uncarried == TL_MAX_UNCARRIED)) {
        tl_propagate_carries(squares->limb, TL_SQUARES_LIMBS);
        squares->uncarried = 0;
    }
}

void tl_superacc_merge(tl_superacc *sum, const tl_superacc *other) {
    assert(sum->uncarried < TL_MAX_UNCARRIED && other->uncarried < TL_MAX_UNCARRIED);
    for (int i = 0; i < TL_SUM_LIMBS; i++)
        sum->limb[i] += other->limb[i];
    sum->special += other->special;
    sum->uncarried += other->uncarried + 1; /* a limb without carries counts as a term */
    if (sum->uncarried >= TL_MAX_UNCARRIED) {
        tl_propagate_carries(sum->limb, TL_SUM_LIMBS);
        sum->uncarried = 0;
    }
}

double tl_superacc_round(tl_superacc *sum) { return tl_superacc_round_scaled(sum, 0); }

double tl_superacc_round_scaled(tl_superacc *sum, int exponent) {
    if (sum->special != 0)
        return sum->special;
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

void tl_superacc_bytes(tl_superacc *sum, unsigned char *bytes) { write_bytes(sum->limb, TL_SUM_LIMBS, bytes); }

void tl_superacc_sq_bytes(tl_superacc_sq *squares, unsigned char *bytes) {
    write_bytes(squares->limb, TL_SQUARES_LIMBS, bytes);
}
