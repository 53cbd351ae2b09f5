/* Lanes are the vectors of a panel, so the matrix is read as it is in memory. A block of its rows, which stays in the
 * second cache, is multiplied by a panel, and the sums are transposed.
 *
 * With AVX-512, each pair of elements is broadcast. 6 rows at a time make 24 accumulators, enough to hide the latency
 * of additions. More rows at a time would need fewer loads, but rows that are a power of two apart compete for the 8
 * lines of one set of the first cache.
 *
 * With AMX, a tile is 32 elements of 16 rows, or 16 pairs of 16 lanes; two of each make four tiles of sums. Where rows
 * or the last block end within a tile, the rest of them is copied and padded with zeros. Blocks are larger, because
 * each of them reads the panels from the third cache. */
#include "matmul_bf16.h"

#define LANES 16
#define SLAB 256     /* elements whose products are added in registers, and then to the sums, with AVX-512 */
#define ROWS 6       /* of the matrix, whose products are in registers */
#define TILE_ROWS 32 /* of two tiles, and elements of each of these rows */
#define BLOCK 48     /* rows */
#define TILE_BLOCK 96

_Static_assert(TL_BF16_PANEL == 4 * LANES, "a panel has four vectors, or fewer");
_Static_assert(BLOCK % ROWS == 0 && BLOCK % LANES == 0 && TILE_BLOCK % TILE_ROWS == 0, "blocks are whole tiles");

int64_t tl_bf16_block(tl_bf16_matmul by) { return by == TL_AMX_BF16 ? TILE_BLOCK : BLOCK; }

/* Vectors of a panel, with those that fill the last vector register or tiles. */
static int64_t lanes_of_panel(const tl_bf16_panels *panels, int64_t start) {
    const int64_t multiple = panels->by == TL_AMX_BF16 ? 2 * LANES : LANES;
    int64_t lanes = (panels->count - start + multiple - 1) / multiple * multiple;
    return lanes < TL_BF16_PANEL ? lanes : TL_BF16_PANEL;
}

/* A panel starts after those before it, which are full; each has pairs for whole tiles. */
static size_t panel_at(const tl_bf16_panels *panels, int64_t start) {
    return (size_t)start * (size_t)((panels->depth + TILE_ROWS - 1) / TILE_ROWS * LANES) * 4;
}

size_t tl_bf16_panels_bytes(const tl_bf16_panels *panels) {
    const int64_t last = panels->count / TL_BF16_PANEL * TL_BF16_PANEL;
    return panel_at(panels, last + lanes_of_panel(panels, last));
}

void tl_bf16_set_vector(const tl_bf16_panels *panels, int64_t number, const float *vector) {
    int64_t lane = number % TL_BF16_PANEL, lanes = lanes_of_panel(panels, number - lane);
    char *panel = panels->data + panel_at(panels, number - lane);
    for (int64_t k = 0; k < panels->depth; k++) {
        uint32_t bits;
        memcpy(&bits, &vector[k], sizeof bits);
        uint16_t half = (uint16_t)(bits >> 16);
        memcpy(panel + (k / 2 * lanes + lane) * 4 + k % 2 * 2, &half, sizeof half);
    }
}

/* Needs a compiler that supports the instructions, and 32 vector registers. */
#if defined(__x86_64__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : defined(__GNUC__) && __GNUC__ >= 11)

#include <immintrin.h>

#define TARGET TL_FOR("avx512f,avx512bf16")

int tl_has_matmul_bf16(tl_bf16_matmul by, const tl_backend *backend) {
    return backend == &tl_avx512 && (by == TL_AMX_BF16 ? tl_has_amx_bf16() : tl_has_avx512_bf16());
}

/* Adds the products of a pair of elements of each row, or of a single one, to the accumulators. */
TARGET TL_INLINE void add_pair(const char *row, ptrdiff_t stride, int is_single, const char *panel, int vectors,
                               __m512 acc[ROWS][4]) {
    __m512bh pair[4];
    for (int v = 0; v < vectors; v++)
        pair[v] = (__m512bh)_mm512_load_si512(panel + v * 64);
    for (int c = 0; c < ROWS; c++, row += stride) {
        uint32_t bits = 0;
        memcpy(&bits, row, is_single ? 2 : 4);
        __m512bh repeated = (__m512bh)_mm512_set1_epi32((int)bits);
        for (int v = 0; v < vectors; v++)
            acc[c][v] = _mm512_dpbf16_ps(acc[c][v], pair[v], repeated);
    }
}

