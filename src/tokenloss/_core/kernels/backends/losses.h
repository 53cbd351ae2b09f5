/* -log of probabilities: see clipped_losses of ../backend.h. */

#define LOSS_VECTORS (f64_WIDTH == 8 ? 4 : 2) /* at once: as many as there are registers for */

/* nan where a score is refused, else 0. */
TL_TARGET TL_INLINE f64_vec f64_if_refused(f64_vec x, f64_vec least, f64_vec greatest) {
    const f64_vec nan = f64_set((double)NAN);
    return f64_if_less(greatest, x, nan, f64_if_less(x, least, nan, f64_set(0)));
}

#if f64_WIDTH > 1
/* Whole groups of LOSS_VECTORS vectors, where all that is left after clipping is normal numbers, or nan. */
TL_TARGET TL_INLINE int JOIN(losses_of_normal_, BACKEND)(double *p, size_t count, const tl_clip *clip) {
    const f64_vec lowest = f64_set(clip->lowest), highest = f64_set(clip->highest), zero = f64_set(0);
    const f64_vec least = f64_set(clip->least), greatest = f64_set(clip->greatest), nan = f64_set((double)NAN);
    f64_bits refused = f64_no_bits();
    for (size_t i = 0; i < count; i += LOSS_VECTORS * f64_WIDTH) {
        f64_vec x[LOSS_VECTORS], f[LOSS_VECTORS], exponent[LOSS_VECTORS], log[LOSS_VECTORS];
        for (size_t k = 0; k < LOSS_VECTORS; k++) {
            f64_vec score = f64_load(p + i + k * f64_WIDTH), is_refused = f64_if_refused(score, least, greatest);
            refused = f64_or_bits(refused, is_refused, is_refused);
            x[k] = f64_min(highest, f64_max_keep_nan(lowest, score));
            f[k] = f64_split_near_one(x[k], &exponent[k], 0);
        }
        f64_logs_near_one(LOSS_VECTORS, f, exponent, zero, log);
        for (size_t k = 0; k < LOSS_VECTORS; k++)
            f64_store(p + i + k * f64_WIDTH, f64_sub(zero, f64_if_equal(x[k], x[k], log[k], nan)));
    }
    return f64_any_bits(refused);
}
#endif

/* Whole vectors. `is_normal` is a constant of the caller: whether clipping leaves normal numbers, or nan. */
TL_TARGET TL_INLINE int JOIN(losses_by_vector_, BACKEND)(double *p, size_t count, const tl_clip *clip, int is_normal) {
    const f64_vec lowest = f64_set(clip->lowest), highest = f64_set(clip->highest), zero = f64_set(0);
    const f64_vec least = f64_set(clip->least), greatest = f64_set(clip->greatest), nan = f64_set((double)NAN);
    f64_bits refused = f64_no_bits();
    for (size_t i = 0; i < count; i += f64_WIDTH) {
        f64_vec x = f64_load(p + i), is_refused = f64_if_refused(x, least, greatest), exponent, log;
        refused = f64_or_bits(refused, is_refused, is_refused);
        x = f64_if_less(x, lowest, lowest, x);
        x = f64_if_less(highest, x, highest, x);
        if (is_normal) {
            f64_vec f = f64_split_near_one(x, &exponent, 0);
            log = f64_if_equal(x, x, f64_log_near_one(f, exponent, zero), nan);
        } else {
            log = f64_log(x, 1);
        }
        f64_store(p + i, f64_sub(zero, log));
    }
    return f64_any_bits(refused);
}

TL_TARGET static int JOIN(clipped_losses_, BACKEND)(double *p, size_t count, const tl_clip *clip) {
    const size_t vectors = count / f64_WIDTH * f64_WIDTH;
    size_t done = 0;
    int is_refused = 0;
    if (!(clip->lowest >= 0x1p-1022 && clip->highest <= 1)) {
        is_refused |= JOIN(losses_by_vector_, BACKEND)(p, vectors, clip, 0);
    } else {
#if f64_WIDTH > 1 /* else compilers make vectors of the loop below */
        done = vectors / (LOSS_VECTORS * f64_WIDTH) * (LOSS_VECTORS * f64_WIDTH);
        is_refused |= JOIN(losses_of_normal_, BACKEND)(p, done, clip);
#endif
        is_refused |= JOIN(losses_by_vector_, BACKEND)(p + done, vectors - done, clip, 1);
    }
    for (size_t i = vectors; i < count; i++) {
        double low = p[i] < clip->lowest ? clip->lowest : p[i];
        is_refused |= p[i] < clip->least || p[i] > clip->greatest;
        p[i] = 0 - tl_log(low > clip->highest ? clip->highest : low);
    }
    return is_refused;
}
