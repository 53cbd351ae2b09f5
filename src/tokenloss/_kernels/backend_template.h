/* Every fold of one instruction set: included by fold_*.c after its simd_*.h, with BACKEND defined. */
#include <math.h>

#include "kernels.h"
#include "scalar_math.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

/* exp(r) = 1 + r p(r) for |r| <= 0.349, relative error 4.5e-9, and for |r| <= 0.347, 1.6e-17: minimax fits of our own,
 * with the coefficients rounded one after another. */
static const float f32_EXP[] = {0x1.6fed1ap-10f, 0x1.125b9cp-7f, 0x1.5552f4p-5f, 0x1.55546p-3f, 0.5f, 1.0f};
#define f32_LOG2E 0x1.715476p+0f
#define f32_LN2 0x1.62e43p-1f
#define f32_ROUNDER 0x1.8p23f
#define f32_BIAS 127
#define f32_HUGE 0x1.fffffep127f

static const double f64_EXP[] = {0x1.b2917e207fd11p-26,
                                 0x1.28b58c6bca6b0p-22,
                                 0x1.71dd35e50e48dp-19,
                                 0x1.a0199385c6e1bp-16,
                                 0x1.a01a015391e15p-13,
                                 0x1.6c16c1857d0c6p-10,
                                 0x1.111111114a96fp-7,
                                 0x1.5555555550841p-5,
                                 0x1.555555555538fp-3,
                                 0x1.0000000000009p-1,
                                 1.0};
#define f64_LOG2E 0x1.71547652b82fep+0
#define f64_LN2 0x1.62e42fefa39efp-1
#define f64_ROUNDER 0x1.8p52
#define f64_BIAS 1023
#define f64_HUGE TL_MIN_FMA_SAFE

/* Where a fold refers to, and what it has met. */
typedef struct {
    f32_vec lowest; /* where the power becomes 0 */
    f32_vec magic;  /* rounds to integers, and leaves the biased exponent of the power in the low bits */
    f32_vec center, threshold;
    f32_vec maximum[2], least;
    f32_bits reached[2];
    f32_bits seen[2]; /* all shifted arguments, one over another */
} f32_scale;

typedef struct {
    f64_vec lowest, magic, center, threshold, maximum[2], least;
    f64_bits reached[2], seen[2];
} f64_scale;

TL_TARGET TL_INLINE f32_scale f32_scale_of(int64_t exponent, double center, double threshold) {
    const f32_vec infinity = f32_set((float)INFINITY), none = f32_set(-(float)INFINITY);
    const f32_bits zero = f32_no_bits();
    f32_scale scale = {f32_set((float)((double)(exponent - f32_BIAS) * TL_LN2)),
                       f32_set(f32_ROUNDER + (float)(f32_BIAS - exponent)),
                       f32_set((float)center),
                       f32_set((float)threshold),
                       {none, none},
                       infinity,
                       {zero, zero},
                       {zero, zero}};
    return scale;
}

TL_TARGET TL_INLINE f64_scale f64_scale_of(int64_t exponent, double center, double threshold) {
    const f64_vec infinity = f64_set((double)INFINITY), none = f64_set(-(double)INFINITY);
    const f64_bits zero = f64_no_bits();
    f64_scale scale = {f64_set((double)((double)(exponent - f64_BIAS) * TL_LN2)),
                       f64_set(f64_ROUNDER + (double)(f64_BIAS - exponent)),
                       f64_set((double)center),
                       f64_set((double)threshold),
                       {none, none},
                       infinity,
                       {zero, zero},
                       {zero, zero}};
    return scale;
}

/* Whether a power of two would not fit its exponent: then some n + bias - exponent, which stands in the low bits of a
 * number of ulp 1, has more bits than that. */
TL_TARGET TL_INLINE int f32_beyond(const f32_scale *scale) {
    uint32_t bits[2 * f32_WIDTH], all = 0;
    memcpy(bits, scale->seen, sizeof bits);
    for (size_t j = 0; j < 2 * f32_WIDTH; j++)
        all |= bits[j];
    return all != 0 && (all & ~0xffu) != 0x4b400000u;
}

TL_TARGET TL_INLINE int f64_beyond(const f64_scale *scale) {
    uint64_t bits[2 * f64_WIDTH], all = 0;
    memcpy(bits, scale->seen, sizeof bits);
    for (size_t j = 0; j < 2 * f64_WIDTH; j++)
        all |= bits[j];
    return all != 0 && (all & ~(uint64_t)0x7ff) != 0x4338000000000000u;
}

