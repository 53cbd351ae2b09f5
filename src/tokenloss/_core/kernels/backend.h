/* The contract of an instruction set: the functions that it must provide, the accumulators that they update, and the
 * sizes that they may rely on. The implementations are in backends/; backend.c finds those that this machine can run.
 *
 * All of them give the same bits. What fixes the bits is the order of additions below, not the width of a vector. */
#pragma once

#include "elements.h"

#define TL_LANES 64           /* element i of a row is added in lane i % 64, whatever the width of a vector */
#define TL_CHUNK 512 /* elements whose terms are added in the compute dtype before they go to 16 double lanes */
#define TL_DOT_ROWS 4     /* rows of a matrix: blocks are multiples of this */
#define TL_DOT_VECTORS 4  /* vectors that are multiplied with all rows of a block before the next ones */
#define TL_DOT_CHUNK 512 /* products that are added in the compute dtype before they go to 16 double lanes */
#define TL_READ_MULTIPLE 128 /* functions of a backend read whole multiples of so many elements */
#define TL_GROUP 16 /* short rows side by side in a group: element k of row r is at [TL_GROUP k + r] */
#define TL_GROUPS 4 /* of short rows that are reduced together */
#define TL_NLL_CLASSES 16384 /* losses of rows up to these are computed relative to the target's logit */
#define TL_FEW_CLASSES 64 /* and up to these a row in each lane, of more along the classes */
#define TL_MASSES_CLASSES 128 /* the same of rows with distributions or label smoothing */
#define TL_PART 128 /* classes of a distribution: term k is added to lane k % TL_GROUP, and lanes by halves */
#define TL_TERMS 1024 /* of distributions, that are computed before the rows of these are added up */
#define TL_FEW_MASSES 32 /* bytes: of rows up to here, all masses and scores are read */
#define TL_PICKED_CLASSES 24 /* up to here, all masses tell whether each row has one, and all scores are read */
#define TL_SHORT_ROW TL_CHUNK /* classes of a short row, at most: a single chunk */
#define TL_BLOCK_ROWS (TL_GROUPS * TL_GROUP)
/* Cody-Waite reduction x - n ln 2 is accurate for |x| <= 2^16, which holds every float16. If the maximum of a row is
 * larger, it is subtracted first, via the chunk buffer. */
#define TL_MAX_EXACT_REDUCTION 65536.0
#define TL_NEAR_ZERO 0.25 /* see tl_is_near_zero */
#define TL_BLOCK 4096 /* elements between two checks that the sum of exponentials is in range */

/* Exponentials that a softmax keeps are this many powers of two too large, so that small probabilities survive as
 * subnormals. Where they are kept, rows are this many elements apart. */
#define TL_FLOAT_KEPT_BITS 25
#define TL_DOUBLE_KEPT_BITS 60
#define TL_FLOAT_UNKEPT 0x1p-25 /* what undoes them */
#define TL_DOUBLE_UNKEPT 0x1p-60
#define TL_MAX_KEPT 2048 /* classes: of longer rows, exponentials are computed twice */
TL_INLINE size_t tl_kept_row(size_t classes) { return (classes + 15) / 16 * 16 + 16; }

/* Exact sums: numbers or their squares are cut into parts that are multiples of a unit, and a bin adds up the parts of
 * each unit as integers, spread over some lanes. A rounder is 1.5 2^52 units: a number of at most 2^51 units plus it is
 * rounded to a multiple of the unit, and what is left is at most half a unit, which is at most 2^51 of the next unit.
 * Nothing is left of a number by the last bin if its size is above BELOW; nor of its square. At most 2^11 numbers, with
 * two parts of a square below 2^44 units, are added before bins are poured: so none holds more than 2^62 units. */
