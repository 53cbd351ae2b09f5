/* Row folds: one walk over the scores of a row, block by block, that keeps a small state. See logsumexp.c. */
#ifndef TOKENLOSS_FOLD_H
#define TOKENLOSS_FOLD_H

#include "elements.h"

#define TL_LANES 64   /* virtual lanes: element i belongs to lane i % 64 on every machine */
#define TL_CHUNK 512 /* elements whose terms are added in the row's own precision before they go to the state */
#define TL_DOT_CHUNK 1024 /* products that are added in the row's own precision */
#define TL_READ_MULTIPLE 128  /* elements that are read at a time */
#define TL_BLOCK 4096  /* elements between two looks at whether the sum is in range */

/* sum over the elements seen of exp(x - offset) / 2^exponent (x - offset - center), in lanes as those of the sum; or of
 * the same less (y - offset - beside) of another row. */
typedef struct {
    double sum[16];
    double error[16];
    double center, beside; /* in the precision of the fold */
} tl_moment;

/* The sum of all classes while a moment leaves one out. As long as both sums have the same reference, their terms are
 * the same, and all lanes are but the one of 16 that the class belongs to: only that is kept twice. */
typedef struct {
    double sum, error; /* of that lane */
    size_t lane;
    enum { TL_AHEAD, TL_SHARED, TL_APART } stage; /* the class is yet to come; was met; the references may differ */
    int64_t hole; /* where the class lies in the granule at hand; -1 if it does not */
    double logit; /* what its score stands for */
    double own[1]; /* that less the offset, as an element of buf */
} tl_all_classes;

/* sum over the elements seen of exp(x - offset) / 2^exponent, in 16 lanes of double with their rounding errors. */
typedef struct {
    double sum[16];
    double error[16];
    double offset; /* 0 unless the scores lie too far out to be reduced by ln 2 as they stand */
    int64_t exponent;
    double maximum; /* of the elements seen by all folds but a sum; nan is passed over */
    double threshold;
    int64_t reached; /* elements seen by a moment or a look that are not below the threshold */
    int overflowed; /* whether the sum is not to be trusted because some x / ln 2 lies 128 above the exponent */
    tl_moment *moment;
    tl_all_classes *whole; /* of a moment; else, or if it is not wanted, NULL */
} tl_lse_acc;

/* Adds count contiguous native elements at x to the state. A multiple of 128 elements is read: those past count must
 * hold -inf. */
typedef void tl_reduce_fn(const void *x, size_t count, tl_lse_acc *state);

/* What is found: the sum; that, its moment and all of a look; these and the sum of all classes; the maximum; that and
 * how many reach the threshold. */
typedef enum {
    TL_REDUCE_SUMEXP,
    TL_REDUCE_MOMENT,
    TL_REDUCE_MOMENT_AND_ALL,
    TL_REDUCE_MAX,
    TL_REDUCE_MAX_COUNT,
    TL_REDUCE_KINDS
} tl_reduce_kind;

/* Sums over classes, in lanes, and what their roundings lost: see soft_targets.c. */
typedef struct {
    double loss[16], loss_lost[16], share[16], share_lost[16];
} tl_dot_acc;

/* How far below 0 scores of the other row of a divergence are followed in double: an emulated FMA splits its factors,
 * which overflows from 2^996 on. */
#define TL_MIN_FMA_SAFE 0x1p990

