// Optimizer updates in one pass over their tensors, in float32; only Muon's products stay with the matrix library.
#include "common.h"

#include <cmath>

extern "C" {

// AdamW (Loshchilov & Hutter 2019) on count values; size = lr / (1 - beta1 ** t), unbias = 1 / (1 - beta2 ** t)
void intone_adamw(float* p, const float* grad, float* first, float* second, int64_t count, float size, float unbias, float beta1,
                  float beta2, float eps, float keep, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 mask = count - i >= LANES ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
        const __m512 g = _mm512_maskz_loadu_ps(mask, grad + i);
        __m512 m = _mm512_maskz_loadu_ps(mask, first + i), v = _mm512_maskz_loadu_ps(mask, second + i);
        m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), _mm512_set1_ps(1 - beta1), m);
        v = _mm512_fmadd_ps(_mm512_fmsub_ps(g, g, v), _mm512_set1_ps(1 - beta2), v);
        const __m512 root = _mm512_add_ps(_mm512_sqrt_ps(_mm512_mul_ps(v, _mm512_set1_ps(unbias))), _mm512_set1_ps(eps));
        const __m512 old = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, p + i), _mm512_set1_ps(keep));
        _mm512_mask_storeu_ps(first + i, mask, m);
        _mm512_mask_storeu_ps(second + i, mask, v);
        _mm512_mask_storeu_ps(p + i, mask, _mm512_fnmadd_ps(_mm512_set1_ps(size), _mm512_div_ps(m, root), old));
    }
}

// Muon before its products, one matrix: momentum, Nesterov, rows brought to equal norms, all at Frobenius norm 1 / 1.01;
// x (rows, columns) bfloat16 gets the result. A gradient of zeros gives zeros.
void intone_muon_before(const float* grad, float* momentum, bf16* x, int64_t rows, int64_t columns, float beta, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> update((columns + LANES) / LANES * LANES);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const int64_t at = r * columns;
            __m512 squares = _mm512_setzero_ps();
            for (int64_t c = 0; c < columns; c += LANES) {
                const __mmask16 mask = columns - c >= LANES ? 0xffff : (__mmask16)((1u << (columns - c)) - 1);
                const __m512 g = _mm512_maskz_loadu_ps(mask, grad + at + c);
                __m512 m = _mm512_maskz_loadu_ps(mask, momentum + at + c);
                m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), _mm512_set1_ps(1 - beta), m);
                _mm512_mask_storeu_ps(momentum + at + c, mask, m);
                const __m512 u = _mm512_fmadd_ps(_mm512_sub_ps(m, g), _mm512_set1_ps(beta), g);
                squares = _mm512_fmadd_ps(u, u, squares);
                _mm512_storeu_ps(update.data() + c, u);
            }
            const float norm = std::max(std::sqrt(_mm512_reduce_add_ps(squares)), 1e-6f);
            const __m512 factor = _mm512_set1_ps(1.0f / (norm * 1.01f * std::sqrt((float)rows) + 1e-12f));
            for (int64_t c = 0; c < columns; c += LANES) {
                const __mmask16 mask = columns - c >= LANES ? 0xffff : (__mmask16)((1u << (columns - c)) - 1);
                store_bf16(x + at + c, _mm512_mul_ps(_mm512_loadu_ps(update.data() + c), factor), mask);
            }
        }
    }
}

// Muon after its products, one matrix: the factored second moment (per row where rows >= columns, else per column), the
// norm brought to sqrt(min(rows, columns)), cautious decay, and the step on p. sums is scratch of max(rows, columns).
void intone_muon_after(const bf16* x, float* p, float* second, float* sums, int64_t rows, int64_t columns, float lr, float decay,
                       float share, int threads) {
    const bool by_row = rows >= columns;
    const int64_t lines = by_row ? rows : columns, along = by_row ? columns : rows;
    if (by_row) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t c = 0; c < columns; c += LANES) {
                const __mmask16 mask = columns - c >= LANES ? 0xffff : (__mmask16)((1u << (columns - c)) - 1);
                const __m512 u = load_bf16(x + r * columns + c, mask);
                sum = _mm512_fmadd_ps(u, u, sum);
            }
            sums[r] = _mm512_reduce_add_ps(sum);
        }
    } else {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t c = 0; c < columns; c += LANES) {
            const __mmask16 mask = columns - c >= LANES ? 0xffff : (__mmask16)((1u << (columns - c)) - 1);
            __m512 sum = _mm512_setzero_ps();
            for (int64_t r = 0; r < rows; r++) {
                const __m512 u = load_bf16(x + r * columns + c, mask);
                sum = _mm512_fmadd_ps(u, u, sum);
            }
            _mm512_mask_storeu_ps(sums + c, mask, sum);
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
            const __mmask16 mask = columns - c >= LANES ? 0xffff : (__mmask16)((1u << (columns - c)) - 1);
            const __m512 size = by_row ? _mm512_set1_ps(sums[r]) : _mm512_maskz_loadu_ps(mask, sums + c);
            const __m512 u = _mm512_mul_ps(load_bf16(x + r * columns + c, mask), size);
            float* at = p + r * columns + c;
            const __m512 old = _mm512_maskz_loadu_ps(mask, at);
            const __mmask16 agree = _mm512_cmp_ps_mask(_mm512_mul_ps(u, old), _mm512_setzero_ps(), _CMP_GE_OQ);
            const __m512 kept = _mm512_mask_mul_ps(old, agree, old, _mm512_set1_ps(1 - lr * decay));
            _mm512_mask_storeu_ps(at, mask, _mm512_fnmadd_ps(_mm512_set1_ps(lr), u, kept));
        }
}

}  // extern "C"
