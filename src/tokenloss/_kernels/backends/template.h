/* All kernels of one instruction set: included by a .c file after its simd_*.h, with BACKEND defined. The contract of
 * each is in ../backend.h. */
#include <math.h>

#include "../backend.h"
#include "../scalar_math.h"

#include "vector_math.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#include "exact_sums.h"
#include "targets.h"
#include "distributions.h"
#include "losses.h"

/* Polynomials p with exp(r) = 1 + r p(r): relative error 4.5e-9 for |r| <= 0.349, and 1.6e-17 for |r| <= 0.347. Minimax
 * fits of our own, whose coefficients were rounded one after another. */
static const float f32_EXP[] = {0x1.6fed1ap-10f, 0x1.125b9cp-7f, 0x1.5552f4p-5f, 0x1.55546p-3f, 0.5f, 1.0f};
#define f32_LOG2E 0x1.715476p+0f
#define f32_LN2 0x1.62e43p-1f
#define f32_ROUNDER 0x1.8p23f
#define f32_BIAS 127
#define f32_OTHER_LIMIT 0x1.fffffep127f

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
#define f64_OTHER_LIMIT TL_MIN_FMA_SAFE

/* The lanes that a reduction adds to: an aligned copy on the stack. In the accumulator, whose address is up to the
 * caller, a vector might cross two pages, which takes up to 1.5 times as long. Callers need not align accumulators. */
typedef struct {
    _Alignas(64) double sum[16];
    _Alignas(64) double comp[16];
} tl_lanes;

TL_INLINE void f64_load_lanes(tl_lanes *lanes, const double *sum, const double *comp) {
    memcpy(lanes->sum, sum, sizeof lanes->sum);
    memcpy(lanes->comp, comp, sizeof lanes->comp);
}

TL_INLINE void f64_store_lanes(const tl_lanes *lanes, double *sum, double *comp) {
    memcpy(sum, lanes->sum, sizeof lanes->sum);
    memcpy(comp, lanes->comp, sizeof lanes->comp);
}

/* The sums of terms in float have no compensation: see f32_accumulate. */
TL_INLINE void f32_load_lanes(tl_lanes *lanes, const double *sum, const double *comp) {
    (void)comp;
    memcpy(lanes->sum, sum, sizeof lanes->sum);
}

TL_INLINE void f32_store_lanes(const tl_lanes *lanes, double *sum, double *comp) {
    (void)comp;
    memcpy(sum, lanes->sum, sizeof lanes->sum);
}

/* Constants and accumulators of a reduction, each a vector. */
typedef struct {
    f32_vec min_arg;     /* smaller arguments are raised to it: their power of two is 0 */
    f32_vec round_magic; /* rounds x / ln 2 to n, and leaves n - ref_exp + bias in the low bits */
    f32_vec shift, threshold;
    f32_vec maximum[2], min_other;
    f32_bits count_ge[2];
    f32_bits or_bits[2]; /* of all n_biased */
} f32_acc;

typedef struct {
    f64_vec min_arg, round_magic, shift, threshold, maximum[2], min_other;
    f64_bits count_ge[2], or_bits[2];
} f64_acc;

TL_TARGET TL_INLINE f32_acc f32_acc_init(int64_t exponent, double shift, double threshold) {
    const f32_vec infinity = f32_set((float)INFINITY), none = f32_set(-(float)INFINITY);
    const f32_bits zero = f32_no_bits();
    f32_acc acc = {f32_set((float)((double)(exponent - f32_BIAS) * TL_LN2)),
                   f32_set(f32_ROUNDER + (float)(f32_BIAS - exponent)),
                   f32_set((float)shift),
                   f32_set((float)threshold),
                   {none, none},
                   infinity,
                   {zero, zero},
                   {zero, zero}};
    return acc;
}

