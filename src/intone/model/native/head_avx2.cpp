// Softcapped cross entropy over rows of logits in float32: the loss of each row, and the logits replaced by their gradient.
#include "common_avx2.h"

#include <cmath>

extern "C" {

// logits (rows, width), the first vocab columns count, the others get 0; targets (rows), each below vocab;
// losses (rows) in nats. The squashed logits lie within +-cap, so the sum of exponentials needs no maximum.
void intone_cross_entropy(float* logits, const int32_t* targets, float* losses, int64_t rows, int64_t vocab, int64_t width, float cap,
                          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float* row = logits + r * width;
        const int64_t target = targets[r];
        const float t = std::tanh(row[target] / cap);
        const __m256 one = all(1.0f), caps = all(cap), inverse = all(1.0f / cap);
        __m256 sums[2] = {all(0.0f), all(0.0f)};
        for (int64_t c = 0, i = 0; c < vocab; c += LANES, i ^= 1) {
            const __m256i mask = lanes(vocab - c);
            const __m256 squashed = tanh_ps(_mm256_mul_ps(load(row + c, mask), inverse));
            const __m256 e = _mm256_and_ps(exp_ps(_mm256_fmsub_ps(squashed, caps, caps)), _mm256_castsi256_ps(mask));
            sums[i] = _mm256_add_ps(sums[i], e);
            store(row + c, _mm256_mul_ps(e, _mm256_fnmadd_ps(squashed, squashed, one)), mask);
        }
        const float total = sum_of(_mm256_add_ps(sums[0], sums[1]));
        losses[r] = std::log(total) + cap - cap * t;
        row[target] -= total * (1 - t * t);
        const __m256 share = all(1.0f / total);
        for (int64_t c = 0; c < vocab; c += LANES) {
            const __m256i mask = lanes(vocab - c);
            store(row + c, _mm256_mul_ps(load(row + c, mask), share), mask);
        }
        std::memset(row + vocab, 0, (width - vocab) * sizeof(float));
    }
}

}  // extern "C"
