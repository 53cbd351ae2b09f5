/* Row folds: one walk over the scores of a row, block by block, that keeps a small state. See fold.c. */
#ifndef TOKENLOSS_FOLD_H
#define TOKENLOSS_FOLD_H

#include "elements.h"

#define TL_LANES 64   /* virtual lanes: element i belongs to lane i % 64 on every machine */
#define TL_GRANULE 512 /* elements whose terms are added in the row's own precision before they go to the state */
#define TL_STRETCH 1024 /* products that are added in the row's own precision */
#define TL_PADDED 128  /* elements that are read at a time */
#define TL_BLOCK 4096  /* elements between two looks at whether the sum is in range */

/* sum over the elements seen of exp(x - offset) / 2^exponent (x - offset - center), in lanes as those of the sum; or of
 * the same less (y - offset - beside) of another row. */
typedef struct {
    double sum[16];
    double error[16];
    double center, beside; /* in the precision of the fold */
} tl_moment;

/* The sum of all classes while a moment leaves one out. As long as both sums have the same reference, their terms are the
 * same, and all lanes are but the one of 16 that the class belongs to: only that is kept twice. */
typedef struct {
    double sum, error; /* of that lane */
    size_t lane;
    enum { TL_AHEAD, TL_SHARED, TL_APART } stage; /* the class is yet to come; was met; the references may differ */
    int64_t hole;  /* where the class lies in the granule at hand; -1 if it does not */
    double logit;  /* what its score stands for */
    double own[1]; /* that less the offset, as an element of scratch */
} tl_whole;

/* sum over the elements seen of exp(x - offset) / 2^exponent, in 16 lanes of double with their rounding errors. */
typedef struct {
    double sum[16];
    double error[16];
    double offset; /* 0 unless the scores lie too far out to be reduced by ln 2 as they stand */
    int64_t exponent;
    double maximum; /* of the elements seen by all folds but a sum; nan is passed over */
    double threshold;
    int64_t reached; /* elements seen by a moment or a look that are not below the threshold */
    int overflowed;  /* whether the sum is not to be trusted because some x / ln 2 lies 128 above the exponent */
    tl_moment *moment;
    tl_whole *whole; /* of a moment; else, or if it is not wanted, NULL */
} tl_state;

/* Adds count contiguous native elements at x to the state. A multiple of 128 elements is read: those past count must
 * hold -inf. */
typedef void tl_fold(const void *x, size_t count, tl_state *state);

/* What is found: the sum; that, its moment and all of a look; these and the sum of all classes; the maximum; that and how
 * many reach the threshold. */
typedef enum { TL_SUM, TL_MOMENT, TL_BOTH, TL_MAXIMUM, TL_LOOK, TL_FOLDS } tl_fold_id;

/* Sums over classes, in lanes, and what their roundings lost: see shares.c. */
typedef struct {
    double loss[16], loss_lost[16], share[16], share_lost[16];
} tl_weighed;

/* How far below 0 scores of the other row of a divergence are followed in double: an emulated FMA splits its factors,
 * which overflows from 2^996 on. */
#define TL_FARTHEST_BELOW 0x1p990

