#include "../platform.h"

#if TL_X86
#include "simd_avx2.h"

#define BACKEND avx2
#include "template.h"
#endif
