/* Fuzzes the kernels: see run.sh. Bytes of the input choose rows, their layout in memory, and what is computed; every
 * backend of the machine must find what the portable one finds in plain rows, bit for bit. All memory that is read or
 * written is allocated to the byte, so that AddressSanitizer sees a step beyond. */
#include "blocks.h"
#include "plain_rows.h"
#include "question.h"

static void compare_parts_of_loss(const tl_row *row, int64_t target) {
    tl_lse_acc others;
    compare("maximum", tl_maximum(backend, row));
    tl_lse_row(backend, row, target, &others, &cancel);
    tl_lse rest = tl_lse_finish(&others, row->compute_dtype);
    double logit = tl_logit_at(backend, row, target), log_odds = tl_log_odds_against_lse(rest, logit);
    tl_lse lse = tl_lse_add_class(rest, logit, log_odds);
    compare("offset of a logsumexp", lse.offset);
    compare("log of a logsumexp", lse.log);
}

/* Compares a sum with that of the definition, in long double, unless that is not finite. */
static void compare_with_oracle(const char *what, double value, long double oracle, long double tolerance) {
    if (fabsl(oracle) + tolerance < 1e300L && !(fabsl((long double)value - oracle) <= tolerance)) {
        fprintf(stderr, "%s on %s is %.17g, not %.17Lg +- %.2Lg\n", what, backend->name, value, oracle, tolerance);
        abort();
    }
}

/* The loss by its definition: the sum of q[k] (logsumexp - x[k]), and z_loss logsumexp^2. */
static void check_loss(const tl_row *row, const tl_loss *loss, double value) {
    long double maximum = -(long double)INFINITY, largest = 0, sum = 0, oracle = 0, scale = 0, mass = 0;
    for (int64_t k = 0; k < row->count; k++) {
        double logit = tl_logit_at(backend, row, k);
        maximum = (long double)logit > maximum ? (long double)logit : maximum;
        largest = (long double)tl_abs(logit) > largest ? (long double)tl_abs(logit) : largest;
        if (!(tl_abs(logit) < 1e300)) /* special values have rules of their own, which tests in Python hold */
            return;
    }
    for (int64_t k = 0; k < row->count; k++)
        sum += expl((long double)tl_logit_at(backend, row, k) - maximum);
    long double logsumexp = maximum + logl(sum);
    for (int64_t k = 0; k < row->count; k++) {
        long double q = (long double)tl_soft_target_at(&loss->soft, k);
        if (k == loss->target)
            q += (long double)loss->target_weight * (long double)loss->soft.one_minus_eps;
        long double term = q * (logsumexp - (long double)tl_logit_at(backend, row, k));
        oracle += term;
        scale += fabsl(term);
        mass += fabsl(q);
    }
    /* of a logsumexp: the promise in float32, or rounding errors of the largest logit; of masses: steps of subnormals */
    long double error = (row->compute_dtype == TL_FLOAT64 ? 0 : 2e-7L) + 1e-14L * (1 + largest);
    long double z_loss = (long double)loss->z_loss;
    compare_with_oracle("loss", value, oracle + z_loss * logsumexp * logsumexp,
                        (mass + 2 * z_loss * fabsl(logsumexp) + z_loss) * error + 1e-14L * scale +
                            1e-14L * z_loss * logsumexp * logsumexp +
                            0x1p-1074L * (long double)row->count * (1 + largest));
}

/* The loss of a row, and its gradient in a row of its own or over the logits. */
static void compare_losses(const question *all, const tl_row *row, const tl_soft_target *soft, int is_plain) {
    tl_loss loss = loss_of_question(all, soft, all->target);
    compare_parts_of_loss(row, all->target);
    double value = loss_of_row(backend, row, &loss, &cancel);
    compare("loss", value);
    if (is_plain)
        check_loss(row, &loss, value);
    if (!all->has_grad)
        return;
    int in_place = all->in_place && !is_plain;
    tl_row logits = *row;
    placed out = in_place
                     ? place_row(all, &all->row, 0, all->count, all->row_layout, &logits)
                     : make_room(all->row.dtype, 0, all->count, is_plain ? plain(all->row.dtype) : all->out_layout);
    tl_row grad = {out.data, all->count, out.stride, out.dtype, all->row.dtype, 1, 0, 0, 0};
    loss.grad = &grad;
    loss.nontemporal_stores = all->large && !is_plain;
    compare("loss with its gradient", loss_of_row(backend, &logits, &loss, &cancel));
    if (in_place)
        compare_row("gradient of a loss", &out, all->count);
    else
        compare_written("gradient of a loss", &out, all->count);
    free(out.memory);
}

