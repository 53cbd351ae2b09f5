#include "sequences.h"

_Static_assert(TL_CANCEL_INTERVAL % TL_TOKEN_CHUNK == 0, "chunks");

/* Loads tokens from `start` on, and counts the unmasked ones. */
static void load_chunk(const tl_tokens *tokens, int64_t start, size_t count, tl_token_chunk *to,
                       tl_sequence *sequence) {
    const double *nll = tokens->nll + start, *weight = tokens->weight ? tokens->weight + start : NULL;
    const uint8_t *mask = tokens->mask ? tokens->mask + start : NULL;
    const uint8_t *greedy = tokens->is_greedy ? tokens->is_greedy + start : NULL;
    int64_t counted = 0, likeliest = 0;
    to->count = count;
    for (size_t i = 0; i < count; i++) {
        const int is_unmasked = !mask || mask[i] != 0;
        const double number = weight ? weight[i] * nll[i] : nll[i];
        to->nll[i] = is_unmasked ? number : 0;
        if (weight)
            to->weight[i] = is_unmasked ? weight[i] : 0;
        counted += is_unmasked;
        likeliest += is_unmasked & (greedy && greedy[i] != 0);
    }
    sequence->count += counted;
    sequence->greedy += likeliest;
}

/* Rounds the sum over a sequence, and adds the exact sum to the total. */
static double end_sum(tl_superacc *sum, tl_superacc *total) {
    const double rounded = tl_superacc_round(sum, 0);
    tl_superacc_merge(TL_SUM, total, sum);
    return rounded;
}

void tl_token_sums_end(const tl_backend *backend, tl_token_sums *sums) {
    const tl_token_chunk *terms = &sums->pending;
    tl_superacc_add_many(backend, TL_SQUARES, &sums->nll_squares, terms->nll, terms->count);
    if (sums->has_weights) {
        tl_superacc_add_many(backend, TL_SQUARES, &sums->weight_squares, terms->weight, terms->count);
        for (size_t i = 0; i < terms->count; i++)
            tl_superacc_add_product(&sums->products, terms->nll[i], terms->weight[i]);
    }
    sums->pending.count = 0;
}

void tl_token_sums_merge(tl_token_sums *sums, const tl_token_sums *other) {
    tl_superacc_merge(TL_SUM, &sums->nll, &other->nll);
    tl_superacc_merge(TL_SUM, &sums->weight, &other->weight);
    tl_superacc_merge(TL_SQUARES, &sums->nll_squares, &other->nll_squares);
    tl_superacc_merge(TL_SQUARES, &sums->weight_squares, &other->weight_squares);
    tl_superacc_merge(TL_SQUARES, &sums->products, &other->products);
}

static void add_tokens(const tl_backend *backend, const tl_token_chunk *terms, tl_token_sums *sums) {
    tl_token_chunk *pending = &sums->pending;
    if (terms->count == TL_TOKEN_CHUNK && !sums->has_weights) {
        tl_superacc_add_many(backend, TL_SQUARES, &sums->nll_squares, terms->nll, terms->count);
        return;
    }
    if (pending->count + terms->count > TL_TOKEN_CHUNK)
        tl_token_sums_end(backend, sums);
    memcpy(pending->nll + pending->count, terms->nll, terms->count * sizeof *terms->nll);
    if (sums->has_weights)
        memcpy(pending->weight + pending->count, terms->weight, terms->count * sizeof *terms->weight);
    pending->count += terms->count;
}

tl_sequence tl_sum_sequence(const tl_backend *backend, const tl_tokens *tokens, const int64_t *start,
                            const int64_t *stop, int64_t runs, tl_token_sums *sums, tl_cancel *cancel) {
    tl_sequence sequence = {0, 0, 0, 0};
    tl_superacc nll = {.special = 0}, weight;
    tl_token_chunk terms;
    if (tokens->weight)
        weight = nll;
    for (int64_t run = 0; run < runs; run++)
        for (int64_t at = start[run]; at < stop[run]; at += TL_TOKEN_CHUNK) {
            const int64_t left = stop[run] - at;
            load_chunk(tokens, at, (size_t)(left < TL_TOKEN_CHUNK ? left : TL_TOKEN_CHUNK), &terms, &sequence);
            add_tokens(backend, &terms, sums);
            tl_superacc_add_many(backend, TL_SUM, &nll, terms.nll, terms.count);
            if (tokens->weight)
                tl_superacc_add_many(backend, TL_SUM, &weight, terms.weight, terms.count);
            if ((at - start[run] + TL_TOKEN_CHUNK) % TL_CANCEL_INTERVAL == 0 && tl_canceled(cancel))
                return sequence;
        }
    sequence.nll = end_sum(&nll, &sums->nll);
    sequence.weight = tokens->weight ? end_sum(&weight, &sums->weight) : (double)sequence.count;
    return sequence;
}
