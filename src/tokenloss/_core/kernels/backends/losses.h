/* -log of vectors of probabilities. The bits of a float, less those of 1, are an integer that is linear in it between two
 * powers of two: times -ln 2 / 2^23, in double, that is -log but for at most 0.06, which a polynomial in float makes up
 * for. The fit is our own. Of float64, the logarithm has fused operations. */

#define ONE_BITS 0x3f800000u
#define MINUS_LN2_OF_BIT (-0x1.62e42fefa39efp-24)
#define TERMS_TOGETHER (f32_WIDTH >= 8 ? 2 : 1) /* vectors of terms */
#define f32_LEAST_NORMAL 0x1p-126f
#define f64_LEAST_NORMAL 0x1p-1022

/* The polynomial of t = m - 3/2, for m in [1, 2): w (A(w) + t B(w)) with w = t^2 - 1/4, which is 0 at both ends, so that
 * probabilities near 1 keep their digits. Together with its roundings it is wrong by 9.9e-9 at most. */
static const float f32_BELOW_LINE[2][5] = {
    {0x1.cc6b34p-10f, 0x1.dbb90ep-8f, 0x1.53ba7ap-6f, 0x1.fff086p-5f, 0x1.ffffe8p-3f},
    {0, -0x1.e62edep-9f, -0x1.84ebfep-7f, -0x1.15732ep-5f, -0x1.d1bcap-4f}};

TL_TARGET TL_INLINE f32_vec f32_below_line(f32_vec x) {
    f32_vec t = f32_sub(f32_with_bits(f32_and_bits(x, 0x7fffff), ONE_BITS), f32_set(1.5f));
    f32_vec w = f32_fma(t, t, f32_set(-0.25f)), even = f32_set(f32_BELOW_LINE[0][0]);
    f32_vec odd = f32_set(f32_BELOW_LINE[1][1]);
    for (int i = 1; i < 5; i++)
        even = f32_fma(even, w, f32_set(f32_BELOW_LINE[0][i]));
    for (int i = 2; i < 5; i++)
        odd = f32_fma(odd, w, f32_set(f32_BELOW_LINE[1][i]));
    return f32_mul(w, f32_fma(t, odd, even));
}

/* INSIDE: probabilities that are normal numbers of their dtype, and that clipping leaves as they are. CLIPPED: any that
 * are clipped. LOGS: minus log-probabilities, which are the losses. Functions that take a kind are inlined for each. */
enum kind_of_scores { INSIDE, CLIPPED, LOGS };
enum layout_of_rows { NEXT, APART, SPLIT }; /* see losses_body.h */

/* The losses of probabilities; of nan, any number. */
TL_TARGET TL_INLINE void f32_losses(f32_vec p, enum kind_of_scores kind, const tl_clip *clip, f64_vec *loss) {
    const f32_vec least = f32_set(f32_LEAST_NORMAL);
    f64_vec wide[f32_WIDTH / f64_WIDTH];
    if (kind == LOGS) {
        f32_widen(p, loss);
        return;
    }
    f32_vec x = kind == CLIPPED ? f32_mul(p, f32_set(0x1p24f)) : p;
    x = kind == CLIPPED ? f32_max_keep_nan(least, x) : x;
    f32_vec below = f32_below_line(x);
    if (kind == CLIPPED)
        below = f32_if_equal(x, least, f32_set(INFINITY), below);
    f32_widen(below, loss);
    f32_widen_bits(f32_plus_bits(x, 0 - ONE_BITS - (kind == CLIPPED ? 24u << 23 : 0)), wide);
    for (size_t i = 0; i < f32_WIDTH / f64_WIDTH; i++) {
        loss[i] = f64_fma(wide[i], f64_set(MINUS_LN2_OF_BIT), loss[i]);
        if (kind == CLIPPED)
            loss[i] = f64_max_keep_nan(f64_set(clip->least_loss), f64_min(f64_set(clip->greatest_loss), loss[i]));
    }
}

