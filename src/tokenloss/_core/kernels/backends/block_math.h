/* Functions of many doubles at once: what blocks need of each row; logarithms, softcaps. Included by template.h. */

TL_TARGET static void JOIN(lse_logs_, BACKEND)(const double *sum, const double *ref_exp, size_t count, int dtype,
                                               double *log) {
    for (size_t i = 0; i < count; i += f64_WIDTH)
        f64_store(log + i, f64_log_of_sum(f64_load(sum + i), f64_load(ref_exp + i), dtype, 0, 0));
}

TL_TARGET static uint64_t JOIN(near_, BACKEND)(const double *x, size_t count) {
    const f64_vec most = f64_set(TL_MAX_EXACT_REDUCTION), least = f64_set(-(double)INFINITY);
    uint64_t near = 0;
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        const f64_vec value = f64_load(x + i), size = f64_and_bits(value, 0x7fffffffffffffffu);
        near |= (uint64_t)(f64_mask_ge(most, size) | f64_mask_ge(least, value)) << i;
    }
    return near;
}

TL_TARGET static void JOIN(log_odds_, BACKEND)(const double *offset, const double *log, const double *logit,
                                               size_t count, tl_odds *odds) {
    const f64_vec zero = f64_set(0), nan = f64_set((double)NAN), infinity = f64_set((double)INFINITY);
    f64_vec d[TL_BLOCK_ROWS / f64_WIDTH], likelier[TL_BLOCK_ROWS / f64_WIDTH];
    const size_t vectors = count / f64_WIDTH;
    for (size_t i = 0; i < vectors; i++) { /* two loops, so that several chains of operations run at a time */
        f64_vec x = f64_load(logit + i * f64_WIDTH), at = f64_load(offset + i * f64_WIDTH);
        d[i] = f64_add(f64_sub(at, x), f64_load(log + i * f64_WIDTH));
        d[i] = f64_if_less(x, infinity, d[i], nan);
        likelier[i] = f64_exp(f64_with_bits(d[i], (uint64_t)1 << 63));
    }
    for (size_t i = 0; i < vectors; i++) {
        f64_vec l = f64_log1p_of_positive(likelier[i]);
        f64_store(odds->log_odds + i * f64_WIDTH, d[i]);
        f64_store(odds->nll + i * f64_WIDTH, f64_if_less(zero, d[i], f64_add(d[i], l), l));
        f64_store(odds->others_nll + i * f64_WIDTH, f64_if_less(d[i], zero, f64_sub(l, d[i]), l));
    }
}

/* The bits of numbers that are tl_fits_float. */
TL_TARGET TL_INLINE uint32_t f64_fits_float(f64_vec x) {
    const f64_vec size = f64_if_equal(x, f64_set(0), f64_set(1), f64_and_bits(x, 0x7fffffffffffffffu));
    return f64_mask_ge(size, f64_set(0x1p-100)) & f64_mask_ge(f64_set(0x1p100), size);
}

TL_TARGET SCHEDULED static uint64_t JOIN(softmax_factors_, BACKEND)(const double *logsumexp, const double *scale,
                                                                    size_t count, int dtype, double *exponent,
                                                                    double *factor) {
    enum { VECTORS = TL_GROUP / f64_WIDTH }; /* that are worked on together */
    f64_vec n[VECTORS], of[VECTORS];
    uint64_t near = 0;
    for (size_t i = 0; i < count; i += TL_GROUP) {
        UNROLLED for (size_t u = 0; u < VECTORS; u++)
            of[u] = f64_softmax_factor(f64_load(logsumexp + i + u * f64_WIDTH), dtype, &n[u]);
        UNROLLED for (size_t u = 0; u < VECTORS; u++) {
            const size_t at = i + u * f64_WIDTH;
            f64_vec size = f64_and_bits(f64_load(logsumexp + at), 0x7fffffffffffffffu), weight = f64_load(factor + at);
            uint32_t are_near = f64_mask_ge(f64_set(TL_MAX_EXACT_REDUCTION), size);
            if (scale && dtype == TL_FLOAT32)
                are_near &= f64_fits_float(f64_load(scale + at)) & f64_fits_float(weight);
            near |= (uint64_t)are_near << at;
            f64_store(exponent + at, n[u]);
            f64_store(factor + at, f64_mul(weight, of[u]));
        }
    }
    return near;
}

