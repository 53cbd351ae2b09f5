/* All kernels over rows, for their callers. */
#ifndef TOKENLOSS_KERNELS_H
#define TOKENLOSS_KERNELS_H

#include "backend.h"
#include "cancel.h"
#include "distributions.h"
#include "divergences.h"
#include "elementwise.h"
#include "kl.h"
#include "logsumexp.h"
#include "loss.h"
#include "matmul_bf16.h"
#include "matvec.h"
#include "nll.h"
#include "pair.h"
#include "reduce.h"
#include "row.h"
#include "row_block.h"
#include "second_moments.h"
#include "sequences.h"
#include "soft_targets.h"
#include "tail.h"
#include "token_block.h"
#include "token_stats.h"
#include "topk.h"

#endif
