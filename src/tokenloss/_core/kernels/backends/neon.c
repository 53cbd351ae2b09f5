#include "../platform.h"

#if TL_ARM64
#include "simd_neon.h"

#define BACKEND neon
#include "template.h"
#else
typedef int tl_nothing_for_this_architecture;
#endif
