/* The cross-entropy of a row of logits, its gradient, and the loss of probabilities for a distribution.
 *
 * With soft targets q[k] = class_weight[k] ((1 - eps) target[k] + eps / V) the loss is
 *
 *     sum over k of q[k] (logsumexp - x[k])  +  z_loss logsumexp^2
 *
 * and its derivative by the logit x[k] is (sum(q) + 2 z_loss logsumexp) softmax(x)[k] - q[k]. The gradient is that
 * times the derivative of x[k] by the raw logit: of logit_scale and softcap. A class id is the distribution that is 1
 * there and 0 elsewhere. Its term is log1p(odds against it), or softplus(log-odds against it) where the odds
 * are out of range (nll.h), since logsumexp - x[k] has no digits left where the target is nearly certain. */
#pragma once

#include "logsumexp.h"
#include "soft_targets.h"

/* The target and the options of a row's loss. With class ids, `soft` has no masses, and weights only for smoothing. */
struct tl_loss {
    tl_soft_target soft;    /* the distribution, its smoothing and its class weights */
    int64_t target;         /* the class id, -1 if the target is a distribution */
    double target_weight;   /* the class weight of the class id */
    double z_loss;          /* 0 if there is none */
    const tl_row *grad;     /* where the gradient is written, perhaps over the logits; NULL if it is not wanted */
    double grad_scale;      /* multiplies the gradient: the row's weight, over the divisor of a mean loss */
    int nontemporal_stores; /* whether the gradients of all rows together are larger than the caches */
};

/* A target class against the other classes of its row. */
typedef struct {
    double logit, nll, odds_against; /* the last is exp(log-odds against the target) */
    tl_lse lse;                      /* of all classes */
} tl_class_odds;

/* The loss from its parts: the nll of a class id (0 for a distribution); for the soft targets their target dot, sum of
 * q[k] (shift - x[k]), their mass, sum of q[k], and how far the logsumexp lies above the shift. */
TL_INLINE double tl_loss_of_parts(const tl_loss *loss, double nll, double target_dot, double mass, double above_shift,
                                  double logsumexp) {
    double of_target = loss->target >= 0 ? tl_weighed(loss->target_weight * loss->soft.one_minus_eps, nll) : 0;
    double sum = of_target + target_dot + mass * above_shift;
    return loss->z_loss != 0 ? sum + loss->z_loss * logsumexp * logsumexp : sum;
}

/* The loss of a row without its gradient, from the odds against its excluded class: the class id, or what
 * tl_soft_target_argmax returned. If that is -1, no class has mass: the loss is the z-loss only, or nan if the row has no
 * softmax. `mass` is set to the mass of the distribution or, for a class id, of smoothing only. */
double tl_loss_of_odds(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, int64_t excluded,
                       const tl_class_odds *odds, double *mass, tl_cancel *cancel);

/* Writes its gradient, from the same mass; nan if the logsumexp is not finite. */
void tl_write_gradient(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, const tl_class_odds *odds,
                       double mass, tl_cancel *cancel);

/* Parts of a gradient: the factor of softmax without the class id's own mass; and the element of the class id without
 * grad_scale, from the odds against it, since softmax - 1 has no digits left where the target is nearly certain. */
TL_INLINE double tl_softmax_weight(const tl_loss *loss, double logsumexp, double masses) {
    return loss->z_loss != 0 ? masses + 2 * loss->z_loss * logsumexp : masses;
}
TL_INLINE double tl_gradient_at_target(const tl_loss *loss, double weight, double softmax_weight, double odds_against) {
    double p = 1 / (1 + odds_against), others = odds_against > 1e300 ? 1 : odds_against * p;
    return softmax_weight * p - weight * loss->soft.one_minus_eps * others - weight * loss->soft.eps_over_v;
}

/* The same loss, without a gradient, of logits that arrive a range of classes at a time. */
typedef struct {
    int64_t excluded; /* the class that `others` leaves out: the class id, or the argmax of the distribution; or -1 */
    double target_raw; /* its raw logit */
    double shift; /* what logits are subtracted from in the target dot, sum of q[k] (shift - x[k]) */
    int needs_target_dot;
    tl_lse_acc others;
    tl_dot_acc target_dot;
} tl_loss_acc;

