/* See loss.h. */
#include "loss.h"

#include "elementwise.h"

void tl_write_gradient(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, const tl_class_odds *odds,
                       double mass, tl_cancel *cancel) {
    const double logsumexp = tl_logsumexp(odds->lse), softmax_weight = tl_softmax_weight(loss, logsumexp, mass);
    const double weight = loss->target >= 0 ? loss->target_weight : 0;
    if (logsumexp - logsumexp != 0) {
        tl_fill(loss->grad, (double)NAN);
        return;
    }
    tl_gradient(backend, logits, odds->lse, loss->grad_scale, softmax_weight + weight * loss->soft.one_minus_eps,
                &loss->soft, loss->grad, loss->nontemporal_stores, cancel);
    if (loss->target >= 0) {
        double at_target = tl_gradient_at_target(loss, weight, softmax_weight, odds->odds_against);
        tl_store_at(loss->grad, loss->target, loss->grad_scale * at_target * tl_softcap_grad(logits, odds->logit));
    }
}

double tl_loss_of_odds(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, int64_t excluded,
                       const tl_class_odds *odds, double *mass, tl_cancel *cancel) {
    const int is_class = loss->target >= 0, has_masses = is_class ? loss->soft.eps_over_v != 0 : excluded >= 0;
    tl_lse above = odds->lse; /* a shift, and how far the logsumexp is above it */
    double target_dot = 0;
    *mass = 0;
    /* the logit of the argmax: if it is the largest logit as well, differences from it lose few digits */
    if (!is_class && has_masses && odds->nll - odds->nll == 0)
        above = (tl_lse){odds->logit, odds->nll};
    if (has_masses)
        target_dot = tl_target_dot(backend, logits, &loss->soft, above.offset, mass, cancel);
    return tl_loss_of_parts(loss, odds->nll, target_dot, *mass, above.log, tl_logsumexp(odds->lse));
}

void tl_loss_begin(const tl_backend *backend, const tl_loss *loss, int64_t classes, tl_loss_acc *acc,
                   tl_cancel *cancel) {
    acc->excluded = loss->target;
    acc->needs_target_dot = loss->soft.eps_over_v != 0;
    if (loss->target < 0) {
        acc->excluded = tl_soft_target_argmax(backend, &loss->soft, classes, cancel);
        acc->needs_target_dot = acc->excluded >= 0;
    }
    acc->target_raw = acc->shift = 0;
    memset(&acc->target_dot, 0, sizeof acc->target_dot);
}

void tl_loss_set_target_logit(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, double target_raw,
                              tl_loss_acc *acc) {
    acc->target_raw = target_raw;
    /* for a class id, whose logit may be far from the largest, the first range gives the shift */
    if (loss->target < 0) {
        double logit = tl_transformed(backend, logits, target_raw);
        acc->shift = logit - logit == 0 ? logit : 0;
    }
}

void tl_loss_range(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, int64_t start, int64_t end,
                   int64_t block, tl_loss_acc *acc, tl_cancel *cancel) {
    tl_lse_range(backend, logits, start, end, block, acc->excluded, &acc->others, cancel);
    if (!acc->needs_target_dot)
        return;
    if (loss->target >= 0 && start == 0)
        acc->shift = tl_lse_finish(&acc->others, logits->compute_dtype).offset;
    tl_target_dot_range(backend, logits, &loss->soft, start, end, acc->shift, &acc->target_dot, cancel);
}

double tl_loss_end(const tl_backend *backend, const tl_row *logits, const tl_loss *loss, const tl_loss_acc *acc) {
    double mass = 0, target_dot = 0, nll = 0, above_shift = 0;
    tl_lse lse = tl_lse_finish(&acc->others, logits->compute_dtype);
    if (acc->excluded >= 0) {
        double logit = tl_transformed(backend, logits, acc->target_raw), log_odds = tl_log_odds_against_lse(lse, logit);
        nll = tl_softplus(log_odds);
        lse = tl_lse_add_class(lse, logit, log_odds);
    }
    if (acc->needs_target_dot)
        target_dot = tl_target_dot_end(&acc->target_dot, &mass);
    if (acc->needs_target_dot || loss->target < 0)
        above_shift = (lse.offset - acc->shift) + lse.log;
    return tl_loss_of_parts(loss, nll, target_dot, mass, above_shift, tl_logsumexp(lse));
}

tl_clip tl_new_clip(int is_probability, double epsilon, int dtype) {
    const double nan = (double)NAN, infinity = (double)INFINITY;
    tl_clip clip = {nan, nan, -infinity, TL_TOLERANCE, 0, 0, (dtype & ~TL_SWAPPED) != TL_FLOAT64};
    if (!is_probability)
        return clip;
    clip.lowest = epsilon;
    clip.highest = 1 - epsilon;
    clip.least = -TL_TOLERANCE;
    clip.greatest = 1 + TL_TOLERANCE;
    if (clip.is_single) {
        clip.least_loss = 0 - tl_log(clip.highest);
        clip.greatest_loss = 0 - tl_log(clip.lowest);
    }
    return clip;
}

int tl_negative_log(const tl_backend *backend, const tl_clip *clip, void *scores, size_t count, double *nll) {
    int refused = 0;
    for (size_t i = count; i % TL_GROUP != 0; i++)
        tl_set_score(clip, scores, i, 0);
    if (!backend->class_losses[clip->is_single ? TL_FLOAT32 : TL_FLOAT64](scores, count, clip, nll))
        return 0;
    for (size_t i = 0; i < count; i++) {
        double score = tl_score_at(clip, scores, i);
        refused |= tl_is_refused(clip, score);
        nll[i] = score == score ? nll[i] : 0 - score;
    }
    return refused;
}

double tl_nll_of_distribution(const tl_backend *backend, const tl_row *scores, const tl_soft_target *soft,
                              const tl_clip *clip, tl_refused *refused, tl_cancel *cancel) {
    double mass[TL_SOFT_TARGET_RUN], scores_of_run[TL_SOFT_TARGET_RUN], nll[TL_SOFT_TARGET_RUN];
    tl_term_sums sums = {0};
    tl_soft_target masses = *soft;
    int64_t start = 0;
    masses.weight = NULL;
    *refused = (tl_refused){-1, 0};
    for (int count; (count = tl_soft_target_next(backend, &masses, scores->count, &start, mass, cancel)) > 0;
         start += count) {
        for (int i = 0; i < count; i++) {
            double score = 1;
            if (mass[i] != 0)
                score = tl_load(scores->data + (start + i) * scores->stride, scores->dtype);
            tl_set_score(clip, scores_of_run, (size_t)i, score);
            if (mass[i] != 0 && tl_is_refused(clip, score) && refused->class_id < 0)
                *refused = (tl_refused){start + i, score};
        }
        tl_negative_log(backend, clip, scores_of_run, (size_t)count, nll);
        for (int i = 0; i < count; i++) {
            int64_t k = start + i;
            if (mass[i] == 0)
                continue;
            double term = tl_weighed(mass[i], nll[i]);
            if (soft->weight)
                term = tl_weighed(tl_load(soft->weight + k * soft->weight_stride, soft->weight_dtype), term);
            tl_add_term(k, term, &sums);
        }
    }
    tl_end_part(&sums);
    return tl_sum_of_parts(sums.sum, sums.lost);
}