TL_TARGET TL_INLINE int64_t f32_total_count(f32_bits counts) {
    uint32_t count[f32_WIDTH];
    int64_t total = 0;
    memcpy(count, &counts, sizeof count);
    for (size_t j = 0; j < f32_WIDTH; j++)
        total += count[j];
    return total;
}

TL_TARGET TL_INLINE int64_t f64_total_count(f64_bits counts) {
    uint64_t count[f64_WIDTH];
    int64_t total = 0;
    memcpy(count, &counts, sizeof count);
    for (size_t j = 0; j < f64_WIDTH; j++)
        total += (int64_t)count[j];
    return total;
}

TL_TARGET TL_INLINE void f32_store_bfloat16(uint16_t *p, f32_vec a) {
    uint32_t bits[f32_WIDTH];
    uint16_t rounded[f32_WIDTH];
    memcpy(bits, &a, sizeof bits);
    for (size_t j = 0; j < f32_WIDTH; j++) /* no nan comes here */
        rounded[j] = (uint16_t)((bits[j] + 0x7fff + (bits[j] >> 16 & 1)) >> 16);
    memcpy((void *)p, rounded, sizeof rounded); /* it may lie at any address */
}

TL_TARGET TL_INLINE void f32_stream_bfloat16(uint16_t *p, f32_vec a) {
    uint16_t rounded[f32_WIDTH];
    f32_store_bfloat16(rounded, a);
    half_stream(p, rounded);
}

TL_TARGET TL_INLINE void f32_stream_float16(uint16_t *p, f32_vec a) {
    uint16_t rounded[f32_WIDTH];
    f32_store_float16(rounded, a);
    half_stream(p, rounded);
}

TL_TARGET TL_INLINE void f64_accumulate(double *sum, double *error, f64_vec term) {
    f64_vec before = f64_load(sum), after = f64_add(before, term), other = f64_sub(after, before);
    f64_vec lost = f64_add(f64_sub(before, f64_sub(after, other)), f64_sub(term, other));
    f64_store(sum, after);
    f64_store(error, f64_add(f64_load(error), lost));
}

/* Adds to a sum, and what that loses to `lost`. */
TL_TARGET TL_INLINE void JOIN(add_, BACKEND)(double *sum, double *lost, double term) {
    double before = *sum, after = before + term, other = after - before;
    *sum = after;
    *lost += (before - (after - other)) + (term - other);
}

/* One lane of an accumulation. */
TL_TARGET TL_INLINE void f32_accumulate_one(double *sum, double *error, float term) {
    (void)error;
    *sum += (double)term;
}

TL_TARGET TL_INLINE void f64_accumulate_one(double *sum, double *error, double term) {
    JOIN(add_, BACKEND)(sum, error, term);
}

TL_TARGET static void JOIN(weigh_, BACKEND)(const double *share, const double *x, size_t count, double anchor,
                                            tl_dot_acc *dot) {
    for (size_t i = 0; i < count; i += 16)
        for (size_t j = 0; j < 16; j++) {
            double term = share[i + j] * (anchor - x[i + j]);
            term = tl_to_bits(share[i + j]) == 0 || anchor == x[i + j] ? 0 : term;
            JOIN(add_, BACKEND)(&dot->loss[j], &dot->loss_lost[j], term);
            JOIN(add_, BACKEND)(&dot->share[j], &dot->share_lost[j], share[i + j]);
        }
}

TL_TARGET static void JOIN(clipped_losses_, BACKEND)(double *p, size_t count, double lowest, double highest) {
    for (size_t i = 0; i < count; i++) {
        double low = p[i] < lowest ? lowest : p[i];
        p[i] = 0 - tl_log(low > highest ? highest : low);
    }
}

TL_TARGET static ptrdiff_t JOIN(skip_zeros_, BACKEND)(const char *data, ptrdiff_t start, ptrdiff_t end) {
    const ptrdiff_t width = (ptrdiff_t)sizeof(f64_vec), stretch = 512;
    for (; start + 64 <= end; start += 64) {
        uint64_t word[8];
        memcpy(word, data + start, 64);
        if ((word[0] | word[1] | word[2] | word[3]) | (word[4] | word[5] | word[6] | word[7]))
            return start;
        for (; start + 64 + stretch <= end; start += stretch) {
            const double *next = (const double *)(const void *)(data + start + 64);
            f64_bits seen = f64_no_bits();
            for (ptrdiff_t k = 0; k < stretch / 8; k += 2 * width / 8)
                seen = f64_either(seen, f64_load(next + k), f64_load(next + k + width / 8));
            for (ptrdiff_t k = 0; k < stretch; k += 64)
                tl_prefetch_stream(data + start + k);
            if (f64_any(seen))
                break;
        }
    }
    return start;
}

