/* Every fold of one instruction set: included by fold_*.c after its simd_*.h, with BACKEND defined. */
#include <math.h>

#include "fold.h"
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

static const double f64_EXP[] = {0x1.b2917e207fd11p-26, 0x1.28b58c6bca6b0p-22, 0x1.71dd35e50e48dp-19,
                                 0x1.a0199385c6e1bp-16, 0x1.a01a015391e15p-13, 0x1.6c16c1857d0c6p-10,
                                 0x1.111111114a96fp-7,  0x1.5555555550841p-5,  0x1.555555555538fp-3,
                                 0x1.0000000000009p-1,  1.0};
#define f64_LOG2E 0x1.71547652b82fep+0
#define f64_LN2 0x1.62e42fefa39efp-1
#define f64_ROUNDER 0x1.8p52
#define f64_BIAS 1023

/* Whether a power of two would not fit its exponent: then some n + bias - exponent, which stands in the low bits of a
 * number of ulp 1, has more bits than that. */
TL_TARGET TL_INLINE int f32_beyond(f32_bits seen) {
    uint32_t bits[f32_WIDTH], all = 0;
    memcpy(bits, &seen, sizeof bits);
    for (size_t j = 0; j < f32_WIDTH; j++)
        all |= bits[j];
    return all != 0 && (all & ~0xffu) != 0x4b400000u;
}

TL_TARGET TL_INLINE int f64_beyond(f64_bits seen) {
    uint64_t bits[f64_WIDTH], all = 0;
    memcpy(bits, &seen, sizeof bits);
    for (size_t j = 0; j < f64_WIDTH; j++)
        all |= bits[j];
    return all != 0 && (all & ~(uint64_t)0x7ff) != 0x4338000000000000u;
}

TL_TARGET TL_INLINE void f64_accumulate(double *sum, double *error, f64_vec term) {
    f64_vec before = f64_load(sum), after = f64_add(before, term), other = f64_sub(after, before);
    f64_vec lost = f64_add(f64_sub(before, f64_sub(after, other)), f64_sub(term, other));
    f64_store(sum, after);
    f64_store(error, f64_add(f64_load(error), lost));
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

#define REAL float
#define OP(f) f32_##f

#define DTYPE float16
#define ELEMENT uint16_t
#define LOAD(p) f32_load_float16(p)
#include "fold_body.h"

#define DTYPE bfloat16
#define ELEMENT uint16_t
#define LOAD(p) f32_load_bfloat16(p)
#include "fold_body.h"

#define DTYPE float32
#define ELEMENT float
#define LOAD(p) f32_load(p)
#include "fold_body.h"

#undef REAL
#undef OP
#define REAL double
#define OP(f) f64_##f

#define DTYPE float64
#define ELEMENT double
#define LOAD(p) f64_load(p)
#include "fold_body.h"

#define STRING_(name) #name
#define STRING(name) STRING_(name)
#define ALL_DTYPES(what)                                                                                               \
    {JOIN(what##float16_, BACKEND), JOIN(what##bfloat16_, BACKEND), JOIN(what##float32_, BACKEND),                     \
     JOIN(what##float64_, BACKEND)}

const tl_backend JOIN(tl_, BACKEND) = {STRING(BACKEND), ALL_DTYPES(sum_), ALL_DTYPES(maximum_),
                                      JOIN(clipped_losses_, BACKEND), JOIN(skip_zeros_, BACKEND)};
