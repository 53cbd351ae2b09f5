/* Lanes are vectors of a panel, so the matrix is read as it is in memory: each pair of its elements is broadcast.
 * Of 48 of its rows, which stay in the second cache, 6 at a time are multiplied with a panel: 24 accumulators,
 * enough to hide the latency of additions. More rows at a time would need fewer loads, but rows that are a power of two
 * apart compete for the 8 lines of one set of the first cache. Sums are transposed at the end. */
#include "matmul_bf16.h"

#define LANES 16
#define TILE 6   /* rows of the matrix whose products are in registers */
#define SLAB 256 /* elements whose products are added in registers, and then to the sums */

_Static_assert(TL_BF16_PANEL == 4 * LANES, "a panel has four vectors, or fewer");
_Static_assert(TL_BF16_CLASSES % TILE == 0 && TL_BF16_CLASSES % LANES == 0, "blocks are whole tiles");

static int64_t lanes_of_panel(int64_t count, int64_t start) {
    int64_t lanes = (count - start + LANES - 1) / LANES * LANES;
    return lanes < TL_BF16_PANEL ? lanes : TL_BF16_PANEL;
}

int64_t tl_bf16_panels_bytes(int64_t count, int64_t depth) {
    return (count + LANES - 1) / LANES * LANES * ((depth + 1) / 2) * 4;
}

/* A panel starts after those before it, which are full. */
static char *panel_at(const tl_bf16_panels *panels, int64_t start) {
    return panels->data + start * ((panels->depth + 1) / 2) * 4;
}

void tl_bf16_set_vector(const tl_bf16_panels *panels, int64_t number, const float *vector) {
    int64_t lane = number % TL_BF16_PANEL, lanes = lanes_of_panel(panels->count, number - lane);
    char *panel = panel_at(panels, number - lane);
    for (int64_t k = 0; k < panels->depth; k++) {
        uint32_t bits;
        memcpy(&bits, &vector[k], sizeof bits);
        uint16_t half = (uint16_t)(bits >> 16);
        memcpy(panel + (k / 2 * lanes + lane) * 4 + k % 2 * 2, &half, sizeof half);
    }
}

/* Needs a compiler that supports the instruction, and 32 vector registers. */
#if defined(__x86_64__) && \
    (defined(__clang__) ? __clang_major__ >= 9 : defined(__GNUC__) && __GNUC__ >= 10)

#include <immintrin.h>

#define TARGET TL_FOR("avx512f,avx512bf16")

int tl_has_matmul_bf16(const tl_backend *backend) { return backend == &tl_avx512 && tl_has_avx512_bf16(); }

/* Adds the products of a pair of elements of each row, or of a single one, to the accumulators. */
TARGET TL_INLINE void add_pair(const char *row, ptrdiff_t stride, int is_single, const char *panel, int vectors,
                               __m512 acc[TILE][4]) {
    __m512bh pair[4];
    for (int v = 0; v < vectors; v++)
        pair[v] = (__m512bh)_mm512_load_si512(panel + v * 64);
    for (int c = 0; c < TILE; c++, row += stride) {
        uint32_t bits = 0;
        memcpy(&bits, row, is_single ? 2 : 4);
        __m512bh repeated = (__m512bh)_mm512_set1_epi32((int)bits);
        for (int v = 0; v < vectors; v++)
            acc[c][v] = _mm512_dpbf16_ps(acc[c][v], pair[v], repeated);
    }
}

/* Adds the products of `depth` elements of TILE rows to their sums. */
TARGET TL_INLINE void add_slab(const char *rows, ptrdiff_t stride, int64_t depth, const char *panel, int vectors,
                               float *sums) {
    __m512 acc[TILE][4];
    for (int c = 0; c < TILE; c++)
        for (int v = 0; v < vectors; v++)
            acc[c][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth / 2; k++) {
        add_pair(rows + 4 * k, stride, 0, panel + k * vectors * 64, vectors, acc);
        /* the next slab: of 16 pairs, which are a cache line, each asks for that of another row */
        _mm_prefetch(rows + 2 * SLAB + k % 16 * stride + k / 16 * 64, _MM_HINT_T0);
    }
    if (depth % 2)
        add_pair(rows + 2 * (depth - 1), stride, 1, panel + depth / 2 * vectors * 64, vectors, acc);
    for (int c = 0; c < TILE; c++)
        for (int v = 0; v < vectors; v++) {
            float *sum = sums + (c * vectors + v) * LANES;
            _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), acc[c][v]));
        }
}

