/* A matrix of bfloat16 times many vectors of bfloat16, by the instructions of AMX or AVX512_BF16 for them. */
#pragma once

#include "cancel.h"
#include "matvec.h"

#define TL_BF16_PANEL 64 /* vectors side by side in a panel; the last one may have fewer */
/* Instructions that multiply bfloat16, best first. */
typedef enum { TL_AMX_BF16, TL_AVX512_BF16, TL_BF16_MATMULS } tl_bf16_matmul;

/* Vectors in panels: element pairs 0 of all, then pairs 1, and so on, with zeros up to a multiple of 16 pairs. */
typedef struct {
    tl_bf16_matmul by;
    char *data; /* aligned to 64 bytes */
    int64_t count, depth;
} tl_bf16_panels;

/* Whether this machine has the instructions, and the backend may use them. */
int tl_has_matmul_bf16(tl_bf16_matmul by, const tl_backend *backend);

/* How many rows of the matrix are worked on together: ranges are multiples of it, but for the last. */
int64_t tl_bf16_block(tl_bf16_matmul by);

/* The bytes that `data` needs; the other members are set. */
size_t tl_bf16_panels_bytes(const tl_bf16_panels *panels);

/* Puts a vector where it belongs in the panels, which hold zeros before: floats that are representable in bfloat16. */
void tl_bf16_set_vector(const tl_bf16_panels *panels, int64_t number, const float *vector);

/* Multiplies `count` rows of weights, beginning with the given one, by each of the vectors. The products with vector v
 * are written to vector v of `out`, in float32. With AVX-512, a product is a sum of chains of 256 multiply-adds, each
 * rounded, in the order of the elements, except that the second of a pair comes first. With AMX, it is a sum of sums of
 * 32 elements, each made of two chains, one of the even and one of the odd elements. Subnormal numbers count as 0, in
 * operands and in sums: the instructions' way. */
void tl_matmul_bf16(const tl_row *weights, ptrdiff_t stride, int64_t count, const tl_bf16_panels *vectors,
                    const tl_vectors *out, tl_cancel *cancel);
