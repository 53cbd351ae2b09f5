/* What projections need: rows converted to the dtype of a product, and a matrix times few vectors. */
#ifndef TOKENLOSS_MATVEC_H
#define TOKENLOSS_MATVEC_H

#include "row.h"

/* Writes the row, without its scale and softcap, as floats, or as doubles if `dtype` is float64. */
void tl_cast_row(const tl_backend *backend, const tl_row *row, int dtype, void *out);

/* Multiplies a matrix of `count` rows, the first of which is given, with some vectors. The products of vector v are
 * vector v of `out`. */
void tl_matvec(const tl_backend *backend, const tl_row *weights, ptrdiff_t stride, int64_t count,
               const tl_vectors *vectors, const tl_vectors *out);

#endif
