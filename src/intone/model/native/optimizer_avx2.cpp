// Optimizer updates in float32: AdamW and Muon in one pass over their tensors before and after Muon's products, and the
// products themselves, which are symmetric but for the last: half of them need not be computed.
#include "common_avx2.h"

#include <cmath>

namespace {

// a matrix by its two strides, one of which is 1
struct View {
    const float* data;
    int64_t row, column;
};

// columns begin..begin + PANEL of a @ b, for rows from low to m: c = alpha * (a @ b) + beta * d + diagonal on i = j.
// d is null where there is none. With mirror the result is symmetric and its other half is written too.
void panel(View a, View b, int64_t m, int64_t n, int64_t k, int64_t begin, int64_t low, float alpha, const float* d, float beta,
           float diagonal, float* c, int64_t ldc, bool mirror, float* packed, float* tile) {
    const int64_t columns = std::min(PANEL, n - begin);
    for (int64_t from = 0; from < k; from += DEPTH) {
        const int64_t depth = std::min(DEPTH, k - from);
        pack_panel(b.data + from * b.row + begin * b.column, b.row, b.column, depth, columns, packed);
        const float* at = a.data + low * a.row + from * a.column;
        if (a.column == 1)
            product_columns<2, false>(m - low, at, a.row, packed, PANEL, tile + low * PANEL, PANEL, depth, from > 0);
        else
            product_columns<2, true>(m - low, at, a.column, packed, PANEL, tile + low * PANEL, PANEL, depth, from > 0);
    }
    const __m256i masks[2] = {lanes(columns), lanes(columns - LANES)};
    for (int64_t i = low; i < m; i++)
        for (int half = 0; half < 2; half++) {
            const int64_t at = i * ldc + begin + half * LANES;
            __m256 x = _mm256_mul_ps(load(tile + i * PANEL + half * LANES), all(alpha));
            if (d) x = _mm256_fmadd_ps(load(d + at, masks[half]), all(beta), x);
            store(c + at, x, masks[half]);
        }
    if (diagonal != 0)
        for (int64_t j = begin; j < begin + columns; j++) c[j * ldc + j] += diagonal;
    if (!mirror) return;
    int64_t i = begin + columns;
    if (columns == PANEL)
        for (; i + LANES <= m; i += LANES)
            for (int64_t j = begin; j < begin + PANEL; j += LANES) transpose_tile(c + i * ldc + j, ldc, c + j * ldc + i, ldc);
    for (int64_t r = begin; r < m; r = r + 1 == begin + columns ? i : r + 1)
        for (int64_t j = begin; j < std::min(begin + columns, r); j++) c[j * ldc + r] = c[r * ldc + j];
}

}  // namespace

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

// out = x (rows, columns) with the odd polynomials a s + b s^3 + c s^5 applied to its singular values, one after the
// other; coefficients (steps, 3). scratch holds 5 * min(rows, columns) ** 2 values.
//
// Long matrices: the polynomials act on the Gram matrix of the shorter side and are multiplied up, so that x is read
// twice, not in every step. Nearly square ones may have singular values so small that their squares drown in the
// Gram matrix's rounding, and would save nothing: there x itself is multiplied in every step.
void intone_orthogonalise(const float* x, float* out, float* scratch, const float* coefficients, int64_t steps, int64_t rows,
                          int64_t columns, int threads) {
    const bool tall = rows > columns;
    const int64_t m = std::min(rows, columns), n = std::max(rows, columns), size = m * m;
    const bool square = 4 * n <= 5 * m;
    const int64_t panels = (m + PANEL - 1) / PANEL, last_panels = (columns + PANEL - 1) / PANEL;
    float *gram = scratch, *polynomial = gram + size, *inner = polynomial + size;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> packed(DEPTH * PANEL), tile(rows * PANEL);
        // of two that commute: symmetric again
        auto product_of = [&](const float* a, const float* b, float alpha, const float* d, float beta, float diagonal, float* c) {
#pragma omp for schedule(dynamic)
            for (int64_t j = 0; j < panels; j++)
                panel({a, m, 1}, {b, m, 1}, m, m, m, j * PANEL, j * PANEL, alpha, d, beta, diagonal, c, m, true, packed.data(),
                      tile.data());
        };
        auto gram_of = [&](const float* at) {
            const View along = tall ? View{at, 1, columns} : View{at, columns, 1};
            const View across = {at, along.column, along.row};
#pragma omp for schedule(dynamic)
            for (int64_t j = 0; j < panels; j++)
                panel(along, across, m, m, n, j * PANEL, j * PANEL, 1, nullptr, 0, 0, gram, m, true, packed.data(), tile.data());
        };
        auto apply = [&](const float* factor, const float* at, float* to) {
            const View of_x{at, columns, 1}, of_factor{factor, m, 1};
#pragma omp for schedule(dynamic)
            for (int64_t j = 0; j < last_panels; j++)
                panel(tall ? of_x : of_factor, tall ? of_factor : of_x, rows, columns, m, j * PANEL, 0, 1, nullptr, 0, 0, to, columns,
                      false, packed.data(), tile.data());
        };
        float *whole = inner + size, *spare = whole + size;
        if (!square) gram_of(x);
        const float* at = x;
        for (int64_t step = 0; step < steps; step++) {
            const float* abc = coefficients + 3 * step;
            if (square) {
                gram_of(at);
                product_of(gram, gram, abc[2], gram, abc[1], abc[0], polynomial);
                float* to = (steps - step) % 2 ? out : inner;
                apply(polynomial, at, to);
                at = to;
                continue;
            }
            float* here = step ? polynomial : whole;  // the first polynomial is the product so far
            product_of(gram, gram, abc[2], gram, abc[1], abc[0], here);
            if (step) {
                product_of(here, whole, 1, nullptr, 0, 0, spare);
                std::swap(whole, spare);
            }
            if (step + 1 < steps) {
                product_of(here, gram, 1, nullptr, 0, 0, inner);
                product_of(here, inner, 1, nullptr, 0, 0, gram);
            }
        }
        if (!square) apply(whole, x, out);
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
