// What the CPU kernels share: bfloat16 in and out, exp, and the one matrix product of bfloat16 pairs.
// AVX-512 with its bfloat16 instructions; built and loaded by build.py.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

using bf16 = uint16_t;

constexpr int LANES = 16;  // float32 values in one register

inline __m512 load_bf16(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

inline __m512 load_bf16(const bf16* p, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}

inline void store_bf16(bf16* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }

inline void store_bf16(bf16* p, __m512 x, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

inline float to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// e ** x for |x| < 87; relative error below 2e-7 (Taylor to degree 6 on half an octave either side)
inline __m512 exp_ps(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 720);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 120));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 24));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 6));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.5f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

// c (MR, 16 * NR) of row length ldc = or += a (MR, 2 * pairs) @ b; b holds pairs: b[p][column] is rows 2p and 2p + 1
template <int MR, int NR>
inline void product_tile(const bf16* a, int lda, const uint32_t* b, int ldb, float* c, int ldc, int pairs, bool add) {
    __m512 sum[MR][NR];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + LANES * j) : _mm512_setzero_ps();
    for (int p = 0; p < pairs; p++) {
        __m512i row[NR];
        for (int j = 0; j < NR; j++) row[j] = _mm512_loadu_si512(b + (size_t)p * ldb + LANES * j);
        for (int i = 0; i < MR; i++) {
            int32_t pair;
            std::memcpy(&pair, a + (size_t)i * lda + 2 * p, 4);
            __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
            for (int j = 0; j < NR; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, (__m512bh)row[j]);
        }
    }
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) _mm512_storeu_ps(c + i * ldc + LANES * j, sum[i][j]);
}

template <int NR>
inline void product_columns(int m, const bf16* a, int lda, const uint32_t* b, int ldb, float* c, int ldc, int pairs,
                            bool add) {
    constexpr int MR = NR >= 3 ? 6 : (NR == 2 ? 8 : 12);
    int i = 0;
    for (; i + MR <= m; i += MR) product_tile<MR, NR>(a + (size_t)i * lda, lda, b, ldb, c + (size_t)i * ldc, ldc, pairs, add);
    for (; i + 4 <= m; i += 4) product_tile<4, NR>(a + (size_t)i * lda, lda, b, ldb, c + (size_t)i * ldc, ldc, pairs, add);
    for (; i < m; i++) product_tile<1, NR>(a + (size_t)i * lda, lda, b, ldb, c + (size_t)i * ldc, ldc, pairs, add);
}

// c (m, n) = or += a (m, 2 * pairs) @ b (pairs, n) of pairs; n is a multiple of 16
inline void product(int m, int n, int pairs, const bf16* a, int lda, const uint32_t* b, int ldb, float* c, int ldc,
                    bool add) {
    int j = 0;
    for (; j + 64 <= n; j += 64) product_columns<4>(m, a, lda, b + j, ldb, c + j, ldc, pairs, add);
    if (j + 32 <= n) {
        product_columns<2>(m, a, lda, b + j, ldb, c + j, ldc, pairs, add);
        j += 32;
    }
    if (j + 16 <= n) product_columns<1>(m, a, lda, b + j, ldb, c + j, ldc, pairs, add);
}
