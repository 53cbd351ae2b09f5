#include "simd_portable.h"

#define BACKEND portable
#include "template.h"
