/* Runs all kernels over rows that lie against pages which cannot be touched, so that a read or write beyond a row ends
 * the program: see test_guarded.py. Prints the backends that passed.
 * Arguments: N and M, to run one case in N, and one in M on the portable backend. */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "blocks.h"
#include "calls.h"
#include "kernels.h"
#include "losses.h"
#include "rows.h"

#define ROOM ((size_t)1 << 20) /* bytes between two pages that cannot be touched */
#define PAGE ((size_t)1 << 16) /* a multiple of every machine's */

typedef enum { ROW, OTHER, MASSES, WEIGHTS, OUT, COPIES, ROOMS } room;

static char *rooms[ROOMS];

static void open_rooms(void) {
    for (int i = 0; i < ROOMS; i++) {
        char *all = mmap(NULL, ROOM + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        rooms[i] = all + PAGE;
        if (all == MAP_FAILED || mprotect(rooms[i], ROOM, PROT_READ | PROT_WRITE)) {
            perror("guarded pages");
            exit(1);
        }
    }
}

/* So many bytes, of which the last is the room's last or the first is its first. */
static char *place(room in, int64_t bytes, int at_end) { return at_end ? rooms[in] + ROOM - bytes : rooms[in]; }

/* Every other layout ends where the room does, the others begin where it does. */
enum {
    AT_END,
    AT_START,
    ODD_AT_END,
    ODD_AT_START,
    STRIDED,
    BACKWARDS,
    STRIDED_BACKWARDS,
    BACKWARDS_AT_START,
    SWAPPED,
    LAYOUTS
};

static tl_row row_of(room in, int64_t count, int dtype, int layout) {
    int odd = layout == ODD_AT_END || layout == ODD_AT_START,
        apart = layout == STRIDED || layout == STRIDED_BACKWARDS ? 3 : 1;
    int backwards = layout >= BACKWARDS && layout <= BACKWARDS_AT_START;
    ptrdiff_t size = tl_itemsize(dtype), bytes = (count - 1) * apart * size + size;
    tl_row row = {place(in, bytes + odd, layout % 2 == 0), count, apart * size, dtype, dtype, 1, 0, 0, 0};
    row.data += layout == ODD_AT_START;
    if (backwards) {
        row.data += (count - 1) * row.stride;
        row.stride = -row.stride;
    }
    if (layout == SWAPPED)
        row.dtype |= TL_SWAPPED;
    return row;
}

static void fill_row(const tl_row *row, int kind) {
    for (int64_t i = 0; i < row->count; i++) {
        char element[8];
        fill(element, row->compute_dtype, kind, 1.5);
        int size = tl_itemsize(row->dtype);
        for (int k = 0; k < size; k++)
            ((char *)(uintptr_t)row->data)[i * row->stride + k] = element[row->dtype & TL_SWAPPED ? size - 1 - k : k];
    }
}

/* Uses a result that has no other hash. */
static void use(double value) { take(Q_nll, value); }

static void use_soft_target(const tl_backend *backend, const tl_row *row, const tl_soft_target *soft,
                            tl_cancel *cancel) {
    double mass[64];
    int64_t start = 0;
    take_masses(backend, row, soft, cancel);
    if (soft->mass)
        for (int count; (count = tl_soft_target_next(backend, soft, row->count, &start, mass, cancel)) > 0;
             start += count)
            for (int i = 0; i < count; i++)
                use(mass[i]);
}

static void read_all(const tl_backend *backend, const tl_row *row, const tl_row *other, int at_end, tl_cancel *cancel) {
    int64_t count = row->count, targets[] = {-1, 0, count / 2, count - 1};
    tl_lse_acc state;
    tl_divergences all;
    use(tl_maximum(backend, row));
    for (int t = 0; t < 4; t++) {
        tl_lse_row(backend, row, targets[t], &state, cancel);
        use(tl_logsumexp(tl_lse_finish(&state, row->compute_dtype)));
        if (t == 0)
            use(logsumexp_of_row(backend, row, cancel));
    }
    int64_t most = count < 7 ? count : 7;
    tl_topk best = {most, 0, (double *)(void *)place(MASSES, 8 * most, at_end),
                    (int64_t *)(void *)place(WEIGHTS, 8 * most, at_end), 0};
    take_token(backend, row, count / 2, &best, cancel);
    take_tails(backend, row, &best, cancel);
    use(take_divergences(Q_divergences, backend, row, other, &all, cancel).kl);
    tl_row probs = *row, other_probs = *other;
    probs.of_probs = other_probs.of_probs = 1;
    use(take_divergences(Q_divergences_of_probs, backend, &probs, &other_probs, &all, cancel).kl);
    for (tl_definitions definitions = TL_EXACT; definitions <= TL_LLAMA_CPP; definitions++) {
        tl_pair pair = tl_pair_row(backend, row, other, count / 2, row->compute_dtype, definitions, cancel);
        use(pair.nll + pair.base_nll + pair.kl + pair.change + pair.is_same_top);
        use(tl_pair_base_logsumexp(backend, row, tl_logsumexp(pair.base_lse), 0.1, cancel));
    }
}

/* Masses from the other row, equal masses, class weights, and masses that are mostly zero. */
static void use_soft_targets(const tl_backend *backend, const tl_row *row, const tl_row *other, int at_end,
                             tl_cancel *cancel) {
    tl_soft_target soft = {other->data, other->stride, other->dtype, NULL, 0, 0, 0.25, 0};
    tl_soft_target uniform = {NULL, 0, 0, NULL, 0, 0, 0, 0.01};
    use_soft_target(backend, row, &soft, cancel);
    use_soft_target(backend, row, &uniform, cancel);
    uniform.weight = place(WEIGHTS, 4 * row->count, at_end);
    uniform.weight_stride = 4;
    uniform.weight_dtype = TL_FLOAT32;
    memset((char *)(uintptr_t)uniform.weight, 0x3f, (size_t)(4 * row->count));
    use_soft_target(backend, row, &uniform, cancel);
    static const int dtypes[] = {TL_UINT8, TL_BFLOAT16, TL_FLOAT32, TL_FLOAT64};
    for (int d = 0; d < 4; d++) {
        int64_t size = tl_itemsize(dtypes[d]);
        tl_soft_target sparse = {place(MASSES, size * row->count, at_end), size, dtypes[d], NULL, 0, 0, 1, 0};
        char *bytes = (char *)(uintptr_t)sparse.mass;
        memset(bytes, 0, (size_t)(size * row->count));
        use_soft_target(backend, row, &sparse, cancel);
        bytes[size * row->count - 1] = 0x3f;
        use_soft_target(backend, row, &sparse, cancel);
    }
}

static void write_all(const tl_backend *backend, const tl_row *row, int layout, tl_cancel *cancel) {
    int dtype = row->dtype & ~TL_SWAPPED;
    tl_row out = row_of(OUT, row->count, dtype, layout);
    for (int to = TL_FLOAT32; to <= TL_FLOAT64; to++) {
        tl_row converted = row_of(OUT, row->count, to, layout % 2);
        tl_cast_row(backend, row, to, (char *)(uintptr_t)converted.data);
        take_row(Q_cast, &converted);
    }
    tl_lse_acc state;
    tl_lse_row(backend, row, -1, &state, cancel);
    tl_lse lse = tl_lse_finish(&state, row->compute_dtype);
    if (tl_logsumexp(lse) - tl_logsumexp(lse) != 0)
        return;
    take_softmaxes(backend, row, &out, 0, cancel);
    take_softmaxes(backend, row, &out, 1, cancel);
}

/* A loss of this row, with its masses and weights in guarded memory, too. */
static tl_loss place_loss(const loss_case *of, int64_t count, int64_t target, int at_end) {
    return make_loss(of, count, target, place(MASSES, count * tl_itemsize(of->mass_dtype), at_end),
                     place(WEIGHTS, count * 4, at_end));
}

/* Losses of the row with their gradients, and its losses as probabilities and log-probabilities. */
static void use_losses(const tl_backend *backend, const tl_row *row, int layout, int first, int step,
                       tl_cancel *cancel) {
    int64_t count = row->count;
    tl_row grad = row_of(OUT, count, row->dtype & ~TL_SWAPPED, layout);
    for (int i = first; i < LOSS_CASES; i += step) {
        tl_loss loss = place_loss(&loss_cases[i], count, count / 2, layout % 2 == 0);
        use(loss_of_row(backend, row, &loss, cancel));
        loss.grad = &grad;
        use(loss_of_row(backend, row, &loss, cancel));
        take_row(Q_gradient, &grad);
        if (loss.target >= 0)
            continue;
        use((double)tl_one_hot_class(backend, &loss.soft, count, cancel));
        const tl_clip clips[] = {clip_of(0, row->dtype), clip_of(1, row->dtype)};
        take_nll(Q_nll_of_log_probabilities, backend, row, &loss.soft, &clips[1], cancel);
        take_nll(Q_nll_of_probabilities, backend, row, &loss.soft, &clips[0], cancel);
    }
}

/* Blocks of two rows, whose masses are mostly zero or none is. */
static void read_distributions(const tl_backend *backend, int64_t classes, int dtype, int at_end) {
    const int64_t size = tl_itemsize(dtype);
    const int rows[] = {0, 1};
    double nll[TL_GROUP];
    tl_row scores = row_of(ROW, 2 * classes, dtype, at_end ? AT_END : AT_START);
    fill_row(&scores, 0);
    const tl_clip clip = clip_of(0, dtype);
    for (int is_dense = 0; is_dense < 2; is_dense++) {
        char *masses = place(MASSES, 2 * classes * size, at_end);
        memset(masses, is_dense ? 0x3f : 0, (size_t)(2 * classes * size));
        masses[2 * classes * size - 1] = 0x3f;
        tl_distributions block = {masses, scores.data, NULL,  size * classes, size,    size * classes,
                                  size,   0,           dtype, dtype,          0,       classes,
                                  &clip, 0,           0};
        tl_nll_of_distributions(backend, &block, rows, 2, nll);
        use(nll[0] + nll[1]);
        if (classes > TL_PART)
            continue;
        block.mass_row = block.score_row = size;
        block.sample_rows = 2;
        tl_nll_of_distributions(backend, &block, rows, 2, nll);
        use(nll[0] + nll[1]);
    }
}

/* A row of which only one range at a time can be touched. */
static void read_ranges(const tl_backend *backend, int64_t count, int dtype, int at_end, const loss_case *of,
                        tl_cancel *cancel) {
    tl_token_stats token;
    tl_loss_acc acc;
    double values[3], target_raw = 1;
    int64_t ids[3], target = count / 2;
    tl_topk best = {count < 3 ? count : 3, 0, values, ids, 0};
    tl_row row = {NULL, count, tl_itemsize(dtype), dtype, dtype, 1, 0, 0, 0};
    tl_loss loss = place_loss(of, count, target, at_end);
    tl_loss_begin(backend, &loss, count, &acc, cancel);
    tl_loss_set_target_logit(backend, &row, &loss, target_raw, &acc);
    for (int64_t start = 0, end; start < count; start = end) {
        end = count - start < PART ? count : start + PART;
        tl_row there = row_of(ROW, end - start, dtype, at_end ? AT_END : AT_START);
        fill_row(&there, 0);
        row.data = (const char *)((uintptr_t)there.data - (uintptr_t)(start * row.stride));
        if (target >= start && target < end)
            tl_store_at(&row, target, target_raw);
        if (acc.excluded >= start && acc.excluded < end)
            tl_store_at(&row, acc.excluded, target_raw);
        tl_loss_range(backend, &row, &loss, start, end, PART, &acc, cancel);
        tl_token_stats_range(backend, &row, start, end, PART, target, target_raw, &token, &best, cancel);
    }
    row.data = NULL;
    tl_token_stats_end(backend, &row, target_raw, &token, &best);
    use(tl_loss_end(backend, &row, &loss, &acc) + token.entropy);
}

/* Rows in class-major layout, which fill the lanes of some vectors and some of the next, are copied and written back. */
static void copy_class_major(const tl_backend *backend, int64_t count, int dtype, int at_end) {
    enum { INTERLEAVED = 43 };
    tl_row all = row_of(ROW, count * INTERLEAVED, dtype, at_end ? AT_END : AT_START);
    const int64_t bytes = INTERLEAVED * tl_copied_row(count, dtype);
    tl_row_block rows = {.row = all, .count = INTERLEAVED, .wanted = ~((uint64_t)1 << 40)};
    tl_out_block out = {.row = all};
    fill_row(&all, 4);
    rows.row.count = out.row.count = count;
    rows.row.stride = out.row.stride = all.stride * INTERLEAVED;
    for (int r = 0; r < INTERLEAVED; r++)
        rows.data[r] = out.data[r] = (char *)(uintptr_t)all.data + r * all.stride;
    tl_copy_rows(backend, &rows, place(COPIES, (bytes + 63) / 64 * 64, at_end));
    for (int r = 0; r < INTERLEAVED; r++)
        use(tl_load(rows.data[r] + (count - 1) * all.stride, dtype));
    tl_write_copies(backend, &rows, &out);
}

static void multiply(const tl_backend *backend, int64_t depth, int dtype, int layout) {
    int wide = dtype == TL_FLOAT64 ? TL_FLOAT64 : TL_FLOAT32;
    const int64_t size = tl_itemsize(wide), rows = 3;
    for (int64_t count = 1; count <= 5; count++) {
        tl_row weights = row_of(ROW, rows * depth, dtype, layout),
               states = row_of(OTHER, count * depth, wide, layout % 2);
        tl_row products = row_of(OUT, count * rows, wide, layout % 2);
        tl_vectors with = {(char *)(uintptr_t)states.data, depth * size, count};
        tl_vectors out = {(char *)(uintptr_t)products.data, rows * size, count};
        fill_row(&weights, 0);
        fill_row(&states, 0);
        weights.count = depth;
        tl_matvec(backend, &weights, depth * weights.stride, rows, &with, &out);
        take_row(Q_matvec, &products);
    }
}

/* Of bfloat16, by all instructions that there are. Their digits are the machine's, so no hash has them. */
static void multiply_bf16(const tl_backend *backend, int64_t depth, int layout, tl_cancel *cancel) {
    static const int64_t sizes[] = {1, 16, 33};
    for (tl_bf16_matmul by = 0; by < TL_BF16_MATMULS; by++)
        for (int i = 0; i < 9 && tl_has_matmul_bf16(by, backend); i++) {
            const int64_t rows = sizes[i % 3], count = sizes[i / 3];
            tl_row weights = row_of(ROW, rows * depth, TL_BFLOAT16, layout);
            tl_row states = row_of(MASSES, count * depth, TL_FLOAT32, layout % 2);
            tl_row products = row_of(OUT, count * rows, TL_FLOAT32, layout % 2);
            tl_vectors out = {(char *)(uintptr_t)products.data, rows * (ptrdiff_t)sizeof(float), count};
            tl_bf16_panels with = {by, NULL, count, depth};
            const size_t bytes = tl_bf16_panels_bytes(&with);
            with.data = memset(place(OTHER, (int64_t)bytes, layout % 2 == 0), 0, bytes);
            fill_row(&weights, 0);
            for (int64_t v = 0; v < count; v++)
                tl_bf16_set_vector(&with, v, (const float *)(const void *)states.data + v * depth);
            weights.count = depth;
            tl_matmul_bf16(&weights, depth * weights.stride, rows, &with, &out, cancel);
        }
}

static void read_probabilities(const tl_backend *backend, int64_t count, int at_end) {
    const int64_t padded = (count + TL_GROUP - 1) / TL_GROUP * TL_GROUP;
    for (int dtype = TL_FLOAT32; dtype <= TL_FLOAT64; dtype++)
        for (int is_log = 0; is_log < 2; is_log++) {
            tl_row row = row_of(ROW, padded, dtype, at_end ? AT_END : AT_START);
            tl_row nll = row_of(OUT, padded, TL_FLOAT64, at_end ? AT_END : AT_START);
            const tl_clip clip = clip_of(is_log, dtype);
            fill_row(&row, 0);
            fill_row(&nll, 0);
            tl_negative_log(backend, &clip, (void *)(uintptr_t)row.data, (size_t)count, (double *)(uintptr_t)nll.data);
            take_row(Q_negative_log, &nll);
        }
    char *zeros = place(ROW, count, at_end);
    memset(zeros, 0, (size_t)count);
    use((double)backend->skip_zeros(zeros, 0, count));
}

static int blocks_are_at_end;

/* Scratch memory at the end lacks a byte, so that what is left over for its alignment is all before the groups. */
static char *place_block(block_part part, size_t bytes) {
    static const room rooms_of_parts[] = {ROW, OUT, MASSES, WEIGHTS, COPIES, OTHER};
    size_t less = part >= BLOCK_SCRATCH && bytes % 64 == 0;
    return place(rooms_of_parts[part], (int64_t)(bytes - less), blocks_are_at_end);
}

static int parts = 1; /* one case in so many is run */

/* Blocks of rows: the last or the first one lies against a page, in any lane. */
static void check_blocks(const tl_backend *backend, tl_cancel *cancel) {
    static const int kinds[] = {0, 1, 2, 4};
    for (int i = 0; i < BLOCK_LENGTHS * TL_FLOAT_DTYPES * 2; i++) {
        int64_t classes = block_lengths[i % BLOCK_LENGTHS];
        block_case of = some_block(classes, i / BLOCK_LENGTHS % TL_FLOAT_DTYPES, kinds[die(4)], place_block);
        blocks_are_at_end = i < BLOCK_LENGTHS * TL_FLOAT_DTYPES;
        if (classes > 64 && of.count > 18) { /* for the sake of valgrind */
            of.count = 18;
            of.wanted &= 0x3ffff;
        }
        if (i % parts == 0)
            check_block(backend, &of, cancel);
    }
}

static const int64_t counts[] = {1,   2,   15,  16,  17,   63,   64,   65,   127,  128,  129,
                                 511, 512, 513, 640, 1024, 1025, 4095, 4096, 4097, 4609, 8193};

static void run_all(const tl_backend *backend, tl_cancel *cancel) {
    for (int c = 0; c < (int)(sizeof counts / sizeof *counts); c++)
        for (int dtype = 0; dtype < TL_FLOAT_DTYPES; dtype++) {
            if ((c + 6 * dtype) % parts != 0)
                continue;
            int64_t count = counts[c];
            for (int layout = 0; layout < LAYOUTS; layout++) {
                static const int of_counts[] = {0, 1, 2, 4}; /* kinds that fill knows */
                if (count > 1025 && layout > AT_START && layout != 2 + c % (LAYOUTS - 2))
                    continue; /* long rows in three layouts, for the sake of valgrind */
                tl_row row = row_of(ROW, count, dtype, layout), other = row_of(OTHER, count, dtype, layout);
                fill_row(&row, of_counts[(c + layout) % 4]);
                fill_row(&other, of_counts[(c + layout) / 4 % 4]);
                read_all(backend, &row, &other, layout % 2 == 0, cancel);
                use_soft_targets(backend, &row, &other, layout % 2 == 0, cancel);
                write_all(backend, &row, layout, cancel);
                int step = count > 129 ? 5 : 1; /* of long rows some losses, for the same sake */
                use_losses(backend, &row, layout, (c + layout) % step, step, cancel);
                if (layout < 4 && count < 5000) {
                    row.compute_dtype = TL_FLOAT64;
                    row.logit_scale = 0.75;
                    row.softcap = layout % 2 ? 30 : 0;
                    other.compute_dtype = TL_FLOAT64;
                    read_all(backend, &row, &other, layout % 2 == 0, cancel);
                    write_all(backend, &row, layout, cancel);
                    use_losses(backend, &row, layout, (c + dtype) % 5, 5, cancel);
                }
            }
            for (int at_end = 0; at_end < 2; at_end++) {
                read_ranges(backend, count, dtype, at_end, &loss_cases[(c * 8 + dtype * 2 + at_end) % LOSS_CASES],
                            cancel);
                if (count <= 2048)
                    copy_class_major(backend, count, dtype, at_end);
                read_probabilities(backend, count, at_end);
                read_distributions(backend, count, dtype, at_end);
            }
            for (int layout = 0; layout < STRIDED && count < 4000; layout++) {
                multiply(backend, count, dtype, layout);
                if (dtype == TL_BFLOAT16)
                    multiply_bf16(backend, count, layout, cancel);
            }
        }
}

int main(int argc, char **argv) {
    volatile int stopped = 0;
    tl_cancel cancel = {NULL, NULL, &stopped, 0};
    const int of_others = argc > 2 ? atoi(argv[1]) : 1, of_portable = argc > 2 ? atoi(argv[2]) : 1;
    open_rooms();
    for (int id = 0; id < TL_BACKENDS; id++) {
        const tl_backend *backend = tl_find_backend((tl_backend_id)id);
        if (!backend)
            continue;
        seed = 1;
        parts = id == TL_PORTABLE ? of_portable : of_others;
        run_all(backend, &cancel);
        check_blocks(backend, &cancel);
        printf("%s %" PRIx64 "\n", backend->name, hash_of_all());
    }
    return 0;
}
