/* Hashes of each quantity that kernels find: golden.c prints them, threads.c compares them, and guarded.c makes them,
 * so that valgrind sees each number used. Each thread has its own. */
#ifndef TOKENLOSS_TESTS_HASHES_H
#define TOKENLOSS_TESTS_HASHES_H

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "losses.h"
#include "platform.h"

/* What is hashed: each quantity apart, so that a hash that differs tells which one changed. */
/* clang-format off */
#define QUANTITIES(X) \
    X(logsumexp) X(nll) X(token_nll) X(token_logsumexp) X(entropy) X(rank) X(argmax) X(top_k) X(kl) \
    X(soft_target_argmax) X(soft_target_loss) X(gradient) X(softmax) X(log_softmax) \
    X(tiles_nll) X(tiles_soft_target_loss) X(tiles_logsumexp) X(tiles_entropy) \
    X(cast) X(matvec) X(logsumexp_near_0) X(clipped_losses) X(skip_zeros) \
    X(exp) X(log) X(log1p) X(softplus) X(exact_sum) \
    X(negative_log) X(is_one_hot) X(nll_of_probabilities) X(nll_of_log_probabilities) \
    X(kl_of_probs) X(token_of_probs) X(divergences) X(divergences_of_probs) X(tail) X(draws)
/* clang-format on */
#define CODE(name) Q_##name,
#define NAME_OF(name) #name,
#define LOSS_CODES(name, ...) Q_##name##_loss, Q_##name##_gradient, Q_tiles_##name##_loss,
#define LOSS_NAMES(name, ...) #name "_loss", #name "_gradient", "tiles_" #name "_loss",
typedef enum { QUANTITIES(CODE) LOSSES(LOSS_CODES) QUANTITY_COUNT } quantity;
static const char *const quantity_names[] = {QUANTITIES(NAME_OF) LOSSES(LOSS_NAMES)};

/* The quantities of one of the losses: the next after its loss are its gradient, and its loss of ranges. */
TL_INLINE quantity loss_quantity(int of) { return (quantity)(Q_class_id_loss + 3 * of); }

static _Thread_local uint64_t hashes[QUANTITY_COUNT]; /* 0 where nothing was hashed */

static void take_bits(quantity of, uint64_t bits) {
    uint64_t hash = hashes[of] ? hashes[of] : 0xcbf29ce484222325u;
    for (int i = 0; i < 8; i++)
        hash = (hash ^ (bits >> (8 * i) & 0xff)) * 0x100000001b3u; /* FNV-1a */
    hashes[of] = hash;
}

static void take(quantity of, double value) { take_bits(of, value == value ? tl_to_bits(value) : 0x7ff8000000000000u); }

/* One hash of all that was taken since the last call. */
TL_INLINE uint64_t hash_of_all(void) {
    uint64_t hash = 0;
    for (int i = 0; i < QUANTITY_COUNT; i++)
        hash = (hash ^ hashes[i]) * 0x100000001b3u;
    memset(hashes, 0, sizeof hashes);
    return hash;
}

/* Prints the hashes of what was taken since the last call, one line for each quantity. */
TL_INLINE void print_hashes(const char *of) {
    for (int i = 0; i < QUANTITY_COUNT; i++)
        if (hashes[i])
            printf("%s %s %016" PRIx64 "\n", of, quantity_names[i], hashes[i]);
    memset(hashes, 0, sizeof hashes);
}

#endif