/* Compares class-major rows, each beginning with another class. They are copied first, unless they are plain. */
static void compare_class_major(const question *all, int is_plain) {
    tl_row_block rows = {.count = (int)all->interleaved};
    layout how = all->row_layout;
    how.stride = all->interleaved * tl_itemsize(all->row.dtype);
    placed memory = make_room(all->row.dtype, 0, all->count * all->interleaved,
                              (layout){0, tl_itemsize(all->row.dtype), how.misaligned});
    ptrdiff_t size = tl_itemsize(all->row.dtype);
    char *copies = allocate((size_t)(all->interleaved * tl_copied_row(all->count, all->row.dtype) + 64));
    for (int64_t r = 0; r < all->interleaved; r++) {
        placed copy = place_row(all, rotated(all, &all->row, r), 0, all->count,
                                is_plain ? plain(all->row.dtype) : (layout){how.swapped, size, 0}, &rows.row);
        for (int64_t i = 0; i < all->count; i++)
            memcpy(memory.data + i * how.stride + r * size, copy.data + i * size, (size_t)size);
        rows.data[r] = memory.data + r * size;
        free(copy.memory);
    }
    rows.row.stride = how.stride;
    tl_copy_rows(backend, &rows, copies);
    for (int r = 0; r < rows.count; r++) {
        const tl_row row = tl_row_of_block(&rows, r);
        tl_lse_acc state;
        tl_lse_row(backend, &row, r % 2 ? -1 : all->target, &state, &cancel);
        compare("logsumexp of class-major rows", tl_logsumexp(tl_lse_finish(&state, row.compute_dtype)));
    }
    free(copies);
    free(memory.memory);
}

static void compare_token(const tl_token_stats *token, const tl_topk *best) {
    compare("token's loss", token->nll);
    compare("token's logsumexp", token->logsumexp);
    compare("token's entropy", token->entropy);
    compare_bits("rank", (uint64_t)token->rank);
    compare_bits("argmax", (uint64_t)token->argmax);
    for (int64_t i = 0; i < best->most; i++) {
        compare("best log-probability", best->value[i]);
        compare_bits("best class", (uint64_t)best->id[i]);
    }
}

static tl_topk make_best(const question *all) {
    size_t most = (size_t)all->most_best;
    return (tl_topk){all->most_best, 0, allocate(most * sizeof(double)), allocate(most * sizeof(int64_t)), 0};
}

static void free_best(tl_topk *best) {
    free(best->value);
    free(best->id);
}

static int by_id(const void *a, const void *b) {
    return (*(const int64_t *)a > *(const int64_t *)b) - (*(const int64_t *)a < *(const int64_t *)b);
}

