// The parts of a block between its matrix products, each in one pass: norms with the additions before them, heads
// (rotation, norm, value embedding), squared ReLU. Streams are bfloat16, sums float32; a row is one token.
#include "common.h"

#include <cmath>

namespace {

constexpr int64_t PARTS = 64;

inline float sum_of_squares(const float* row, int64_t width) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < width; c += LANES) {
        const __m512 x = _mm512_loadu_ps(row + c);
        sum = _mm512_fmadd_ps(x, x, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

// rounded to bfloat16 and back: what a tensor operation would have stored
inline __m512 rounded(__m512 x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
}

}  // namespace

extern "C" {

// sum = x + h (h may be null); mixed = a * sum + b * x0 (x0 may be null: mixed is sum and not written);
// normed = mixed / rms(mixed), scale (rows) its factor. width is a multiple of 16.
void intone_norm_forward(const bf16* x, const bf16* h, const bf16* x0, float a, float b, bf16* sum, bf16* mixed, bf16* normed,
                         float* scale, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> row(width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const int64_t at = r * width;
            for (int64_t c = 0; c < width; c += LANES) {
                __m512 value = load_bf16(x + at + c);
                if (h) {
                    value = rounded(_mm512_add_ps(value, load_bf16(h + at + c)));
                    store_bf16(sum + at + c, value);
                }
                if (x0) {
                    const __m512 start = _mm512_mul_ps(load_bf16(x0 + at + c), _mm512_set1_ps(b));
                    value = rounded(_mm512_fmadd_ps(value, _mm512_set1_ps(a), start));
                    store_bf16(mixed + at + c, value);
                }
                _mm512_storeu_ps(row.data() + c, value);
            }
            const float factor = 1.0f / std::sqrt(sum_of_squares(row.data(), width) / width + eps);
            scale[r] = factor;
            for (int64_t c = 0; c < width; c += LANES)
                store_bf16(normed + at + c, _mm512_mul_ps(_mm512_loadu_ps(row.data() + c), _mm512_set1_ps(factor)));
        }
    }
}

// d_normed, d_mixed, d_sum: gradients that arrive (the last two may be null). d_x: of x, and of h too. With x0, d_x0 is
// written, and da_db (PARTS, 2) float64 with partial sums of the gradients of a and b.
void intone_norm_backward(const bf16* mixed, const bf16* sum, const bf16* x0, float a, float b, const float* scale,
                          const bf16* d_normed, const bf16* d_mixed, const bf16* d_sum, bf16* d_x, bf16* d_x0, double* da_db,
                          int64_t rows, int64_t width, int threads) {
    // parts of fixed size own the sums: the result does not depend on how many threads there are
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < PARTS; part++) {
        double da = 0, db = 0;
        for (int64_t r = rows * part / PARTS; r < rows * (part + 1) / PARTS; r++) {
            const int64_t at = r * width;
            const __m512 factor = _mm512_set1_ps(scale[r]);
            __m512 dot = _mm512_setzero_ps();
            for (int64_t c = 0; c < width; c += LANES)
                dot = _mm512_fmadd_ps(load_bf16(mixed + at + c), load_bf16(d_normed + at + c), dot);
            const float mean = _mm512_reduce_add_ps(dot) * scale[r] * scale[r] / width;
            __m512 a_sum = _mm512_setzero_ps(), b_sum = _mm512_setzero_ps();
            for (int64_t c = 0; c < width; c += LANES) {
                const __m512 inner = _mm512_fnmadd_ps(load_bf16(mixed + at + c), _mm512_set1_ps(mean), load_bf16(d_normed + at + c));
                __m512 d = _mm512_mul_ps(inner, factor);
                if (d_mixed) d = _mm512_add_ps(d, load_bf16(d_mixed + at + c));
                if (x0) {
                    a_sum = _mm512_fmadd_ps(d, load_bf16(sum + at + c), a_sum);
                    b_sum = _mm512_fmadd_ps(d, load_bf16(x0 + at + c), b_sum);
                    store_bf16(d_x0 + at + c, _mm512_mul_ps(d, _mm512_set1_ps(b)));
                    d = _mm512_mul_ps(d, _mm512_set1_ps(a));
                }
                if (d_sum) d = _mm512_add_ps(d, load_bf16(d_sum + at + c));
                store_bf16(d_x + at + c, d);
            }
            da += _mm512_reduce_add_ps(a_sum);
            db += _mm512_reduce_add_ps(b_sum);
        }
        if (x0) da_db[2 * part] = da, da_db[2 * part + 1] = db;
    }
}

