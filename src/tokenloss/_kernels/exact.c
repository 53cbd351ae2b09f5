#include "exact.h"

#include <assert.h>

#include "scalar_math.h"

void tl_settle(int64_t *digits, int count) {
    int64_t carry = 0;
    for (int i = 0; i < count; i++) {
        int64_t digit = digits[i] + carry;
        int64_t low = digit & 0xffffffff;
        carry = digit >> 32; /* arithmetic, as all compilers have it */
        digits[i] = low;
    }
    digits[count - 1] += carry * ((int64_t)1 << 32); /* the top digit keeps the sign */
}

void tl_squares_add(tl_squares *squares, double term) {
    if (TL_RARELY(!(term - term == 0)))
        return;
    unsigned position;
    int negative;
    uint64_t mantissa = tl_split(term, &position, &negative);
    uint64_t high = mantissa >> 32, low = mantissa & 0xffffffffu;
    tl_add_shifted(squares->digit, 2 * position, low * low, 0);
    tl_add_shifted(squares->digit, 2 * position + 33, high * low, 0);
    tl_add_shifted(squares->digit, 2 * position + 64, high * high, 0);
    if (TL_RARELY(++squares->pending == TL_PENDING_LIMIT)) {
        tl_settle(squares->digit, TL_SQUARES_DIGITS);
        squares->pending = 0;
    }
}

void tl_sum_merge(tl_sum *sum, const tl_sum *other) {
    assert(sum->pending < TL_PENDING_LIMIT && other->pending < TL_PENDING_LIMIT);
    for (int i = 0; i < TL_SUM_DIGITS; i++)
        sum->digit[i] += other->digit[i];
    sum->special += other->special;
    sum->pending += other->pending + 1; /* a settled digit counts as a term */
    if (sum->pending >= TL_PENDING_LIMIT) {
        tl_settle(sum->digit, TL_SUM_DIGITS);
        sum->pending = 0;
    }
}

double tl_sum_round(tl_sum *sum) { return tl_sum_scaled(sum, 0); }

double tl_sum_scaled(tl_sum *sum, int exponent) {
    if (sum->special != 0)
        return sum->special;
    int64_t digit[TL_SUM_DIGITS];
    memcpy(digit, sum->digit, sizeof digit);
    tl_settle(digit, TL_SUM_DIGITS);
    int negative = digit[TL_SUM_DIGITS - 1] < 0;
    if (negative) {
        for (int i = 0; i < TL_SUM_DIGITS; i++)
            digit[i] = -digit[i];
        tl_settle(digit, TL_SUM_DIGITS);
    }
    assert(digit[TL_SUM_DIGITS - 1] >= 0);
    int top = TL_SUM_DIGITS - 1;
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
    tl_settle(digits, count);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 4; k++)
            bytes[4 * i + k] = (unsigned char)((uint64_t)digits[i] >> (8 * k));
}

void tl_sum_bytes(tl_sum *sum, unsigned char *bytes) { write_bytes(sum->digit, TL_SUM_DIGITS, bytes); }

void tl_squares_bytes(tl_squares *squares, unsigned char *bytes) {
    write_bytes(squares->digit, TL_SQUARES_DIGITS, bytes);
}