/* Without the best classes: the logsumexp by its definition in long double, and draws that are possible, in order. */
static void compare_tail(const question *all, const tl_row *row, tl_topk *best) {
    tl_tail *tail = allocate(sizeof *tail);
    int64_t count = all->depth % 50, *drawn = allocate((size_t)count * sizeof(int64_t)), last = -1, support = 0, i = 0;
    double *uniform = allocate((size_t)count * sizeof(double));
    for (int64_t k = 0; k < count; k++)
        uniform[k] = k % 3 ? all->lowest : (double)(k % 2);
    for (int64_t k = 0; k < count; k += 3)
        uniform[k] = k % 2 ? 0x1.fffffffffffffp-1 : 0;
    qsort(best->id, (size_t)best->most, sizeof(int64_t), by_id);
    *tail = (tl_tail){.excluded = best->id, .count = best->most};
    long double maximum = -(long double)INFINITY, sum = 0, largest = 0;
    int is_special = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t k = i = 0; k < row->count; k++) {
            double logit = tl_logit_at(backend, row, k);
            if (i < best->most && best->id[i] == k) {
                i++;
                continue;
            }
            is_special |= !(logit < 1e300) || (logit < -1e300 && logit > -(double)INFINITY);
            /* relative to the maximum, in float32, such a logit is -inf */
            is_special |= row->compute_dtype != TL_FLOAT64 && logit > -(double)INFINITY && maximum - logit > 3.4e38L;
            maximum = logit > maximum ? (long double)logit : maximum;
            support += pass && logit > -(double)INFINITY;
            if (pass && logit > -(double)INFINITY) {
                sum += expl((long double)logit - maximum);
                largest = fabsl((long double)logit) > largest ? fabsl((long double)logit) : largest;
            }
        }
    tl_tail_of(backend, row, (double)maximum + tl_abs(all->shift), tail, &cancel);
    compare("logsumexp of a tail", tail->log_mass);
    compare_bits("support of a tail", (uint64_t)tail->support);
    if (!is_special && support > 0)
        compare_with_oracle("logsumexp of a tail", tail->log_mass, maximum + logl(sum),
                            (row->compute_dtype == TL_FLOAT64 ? 0 : 2e-7L) + 1e-14L * (1 + largest));
    if (!is_special && support != tail->support)
        abort();
    if (tail->support > 0 && tail->log_mass == tail->log_mass && count > 0) {
        tl_tail_draw(backend, row, tail, 0.1, uniform, count, drawn);
        for (int64_t k = 0; k < count; last = drawn[k++]) {
            compare_bits("class drawn from a tail", (uint64_t)drawn[k]);
            if (drawn[k] < last || drawn[k] < 0 || drawn[k] >= row->count ||
                bsearch(&drawn[k], best->id, (size_t)best->most, sizeof(int64_t), by_id) ||
                !(tl_logit_at(backend, row, drawn[k]) > -(double)INFINITY))
                abort();
        }
    }
    free(tail);
    free(drawn);
    free(uniform);
}

static void compare_token_stats(const question *all, const tl_row *row) {
    tl_topk best = make_best(all);
    tl_token_stats token;
    tl_token_stats_row(backend, row, all->target, &token, best.most ? &best : NULL, &cancel);
    compare_token(&token, &best);
    compare_tail(all, row, &best);
    free_best(&best);
    double logsumexp = logsumexp_of_row(backend, row, &cancel);
    compare("logsumexp", logsumexp);
    double size = tl_abs(logsumexp) > 1 ? tl_abs(logsumexp) : 1;
    if (logsumexp - logsumexp == 0 ? !(tl_abs(token.logsumexp - logsumexp) <= 4e-7 * size)
                                   : token.logsumexp - token.logsumexp == 0) {
        fprintf(stderr, "a token's logsumexp on %s is %a, that of its row %a\n", backend->name, token.logsumexp,
                logsumexp);
        abort();
    }
}

/* The same range by range, of which only one is in memory at a time; plain rows are one range, except with smoothing of
 * a class id, where the first range gives the shift. */
static void compare_parts(const question *all, const tl_row *whole, const tl_soft_target *soft, layout how,
                          int is_plain) {
    tl_topk best = make_best(all);
    tl_token_stats token;
    tl_loss loss = loss_of_question(all, soft, all->target);
    tl_loss_acc acc;
    int64_t length = is_plain && !(all->by_class && all->smoothing != 0) ? all->count : all->part;
    double target_raw = tl_load(whole->data + all->target * whole->stride, whole->dtype);
    tl_loss_begin(backend, &loss, all->count, &acc, &cancel);
    if (acc.excluded >= 0)
        tl_loss_set_target_logit(backend, whole, &loss,
                                 tl_load(whole->data + acc.excluded * whole->stride, whole->dtype), &acc);
    for (int64_t start = 0, end; start < all->count; start = end) {
        tl_row part;
        end = all->count - start < length ? all->count : start + length;
        placed copy = place_row(all, &all->row, start, end, how, &part);
        tl_loss_range(backend, &part, &loss, start, end, PART, &acc, &cancel);
        tl_token_stats_range(backend, &part, start, end, PART, all->target, target_raw, &token,
                             best.most ? &best : NULL, &cancel);
        free(copy.memory);
    }
    tl_token_stats_end(backend, whole, target_raw, &token, best.most ? &best : NULL);
    double value = tl_loss_end(backend, whole, &loss, &acc);
    compare("loss by parts", value);
    if (is_plain)
        check_loss(whole, &loss, value);
    compare_token(&token, &best);
    free_best(&best);
}