#define TL_SUM_GROUP 64
#define TL_BIN_LANES 8
#define TL_SUM_BINS 3
#define TL_SQUARE_BINS 4
#define TL_BIN_GROUPS 32 /* of TL_SUM_GROUP numbers */
#define TL_SUM_ABOVE 0x1p21
#define TL_SUM_BELOW 0x1.fffffffffffffp-82 /* the last bit of 2^-81 is the third unit */
#define TL_TWO_BINS 0x1.8p-28 /* of losses log1p(u), u from which the first two bins hold them, and all three */
#define TL_THREE_BINS 0x1p-80
#define TL_SQUARE_ABOVE 0x1p7
#define TL_SQUARE_BELOW 0x1.fffffffffffffp-29 /* the square of the last bit of 2^-28 is 2^-160 */
static const double TL_SUM_ROUNDER[TL_SUM_BINS] = {0x1.8p23, 0x1.8p-29, 0x1.8p-81}; /* 2^-29, 2^-81, 2^-133 */
/* 2^-29, 2^-73, 2^-117 and 2^-161: the first three of the rounded square, the last three of what its rounding lost */
static const double TL_SQUARE_ROUNDER[TL_SQUARE_BINS] = {0x1.8p23, 0x1.8p-21, 0x1.8p-65, 0x1.8p-109};

/* Vectors of floats, or of doubles if the compute dtype is float64: each contiguous, `stride` bytes apart. */
typedef struct {
    char *data;
    ptrdiff_t stride;
    int64_t count;
} tl_vectors;

_Static_assert(TL_LANES == 64, "indices_ge has one bit of a uint64_t for each lane");
_Static_assert(TL_TERMS >= 8 * TL_PART, "the terms of a vector of rows");
_Static_assert(TL_CHUNK == 8 * TL_LANES, "a lane adds 8 terms of a chunk, as a tree");
_Static_assert(TL_READ_MULTIPLE == 2 * TL_LANES, "terms are added in pairs, and -inf fills up the last pair");
_Static_assert(TL_CHUNK % TL_READ_MULTIPLE == 0, "chunks that are not the last of a row are read where they are");
_Static_assert(TL_BLOCK % TL_CHUNK == 0, "blocks consist of whole chunks");
_Static_assert(TL_DOT_CHUNK % TL_LANES == 0, "only the last chunk of products has lanes without one");

/* First moment: sum of w (x - offset - shift), where w = exp(x - offset) 2^-ref_exp is the term of the sum. For a KL
 * divergence the factor is (x - offset - shift) - (y - offset_y - other_shift) with the logits y of the other row. */
typedef struct {
    double sum[16];
    double comp[16]; /* what their roundings lost */
    double shift, other_shift; /* representable in the compute dtype */
    const void *other; /* the elements of the other row that belong to those which are added next */
    int is_unmatched; /* whether a possible class had -inf (or, in double, less than -TL_MIN_FMA_SAFE) there */
} tl_moment;

/* Sums in lanes, and what their roundings lost. */
typedef struct {
    double sum[16], comp[16];
} tl_lane_sums;

/* Running logsumexp: sum of exp(x - offset) 2^-ref_exp, in 16 lanes of double with their rounding errors. */
typedef struct {
    double sum[16];
    double comp[16]; /* what their roundings lost */
    double offset; /* 0 unless the logits are too large for an exact argument reduction */
    int64_t ref_exp; /* reference exponent, near the maximum */
    double maximum; /* of the elements seen, by all reductions but SUMEXP; nan is skipped */
    double threshold;
    int64_t count_ge; /* number of elements >= threshold, by reductions with a moment or a count */
    int exp_overflow; /* a term is too large for the compute dtype: discard this block's sum */
    int is_padded; /* what is added next is less than a chunk, or holds -inf in place of the excluded class */
    int clamps; /* logits far below the reference were met: kernels raise all arguments to the least they can take */
    tl_moment *moment;
} tl_lse_acc;

/* Sums of mass (shift - x) and of mass over classes, each in 16 lanes; with rounding errors if the dtype is float64. */
typedef struct {
    double dot[16], dot_comp[16], mass[16], mass_comp[16];
    int compensates;
} tl_dot_acc;

