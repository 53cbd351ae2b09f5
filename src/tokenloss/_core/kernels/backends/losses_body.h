/* Losses of probabilities for distributions: see add_losses of ../backend.h. Included for float and double, with REAL,
 * UINT and OP defined as for exp_body.h. The kind of scores, and whether masses are doubles where scores are floats
 * (`are_wide`), are constants of callers. */

/* A vector of rows: the scores and masses of their first classes, and how far it is to the next classes. */
typedef struct {
    const char *score, *mass;
    ptrdiff_t score_stride, mass_stride;
} OP(vector_of_rows);

/* Sums of their terms, and what roundings lost of them. */
typedef struct {
    f64_vec sum[PARTS], lost[PARTS];
} OP(sums);

#define VECTOR_AT(p) OP(load)((const REAL *)(const void *)(p))

/* Masses as doubles. Returns a vector that is 0 where they are. */
TL_TARGET TL_INLINE OP(vec) OP(load_masses)(const char *mass, int are_wide, f64_vec *masses) {
    f64_vec nonzero[PARTS];
    if (!are_wide) {
        OP(load_widened)((const REAL *)(const void *)mass, masses);
        return VECTOR_AT(mass);
    }
    for (size_t j = 0; j < PARTS; j++) {
        masses[j] = f64_load((const double *)(const void *)mass + j * f64_WIDTH);
        nonzero[j] = f64_if_equal(masses[j], f64_set(0), f64_set(0), f64_set(1));
    }
    return OP(narrow)(nonzero);
}

/* Adds the terms of some classes. Where a mass is 0, its score counts as one whose loss is finite. Returns `odd` with
 * the bits of these scores; of INSIDE ones, it gets a sign bit where one is not. */
TL_TARGET TL_INLINE OP(bits) OP(add_classes)(const OP(vector_of_rows) * of, int are_wide, size_t start, size_t end,
                                             enum kind_of_scores kind, const double *weight, const tl_clip *clip,
                                             OP(bits) odd, OP(sums) * sums) {
    const UINT least = OP(least_inside)(clip), most = OP(bound)(OP(most_inside)(clip));
    const UINT bound = OP(bound)(kind == LOGS ? (double)INFINITY : clip->greatest);
    const char *score = of->score + (ptrdiff_t)start * of->score_stride;
    const char *mass = of->mass + (ptrdiff_t)start * of->mass_stride;
    f64_vec part = f64_set(0);
    for (size_t k = start; k < end; k++, score += of->score_stride, mass += of->mass_stride) {
        f64_vec masses[PARTS], loss[PARTS];
        OP(vec) has_mass = OP(load_masses)(mass, are_wide, masses), x = VECTOR_AT(score);
        if (kind == INSIDE) {
            odd = OP(or_bits)(odd, OP(plus_bits)(x, 0 - least), OP(plus_bits)(x, most));
        } else {
            x = OP(if_equal)(has_mass, OP(set)(0), OP(set)(kind == LOGS ? 0 : 1), x);
            x = kind == LOGS ? OP(sub)(OP(set)(0), x) : x;
            odd = OP(or_bits)(odd, x, OP(plus_bits)(x, bound));
        }
        OP(losses)(x, kind, clip, loss);
        for (size_t j = 0; j < PARTS; j++) {
            f64_vec term = f64_mul(masses[j], loss[j]);
            if (weight)
                term = f64_mul(term, f64_load(weight + k * TL_GROUP + j * f64_WIDTH));
            if (sizeof(REAL) == sizeof(float))
                sums->sum[j] = f64_add(sums->sum[j], term);
            else
                part = k % TL_TERMS == 0 ? term : f64_add(part, term);
        }
        if (sizeof(REAL) == sizeof(double) && (k % TL_TERMS == TL_TERMS - 1 || k + 1 == end)) {
            sums->lost[0] = f64_add(sums->lost[0], f64_add_with_error(&sums->sum[0], part));
        }
    }
    return odd;
}

/* Whether each row has one mass that is not 0. If so, writes these and their scores. */
TL_TARGET TL_INLINE int OP(find_one_each)(const OP(vector_of_rows) * of, size_t classes, REAL *masses, REAL *scores) {
    const uint32_t all = (uint32_t)(((uint64_t)1 << OP(WIDTH)) - 1);
    const char *score = of->score, *mass = of->mass;
    OP(vec) the_mass = OP(set)(0), the_score = OP(set)(0);
    uint32_t any = 0, twice = 0;
    for (size_t k = 0; k < classes && !twice; k++, mass += of->mass_stride) {
        uint32_t nonzero = OP(mask_nonzero)(VECTOR_AT(mass));
        twice = any & nonzero;
        any |= nonzero;
    }
    if (twice || any != all)
        return 0;
    mass = of->mass;
    for (size_t k = 0; k < classes; k++, score += of->score_stride, mass += of->mass_stride) {
        OP(vec) next = VECTOR_AT(mass);
        the_score = OP(if_equal)(next, OP(set)(0), the_score, VECTOR_AT(score));
        the_mass = OP(if_equal)(next, OP(set)(0), the_mass, next);
    }
    OP(store)(masses, the_mass);
    OP(store)(scores, the_score);
    return 1;
}

/* Adds the terms of all classes; returns `odd` with the bits of scores with mass that may be. As long as all scores are
 * INSIDE, which *is_inside says, they are not clipped. */
