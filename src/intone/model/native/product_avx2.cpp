// Matrix products in float32, of the sizes that training has: thousands of tokens, hundreds of channels. Squared ReLU goes
// with the product after it, and its slope with the gradient's: neither is a pass of its own.
//
// Panels of 16 columns of the right matrix are packed once, blocks of rows of the left one are handed to threads as they
// become free: where something else takes a processor for a while, the other one does more of the blocks. A result's sum
// runs over pieces of DEPTH values in their order, whatever the number of threads or rows.
#include "common_avx2.h"

namespace {

constexpr int64_t PIECE = 512;      // values summed at a time: a panel of them takes 32 KiB
constexpr int64_t PACKED = 2048;    // values of the sum that are packed at a time, so that memory does not grow with it
constexpr int64_t BLOCK = 48;       // rows of a task
constexpr int64_t TURNED_BLOCK = 96;  // where a has to be packed, which pays with more rows, if there are many
constexpr int64_t LAST_BLOCK = 12;    // of the last rows where nothing is packed: two threads end at about the same time
constexpr int64_t AHEAD = 8;          // rows from one being packed to the one that is asked for: each is in a page of its own
constexpr int64_t LINE = 16;          // values in a cache line
constexpr int64_t TILE = ROWS * PIECE + 48;  // values from one packed tile of a to the next: no multiple of 4 KiB apart

// tile_of() for any number of rows; the groups of a packed a are TILE apart
template <bool GROUPED>
inline void tiles(int64_t rows, const float* a, int64_t lda, const float* b, float* c, int64_t ldc, int64_t k, bool add) {
    const int64_t next = GROUPED ? TILE : ROWS * lda;
    for (; rows > 0; rows -= ROWS, a += next, c += ROWS * ldc)
        tile_of<GROUPED ? ROWS : 1>(std::min<int64_t>(rows, ROWS), a, lda, b, c, ldc, k, add);
}

// max(x, 0) squared, or x
template <bool SQUARED>
inline __m256 taken(__m256 x) {
    if (!SQUARED) return x;
    const __m256 y = _mm256_max_ps(x, all(0.0f));
    return _mm256_mul_ps(y, y);
}

// packed: tiles of (depth, ROWS) of a whose element (i, p) is a[p * lda + i]
template <bool SQUARED>
inline void pack_turned(const float* a, int64_t lda, int64_t depth, int64_t rows, float* packed) {
    for (int64_t p = 0; p < depth; p++) {
        const float* from = a + p * lda;
        float* to = packed + p * ROWS;
        if (p + AHEAD < depth)
            for (int64_t i = 0; i < rows; i += LINE) _mm_prefetch((const char*)(from + AHEAD * lda + i), _MM_HINT_T0);
        int64_t i = 0;
        for (; i + LANES <= rows; i += ROWS, to += TILE) {
            const __m256 x = taken<SQUARED>(load(from + i));
            _mm_storeu_ps(to, _mm256_castps256_ps128(x));
            _mm_storel_pi((__m64*)(to + 4), _mm256_extractf128_ps(x, 1));
        }
        for (; i < rows; i += ROWS, to += TILE) {
            const __m256i mask = lanes(std::min<int64_t>(ROWS, rows - i));
            store(to, taken<SQUARED>(load(from + i, mask)), mask);
        }
    }
}

// out (rows, depth) side by side = max(a, 0) squared, whose rows are lda apart
inline void square_rows(const float* a, int64_t lda, int64_t depth, int64_t rows, float* out) {
    for (int64_t i = 0; i < rows; i++, a += lda, out += depth)
        for (int64_t p = 0; p < depth; p += LANES) {
            const __m256i mask = lanes(depth - p);
            store(out + p, taken<true>(load(a + p, mask)), mask);
        }
}

// c (rows, 16) times twice max(x, 0), whose rows are ldc apart too
inline void multiply_slope(const float* x, float* c, int64_t ldc, int64_t rows) {
    for (int64_t i = 0; i < rows; i++, x += ldc, c += ldc)
        for (int64_t j = 0; j < PANEL; j += LANES) {
            const __m256 y = _mm256_max_ps(load(x + j), all(0.0f));
            store(c + j, _mm256_mul_ps(_mm256_add_ps(y, y), load(c + j)));
        }
}

// rows [begin, end) of a piece's panels of b, whose columns lie side by side
inline void pack_rows(const float* b, int64_t row, int64_t begin, int64_t end, int64_t depth, int64_t panels, float* piece) {
    for (int64_t p = begin; p < end; p++) {
        const float* from = b + p * row;
        float* to = piece + p * PANEL;
        for (int64_t j = 0; j < panels; j++, from += PANEL, to += depth * PANEL) {
            _mm256_store_ps(to, load(from));
            _mm256_store_ps(to + LANES, load(from + LANES));
        }
    }
}

}  // namespace