/* Sums over classes of p^2, p log p and p (log p)^2, each in TL_GROUP lanes. */
typedef struct {
    double sum[3][TL_GROUP];
} tl_moment_lanes;

typedef enum {
    TL_REDUCE_SUMEXP,
    TL_REDUCE_MOMENT, /* sum, moment, maximum and count */
    TL_REDUCE_KL, /* sum, moment of a divergence, and maximum; the sum of the other row comes first and decides `clamps` */
    TL_REDUCE_MAX,
    TL_REDUCE_MAX_COUNT,
    TL_REDUCE_KINDS
} tl_reduce_kind;

/* Where to prefetch the next short rows: NULL if that is not known; the class stride of contiguous rows is 0. */
typedef struct {
    const char *data;
    ptrdiff_t row_stride, class_stride;
} tl_next_rows;

/* Rows of float32 or float64, TL_GROUP at a time: group_bytes lead to the next ones. They are neighbours in memory, and
 * class_stride bytes lead from class to class: so groups lie, and planes. But if they are apart, the classes of a row
 * are neighbours, TL_FEW_CLASSES at most, and rows lie `apart` bytes from each other. */
typedef struct {
    const char *data;
    size_t group_bytes;
    ptrdiff_t class_stride;
    size_t classes;
    int are_apart;
    ptrdiff_t apart;
} tl_few_rows;

/* What a reduction of short rows finds, for each row of its groups. */
typedef struct {
    double maximum[TL_BLOCK_ROWS];
    double ref_exp[TL_BLOCK_ROWS]; /* integers; 0 where the maximum is too large for an exact reduction */
    double sum[TL_BLOCK_ROWS]; /* of all 16 lanes, compensated */
} tl_short_sums;

/* Their moments: see tl_moment. Shifts are the maxima, 0 where these are too large or -inf. */
typedef struct {
    tl_few_rows other; /* of KL divergences, neighbours of the same class stride; without data if none */
    double other_shift[TL_BLOCK_ROWS]; /* the other logit of the first class of the maximum, as other_shift_of of kl.c */
    double shift[TL_BLOCK_ROWS];
    double sum[TL_BLOCK_ROWS];        /* of all 16 lanes, compensated */
    double most_above[TL_BLOCK_ROWS]; /* of KL divergences: by how much a logit exceeds the other row's, at most */
} tl_short_moments;

/* How many logits of short rows are >= a threshold, and the lowest class of the largest logit; nan is skipped. */
typedef struct {
    int64_t count_ge[TL_BLOCK_ROWS], argmax[TL_BLOCK_ROWS];
} tl_short_ranks;

/* What makes masses effective ones: (share mass + each) weight, with a weight for each class. */
typedef struct {
    double share, each;
    const double *weight;
} tl_weighing;

/* Losses of few rows. The targets are class ids, where with `some_masked` those that are no class do not matter; or the
 * classes of the largest logits or masses, if `by_largest` is the rows themselves or their masses, neighbours of their
 * dtype, which `weighing` makes effective ones if it is not NULL. Wanted are nll, unless they are added to bins, as losses for the distributions if there are masses; and unless
 * they are NULL, logits of targets, exp(log-odds against these), and dots: sums of logits or, if classes or rows have
 * masses, of mass (target's logit - logit), with totals of the rows' masses. What follows is for finish_losses. */
typedef struct {
    const int64_t *target;
    const tl_few_rows *by_largest; /* NULL with class ids */
    const tl_weighing *weighing;
    double *nll, *logit, *odds, *dot;
    uint64_t (*bin)[TL_BIN_LANES];
    int some_masked;
    const double *row_weight, *class_weight; /* of each row; of each class, then of what is no class */
    const double *mass;
    double total_mass;
    double *target_weight; /* set to the weights of the rows' classes */
    double *total;         /* the sums of the rows' masses, if these have their own */
} tl_lane_losses;

