#include "../platform.h"

TL_NO_UNROLLING
#include "simd_portable.h"

#define BACKEND portable
#include "template.h"
