// What the float32 kernels share: eight values in a register, sums across them, loads of a row's rest, and exp.
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

// e ** x for x < 88; relative error below 2e-7 (Taylor to degree 6 on half an octave either side)
inline __m256 exp_ps(__m256 x) {
    x = _mm256_max_ps(x, all(-87.0f));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, all(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, all(-2.12194440e-4f), r);
    __m256 y = all(1.0f / 720);
    y = _mm256_fmadd_ps(y, r, all(1.0f / 120));
    y = _mm256_fmadd_ps(y, r, all(1.0f / 24));
    y = _mm256_fmadd_ps(y, r, all(1.0f / 6));
    y = _mm256_fmadd_ps(y, r, all(0.5f));
    y = _mm256_fmadd_ps(y, r, all(1.0f));
    y = _mm256_fmadd_ps(y, r, all(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
}
