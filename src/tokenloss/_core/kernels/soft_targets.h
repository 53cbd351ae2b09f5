/* Cross-entropy of a target distribution: label smoothing, class weights, sparse or dense probabilities. */
#pragma once

#include "cancel.h"
#include "row.h"

/* Effective target distribution: weight[k] (one_minus_eps mass[k] + eps_over_v). -0.0 stands for a class that has
 * target mass but weight 0: its score is read, and adds 0 unless it is nan. +0.0 means that the class is skipped. */
typedef struct {
    const char *mass; /* NULL without one: only label smoothing */
    ptrdiff_t mass_stride;
    int mass_dtype;
    const char *weight; /* NULL if each is 1 */
    ptrdiff_t weight_stride;
    int weight_dtype;
    double one_minus_eps, eps_over_v;
} tl_soft_target;

TL_INLINE int tl_contributes(double mass) { return tl_to_bits(mass) != 0; }

/* The loss of a class times its mass or weight: 0 where that is 0, also of an infinite loss. */
TL_INLINE double tl_weighed(double weight, double nll) {
    double product = weight * nll;
    return TL_UNLIKELY(product != product) && weight == 0 && nll == (double)INFINITY ? 0 : product;
}

/* The effective mass of a class. */
TL_INLINE double tl_soft_target_at(const tl_soft_target *soft, int64_t k) {
    double mass = soft->eps_over_v;
    if (soft->mass)
        mass += soft->one_minus_eps * tl_load(soft->mass + k * soft->mass_stride, soft->mass_dtype);
    if (!soft->weight || mass == 0)
        return mass;
    mass *= tl_load(soft->weight + k * soft->weight_stride, soft->weight_dtype);
    return mass == 0 ? -0.0 : mass;
}

/* The effective masses of classes [start, end), a chunk at most, where they are or written to `mass`: as float64, or as
 * float32 where tl_masses_dtype is that. */
int tl_masses_dtype(const tl_soft_target *soft);
const void *tl_masses_of(const tl_backend *backend, const tl_soft_target *soft, int64_t start, int64_t end, int dtype,
                         double *mass);

/* The effective masses of rows in lanes, written as doubles in groups. They may lie over masses that are such. */
tl_few_rows tl_weigh_groups(const tl_backend *backend, const tl_soft_target *soft, const tl_few_rows *masses, int dtype,
                            size_t groups, double *to);

/* The class of the largest mass among the classes that contribute; -1 if none does. */
int64_t tl_soft_target_argmax(const tl_backend *backend, const tl_soft_target *soft, int64_t count, tl_cancel *cancel);

/* The class of masses that are one-hot without smoothing and class weights: a single 1, all others 0; or -1. */
int64_t tl_one_hot_class(const tl_backend *backend, const tl_soft_target *soft, int64_t count, tl_cancel *cancel);

#define TL_SOFT_TARGET_RUN 64

/* The next masses from *start, which moves past zeros: TL_SOFT_TARGET_RUN at most. Returns how many; 0 at the end. */
int tl_soft_target_next(const tl_backend *backend, const tl_soft_target *soft, int64_t count, int64_t *start,
                        double *mass, tl_cancel *cancel);

/* The sum over classes of mass (shift - logit), and the sum of masses. Logits of classes that do not contribute are not
 * read, where they make whole runs. */
double tl_target_dot(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, double shift,
                     double *total, tl_cancel *cancel);

/* The same range by range, with an accumulator that starts as zeros; and its end. */
void tl_target_dot_range(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft, int64_t start,
                         int64_t end, double shift, tl_dot_acc *dot, tl_cancel *cancel);
double tl_target_dot_end(const tl_dot_acc *dot, double *total);