TL_TARGET TL_INLINE void f64_losses(f64_vec p, enum kind_of_scores kind, const tl_clip *clip, f64_vec *loss) {
    f64_vec x = p;
    if (kind == CLIPPED)
        x = f64_min(f64_set(clip->highest), f64_max_keep_nan(f64_set(clip->lowest), p));
    *loss = kind == LOGS ? p : f64_minus_log(x, kind == CLIPPED);
    if (kind == CLIPPED) {
        const f64_vec zero = f64_set(0), infinity = f64_set((double)INFINITY);
        *loss = f64_if_less(f64_set(0x1.fffffffffffffp1023), x, f64_sub(zero, infinity), *loss);
        *loss = f64_if_less(x, zero, f64_set((double)NAN), f64_if_equal(x, zero, infinity, *loss));
    }
}

/* The bits of the largest number of the dtype that is not above this one. All bits but the sign, less these, are added
 * to a score's, so that the sign is set if it was (or if all overflow), or if the score is above, or nan. */
TL_TARGET TL_INLINE uint32_t f32_bits_up_to(double most) {
    float bound = (float)most;
    uint32_t bits;
    memcpy(&bits, &bound, sizeof bits);
    return bits - ((double)bound > most);
}
TL_TARGET TL_INLINE uint64_t f64_bits_up_to(double most) { return tl_to_bits(most); }
#define BOUND(uint, bits) (((uint)-1 >> 1) - (bits))

/* The least and the largest probability that count as INSIDE. In float, it is losses that are clipped, and these have
 * errors: so probabilities stay away from both bounds. */
TL_INLINE double least_inside(const tl_clip *clip, double normal) {
    return 2 * clip->lowest > normal ? 2 * clip->lowest : normal;
}
TL_INLINE double most_inside(const tl_clip *clip) { return clip->highest > 0.5 ? 2 * clip->highest - 1 : 0; }

/* -- sums over the classes of rows --------------------------------------------------------------------------------- */

/* Where terms begin in memory with TERMS_ROOM: on a cache line, and no store of a term shares its low 12 bits with
 * loads soon after it, which would wait. Scores and masses rule out one of four places each. */
#define TERMS_ROOM (TL_TERMS + 2 * TL_GROUP + 8 + 256)
TL_INLINE double *place_of_terms(double *memory, const void *score, const void *mass) {
    double *term = memory + (-(uintptr_t)memory & 63) / sizeof *term;
    while (((uintptr_t)score - (uintptr_t)term) % 4096 >= 3072 || ((uintptr_t)mass - (uintptr_t)term) % 4096 >= 3072)
        term += 128;
    return term;
}

/* The terms of a row of up to TL_PART classes, or of fewer than 16, each in lane k % 16, added up to as many lanes as a
 * vector has. Terms after the row are read as well, and left out. */
