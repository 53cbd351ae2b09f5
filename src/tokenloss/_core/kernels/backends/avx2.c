#include "../platform.h"

#if TL_X86
#include "simd_avx2.h"

#define BACKEND avx2
#include "template.h"
#else
typedef int tl_nothing_for_this_architecture;
#endif
