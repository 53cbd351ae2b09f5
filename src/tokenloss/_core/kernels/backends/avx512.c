#include "../platform.h"

#if TL_X86
#include "simd_avx512.h"

#define BACKEND avx512
#include "template.h"
#else
typedef int tl_nothing_for_this_architecture;
#endif
