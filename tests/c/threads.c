/* Threads take rows from one counter, as the core has them do, on every backend of the machine: to be built with
 * -fsanitize=thread, see test_kernels.py. Input is shared and constant; results must be those of one thread. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "superacc.h"
#include "kernels.h"
#include "scalar_math.h"

#define THREADS 4
#define ROWS 60
#define CLASSES (TL_BLOCK + 300)
#define BEST 5
#define SHORT_ROWS 20
#define SHORT_CLASSES 100

typedef struct {
    double logsumexp, entropy, nll, divergence, of_class, of_distribution, of_ranges, of_log_probabilities, best[BEST];
    int64_t id[BEST], argmax;
    double of_short[SHORT_ROWS];
    float softmax[CLASSES], class_gradient[CLASSES], gradient[CLASSES], short_gradient[SHORT_ROWS * SHORT_CLASSES];
} found;

typedef struct {
    const tl_backend *backend;
    int64_t next_row;
    int stopped, stops_itself;
    pthread_mutex_t merging;
    tl_superacc losses;
    int64_t kept;
    found *of_row;
} work;

static float logits[ROWS][CLASSES], others[ROWS][CLASSES];

static int poll(void *argument) { return ((work *)argument)->stops_itself; }

static tl_row float_row(const float *data) {
    return (tl_row){(const char *)data, CLASSES, 4, TL_FLOAT32, TL_FLOAT32, 1, 0, 0, 0};
}

/* The losses of a row for class i and for a distribution, with smoothing and z-loss. */
static void compute_losses(const tl_backend *backend, const tl_row *row, int64_t i, found *to, tl_cancel *cancel) {
    static const tl_clip clip = {(double)NAN, (double)NAN, -(double)INFINITY, 1e9};
    tl_row class_gradient = float_row(to->class_gradient), gradient = float_row(to->gradient);
    tl_loss of_class = {{.one_minus_eps = 0.9, .eps_over_v = 0.1 / CLASSES}, i, 2, 1e-3, &class_gradient, 0.5, 0};
    tl_loss loss = {
        {(const char *)others[i], 4, TL_FLOAT32, NULL, 0, 0, 0.9, 0.1 / CLASSES}, -1, 1, 1e-3, &gradient, 0.5, 1};
    tl_lse_acc rest;
    tl_loss_acc acc;
    tl_seen seen;
    int64_t nonzero;
    tl_lse_row(backend, row, i, &rest, cancel);
    to->of_class = tl_loss_of_class(backend, row, &of_class, &rest, cancel);
    to->argmax = tl_soft_target_argmax(backend, &loss.soft, CLASSES, &nonzero, cancel);
    to->of_distribution = tl_loss_of_distribution(backend, row, &loss, to->argmax, cancel);
    to->of_log_probabilities = tl_nll_of_distribution(backend, row, &loss.soft, &clip, &seen, cancel);
    tl_loss_begin(backend, &loss, CLASSES, &acc, &nonzero, cancel);
    tl_loss_set_target_logit(backend, row, &loss, (double)logits[i][acc.excluded], &acc);
    tl_loss_range(backend, row, &loss, 0, 1024, 1024, &acc, cancel);
    tl_loss_range(backend, row, &loss, 1024, CLASSES, 1024, &acc, cancel);
    to->of_ranges = tl_loss_end(backend, row, &loss, &acc);
}

/* The losses and gradients of short rows, which are parts of a long one. */
static void compute_block(const tl_backend *backend, const float *data, found *to, tl_cancel *cancel) {
    tl_row_block rows = {float_row(data), .count = SHORT_ROWS, .has_excluded = 1, .keeps_logits = 1};
    tl_out_block out = {.row = float_row(to->short_gradient)};
    tl_loss loss = {{.one_minus_eps = 0.9, .eps_over_v = 0.1 / SHORT_CLASSES}, -1, 1, 0, NULL, 1, 0};
    double scales[TL_BLOCK_ROWS];
    tl_block_lse lse;
    for (int r = 0; r < TL_BLOCK_ROWS; r++)
        scales[r] = 1;
    rows.wanted = (1u << SHORT_ROWS) - 1;
    rows.row.count = out.row.count = SHORT_CLASSES;
    rows.scratch = malloc(tl_row_block_bytes(SHORT_CLASSES, 0));
    if (!rows.scratch)
        exit(2);
    for (int r = 0; r < SHORT_ROWS; r++) {
        rows.data[r] = (const char *)(data + r * SHORT_CLASSES);
        rows.excluded[r] = r;
        out.data[r] = (char *)(to->short_gradient + r * SHORT_CLASSES);
    }
    tl_lse_of_block(backend, &rows, 0, &lse, cancel);
    tl_class_losses_of_block(backend, &rows, &lse, &loss, NULL, scales, &out, to->of_short, cancel);
    free(rows.scratch);
}

static double compute_row(const work *w, int64_t i, tl_cancel *cancel) {
    const tl_backend *backend = w->backend;
    found *to = &w->of_row[i];
    tl_row row = float_row(logits[i]), other = float_row(others[i]), softmax = float_row(to->softmax);
    tl_topk best = {BEST, 0, to->best, to->id, 0};
    tl_token_stats token;
    tl_lse_acc state;
    if (i % 3 == 1) /* computed in double */
        row.compute_dtype = other.compute_dtype = TL_FLOAT64, row.softcap = 30;
    tl_token_stats_row(backend, &row, i, &token, &best, cancel);
    to->nll = token.nll;
    to->entropy = token.entropy;
    to->divergence = tl_kl_divergence(backend, &row, &other, cancel).kl;
    tl_lse_row(backend, &row, -1, &state, cancel);
    tl_lse lse = tl_lse_finish(&state, &row);
    to->logsumexp = tl_logsumexp(lse);
    tl_softmax(backend, &row, lse, &softmax, 1, cancel);
    compute_losses(backend, &row, i, to, cancel);
    compute_block(backend, logits[i], to, cancel);
    return token.nll;
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
        tl_cancelled(&cancel);
    }
    tl_fp_leave(&environment);
    pthread_mutex_lock(&w->merging);
    tl_superacc_merge(&w->losses, &losses);
    w->kept += kept;
    pthread_mutex_unlock(&w->merging);
    return NULL;
}

static double run_threads(work *w, const tl_backend *backend, int threads, int stops_itself) {
    pthread_t thread[THREADS];
    *w = (work){.backend = backend, .stops_itself = stops_itself, .of_row = calloc(ROWS, sizeof(found))};
    pthread_mutex_init(&w->merging, NULL);
    if (!w->of_row)
        exit(2);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, run, w))
            exit(2);
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    return tl_superacc_round(&w->losses);
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
        int same = sum == expected && shared.kept == ROWS && !memcmp(alone.of_row, shared.of_row, ROWS * sizeof(found));
        printf("%s %s, %d rows until it was stopped\n", backend->name, same ? "same" : "differs", (int)stopped.kept);
        if (!same || stopped.kept >= ROWS)
            return 1;
        free(alone.of_row);
        free(shared.of_row);
        free(stopped.of_row);
    }
    return 0;
}
