#include "../platform.h"

TL_OPTIMIZE_SIZE
#include "simd_portable.h"

#define BACKEND portable
#include "template.h"