TL_TARGET TL_INLINE f64_acc f64_acc_init(int64_t exponent, double shift, double threshold) {
    const f64_vec infinity = f64_set((double)INFINITY), none = f64_set(-(double)INFINITY);
    const f64_bits zero = f64_no_bits();
    f64_acc acc = {f64_set((double)((double)(exponent - f64_BIAS) * TL_LN2)),
                   f64_set(f64_ROUNDER + (double)(f64_BIAS - exponent)),
                   f64_set((double)shift),
                   f64_set((double)threshold),
                   {none, none},
                   infinity,
                   {zero, zero},
                   {zero, zero}};
    return acc;
}

/* Whether a power of two did not fit in its exponent field: then some n - ref_exp + bias, in the low bits of a number
 * of ulp 1, had more bits than the field. */
TL_TARGET TL_INLINE int f32_exp_overflowed(const f32_acc *acc) {
    uint32_t bits[2 * f32_WIDTH], all = 0;
    memcpy(bits, acc->or_bits, sizeof bits);
    for (size_t j = 0; j < 2 * f32_WIDTH; j++)
        all |= bits[j];
    return all != 0 && (all & ~0xffu) != 0x4b400000u;
}

TL_TARGET TL_INLINE int f64_exp_overflowed(const f64_acc *acc) {
    uint64_t bits[2 * f64_WIDTH], all = 0;
    memcpy(bits, acc->or_bits, sizeof bits);
    for (size_t j = 0; j < 2 * f64_WIDTH; j++)
        all |= bits[j];
    return all != 0 && (all & ~(uint64_t)0x7ff) != 0x4338000000000000u;
}

TL_TARGET TL_INLINE int64_t f32_sum_counts(f32_bits counts) {
    uint32_t count[f32_WIDTH];
    int64_t total = 0;
    memcpy(count, &counts, sizeof count);
    for (size_t j = 0; j < f32_WIDTH; j++)
        total += count[j];
    return total;
}

TL_TARGET TL_INLINE int64_t f64_sum_counts(f64_bits counts) {
    uint64_t count[f64_WIDTH];
    int64_t total = 0;
    memcpy(count, &counts, sizeof count);
    for (size_t j = 0; j < f64_WIDTH; j++)
        total += (int64_t)count[j];
    return total;
}

TL_TARGET TL_INLINE void f32_store_counts(f32_bits counts, int64_t *to) {
    uint32_t count[f32_WIDTH];
    memcpy(count, &counts, sizeof count);
    for (size_t j = 0; j < f32_WIDTH; j++)
        to[j] = (int64_t)count[j];
}

TL_TARGET TL_INLINE void f64_store_counts(f64_bits counts, int64_t *to) { memcpy(to, &counts, sizeof counts); }

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

/* Adds a term to a sum, and its rounding error to `lost`. */
TL_TARGET TL_INLINE void JOIN(two_sum_, BACKEND)(double *sum, double *lost, double term) {
    double before = *sum, after = before + term, other = after - before;
    *sum = after;
    *lost += (before - (after - other)) + (term - other);
}

/* A single lane of `accumulate`. */
TL_TARGET TL_INLINE void f32_accumulate_one(double *sum, double *error, float term) {
    (void)error;
    *sum += (double)term;
}

TL_TARGET TL_INLINE void f64_accumulate_one(double *sum, double *error, double term) {
    JOIN(two_sum_, BACKEND)(sum, error, term);
}

TL_TARGET static void JOIN(target_dot_, BACKEND)(const double *mass, const double *x, size_t count, double shift,
                                                 tl_dot_acc *dot) {
    for (size_t i = 0; i < count; i += 16)
        for (size_t j = 0; j < 16; j++) {
            double term = mass[i + j] * (shift - x[i + j]);
            term = tl_to_bits(mass[i + j]) == 0 || shift == x[i + j] ? 0 : term;
            JOIN(two_sum_, BACKEND)(&dot->dot[j], &dot->dot_comp[j], term);
            JOIN(two_sum_, BACKEND)(&dot->mass[j], &dot->mass_comp[j], mass[i + j]);
        }
}

