// What the kernels of generation share: eight float32 at a time, numbers of 16 bits in and out, exp.
// AVX2 with FMA, so that every processor that can run them computes the same.
// Headers are few on purpose: whoever generates first waits for this build, and <immintrin.h> with four of the standard
// library's cost half of it.
#pragma once
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9 && __GNUC__ <= 14 && !defined(_IMMINTRIN_H_INCLUDED)
// the parts of <immintrin.h> that AVX2 needs, which ask for its guard
#define _IMMINTRIN_H_INCLUDED
#include <emmintrin.h>
#include <mmintrin.h>
#include <pmmintrin.h>
#include <smmintrin.h>
#include <tmmintrin.h>
#include <xmmintrin.h>

#include <avxintrin.h>

#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>
#else
#include <immintrin.h>
#endif
#include <stdint.h>

using bf16 = uint16_t;
using Vec = __m256;

constexpr int LANES = 8;  // float32 values in one register
constexpr float ENDLESS = __builtin_inff();

template <class T>
inline T least(T a, T b) { return b < a ? b : a; }
template <class T>
inline T most_of(T a, T b) { return a < b ? b : a; }
inline void copy(float* to, const float* from, int64_t count) { __builtin_memcpy(to, from, count * sizeof(float)); }

// memory that grows when a step needs more, and is kept; what was in it is lost then
template <class T>
struct Buffer {
    T* first = nullptr;
    int64_t size = 0;

    Buffer() = default;
    Buffer(const Buffer&) = delete;
    ~Buffer() { delete[] first; }
    T* data() const { return first; }
    T* fit(int64_t count) {
        if (size < count) {
            delete[] first;
            first = new T[count];
            size = count;
        }
        return first;
    }
};

inline Vec zeros() { return _mm256_setzero_ps(); }
inline Vec all(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }

// rounded to the nearest, ties to even; a NaN stays one
inline void store(bf16* p, Vec x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}

// the lanes together, always in the same order
inline float sum_of(Vec x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

// a NaN among them may be lost
inline float largest_of(Vec x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

// the eight sums of eight registers
inline Vec sums_of(const Vec* x) {
    const Vec a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const Vec b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

// e ** x for x < 88, relative error below 2e-7 (Taylor to degree 6 on half an octave either side); a NaN stays one
inline Vec exp_of(Vec x) {
    x = _mm256_max_ps(all(-87.0f), x);  // the second operand is what max gives for a NaN
    const Vec n = _mm256_round_ps(_mm256_mul_ps(x, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Vec r = _mm256_fnmadd_ps(n, all(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, all(-2.12194440e-4f), r);
    Vec y = all(1.0f / 720);
    y = _mm256_fmadd_ps(y, r, all(1.0f / 120));
    y = _mm256_fmadd_ps(y, r, all(1.0f / 24));
    y = _mm256_fmadd_ps(y, r, all(1.0f / 6));
    y = _mm256_fmadd_ps(y, r, all(0.5f));
    y = _mm256_fmadd_ps(y, r, all(1.0f));
    y = _mm256_fmadd_ps(y, r, all(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
}

inline float sigmoid(float x) { return 1 / (1 + __builtin_expf(-x)); }