/* Adds the products of `depth` elements of 6 rows to their sums. */
TARGET TL_INLINE void add_slab(const char *rows, ptrdiff_t stride, int64_t depth, const char *panel, int vectors,
                               float *sums) {
    __m512 acc[ROWS][4];
    for (int c = 0; c < ROWS; c++)
        for (int v = 0; v < vectors; v++)
            acc[c][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth / 2; k++) {
        add_pair(rows + 4 * k, stride, 0, panel + k * vectors * 64, vectors, acc);
        /* the next slab: of 16 pairs, which are a cache line, each asks for that of another row */
        _mm_prefetch(rows + 2 * SLAB + k % 16 * stride + k / 16 * 64, _MM_HINT_T0);
    }
    if (depth % 2)
        add_pair(rows + 2 * (depth - 1), stride, 1, panel + depth / 2 * vectors * 64, vectors, acc);
    for (int c = 0; c < ROWS; c++)
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

/* Writes the products of a block of rows with the lanes of a panel. */
TARGET static void multiply_vectors(const char *weights, ptrdiff_t stride, int64_t count, int64_t depth,
                                    const char *panel, int64_t lanes, float *sums) {
    memset(sums, 0, sizeof(float) * BLOCK * (size_t)lanes);
    for (int64_t c = 0; c < count; c += ROWS)
        for (int64_t k = 0; k < depth; k += SLAB) {
            int64_t slab = depth - k < SLAB ? depth - k : SLAB;
            const char *rows = weights + c * stride + 2 * k;
            char copied[ROWS][2 * SLAB];
            int is_whole = count - c >= ROWS;
            for (int i = 0; i < ROWS && !is_whole; i++) /* the last row is repeated */
                memcpy(copied[i], rows + (c + i < count ? i : count - c - 1) * stride, (size_t)slab * 2);
            add_slab_of(lanes / LANES, is_whole ? rows : *copied, is_whole ? stride : 2 * SLAB, slab,
                        panel + k / 2 * lanes * 4, sums + c * lanes);
        }
}

#define TILES TL_FOR("amx-tile,amx-bf16")

/* The first palette; 8 tiles of 64 bytes by 16 rows. */
static const uint8_t CONFIG[64] = {
    1, [16] = 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, [48] = 16, 16, 16, 16, 16, 16, 16, 16};

/* Writes the products of 32 rows, or of as many as there are, with 32 lanes. */
TILES static void multiply_four(const char *rows, ptrdiff_t stride, int64_t count, int64_t depth, const char *panel,
                                int64_t lanes, float *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth; k += TILE_ROWS, panel += LANES * lanes * 4) {
        char copied[TILE_ROWS][2 * TILE_ROWS];
        const int64_t elements = depth - k < TILE_ROWS ? depth - k : TILE_ROWS;
        const int is_whole = count >= TILE_ROWS && elements == TILE_ROWS;
        const char *tile = is_whole ? rows + 2 * k : *copied;
        const ptrdiff_t tile_stride = is_whole ? stride : 2 * TILE_ROWS;
        if (!is_whole) {
            memset(copied, 0, sizeof copied);
            for (int i = 0; i < TILE_ROWS && i < count; i++)
                memcpy(copied[i], rows + i * stride + 2 * k, 2 * (size_t)elements);
            __asm__ volatile("" : : : "memory"); /* gcc does not know that loads of tiles read memory */
        }
        _tile_loadd(4, tile, tile_stride);
        _tile_loadd(6, panel, lanes * 4);
        _tile_loadd(7, panel + 64, lanes * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, tile + LANES * tile_stride, tile_stride);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, lanes * 4);
    _tile_stored(1, sums + LANES, lanes * 4);
    _tile_stored(2, sums + LANES * lanes, lanes * 4);
    _tile_stored(3, sums + LANES * lanes + LANES, lanes * 4);
}

/* Writes the products of a block of rows with the lanes of a panel. Signal handlers may use tiles between blocks. */
TILES static void multiply_tiles(const char *weights, ptrdiff_t stride, int64_t count, int64_t depth, const char *panel,
                                 int64_t lanes, float *sums) {
    _tile_loadconfig(&CONFIG);
    for (int64_t c = 0; c < count; c += TILE_ROWS)
        for (int64_t lane = 0; lane < lanes; lane += 2 * LANES)
            multiply_four(weights + c * stride, stride, count - c, depth, panel + lane * 4, lanes,
                          sums + c * lanes + lane);
    _tile_release();
}

/* Writes the products of a block of rows with the panel that begins with vector `start`. */
TARGET static void multiply_panel(const char *weights, ptrdiff_t stride, int64_t count, const tl_bf16_panels *vectors,
                                  int64_t start, char *out, ptrdiff_t out_stride) {
    _Alignas(64) float sums[TILE_BLOCK * TL_BF16_PANEL];
    const int64_t lanes = lanes_of_panel(vectors, start), left = vectors->count - start;
    const char *panel = vectors->data + panel_at(vectors, start);
    (vectors->by == TL_AMX_BF16 ? multiply_tiles : multiply_vectors)(weights, stride, count, vectors->depth, panel,
                                                                     lanes, sums);
    for (int64_t lane = 0; lane < lanes && lane < left; lane += LANES)
        for (int64_t c = 0; c < count; c += LANES)
            store_transposed(sums + c * lanes + lane, lanes, left - lane, count - c, out + lane * out_stride + c * 4,
                             out_stride);
}

void tl_matmul_bf16(const tl_row *weights, ptrdiff_t stride, int64_t count, const tl_bf16_panels *vectors,
                    const tl_vectors *out, tl_cancel *cancel) {
    const int64_t block = tl_bf16_block(vectors->by);
    for (int64_t c = 0; c < count && !tl_canceled(cancel); c += block)
        for (int64_t start = 0; start < vectors->count; start += TL_BF16_PANEL)
            multiply_panel(weights->data + c * stride, stride, count - c < block ? count - c : block, vectors, start,
                           out->data + start * out->stride + c * 4, out->stride);
}

#else

int tl_has_matmul_bf16(tl_bf16_matmul by, const tl_backend *backend) {
    (void)by, (void)backend;
    return 0;
}

void tl_matmul_bf16(const tl_row *weights, ptrdiff_t stride, int64_t count, const tl_bf16_panels *vectors,
                    const tl_vectors *out, tl_cancel *cancel) {
    (void)weights, (void)stride, (void)count, (void)vectors, (void)out, (void)cancel;
}

#endif