TL_TARGET static ptrdiff_t JOIN(skip_zeros_, BACKEND)(const char *data, ptrdiff_t start, ptrdiff_t end) {
    const ptrdiff_t width = (ptrdiff_t)sizeof(f64_vec), run = 512;
    for (; start + 64 <= end; start += 64) {
        uint64_t word[8];
        memcpy(word, data + start, 64);
        if ((word[0] | word[1] | word[2] | word[3]) | (word[4] | word[5] | word[6] | word[7]))
            return start;
        for (; start + 64 + run <= end; start += run) {
            const double *next = (const double *)(const void *)(data + start + 64);
            f64_bits seen = f64_no_bits();
            for (ptrdiff_t k = 0; k < run / 8; k += 2 * width / 8)
                seen = f64_or_bits(seen, f64_load(next + k), f64_load(next + k + width / 8));
            for (ptrdiff_t k = 0; k < run; k += 64)
                tl_prefetch_stream(data + start + k);
            if (f64_any_bits(seen))
                break;
        }
    }
    return start;
}

TL_TARGET TL_INLINE void f64_widen(f64_vec a, f64_vec *wide) { *wide = a; }
TL_TARGET TL_INLINE f64_vec f64_narrow(const f64_vec *wide) { return *wide; }

/* a b + c; of doubles rounded twice, for an emulated fused operation is not exact where products overflow. */
TL_TARGET TL_INLINE f32_vec f32_mul_add(f32_vec a, f32_vec b, f32_vec c) { return f32_fma(a, b, c); }
TL_TARGET TL_INLINE f64_vec f64_mul_add(f64_vec a, f64_vec b, f64_vec c) { return f64_add(f64_mul(a, b), c); }

/* Vectors that a row is multiplied with in one pass: as many as there are registers for. */
#define DOT_VECTORS (f32_WIDTH == 16 ? 4 : 1)

#define REAL float
#define OP(f) f32_##f
#include "interleave_body.h"

#define DTYPE float16
#define ELEMENT uint16_t
#define LOAD(p) f32_load_float16(p)
#define STORE(p, a) f32_store_float16(p, a)
#define STREAM(p, a) f32_stream_float16(p, a)
#include "dtype_body.h"

#define DTYPE bfloat16
#define ELEMENT uint16_t
#define LOAD(p) f32_load_bfloat16(p)
#define STORE(p, a) f32_store_bfloat16(p, a)
#define STREAM(p, a) f32_stream_bfloat16(p, a)
#include "dtype_body.h"

#define DTYPE float32
#define ELEMENT float
#define LOAD(p) f32_load(p)
#define STORE(p, a) f32_store(p, a)
#define STREAM(p, a) f32_stream(p, a)
#include "dtype_body.h"

#define DTYPE float32
#include "short_rows_body.h"

#undef REAL
#undef OP
#define REAL double
#define OP(f) f64_##f
#include "interleave_body.h"

#define DTYPE float64
#define ELEMENT double
#define LOAD(p) f64_load(p)
#define STORE(p, a) f64_store(p, a)
#define STREAM(p, a) f64_stream(p, a)
#include "dtype_body.h"

#define DTYPE float64
#include "short_rows_body.h"

/* logsumexp of the sums of short rows. */
TL_TARGET static void JOIN(lse_logs_, BACKEND)(const double *sum, const double *ref_exp, size_t count, double ln2,
                                               double *log) {
    for (size_t i = 0; i < count; i += f64_WIDTH)
        f64_store(log + i, f64_add(f64_mul(f64_load(ref_exp + i), f64_set(ln2)), f64_log(f64_load(sum + i), 0)));
}

