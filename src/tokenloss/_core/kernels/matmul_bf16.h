/* A matrix of bfloat16 times many vectors of bfloat16, by the instruction that AVX512_BF16 has for them. */
#ifndef TOKENLOSS_MATMUL_BF16_H
#define TOKENLOSS_MATMUL_BF16_H

#include "backend.h"
#include "cancel.h"
#include "matvec.h"

#define TL_BF16_PANEL 64   /* vectors side by side in a panel; 16, 32 or 48 in the last one, if they are enough */
#define TL_BF16_CLASSES 48 /* rows of the matrix that are worked on together: ranges are multiples, but for the last */

/* Vectors in panels: element pairs 0 of all, then pairs 1, and so on. The last pair of an odd depth ends with a 0. */
typedef struct {
    char *data; /* aligned to 64 bytes */
    int64_t count, depth;
} tl_bf16_panels;

/* Whether this machine has the instruction, and the backend may use it. */
int tl_has_matmul_bf16(const tl_backend *backend);

/* The size of the panels. */
int64_t tl_bf16_panels_bytes(int64_t count, int64_t depth);

/* Puts a vector where it belongs in the panels, which hold zeros before: floats that are representable in bfloat16. */
void tl_bf16_set_vector(const tl_bf16_panels *panels, int64_t number, const float *vector);

/* Multiplies each of `count` rows of weights, of which the first is given, with each vector. The products with
 * vector v are written to vector v of `out`, in float32. A product is a sum of chains of 256 multiply-adds, each
 * rounded, in the order of the elements but that of a pair the second comes first. Subnormal numbers count as 0,
 * in operands and in sums: the instruction's way. */
void tl_matmul_bf16(const tl_row *weights, ptrdiff_t stride, int64_t count, const tl_bf16_panels *vectors,
                    const tl_vectors *out, tl_cancel *cancel);

#endif