/* In all of these, too, whole multiples of 128 elements are read. */
typedef struct {
    const char *name;
    tl_reduce_fn *fold[TL_REDUCE_KINDS][TL_FLOAT_DTYPES];
    /* the sums of two rows, the base's moment with regard to the other, and its maximum; whether -inf is in the other
     */
    int (*divergence[TL_FLOAT_DTYPES])(const void *base, const void *other, size_t count, tl_lse_acc *base_state,
                                       tl_lse_acc *other_state);
    /* the elements that are not below the threshold, and how many */
    size_t (*collect[TL_FLOAT_DTYPES])(const void *x, size_t count, double threshold, int32_t *found);
    /* exp(x) / 2^exponent * factor - subtrahend; x - subtrahend. With `streaming`, results pass by the caches; they
     * must be aligned to 64 bytes then. */
    void (*exps[TL_FLOAT_DTYPES])(const void *x, size_t count, int64_t exponent, double factor, double subtrahend,
                                  void *out, int streaming);
    void (*less[TL_FLOAT_DTYPES])(const void *x, size_t count, double subtrahend, void *out, int streaming);
    /* adds x to 16 lanes of a sum, and what roundings lose */
    void (*total[TL_FLOAT_DTYPES])(const void *x, size_t count, double *sum, double *lost);
    void (*widen[TL_FLOAT_DTYPES])(const void *x, size_t count, double *out);
    /* the same in the precision of the fold, float or double */
    void (*convert[TL_FLOAT_DTYPES])(const void *x, size_t count, void *out);
    /* the products of a row with up to 4 vectors, in that precision and so many bytes apart; just `depth` elements are
     * read */
    void (*dots[TL_FLOAT_DTYPES])(const void *x, size_t depth, const void *vectors, ptrdiff_t stride, size_t count,
                                  int from_memory, double *dots);
    /* cap tanh(factor x / cap), or factor x if the cap is 0 */
    void (*squash)(double *x, size_t count, double factor, double cap);
    /* adds share (anchor - x), which is 0 if there is no share or x is the anchor, and the share */
    void (*weigh)(const double *share, const double *x, size_t count, double anchor, tl_dot_acc *dot);
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
    int dtype; /* one of the four that are folded, perhaps TL_SWAPPED */
    int compute_dtype; /* the dtype in which it is folded, unless it lies far out: its own, or a wider one */
    double logit_scale; /* 1 if there is none */
    double softcap; /* 0 if there is none */
    double shift; /* 0 if there is none */
} tl_row;

TL_INLINE int tl_is_scaled_or_capped(const tl_row *row) { return row->logit_scale != 1 || row->softcap != 0; }

/* One score, as the row stands for it, and what a score in memory stands for. */
double tl_logit_at(const tl_backend *backend, const tl_row *row, int64_t index);
double tl_softcap(const tl_backend *backend, const tl_row *row, double score);

/* Lets a long call be given up. `poll` may be NULL; it is called now and then and stops all threads by returning 1. */
typedef struct {
    int (*poll)(void *);
    void *argument;
    volatile int *stopped;
    double last_poll;
} tl_cancel;

int tl_cancelled(tl_cancel *cancel);

/* The largest score, -inf of none; nan is passed over. As fast as memory can be read: what folds are measured by. */
double tl_maximum(const tl_backend *backend, const tl_row *row);

/* The state of a row but for the element `skip` (none if it is negative); its sum is nan if a nan or +inf was met. */
void tl_lse_row(const tl_backend *backend, const tl_row *row, int64_t skip, tl_lse_acc *state, tl_cancel *cancel);

/* The same for a part [start, end) of a row after those before it; it begins the state where `start` is 0, and looks
 * whether the sum is in range after each `block` elements. Only the part of the row is read. */
void tl_lse_range(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block, int64_t skip,
                  tl_lse_acc *state, tl_cancel *cancel);

/* The same for rows that lie beside each other in memory, class by class: TL_MAX_CLASS_MAJOR_ROWS at most, of one
 * count, stride and dtype. They are transposed round in `transposed`, of TL_TRANSPOSED_BYTES, one block at a time. */
#define TL_MAX_CLASS_MAJOR_ROWS 32
#define TL_TRANSPOSED_ROW (TL_BLOCK + 32) /* elements; not a power of two, lest rows meet in a cache */
#define TL_TRANSPOSED_BYTES (64 * TL_TRANSPOSED_ROW)
#define TL_ROWS_PER_CACHE_LINE(dtype) (64 / tl_itemsize(dtype)) /* a cache line of them */
void tl_lse_class_major(const tl_backend *backend, const tl_row *rows, const int64_t *skips, int count,
                        void *transposed, tl_lse_acc *states, tl_cancel *cancel);

/* logsumexp = offset + log; apart, since far out the logarithm would be lost in the sum. */
typedef struct {
    double offset, log;
} tl_lse;

/* log(sum(exp(row))) from the state of a row, -inf of none; or from that of its rest, a logit and the gap between. */
tl_lse tl_lse_finish(const tl_lse_acc *state, const tl_row *row);
tl_lse tl_lse_finish_with(const tl_lse_acc *rest, const tl_row *row, double logit, double gap);

TL_INLINE double tl_logsumexp(tl_lse of) { return of.offset + of.log; }

/* The logsumexp of a row from the state of all its classes. Near 0, where one logit outweighs the others, it is the sum
 * of that and log1p of the others' odds, which keeps relative digits: the row is folded once more, without that class,
 * unless it is the one (-1 if none) without which `rest` was folded. */
double tl_logsumexp_of(const tl_backend *backend, const tl_row *row, const tl_lse_acc *state, int64_t skipped,
                       const tl_lse_acc *rest, tl_cancel *cancel);