TL_TARGET TL_INLINE OP(bits) OP(add_rows)(const OP(vector_of_rows) * of, int are_wide, size_t classes,
                                          enum kind_of_scores kind, const double *weight, const tl_clip *clip,
                                          int *is_inside, OP(bits) odd, OP(sums) * sums) {
    REAL mass[OP(WIDTH)], score[OP(WIDTH)];
    int are_few = !are_wide && !weight && classes > 2 && classes * sizeof(REAL) <= TL_FEW_MASSES;
    if (are_few && OP(find_one_each)(of, classes, mass, score)) {
        const OP(vector_of_rows) one = {(const char *)score, (const char *)mass, 0, 0};
        return OP(add_classes)(&one, 0, 0, 1, kind, NULL, clip, odd, sums);
    }
    for (size_t k = 0, end; k < classes; k = end) {
        end = classes - k < CHECKED ? classes : k + CHECKED;
        if (kind != LOGS && !weight && *is_inside) {
            OP(sums) more = *sums;
            OP(bits) outside = OP(add_classes)(of, are_wide, k, end, INSIDE, NULL, clip, OP(set_bits)(0), &more);
            *is_inside = !OP(any_negative)(outside);
            if (*is_inside) {
                *sums = more;
                continue;
            }
        }
        odd = OP(add_classes)(of, are_wide, k, end, kind, weight, clip, odd, sums);
    }
    return odd;
}

/* Stores sums, as they are or with what was lost: that is nan of an infinite sum. */
TL_TARGET TL_INLINE void OP(store_sums)(const OP(sums) * sums, double *sum, double *lost) {
    for (size_t j = 0; j < PARTS; j++) {
        f64_vec all = sums->sum[j], less = sums->lost[j];
        if (lost)
            f64_store(lost + j * f64_WIDTH, less);
        else if (sizeof(REAL) == sizeof(double))
            all = f64_if_equal(f64_sub(less, less), f64_set(0), f64_add(all, less), all);
        f64_store(sum + j * f64_WIDTH, all);
    }
}

TL_TARGET TL_INLINE int OP(add_losses_of_kind)(const tl_few_rows *scores, const tl_few_rows *masses, int are_wide,
                                               size_t classes, size_t count, enum kind_of_scores kind,
                                               const double *weight, const tl_clip *given, double *sum, double *lost) {
    const tl_clip clip = *given;
    const ptrdiff_t mass_size = are_wide ? (ptrdiff_t)sizeof(double) : (ptrdiff_t)sizeof(REAL);
    char memory[(2 * TL_LONG_DISTRIBUTION + 6) * TL_GROUP * sizeof(double)];
    char *scores_at = memory + (-(uintptr_t)memory & 63);
    char *masses_at = scores_at + (classes * sizeof(REAL) + 32) * TL_GROUP; /* not a multiple of 4096 bytes further */
    OP(bits) odd = OP(set_bits)(0);
    int is_inside = 1;
    for (size_t i = 0; i < count; i += TL_GROUP) {
        OP(vector_of_rows) of;
        of.score = OP(group_of)(scores, i / TL_GROUP, classes, scores_at, &of.score_stride);
        of.mass = are_wide ? f64_group_of(masses, i / TL_GROUP, classes, masses_at, &of.mass_stride)
                           : OP(group_of)(masses, i / TL_GROUP, classes, masses_at, &of.mass_stride);
        for (size_t r = 0; r < TL_GROUP; r += OP(WIDTH)) {
            OP(sums) sums;
            for (size_t j = 0; j < PARTS; j++) {
                sums.sum[j] = lost ? f64_load(sum + i + r + j * f64_WIDTH) : f64_set(0);
                sums.lost[j] = lost ? f64_load(lost + i + r + j * f64_WIDTH) : f64_set(0);
            }
            odd = OP(add_rows)(&of, are_wide, classes, kind, weight ? weight + r : NULL, &clip, &is_inside, odd, &sums);
            OP(store_sums)(&sums, sum + i + r, lost ? lost + i + r : NULL);
            of.score += OP(WIDTH) * sizeof(REAL);
            of.mass += OP(WIDTH) * mass_size;
        }
    }
    return OP(any_negative)(odd);
}

TL_TARGET TL_INLINE int OP(add_losses_as)(const tl_few_rows *scores, const tl_few_rows *masses, int are_wide,
                                          size_t count, const double *weight, const tl_clip *clip, double *sum,
                                          double *lost) {
    const size_t classes = scores->classes;
    int is_simple = !are_wide && !weight && !lost;
    if (clip->lowest != clip->lowest)
        return OP(add_losses_of_kind)(scores, masses, are_wide, classes, count, LOGS, weight, clip, sum, lost);
    if (!(clip->lowest >= (double)OP(LEAST_NORMAL)))
        return OP(add_losses_of_kind)(scores, masses, are_wide, classes, count, TINY, weight, clip, sum, lost);
    if (is_simple && classes == 2) /* loops that compilers unroll */
        return OP(add_losses_of_kind)(scores, masses, 0, 2, count, PLAIN, NULL, clip, sum, NULL);
    if (is_simple && classes == 3)
        return OP(add_losses_of_kind)(scores, masses, 0, 3, count, PLAIN, NULL, clip, sum, NULL);
    return OP(add_losses_of_kind)(scores, masses, are_wide, classes, count, PLAIN, weight, clip, sum, lost);
}

TL_TARGET static int OP(add_losses)(const tl_few_rows *scores, const tl_few_rows *masses, int are_wide, size_t count,
                                    const double *weight, const tl_clip *clip, double *sum, double *lost) {
    if (sizeof(REAL) == sizeof(float) && are_wide)
        return OP(add_losses_as)(scores, masses, 1, count, weight, clip, sum, lost);
    return OP(add_losses_as)(scores, masses, 0, count, weight, clip, sum, lost);
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

#undef VECTOR_AT
