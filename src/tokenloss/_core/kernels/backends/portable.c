#include "../platform.h"

#if TL_X86
TL_SMALL_CODE /* machines without AVX2 are rare */
#else
TL_NO_UNROLLING
#endif
#include "simd_portable.h"

#define BACKEND portable
#include "template.h"
