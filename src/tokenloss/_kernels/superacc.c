#include "superacc.h"

#include <assert.h>

#include "scalar_math.h"

void tl_propagate_carries(int64_t *digits, int count) {
    int64_t carry = 0;
    for (int i = 0; i < count; i++) {
        int64_t digit = digits[i] + carry;
        int64_t low = digit & 0xffffffff;
        carry = digit >> 32; /* arithmetic, as all compilers have it */
        digits[i] = low;
    }
    digits[count - 1] += carry * ((int64_t)1 << 32); /* the top digit keeps the sign */
}

void tl_superacc_sq_add(tl_superacc_sq *squares, double term) {
    if (TL_UNLIKELY(!(term - term == 0)))
        return;
    unsigned position;
    int negative;
    uint64_t mantissa = tl_split(term, &position, &negative);
    uint64_t high = mantissa >> 32, low = mantissa & 0xffffffffu;
    tl_add_shifted(squares->digit, 2 * position, low * low, 0);
    tl_add_shifted(squares->digit, 2 * position + 33, high * low, 0);
    tl_add_shifted(squares->digit, 2 * position + 64, high * high, 0);
    if (TL_UNLIKELY(++squares->pending == TL_MAX_UNCARRIED)) {
        tl_propagate_carries(squares->digit, TL_SQUARES_LIMBS);
        squares->pending = 0;
    }
}

void tl_superacc_merge(tl_superacc *sum, const tl_superacc *other) {
    assert(sum->pending < TL_MAX_UNCARRIED && other->pending < TL_MAX_UNCARRIED);
    for (int i = 0; i < TL_SUM_LIMBS; i++)
        sum->digit[i] += other->digit[i];
    sum->special += other->special;
    sum->pending += other->pending + 1; /* a settled digit counts as a term */
    if (sum->pending >= TL_MAX_UNCARRIED) {
        tl_propagate_carries(sum->digit, TL_SUM_LIMBS);
        sum->pending = 0;
    }
}

double tl_superacc_round(tl_superacc *sum) { return tl_superacc_round_scaled(sum, 0); }

double tl_superacc_round_scaled(tl_superacc *sum, int exponent) {
    if (sum->special != 0)
        return sum->special;
    int64_t digit[TL_SUM_LIMBS];
    memcpy(digit, sum->digit, sizeof digit);
    tl_propagate_carries(digit, TL_SUM_LIMBS);
    int negative = digit[TL_SUM_LIMBS - 1] < 0;
    if (negative) {
        for (int i = 0; i < TL_SUM_LIMBS; i++)
            digit[i] = -digit[i];
        tl_propagate_carries(digit, TL_SUM_LIMBS);
    }
    assert(digit[TL_SUM_LIMBS - 1] >= 0);
    int top = TL_SUM_LIMBS - 1;
    while (top > 0 && digit[top] == 0)
        top--;
    if (top < 2) /* at most 64 bits, of which doubles fill the lowest 53: exact */
        return tl_scale((negative ? -1.0 : 1.0) * ((double)digit[1] * 0x1p32 + (double)digit[0]), exponent - 1074);
    /* the leading 64 bits, then whether anything follows them */
    uint64_t leading = (uint64_t)digit[top] << 32 | (uint64_t)digit[top - 1];
    uint64_t next = (uint64_t)digit[top - 2];
    int shift = 0;
    while (!(leading >> 63)) {
        leading = leading << 1 | (next >> 31 & 1);
        next = next << 1 & 0xffffffffu;
        shift++;
    }
    int rest = next != 0;
    for (int i = top - 3; i >= 0 && !rest; i--)
        rest = digit[i] != 0;
    uint64_t mantissa = leading >> 11, half = leading & 0x7ff;
    if (half > 0x400 || (half == 0x400 && (rest || (mantissa & 1))))
        mantissa++;
    double value = tl_scale((double)mantissa, 32 * (top - 1) - shift + 11 - 1074 + exponent);
    return negative ? -value : value;
}

static void write_bytes(int64_t *digits, int count, unsigned char *bytes) {
    tl_propagate_carries(digits, count);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 4; k++)
            bytes[4 * i + k] = (unsigned char)((uint64_t)digits[i] >> (8 * k));
}

void tl_superacc_bytes(tl_superacc *sum, unsigned char *bytes) { write_bytes(sum->digit, TL_SUM_LIMBS, bytes); }

void tl_superacc_sq_bytes(tl_superacc_sq *squares, unsigned char *bytes) {
    write_bytes(squares->digit, TL_SQUARES_LIMBS, bytes);
}
