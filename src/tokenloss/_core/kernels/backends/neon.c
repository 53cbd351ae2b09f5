#include "../platform.h"

#if TL_ARM64
#include "simd_neon.h"

#define BACKEND neon
#include "template.h"
#endif
