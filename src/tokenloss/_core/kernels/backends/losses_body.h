/* Losses of probabilities for distributions: see add_losses of ../backend.h. The kind of scores, and whether masses are
 * doubles where scores are floats (`are_wide`), are constants of callers. */

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

/* Adds sign bits to `odd` where a score is odd; of INSIDE ones, where one is not. */
TL_TARGET TL_INLINE OP(bits) OP(collect_odd)(OP(bits) odd, OP(vec) x, enum kind_of_scores kind, const tl_clip *clip) {
    const UINT least = OP(bits_up_to)(least_inside(clip, OP(LEAST_NORMAL)));
    const double most = kind == INSIDE ? most_inside(clip) : kind == LOGS ? (double)INFINITY : clip->greatest;
    return OP(or_bits)(odd, kind == INSIDE ? OP(plus_bits)(x, 0 - least) : x,
                       OP(plus_bits)(x, BOUND(UINT, OP(bits_up_to)(most))));
}

/* Writes the terms of `count` vectors: mass times loss, times weight if weights are given. Where a mass is 0, its score
 * counts as one whose loss is finite. Returns as collect_odd does. */
TL_TARGET TL_INLINE int OP(write_terms)(const REAL *score, const void *mass, int are_wide, size_t count,
                                        enum kind_of_scores kind, const double *weight, const tl_clip *given,
                                        double *term) {
    const tl_clip clip = *given;
    OP(bits) odd = OP(set_bits)(0);
    for (size_t v = 0; v < count; v += TERMS_TOGETHER) {
        UNROLLED for (size_t u = 0; u < TERMS_TOGETHER; u++) {
            const size_t i = (v + u) * OP(WIDTH);
            f64_vec masses[PARTS], loss[PARTS];
            OP(vec) has_mass = OP(load_masses)(mass, i, are_wide, masses), x = OP(load)(score + i);
            if (kind != INSIDE)
                x = OP(if_equal)(has_mass, OP(set)(0), OP(set)(kind == LOGS ? 0 : 1), x);
            x = kind == LOGS ? OP(sub)(OP(set)(0), x) : x;
            odd = OP(collect_odd)(odd, x, kind, &clip);
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
    return kind == INSIDE    ? OP(write_terms)(score, mass, 0, count, INSIDE, NULL, clip, term)
           : kind == CLIPPED ? OP(write_terms)(score, mass, are_wide, count, CLIPPED, weight, clip, term)
                             : OP(write_terms)(score, mass, are_wide, count, LOGS, weight, clip, term);
}

/* The same of `count` elements: those after the last whole vectors are copied. */
TL_TARGET static int OP(terms_of)(const REAL *score, const char *mass, int are_wide, size_t count,
                                  enum kind_of_scores kind, const double *weight, const tl_clip *clip, double *term) {
    enum { STEP = TERMS_TOGETHER * OP(WIDTH) };
    const size_t rest = count % STEP, whole = count - rest, size = are_wide ? sizeof(double) : sizeof(REAL);
    const int odd = OP(terms_of_vectors)(score, mass, are_wide, whole / OP(WIDTH), kind, weight, clip, term);
    if (rest == 0)
        return odd;
    REAL last[STEP];
    double masses[STEP] = {0};
    for (size_t i = 0; i < STEP; i++)
        last[i] = (REAL)0.5;
    memcpy(last, (const void *)(score + whole), rest * sizeof *last);
    memcpy(masses, mass + whole * size, rest * size);
    weight = weight ? weight + whole : NULL;
    return odd | OP(terms_of_vectors)(last, masses, are_wide, TERMS_TOGETHER, kind, weight, clip, term + whole);
}

TL_TARGET static int OP(add_losses)(const void *scores, const void *masses, int is_wide, size_t count, size_t classes,
                                    const double *weight, const tl_clip *clip, const tl_sums_at *to) {
    const int are_wide = sizeof(REAL) == sizeof(float) && is_wide;
    const size_t multiple = classes <= 8 ? 32 : 8, rows = TL_TERMS / classes / multiple * multiple,
                 together = classes <= 3 ? classes : 1, mass_size = are_wide ? sizeof(double) : sizeof(REAL),
                 step = sizeof(REAL) == sizeof(double) ? TL_TERMS + 1 : together == 3 ? 96 : 32; /* of add_lines */
    const enum kind_of_scores kind = clip->lowest != clip->lowest ? LOGS : CLIPPED; /* or INSIDE */
    const REAL *score = (const REAL *)scores;
    const char *mass = (const char *)masses;
    int is_inside = kind == CLIPPED && !weight && !are_wide, odd = 0;
    double memory[TERMS_ROOM];
    tl_sums_at sums = *to, terms = {NULL, 0, 0};
    for (size_t i = 0, n; i < count; i += n, score += n, mass += n * mass_size, sums.sum += rows) {
        double *term = terms.sum = place_of_terms(memory, score, mass);
        n = count - i < rows * classes ? count - i : rows * classes;
        const size_t lines = n / step * step;
        is_inside = is_inside &&
                    !OP(terms_of)(score + lines, mass + lines * mass_size, 0, n - lines, INSIDE, NULL, clip,
                                  term + lines) &&
                    (lines == 0 || add_lines(score, mass, lines, together, clip, classes > 3 ? &terms : &sums));
        if (!is_inside)
            odd |= OP(terms_of)(score, mass, are_wide, n, kind, weight, clip, term);
        sum_terms(term, is_inside && classes <= 3 ? lines : 0, n, classes, &sums);
    }
    return odd;
}

/* -- rows with a single mass: each in a lane ------------------------------------------------------------------------ */

/* Vectors of rows: where the first one lies, and how many bytes are between rows that are APART, whose classes are
 * neighbours, or between classes, if rows are NEXT to each other. SPLIT rows, of 2 or 3 classes, have both. */
typedef struct {
    const char *data;
    ptrdiff_t apart;
    enum layout_of_rows layout;
} OP(rows_at);

/* The classes from k on of a vector of rows. Rows that are apart have a whole piece of them. */
TL_TARGET TL_INLINE void OP(load_from)(const OP(rows_at) * from, size_t k, size_t end, OP(vec) * v) {
    if (from->layout == SPLIT) {
        for (size_t i = 0; i < OP(PIECE) && k + i < end; i++)
            v[i] = OP(column)((const REAL *)(const void *)from->data, (int)end, (int)(k + i));
        return;
    }
    if (from->layout == APART) {
        OP(load_classes)(NULL, from->data, from->apart, k, v);
        return;
    }
    for (size_t i = 0; i < OP(PIECE); i++)
        v[i] = OP(load)((const REAL *)(const void *)(from->data + (ptrdiff_t)(k + i < end ? k + i : k) * from->apart));
}

/* The only score with mass of each row, and its mass. Returns 0 unless there is one in each. */
TL_TARGET TL_INLINE int OP(pick)(const OP(rows_at) * scores, const OP(rows_at) * masses, size_t classes, OP(vec) * only,
                                 OP(vec) * mass) {
    const OP(vec) zero = OP(set)(0);
    const int are_pieces = scores->layout == APART || masses->layout == APART; /* the last ends with the last class */
    uint32_t any = 0, twice = 0;
    *only = *mass = zero;
    for (size_t k = 0; k < classes; k += OP(PIECE)) {
        const size_t start = are_pieces && classes - k < OP(PIECE) ? classes - OP(PIECE) : k;
        OP(vec) x[OP(PIECE)], m[OP(PIECE)];
        OP(load_from)(scores, start, classes, x);
        OP(load_from)(masses, start, classes, m);
        UNROLLED for (size_t i = 0; i < OP(PIECE); i++) {
            if (start + i < k || start + i >= classes)
                continue;
            uint32_t here = OP(mask_nonzero)(m[i]);
            twice |= any & here;
            any |= here;
            *only = OP(if_equal)(m[i], zero, *only, x[i]);
            *mass = OP(add)(*mass, m[i]);
        }
    }
    return twice == 0 && any == OP(mask_ge)(zero, zero);
}

TL_TARGET TL_INLINE OP(rows_at) OP(first_rows)(const tl_few_rows *rows, size_t classes) {
    const int is_split = OP(PIECE) > 1 && (classes == 2 || classes == 3);
    if (!rows->are_apart)
        return (OP(rows_at)){rows->data, rows->class_stride, NEXT};
    return (OP(rows_at)){rows->data, rows->apart,
                         is_split && rows->apart == (ptrdiff_t)(classes * sizeof(REAL)) ? SPLIT : APART};
}
TL_TARGET TL_INLINE void OP(next_rows)(OP(rows_at) * at) {
    at->data += (ptrdiff_t)OP(WIDTH) * (at->layout == NEXT ? (ptrdiff_t)sizeof(REAL) : at->apart);
}

/* Writes that score and mass of each row of some groups; returns how many groups have one in each row. Rows that are
 * shorter than a piece must be NEXT or SPLIT. */
TL_TARGET TL_INLINE size_t OP(pick_of)(const tl_few_rows *scores, const tl_few_rows *masses, size_t groups,
                                       size_t classes, REAL *score, REAL *mass) {
    OP(rows_at) x = OP(first_rows)(scores, classes), m = OP(first_rows)(masses, classes);
    if (classes < OP(PIECE) && (x.layout == APART || m.layout == APART))
        return 0;
    for (size_t r = 0; r < groups * TL_GROUP; r += OP(WIDTH)) {
        OP(vec) only, its_mass;
        if (!OP(pick)(&x, &m, classes, &only, &its_mass))
            return r / TL_GROUP;
        OP(store)(score + r, only);
        OP(store)(mass + r, its_mass);
        OP(next_rows)(&x);
        OP(next_rows)(&m);
    }
    return groups;
}

TL_TARGET static size_t OP(pick_masses)(const tl_few_rows *scores, const tl_few_rows *masses, size_t groups,
                                        void *score, void *mass) {
    const size_t classes = scores->classes; /* loops of 2 and 3 classes are unrolled */
    return classes == 2   ? OP(pick_of)(scores, masses, groups, 2, (REAL *)score, (REAL *)mass)
           : classes == 3 ? OP(pick_of)(scores, masses, groups, 3, (REAL *)score, (REAL *)mass)
                          : OP(pick_of)(scores, masses, groups, classes, (REAL *)score, (REAL *)mass);
}

TL_TARGET static int OP(class_losses)(const void *scores, size_t count, const tl_clip *given, double *nll) {
    const tl_clip clip = *given;
    const int are_logs = clip.lowest != clip.lowest;
    OP(bits) odd = OP(set_bits)(0);
    for (size_t i = 0; i < count; i += OP(WIDTH)) {
        f64_vec loss[PARTS];
        OP(vec) x = OP(load)((const REAL *)scores + i);
        x = are_logs ? OP(sub)(OP(set)(0), x) : x;
        odd = are_logs ? OP(collect_odd)(odd, x, LOGS, &clip) : OP(collect_odd)(odd, x, CLIPPED, &clip);
        are_logs ? OP(losses)(x, LOGS, &clip, loss) : OP(losses)(x, CLIPPED, &clip, loss);
        for (size_t j = 0; j < PARTS; j++)
            f64_store(nll + i + j * f64_WIDTH, f64_add(f64_set(0), loss[j])); /* no -0.0 */
    }
    return OP(any_negative)(odd);
}
