/* Row folds: one walk over the scores of a row, block by block, that keeps a small state. See fold.c. */
#ifndef TOKENLOSS_FOLD_H
#define TOKENLOSS_FOLD_H

#include "elements.h"

#define TL_LANES 64   /* virtual lanes: element i belongs to lane i % 64 on every machine */
#define TL_GRANULE 512 /* elements whose terms are added in the row's own precision before they go to the state */
#define TL_PADDED 128  /* elements that are read at a time */
#define TL_BLOCK 4096  /* elements between two looks at whether the sum is in range */

/* sum over the elements seen of exp(x - offset) / 2^exponent, in 16 lanes of double with their rounding errors. */
typedef struct {
    double sum[16];
    double error[16];
    double offset; /* 0 unless the scores lie too far out to be reduced by ln 2 as they stand */
    int64_t exponent;
    double maximum; /* of the elements seen by a maximum fold; nan is passed over */
    int overflowed; /* whether the sum is not to be trusted because some x / ln 2 lies 128 above the exponent */
} tl_state;

/* Adds count contiguous native elements at x to the state. A multiple of 128 elements is read: those past count must
 * hold -inf. */
typedef void tl_fold(const void *x, size_t count, tl_state *state);

typedef struct {
    const char *name;
    tl_fold *sum[TL_FOLDED_DTYPES];
    tl_fold *maximum[TL_FOLDED_DTYPES];
    /* each p becomes -log(p), p clipped to [lowest, highest] */
    void (*clipped_losses)(double *p, size_t count, double lowest, double highest);
    /* skips whole chunks of 64 bytes that are all zero, as zeros of every dtype are: where the first other starts, or
     * where less than a chunk is left */
    ptrdiff_t (*skip_zeros)(const char *data, ptrdiff_t start, ptrdiff_t end);
} tl_backend;

/* The backends, best first; those that this machine cannot run are NULL. */
typedef enum { TL_AVX512, TL_AVX2, TL_NEON, TL_PORTABLE, TL_BACKENDS } tl_backend_id;
const tl_backend *tl_find_backend(tl_backend_id id);

extern const tl_backend tl_avx512, tl_avx2, tl_neon, tl_portable;

typedef struct {
    const char *data;
    int64_t count;
    ptrdiff_t stride; /* in bytes */
    int dtype;        /* one of the four that are folded, perhaps TL_SWAPPED */
} tl_row;

/* Lets a long call be given up. `ask` may be NULL; it is called now and then and stops all threads by returning 1. */
typedef struct {
    int (*ask)(void *);
    void *argument;
    volatile int *stopped;
    double last_asked;
} tl_patience;

int tl_gave_up(tl_patience *patience);

/* The largest score, -inf of none; nan is passed over. As fast as memory can be read: what folds are measured by. */
double tl_maximum(const tl_backend *backend, const tl_row *row);

/* The state of a row but for the element `skip` (none if it is negative); its sum is nan if a nan or +inf was met. */
void tl_fold_row(const tl_backend *backend, const tl_row *row, int64_t skip, tl_state *state, tl_patience *patience);

/* The same for rows that lie beside each other in memory, class by class: TL_BESIDE at most, of one count, stride and
 * dtype. They are turned round in `turned`, of TL_TURNED_BYTES, one block at a time. */
#define TL_BESIDE 32
#define TL_TURNED_ROW (TL_BLOCK + 32) /* elements; not a power of two, lest rows meet in a cache */
#define TL_TURNED_BYTES (64 * TL_TURNED_ROW)
#define TL_ROWS_BESIDE(dtype) (64 / tl_itemsize(dtype)) /* a cache line of them */
void tl_fold_beside(const tl_backend *backend, const tl_row *rows, const int64_t *skips, int count, void *turned,
                    tl_state *states, tl_patience *patience);

/* log(sum(exp(row))) from the state of a row of this dtype; -inf of none. */
double tl_logsumexp(const tl_state *state, int dtype);

/* logsumexp(row) - logit from the state of the rest of the row; of small relative error even where it is nearly 0. */
double tl_nll(const tl_state *state, int dtype, double logit);

#endif