typedef struct tl_loss tl_loss; /* see loss.h */

/* What gradients of rows are made of: exp(x) 2^-exponent factor - subtrahend, and at_target for the target. */
typedef struct {
    double exponent[TL_BLOCK_ROWS], factor[TL_BLOCK_ROWS], subtrahend[TL_BLOCK_ROWS], at_target[TL_BLOCK_ROWS];
} tl_gradient_parts;

/* What gradients for distributions are made of: exp(x - offset) 2^-exponent factor - scale mass, times the slope of the
 * softcap at x, if there is one; rounded to this dtype. In float, there is no offset and no softcap, and factors and
 * scales are tl_fits_float. */
typedef struct {
    const double *exponent, *factor, *scale; /* of each row */
    double offset, softcap;
    int dtype;
} tl_mass_gradients;

/* For each row, the log-odds against its target, and the losses of both sides: softplus(log_odds) of the target,
 * softplus(-log_odds) of the other classes. */
typedef struct {
    double log_odds[TL_BLOCK_ROWS], nll[TL_BLOCK_ROWS], others_nll[TL_BLOCK_ROWS];
} tl_odds;

/* Which class ids are classes, and which marks rows to ignore. */
typedef struct {
    int64_t classes, ignored;
    int has_ignored;
} tl_target_range;

#define TL_MASKED INT64_MIN /* marks the class id of a row that does not count */
enum { TL_SOME_BAD = 1, TL_SOME_MASKED = 2 };

/* Sums of p, q and p log(p / q) over elements that are TL_GROUP apart, and the largest p / q: if that is infinite, the
 * last sum is to be made otherwise. The sums of p and q are nan where one is no probability. */
typedef struct {
    double p[TL_GROUP], q[TL_GROUP], dot[TL_GROUP], most[TL_GROUP];
} tl_prob_sums;

/* Which divergences of two distributions are wanted, beside KL(p || q); and the sums that they are found from: of
 * 2 (p + q), and of what divergence_body.h says. All are in 16 lanes, with their rounding errors if they are of
 * float64. */
enum { TL_REVERSE_KL = 1, TL_JS = 2, TL_TV = 4, TL_HELLINGER = 8 };
enum {
    TL_SUM_OF_BOTH,
    TL_SUM_OF_REVERSE_KL,
    TL_SUM_OF_JS,
    TL_SUM_OF_TV,
    TL_SUM_OF_HELLINGER,
    TL_DIVERGENCE_SUMS
};
#define TL_WANTS_SUM(wanted, k) (((wanted) << 1 | 1) >> (k) & 1)

typedef struct {
    double sum[TL_DIVERGENCE_SUMS][16], comp[TL_DIVERGENCE_SUMS][16];
    double base, other; /* logsumexps less the offsets of their rows */
    int wanted, clamps; /* whether logits far below the logsumexp were met */
} tl_divergence_acc;

/* The same of short rows in groups: the logsumexps are given, and the others are found. */
typedef struct {
    double base[TL_BLOCK_ROWS], other[TL_BLOCK_ROWS];
    double sum[TL_DIVERGENCE_SUMS][TL_BLOCK_ROWS]; /* of all 16 lanes, compensated */
    double unmatched[TL_BLOCK_ROWS]; /* the largest other logit of a class impossible in the base; -inf without one */
} tl_short_divergences;

#define TL_TOLERANCE 1e-3 /* by which rounding may take probabilities out of [0, 1], and log-probabilities above 0 */

/* What scores are: probabilities, which are clipped to [lowest, highest], or log-probabilities, if both are nan. A
 * score outside [least, greatest] is neither, so callers refuse it. Scores of float32 and halves are single: logarithms
 * are taken in float, and losses clipped to [least_loss, greatest_loss], since 1 - epsilon may be no float. See
 * tl_new_clip of loss.h. */