/* How far the logsumexp of the rest of a row lies above a logit; nan of a logit that is nan or +inf. */
double tl_log_odds_against(const tl_lse_acc *rest, const tl_row *row, double logit);

/* The best of a row, as a heap whose root is the worst of them. */
typedef struct {
    int64_t most, count;
    double *value;
    int64_t *id;
} tl_topk;

/* Everything about a token; see token_stats.c. Of a whole row, the logsumexp is that of tl_logsumexp_of. */
typedef struct {
    double nll, logsumexp, entropy;
    int64_t rank, argmax;
    double maximum; /* of the scores as they are in memory */
    tl_lse_acc state;
    tl_moment moment;
} tl_token_stats;

/* `best` may be NULL. */
void tl_token_stats_row(const tl_backend *backend, const tl_row *row, int64_t target, tl_token_stats *token,
                        tl_topk *best, tl_cancel *cancel);

/* The same part by part, as tl_lse_range; `own` is the target's score as it is in memory. The logsumexp is found from
 * the target's logit and the rest, as the loss is: its last bits depend on which class is the target. */
void tl_token_stats_range(const tl_backend *backend, const tl_row *row, int64_t start, int64_t end, int64_t block,
                          int64_t target, double own, tl_token_stats *token, tl_topk *best, tl_cancel *cancel);
void tl_token_stats_end(const tl_backend *backend, const tl_row *row, double own, tl_token_stats *token, tl_topk *best);

/* KL(softmax(base) || softmax(other)) of two rows of one length. */
double tl_kl_divergence(const tl_backend *backend, const tl_row *base, const tl_row *other, tl_cancel *cancel);

/* The shares that the classes of a row have in its loss: weight (kept share + uniform); -0.0 where only the weight is
 * 0, since an infinite loss is nan then. */
typedef struct {
    const char *mass; /* NULL if there are none */
    ptrdiff_t mass_stride;
    int mass_dtype;
    const char *weight; /* NULL if each is 1 */
    ptrdiff_t weight_stride;
    int weight_dtype;
    double one_minus_eps, eps_over_v;
} tl_soft_target;

TL_INLINE int tl_contributes(double share) { return tl_to_bits(share) != 0; }

/* The class of the largest share, among those whose share is not 0; -1 if there is none. `found` is their number. */
int64_t tl_soft_target_argmax(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *found,
                              tl_cancel *cancel);

/* The next soft, 64 at most, from *start on, which moves past zeros; returns how many, 0 at the end. */
int tl_soft_target_next(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *start,
                        double *share, tl_cancel *cancel);

/* The sum over the classes of share (anchor - score), and of the shares. */
double tl_target_dot(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, double anchor,
                     double *total, tl_cancel *cancel);

/* The same part by part, whose sums start as zeros, and the end of it. */
void tl_target_dot_range(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, int64_t start,
                         int64_t end, double anchor, tl_dot_acc *dot, tl_cancel *cancel);
double tl_target_dot_end(const tl_dot_acc *dot, double *total);

/* Writes a row in the precision of the fold, as it is in memory: floats, or doubles if `dtype` is float64. */
void tl_cast_row(const tl_backend *backend, const tl_row *row, int dtype, void *out);

/* Some vectors as floats, or as doubles if they are folded as such: each contiguous, `stride` bytes apart. */
typedef struct {
    char *data;
    ptrdiff_t stride;
    int64_t count;
} tl_vectors;

/* The products of rows of weights, the first of which is given, with vectors of their precision; those of one vector
 * are written beside each other. */
void tl_matvec(const tl_backend *backend, const tl_row *weights, ptrdiff_t stride, int64_t count,
               const tl_vectors *vectors, const tl_vectors *out);

/* Writes softmax(row) or log_softmax(row) to `out`, of the row's count and dtype, perhaps the row itself.
 * `large` tells that all results do not fit the caches. */
void tl_softmax(const tl_backend *backend, const tl_row *row, tl_lse lse, const tl_row *out, int large,
                tl_cancel *cancel);
void tl_log_softmax(const tl_backend *backend, const tl_row *row, tl_lse lse, const tl_row *out, int large,
                    tl_cancel *cancel);

/* Writes factor (of_softmax softmax(row) - share) times what a score changes with its logit. */
void tl_gradient(const tl_backend *backend, const tl_row *row, tl_lse lse, double factor, double of_softmax,
                 const tl_soft_target *soft, const tl_row *out, int large, tl_cancel *cancel);
double tl_softcap_grad(const tl_row *row, double score);

/* Writes one value to all elements of a row, or to one of them. */
void tl_fill(const tl_row *out, double value);
void tl_store_at(const tl_row *out, int64_t index, double value);

#endif