/* In all of these, too, whole multiples of 128 elements are read. */
typedef struct {
    const char *name;
    tl_fold *fold[TL_FOLDS][TL_FOLDED_DTYPES];
    /* the sums of two rows, the base's moment with regard to the other, and its maximum; whether -inf is in the other */
    int (*divergence[TL_FOLDED_DTYPES])(const void *base, const void *other, size_t count, tl_state *base_state,
                                        tl_state *other_state);
    /* the elements that are not below the threshold, and how many */
    size_t (*collect[TL_FOLDED_DTYPES])(const void *x, size_t count, double threshold, int32_t *found);
    /* exp(x) / 2^exponent * factor - subtrahend; x - subtrahend. With `streaming`, results pass by the caches; they must
     * be aligned to 64 bytes then. */
    void (*exps[TL_FOLDED_DTYPES])(const void *x, size_t count, int64_t exponent, double factor, double subtrahend,
                                   void *out, int streaming);
    void (*less[TL_FOLDED_DTYPES])(const void *x, size_t count, double subtrahend, void *out, int streaming);
    /* adds x to 16 lanes of a sum, and what roundings lose */
    void (*total[TL_FOLDED_DTYPES])(const void *x, size_t count, double *sum, double *lost);
    void (*widen[TL_FOLDED_DTYPES])(const void *x, size_t count, double *out);
    /* the same in the precision of the fold, float or double */
    void (*convert[TL_FOLDED_DTYPES])(const void *x, size_t count, void *out);
    /* the products of a row with up to 4 vectors, in that precision and so many bytes apart; just `depth` elements are
     * read */
    void (*dots[TL_FOLDED_DTYPES])(const void *x, size_t depth, const void *vectors, ptrdiff_t stride, size_t count,
                                   int from_memory, double *dots);
    /* cap tanh(factor x / cap), or factor x if the cap is 0 */
    void (*squash)(double *x, size_t count, double factor, double cap);
    /* adds share (anchor - x), which is 0 if there is no share or x is the anchor, and the share */
    void (*weigh)(const double *share, const double *x, size_t count, double anchor, tl_weighed *weighed);
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

/* A row of scores. With a scale or a cap it stands for cap tanh(scale x / cap), and is folded in double; with a scale
 * alone perhaps for scale (x - shift), where scale x would overflow. */
typedef struct {
    const char *data;
    int64_t count;
    ptrdiff_t stride; /* in bytes */
    int dtype;        /* one of the four that are folded, perhaps TL_SWAPPED */
    int folded;       /* the dtype in which it is folded, unless it lies far out: its own, or a wider one */
    double scale;     /* 1 if there is none */
    double cap;       /* 0 if there is none */
    double shift;     /* 0 if there is none */
} tl_row;

TL_INLINE int tl_squashed(const tl_row *row) { return row->scale != 1 || row->cap != 0; }

/* One score, as the row stands for it, and what a score in memory stands for. */
double tl_score(const tl_backend *backend, const tl_row *row, int64_t index);
double tl_squash(const tl_backend *backend, const tl_row *row, double score);

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

/* The same for a part [start, end) of a row after those before it; it begins the state where `start` is 0, and looks
 * whether the sum is in range after each `block` elements. Only the part of the row is read. */
void tl_fold_part(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block, int64_t skip,
                  tl_state *state, tl_patience *patience);

/* The same for rows that lie beside each other in memory, class by class: TL_BESIDE at most, of one count, stride and
 * dtype. They are turned round in `turned`, of TL_TURNED_BYTES, one block at a time. */
#define TL_BESIDE 32
#define TL_TURNED_ROW (TL_BLOCK + 32) /* elements; not a power of two, lest rows meet in a cache */
#define TL_TURNED_BYTES (64 * TL_TURNED_ROW)
#define TL_ROWS_BESIDE(dtype) (64 / tl_itemsize(dtype)) /* a cache line of them */
void tl_fold_beside(const tl_backend *backend, const tl_row *rows, const int64_t *skips, int count, void *turned,
                    tl_state *states, tl_patience *patience);

/* logsumexp = offset + log; apart, since far out the logarithm would be lost in the sum. */
typedef struct {
    double offset, log;
} tl_normalizer;

/* log(sum(exp(row))) from the state of a row, -inf of none; or from that of its rest, a logit and the gap between. */
tl_normalizer tl_normalize(const tl_state *state, const tl_row *row);
tl_normalizer tl_normalize_with(const tl_state *rest, const tl_row *row, double logit, double gap);

TL_INLINE double tl_logsumexp(tl_normalizer of) { return of.offset + of.log; }

/* The logsumexp of a row from the state of all its classes. Near 0, where one logit outweighs the others, it is the sum of
 * that and log1p of the others' odds, which keeps relative digits: the row is folded once more, without that class, unless
 * it is the one (-1 if none) without which `rest` was folded. */
double tl_logsumexp_of(const tl_backend *backend, const tl_row *row, const tl_state *state, int64_t skipped,
                       const tl_state *rest, tl_patience *patience);

/* How far the logsumexp of the rest of a row lies above a logit; nan of a logit that is nan or +inf. */
double tl_gap(const tl_state *rest, const tl_row *row, double logit);

/* The best of a row, as a heap whose root is the worst of them. */
typedef struct {
    int64_t most, count;
    double *value;
    int64_t *id;
} tl_best;

/* Everything about a token; see scores.c. Of a whole row, the logsumexp is that of tl_logsumexp_of. */
typedef struct {
    double nll, logsumexp, entropy;
    int64_t rank, argmax;
    double maximum; /* of the scores as they are in memory */
    tl_state state;
    tl_moment moment;
} tl_token;

/* `best` may be NULL. */
void tl_score_row(const tl_backend *backend, const tl_row *row, int64_t target, tl_token *token, tl_best *best,
                  tl_patience *patience);

/* The same part by part, as tl_fold_part; `own` is the target's score as it is in memory. The logsumexp is found from the
 * target's logit and the rest, as the loss is: its last bits depend on which class is the target. */
void tl_score_part(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block,
                   int64_t target, double own, tl_token *token, tl_best *best, tl_patience *patience);
void tl_score_end(const tl_backend *backend, const tl_row *row, double own, tl_token *token, tl_best *best);

/* KL(softmax(base) || softmax(other)) of two rows of one length. */
double tl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_patience *patience);