/* Logarithms of sums, and KL divergences, as tl_kl_finish. */
TL_TARGET static uint64_t JOIN(kl_of_sums_, BACKEND)(const tl_short_sums *base, const tl_short_sums *other,
                                                     const tl_short_moments *moments, size_t count, int dtype,
                                                     double *base_log, double *other_log, double *kl) {
    const f64_vec zero = f64_set(0), largest = f64_set(0x1.fffffffffffffp1023);
    uint64_t found = 0;
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        const f64_vec sum = f64_load(base->sum + i), of_other = f64_load(other->sum + i);
        const f64_vec most = f64_load(moments->most_above + i), mean = f64_div(f64_load(moments->sum + i), sum);
        const f64_vec log = f64_log_of_sum(sum, f64_load(base->ref_exp + i), dtype, 1, 0);
        const f64_vec log_of_other = f64_log_of_sum(of_other, f64_load(other->ref_exp + i), dtype, 1, 0);
        f64_vec of = f64_sub(log_of_other, f64_load(moments->other_shift + i));
        of = f64_sub(mean, f64_sub(f64_sub(log, f64_load(moments->shift + i)), of));
        f64_store(base_log + i, log);
        f64_store(other_log + i, log_of_other);
        f64_store(kl + i, f64_if_less(largest, most, f64_set((double)INFINITY), f64_if_less(of, zero, zero, of)));
        of = f64_if_less(largest, most, zero, f64_sub(mean, mean)); /* 0 or nan, as are all of these */
        of = f64_add(of, f64_add(f64_sub(sum, sum), f64_sub(of_other, of_other)));
        found |= (uint64_t)f64_mask_ge(of, zero) << i;
    }
    return found;
}

TL_TARGET static void JOIN(entropies_, BACKEND)(const tl_odds *odds, const double *log, const double *sum,
                                                const tl_short_moments *moments, size_t count, double *entropy) {
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec mean = f64_div(f64_load(moments->sum + i), f64_load(sum + i));
        f64_vec of_others = f64_sub(f64_sub(f64_load(log + i), f64_load(moments->shift + i)), mean);
        f64_vec nll = f64_load(odds->nll + i), others_nll = f64_load(odds->others_nll + i);
        f64_store(entropy + i, f64_entropy(f64_load(odds->log_odds + i), nll, others_nll, of_others));
    }
}

TL_TARGET static void JOIN(exps_, BACKEND)(double *x, size_t count) {
    for (size_t i = 0; i < count; i += f64_WIDTH)
        f64_store(x + i, f64_exp(f64_load(x + i)));
}

TL_TARGET static void JOIN(weigh_masses_, BACKEND)(double *mass, size_t count, double share, double each,
                                                   const double *weight, size_t run) {
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        const f64_vec of_class = !weight ? f64_set(1) : run == 1 ? f64_load(weight + i) : f64_set(weight[i / run]);
        f64_store(mass + i, f64_effective_mass(f64_load(mass + i), share, each, of_class));
    }
}

/* nan where a score is refused, else 0. */
TL_TARGET TL_INLINE f64_vec f64_if_refused(f64_vec x, f64_vec least, f64_vec greatest) {
    const f64_vec nan = f64_set((double)NAN);
    return f64_if_less(greatest, x, nan, f64_if_less(x, least, nan, f64_set(0)));
}

TL_TARGET static void JOIN(logs_, BACKEND)(double *x, size_t count) {
    const f64_vec zero = f64_set(0), least = f64_set(-TL_TOLERANCE), greatest = f64_set(1 + TL_TOLERANCE);
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec p = f64_load(x + i), nan_if_refused = f64_if_refused(p, least, greatest);
        f64_store(x + i, f64_add(f64_log(f64_max_keep_nan(zero, p), 1), nan_if_refused));
    }
}

