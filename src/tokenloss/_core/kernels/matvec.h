/* A matrix times few vectors, for projections. */
#pragma once

#include "row.h"

/* Multiplies `count` rows of a matrix, from this one on, with vectors; products of vector v are vector v of `out`. */
void tl_matvec(const tl_backend *backend, const tl_row *weights, ptrdiff_t stride, int64_t count,
               const tl_vectors *vectors, const tl_vectors *out);
