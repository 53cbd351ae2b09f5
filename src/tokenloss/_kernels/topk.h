/* The k largest logits of a row, in a bounded heap. */
#ifndef TOKENLOSS_TOPK_H
#define TOKENLOSS_TOPK_H

#include "row.h"

/* A heap whose root is the smallest entry: the lowest value or, of equal ones, the highest id. */
typedef struct {
    int64_t most, count; /* entries at most (k), and so far */
    double *value;
    int64_t *id;
} tl_topk;

/* Adds those raw logits of [start, end), at most a block with this maximum, that belong among the k largest so far. */
void tl_topk_scan(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, double maximum,
                  tl_topk *topk);

/* Sorts the entries, largest first; places beyond `count` get nan and -1. */
void tl_topk_sort(tl_topk *topk);

#endif
