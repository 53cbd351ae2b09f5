#include "platform.h"

#include <time.h>

#if !TL_X86 && !defined(__EMSCRIPTEN__)
#include <fenv.h>
#endif

double tl_seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#if TL_X86
void tl_fp_enter(tl_fp_state *state) {
    state->control = _mm_getcsr();
    _mm_setcsr(0x1F80); /* round to nearest, subnormals kept, no traps */
}
void tl_fp_leave(const tl_fp_state *state) { _mm_setcsr(state->control); }
#elif defined(__EMSCRIPTEN__)
void tl_fp_enter(tl_fp_state *state) { state->control = 0; }
void tl_fp_leave(const tl_fp_state *state) { (void)state; }
#else
_Static_assert(sizeof(fenv_t) <= sizeof(((tl_fp_state *)0)->saved), "fenv_t outgrew its place");
void tl_fp_enter(tl_fp_state *state) {
    fegetenv((fenv_t *)(void *)state->saved);
    fesetenv(FE_DFL_ENV);
}
void tl_fp_leave(const tl_fp_state *state) { fesetenv((const fenv_t *)(const void *)state->saved); }
#endif