/* The same of a panel with this number of vectors: for each, a loop of its own. */
TARGET TL_OUTLINE void add_slab_of(int64_t vectors, const char *rows, ptrdiff_t stride, int64_t depth,
                                   const char *panel, float *sums) {
    switch (vectors) {
    case 1: add_slab(rows, stride, depth, panel, 1, sums); break;
    case 2: add_slab(rows, stride, depth, panel, 2, sums); break;
    case 3: add_slab(rows, stride, depth, panel, 3, sums); break;
    default: add_slab(rows, stride, depth, panel, 4, sums);
    }
}

/* Writes 16 vectors of sums, `stride` floats apart, as their columns: the first `count` columns, `width` of each. */
TARGET static void store_transposed(const float *sums, int64_t stride, int64_t count, int64_t width, char *out,
                                    ptrdiff_t out_stride) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    __m512 a[LANES], b[LANES];
    for (int i = 0; i < LANES; i++)
        a[i] = _mm512_load_ps(sums + i * stride);
    for (int round = 0; round < 4; round++) { /* each rotates the bits of an element's row and column by one */
        for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = _mm512_permutex2var_ps(a[i], low, a[i + LANES / 2]);
            b[2 * i + 1] = _mm512_permutex2var_ps(a[i], high, a[i + LANES / 2]);
        }
        memcpy(a, b, sizeof a);
    }
    __mmask16 mask = (__mmask16)(width < LANES ? (1 << width) - 1 : 0xffff);
    for (int i = 0; i < LANES; i++)
        if (i < count)
            _mm512_mask_storeu_ps(out + i * out_stride, mask, a[i]);
}

/* The products of a block of rows with a panel. */
TARGET static void multiply_panel(const char *weights, ptrdiff_t stride, int64_t count, const tl_bf16_panels *vectors,
                                  int64_t start, char *out, ptrdiff_t out_stride) {
    _Alignas(64) float sums[TL_BF16_CLASSES * TL_BF16_PANEL];
    const int64_t lanes = lanes_of_panel(vectors->count, start);
    const char *panel = panel_at(vectors, start);
    memset(sums, 0, sizeof sums);
    for (int64_t c = 0; c < count; c += TILE)
        for (int64_t k = 0; k < vectors->depth; k += SLAB) {
            int64_t depth = vectors->depth - k < SLAB ? vectors->depth - k : SLAB;
            const char *rows = weights + c * stride + 2 * k;
            char copied[TILE][2 * SLAB];
            int is_whole = count - c >= TILE;
            for (int i = 0; i < TILE && !is_whole; i++) /* the last row is repeated */
                memcpy(copied[i], rows + (c + i < count ? i : count - c - 1) * stride, (size_t)depth * 2);
            add_slab_of(lanes / LANES, is_whole ? rows : *copied, is_whole ? stride : 2 * SLAB, depth,
                        panel + k / 2 * lanes * 4, sums + c * lanes);
        }
    for (int64_t lane = 0; lane < lanes; lane += LANES)
        for (int64_t c = 0; c < count; c += LANES)
            store_transposed(sums + c * lanes + lane, lanes, vectors->count - start - lane, count - c,
                             out + (start + lane) * out_stride + c * 4, out_stride);
}

void tl_matmul_bf16(const tl_row *weights, ptrdiff_t stride, int64_t count, const tl_bf16_panels *vectors,
                    const tl_vectors *out, tl_cancel *cancel) {
    for (int64_t c = 0; c < count && !tl_cancelled(cancel); c += TL_BF16_CLASSES)
        for (int64_t start = 0; start < vectors->count; start += TL_BF16_PANEL)
            multiply_panel(weights->data + c * stride, stride,
                           count - c < TL_BF16_CLASSES ? count - c : TL_BF16_CLASSES, vectors, start, out->data + c * 4,
                           out->stride);
}

#else

int tl_has_matmul_bf16(const tl_backend *backend) {
    (void)backend;
    return 0;
}

void tl_matmul_bf16(const tl_row *weights, ptrdiff_t stride, int64_t count, const tl_bf16_panels *vectors,
                    const tl_vectors *out, tl_cancel *cancel) {
    (void)weights, (void)stride, (void)count, (void)vectors, (void)out, (void)cancel;
}

#endif