typedef struct {
    double lowest, highest, least, greatest, least_loss, greatest_loss;
    int is_single;
} tl_clip;

/* Logits of the other row of a KL divergence are raised to at least minus this in double: an emulated FMA splits its
 * factors, which overflows from 2^996 on. */
#define TL_MIN_FMA_SAFE 0x1p990

/* The sums of rows, and whether they are added to what is there. What lies `ahead` of terms, and TL_AHEAD bytes more, is
 * prefetched. */
typedef struct {
    double *sum;
    int adds;
    ptrdiff_t ahead;
} tl_sums_at;

/* The table of an instruction set, one function for each dtype of logits where that matters. Arrays of elements need no
 * alignment, except where a function says so. Functions of one or two rows, from `reduce` to `to_compute`, read whole
 * multiples of TL_READ_MULTIPLE elements, and write as many if they write one for each; the others keep to `count`. */
typedef struct {
    const char *name;

    /* Reductions of one row, see tl_reduce_kind: add contiguous elements, in native byte order, to the accumulator. Up
     * to the next multiple of TL_READ_MULTIPLE, elements must be -inf. */
    void (*reduce[TL_REDUCE_KINDS][TL_FLOAT_DTYPES])(const void *x, size_t count, tl_lse_acc *state);

    /* Writes the indices of elements >= threshold in rising order and returns how many there are. */
    size_t (*indices_ge[TL_FLOAT_DTYPES])(const void *x, size_t count, double threshold, int32_t *found);

    /* Contiguous rows of native elements, `count` of them, of at least TL_GROUP classes. Nothing outside the rows is
     * read, and nothing outside `out` written, which may be the rows themselves.
     *
     * softmax_rows: softmax or log_softmax of rows of up to TL_MAX_KEPT classes, which lie `apart` bytes from each other,
     * as results lie `out_apart`. Returns how many rows come before the TL_GROUP or fewer among which is the first whose
     * maximum is beyond TL_MAX_EXACT_REDUCTION, or that has a nan: of these, nothing is written.
     * exp_scaled_rows: exp(x) 2^-exponent factor - subtrahend or, without exponents, x - subtrahend. Rows whose `out`
     * is NULL are skipped. With `streaming` long rows bypass the caches, which would slow softmax_rows down. */
    size_t (*softmax_rows[TL_FLOAT_DTYPES])(const char *rows, ptrdiff_t apart, size_t count, size_t classes, int is_log,
                                            char *out, ptrdiff_t out_apart);
    void (*exp_scaled_rows[TL_FLOAT_DTYPES])(const char *const *rows, size_t count, size_t classes,
                                             const double *exponent, const double *factor, const double *subtrahend,
                                             char *const *out, int streaming);

    /* Adds x, a TL_CHUNK at most, to 16 lanes of a sum, and the rounding errors to `lost`. Nothing beyond `count`
     * elements is read; fewer than 16 must be the end of a row of at least 16, of which earlier ones may be read. */
    void (*sum[TL_FLOAT_DTYPES])(const void *x, size_t count, double *sum, double *lost);

    /* Of a multiple of TL_GROUP elements: the products with a factor, in double; and the elements in the compute dtype
     * (double for float64, else float). */
    void (*to_f64[TL_FLOAT_DTYPES])(const void *x, size_t count, double factor, double *out);
    void (*to_compute[TL_FLOAT_DTYPES])(const void *x, size_t count, void *out);

    /* Dot products of rows, which should fit in the second cache, with vectors of the compute dtype, rounded to it:
     * those with vector v are vector v of `out`. Reads exactly `depth` elements of each. */
    void (*dot_rows[TL_FLOAT_DTYPES])(const char *x, ptrdiff_t stride, size_t rows, size_t depth,
                                      const tl_vectors *vectors, const tl_vectors *out);

    /* Of a multiple of TL_GROUP: x = softcap tanh(scale x / softcap) in place, or scale x if the softcap is 0.
     * Infinities stay. */
    void (*softcap)(double *x, size_t count, double scale, double softcap);
    /* For as many: logarithms of probabilities, in place; nan for numbers that are not probabilities. */
    void (*logs)(double *x, size_t count);
    /* Of a multiple of TL_GROUP probabilities of each of two distributions: the sums of both. */
    void (*prob_sums)(const double *p, const double *q, size_t count, tl_prob_sums *sums);

    /* Adds a multiple of TL_LANES logits of two rows of float32 or float64 to the sums of the wanted divergences, and
     * perhaps to those of others. Returns whether a class has a logit of -inf (or, in double, below -TL_MIN_FMA_SAFE)
     * in the first row alone. */
    int (*divergences[TL_FLOAT_DTYPES])(const void *base, const void *other, size_t count, tl_divergence_acc *acc);
    /* The same sums of groups of short rows of float64: those that are wanted. */
    void (*short_divergences)(const double *base, const double *other, size_t count, size_t classes, int wanted,
                              tl_short_divergences *of);

    /* Of masses and logits of one dtype, float32 or float64: adds mass (shift - x), which is 0 where mass is 0 or x is
     * the shift, and mass. The first of `count` classes is in the first lane. Sums of float32 are not compensated. */
    void (*target_dot[TL_FLOAT_DTYPES])(const void *mass, const void *x, size_t count, double shift, tl_dot_acc *dot);
    /* The first of the largest elements; 0 if all are nan. Of halves, there are whole vectors. */
    size_t (*largest[TL_FLOAT_DTYPES])(const void *x, size_t count, double *largest);
    /* Of neighbours of this dtype, and of masses that are doubles: what target_dot adds up for each row, of float64
     * compensated; but nan where an infinite mass has the shift as its logit. */
    void (*short_dots[TL_FLOAT_DTYPES])(const tl_few_rows *rows, const tl_few_rows *masses, size_t count,
                                        const double *shift, double *dot, double *total);

    /* Adds groups of TL_SUM_GROUP numbers, or their squares, to the bins of an exact sum, as far as all numbers of a
     * group fit. Returns how many groups were added. */
    size_t (*add_exactly)(const double *x, size_t groups, int are_squares, uint64_t (*bin)[TL_BIN_LANES]);

    /* Makes class ids TL_MASKED where they are ignored, or where the byte of `mask` is 0 if that is not NULL. Returns
     * whether there are some, and whether one of the others is no class, which stays negative or too large. */
    int (*mask_targets)(const tl_target_range *range, const char *mask, ptrdiff_t mask_stride, size_t count,
                        int64_t *targets);

    /* Losses of scores of float32 or float64 for distributions of up to TL_PART classes, whose masses have the dtype of
     * the scores, or are wide: doubles. All lie next to each other. A score's loss is -log of the clipped probability,
     * or minus the log-probability. For each row, of which the last may have fewer classes, the sum over its classes of
     * mass times loss, times a weight if weights are given: TL_TERMS and 2 TL_GROUP of them. Sums of whole groups are
     * written. Where the mass is 0, 0 is added. Returns whether a score with mass is odd: negative, above what is
     * allowed, or nan. Losses of nan may be any numbers then. */
    int (*add_losses[TL_FLOAT_DTYPES])(const void *scores, const void *masses, int are_wide, size_t count,
                                       size_t classes, const double *weight, const tl_clip *clip, const tl_sums_at *to);
    /* The sums of rows in planes, each of which has `rows` terms and follows the one before. Reads and writes whole
     * vectors of rows, and never writes -0.0. */
    void (*sum_planes)(const double *term, size_t classes, size_t rows, double *sum);
    /* Of groups of rows of up to TL_FEW_CLASSES, as long as each row has a single class with mass: writes that mass and
     * its score. Returns how many groups these were. */
    size_t (*pick_masses[TL_FLOAT_DTYPES])(const tl_few_rows *scores, const tl_few_rows *masses, size_t groups,
                                           void *score, void *mass);
    /* The losses of scores; returns whether one is odd. Whole groups are read and written. */
    int (*class_losses[TL_FLOAT_DTYPES])(const void *scores, size_t count, const tl_clip *clip, double *nll);

    /* The bits of 64 native elements of any dtype that are not 0. */
    uint64_t (*nonzeros)(const void *masses, int dtype);

    /* Skips groups of 64 bytes that are all 0, which is 0 in every dtype: returns where the first other group starts,
     * or where fewer than 64 bytes are left. */
    ptrdiff_t (*skip_zeros)(const char *data, ptrdiff_t start, ptrdiff_t end);

    /* A group of short rows from TL_GROUP contiguous rows, converted to the compute dtype; and back, rounded. Exactly
     * the rows are read and written. */
    void (*interleave[TL_FLOAT_DTYPES])(const char *const *rows, size_t classes, void *group);
    void (*deinterleave[TL_FLOAT_DTYPES])(const void *group, size_t classes, char *const *rows);
    /* The same for `count` neighbouring rows in class-major layout, in as many groups as they need. Whole groups are
     * read of each class, but nothing after the last row of the last class; lanes without a row may hold anything. */
    void (*interleave_planes[TL_FLOAT_DTYPES])(const char *first, ptrdiff_t class_stride, size_t classes, size_t count,
                                               void *groups);
    void (*deinterleave_planes[TL_FLOAT_DTYPES])(const void *groups, ptrdiff_t class_stride, size_t classes,
                                                 size_t count, char *first);

    /* Of groups or planes of float32 or float64, with the bits that reduce gives each row: sums of exponentials, also
     * of rows that are apart, with `memory` for their groups; sums with moments; ranks. Memory is asked for the next
     * rows, if these are not NULL. */
    void (*short_sumexp[TL_FLOAT_DTYPES])(const tl_few_rows *rows, size_t count, const tl_next_rows *next, void *memory,
                                          tl_short_sums *sums);
    void (*short_moments[TL_FLOAT_DTYPES])(const tl_few_rows *groups, size_t count, const tl_next_rows *next,
                                           tl_short_sums *sums, tl_short_moments *moments);
    void (*short_ranks[TL_FLOAT_DTYPES])(const tl_few_rows *rows, size_t groups, const double *threshold,
                                         tl_short_ranks *ranks);
    /* Softmax or log_softmax of groups of rows, perhaps in place; `memory` has room for 64 bytes and a group, two if rows
     * are apart. Returns the number of groups before the first for which softmax_rows would write nothing. */
    size_t (*lane_softmax[TL_FLOAT_DTYPES])(const tl_few_rows *rows, size_t groups, int is_log, void *memory,
                                            const tl_few_rows *to);

    /* Losses of rows for class ids, given their targets; these classes' logits, and exp(log-odds against the target),
     * as nll_body.h explains. A bit is returned for each row, modulo 64: where it is 0, one of its rows is far out or has
     * no class as its target, and nothing is right of it, nor of bins. lane_losses takes a multiple of TL_GROUP rows,
     * TL_BIN_GROUPS groups of TL_SUM_GROUP at most. row_losses takes contiguous rows of more than TL_FEW_CLASSES classes,
     * with the same bits: no byte outside of them is read, nor of those without a class; but results of whole groups
     * are written. Rows may be given in pieces, in order, of multiples of TL_CHUNK classes but the last: with sums that
     * are `carried` for each row, 0 at first, with targets as counted from a piece's start, and their logits, nan without
     * one. Losses are right after the last piece. */
    uint64_t (*lane_losses[TL_FLOAT_DTYPES])(const tl_few_rows *rows, size_t count, const tl_lane_losses *of);
    /* Writes the gradients of such rows, perhaps over their logits; without targets, if that is NULL. */
    void (*lane_gradients[TL_FLOAT_DTYPES])(const tl_few_rows *rows, size_t count, const int64_t *target,
                                            const tl_gradient_parts *of, const tl_few_rows *to);
    /* The same for distributions. Masses have the dtype of the rows, or are wide: doubles. All rows are neighbours; the
     * gradients may lie over the logits. */
    void (*mass_gradients[TL_FLOAT_DTYPES])(const tl_few_rows *rows, const tl_few_rows *masses, int are_wide,
                                            size_t count, const tl_mass_gradients *of, const tl_few_rows *to);
    uint64_t (*row_losses[TL_FLOAT_DTYPES])(const char *const *rows, size_t count, size_t classes,
                                            const int64_t *target, tl_lane_sums *carried, double *logit, double *nll,
                                            double *odds);

    /* Of rows, a multiple of TL_GROUP, or of 8 at first: bits of maxima that are not too large for an exact reduction;
     * logarithms of sums of this dtype, as tl_log_of_sum; log-odds, losses; KL divergences, and bits of those that are
     * right; entropies, from odds and the moment of the other classes; exp(x) in place; and, for rows of this dtype,
     * exponents and factors with which exp(x) 2^-exponent factor is `factor` times softmax(x), and a bit for each
     * logsumexp that is not far out; in float, and unless `scale` is NULL, if scales and factors are tl_fits_float. */
    void (*lse_logs)(const double *sum, const double *ref_exp, size_t count, int dtype, double *log);
    uint64_t (*near)(const double *maximum, size_t count);
    void (*log_odds)(const double *offset, const double *log, const double *logit, size_t count, tl_odds *odds);
    uint64_t (*kl_of_sums)(const tl_short_sums *base, const tl_short_sums *other, const tl_short_moments *moments,
                           size_t count, int dtype, double *base_log, double *other_log, double *kl);
    void (*entropies)(const tl_odds *odds, const double *log, const double *sum, const tl_short_moments *moments,
                      size_t count, double *entropy);
    void (*exps)(double *x, size_t count);
    /* Turns masses into effective ones, in place: (share mass + each) weight, with one weight for each `run` masses, or
     * none. May also write the next 7 numbers. */
    void (*weigh_masses)(double *mass, size_t count, double share, double each, const double *weight, size_t run);
    void (*second_moments)(const double *x, size_t count, double logsumexp, tl_moment_lanes *to);
    uint64_t (*softmax_factors)(const double *logsumexp, const double *scale, size_t count, int dtype, double *exponent,
                                double *factor);
    /* Of as many rows: their losses with options, and their weights, if there are any; both are 0 where masked. Returns
     * a bit, as above, for each row whose dot is not finite; of masses of their own, whose loss is not, or their sum is
     * not above 0. */
    uint64_t (*finish_losses)(const tl_loss *loss, const tl_lane_losses *of, size_t classes, size_t count, double *losses,
                              double *weights);
    /* For the same number of rows, what their gradients are made of, times `scale`: the exponents are not set, and
     * factors belong to the softmax. `mass` is the mass of the distribution or, for a class id, what smoothing adds;
     * `weight` is the weight of the class id, or 0 for a distribution. */
    void (*gradient_parts)(const tl_loss *loss, const double *logsumexp, const double *odds_against,
                           const double *mass, const double *weight, const double *scale, size_t count,
                           tl_gradient_parts *parts);
} tl_backend;

/* Instruction sets, best first. */
typedef enum { TL_AVX512, TL_AVX2, TL_NEON, TL_PORTABLE, TL_BACKENDS } tl_backend_id;

extern const tl_backend tl_avx512, tl_avx2, tl_neon, tl_portable;

/* NULL if this machine cannot run it. */
const tl_backend *tl_find_backend(tl_backend_id id);

/* Whether this machine has AVX-512 and its instruction for bfloat16. */
int tl_has_avx512_bf16(void);

/* Whether this machine has AMX for bfloat16 and the system grants it to this process, which this function requests. */
int tl_has_amx_bf16(void);
