/* All kernels of an instruction set; contracts are in ../backend.h. Included after simd_*.h, with BACKEND defined. */
#include "../backend.h"
#include "../loss.h"
#include "../scalar_math.h"

#include "vector_math.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#include "exact_sums.h"
#include "targets.h"
#include "distributions.h"

/* exp(x) = 2^(k / 8) exp(r), where k is the integer nearest to 8 x / ln 2, so |r| <= 0.0442. Entry j of a table has the
 * bits of 2^(j / 8) times the least power, 2^-126 in float and 2^-1022 in double, less j << 20 (double: j << 49), which
 * the low three bits of k add again. exp(r) = 1 + r LEADING q(r), where q is a polynomial whose leading coefficient is
 * 1, so that its first step is an addition; LEADING is multiplied with the sum of many terms.
 *
 * float: q is of degree 2, and exp(r) is wrong by 2.7e-8 at most. The powers are multiplied by 1.53826..., which makes
 * all of them floats but for 3.1e-9; TL_FLOAT_TERM_BIAS undoes it. double: the errors are 4.9e-18 and 7e-17. The fits
 * are our own: the first is minimax, the second interpolates at Chebyshev nodes. */
static const uint32_t f32_POWERS[12] = {0x00c4e5be, 0x00c6b7da, 0x00ca26de, 0x00cf5829, 0x00cb3a3e, 0x00c7d424,
                                        0x00c59202, 0x00c48e45, 0x00c4e5be, 0x00c6b7da, 0x00ca26de, 0x00cf5829};
static const float f32_Q[] = {0x1.801cc2p+1f, 0x1.800f8p+2f};
static const float f32_WHOLE[] = {0x1.55479p-3f, 0x1.0008d8p-1f, 1}; /* LEADING times Q */
#define f32_LEADING 0x1.55479p-3f
#define f32_EIGHTHS 0x1.715476p+3f /* 8 / ln 2 */
#define f32_LN2 ((float)TL_FLOAT_LN2)
#define f32_ROUNDER 0x1.8p23f
#define f32_LEAST_EXPONENT (-126)
#define f32_K_MASK 0x7ff
#define f32_NEAR_K 0x3ff
#define f32_KEPT_BITS TL_FLOAT_KEPT_BITS
#define f32_OTHER_LIMIT 0x1.fffffep127f
#define f32_REACH 87
#define f32_LEAST_ODDS 0x1p-80f
#define f32_MOST_ODDS 0x1p115f
#define f32_TERMS 4
/* UNIT + UNIT_LOW is the reciprocal of the table's factor 1.538..., times 1 - 1.6e-8, which removes a mean error */
#define f32_UNIT 0x1.4cd7e6p-1f
#define f32_UNIT_LOW (-0x1.5ba98p-26f)
static const float f32_EXP[] = {1 / 24.0f, 1 / 6.0f, 0.5f, 1};
#define f32_LOWEST (-0x1.fffffep127f) /* the lowest finite number */
#define f32_SUMS 2 /* of four powers each: a third addition in float would cost too many digits */

static const uint64_t f64_POWERS[8] = {0x10000000000000, 0x0f72b83c7d517b, 0x0f06fe0a31b715, 0x0ebfdad5362a27,
                                       0x0ea09e667f3bcd, 0x0eace5422aa0db, 0x0ee89f995ad3ad, 0x0f5818dcfba487};
static const double f64_Q[] = {0x1.c0017f2731fb3p+2, 0x1.4ffc1238d66ddp+5,  0x1.a3fb16c1496aap+7,
                               0x1.a3fb16ce3f4eap+9, 0x1.3afc511aaf835p+11, 0x1.3afc511aaf76dp+12};
static const double f64_WHOLE[] = {0x1.a01edf351ab43p-13, 0x1.6c1c3ab56a4f0p-10, 0x1.1111110c629b8p-7,
                                   0x1.5555554accc88p-5,  0x1.555555555559dp-3,  0x1.00000000000a3p-1, 1};