extern "C" {

// c (m, n) = or += a (m, k) @ b (k, n); n is a multiple of 16. a: rows lda apart, or turned: columns lda apart.
// Element (p, j) of b is b[p * row + j * column], one of them 1; rows of c are ldc apart.
// squared: max(a, 0) squared takes the place of a. slope (m, n), with rows ldc apart, or null: c is multiplied by the
// slope of max(x, 0) squared there, 2 max(slope, 0); then add is 0.
void intone_product(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k, int64_t lda, int64_t turned,
                    int64_t row, int64_t column, int64_t ldc, int64_t add, int64_t squared, const float* slope, int threads) {
    static thread_local Kept caller, own;
    const int64_t panels = n / PANEL, block = turned && m >= 8 * TURNED_BLOCK ? TURNED_BLOCK : BLOCK;
    float* packed = caller.of(n * std::min(k, PACKED));
    for (int64_t done = 0; done < k; done += PACKED) {
        const int64_t depth = std::min(PACKED, k - done), pieces = (depth + PIECE - 1) / PIECE;
        const float* part = b + done * row;
#pragma omp parallel num_threads(threads)
        {
            constexpr int64_t SLICE = 32;
            if (column == 1) {
#pragma omp for schedule(dynamic)
                for (int64_t p = 0; p < depth; p += SLICE) {
                    const int64_t from = p / PIECE * PIECE, length = std::min(PIECE, depth - from);
                    const int64_t begin = p - from, end = std::min(begin + SLICE, length);
                    pack_rows(part + from * row, row, begin, end, length, panels, packed + from * n);
                }
            } else {
#pragma omp for schedule(dynamic, 4) collapse(2)
                for (int64_t piece = 0; piece < pieces; piece++)
                    for (int64_t j = 0; j < panels; j++) {
                        const int64_t from = piece * PIECE, length = std::min(PIECE, depth - from);
                        pack_panel(part + from * row + j * PANEL * column, row, column, length, PANEL,
                                   packed + from * n + j * length * PANEL);
                    }
            }
            const int64_t small = turned ? block : LAST_BLOCK, cut = std::max<int64_t>(0, m - 2 * threads * block) / block * block;
            const int64_t large = cut / block, tasks = large + (m - cut + small - 1) / small;
            float* groups = turned ? own.of((TURNED_BLOCK / ROWS + 2) * TILE) : squared ? own.of(BLOCK * PIECE) : nullptr;
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < tasks; task++) {
                const int64_t i = task < large ? task * block : cut + (task - large) * small;
                const int64_t rows = task < large ? block : std::min(small, m - i);
                for (int64_t from = 0; from < depth; from += PIECE) {
                    const int64_t length = std::min(PIECE, depth - from), at = done + from;
                    const bool more = add || at > 0;
                    const float* left = a + i * lda + at;
                    int64_t left_row = lda;
                    if (turned) {
                        (squared ? pack_turned<true> : pack_turned<false>)(a + at * lda + i, lda, length, rows, groups);
                    } else if (squared) {
                        square_rows(left, lda, length, rows, groups);
                        left = groups;
                        left_row = length;
                    }
                    for (int64_t j = 0; j < panels; j++) {
                        const float* panel = packed + from * n + j * length * PANEL;
                        float* to = c + i * ldc + j * PANEL;
                        if (turned)
                            tiles<true>(rows, groups, 0, panel, to, ldc, length, more);
                        else
                            tiles<false>(rows, left, left_row, panel, to, ldc, length, more);
                        if (slope && at + length == k) multiply_slope(slope + i * ldc + j * PANEL, to, ldc, rows);
                    }
                }
            }
        }
    }
    if (k == 0 && !add)
        for (int64_t i = 0; i < m; i++) std::memset(c + i * ldc, 0, n * sizeof(float));
}

// out (n, m) = x (m, n) turned, both contiguous
void intone_turn(const float* x, float* out, int64_t m, int64_t n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < m; i += LANES) {
        int64_t j = 0;
        if (i + LANES <= m)
            for (; j + LANES <= n; j += LANES) transpose_tile(x + i * n + j, n, out + j * m + i, m);
        for (; j < n; j++)
            for (int64_t p = i; p < std::min<int64_t>(i + LANES, m); p++) out[j * m + p] = x[p * n + j];
    }
}

}  // extern "C"
