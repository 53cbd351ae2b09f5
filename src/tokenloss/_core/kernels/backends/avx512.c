#include "../platform.h"

#if TL_X86
#include "simd_avx512.h"

#define BACKEND avx512
#include "template.h"
#endif
