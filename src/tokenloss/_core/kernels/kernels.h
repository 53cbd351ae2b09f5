/* All kernels over rows, for their callers. */
#pragma once

#include "distributions.h"
#include "elementwise.h"
#include "matmul_bf16.h"
#include "nll.h"
#include "pair.h"
#include "second_moments.h"
#include "sequences.h"
#include "tail.h"
#include "token_block.h"
#include "token_stats.h"
