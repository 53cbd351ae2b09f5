/* -log of probabilities, and sums of it over distributions: see clipped_losses and add_losses of ../backend.h.
 *
 * Of float32, halves among them, -log(2^-exponent (1 - g)) is a polynomial in float, within 2.3e-8, and the exponent
 * times ln 2, an exact product in double. The fit is our own. Of float64, the logarithm is that of ../scalar_math.h. */

#define WIDE (f32_WIDTH / f64_WIDTH) /* vectors of double that a vector of float becomes */
#define SHORT_LN2 0x1.62e42fefa38p-1 /* 45 bits: exact times any exponent */
#if f64_WIDTH > 1
#define FUSED(a, b, c) f64_fma(a, b, c)
#else /* the same, of an exact product */
#define FUSED(a, b, c) f64_add(f64_mul(a, b), c)
#endif

/* PLAIN: probabilities that are clipped to normal numbers of their dtype. TINY: to smaller ones. LOGS:
 * log-probabilities, whose loss is minus themselves. Functions that take a kind are inlined for each, as for each
 * dtype. */
enum kind_of_scores { PLAIN, TINY, LOGS };

/* The losses of clipped probabilities; of nan, any number. */
TL_TARGET TL_INLINE void f32_losses(f32_vec p, enum kind_of_scores kind, const tl_clip *clip, f64_vec *loss) {
    const f32_vec least = f32_set(0x1p-126f);
    f64_vec wide[WIDE];
    f32_vec x = f32_max_keep_nan(least, kind == TINY ? f32_mul(p, f32_set(0x1p24f)) : p), exponent;
    f32_vec log = f32_minus_log(f32_split_near_one(x, &exponent));
    if (kind == TINY)
        log = f32_if_equal(x, least, f32_set(INFINITY), log);
    f32_widen(log, loss);
    f32_widen(kind == TINY ? f32_add(exponent, f32_set(24)) : exponent, wide);
    for (size_t i = 0; i < WIDE; i++) {
        loss[i] = FUSED(wide[i], f64_set(SHORT_LN2), loss[i]);
        loss[i] = f64_max_keep_nan(f64_set(clip->least_loss), f64_min(f64_set(clip->greatest_loss), loss[i]));
    }
}

TL_TARGET TL_INLINE f64_vec f64_loss(f64_vec p, enum kind_of_scores kind, const tl_clip *clip) {
    f64_vec x = f64_min(f64_set(clip->highest), f64_max_keep_nan(f64_set(clip->lowest), p)), exponent;
    if (kind == TINY)
        return f64_sub(f64_set(0), f64_log(x, 1));
    f64_vec f = f64_split_near_one(x, &exponent, 0);
    return f64_sub(f64_set(0), f64_log_near_one(f, exponent, f64_set(0)));
}

/* What is added to the bits of a score so that the sign is set if it was before, or if the score is above `greatest`
 * (unless all bits overflow: then the sign was set before), or nan. */
TL_TARGET TL_INLINE uint32_t f32_bound(double greatest) {
    float bound = (float)greatest;
    uint32_t bits;
    memcpy(&bits, &bound, sizeof bits);
    return 0x7fffffff - (bits - ((double)bound > greatest));
}
TL_TARGET TL_INLINE uint64_t f64_bound(double greatest) { return 0x7fffffffffffffff - tl_to_bits(greatest); }

