// What the float32 kernels share: eight values in a register, sums across them, loads of a row's rest, transposing,
// exp, tanh, and the matrix product of a tile.
// AVX2 with fused multiply-add; built and loaded by build.py.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

constexpr int LANES = 8;  // float32 values in one register

inline __m256 all(float x) { return _mm256_set1_ps(x); }
inline __m256 load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, __m256 x) { _mm256_storeu_ps(p, x); }

// lanes below count are on; count may be anything
inline __m256i lanes(int64_t count) {
    const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)std::min<int64_t>(count, LANES)), place);
}

inline __m256 load(const float* p, __m256i mask) { return _mm256_maskload_ps(p, mask); }
inline void store(float* p, __m256 x, __m256i mask) { _mm256_maskstore_ps(p, mask, x); }

inline float sum_of(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// out[j * out_row + i] = x[i * row + j] for i and j below 8
inline void transpose_tile(const float* x, int64_t row, float* out, int64_t out_row) {
    __m256 low[LANES], high[LANES];
    for (int i = 0; i < LANES; i += 2) {
        const __m256 a = load(x + i * row), b = load(x + (i + 1) * row);
        low[i] = _mm256_unpacklo_ps(a, b);
        low[i + 1] = _mm256_unpackhi_ps(a, b);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            high[i + 2 * j] = _mm256_shuffle_ps(low[i + j], low[i + 2 + j], 0x44);
            high[i + 2 * j + 1] = _mm256_shuffle_ps(low[i + j], low[i + 2 + j], 0xee);
        }
    for (int j = 0; j < 4; j++) {
        store(out + j * out_row, _mm256_permute2f128_ps(high[j], high[4 + j], 0x20));
        store(out + (4 + j) * out_row, _mm256_permute2f128_ps(high[j], high[4 + j], 0x31));
    }
}

// 2 ** n and r * (e ** r - 1) / r for x = n log 2 + r, |x| < 87 (Taylor to degree 6 on half an octave either side)
inline void split_exp(__m256 x, __m256* power, __m256* rest) {
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, all(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, all(-2.12194440e-4f), r);
    __m256 y = all(1.0f / 720);
    y = _mm256_fmadd_ps(y, r, all(1.0f / 120));
    y = _mm256_fmadd_ps(y, r, all(1.0f / 24));
    y = _mm256_fmadd_ps(y, r, all(1.0f / 6));
    y = _mm256_fmadd_ps(y, r, all(0.5f));
    y = _mm256_fmadd_ps(y, r, all(1.0f));
    *rest = _mm256_mul_ps(y, r);
    *power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

// e ** x for x < 87, below -87 as at -87; relative error below 2e-7
inline __m256 exp_ps(__m256 x) {
    __m256 power, rest;
    split_exp(_mm256_max_ps(x, all(-87.0f)), &power, &rest);
    return _mm256_fmadd_ps(power, rest, power);
}

// 2 ** x for x < 127, exactly 0 below -126.5, NaN of NaN; relative error below 2e-7
// (the polynomial of degree 5 with the least relative error on half an octave either side, 1.0 at 0)
inline __m256 exp2_ps(__m256 x) {
    const __m256 round = all(12582912.0f + 127);  // adding it leaves n + 127 in the last bits
    x = _mm256_max_ps(all(-127.0f), x);
    const __m256 n = _mm256_add_ps(x, round);
    const __m256 r = _mm256_sub_ps(x, _mm256_sub_ps(n, round));
    __m256 y = all(1.32647271e-3f);
    y = _mm256_fmadd_ps(y, r, all(9.67151265e-3f));
    y = _mm256_fmadd_ps(y, r, all(5.55073374e-2f));
    y = _mm256_fmadd_ps(y, r, all(2.40222421e-1f));
    y = _mm256_fmadd_ps(y, r, all(6.93146978e-1f));
    y = _mm256_fmadd_ps(y, r, all(1.0f));
    return _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}

// relative error below 5e-7, near zero too: from e ** 2x - 1, which does not cancel there
inline __m256 tanh_ps(__m256 x) {
    __m256 power, rest;
    x = _mm256_min_ps(_mm256_max_ps(x, all(-9.0f)), all(9.0f));
    split_exp(_mm256_add_ps(x, x), &power, &rest);
    const __m256 less_one = _mm256_fmadd_ps(power, rest, _mm256_sub_ps(power, all(1.0f)));
    return _mm256_div_ps(less_one, _mm256_add_ps(less_one, all(2.0f)));
}

constexpr int64_t PANEL = 2 * LANES;  // columns of a product at a time
constexpr int64_t DEPTH = 256;        // values summed at a time: a panel of them takes 16 KiB

// packed (depth, PANEL) = b (depth, columns), zero beyond; element (p, j) of b is b[p * row + j * column], one of them 1
inline void pack_panel(const float* b, int64_t row, int64_t column, int64_t depth, int64_t columns, float* packed) {
    int64_t p = 0;
    if (columns == PANEL && column == 1)
        for (; p < depth; p++) std::memcpy(packed + p * PANEL, b + p * row, PANEL * sizeof(float));
    if (columns == PANEL && row == 1)
        for (; p + LANES <= depth; p += LANES)
            for (int64_t j = 0; j < PANEL; j += LANES) transpose_tile(b + p + j * column, column, packed + p * PANEL + j, PANEL);
    for (; p < depth; p++)
        for (int64_t j = 0; j < PANEL; j++) packed[p * PANEL + j] = j < columns ? b[p * row + j * column] : 0.0f;
}

constexpr int ROWS = 6;  // of a tile: twelve sums, two values of b and one of a fill the sixteen registers

// c (M, PANEL) = or += a (M, k) @ b (k, PANEL), b a panel. a has rows lda apart, GROUP being 1, or is packed: GROUP rows
// side by side
template <int M, int GROUP>
inline void packed_tile(const float* a, int64_t lda, const float* b, float* c, int64_t ldc, int64_t k, bool add) {
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(i)                                                        \
    __m256 low##i = _mm256_setzero_ps(), high##i = _mm256_setzero_ps(); \
    if (M > i) _mm_prefetch((const char*)(c + i * ldc), _MM_HINT_T0);
#define STEP(i)                                                                    \
    if (M > i) {                                                                   \
        const __m256 left = _mm256_broadcast_ss(GROUP == 1 ? a + i * lda : a + i); \
        low##i = _mm256_fmadd_ps(left, low, low##i);                               \
        high##i = _mm256_fmadd_ps(left, high, high##i);                            \
    }
#define END(i)                                                           \
    if (M > i) {                                                         \
        if (add) {                                                       \
            low##i = _mm256_add_ps(low##i, load(c + i * ldc));           \
            high##i = _mm256_add_ps(high##i, load(c + i * ldc + LANES)); \
        }                                                                \
        store(c + i * ldc, low##i);                                      \
        store(c + i * ldc + LANES, high##i);                             \
    }
    EACH_ROW(BEGIN)
#pragma GCC unroll 4
    for (int64_t p = 0; p < k; p++) {
        const __m256 low = _mm256_load_ps(b), high = _mm256_load_ps(b + LANES);
        EACH_ROW(STEP)
        a += GROUP;
        b += PANEL;
    }
    EACH_ROW(END)
#undef EACH_ROW
#undef BEGIN
#undef STEP
#undef END
}

// packed_tile() of up to ROWS rows
template <int GROUP>
inline void tile_of(int64_t rows, const float* a, int64_t lda, const float* b, float* c, int64_t ldc, int64_t k, bool add) {
    switch (rows) {
        case 6: return packed_tile<6, GROUP>(a, lda, b, c, ldc, k, add);
        case 5: return packed_tile<5, GROUP>(a, lda, b, c, ldc, k, add);
        case 4: return packed_tile<4, GROUP>(a, lda, b, c, ldc, k, add);
        case 3: return packed_tile<3, GROUP>(a, lda, b, c, ldc, k, add);
        case 2: return packed_tile<2, GROUP>(a, lda, b, c, ldc, k, add);
        case 1: return packed_tile<1, GROUP>(a, lda, b, c, ldc, k, add);
    }
}

// memory of floats that grows and goes when its owner does
struct Kept {
    float* data = nullptr;
    int64_t size = 0;
    ~Kept() { _mm_free(data); }
    float* of(int64_t count) {
        if (count > size) {
            _mm_free(data);
            data = (float*)_mm_malloc(count * sizeof(float), 64);
            size = data ? count : 0;
        }
        return data;
    }
};
