/* The k largest logits of a row. */
#pragma once

#include "row.h"

/* The best entries so far: larger values or, if equal, lower ids. Until sorted, a heap whose root is the worst. */
typedef struct {
    int64_t most, count; /* entries at most (k), and so far */
    double *value;       /* of k entries, as is `id` */
    int64_t *id;
    int64_t candidates; /* logits above the threshold in the last block that had any; 0 at the start */
} tl_topk;

/* Adds those raw logits of [start, end), at most a block with this maximum, that belong among the k largest so far. */
void tl_topk_scan(const tl_backend *backend, const tl_row *raw, int64_t start, int64_t end, double maximum,
                  tl_topk *topk);

/* Sorts the entries of the row, largest first; places beyond `count` get nan and -1. */
void tl_topk_sort(tl_topk *topk);