TL_TARGET static void JOIN(log_odds_, BACKEND)(const double *offset, const double *log, const double *logit,
                                               size_t count, tl_odds *odds) {
    const f64_vec zero = f64_set(0), nan = f64_set((double)NAN), infinity = f64_set((double)INFINITY);
    f64_vec d[TL_BLOCK_ROWS / f64_WIDTH], likelier[TL_BLOCK_ROWS / f64_WIDTH];
    const size_t vectors = count / f64_WIDTH;
    for (size_t i = 0; i < vectors; i++) { /* two loops, so that several chains of operations run at a time */
        f64_vec x = f64_load(logit + i * f64_WIDTH), at = f64_load(offset + i * f64_WIDTH);
        d[i] = f64_add(f64_sub(at, x), f64_load(log + i * f64_WIDTH));
        d[i] = f64_if_less(x, infinity, d[i], nan);
        likelier[i] = f64_exp(f64_with_bits(d[i], (uint64_t)1 << 63));
    }
    for (size_t i = 0; i < vectors; i++) {
        f64_vec l = f64_log1p_unit(likelier[i]);
        f64_store(odds->log_odds + i * f64_WIDTH, d[i]);
        f64_store(odds->nll + i * f64_WIDTH, f64_if_less(zero, d[i], f64_add(d[i], l), l));
        f64_store(odds->others_nll + i * f64_WIDTH, f64_if_less(d[i], zero, f64_sub(l, d[i]), l));
    }
}

/* As factor_of in elementwise.c. */
TL_TARGET static void JOIN(softmax_factors_, BACKEND)(const double *logsumexp, size_t count, int dtype,
                                                      double *exponent, double *factor) {
    const f64_vec ln2 = f64_set(dtype == TL_FLOAT64 ? TL_LN2 : 0x1.62e43p-1), zero = f64_set(0);
    const f64_vec headroom = f64_set(dtype == TL_FLOAT64 ? 60 : 24);
    const f64_vec scale = f64_set(dtype == TL_FLOAT64 ? 0x1p-60 : 0x1p-24);
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec lse = f64_load(logsumexp + i), log2 = f64_mul(lse, f64_set(TL_LOG2E));
        f64_vec n = f64_trunc(f64_add(log2, f64_if_less(log2, zero, f64_set(-0.5), f64_set(0.5))));
        f64_vec exp = f64_exp(f64_sub(f64_mul(n, ln2), lse));
        f64_store(exponent + i, f64_sub(n, headroom));
        f64_store(factor + i, f64_mul(f64_load(factor + i), f64_mul(exp, scale)));
    }
}

/* As entropy_of in token_stats.c. */
TL_TARGET static void JOIN(entropies_, BACKEND)(const tl_odds *odds, const double *log, const double *sum,
                                                const tl_short_moments *moments, size_t count, double *entropy) {
    const f64_vec zero = f64_set(0), one = f64_set(1);
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec against = f64_exp(f64_load(odds->log_odds + i)), both = f64_add(one, against), p = f64_div(one, both);
        f64_vec p_others = f64_if_less(f64_set(0x1p1000), against, one, f64_div(against, both));
        f64_vec mean = f64_div(f64_load(moments->sum + i), f64_load(sum + i));
        f64_vec of_others = f64_sub(f64_sub(f64_load(log + i), f64_load(moments->shift + i)), mean);
        of_others = f64_add(f64_if_less(zero, of_others, of_others, zero), f64_load(odds->others_nll + i));
        of_others = f64_if_less(zero, p_others, f64_mul(p_others, of_others), zero);
        f64_vec of_target = f64_if_less(zero, p, f64_mul(p, f64_load(odds->nll + i)), zero);
        f64_store(entropy + i, f64_add(of_others, of_target));
    }
}

TL_TARGET static void JOIN(exps_, BACKEND)(double *x, size_t count) {
    for (size_t i = 0; i < count; i += f64_WIDTH)
        f64_store(x + i, f64_exp(f64_load(x + i)));
}

/* x = softcap tanh(scale x / softcap), or scale x if the softcap is 0.
 *
 * tanh(y) = e / (e + 2) with e = exp(2 y) - 1, which keeps its digits near 0: there, the power of two is 1. An infinity
 * becomes nan, as rows without a softcap do for it. */