/* Begins a row. */
void tl_loss_begin(const tl_backend *backend, const tl_loss *loss, int64_t classes, tl_loss_acc *acc,
                   tl_cancel *cancel);
/* Gives the raw logit of the excluded class, before the first range. Of `logits`, no element is read. */
void tl_loss_set_target_logit(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, double target_raw,
                              tl_loss_acc *acc);
/* Adds the classes [start, end) after all before them; `block` as in tl_lse_range. */
void tl_loss_range(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, int64_t start, int64_t end,
                   int64_t block, tl_loss_acc *acc, tl_cancel *cancel);
/* The loss. For a class id without smoothing and z-loss it is that of the whole row to the bit, if that has no loss
 * relative to its target (nll.h); else the two differ by rounding errors. No bit depends on where ranges end, with one
 * exception: with smoothing of a class id, the shift is the offset after the first range, which may change later in
 * rows with logits beyond TL_MAX_EXACT_REDUCTION. */
double tl_loss_end(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, const tl_loss_acc *acc);

TL_INLINE int tl_is_refused(const tl_clip *clip, double score) { return score < clip->least || score > clip->greatest; }

/* The bounds that probabilities of a dtype are clipped to, [epsilon, 1 - epsilon], or what log-probabilities have. */
tl_clip tl_new_clip(int is_probability, double epsilon, int dtype);

/* Scores are float32 if a clip is of these, else float64. */
TL_INLINE double tl_score_at(const tl_clip *clip, const void *scores, size_t i) {
    return clip->is_single ? (double)((const float *)scores)[i] : ((const double *)scores)[i];
}
TL_INLINE void tl_set_score(const tl_clip *clip, void *scores, size_t i, double score) {
    if (clip->is_single)
        ((float *)scores)[i] = (float)score;
    else
        ((double *)scores)[i] = score;
}

/* The losses of scores: -log of clipped probabilities, or minus log-probabilities. The loss of a certain class is 0.0,
 * not -0.0. Both arrays have room for whole groups (TL_GROUP). Returns 1 if one of the scores is refused. */
int tl_negative_log(const tl_backend *backend, const tl_clip *clip, void *scores, size_t count, double *nll);

/* The sum of a row's terms: of parts of TL_PART classes, each in lanes that are added by halves, and these with what
 * their roundings lose. */
typedef struct {
    int64_t part;
    double sum, lost, lane[TL_GROUP];
} tl_term_sums;

TL_INLINE void tl_add_part(double part, double *sum, double *lost) {
    double before = *sum, after = before + part, other = after - before; /* Knuth's two-sum */
    *lost += (before - (after - other)) + (part - other);
    *sum = after;
}

/* Adds the lanes of a part. */
TL_INLINE void tl_end_part(tl_term_sums *sums) {
    for (int half = TL_GROUP / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            sums->lane[l] += sums->lane[l + half];
    tl_add_part(sums->lane[0], &sums->sum, &sums->lost);
    memset(sums->lane, 0, sizeof sums->lane);
}

/* Adds the term of a class: they rise. */
TL_INLINE void tl_add_term(int64_t k, double term, tl_term_sums *sums) {
    if (k / TL_PART != sums->part)
        tl_end_part(sums);
    sums->part = k / TL_PART;
    sums->lane[k % TL_GROUP] += term;
}

/* The sum of parts, perhaps infinite. */
TL_INLINE double tl_sum_of_parts(double sum, double lost) { return lost - lost == 0 ? sum + lost : sum; }

/* The first class with mass whose score is refused, and the score; the class is -1 if no score is refused. */
typedef struct {
    int64_t class_id;
    double score;
} tl_refused;

/* sum of q[k] nll[k] over the classes with mass: only their scores are read. */
double tl_nll_of_distribution(const tl_backend *backend, const tl_row *scores, const tl_soft_target *soft,
                              const tl_clip *clip, tl_refused *refused, tl_cancel *cancel);