static void compare_pairs(const tl_row *base, const tl_row *other, int64_t target) {
    for (tl_definitions definitions = TL_EXACT; definitions <= TL_LLAMA_CPP; definitions++) {
        tl_pair pair = tl_pair_row(backend, base, other, target, base->compute_dtype, definitions, &cancel);
        compare("loss of a pair", pair.nll);
        compare("loss of the base of a pair", pair.base_nll);
        compare("divergence of a pair", pair.kl);
        compare("tops of a pair", pair.is_same_top);
        compare("change of a pair", pair.change);
        compare("logsumexp of the base of a pair", tl_logsumexp(pair.base_lse));
    }
}

static void compare_divergences(const tl_row *row, const tl_row *other_row, int64_t target) {
    tl_row base = *row, other = *other_row;
    base.logit_scale = other.logit_scale = 1;
    base.softcap = other.softcap = 0;
    set_common_dtype(&base, &other);
    compare("divergence", tl_kl_divergence(backend, &base, &other, &cancel).kl);
    compare("divergence the other way", tl_kl_divergence(backend, &other, &base, &cancel).kl);
    tl_kl found = tl_kl_divergence(backend, &base, &other, &cancel);
    tl_divergences further = tl_divergences_of(backend, &base, &other, found.base, found.other,
                                               TL_REVERSE_KL | TL_JS | TL_TV | TL_HELLINGER, &cancel);
    compare("reverse divergence", further.reverse_kl);
    compare("Jensen-Shannon divergence", further.js);
    compare("total variation", further.tv);
    compare("Hellinger distance", further.hellinger);
    compare_pairs(&base, &other, target);
}

/* The sum of masses times -log of scores, and the first of these that is refused. */
static void compare_nll(const question *all, const tl_row *scores, const tl_soft_target *soft, int is_log) {
    const tl_clip clip = tl_new_clip(!is_log, all->lowest, scores->dtype);
    int64_t refused = -1;
    long double oracle = 0, scale = 0;
    tl_soft_target masses = *soft; /* their product with weights would be rounded, roughly if it is subnormal */
    masses.weight = NULL;
    tl_refused first;
    double nll = tl_nll_of_distribution(backend, scores, soft, &clip, &first, &cancel);
    for (int64_t k = 0; k < all->count; k++) {
        double mass = tl_soft_target_at(&masses, k), score = tl_load(scores->data + k * scores->stride, scores->dtype);
        if (!tl_contributes(tl_soft_target_at(soft, k)))
            continue;
        long double weight = soft->weight ? tl_load(soft->weight + k * soft->weight_stride, soft->weight_dtype) : 1;
        if (refused < 0 && (score < clip.least || score > clip.greatest))
            refused = k;
        long double clipped = (long double)(score < clip.lowest    ? clip.lowest
                                            : score > clip.highest ? clip.highest
                                                                   : score);
        long double term = weight * (long double)mass * -(is_log ? (long double)score : logl(clipped));
        oracle += term;
        scale += fabsl(term);
    }
    compare("nll of a distribution", nll);
    if (first.class_id != refused) {
        fprintf(stderr, "the refused score of a distribution on %s differs\n", backend->name);
        abort();
    }
    compare("refused score", first.score);
    compare_with_oracle("nll of a distribution", nll, oracle, (clip.is_single ? 1e-7L : 1e-15L) * scale + 1e-300L);
}

static void compare_one_hot(const question *all, const tl_soft_target *soft) {
    int64_t others = 0, ones = 0;
    for (int64_t k = 0; k < all->count; k++) {
        double mass = tl_load(soft->mass + k * soft->mass_stride, soft->mass_dtype);
        ones += mass == 1;
        others += mass != 0 && mass != 1;
    }
    if ((tl_one_hot_class(backend, soft, all->count, &cancel) >= 0) != (ones == 1 && others == 0)) {
        fprintf(stderr, "a one-hot distribution on %s is not told from others\n", backend->name);
        abort();
    }
}