/* A subnormal ratio is that of a p without weight, so it may be larger. */
TL_TARGET static void JOIN(prob_sums_, BACKEND)(const double *p, const double *q, size_t count, tl_prob_sums *sums) {
    enum { GROUP = TL_GROUP / f64_WIDTH };
    const f64_vec zero = f64_set(0), one = f64_set(1), least = f64_set(0x1p-1022);
    f64_vec of_p[GROUP], of_q[GROUP], dot[GROUP], most[GROUP], low[GROUP], high[GROUP];
    for (size_t l = 0; l < GROUP; l++)
        of_p[l] = of_q[l] = dot[l] = most[l] = low[l] = high[l] = zero;
    for (size_t i = 0; i < count; i += TL_GROUP)
        for (size_t l = 0; l < GROUP; l++) {
            f64_vec given = f64_load(p + i + l * f64_WIDTH), y = f64_load(q + i + l * f64_WIDTH), exponent, x, f;
            low[l] = f64_if_less(given, low[l], given, low[l]);
            low[l] = f64_if_less(y, low[l], y, low[l]);
            high[l] = f64_max_skip_nan(y, f64_max_skip_nan(given, high[l]));
            x = f64_max_keep_nan(zero, given);
            y = f64_max_keep_nan(zero, y);
            of_p[l] = f64_add(of_p[l], x);
            of_q[l] = f64_add(of_q[l], y);
            y = f64_max_keep_nan(least, f64_if_equal(x, zero, one, f64_div(x, y)));
            most[l] = f64_max_skip_nan(y, most[l]);
            f = f64_sub(f64_split(y, &exponent, 0), f64_set(1));
            dot[l] = f64_add(dot[l], f64_mul(x, f64_log_near_one(f, exponent, zero)));
        }
    for (size_t l = 0; l < GROUP; l++) {
        f64_vec nan_if_refused = f64_add(f64_if_refused(low[l], f64_set(-TL_TOLERANCE), one),
                                         f64_if_refused(high[l], zero, f64_set(1 + TL_TOLERANCE)));
        f64_store(sums->p + l * f64_WIDTH, f64_add(of_p[l], nan_if_refused));
        f64_store(sums->q + l * f64_WIDTH, f64_add(of_q[l], nan_if_refused));
        f64_store(sums->dot + l * f64_WIDTH, dot[l]);
        f64_store(sums->most + l * f64_WIDTH, most[l]);
    }
}

/* Adds p^2, p log p and p (log p)^2 of the probabilities p of logits, a multiple of TL_GROUP, with this logsumexp; a
 * probability of 0 counts as exp(-700). */
TL_TARGET static void JOIN(second_moments_, BACKEND)(const double *x, size_t count, double logsumexp,
                                                     tl_moment_lanes *to) {
    enum { GROUP = TL_GROUP / f64_WIDTH };
    const f64_vec least = f64_set(-700), shift = f64_set(logsumexp);
    f64_vec sum[3][GROUP];
    for (size_t m = 0; m < 3; m++)
        for (size_t l = 0; l < GROUP; l++)
            sum[m][l] = f64_load(to->sum[m] + l * f64_WIDTH);
    for (size_t i = 0; i < count; i += TL_GROUP)
        for (size_t l = 0; l < GROUP; l++) {
            f64_vec log_p = f64_max_keep_nan(least, f64_sub(f64_load(x + i + l * f64_WIDTH), shift));
            f64_vec p = f64_exp(log_p), product = f64_mul(p, log_p);
            sum[0][l] = f64_add(sum[0][l], f64_mul(p, p));
            sum[1][l] = f64_add(sum[1][l], product);
            sum[2][l] = f64_add(sum[2][l], f64_mul(product, log_p));
        }
    for (size_t m = 0; m < 3; m++)
        for (size_t l = 0; l < GROUP; l++)
            f64_store(to->sum[m] + l * f64_WIDTH, sum[m][l]);
}

/* x = softcap tanh(scale x / softcap), or scale x if the softcap is 0.
 *
 * tanh(y) = e / (e + 2) with e = exp(2 y) - 1, which keeps its digits near 0: there, the power of two is 1. Infinities
 * stay as they are: -inf excludes a class, and a row with +inf has no softmax, with a softcap as without. */