TL_TARGET static void JOIN(softcap_, BACKEND)(double *x, size_t count, double factor, double cap) {
    const f64_acc acc = f64_acc_init(0, 0, 0);
    const f64_vec zero = f64_set(0), one = f64_set(1), two = f64_set(2), most = f64_set(40);
    const double largest = 0x1.fffffffffffffp1023, slope = cap > 0 ? factor / cap * 2 : factor;
    const f64_vec times = f64_set(slope < largest ? slope : largest), height = f64_set(cap);
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec value = f64_load(x + i), y = f64_mul(value, times);
        if (cap > 0) {
            f64_vec n_biased, pow2, r_pow2, bounded = f64_max_keep_nan(f64_set(-40), f64_min(most, y));
            f64_vec p = JOIN(exp_float64_, BACKEND)(bounded, &acc, &n_biased, &pow2, &r_pow2);
            f64_vec e = f64_fma(p, r_pow2, f64_sub(pow2, one)), above = f64_max_keep_nan(zero, value);
            y = f64_mul_add(height, f64_div(e, f64_add(e, two)), f64_sub(above, above));
        }
        f64_store(x + i, y);
    }
}

#define STRING_(name) #name
#define STRING(name) STRING_(name)
#define ALL_DTYPES(name) \
    {[TL_FLOAT16] = JOIN(name##float16_, BACKEND), \
     [TL_BFLOAT16] = JOIN(name##bfloat16_, BACKEND), \
     [TL_FLOAT32] = JOIN(name##float32_, BACKEND), \
     [TL_FLOAT64] = JOIN(name##float64_, BACKEND)}

#define COMPUTE_DTYPES(name) \
    {[TL_FLOAT32] = JOIN(name##float32_, BACKEND), [TL_FLOAT64] = JOIN(name##float64_, BACKEND)}

const tl_backend JOIN(tl_, BACKEND) = {
    .name = STRING(BACKEND),
    .reduce =
        {
            [TL_REDUCE_SUMEXP] = ALL_DTYPES(sumexp_),
            [TL_REDUCE_MOMENT] = ALL_DTYPES(moment_),
            [TL_REDUCE_MOMENT_AND_ALL] = ALL_DTYPES(moment_and_all_),
            [TL_REDUCE_MAX] = ALL_DTYPES(max_),
            [TL_REDUCE_MAX_COUNT] = ALL_DTYPES(max_count_),
        },
    .kl = ALL_DTYPES(kl_),
    .indices_ge = ALL_DTYPES(indices_ge_),
    .exp_scaled = ALL_DTYPES(exp_scaled_),
    .sub_scalar = ALL_DTYPES(sub_scalar_),
    .sum = ALL_DTYPES(sum_),
    .to_f64 = ALL_DTYPES(to_f64_),
    .to_compute = ALL_DTYPES(to_compute_),
    .dot_rows = ALL_DTYPES(dot_rows_),
    .softcap = JOIN(softcap_, BACKEND),
    .target_dot = JOIN(target_dot_, BACKEND),
    .add_exactly = JOIN(add_exactly_, BACKEND),
    .add_squares_exactly = JOIN(add_squares_exactly_, BACKEND),
    .mask_targets = JOIN(mask_targets_, BACKEND),
    .clipped_losses = JOIN(clipped_losses_, BACKEND),
    .nonzeros = JOIN(nonzeros_, BACKEND),
    .ignore_where_zero = JOIN(ignore_where_zero_, BACKEND),
    .add_rows = JOIN(add_rows_, BACKEND),
    .skip_zeros = JOIN(skip_zeros_, BACKEND),
    .interleave = ALL_DTYPES(interleave_),
    .deinterleave = ALL_DTYPES(deinterleave_),
    .interleave_planes = ALL_DTYPES(interleave_planes_),
    .deinterleave_planes = ALL_DTYPES(deinterleave_planes_),
    .short_sumexp = COMPUTE_DTYPES(short_sumexp_),
    .short_moments = COMPUTE_DTYPES(short_moments_),
    .short_ranks = COMPUTE_DTYPES(short_ranks_),
    .short_exp = COMPUTE_DTYPES(short_exp_),
    .short_sub = COMPUTE_DTYPES(short_sub_),
    .short_sum = COMPUTE_DTYPES(short_sum_),
    .lse_logs = JOIN(lse_logs_, BACKEND),
    .log_odds = JOIN(log_odds_, BACKEND),
    .entropies = JOIN(entropies_, BACKEND),
    .exps = JOIN(exps_, BACKEND),
    .softmax_factors = JOIN(softmax_factors_, BACKEND),
};
