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

/* Adds sign bits to `odd` where a score is odd; of INSIDE ones, where one is not. */
TL_TARGET TL_INLINE OP(bits) OP(collect_odd)(OP(bits) odd, OP(vec) x, enum kind_of_scores kind, const tl_clip *clip) {
    const UINT least = OP(least_inside)(clip), most = OP(bound)(OP(most_inside)(clip));
    if (kind == INSIDE)
        return OP(or_bits)(odd, OP(plus_bits)(x, 0 - least), OP(plus_bits)(x, most));
    return OP(or_bits)(odd, x, OP(plus_bits)(x, OP(bound)(kind == LOGS ? (double)INFINITY : clip->greatest)));
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

/* What scores are unless all of them are INSIDE. */
TL_TARGET TL_INLINE enum kind_of_scores OP(kind_of)(const tl_clip *clip) {
    return clip->lowest != clip->lowest ? LOGS : CLIPPED;
}

TL_TARGET static int OP(add_losses)(const void *scores, const void *masses, int is_wide, size_t count, size_t classes,
                                    const double *weight, const tl_clip *clip, double *sum) {
    const int are_wide = sizeof(REAL) == sizeof(float) && is_wide;
    const size_t rows = TL_TERMS / classes / 8 * 8, mass_size = are_wide ? sizeof(double) : sizeof(REAL);
    const enum kind_of_scores kind = OP(kind_of)(clip);
    const REAL *score = (const REAL *)scores;
    const char *mass = (const char *)masses;
    int is_inside = kind == CLIPPED && !weight && !are_wide, odd = 0;
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

/* -- rows with a single mass: each in a lane ------------------------------------------------------------------------ */

/* Vectors of rows: where the first row lies, and how many bytes are between rows, if the classes of each are neighbours,
 * or between classes, if rows are. */
typedef struct {
    const char *data;
    ptrdiff_t apart;
    int are_apart;
} OP(rows_at);

/* The classes from k on of a vector of rows. Rows that are apart have a whole piece of them. */
TL_TARGET TL_INLINE void OP(load_classes)(const OP(rows_at) * from, size_t k, size_t end, OP(vec) * v) {
    if (from->are_apart) {
        for (size_t i = 0; i < OP(PIECE); i++) {
            const char *at[OP(WIDTH)]; /* each piece of a vector */
            for (size_t j = 0; j < OP(WIDTH); j += OP(PIECE))
                at[j] = from->data + (ptrdiff_t)(i + j) * from->apart;
            v[i] = OP(load_pieces)(at, k * sizeof(REAL));
        }
        OP(transpose_pieces)(v);
        return;
    }
    for (size_t i = 0; i < OP(PIECE); i++)
        v[i] = OP(load)((const REAL *)(const void *)(from->data + (ptrdiff_t)(k + i < end ? k + i : k) * from->apart));
}

/* Where a piece begins that ends with the last class. */
TL_TARGET TL_INLINE size_t OP(start_of_piece)(const OP(rows_at) * from, size_t k, size_t classes) {
    return from->are_apart && classes - k < OP(PIECE) ? classes - OP(PIECE) : k;
}

/* The only score with mass of each row, and its mass. Returns 0 unless there is one in each. */
TL_TARGET TL_INLINE int OP(pick)(const OP(rows_at) * scores, const OP(rows_at) * masses, size_t classes, OP(vec) * only,
                                 OP(vec) * mass) {
    const OP(vec) zero = OP(set)(0);
    uint32_t any = 0, twice = 0;
    *only = *mass = zero;
    for (size_t k = 0; k < classes; k += OP(PIECE)) {
        OP(vec) x[OP(PIECE)], m[OP(PIECE)];
        OP(load_classes)(scores, OP(start_of_piece)(scores, k, classes), classes, x);
        OP(load_classes)(masses, OP(start_of_piece)(masses, k, classes), classes, m);
        UNROLLED for (size_t i = 0; i < OP(PIECE); i++) {
            size_t j = OP(start_of_piece)(masses, k, classes) + i;
            if (j < k || j >= classes)
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

/* Where the first vector of rows of a group lies: in memory if they are shorter than a piece. */
TL_TARGET TL_INLINE OP(rows_at) OP(first_rows)(const tl_few_rows *rows, size_t g, size_t classes, char *memory) {
    const char *first = rows->data + g * rows->group_bytes;
    if (!rows->are_apart)
        return (OP(rows_at)){first, rows->class_stride, 0};
    if (classes >= OP(PIECE))
        return (OP(rows_at)){first, rows->apart, 1};
    OP(interleave_rows)(first, rows->apart, classes, (REAL *)(void *)memory);
    return (OP(rows_at)){memory, TL_GROUP * sizeof(REAL), 0};
}
TL_TARGET TL_INLINE void OP(next_rows)(OP(rows_at) * at) {
    at->data += (ptrdiff_t)OP(WIDTH) * (at->are_apart ? at->apart : (ptrdiff_t)sizeof(REAL));
}

/* Adds groups from g on, as long as each of their rows has a single mass, and is INSIDE if all are to be: a logarithm
 * for each. Returns where it ended, or 0 if a score is odd otherwise. */
TL_TARGET TL_INLINE size_t OP(add_picked)(const tl_few_rows *scores, const tl_few_rows *masses, size_t g, size_t groups,
                                          size_t classes, enum kind_of_scores kind, const tl_clip *given, double *sum) {
    const tl_clip clip = *given;
    char memory[8 * TL_GROUP * sizeof(REAL) + 64], *aligned = memory + (-(uintptr_t)memory & 63);
    OP(bits) odd = OP(set_bits)(0);
    for (; g < groups; g++) {
        OP(rows_at) x = OP(first_rows)(scores, g, classes, aligned);
        OP(rows_at) m = OP(first_rows)(masses, g, classes, aligned + sizeof memory / 2 / 64 * 64);
        int is_single = 1;
        for (size_t lane = 0; lane < TL_GROUP && is_single; lane += OP(WIDTH)) {
            OP(vec) only, mass;
            f64_vec wide[PARTS], loss[PARTS];
            is_single = OP(pick)(&x, &m, classes, &only, &mass);
            only = kind == LOGS ? OP(sub)(OP(set)(0), only) : only;
            odd = OP(collect_odd)(odd, only, kind, &clip);
            OP(losses)(only, kind, &clip, loss);
            OP(widen)(mass, wide);
            for (size_t i = 0; i < PARTS; i++)
                f64_store(sum + g * TL_GROUP + lane + i * f64_WIDTH,
                          f64_add(f64_set(0), f64_mul(wide[i], loss[i]))); /* no -0.0 */
            OP(next_rows)(&x);
            OP(next_rows)(&m);
        }
        if (!is_single || (kind == INSIDE && OP(any_negative)(odd)))
            break;
    }
    return kind != INSIDE && OP(any_negative)(odd) ? 0 : g;
}

TL_TARGET static size_t OP(add_single_masses)(const tl_few_rows *scores, const tl_few_rows *masses, size_t groups,
                                              const tl_clip *clip, double *sum) {
    const size_t classes = scores->classes;
    if (OP(kind_of)(clip) == LOGS)
        return OP(add_picked)(scores, masses, 0, groups, classes, LOGS, clip, sum);
    size_t g = classes == 2   ? OP(add_picked)(scores, masses, 0, groups, 2, INSIDE, clip, sum) /* unrolled loops */
               : classes == 3 ? OP(add_picked)(scores, masses, 0, groups, 3, INSIDE, clip, sum)
                              : OP(add_picked)(scores, masses, 0, groups, classes, INSIDE, clip, sum);
    return g == groups ? g : OP(add_picked)(scores, masses, g, groups, classes, CLIPPED, clip, sum);
}

/* The losses of probabilities of a kind. Returns whether one is odd. */
TL_TARGET TL_INLINE int OP(class_losses_of)(const REAL *score, size_t count, enum kind_of_scores kind,
                                            const tl_clip *given, double *nll) {
    const tl_clip clip = *given;
    OP(bits) odd = OP(set_bits)(0);
    for (size_t i = 0; i < count; i += OP(WIDTH)) {
        f64_vec loss[PARTS];
        OP(vec) x = OP(load)(score + i);
        odd = OP(collect_odd)(odd, x, kind, &clip);
        OP(losses)(x, kind, &clip, loss);
        for (size_t j = 0; j < PARTS; j++)
            f64_store(nll + i + j * f64_WIDTH, f64_add(f64_set(0), loss[j])); /* no -0.0 */
    }
    return OP(any_negative)(odd);
}

TL_TARGET static int OP(class_losses)(const void *scores, size_t count, const tl_clip *clip, double *nll) {
    const REAL *score = (const REAL *)scores;
    return OP(class_losses_of)(score, count, INSIDE, clip, nll) &&
           OP(class_losses_of)(score, count, CLIPPED, clip, nll);
}
