#include "sequences.h"

#include "scalar_math.h"

_Static_assert(TL_TOKEN_CHUNK % TL_SUM_LANES == 0 && TL_CANCEL_INTERVAL % TL_TOKEN_CHUNK == 0, "chunks");

TL_INLINE size_t chunk_length(int64_t at, int64_t stop) {
    return (size_t)(stop - at < TL_TOKEN_CHUNK ? stop - at : TL_TOKEN_CHUNK);
}

/* Loads tokens from `start` on, and counts the unmasked ones. */
static void load_chunk(const tl_tokens *tokens, int64_t start, size_t count, tl_token_chunk *to,
                       tl_sequence *sequence) {
    const double *nll = tokens->nll + start, *weight = tokens->weight ? tokens->weight + start : NULL;
    const uint8_t *mask = tokens->mask ? tokens->mask + start : NULL;
    const uint8_t *greedy = tokens->is_greedy ? tokens->is_greedy + start : NULL;
    int64_t counted = 0, likeliest = 0;
    to->count = count;
    if (weight) {
        for (size_t i = 0; i < count; i++) {
            int is_unmasked = !mask || mask[i] != 0;
            to->weight[i] = is_unmasked ? weight[i] : 0;
            to->nll[i] = is_unmasked ? weight[i] * nll[i] : 0;
            counted += is_unmasked;
        }
    } else if (mask) {
        for (size_t i = 0; i < count; i++)
            to->nll[i] = mask[i] != 0 ? nll[i] : 0;
        for (size_t i = 0; i < count; i++)
            counted += mask[i] != 0;
    } else {
        memcpy(to->nll, nll, count * sizeof *nll);
        counted = (int64_t)count;
    }
    for (size_t i = 0; greedy && i < count; i++)
        likeliest += (!mask || mask[i] != 0) && greedy[i] != 0;
    sequence->count += counted;
    sequence->greedy += likeliest;
}

/* Adds x to *sum; returns the rounding error (Knuth's TwoSum), nan where the sum is not finite. */
static double add_with_error(double *sum, double x) {
    double before = *sum, after = before + x, added = after - before;
    *sum = after;
    return (before - (after - added)) + (x - added);
}

/* Adds terms, whose number is padded with zeros to a multiple of the lanes. */
static void add_terms(const tl_backend *backend, tl_error_free_sum *to, double *terms, size_t count) {
    while (count % TL_SUM_LANES)
        terms[count++] = 0;
    backend->add_with_errors(terms, count, to);
}

/* Rounds the sum once, adds it to `total` unrounded, and returns 1; returns 0 if it is not known exactly. */
static int end_sum(const tl_error_free_sum *from, tl_superacc *total, double *rounded) {
    double sum = 0, error = 0, lost = 0;
    for (int lane = 0; lane < TL_SUM_LANES; lane++) {
        lost += from->lost[lane] + tl_abs(add_with_error(&error, add_with_error(&sum, from->sum[lane])));
        lost += tl_abs(add_with_error(&error, add_with_error(&sum, from->error[lane])));
    }
    if (lost != 0) /* or nan */
        return 0;
    *rounded = sum + error;
    tl_superacc_add(total, sum);
    tl_superacc_add(total, error);
    return 1;
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

/* The sum of weight times nll, or of the weights, by a superaccumulator: for numbers of very different magnitude. */
static double sum_again(const tl_backend *backend, const tl_tokens *tokens, const int64_t *start, const int64_t *stop,
                        int64_t runs, int of_weights, tl_superacc *total, tl_cancel *cancel) {
    tl_superacc sum = {.special = 0};
    tl_sequence counted = {0, 0, 0, 0};
    tl_token_chunk terms;
    for (int64_t run = 0; run < runs; run++)
        for (int64_t at = start[run]; at < stop[run] && !tl_cancelled(cancel); at += TL_TOKEN_CHUNK) {
            load_chunk(tokens, at, chunk_length(at, stop[run]), &terms, &counted);
            tl_superacc_add_many(backend, TL_SUM, &sum, of_weights ? terms.weight : terms.nll, terms.count);
        }
    double rounded = tl_superacc_round(&sum);
    tl_superacc_merge(TL_SUM, total, &sum);
    return rounded;
}

tl_sequence tl_sum_sequence(const tl_backend *backend, const tl_tokens *tokens, const int64_t *start,
                            const int64_t *stop, int64_t runs, tl_token_sums *sums, tl_cancel *cancel) {
    tl_sequence sequence = {0, 0, 0, 0};
    tl_error_free_sum nll = {{0}, {0}, {0}}, weight = nll;
    tl_token_chunk terms;
    for (int64_t run = 0; run < runs; run++)
        for (int64_t at = start[run]; at < stop[run]; at += TL_TOKEN_CHUNK) {
            load_chunk(tokens, at, chunk_length(at, stop[run]), &terms, &sequence);
            add_tokens(backend, &terms, sums);
            add_terms(backend, &nll, terms.nll, terms.count);
            if (tokens->weight)
                add_terms(backend, &weight, terms.weight, terms.count);
            if ((at - start[run] + TL_TOKEN_CHUNK) % TL_CANCEL_INTERVAL == 0 && tl_cancelled(cancel))
                return sequence;
        }
    if (!end_sum(&nll, &sums->nll, &sequence.nll))
        sequence.nll = sum_again(backend, tokens, start, stop, runs, 0, &sums->nll, cancel);
    sequence.weight = (double)sequence.count;
    if (tokens->weight && !end_sum(&weight, &sums->weight, &sequence.weight))
        sequence.weight = sum_again(backend, tokens, start, stop, runs, 1, &sums->weight, cancel);
    return sequence;
}