static void compare_soft_targets(const question *all, const tl_row *row, const tl_soft_target *soft) {
    double mass[64], total;
    compare("sum of masses' logits", tl_target_dot(backend, row, soft, all->shift, &total, &cancel));
    compare("sum of masses", total);
    if (!soft->mass)
        return;
    compare_nll(all, row, soft, 0);
    compare_nll(all, row, soft, 1);
    compare_one_hot(all, soft);
    compare_bits("argmax class", (uint64_t)tl_soft_target_argmax(backend, soft, all->count, &cancel));
    for (int64_t start = 0, some; (some = tl_soft_target_next(backend, soft, all->count, &start, mass, &cancel));
         start += some)
        for (int64_t i = 0; i < some; i++)
            if (tl_contributes(mass[i])) { /* where runs end may depend on what can be skipped */
                compare_bits("class of a mass", (uint64_t)(start + i));
                compare("mass", mass[i]);
            }
}

typedef enum { SOFTMAX, LOG_SOFTMAX, GRADIENT, WRITTEN } written;

/* What is written for each class, to a row of its own or over the logits. */
static void compare_outputs(const question *all, const tl_row *row, const tl_soft_target *soft, int is_plain) {
    static const char *const names[] = {"softmax", "log_softmax", "gradient"};
    tl_lse_acc state;
    tl_lse_row(backend, row, -1, &state, &cancel);
    tl_lse lse = tl_lse_finish(&state, row->compute_dtype);
    double logsumexp = tl_logsumexp(lse);
    compare("logsumexp", logsumexp);
    if (logsumexp - logsumexp != 0) /* all that is written then is nan */
        return;
    int large = all->large && !is_plain;
    for (written what = 0; what < WRITTEN; what++) {
        if (what == LOG_SOFTMAX && tl_is_transformed(row))
            continue;
        tl_row logits = *row, out_row;
        placed copy = {0}, out;
        if (all->in_place && !is_plain) {
            copy = place_row(all, &all->row, 0, all->count, all->row_layout, &logits);
            out = copy;
        } else {
            out = make_room(all->row.dtype, 0, all->count, is_plain ? plain(all->row.dtype) : all->out_layout);
        }
        out_row = (tl_row){out.data, all->count, out.stride, out.dtype, all->row.dtype, 1, 0, 0, 0};
        if (what != GRADIENT)
            tl_softmax(backend, &logits, what == LOG_SOFTMAX, &out_row, large, &cancel);
        else
            tl_gradient(backend, &logits, lse, all->factor, all->of_softmax, soft, &out_row, large, &cancel);
        if (copy.memory)
            compare_row(names[what], &out, all->count);
        else
            compare_written(names[what], &out, all->count);
        free(out.memory);
    }
}

static void compare_conversions(const question *all, const tl_row *row) {
    for (int dtype = TL_FLOAT32; dtype <= TL_FLOAT64; dtype++) {
        tl_row raw = {row->data, row->count, row->stride, row->dtype, row->dtype & ~TL_SWAPPED, 1, 0, 0, 0};
        placed out = make_room(dtype, 0, all->count, plain(dtype));
        tl_cast_row(backend, &raw, dtype, out.data);
        compare_written("conversion", &out, all->count);
        free(out.memory);
    }
}

/* Products of some rows of weights, of native order, with 5 vectors that begin on cache lines. */
static void compare_products(const question *all, int is_plain) {
    static _Alignas(64) char vectors[5 * (8 * LONGEST + 128)];
    int dtype = all->row.dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
    ptrdiff_t size = tl_itemsize(dtype), stride = (all->depth * size / 64 + 2) * 64;
    int64_t rows = all->count / all->depth < 3 ? all->count / all->depth : 3, count = 1 + all->target % 5;
    layout how = plain(all->row.dtype);
    how.misaligned = is_plain ? 0 : all->row_layout.misaligned;
    placed weights = place(&all->row, 0, rows * all->depth, how);
    for (int64_t v = 0; v < count; v++)
        for (int64_t i = 0; i < all->depth; i++) {
            const char *from = (const char *)all->other.memory + (v + i) % all->count * tl_itemsize(all->other.dtype);
            tl_store(vectors + v * stride + i * size, dtype, tl_load(from, all->other.dtype));
        }
    placed out = make_room(dtype, 0, rows * count, plain(dtype));
    tl_row row = {weights.data, all->depth, weights.stride, weights.dtype, weights.dtype, 1, 0, 0, 0};
    tl_vectors with = {vectors, stride, count}, into = {out.data, rows * size, count};
    tl_matvec(backend, &row, all->depth * weights.stride, rows, &with, &into);
    compare_written("product", &out, rows * count);
    free(out.memory);
    free(weights.memory);
}