#define f64_LEADING 0x1.a01edf351ab43p-13
#define f64_EIGHTHS 0x1.71547652b82fep+3
#define f64_LN2 TL_LN2
#define f64_ROUNDER 0x1.8p52
#define f64_LEAST_EXPONENT (-1022)
#define f64_K_MASK 0x3fff
#define f64_NEAR_K 0x1fff
#define f64_KEPT_BITS TL_DOUBLE_KEPT_BITS
#define f64_OTHER_LIMIT TL_MIN_FMA_SAFE
#define f64_LOWEST (-0x1.fffffffffffffp1023)
#define f64_SUMS 1
#define f64_REACH 700
#define f64_LEAST_ODDS 0x1p-900
#define f64_MOST_ODDS 0x1p900
#define f64_TERMS 8
#define f64_UNIT 1.0
#define f64_UNIT_LOW 0.0
static const double f64_EXP[] = {1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0, 1 / 720.0,
                                 1 / 120.0,     1 / 24.0,     1 / 6.0,     0.5,        1};

#include "divergence_fits.h"

/* Inside of the kernels, terms are 2^HEADROOM times as large, so that those far below the maximum are still in range.
 * Moments and sums up to SUM_OVERFLOW (logsumexp.c) must be, too. */
#define f32_HEADROOM 80
#define f64_HEADROOM 0
#define f32_SCALE 0x1p80
#define f32_UNSCALE 0x1p-80
#define f64_SCALE 1
#define f64_UNSCALE 1

/* Where arguments are clamped, the least one is this many eighths of an octave below the least power: the bits of its
 * power are a negative integer, which becomes 0. k is larger by GUARD then, and so not negative. */
#define CLAMPED_EIGHTHS 14
#define GUARD 16

/* k is larger by this where arguments are not clamped. Then the last powers whose k still has no more bits than the
 * field and an eighth are nan or infinite, and so are the first ones that are too small: none looks like another. */
#define f32_GUARD 16
#define f64_GUARD 8
/* k is larger by this in losses of rows of many classes, and the table begins with the entry for that k. So entries of
 * float have no bits from 2^20 on: an or joins them with the bits of k as well as an addition does. */
#define f32_ROW_GUARD 12
#define f64_ROW_GUARD 16

/* Makes gcc compute two vectors where this is. It would add terms where their sum is used, and keep all of them in
 * memory until then: with AVX2, losses would take 9 % longer. */
#if defined(__GNUC__) && !defined(__clang__) && f32_WIDTH >= 8
#define COMPUTE_NOW(a, b) __asm__("" : "+v"(a), "+v"(b))
/* Has it mix the instructions of vectors that a loop works on together, which no processor looks far enough ahead for:
 * losses of 2 classes take 0.75 of the time; with AVX2, only as far as there are registers. */
#if f32_WIDTH == 8
#define SCHEDULED __attribute__((optimize("schedule-insns", "sched-pressure")))
#else
#define SCHEDULED __attribute__((optimize("schedule-insns")))
#endif
#define UNROLLED _Pragma("GCC unroll 4")
#else
#define SCHEDULED
#define UNROLLED
#define COMPUTE_NOW(a, b) (void)0
#endif

/* Vectors of rows that are worked on together, of few classes or of 2; measured on Zen 4. */
#define TOGETHER (f32_WIDTH >= 8 ? 2 : 1)
#define MOST_TOGETHER (f32_WIDTH >= 16 ? 4 : f32_WIDTH >= 8 ? 2 : 1)

/* What a reduction adds up. SUMEXP: sum of e^x. MOMENT: also sum of e^x (x - shift), max x and #{x >= threshold}.
 * KL: also sum of e^x ((x - shift) - (y - shift_y)), max x, and the largest x whose y is -inf,
 * where y are the logits of the other row and shift_y takes the place of the threshold. */
enum tl_mode { SUMEXP, MOMENT, KL };

/* What is written of a row: exponentials that were kept, times a number; elements less a number; exponentials. */
enum tl_row_map { SCALE, SUBTRACT, EXPONENTIATE };

/* What is added up over the classes of rows in lanes: logits; or mass (shift - logit), with one mass for each class, or
 * for each class and row. In float, only sums of logits are compensated. */
enum tl_terms { LOGITS, DOTS, DOTS_OF_ROWS, DOTS_OF_DOUBLES };