TL_TARGET static void JOIN(softcap_, BACKEND)(double *x, size_t count, double factor, double cap) {
    const f64_acc acc = f64_acc_init(0, 0, 0, 0);
    const f64_vec one = f64_set(1), two = f64_set(2), most = f64_set(40), infinity = f64_set((double)INFINITY);
    const double largest = 0x1.fffffffffffffp1023, slope = cap > 0 ? factor / cap * 2 : factor;
    const f64_vec times = f64_set(slope < largest ? slope : largest), height = f64_set(cap);
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec value = f64_load(x + i), y = f64_mul(value, times);
        if (cap > 0) {
            f64_exp_parts exp = f64_exp_of(f64_max_keep_nan(f64_set(-40), f64_min(most, y)), &acc, 0);
            f64_vec e = f64_add_rest(&exp, f64_sub(exp.power, one)), size = f64_and_bits(value, 0x7fffffffffffffffu);
            y = f64_if_less(size, infinity, f64_mul(height, f64_div(e, f64_add(e, two))), value);
        }
        f64_store(x + i, y);
    }
}

TL_TARGET static void JOIN(gradient_parts_, BACKEND)(const tl_loss *of, const double *logsumexp,
                                                     const double *odds_against, const double *mass,
                                                     const double *weight, const double *scale, size_t count,
                                                     tl_gradient_parts *restrict parts) {
    const tl_loss loss = *of; /* compilers then know that nothing changes it */
    for (size_t i = 0; i < count; i++) {
        double softmax_weight = tl_softmax_weight(&loss, logsumexp[i], mass[i]);
        parts->at_target[i] = scale[i] * tl_gradient_at_target(&loss, weight[i], softmax_weight, odds_against[i]);
        parts->factor[i] = scale[i] * (softmax_weight + weight[i] * loss.soft.one_minus_eps);
        parts->subtrahend[i] = scale[i] * loss.soft.eps_over_v;
    }
}

TL_TARGET static uint64_t JOIN(finish_losses_, BACKEND)(const tl_loss *loss_of, const tl_lane_losses *of, size_t classes,
                                                        size_t count, double *losses, double *weights) {
    const int weighs = of->class_weight || of->row_weight;
    const f64_vec zero = f64_set(0), rest = f64_set(loss_of->soft.one_minus_eps), all = f64_set((double)classes);
    const f64_vec each = f64_set(loss_of->soft.eps_over_v), z_loss = f64_set(loss_of->z_loss);
    const f64_vec mass = of->mass ? f64_set(of->total_mass) : f64_mul(each, all);
    uint64_t odd = 0;
    for (size_t i = 0; of->class_weight && i < count; i++)
        of->target_weight[i] = of->class_weight[(uint64_t)of->target[i] < classes ? (size_t)of->target[i] : classes];
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec weight = of->class_weight ? f64_load(of->target_weight + i) : f64_set(1);
        f64_vec nll = f64_load(of->nll + i), loss = of->total ? zero : f64_mul(f64_mul(weight, rest), nll);
        if (of->dot) {
            f64_vec dot = f64_load(of->dot + i);
            if (!of->mass && !of->total)
                dot = f64_mul(each, f64_sub(f64_mul(all, f64_load(of->logit + i)), dot));
            loss = f64_loss_with_mass(loss, dot, of->total ? f64_load(of->total + i) : mass, nll);
            if (of->total) /* of rows without mass, nothing is right */
                dot = f64_if_less(zero, f64_load(of->total + i), loss, f64_set((double)NAN));
            odd |= (uint64_t)(f64_mask_ge(f64_sub(dot, dot), zero) ^ ((1u << f64_WIDTH) - 1)) << i % TL_BLOCK_ROWS;
        }
        if (loss_of->z_loss != 0) {
            f64_vec logsumexp = f64_add(f64_load(of->logit + i), nll);
            loss = f64_add(loss, f64_mul(f64_mul(z_loss, logsumexp), logsumexp));
        }
        if (of->row_weight) {
            f64_vec of_row = f64_load(of->row_weight + i);
            loss = f64_mul(loss, of_row);
            weight = f64_mul(weight, of_row);
        }
        if (of->some_masked) {
            f64_vec sign = f64_load((const double *)(const void *)(of->target + i));
            sign = f64_with_bits(f64_and_bits(sign, (uint64_t)1 << 63), 0x3ff0000000000000u); /* -1 or 1 */
            loss = f64_if_less(sign, zero, zero, loss);
            weight = f64_if_less(sign, zero, zero, weight);
        }
        f64_store(losses + i, loss);
        if (weighs)
            f64_store(weights + i, weight);
    }
    return odd;
}
