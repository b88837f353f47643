// The parts of a block between its matrix products, each in one pass, in float32: norms with the additions before them,
// heads (rotation, norm, value embedding), squared ReLU. A row is one token; its width is a multiple of 8.
#include "common_avx2.h"

#include <cmath>

namespace {

constexpr int64_t PARTS = 64;

}  // namespace

extern "C" {

// sum = x + h (h may be null); mixed = a * sum + b * x0 (x0 may be null: mixed is sum and not written);
// normed = mixed / rms(mixed), scale (rows) its factor
void intone_norm_forward(const float* x, const float* h, const float* x0, float a, float b, float* sum, float* mixed, float* normed,
                         float* scale, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r * width;
        // the row on its way lies where its norm goes
        float* row = normed + at;
        __m256 squares = all(0.0f);
        for (int64_t c = 0; c < width; c += LANES) {
            __m256 value = load(x + at + c);
            if (h) {
                value = _mm256_add_ps(value, load(h + at + c));
                store(sum + at + c, value);
            }
            if (x0) {
                value = _mm256_fmadd_ps(value, all(a), _mm256_mul_ps(load(x0 + at + c), all(b)));
                store(mixed + at + c, value);
            }
            squares = _mm256_fmadd_ps(value, value, squares);
            store(row + c, value);
        }
        const float factor = 1.0f / std::sqrt(sum_of(squares) / width + eps);
        scale[r] = factor;
        for (int64_t c = 0; c < width; c += LANES) store(row + c, _mm256_mul_ps(load(row + c), all(factor)));
    }
}

// d_normed, d_mixed, d_sum: gradients that arrive (the last two may be null). d_x: of x, and of h too. With x0, d_x0 is
// written, and da_db (PARTS, 2) float64 with partial sums of the gradients of a and b.
void intone_norm_backward(const float* mixed, const float* sum, const float* x0, float a, float b, const float* scale,
                          const float* d_normed, const float* d_mixed, const float* d_sum, float* d_x, float* d_x0, double* da_db,
                          int64_t rows, int64_t width, int threads) {
    // parts of fixed size own the sums: the result does not depend on how many threads there are
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < PARTS; part++) {
        double da = 0, db = 0;
        for (int64_t r = rows * part / PARTS; r < rows * (part + 1) / PARTS; r++) {
            const int64_t at = r * width;
            const __m256 factor = all(scale[r]);
            __m256 dot = all(0.0f);
            for (int64_t c = 0; c < width; c += LANES) dot = _mm256_fmadd_ps(load(mixed + at + c), load(d_normed + at + c), dot);
            const __m256 mean = all(sum_of(dot) * scale[r] * scale[r] / width);
            __m256 a_sum = all(0.0f), b_sum = all(0.0f);
            for (int64_t c = 0; c < width; c += LANES) {
                __m256 d = _mm256_mul_ps(_mm256_fnmadd_ps(load(mixed + at + c), mean, load(d_normed + at + c)), factor);
                if (d_mixed) d = _mm256_add_ps(d, load(d_mixed + at + c));
                if (x0) {
                    a_sum = _mm256_fmadd_ps(d, load(sum + at + c), a_sum);
                    b_sum = _mm256_fmadd_ps(d, load(x0 + at + c), b_sum);
                    store(d_x0 + at + c, _mm256_mul_ps(d, all(b)));
                    d = _mm256_mul_ps(d, all(a));
                }
                if (d_sum) d = _mm256_add_ps(d, load(d_sum + at + c));
                store(d_x + at + c, d);
            }
            da += sum_of(a_sum);
            db += sum_of(b_sum);
        }
        if (x0) da_db[2 * part] = da, da_db[2 * part + 1] = db;
    }
}