/* The shares that the classes of a row have in its loss: weight (kept share + uniform); -0.0 where only the weight is 0,
 * since an infinite loss is nan then. */
typedef struct {
    const char *share; /* NULL if there are none */
    ptrdiff_t share_stride;
    int share_dtype;
    const char *weight; /* NULL if each is 1 */
    ptrdiff_t weight_stride;
    int weight_dtype;
    double kept, uniform;
} tl_shares;

TL_INLINE int tl_has_share(double share) { return tl_to_bits(share) != 0; }

/* The class of the largest share, among those whose share is not 0; -1 if there is none. `found` is their number. */
int64_t tl_likeliest(const tl_backend *backend, const tl_shares *shares, int64_t count, int64_t *found,
                     tl_patience *patience);

/* The next shares, 64 at most, from *start on, which moves past zeros; returns how many, 0 at the end. */
int tl_next_shares(const tl_backend *backend, const tl_shares *shares, int64_t count, int64_t *start, double *share,
                   tl_patience *patience);

/* The sum over the classes of share (anchor - score), and of the shares. */
double tl_weigh(const tl_backend *backend, const tl_row *row, const tl_shares *shares, double anchor, double *total,
                tl_patience *patience);

/* The same part by part, whose sums start as zeros, and the end of it. */
void tl_weigh_part(const tl_backend *backend, const tl_row *row, const tl_shares *shares, int64_t start, int64_t end,
                   double anchor, tl_weighed *weighed, tl_patience *patience);
double tl_weigh_end(const tl_weighed *weighed, double *total);

/* Writes a row in the precision of the fold, as it is in memory: floats, or doubles if `dtype` is float64. */
void tl_convert(const tl_backend *backend, const tl_row *row, int dtype, void *out);

/* Some vectors as floats, or as doubles if they are folded as such: each contiguous, `stride` bytes apart. */
typedef struct {
    char *data;
    ptrdiff_t stride;
    int64_t count;
} tl_vectors;

/* The products of rows of weights, the first of which is given, with vectors of their precision; those of one vector are
 * written beside each other. */
void tl_products(const tl_backend *backend, const tl_row *weights, ptrdiff_t stride, int64_t count,
                 const tl_vectors *vectors, const tl_vectors *out);

/* Writes softmax(row) or log_softmax(row) to `out`, of the row's count and dtype, perhaps the row itself.
 * `large` tells that all results do not fit the caches. */
void tl_softmax(const tl_backend *backend, const tl_row *row, tl_normalizer normalizer, const tl_row *out,
                int large, tl_patience *patience);
void tl_log_softmax(const tl_backend *backend, const tl_row *row, tl_normalizer normalizer, const tl_row *out,
                    int large, tl_patience *patience);

/* Writes factor (of_softmax softmax(row) - share) times what a score changes with its logit. */
void tl_gradient(const tl_backend *backend, const tl_row *row, tl_normalizer normalizer, double factor, double of_softmax,
                 const tl_shares *shares, const tl_row *out, int large, tl_patience *patience);
double tl_slope(const tl_row *row, double score);

/* Writes one value to all elements of a row, or to one of them. */
void tl_fill(const tl_row *out, double value);
void tl_put(const tl_row *out, int64_t index, double value);

#endif
