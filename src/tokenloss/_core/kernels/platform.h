/* What differs between compilers and machines: attributes, FMA, atomics, the clock, the floating-point environment; and
 * the standard headers of all kernels. */
#pragma once

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__) || defined(_M_IX86)
#define TL_X86 1
#include <xmmintrin.h> /* immintrin.h would be most of what compiling a small file takes */
#else
#define TL_X86 0
#endif

#if (defined(__aarch64__) && !defined(__AARCH64EB__)) || defined(_M_ARM64)
#define TL_ARM64 1
#else
#define TL_ARM64 0
#endif

/* Not every compiler's flags forbid contraction: clang-cl and Visual C++ before 2022 contract as they please. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "expressions must be rounded to their type: -msse2 -mfpmath=sse (32-bit x86), -fexcess-precision=fast (s390x)"
#endif

/* TL_OUTLINE is for functions that compilers would inline, and then keep variables of the loops around them in memory:
 * with AVX2 and AVX-512, losses and products would take up to 4 % longer. */
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define TL_INLINE static __forceinline
#define TL_OUTLINE static __declspec(noinline)
#define TL_FOR(features) /* every instruction set is always at hand */
#define TL_UNLIKELY(condition) (condition)
#else
#define TL_INLINE static inline __attribute__((always_inline))
#define TL_OUTLINE static __attribute__((noinline, unused))
#define TL_FOR(features) __attribute__((target(features)))
#define TL_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#endif

/* The baseline's own fused multiply-add, where every machine of the architecture has one. */
#if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
#define TL_BASELINE_FMA 1
#else
#define TL_BASELINE_FMA 0
#endif

TL_INLINE double tl_from_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

TL_INLINE uint64_t tl_to_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

TL_INLINE float tl_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#if defined(__GNUC__)
#define TL_PREFETCH(address, locality) __builtin_prefetch(address, 0, locality)
#elif TL_X86
#define TL_PREFETCH(address, locality) _mm_prefetch((const char *)(address), (locality) == 3 ? _MM_HINT_T0 : _MM_HINT_T1)
#else
#define TL_PREFETCH(address, locality) (void)(address)
#endif

/* Prefetches a line that is needed soon; or early, into the second cache, where many requests can wait for memory. */
TL_INLINE void tl_prefetch(const void *address) { TL_PREFETCH(address, 3); }
TL_INLINE void tl_prefetch_early(const void *address) { TL_PREFETCH(address, 2); }

/* Prefetches a line of what is read in order, early and again shortly before its use: together, they reach 0.88 of the
 * speed of a plain read; each by itself reaches 0.74 at most. */
#define TL_AHEAD 4096 /* bytes */
TL_INLINE void tl_prefetch_stream(const void *address) {
    tl_prefetch_early((const char *)address + 32768);
    tl_prefetch((const char *)address + TL_AHEAD);
}

/* The position of the lowest bit of a number that is not 0. */
TL_INLINE unsigned tl_lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(bits);
#else
    unsigned position = 0;
    for (; !(bits & 1); bits >>= 1)
        position++;
    return position;
#endif
}

/* After results were written past the caches, and before another thread reads them. */
TL_INLINE void tl_stream_end(void) {
#if TL_X86
    _mm_sfence();
#endif
}

/* The next of `step` numbers of a counter that several threads use; and a flag that any of them sets and all poll,
 * which orders no other writes. */
#if defined(_MSC_VER) && !defined(__clang__)
TL_INLINE int64_t tl_fetch_add(volatile int64_t *counter, int64_t step) {
    int64_t before = *counter, found; /* all that its 32-bit x86 has for 64 bits is this exchange */
    while ((found = _InterlockedCompareExchange64(counter, before + step, before)) != before)
        before = found;
    return before;
}
TL_INLINE int tl_flag_get(const volatile int *flag) { return *flag; }
TL_INLINE void tl_flag_set(volatile int *flag) { *flag = 1; }
#else
TL_INLINE int64_t tl_fetch_add(volatile int64_t *counter, int64_t step) {
    return __atomic_fetch_add(counter, step, __ATOMIC_RELAXED);
}
TL_INLINE int tl_flag_get(const volatile int *flag) { return __atomic_load_n(flag, __ATOMIC_RELAXED); }
TL_INLINE void tl_flag_set(volatile int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }
#endif

double tl_seconds(void);

/* The caller may run with flush-to-zero or another rounding mode; results must not depend on it. */
typedef struct {
    uint32_t control;
#if !TL_X86
    char saved[64];
#endif
} tl_fp_state;

void tl_fp_enter(tl_fp_state *state);
void tl_fp_leave(const tl_fp_state *state);