TL_TARGET TL_INLINE int JOIN(losses_of_kind_, BACKEND)(const void *scores, size_t count, const tl_clip *clip,
                                                       int is_single, enum kind_of_scores kind, double *nll) {
    const uint32_t bound_of_single = f32_bound(clip->greatest);
    const uint64_t bound = f64_bound(clip->greatest);
    f32_bits odd_single = f32_set_bits(0);
    f64_bits odd = f64_set_bits(0);
    for (size_t i = 0; i < count; i += f32_WIDTH) {
        f64_vec loss[WIDE];
        if (is_single) {
            f32_vec p = f32_load((const float *)scores + i);
            odd_single = f32_or_bits(odd_single, p, f32_plus_bits(p, bound_of_single));
            f32_losses(p, kind, clip, loss);
        } else {
            for (size_t j = 0; j < WIDE; j++) {
                f64_vec p = f64_load((const double *)scores + i + j * f64_WIDTH);
                odd = f64_or_bits(odd, p, f64_plus_bits(p, bound));
                loss[j] = f64_loss(p, kind, clip);
            }
        }
        for (size_t j = 0; j < WIDE; j++)
            f64_store(nll + i + j * f64_WIDTH, loss[j]);
    }
    return is_single ? f32_any_negative(odd_single) : f64_any_negative(odd);
}

TL_TARGET static int JOIN(clipped_losses_, BACKEND)(const void *p, size_t count, const tl_clip *clip, double *nll) {
    if (clip->is_single)
        return clip->lowest >= 0x1p-126 ? JOIN(losses_of_kind_, BACKEND)(p, count, clip, 1, PLAIN, nll)
                                        : JOIN(losses_of_kind_, BACKEND)(p, count, clip, 1, TINY, nll);
    return clip->lowest >= 0x1p-1022 ? JOIN(losses_of_kind_, BACKEND)(p, count, clip, 0, PLAIN, nll)
                                     : JOIN(losses_of_kind_, BACKEND)(p, count, clip, 0, TINY, nll);
}

/* Loads masses as doubles, and scores as floats, `neutral` where the mass is 0; the same of scores that are doubles. */
TL_TARGET TL_INLINE f32_vec f32_load_scores(const void *mass, int is_single_mass, const float *score, float neutral,
                                            f64_vec *masses) {
    if (is_single_mass) {
        f32_vec narrow = f32_load((const float *)mass);
        f32_widen(narrow, masses);
        return f32_if_equal(narrow, f32_set(0), f32_set(neutral), f32_load(score));
    }
    f64_vec is_zero[WIDE];
    for (size_t j = 0; j < WIDE; j++) {
        masses[j] = f64_load((const double *)mass + j * f64_WIDTH);
        is_zero[j] = f64_if_equal(masses[j], f64_set(0), f64_set(0), f64_set(1));
    }
    return f32_if_equal(f32_narrow(is_zero), f32_set(0), f32_set(neutral), f32_load(score));
}

TL_TARGET TL_INLINE void f64_load_scores(const void *mass, int is_single_mass, const double *score, double neutral,
                                         f64_vec *masses, f64_vec *scores) {
    if (is_single_mass)
        f32_widen(f32_load((const float *)mass), masses);
    for (size_t j = 0; j < WIDE; j++) {
        if (!is_single_mass)
            masses[j] = f64_load((const double *)mass + j * f64_WIDTH);
        scores[j] = f64_if_equal(masses[j], f64_set(0), f64_set(neutral), f64_load(score + j * f64_WIDTH));
    }
}