static void compare_probabilities(const question *all) {
    int64_t padded = (all->count + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    for (int dtype = TL_FLOAT32; dtype <= TL_FLOAT64; dtype++) {
        placed p = make_room(dtype, 0, padded, plain(dtype)), nll = make_room(TL_FLOAT64, 0, padded, plain(TL_FLOAT64));
        const tl_clip clip = tl_new_clip(1, all->lowest, dtype);
        for (int64_t i = 0; i < padded; i++)
            tl_store(p.data + i * p.stride, dtype,
                     i < all->count ? tl_load((const char *)all->row.memory + i * tl_itemsize(all->row.dtype),
                                              all->row.dtype)
                                    : 1);
        tl_negative_log(backend, &clip, p.data, (size_t)all->count, (double *)(void *)nll.data);
        compare_row("clipped loss", &nll, all->count);
        free(p.memory);
        free(nll.memory);
    }
}

static void compare_zeros(const question *all) {
    placed masses = place(&all->mass, 0, all->count, plain(all->mass.dtype));
    ptrdiff_t start = all->target % 64 * tl_itemsize(all->mass.dtype), size = (ptrdiff_t)masses.size;
    compare_bits("end of zeros", (uint64_t)backend->skip_zeros(masses.data, start < size ? start : size, size));
    free(masses.memory);
}

static void compare_all(const question *all, int is_plain) {
    tl_row row, other;
    layout row_layout = is_plain ? plain(all->row.dtype) : all->row_layout;
    placed row_copy = place_row(all, &all->row, 0, all->count, row_layout, &row);
    placed other_copy =
        place_row(all, &all->other, 0, all->count, is_plain ? plain(all->other.dtype) : all->other_layout, &other);
    placed mass = place(&all->mass, 0, all->count, is_plain ? plain(all->mass.dtype) : all->mass_layout);
    placed weight = place(&all->weight, 0, all->count, is_plain ? plain(all->weight.dtype) : all->weight_layout);
    tl_soft_target soft = {NULL, 0, 0, NULL, 0, 0, 1 - all->smoothing, all->smoothing / (double)all->count};
    if (all->has_mass)
        soft.mass = mass.data, soft.mass_stride = mass.stride, soft.mass_dtype = mass.dtype;
    if (all->has_weight)
        soft.weight = weight.data, soft.weight_stride = weight.stride, soft.weight_dtype = weight.dtype;
    found = 0;
    switch (all->topic) {
    case LOSSES: compare_losses(all, &row, &soft, is_plain); break;
    case CLASS_MAJOR:
        compare_class_major(all, is_plain);
        if (all->count <= TL_SHORT_ROW)
            compare_blocks(all, &soft, is_plain);
        if (all->count >= 2 && all->count <= TL_MASSES_CLASSES)
            compare_plain_losses(all, &soft, 0);
        if (all->by_class && all->count >= 2 && all->count <= TL_MASSES_CLASSES)
            compare_plain_losses(all, &soft, 1);
        if (all->count <= TL_FEW_CLASSES)
            compare_few_divergences(all);
        break;
    case TOKEN: compare_token_stats(all, &row); break;
    case PARTS: compare_parts(all, &row, &soft, row_layout, is_plain); break;
    case DIVERGENCES: compare_divergences(&row, &other, all->target); break;
    case SOFT_TARGETS:
        compare_soft_targets(all, &row, &soft);
        compare_zeros(all);
        break;
    case OUTPUTS: compare_outputs(all, &row, &soft, is_plain); break;
    case CONVERSIONS: compare_conversions(all, &row); break;
    case PRODUCTS: compare_products(all, is_plain); break;
    default: compare_probabilities(all);
    }
    free(row_copy.memory);
    free(other_copy.memory);
    free(mass.memory);
    free(weight.memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static question all;
    static const tl_backend *runnable[TL_BACKENDS]; /* to ask the machine takes long */
    if (!runnable[TL_PORTABLE])
        for (int id = 0; id < TL_BACKENDS; id++)
            runnable[id] = tl_find_backend((tl_backend_id)id);
    input from = {data, data + size};
    ask(&from, &all);
    is_first = 1;
    backend = &tl_portable;
    compare_all(&all, 1);
    is_first = 0;
    for (int id = 0; id < TL_BACKENDS; id++)
        if ((backend = runnable[id]))
            compare_all(&all, 0);
    return 0;
}