/* mass (shift - x), 0 where the mass is 0. */
TL_TARGET TL_INLINE f64_vec f64_mass_term(f64_vec mass, f64_vec x, f64_vec shift) {
    return f64_if_equal(mass, f64_set(0), f64_set(0), f64_mul(mass, f64_sub(shift, x)));
}

/* An effective mass, as tl_soft_target_at: -0.0 of a class whose weight is 0. */
TL_TARGET TL_INLINE f64_vec f64_effective_mass(f64_vec mass, double share, double each, f64_vec weight) {
    const f64_vec zero = f64_set(0), x = f64_add(f64_set(each), f64_mul(f64_set(share), mass));
    const f64_vec product = f64_mul(x, weight);
    return f64_if_equal(x, zero, x, f64_if_equal(product, zero, f64_set(-0.0), product));
}

/* A loss plus what masses add to it: their dot, and their sum times the loss for the class to which it is relative. */
TL_TARGET TL_INLINE f64_vec f64_loss_with_mass(f64_vec loss, f64_vec dot, f64_vec mass, f64_vec nll) {
    return f64_add(f64_add(loss, dot), f64_mul(mass, nll));
}

/* The lanes that a reduction adds to: a copy in registers, as far as there are enough. */
#define LANE_VECTORS (16 / f64_WIDTH)
typedef struct {
    f64_vec sum[LANE_VECTORS], comp[LANE_VECTORS];
} tl_lanes;

TL_TARGET TL_INLINE tl_lanes zero_lanes(void) {
    tl_lanes lanes;
    for (size_t i = 0; i < LANE_VECTORS; i++)
        lanes.sum[i] = lanes.comp[i] = f64_set(0);
    return lanes;
}