// heads (rows, H + 2 K, C): queries and keys of qkv rotated, normed and scaled, values with their gated embedding.
// cosine, sine (positions, C / 2) float32, row r is at position r % positions; gate (rows, K) float32 and value
// (rows, K, C) may be null; scale (rows, H + K) the factors of the norms. C / 2 is a multiple of 8.
void intone_heads_forward(const bf16* qkv, const float* cosine, const float* sine, const float* gate, const bf16* value,
                          bf16* heads, float* scale, int64_t rows, int64_t positions, int64_t num_heads, int64_t kv_heads,
                          int64_t width, float qk_scale, float eps, int threads) {
    const int64_t total = num_heads + 2 * kv_heads, half = width / 2;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> turned(width + LANES);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const float *cos_at = cosine + r % positions * half, *sin_at = sine + r % positions * half;
            for (int64_t h = 0; h < total; h++) {
                const bf16* in = qkv + (r * total + h) * width;
                bf16* out = heads + (r * total + h) * width;
                if (h >= num_heads + kv_heads) {
                    const int64_t k = h - num_heads - kv_heads;
                    if (!value) {
                        std::memcpy(out, in, width * sizeof(bf16));
                        continue;
                    }
                    const __m512 open = _mm512_set1_ps(gate[r * kv_heads + k]);
                    for (int64_t c = 0; c < width; c += LANES)
                        store_bf16(out + c, _mm512_fmadd_ps(open, load_bf16(value + (r * kv_heads + k) * width + c), load_bf16(in + c)));
                    continue;
                }
                __m512 squares = _mm512_setzero_ps();
                for (int64_t c = 0; c < half; c += LANES) {
                    const __mmask16 mask = half - c >= LANES ? 0xffff : 0xff;
                    const __m512 x = load_bf16(in + c, mask), y = load_bf16(in + half + c, mask);
                    const __m512 cs = _mm512_maskz_loadu_ps(mask, cos_at + c), sn = _mm512_maskz_loadu_ps(mask, sin_at + c);
                    const __m512 first = _mm512_fmadd_ps(x, cs, _mm512_mul_ps(y, sn));
                    const __m512 second = _mm512_fmsub_ps(y, cs, _mm512_mul_ps(x, sn));
                    squares = _mm512_fmadd_ps(first, first, _mm512_fmadd_ps(second, second, squares));
                    _mm512_mask_storeu_ps(turned.data() + c, mask, first);
                    _mm512_mask_storeu_ps(turned.data() + half + c, mask, second);
                }
                const float factor = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps);
                scale[r * (num_heads + kv_heads) + h] = factor;
                for (int64_t c = 0; c < width; c += LANES)
                    store_bf16(out + c, _mm512_mul_ps(_mm512_loadu_ps(turned.data() + c), _mm512_set1_ps(factor * qk_scale)));
            }
        }
    }
}

// d_heads becomes the gradient of qkv in place; d_gate (rows, K) float32 and d_value like value are written
void intone_heads_backward(const bf16* heads, const float* cosine, const float* sine, const float* gate, const bf16* value,
                           const float* scale, bf16* d_heads, float* d_gate, bf16* d_value, int64_t rows, int64_t positions,
                           int64_t num_heads, int64_t kv_heads, int64_t width, float qk_scale, int threads) {
    const int64_t total = num_heads + 2 * kv_heads, half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *cos_at = cosine + r % positions * half, *sin_at = sine + r % positions * half;
        for (int64_t h = 0; h < total; h++) {
            const bf16* out = heads + (r * total + h) * width;
            bf16* d = d_heads + (r * total + h) * width;
            if (h >= num_heads + kv_heads) {
                if (!value) continue;
                const int64_t at = r * kv_heads + h - num_heads - kv_heads;
                __m512 sum = _mm512_setzero_ps();
                for (int64_t c = 0; c < width; c += LANES) {
                    const __m512 slope = load_bf16(d + c);
                    sum = _mm512_fmadd_ps(slope, load_bf16(value + at * width + c), sum);
                    store_bf16(d_value + at * width + c, _mm512_mul_ps(slope, _mm512_set1_ps(gate[at])));
                }
                d_gate[at] = _mm512_reduce_add_ps(sum);
                continue;
            }
            __m512 dot = _mm512_setzero_ps();
            for (int64_t c = 0; c < width; c += LANES) dot = _mm512_fmadd_ps(load_bf16(out + c), load_bf16(d + c), dot);
            // out = qk_scale * n with n of unit rms: d n = qk_scale * d, and its part along n does not count
            const float factor = scale[r * (num_heads + kv_heads) + h] * qk_scale;
            const __m512 along = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / (width * qk_scale * qk_scale));
            for (int64_t c = 0; c < half; c += LANES) {
                const __mmask16 mask = half - c >= LANES ? 0xffff : 0xff;
                const __m512 cs = _mm512_maskz_loadu_ps(mask, cos_at + c), sn = _mm512_maskz_loadu_ps(mask, sin_at + c);
                const __m512 first = _mm512_fnmadd_ps(along, load_bf16(out + c, mask), load_bf16(d + c, mask));
                const __m512 second = _mm512_fnmadd_ps(along, load_bf16(out + half + c, mask), load_bf16(d + half + c, mask));
                const __m512 x = _mm512_fmsub_ps(first, cs, _mm512_mul_ps(second, sn));
                const __m512 y = _mm512_fmadd_ps(first, sn, _mm512_mul_ps(second, cs));
                store_bf16(d + c, _mm512_mul_ps(x, _mm512_set1_ps(factor)), mask);
                store_bf16(d + half + c, _mm512_mul_ps(y, _mm512_set1_ps(factor)), mask);
            }
        }
    }
}

// out = max(x, 0) squared; count is a multiple of 16
void intone_relu_square_forward(const bf16* x, bf16* out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const __m512 y = _mm512_max_ps(load_bf16(x + i), _mm512_setzero_ps());
        store_bf16(out + i, _mm512_mul_ps(y, y));
    }
}

// d_x = 2 max(x, 0) d_out; d_x may be d_out
void intone_relu_square_backward(const bf16* x, const bf16* d_out, bf16* d_x, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const __m512 y = _mm512_max_ps(load_bf16(x + i), _mm512_setzero_ps());
        store_bf16(d_x + i, _mm512_mul_ps(_mm512_add_ps(y, y), load_bf16(d_out + i)));
    }
}

// total (float32) += part (bfloat16)
void intone_add_narrow(float* total, const bf16* part, int64_t count, int threads) {
    const int64_t whole = count / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < whole; i += LANES)
        _mm512_storeu_ps(total + i, _mm512_add_ps(_mm512_loadu_ps(total + i), load_bf16(part + i)));
    for (int64_t i = whole; i < count; i++) total[i] += to_float(part[i]);
}

}  // extern "C"
