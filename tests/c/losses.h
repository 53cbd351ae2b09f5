/* The losses that golden.c and guarded.c compute: each kind of target, and each option. */
#ifndef TOKENLOSS_TESTS_LOSSES_H
#define TOKENLOSS_TESTS_LOSSES_H

#include "kernels.h"
#include "loss_of_row.h"
#include "rows.h"

typedef enum { CLASS_ID, DENSE, SPARSE, ONE_HOT, NO_MASS } target_kind;

/* name, kind of target, dtype of its masses, whether classes have weights, label smoothing, z-loss */
/* clang-format off */
#define LOSSES(X) \
    X(class_id, CLASS_ID, 0, 0, 0, 0) \
    X(class_id_weight, CLASS_ID, 0, 1, 0, 0) \
    X(class_id_smoothing, CLASS_ID, 0, 0, 0.1, 0) \
    X(class_id_smoothing_weight, CLASS_ID, 0, 1, 0.1, 0) \
    X(class_id_z_loss, CLASS_ID, 0, 0, 0, 1e-3) \
    X(dense_float32, DENSE, TL_FLOAT32, 0, 0, 0) \
    X(dense_float64, DENSE, TL_FLOAT64, 0, 0, 0) \
    X(dense_weight, DENSE, TL_FLOAT32, 1, 0, 0) \
    X(dense_smoothing_weight, DENSE, TL_FLOAT32, 1, 0.1, 0) \
    X(dense_z_loss, DENSE, TL_FLOAT32, 0, 0, 1e-3) \
    X(sparse_float32, SPARSE, TL_FLOAT32, 0, 0, 0) \
    X(sparse_float64, SPARSE, TL_FLOAT64, 0, 0, 0) \
    X(one_hot_int64, ONE_HOT, TL_INT64, 0, 0, 0) \
    X(one_hot_uint8_smoothing, ONE_HOT, TL_UINT8, 0, 0.1, 0) \
    X(no_mass, NO_MASS, TL_FLOAT32, 0, 0, 0) \
    X(no_mass_z_loss, NO_MASS, TL_FLOAT32, 0, 0, 1e-3)
/* clang-format on */

typedef struct {
    target_kind kind;
    int mass_dtype, has_weight;
    double smoothing, z_loss;
} loss_case;

#define LOSS_CASE(name, ...) {__VA_ARGS__},
static const loss_case loss_cases[] = {LOSSES(LOSS_CASE)};
#define LOSS_CASES ((int)(sizeof loss_cases / sizeof *loss_cases))

/* Whether the loss of ranges is that of the whole row to the bit. Where it is not, the logsumexp or the target dot is
 * made of the same terms in another order, and golden.c allows for rounding errors. */
TL_INLINE int is_same_in_ranges(const loss_case *of) {
    return (of->kind == CLASS_ID || of->kind == NO_MASS) && of->smoothing == 0 && of->z_loss == 0;
}

/* Whether the loss does not depend on where ranges end either. With smoothing of a class id it does, in its last
 * digits, where logits lie beyond TL_MAX_EXACT_REDUCTION: the first range gives the shift. */
TL_INLINE int is_same_in_any_ranges(const loss_case *of) { return of->kind != CLASS_ID || of->smoothing == 0; }

static void fill_mass(const loss_case *of, int64_t count, int64_t target, char *mass) {
    for (int64_t k = 0; k < count; k++) {
        uint64_t bits = random_bits();
        int64_t one = k == target;
        int has_mass = of->kind == DENSE || (of->kind == SPARSE && (one || bits % 64 == 0));
        if (of->mass_dtype == TL_UINT8)
            mass[k] = (char)one;
        else if (of->mass_dtype == TL_INT64)
            memcpy(mass + 8 * k, &one, sizeof one);
        else
            tl_store(mass + k * tl_itemsize(of->mass_dtype), of->mass_dtype,
                     has_mass ? (double)(bits >> 11) * 0x1p-53 : 0);
    }
}

/* The loss of a case for a row of `count` classes. Masses and weights are written to memory that has 8 and 4 bytes for
 * each class. The seed is put back: golden hashes of the rows that follow do not depend on the cases. */
TL_INLINE tl_loss make_loss(const loss_case *of, int64_t count, int64_t target, char *mass, char *weight) {
    static const double weights[] = {0.5, 2, 1, 0};
    tl_loss loss = {.target = -1, .target_weight = 1, .z_loss = of->z_loss, .grad_scale = 0.125};
    uint64_t rows_seed = seed;
    loss.soft.one_minus_eps = 1 - of->smoothing;
    loss.soft.eps_over_v = of->smoothing / (double)count;
    loss.nontemporal_stores = count % 2 == 1;
    if (of->kind == CLASS_ID) {
        loss.target = target;
        loss.target_weight = of->has_weight ? weights[target % 4] : 1;
    } else {
        fill_mass(of, count, target, mass);
        loss.soft.mass = mass;
        loss.soft.mass_stride = tl_itemsize(of->mass_dtype);
        loss.soft.mass_dtype = of->mass_dtype;
    }
    if (of->has_weight && (of->kind != CLASS_ID || of->smoothing != 0)) {
        for (int64_t k = 0; k < count; k++)
            tl_store(weight + 4 * k, TL_FLOAT32, weights[k % 4]);
        loss.soft.weight = weight;
        loss.soft.weight_stride = 4;
        loss.soft.weight_dtype = TL_FLOAT32;
    }
    seed = rows_seed;
    return loss;
}

/* The loss for a class id without any option. */
TL_INLINE tl_loss plain_loss(int64_t target) {
    return (tl_loss){.soft = {.one_minus_eps = 1}, .target = target, .target_weight = 1};
}

/* What scores of a dtype are clipped to, if they are probabilities. */
TL_INLINE tl_clip clip_of(int is_log, int dtype) { return tl_new_clip(!is_log, 1e-12, dtype); }

#endif
