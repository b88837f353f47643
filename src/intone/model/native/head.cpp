// Softcapped cross entropy over rows of logits: the loss of each row, and the logits replaced by their gradient.
#include "common.h"

#include <cmath>

namespace {

// tanh by one exponential; off by at most 2e-7
inline __m512 tanh_ps(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-9.0f)), _mm512_set1_ps(9.0f));
    const __m512 e = exp_ps(_mm512_add_ps(x, x));
    return _mm512_div_ps(_mm512_sub_ps(e, one), _mm512_add_ps(e, one));
}

}  // namespace

extern "C" {

// logits (rows, width) bfloat16, the first vocab columns count, the others get 0; targets (rows), each below vocab;
// losses (rows) float32 in nats. The squashed logits lie within +-cap, so the sum of exponentials needs no maximum.
void intone_cross_entropy(bf16* logits, const int32_t* targets, float* losses, int64_t rows, int64_t vocab, int64_t width,
                          float cap, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> slopes((width + LANES) / LANES * LANES);
        const __m512 one = _mm512_set1_ps(1.0f), caps = _mm512_set1_ps(cap), inverse = _mm512_set1_ps(1.0f / cap);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            bf16* row = logits + r * width;
            __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
            for (int64_t c = 0, i = 0; c < vocab; c += LANES, i ^= 1) {
                const __mmask16 mask = vocab - c >= LANES ? 0xffff : (__mmask16)((1u << (vocab - c)) - 1);
                const __m512 t = tanh_ps(_mm512_mul_ps(load_bf16(row + c, mask), inverse));
                const __m512 e = _mm512_maskz_mov_ps(mask, exp_ps(_mm512_fmsub_ps(t, caps, caps)));
                sums[i] = _mm512_add_ps(sums[i], e);
                _mm512_storeu_ps(slopes.data() + c, _mm512_mul_ps(e, _mm512_fnmadd_ps(t, t, one)));
            }
            const float total = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
            const int64_t target = targets[r];
            const float t = std::tanh(to_float(row[target]) / cap);
            losses[r] = std::log(total) + cap - cap * t;
            slopes[target] -= total * (1 - t * t);
            const __m512 share = _mm512_set1_ps(1.0f / total);
            for (int64_t c = 0; c < width; c += LANES) {
                const __mmask16 mask = width - c >= LANES ? 0xffff : (__mmask16)((1u << (width - c)) - 1);
                const __mmask16 counts = vocab - c >= LANES ? 0xffff : (vocab <= c ? 0 : (__mmask16)((1u << (vocab - c)) - 1));
                store_bf16(row + c, _mm512_mul_ps(_mm512_maskz_loadu_ps(counts, slopes.data() + c), share), mask);
            }
        }
    }
}

}  // extern "C"
