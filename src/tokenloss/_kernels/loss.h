/* The cross-entropy of a row of logits, its gradient, and the loss of probabilities for a distribution.
 *
 * With soft targets q[k] = class_weight[k] ((1 - eps) target[k] + eps / V) the loss is
 *
 *     sum over k of q[k] (logsumexp - x[k])  +  z_loss logsumexp^2
 *
 * and its derivative by x[k], before soft capping, is (sum(q) + 2 z_loss logsumexp) softmax(x)[k] - q[k]. A class id is
 * the distribution that is 1 there. Its own term is softplus(log-odds against it), which keeps the digits of a target
 * that is nearly certain. */
#ifndef TOKENLOSS_LOSS_H
#define TOKENLOSS_LOSS_H

#include "backend.h"
#include "cancel.h"
#include "logsumexp.h"
#include "row.h"
#include "soft_targets.h"

/* What the loss of a row depends on besides its logits. */
typedef struct {
    tl_soft_target soft;  /* the distribution, unless the target is a class id; smoothing, with its class weights */
    int64_t target;       /* the class id, -1 if the target is a distribution */
    double target_weight; /* the class weight of the class id */
    double z_loss;
    const tl_row *grad;     /* where the gradient goes, NULL if it is not wanted */
    double grad_scale;      /* multiplies the gradient: of a mean, 1 / its divisor */
    int nontemporal_stores; /* whether the gradients of all rows together exceed the caches */
} tl_loss;

/* The loss for a class id, given the logsumexp of all other classes. */
double tl_loss_of_class(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, const tl_lse_acc *others,
                        tl_cancel *cancel);

/* The loss for a distribution; `argmax` is its class of the largest mass, -1 if it has none: then, without z-loss, no
 * logit is read. */
double tl_loss_of_distribution(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, int64_t argmax,
                               tl_cancel *cancel);

/* Whether integer targets of a row are one-hot: a single 1, all others 0. `argmax` and `nonzero` are what
 * tl_soft_target_argmax found. */
int tl_is_one_hot(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t argmax, int64_t nonzero,
                  tl_cancel *cancel);

/* The same loss over logits that arrive a range of classes at a time. */
typedef struct {
    int64_t
        excluded; /* the class that `others` leaves out, -1 if none: the class id, or the argmax of the distribution */
    double target_raw; /* its logit as it is in memory: has to be known before the first range */
    double shift; /* of the target dot, sum of q[k] (shift - x[k]) */
    int needs_target_dot;
    tl_lse_acc others;
    tl_dot_acc target_dot;
} tl_loss_acc;

/* Begins a row; `nonzero` is the number of classes with mass in a distribution. */
void tl_loss_begin(const tl_backend *backend, const tl_loss *loss, int64_t classes, tl_loss_acc *acc, int64_t *nonzero,
                   tl_cancel *cancel);
void tl_loss_set_target_logit(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, double target_raw,
                              tl_loss_acc *acc);
/* Classes [start, end); `block` as in tl_lse_range. */
void tl_loss_range(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, int64_t start, int64_t end,
                   int64_t block, tl_loss_acc *acc, tl_cancel *cancel);
double tl_loss_end(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, const tl_loss_acc *acc);

/* Scores that are probabilities, clipped to [lowest, highest], or log-probabilities, where both are nan. Those outside
 * [least, greatest] are refused. */
typedef struct {
    double lowest, highest, least, greatest;
} tl_clip;

TL_INLINE int tl_is_refused(const tl_clip *clip, double score) { return score < clip->least || score > clip->greatest; }

/* Turns scores into losses: -log of clipped probabilities, or the negative of log-probabilities; 0.0, not -0.0, of one
 * that is certain. */
void tl_negative_log(const tl_backend *backend, const tl_clip *clip, double *scores, size_t count);

/* What a sum over a distribution met. */
typedef struct {
    int64_t nonzero, last; /* how many classes have mass, and the last of them */
    int64_t refused; /* the first class whose score was refused, -1 if none was */
    double refused_score;
} tl_seen;

/* sum of q[k] nll[k] over the classes with mass: only their scores are read. */
double tl_nll_of_distribution(const tl_backend *backend, const tl_row *scores, const tl_soft_target *soft,
                              const tl_clip *clip, tl_seen *seen, tl_cancel *cancel);

#endif
