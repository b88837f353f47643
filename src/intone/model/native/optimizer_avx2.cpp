// Optimizer updates in float32: AdamW, and Muon in one pass over its tensors before and after its products, which are in
// orthogonalise_avx2.cpp.
#include "common_avx2.h"

#include <cmath>

extern "C" {

// AdamW (Loshchilov & Hutter 2019) on count values; size = lr / (1 - beta1 ** t), unbias = 1 / (1 - beta2 ** t)
void intone_adamw(float* p, const float* grad, float* first, float* second, int64_t count, float size, float unbias, float beta1,
                  float beta2, float eps, float keep, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const __m256i mask = lanes(count - i);
        const __m256 g = load(grad + i, mask);
        __m256 m = load(first + i, mask), v = load(second + i, mask);
        m = _mm256_fmadd_ps(_mm256_sub_ps(g, m), all(1 - beta1), m);
        v = _mm256_fmadd_ps(_mm256_fmsub_ps(g, g, v), all(1 - beta2), v);
        const __m256 root = _mm256_add_ps(_mm256_sqrt_ps(_mm256_mul_ps(v, all(unbias))), all(eps));
        const __m256 old = _mm256_mul_ps(load(p + i, mask), all(keep));
        store(first + i, m, mask);
        store(second + i, v, mask);
        store(p + i, _mm256_fnmadd_ps(all(size), _mm256_div_ps(m, root), old), mask);
    }
}

// Muon before its products, one matrix: momentum, Nesterov, rows brought to equal norms, all at Frobenius norm 1 / 1.01;
// x (rows, columns) gets the result. A gradient of zeros gives zeros.
void intone_muon_before(const float* grad, float* momentum, float* x, int64_t rows, int64_t columns, float beta, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r * columns;
        __m256 squares = all(0.0f);
        for (int64_t c = 0; c < columns; c += LANES) {
            const __m256i mask = lanes(columns - c);
            const __m256 g = load(grad + at + c, mask);
            __m256 m = load(momentum + at + c, mask);
            m = _mm256_fmadd_ps(_mm256_sub_ps(g, m), all(1 - beta), m);
            store(momentum + at + c, m, mask);
            const __m256 u = _mm256_fmadd_ps(_mm256_sub_ps(m, g), all(beta), g);
            squares = _mm256_fmadd_ps(u, u, squares);
            store(x + at + c, u, mask);
        }
        const float norm = std::max(std::sqrt(sum_of(squares)), 1e-6f);
        const __m256 factor = all(1.0f / (norm * 1.01f * std::sqrt((float)rows) + 1e-12f));
        for (int64_t c = 0; c < columns; c += LANES) {
            const __m256i mask = lanes(columns - c);
            store(x + at + c, _mm256_mul_ps(load(x + at + c, mask), factor), mask);
        }
    }
}

// Muon after its products, one matrix: the factored second moment (per row where rows >= columns, else per column), the
// norm brought to sqrt(min(rows, columns)), cautious decay, and the step on p. sums is scratch of max(rows, columns).
void intone_muon_after(const float* x, float* p, float* second, float* sums, int64_t rows, int64_t columns, float lr, float decay,
                       float share, int threads) {
    const bool by_row = rows >= columns;
    const int64_t lines = by_row ? rows : columns, along = by_row ? columns : rows;
    if (by_row) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            __m256 sum = all(0.0f);
            for (int64_t c = 0; c < columns; c += LANES) {
                const __m256 u = load(x + r * columns + c, lanes(columns - c));
                sum = _mm256_fmadd_ps(u, u, sum);
            }
            sums[r] = sum_of(sum);
        }
    } else {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t c = 0; c < columns; c += LANES) {
            const __m256i mask = lanes(columns - c);
            __m256 sum = all(0.0f);
            for (int64_t r = 0; r < rows; r++) {
                const __m256 u = load(x + r * columns + c, mask);
                sum = _mm256_fmadd_ps(u, u, sum);
            }
            store(sums + c, sum, mask);
        }
    }
    double whole = 0;
    for (int64_t i = 0; i < lines; i++) whole += sums[i];
    const double norm = std::sqrt((double)std::min(rows, columns));
    const double snap = norm / std::max(std::sqrt(whole), 1e-6);
    double scaled = 0;
    for (int64_t i = 0; i < lines; i++) {
        const float mean = (float)(sums[i] / along * snap * snap);
        second[i] += (mean - second[i]) * share;
        const float size = 1.0f / std::sqrt(std::max(second[i], 1e-10f));
        scaled += (double)mean * along * size * size;
        sums[i] = size;
    }
    const float factor = (float)(snap * norm / std::max(std::sqrt(scaled), 1e-10));
    for (int64_t i = 0; i < lines; i++) sums[i] *= factor;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += LANES) {
            const __m256i mask = lanes(columns - c);
            const __m256 size = by_row ? all(sums[r]) : load(sums + c, mask);
            const __m256 u = _mm256_mul_ps(load(x + r * columns + c, mask), size);
            float* at = p + r * columns + c;
            const __m256 old = load(at, mask);
            const __m256 agree = _mm256_cmp_ps(_mm256_mul_ps(u, old), all(0.0f), _CMP_GE_OQ);
            const __m256 kept = _mm256_blendv_ps(old, _mm256_mul_ps(old, all(1 - lr * decay)), agree);
            store(at, _mm256_fnmadd_ps(all(lr), u, kept), mask);
        }
}

}  // extern "C"
