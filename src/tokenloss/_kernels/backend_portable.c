#include "simd_portable.h"

#define BACKEND portable
#include "backend_template.h"
