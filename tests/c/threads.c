/* Threads take rows from one counter, as the core has them do, on every backend of the machine: to be built with
 * -fsanitize=thread, see test_kernels.py. Input is shared and constant; results must be those of one thread. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "calls.h"
#include "kernels.h"
#include "superacc.h"

#define THREADS 4
#define ROWS 60
#define CLASSES (TL_BLOCK + 300)
#define BEST 5
#define SHORT_ROWS 20
#define SHORT_CLASSES 100

typedef struct {
    const tl_backend *backend;
    int64_t next_row;
    int stopped, stops_itself;
    pthread_mutex_t merging;
    tl_superacc losses;
    int64_t kept;
    uint64_t hash_of_row[ROWS];
} work;

static float logits[ROWS][CLASSES], others[ROWS][CLASSES];

static int poll(void *argument) { return ((work *)argument)->stops_itself; }

static tl_row float_row(const float *data) {
    return (tl_row){(const char *)data, CLASSES, 4, TL_FLOAT32, TL_FLOAT32, 1, 0, 0, 0};
}

/* The losses of a row for class i and for a distribution, with smoothing and z-loss. */
static void take_losses(const tl_backend *backend, const tl_row *row, int64_t i, const tl_row *out, tl_cancel *cancel) {
    tl_loss of_class = {{.one_minus_eps = 0.9, .eps_over_v = 0.1 / CLASSES}, i, 2, 1e-3, out, 0.5, 0};
    tl_loss loss = {{(const char *)others[i], 4, TL_FLOAT32, NULL, 0, 0, 0.9, 0.1 / CLASSES}, -1, 1, 1e-3, out, 0.5, 1};
    take(Q_class_id_loss, loss_of_row(backend, row, &of_class, cancel));
    take_row(Q_gradient, out);
    take(Q_dense_float32_loss, loss_of_row(backend, row, &loss, cancel));
    take_row(Q_gradient, out);
    take(Q_tiles_dense_float32_loss, loss_by_ranges(backend, row, &loss, PART, cancel));
    take_masses(backend, row, &loss.soft, cancel);
    const tl_clip clip = clip_of(1, row->dtype);
    take_nll(Q_nll_of_log_probabilities, backend, row, &loss.soft, &clip, cancel);
}

/* The losses and gradients of short rows, which are parts of a long one. */
static void take_block(const tl_backend *backend, const float *data, float *gradient, tl_cancel *cancel) {
    tl_row_block rows = {float_row(data), .count = SHORT_ROWS, .has_excluded = 1, .keeps_logits = 1};
    tl_out_block out = {.row = float_row(gradient)};
    tl_loss loss = {{.one_minus_eps = 0.9, .eps_over_v = 0.1 / SHORT_CLASSES}, -1, 1, 0, NULL, 1, 0};
    double values[TL_BLOCK_ROWS];
    tl_loss losses[TL_BLOCK_ROWS];
    tl_masses none = {NULL, 0};
    tl_block_lse lse;
    rows.wanted = (1u << SHORT_ROWS) - 1;
    rows.row.count = out.row.count = SHORT_CLASSES;
    rows.scratch = malloc(tl_row_block_bytes(SHORT_CLASSES, 0));
    if (!rows.scratch)
        exit(2);
    for (int r = 0; r < SHORT_ROWS; r++) {
        rows.data[r] = (const char *)(data + r * SHORT_CLASSES);
        rows.excluded[r] = loss.target = r;
        losses[r] = loss;
        out.data[r] = (char *)(gradient + r * SHORT_CLASSES);
    }
    tl_odds_of_block(backend, &rows, &lse, cancel);
    tl_losses_of_block(backend, &rows, &lse, losses, &none, &out, values, cancel);
    for (int r = 0; r < SHORT_ROWS; r++)
        take(Q_class_id_loss, values[r]);
    out.row.count = SHORT_ROWS * SHORT_CLASSES;
    take_row(Q_gradient, &out.row);
    free(rows.scratch);
}

/* Everything of row i; returns the loss of its token. */
static double compute_row(work *w, int64_t i, tl_cancel *cancel) {
    const tl_backend *backend = w->backend;
    float memory[CLASSES];
    double values[BEST];
    tl_divergences all;
    int64_t ids[BEST];
    tl_row row = float_row(logits[i]), other = float_row(others[i]), out = float_row(memory);
    tl_topk best = {BEST, 0, values, ids, 0};
    tl_lse_acc state;
    if (i % 3 == 1) /* computed in double */
        row.compute_dtype = other.compute_dtype = TL_FLOAT64, row.softcap = 30;
    double nll = take_token(backend, &row, i, &best, cancel).nll;
    take(Q_kl, take_divergences(Q_divergences, backend, &row, &other, &all, cancel).kl);
    tl_lse_row(backend, &row, -1, &state, cancel);
    take_softmaxes(backend, &row, &out, 1, cancel);
    take_losses(backend, &row, i, &out, cancel);
    take_block(backend, logits[i], memory, cancel);
    w->hash_of_row[i] = hash_of_all();
    return nll;
}

static void *run(void *argument) {
    work *w = argument;
    tl_cancel cancel = {poll, w, &w->stopped, 0};
    tl_fp_state environment;
    tl_superacc losses = {.special = 0};
    int64_t kept = 0;
    tl_fp_enter(&environment);
    while (!tl_flag_get(&w->stopped)) {
        int64_t start = tl_fetch_add(&w->next_row, 2);
        if (start >= ROWS)
            break;
        for (int64_t i = start; i < start + 2; i++, kept++)
            tl_superacc_add(&losses, compute_row(w, i, &cancel));
        tl_canceled(&cancel);
    }
    tl_fp_leave(&environment);
    pthread_mutex_lock(&w->merging);
    tl_superacc_merge(TL_SUM, &w->losses, &losses);
    w->kept += kept;
    pthread_mutex_unlock(&w->merging);
    return NULL;
}

static double run_threads(work *w, const tl_backend *backend, int threads, int stops_itself) {
    pthread_t thread[THREADS];
    *w = (work){.backend = backend, .stops_itself = stops_itself};
    pthread_mutex_init(&w->merging, NULL);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, run, w))
            exit(2);
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    return tl_superacc_round(&w->losses, 0);
}

int main(void) {
    uint64_t seed = 1;
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < CLASSES; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            logits[i][k] = (float)(seed >> 40) * 0x1p-20f;
            others[i][k] = (float)(seed >> 32 & 0xffffff) * 0x1p-24f;
        }
    for (int id = 0; id < TL_BACKENDS; id++) {
        const tl_backend *backend = tl_find_backend((tl_backend_id)id);
        if (!backend)
            continue;
        work alone, shared, stopped;
        double expected = run_threads(&alone, backend, 1, 0), sum = run_threads(&shared, backend, THREADS, 0);
        run_threads(&stopped, backend, THREADS, 1);
        int same = sum == expected && shared.kept == ROWS &&
                   !memcmp(alone.hash_of_row, shared.hash_of_row, sizeof alone.hash_of_row);
        printf("%s %s, %d rows until it was stopped\n", backend->name, same ? "same" : "differs", (int)stopped.kept);
        if (!same || stopped.kept >= ROWS)
            return 1;
    }
    return 0;
}
