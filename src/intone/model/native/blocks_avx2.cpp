// The parts of a block between its matrix products, each in one pass, in float32: norms with the additions before them,
// heads (rotation, norm, value embedding), squared ReLU. A row is one token.
#include "common_avx2.h"

#include <cmath>

extern "C" {

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
