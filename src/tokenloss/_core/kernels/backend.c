/* Which backends this machine can run. */
#define _DEFAULT_SOURCE /* syscall */
#include "backend.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if TL_X86
#if defined(_MSC_VER) && !defined(__clang__)
static void cpuid(unsigned leaf, unsigned part, unsigned *r) { __cpuidex((int *)r, (int)leaf, (int)part); }
#else
#include <cpuid.h>
static void cpuid(unsigned leaf, unsigned part, unsigned *r) {
    if (!__get_cpuid_count(leaf, part, &r[0], &r[1], &r[2], &r[3]))
        r[0] = r[1] = r[2] = r[3] = 0;
}
#endif

/* XCR0: which registers the operating system saves. */
static unsigned saved_registers(void) {
#if defined(_MSC_VER) && !defined(__clang__)
    return (unsigned)_xgetbv(0);
#else
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

static int has(unsigned bits, unsigned needed) { return (bits & needed) == needed; }

static int runs_x86(tl_backend_id id) {
    const unsigned fma = 1u << 12, osxsave = 1u << 27, f16c = 1u << 29; /* leaf 1, ecx */
    const unsigned avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* leaf 7, ebx: F DQ BW VL */
    unsigned one[4], seven[4];
    cpuid(1, 0, one);
    cpuid(7, 0, seven);
    if (!has(one[2], fma | osxsave | f16c) || !has(seven[1], avx2))
        return 0;
    unsigned saved = saved_registers();
    if (id == TL_AVX512)
        return has(seven[1], avx512) && has(saved, 0xe6);
    return has(saved, 0x6);
}
#endif

const tl_backend *tl_find_backend(tl_backend_id id) {
    switch (id) {
#if TL_X86
    case TL_AVX512: return runs_x86(id) ? &tl_avx512 : NULL;
    case TL_AVX2: return runs_x86(id) ? &tl_avx2 : NULL;
#endif
#if TL_ARM64
    case TL_NEON: return &tl_neon;
#endif
    case TL_PORTABLE: return &tl_portable;
    default: return NULL;
    }
}

int tl_has_avx512_bf16(void) {
#if TL_X86
    unsigned seven[4];
    cpuid(7, 1, seven);
    return runs_x86(TL_AVX512) && has(seven[0], 1u << 5);
#else
    return 0;
#endif
}

int tl_has_amx_bf16(void) {
#if defined(__x86_64__) && defined(__linux__)
    const unsigned amx = 1u << 22 | 1u << 24; /* BF16, TILE */
    const long request_permission = 0x1023, tiles = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    unsigned seven[4];
    cpuid(7, 0, seven);
    return runs_x86(TL_AVX512) && has(seven[3], amx) && has(saved_registers(), 3u << 17) &&
           !syscall(SYS_arch_prctl, request_permission, tiles);
#else
    return 0;
#endif
}