// heads (rows, H + 2 K, C): queries and keys of qkv rotated, normed and scaled, values with their gated embedding.
// cosine, sine (positions, C / 2), row r is at position r % positions; gate (rows, K) and value (rows, K, C) may be null;
// scale (rows, H + K) the factors of the norms. C / 2 is a multiple of 8.
void intone_heads_forward(const float* qkv, const float* cosine, const float* sine, const float* gate, const float* value,
                          float* heads, float* scale, int64_t rows, int64_t positions, int64_t num_heads, int64_t kv_heads,
                          int64_t width, float qk_scale, float eps, int threads) {
    const int64_t total = num_heads + 2 * kv_heads, half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *cos_at = cosine + r % positions * half, *sin_at = sine + r % positions * half;
        for (int64_t h = 0; h < total; h++) {
            const float* in = qkv + (r * total + h) * width;
            float* out = heads + (r * total + h) * width;
            if (h >= num_heads + kv_heads) {
                const int64_t k = r * kv_heads + h - num_heads - kv_heads;
                if (!value) {
                    std::memcpy(out, in, width * sizeof(float));
                    continue;
                }
                for (int64_t c = 0; c < width; c += LANES)
                    store(out + c, _mm256_fmadd_ps(all(gate[k]), load(value + k * width + c), load(in + c)));
                continue;
            }
            __m256 squares = all(0.0f);
            for (int64_t c = 0; c < half; c += LANES) {
                const __m256 x = load(in + c), y = load(in + half + c), cs = load(cos_at + c), sn = load(sin_at + c);
                const __m256 first = _mm256_fmadd_ps(x, cs, _mm256_mul_ps(y, sn));
                const __m256 second = _mm256_fmsub_ps(y, cs, _mm256_mul_ps(x, sn));
                squares = _mm256_fmadd_ps(first, first, _mm256_fmadd_ps(second, second, squares));
                store(out + c, first);
                store(out + half + c, second);
            }
            const float factor = 1.0f / std::sqrt(sum_of(squares) / width + eps);
            scale[r * (num_heads + kv_heads) + h] = factor;
            for (int64_t c = 0; c < width; c += LANES) store(out + c, _mm256_mul_ps(load(out + c), all(factor * qk_scale)));
        }
    }
}

// d_heads becomes the gradient of qkv in place; d_gate (rows, K) and d_value like value are written
void intone_heads_backward(const float* heads, const float* cosine, const float* sine, const float* gate, const float* value,
                           const float* scale, float* d_heads, float* d_gate, float* d_value, int64_t rows, int64_t positions,
                           int64_t num_heads, int64_t kv_heads, int64_t width, float qk_scale, int threads) {
    const int64_t total = num_heads + 2 * kv_heads, half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *cos_at = cosine + r % positions * half, *sin_at = sine + r % positions * half;
        for (int64_t h = 0; h < total; h++) {
            const float* out = heads + (r * total + h) * width;
            float* d = d_heads + (r * total + h) * width;
            if (h >= num_heads + kv_heads) {
                if (!value) continue;
                const int64_t at = r * kv_heads + h - num_heads - kv_heads;
                __m256 sum = all(0.0f);
                for (int64_t c = 0; c < width; c += LANES) {
                    const __m256 slope = load(d + c);
                    sum = _mm256_fmadd_ps(slope, load(value + at * width + c), sum);
                    store(d_value + at * width + c, _mm256_mul_ps(slope, all(gate[at])));
                }
                d_gate[at] = sum_of(sum);
                continue;
            }
            __m256 dot = all(0.0f);
            for (int64_t c = 0; c < width; c += LANES) dot = _mm256_fmadd_ps(load(out + c), load(d + c), dot);
            // out = qk_scale * n with n of unit rms: d n = qk_scale * d, and its part along n does not count
            const __m256 factor = all(scale[r * (num_heads + kv_heads) + h] * qk_scale);
            const __m256 along = all(sum_of(dot) / (width * qk_scale * qk_scale));
            for (int64_t c = 0; c < half; c += LANES) {
                const __m256 cs = load(cos_at + c), sn = load(sin_at + c);
                const __m256 first = _mm256_fnmadd_ps(along, load(out + c), load(d + c));
                const __m256 second = _mm256_fnmadd_ps(along, load(out + half + c), load(d + half + c));
                store(d + c, _mm256_mul_ps(_mm256_fmsub_ps(first, cs, _mm256_mul_ps(second, sn)), factor));
                store(d + half + c, _mm256_mul_ps(_mm256_fmadd_ps(first, sn, _mm256_mul_ps(second, cs)), factor));
            }
        }
    }
}

// out = max(x, 0) squared
void intone_relu_square_forward(const float* x, float* out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const __m256i mask = lanes(count - i);
        const __m256 y = _mm256_max_ps(load(x + i, mask), all(0.0f));
        store(out + i, _mm256_mul_ps(y, y), mask);
    }
}

// d_x = 2 max(x, 0) d_out; d_x may be d_out
void intone_relu_square_backward(const float* x, const float* d_out, float* d_x, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const __m256i mask = lanes(count - i);
        const __m256 y = _mm256_max_ps(load(x + i, mask), all(0.0f));
        store(d_x + i, _mm256_mul_ps(_mm256_add_ps(y, y), load(d_out + i, mask)), mask);
    }
}

}  // extern "C"