/* add_losses of one kind: `mass` and `score` are what the flags say. */
TL_TARGET TL_INLINE int JOIN(add_kind_, BACKEND)(const char *mass, int is_single_mass, const char *score, int is_single,
                                                 enum kind_of_scores kind, size_t steps, size_t groups,
                                                 const double *weight, const tl_clip *clip, double *sums,
                                                 double *lost) {
    const size_t mass_size = is_single_mass ? sizeof(float) : sizeof(double);
    const size_t score_size = is_single ? sizeof(float) : sizeof(double);
    const uint32_t bound_of_single = f32_bound(kind == LOGS ? (double)INFINITY : clip->greatest);
    const uint64_t bound = f64_bound(kind == LOGS ? (double)INFINITY : clip->greatest);
    const double neutral = kind == LOGS ? 0 : 1;
    f32_bits odd_single = f32_set_bits(0);
    f64_bits odd = f64_set_bits(0);
    for (size_t i = 0; i < groups * TL_GROUP; i += f32_WIDTH) {
        const size_t lane = i % TL_GROUP;
        size_t at = (i - lane) * steps + lane;
        f64_vec sum[WIDE], rest[WIDE];
        for (size_t j = 0; j < WIDE; j++) {
            sum[j] = f64_load(sums + i + j * f64_WIDTH);
            rest[j] = f64_load(lost + i + j * f64_WIDTH);
        }
        for (size_t k = 0; k < steps; k++, at += TL_GROUP) {
            const void *masses_at = mass + at * mass_size, *scores_at = score + at * score_size;
            f64_vec masses[WIDE], loss[WIDE];
            if (is_single) {
                f32_vec x = f32_load_scores(masses_at, is_single_mass, scores_at, (float)neutral, masses);
                x = kind == LOGS ? f32_sub(f32_set(0), x) : x;
                odd_single = f32_or_bits(odd_single, x, f32_plus_bits(x, bound_of_single));
                if (kind == LOGS)
                    f32_widen(x, loss);
                else
                    f32_losses(x, kind, clip, loss);
            } else {
                f64_load_scores(masses_at, is_single_mass, scores_at, neutral, masses, loss);
                for (size_t j = 0; j < WIDE; j++) {
                    loss[j] = kind == LOGS ? f64_sub(f64_set(0), loss[j]) : loss[j];
                    odd = f64_or_bits(odd, loss[j], f64_plus_bits(loss[j], bound));
                    loss[j] = kind == LOGS ? loss[j] : f64_loss(loss[j], kind, clip);
                }
            }
            for (size_t j = 0; j < WIDE; j++) {
                f64_vec term = f64_mul(masses[j], loss[j]);
                if (weight)
                    term = f64_mul(term, f64_load(weight + k * TL_GROUP + lane + j * f64_WIDTH));
                if (is_single)
                    sum[j] = f64_add(sum[j], term);
                else
                    rest[j] = f64_add(rest[j], f64_add_with_error(&sum[j], term));
            }
        }
        for (size_t j = 0; j < WIDE; j++) {
            f64_store(sums + i + j * f64_WIDTH, sum[j]);
            f64_store(lost + i + j * f64_WIDTH, rest[j]);
        }
    }
    return is_single ? f32_any_negative(odd_single) : f64_any_negative(odd);
}

TL_TARGET TL_INLINE int JOIN(add_any_kind_, BACKEND)(const void *mass, int is_single_mass, const void *score,
                                                     int is_single, size_t steps, size_t groups, const double *weight,
                                                     const tl_clip *clip, double *sum, double *lost) {
    if (clip->lowest != clip->lowest)
        return JOIN(add_kind_, BACKEND)(mass, is_single_mass, score, is_single, LOGS, steps, groups, weight, clip, sum,
                                        lost);
    if (clip->lowest >= (is_single ? 0x1p-126 : 0x1p-1022))
        return JOIN(add_kind_, BACKEND)(mass, is_single_mass, score, is_single, PLAIN, steps, groups, weight, clip, sum,
                                        lost);
    return JOIN(add_kind_, BACKEND)(mass, is_single_mass, score, is_single, TINY, steps, groups, weight, clip, sum,
                                    lost);
}

TL_TARGET static int JOIN(add_losses_, BACKEND)(const void *mass, int mass_dtype, const void *score, size_t steps,
                                                size_t groups, const double *weight, const tl_clip *clip, double *sum,
                                                double *lost) {
    if (mass_dtype == TL_FLOAT32)
        return clip->is_single
                   ? JOIN(add_any_kind_, BACKEND)(mass, 1, score, 1, steps, groups, weight, clip, sum, lost)
                   : JOIN(add_any_kind_, BACKEND)(mass, 1, score, 0, steps, groups, weight, clip, sum, lost);
    return clip->is_single ? JOIN(add_any_kind_, BACKEND)(mass, 0, score, 1, steps, groups, weight, clip, sum, lost)
                           : JOIN(add_any_kind_, BACKEND)(mass, 0, score, 0, steps, groups, weight, clip, sum, lost);
}

#undef WIDE
#undef FUSED
#undef SHORT_LN2
