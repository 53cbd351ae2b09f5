/* Losses of probabilities for distributions: see add_losses of ../backend.h. Included for float and double, with REAL,
 * UINT and OP defined as for exp_body.h. The kind of scores, and whether masses are doubles where scores are floats
 * (`are_wide`), are constants of callers. */

/* Masses as doubles. Returns a vector that is 0 where they are. */
TL_TARGET TL_INLINE OP(vec) OP(load_masses)(const void *mass, size_t i, int are_wide, f64_vec *masses) {
    f64_vec nonzero[PARTS];
    if (!are_wide) {
        OP(load_widened)((const REAL *)mass + i, masses);
        return OP(load)((const REAL *)mass + i);
    }
    for (size_t j = 0; j < PARTS; j++) {
        masses[j] = f64_load((const double *)mass + i + j * f64_WIDTH);
        nonzero[j] = f64_if_equal(masses[j], f64_set(0), f64_set(0), f64_set(1));
    }
    return OP(narrow)(nonzero);
}

/* Writes the terms of `count` vectors: mass times loss, times weight if weights are given. Where a mass is 0, its score
 * counts as one whose loss is finite. Returns whether one of the scores is odd; of INSIDE ones, whether one is not. */
TL_TARGET TL_INLINE int OP(write_terms)(const REAL *score, const void *mass, int are_wide, size_t count,
                                        enum kind_of_scores kind, const double *weight, const tl_clip *given,
                                        double *term) {
    const tl_clip clip = *given;
    const UINT least = OP(least_inside)(&clip), most = OP(bound)(OP(most_inside)(&clip));
    const UINT bound = OP(bound)(kind == LOGS ? (double)INFINITY : clip.greatest);
    OP(bits) odd = OP(set_bits)(0);
    for (size_t v = 0; v < count; v += TERMS_TOGETHER) {
        UNROLLED for (size_t u = 0; u < TERMS_TOGETHER; u++) {
            const size_t i = (v + u) * OP(WIDTH);
            f64_vec masses[PARTS], loss[PARTS];
            OP(vec) has_mass = OP(load_masses)(mass, i, are_wide, masses), x = OP(load)(score + i);
            if (kind == INSIDE) {
                odd = OP(or_bits)(odd, OP(plus_bits)(x, 0 - least), OP(plus_bits)(x, most));
            } else {
                x = OP(if_equal)(has_mass, OP(set)(0), OP(set)(kind == LOGS ? 0 : 1), x);
                x = kind == LOGS ? OP(sub)(OP(set)(0), x) : x;
                odd = OP(or_bits)(odd, x, OP(plus_bits)(x, bound));
            }
            OP(losses)(x, kind, &clip, loss);
            for (size_t j = 0; j < PARTS; j++) {
                f64_vec product = f64_mul(masses[j], loss[j]);
                if (weight)
                    product = f64_mul(product, f64_load(weight + i + j * f64_WIDTH));
                f64_store(term + i + j * f64_WIDTH, product);
            }
        }
    }
    return OP(any_negative)(odd);
}

TL_TARGET SCHEDULED static int OP(terms_of_vectors)(const REAL *score, const void *mass, int are_wide, size_t count,
                                                    enum kind_of_scores kind, const double *weight,
                                                    const tl_clip *clip, double *term) {
    switch (kind) {
    case LOGS: return OP(write_terms)(score, mass, are_wide, count, LOGS, weight, clip, term);
    case TINY: return OP(write_terms)(score, mass, are_wide, count, TINY, weight, clip, term);
    case PLAIN: return OP(write_terms)(score, mass, are_wide, count, PLAIN, weight, clip, term);
    default: return OP(write_terms)(score, mass, 0, count, INSIDE, NULL, clip, term);
    }
}

/* The same of `count` elements: those after the last whole vectors are copied. */
TL_TARGET static int OP(terms_of)(const REAL *score, const char *mass, int are_wide, size_t count,
                                  enum kind_of_scores kind, const double *weight, const tl_clip *clip, double *term) {
    enum { STEP = TERMS_TOGETHER * OP(WIDTH) };
    const size_t rest = count % STEP, whole = count - rest, size = are_wide ? sizeof(double) : sizeof(REAL);
    REAL last[STEP];
    double masses[STEP] = {0};
    const int odd = OP(terms_of_vectors)(score, mass, are_wide, whole / OP(WIDTH), kind, weight, clip, term);
    for (size_t i = 0; i < STEP; i++)
        last[i] = (REAL)0.5;
    memcpy(last, (const void *)(score + whole), rest * sizeof *last);
    memcpy(masses, mass + whole * size, rest * size);
    weight = weight ? weight + whole : NULL;
    count = rest == 0 ? 0 : TERMS_TOGETHER;
    return odd | OP(terms_of_vectors)(last, masses, are_wide, count, kind, weight, clip, term + whole);
}

TL_TARGET static int OP(add_losses)(const void *scores, const void *masses, int is_wide, size_t count, size_t classes,
                                    const double *weight, const tl_clip *clip, double *sum) {
    const int are_wide = sizeof(REAL) == sizeof(float) && is_wide, is_log = clip->lowest != clip->lowest;
    const size_t rows = TL_TERMS / classes / 8 * 8, mass_size = are_wide ? sizeof(double) : sizeof(REAL);
    const enum kind_of_scores kind = is_log ? LOGS : clip->lowest >= (double)OP(LEAST_NORMAL) ? PLAIN : TINY;
    const REAL *score = (const REAL *)scores;
    const char *mass = (const char *)masses;
    int is_inside = kind == PLAIN && !weight && !are_wide, odd = 0;
    double memory[TERMS_ROOM];
    for (size_t i = 0, n; i < count; i += n, score += n, mass += n * mass_size, sum += rows) {
        double *term = place_of_terms(memory, score, mass);
        n = count - i < rows * classes ? count - i : rows * classes;
        is_inside = is_inside && !OP(terms_of)(score, mass, 0, n, INSIDE, NULL, clip, term);
        if (!is_inside)
            odd |= OP(terms_of)(score, mass, are_wide, n, kind, weight, clip, term);
        sum_rows(term, n, classes, sum);
    }
    return odd;
}

TL_TARGET static int OP(class_losses)(const void *scores, size_t count, const tl_clip *given, double *nll) {
    const tl_clip clip = *given;
    OP(bits) odd = OP(set_bits)(0);
    for (size_t i = 0; i < count; i += OP(WIDTH)) {
        f64_vec loss[PARTS];
        OP(vec) x = OP(load)((const REAL *)scores + i);
        odd = OP(or_bits)(odd, x, OP(plus_bits)(x, OP(bound)(clip.greatest)));
        if (clip.lowest >= (double)OP(LEAST_NORMAL))
            OP(losses)(x, PLAIN, &clip, loss);
        else
            OP(losses)(x, TINY, &clip, loss);
        for (size_t j = 0; j < PARTS; j++)
            f64_store(nll + i + j * f64_WIDTH, f64_add(f64_set(0), loss[j])); /* no -0.0 */
    }
    return OP(any_negative)(odd);
}