TL_TARGET TL_INLINE f64_vec lanes_of_row(const double *term, size_t classes, int are_few) {
    static const double PLACE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const size_t rest = are_few ? classes : classes % 16, whole = classes - rest;
    const f64_vec zero = f64_set(0);
    f64_vec lane[LANE_VECTORS], end[LANE_VECTORS];
    for (size_t j = 0; j < LANE_VECTORS; j++) {
        const f64_vec last = f64_load(term + whole + j * f64_WIDTH);
        end[j] = f64_if_less(f64_load(PLACE + j * f64_WIDTH), f64_set((double)rest), last, zero);
        lane[j] = whole > 0 ? f64_load(term + j * f64_WIDTH) : end[j];
    }
    for (size_t k = 16; k < whole; k += 16)
        for (size_t j = 0; j < LANE_VECTORS; j++)
            lane[j] = f64_add(lane[j], f64_load(term + k + j * f64_WIDTH));
    for (size_t j = 0; whole > 0 && rest > 0 && j < LANE_VECTORS; j++)
        lane[j] = f64_add(lane[j], end[j]);
    for (size_t half = LANE_VECTORS / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            lane[j] = f64_add(lane[j], lane[j + half]);
    return lane[0];
}

/* The sums of a vector of rows, whose `count` terms follow each other: the last row may be shorter, others empty. */
TL_TARGET TL_INLINE f64_vec sums_of_vector(const double *term, size_t count, size_t classes, int are_few) {
    f64_vec row[f64_WIDTH];
    if (classes == 1)
        return f64_load(term);
    if (classes == 2)
        return f64_add(f64_column(term, 2, 0), f64_column(term, 2, 1));
    if (classes == 3)
        return f64_add(f64_add(f64_column(term, 3, 0), f64_column(term, 3, 2)), f64_column(term, 3, 1));
    if (count >= f64_WIDTH * classes)
        for (size_t r = 0; r < f64_WIDTH; r++)
            row[r] = lanes_of_row(term + r * classes, classes, are_few);
    else
        for (size_t r = 0, k = 0; r < f64_WIDTH; r++, k += classes)
            row[r] = lanes_of_row(term + k, k >= count ? 0 : count - k < classes ? count - k : classes, are_few);
    return f64_sum_each(row);
}

/* The same of vectors of rows: never -0.0. */
TL_TARGET TL_INLINE void sums_of_rows(const double *term, size_t count, size_t classes, int are_few, double *sum) {
    for (size_t i = 0; i < count; i += f64_WIDTH * classes, sum += f64_WIDTH)
        f64_store(sum, f64_add(f64_set(0), sums_of_vector(term + i, count - i, classes, are_few)));
}

/* Writes a vector of sums, or adds it to what is there. */
TL_TARGET TL_INLINE void write_sums(f64_vec term, double *sum, int adds) {
    f64_store(sum, adds ? f64_add(term, f64_load(sum)) : term);
}

/* The sums of rows, but of those before term `start`. */
TL_TARGET TL_OUTLINE void sum_terms(const double *term, size_t start, size_t count, size_t classes,
                                    const tl_sums_at *to) {
    for (size_t i = start; classes == 1 && i < count; i += f64_WIDTH)
        write_sums(f64_load(term + i), to->sum + i, to->adds);
    double *sum = to->sum + start / classes;
    term += start;
    count -= start;
    classes == 1   ? (void)0
    : classes == 2 ? sums_of_rows(term, count, 2, 1, sum) /* loops that compilers unroll */
    : classes == 3 ? sums_of_rows(term, count, 3, 1, sum)
    : classes < 16 ? sums_of_rows(term, count, classes, 1, sum)
                   : sums_of_rows(term, count, classes, 0, sum);
}

/* The sums of rows in planes whose classes have up to so many lanes. */
TL_TARGET TL_INLINE void sum_in_lanes(const double *term, size_t classes, size_t rows, size_t lanes, double *sum) {
    for (size_t r = 0; r < rows; r += f64_WIDTH, term += f64_WIDTH) {
        f64_vec lane[16];
        for (size_t k = 0; k < lanes; k++)
            lane[k] = k < classes ? f64_load(term + k * rows) : f64_set(0);
        for (size_t k = 16; k < classes; k++)
            lane[k % 16] = f64_add(lane[k % 16], f64_load(term + k * rows));
        for (size_t half = lanes / 2; half > 0; half /= 2)
            for (size_t k = 0; k < half; k++)
                lane[k] = f64_add(lane[k], lane[half + k]);
        f64_store(sum + r, f64_add(lane[0], f64_set(0)));
    }
}

TL_TARGET static void JOIN(sum_planes_, BACKEND)(const double *term, size_t classes, size_t rows, double *sum) {
    classes <= 2   ? sum_in_lanes(term, classes, rows, 2, sum)
    : classes <= 4 ? sum_in_lanes(term, classes, rows, 4, sum)
    : classes <= 8 ? sum_in_lanes(term, classes, rows, 8, sum)
                   : sum_in_lanes(term, classes, rows, 16, sum);
}

/* -- INSIDE terms of floats ---------------------------------------------------------------------------------------- */

/* In two loops: what needs floats only, and what needs doubles, which are widened as they are loaded. */
#ifndef f32_load_widened_bits
#define f32_load_widened_bits(p, wide) f32_widen_bits(f32_load(p), wide)
#endif

TL_TARGET TL_INLINE void sum_lines_of(const float *score, const float *mass, const float *below, size_t count,
                                      size_t together, int adds, double *sum) {
    const size_t step = 2 * f64_WIDTH * together;
    for (size_t i = 0; i < count; i += step, sum += 2 * f64_WIDTH) {
        double term[6 * f64_WIDTH];
        for (size_t k = 0; k < step; k += f32_WIDTH) {
            f64_vec bits[f32_WIDTH / f64_WIDTH], loss[f32_WIDTH / f64_WIDTH], masses[f32_WIDTH / f64_WIDTH];
            f32_load_widened_bits(score + i + k, bits);
            f32_load_widened(below + i + k, loss);
            f32_load_widened(mass + i + k, masses);
            UNROLLED for (size_t j = 0; j < f32_WIDTH / f64_WIDTH; j++) {
                loss[j] = f64_fma(f64_sub(bits[j], f64_set(ONE_BITS)), f64_set(MINUS_LN2_OF_BIT), loss[j]);
                f64_store(term + k + j * f64_WIDTH, f64_mul(masses[j], loss[j]));
            }
        }
        UNROLLED for (size_t k = 0; k < 2 * f64_WIDTH; k += f64_WIDTH)
            write_sums(sums_of_vector(term + k * together, step, together, 1), sum + k, adds);
    }
}

TL_TARGET static void sum_lines(const float *score, const float *mass, const float *below, size_t count,
                                size_t together, const tl_sums_at *to) {
    together == 3   ? sum_lines_of(score, mass, below, count, 3, 0, to->sum)
    : together == 2 ? sum_lines_of(score, mass, below, count, 2, 0, to->sum)
    : to->adds      ? sum_lines_of(score, mass, below, count, 1, 1, to->sum)
                    : sum_lines_of(score, mass, below, count, 1, 0, to->sum);
}

/* The sums of up to three terms that belong `together`, of whole steps. Returns 0, and writes none, if a score is not
 * INSIDE. */
TL_TARGET static int add_lines(const void *scores, const void *masses, size_t count, size_t together,
                               const tl_clip *clip, const tl_sums_at *to) {
    const uint32_t least = f32_bits_up_to(least_inside(clip, f32_LEAST_NORMAL));
    const uint32_t most = BOUND(uint32_t, f32_bits_up_to(most_inside(clip)));
    const float *score = (const float *)scores, *mass = (const float *)masses;
    const ptrdiff_t ahead = to->ahead / (ptrdiff_t)sizeof *score;
    double memory[TERMS_ROOM];
    float *below = (float *)place_of_terms(memory, score, mass);
    f32_bits odd = f32_set_bits(0);
    for (size_t i = 0; i < count; i += 2 * f32_WIDTH) {
        for (size_t line = 0; line < 2 * f32_WIDTH; line += 16) { /* of 16 floats */
            tl_prefetch_stream(score + i + line + ahead);
            tl_prefetch_stream(mass + i + line + ahead);
        }
        UNROLLED for (size_t u = 0; u < 2 * f32_WIDTH; u += f32_WIDTH) {
            f32_vec x = f32_load(score + i + u);
            odd = f32_or_bits(odd, f32_plus_bits(x, 0 - least), f32_plus_bits(x, most));
            f32_store(below + i + u, f32_below_line(x));
        }
    }
    if (f32_any_negative(odd))
        return 0;
    sum_lines(score, mass, below, count, together, to);
    return 1;
}