/* Adds 16 lanes by halves until they are a vector, 8 at most. */
TL_TARGET TL_INLINE void store_eight(tl_lanes lanes, double *eight) {
    for (size_t half = LANE_VECTORS / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes.sum[i] = f64_add(lanes.sum[i], lanes.sum[i + half]);
    f64_store(eight, lanes.sum[0]);
}

/* The sum of 16 lanes, without what was lost. */
TL_TARGET TL_INLINE double sum_of_lanes(tl_lanes lanes) {
    double sum[f64_WIDTH];
    store_eight(lanes, sum);
    for (size_t half = f64_WIDTH / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            sum[i] += sum[i + half];
    return sum[0];
}

TL_TARGET TL_INLINE int is_finite_sum(tl_lanes lanes) { return tl_abs(sum_of_lanes(lanes)) < (double)INFINITY; }
TL_TARGET TL_INLINE f64_bits f64_load_ids(const int64_t *p) { return f64_load_bits((const uint64_t *)p); }
TL_TARGET TL_INLINE void f64_widen(f64_vec a, f64_vec *wide) { *wide = a; }
TL_TARGET TL_INLINE f64_vec f64_narrow(const f64_vec *wide) { return *wide; }
TL_TARGET TL_INLINE void f64_load_widened(const double *x, f64_vec *wide) { *wide = f64_load(x); }
#define PARTS (OP(WIDTH) / f64_WIDTH) /* vectors of double that hold a vector of REAL */

/* a b + c; of doubles rounded twice, for an emulated fused operation is not exact where products overflow. */
TL_TARGET TL_INLINE f32_vec f32_mul_add(f32_vec a, f32_vec b, f32_vec c) { return f32_fma(a, b, c); }
TL_TARGET TL_INLINE f64_vec f64_mul_add(f64_vec a, f64_vec b, f64_vec c) { return f64_add(f64_mul(a, b), c); }

/* The nearest numbers of a half dtype, ties to even; numbers beyond its range stay beyond it. */
TL_TARGET TL_INLINE f64_vec f64_round_to_half(f64_vec x, int dtype) {
    const f64_vec least = f64_set(dtype == TL_FLOAT16 ? 0x1p-14 : 0x1p-126); /* the least normal number */
    const f64_vec size = f64_min(f64_max_keep_nan(least, f64_and_bits(x, 0x7ff0000000000000u)), f64_set(0x1p900));
    const f64_vec rounder = f64_mul(size, f64_set(dtype == TL_FLOAT16 ? 0x1.8p42 : 0x1.8p45));
    const f64_vec nearest = f64_sub(f64_add(x, rounder), rounder);
    return f64_if_equal(nearest, f64_set(0), f64_mul(x, f64_set(0)), nearest); /* keeps the sign of 0 */
}

/* The gradient for a raw logit, from that for the logit: as tl_softcap_grad without a scale. It is rounded. */
TL_TARGET TL_INLINE f64_vec f64_finish_gradient(f64_vec grad, f64_vec logit, const tl_mass_gradients *of) {
    if (of->softcap != 0) {
        const f64_vec one = f64_set(1), tanh = f64_div(logit, f64_set(of->softcap));
        const f64_vec slope = f64_mul(f64_sub(one, tanh), f64_add(one, tanh));
        grad = f64_mul(grad, f64_if_equal(logit, f64_set(-(double)INFINITY), f64_set(0), slope));
    }
    return of->dtype < TL_FLOAT32 ? f64_round_to_half(grad, of->dtype) : grad;
}

/* A power, or 0 where `none` has all bits. */
#ifndef f32_power_without
#define f32_power_without(k, table, none) f32_without(f32_power(k, table), none)
#endif
#define f64_power_without(k, table, none) f64_without(f64_power(k, table), none)

#include "losses.h"

#undef PICK
#define PICK(of_float, of_double) of_double
#include "interleave_body.h"
#include "lanes_body.h"
#include "exp_body.h"
#include "losses_body.h"
#include "nll_body.h"
#include "divergence_body.h"
#undef PICK
#define PICK(of_float, of_double) of_float
#include "interleave_body.h"
#include "lanes_body.h"
#include "exp_body.h"
#include "losses_body.h"
#include "nll_body.h"
#include "divergence_body.h"

TL_TARGET static ptrdiff_t JOIN(skip_zeros_, BACKEND)(const char *data, ptrdiff_t start, ptrdiff_t end) {
    for (; start + 64 <= end; start += 64) {
        f64_bits seen = f64_set_bits(0);
        for (ptrdiff_t k = start; k < start + 64; k += (ptrdiff_t)sizeof(f64_vec)) {
            const f64_vec next = f64_load((const double *)(const void *)(data + k));
            seen = f64_or_bits(seen, next, next);
        }
        if (f64_any_of_bits(seen, ~(uint64_t)0))
            return start;
        tl_prefetch_stream(data + start);
    }
    return start;
}

/* Rows of a matrix, and vectors, that are multiplied in one pass: as many as there are registers for. */
#define DOT_ROWS (OP(WIDTH) > 4 ? OP(WIDTH) / 4 : 1)
#define DOT_VECTORS (f32_WIDTH == 16 ? 4 : 2)

/* Sums of up to TL_GROUP rows, from what `store_eight` left of their lanes. */
TL_TARGET TL_INLINE void add_lanes_of_rows(double (*eight)[8], size_t count, double *sum) {
    for (size_t r = 0; r < TL_GROUP; r += f64_WIDTH) {
        f64_vec lanes[f64_WIDTH];
        for (size_t i = 0; i < f64_WIDTH; i++)
            lanes[i] = f64_load(eight[r + i < count ? r + i : 0]);
        f64_store(sum + r, f64_sum_each(lanes));
    }
}

/* Names of what there is for each dtype; a vector of elements, converted to REAL, and back, rounded. */
#define NAME(what) JOIN(JOIN(what, DTYPE), JOIN(_, BACKEND))
#define LOAD(p) JOIN(OP(load_), DTYPE)(p)
#define STORE(p, a) JOIN(OP(store_), DTYPE)(p, a)

enum { OF_float16 = TL_FLOAT16, OF_bfloat16 = TL_BFLOAT16, OF_float32 = TL_FLOAT32, OF_float64 = TL_FLOAT64 };

#define f32_load_float32 f32_load
#define f32_store_float32 f32_store
#define f64_load_float64 f64_load
#define f64_store_float64 f64_store

#define DTYPE float32
#define ELEMENT float
#include "dtype_body.h"

#define DTYPE float16
#define ELEMENT uint16_t
#define HALF
#include "dtype_body.h"

#define DTYPE bfloat16
#define ELEMENT uint16_t
#define HALF
#include "dtype_body.h"

#define DTYPE float32
#include "short_rows_body.h"
#undef DTYPE

#undef PICK
#define PICK(of_float, of_double) of_double

#define DTYPE float64
#define ELEMENT double
#include "dtype_body.h"

#define DTYPE float64
#include "short_rows_body.h"
#include "short_divergences_body.h"

#include "block_math.h"

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
            [TL_REDUCE_KL] = ALL_DTYPES(kl_),
            [TL_REDUCE_MAX] = ALL_DTYPES(max_),
            [TL_REDUCE_MAX_COUNT] = ALL_DTYPES(max_count_),
        },
    .indices_ge = ALL_DTYPES(indices_ge_),
    .softmax_rows = ALL_DTYPES(softmax_rows_),
    .exp_scaled_rows = ALL_DTYPES(exp_scaled_rows_),
    .sum = ALL_DTYPES(sum_),
    .to_f64 = ALL_DTYPES(to_f64_),
    .to_compute = ALL_DTYPES(to_compute_),
    .dot_rows = ALL_DTYPES(dot_rows_),
    .softcap = JOIN(softcap_, BACKEND),
    .logs = JOIN(logs_, BACKEND),
    .prob_sums = JOIN(prob_sums_, BACKEND),
    .short_divergences = JOIN(short_divergences_float64_, BACKEND),
    .divergences = {[TL_FLOAT32] = f32_divergences, [TL_FLOAT64] = f64_divergences},
    .target_dot = COMPUTE_DTYPES(target_dot_),
    .largest = ALL_DTYPES(largest_),
    .add_exactly = JOIN(add_exactly_, BACKEND),
    .mask_targets = JOIN(mask_targets_, BACKEND),
    .nonzeros = JOIN(nonzeros_, BACKEND),
    .sum_planes = JOIN(sum_planes_, BACKEND),
    .class_losses = {[TL_FLOAT32] = f32_class_losses, [TL_FLOAT64] = f64_class_losses},
    .add_losses = {[TL_FLOAT32] = f32_add_losses, [TL_FLOAT64] = f64_add_losses},
    .pick_masses = {[TL_FLOAT32] = f32_pick_masses, [TL_FLOAT64] = f64_pick_masses},
    .skip_zeros = JOIN(skip_zeros_, BACKEND),
    .interleave = ALL_DTYPES(interleave_),
    .deinterleave = ALL_DTYPES(deinterleave_),
    .interleave_planes = ALL_DTYPES(interleave_planes_),
    .deinterleave_planes = ALL_DTYPES(deinterleave_planes_),
    .short_sumexp = COMPUTE_DTYPES(short_sumexp_),
    .short_moments = COMPUTE_DTYPES(short_moments_),
    .short_ranks = COMPUTE_DTYPES(short_ranks_),
    .lane_softmax = COMPUTE_DTYPES(lane_softmax_),
    .lane_losses = {[TL_FLOAT32] = f32_lane_losses, [TL_FLOAT64] = f64_lane_losses},
    .lane_gradients = {[TL_FLOAT32] = f32_lane_gradients, [TL_FLOAT64] = f64_lane_gradients},
    .short_dots = {[TL_FLOAT32] = f32_short_dots, [TL_FLOAT64] = f64_short_dots},
    .mass_gradients = {[TL_FLOAT32] = f32_mass_gradients, [TL_FLOAT64] = f64_mass_gradients},
    .row_losses = ALL_DTYPES(row_losses_),
    .lse_logs = JOIN(lse_logs_, BACKEND),
    .near = JOIN(near_, BACKEND),
    .log_odds = JOIN(log_odds_, BACKEND),
    .kl_of_sums = JOIN(kl_of_sums_, BACKEND),
    .entropies = JOIN(entropies_, BACKEND),
    .exps = JOIN(exps_, BACKEND),
    .weigh_masses = JOIN(weigh_masses_, BACKEND),
    .second_moments = JOIN(second_moments_, BACKEND),
    .softmax_factors = JOIN(softmax_factors_, BACKEND),
    .finish_losses = JOIN(finish_losses_, BACKEND),
    .gradient_parts = JOIN(gradient_parts_, BACKEND),
};