/* a b + c; of doubles rounded twice, for an emulated fused operation is not exact where products overflow. */
TL_TARGET TL_INLINE f32_vec f32_add_product(f32_vec a, f32_vec b, f32_vec c) { return f32_fma(a, b, c); }
TL_TARGET TL_INLINE f64_vec f64_add_product(f64_vec a, f64_vec b, f64_vec c) { return f64_add(f64_mul(a, b), c); }

/* Vectors that a row is multiplied with at once: as many as registers hold sums of. */
#define DOTS (f32_WIDTH == 16 ? 4 : 1)

#define REAL float
#define OP(f) f32_##f

#define DTYPE float16
#define ELEMENT uint16_t
#define LOAD(p) f32_load_float16(p)
#define STORE(p, a) f32_store_float16(p, a)
#define STREAM(p, a) f32_stream_float16(p, a)
#include "reduce_body.h"

#define DTYPE bfloat16
#define ELEMENT uint16_t
#define LOAD(p) f32_load_bfloat16(p)
#define STORE(p, a) f32_store_bfloat16(p, a)
#define STREAM(p, a) f32_stream_bfloat16(p, a)
#include "reduce_body.h"

#define DTYPE float32
#define ELEMENT float
#define LOAD(p) f32_load(p)
#define STORE(p, a) f32_store(p, a)
#define STREAM(p, a) f32_stream(p, a)
#include "reduce_body.h"

#undef REAL
#undef OP
#define REAL double
#define OP(f) f64_##f

#define DTYPE float64
#define ELEMENT double
#define LOAD(p) f64_load(p)
#define STORE(p, a) f64_store(p, a)
#define STREAM(p, a) f64_stream(p, a)
#include "reduce_body.h"

/* x becomes cap tanh(factor x / cap), or factor x where there is no cap.
 *
 * tanh(y) = e / (e + 2) with e = exp(2 y) - 1, which keeps its digits near 0: there, the power of two is 1. An infinity
 * becomes nan, as rows without a cap do for it. */
TL_TARGET static void JOIN(squash_, BACKEND)(double *x, size_t count, double factor, double cap) {
    const f64_scale scale = f64_scale_of(0, 0, 0);
    const f64_vec zero = f64_set(0), one = f64_set(1), two = f64_set(2), most = f64_set(40);
    const double largest = 0x1.fffffffffffffp1023, slope = cap > 0 ? factor / cap * 2 : factor;
    const f64_vec times = f64_set(slope < largest ? slope : largest), height = f64_set(cap);
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec value = f64_load(x + i), y = f64_mul(value, times);
        if (cap > 0) {
            f64_vec shifted, power, rest, bounded = f64_max(f64_set(-40), f64_min(most, y));
            f64_vec p = JOIN(exp_float64_, BACKEND)(bounded, &scale, &shifted, &power, &rest);
            f64_vec e = f64_fma(p, rest, f64_sub(power, one)), above = f64_max(zero, value);
            y = f64_add_product(height, f64_div(e, f64_add(e, two)), f64_sub(above, above));
        }
        f64_store(x + i, y);
    }
}

#define STRING_(name) #name
#define STRING(name) STRING_(name)
#define ALL_DTYPES(what) \
    {JOIN(what##float16_, BACKEND), JOIN(what##bfloat16_, BACKEND), JOIN(what##float32_, BACKEND), \
     JOIN(what##float64_, BACKEND)}

const tl_backend JOIN(tl_, BACKEND) = {
    STRING(BACKEND),
    {ALL_DTYPES(sum_), ALL_DTYPES(moment_), ALL_DTYPES(both_), ALL_DTYPES(maximum_), ALL_DTYPES(look_)},
    ALL_DTYPES(divergence_),
    ALL_DTYPES(collect_),
    ALL_DTYPES(exps_),
    ALL_DTYPES(less_),
    ALL_DTYPES(total_),
    ALL_DTYPES(widen_),
    ALL_DTYPES(convert_),
    ALL_DTYPES(dots_),
    JOIN(squash_, BACKEND),
    JOIN(weigh_, BACKEND),
    JOIN(clipped_losses_, BACKEND),
    JOIN(skip_zeros_, BACKEND),
};
