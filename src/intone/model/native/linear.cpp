// Products of a few rows with fixed weights, as generation needs them: bound by reading the weights, so these are laid
// out once in the order in which they are read, in bfloat16 or in 8 bits. Sums of a row run over the channels in one
// order: a row's bits do not depend on how many rows there are.
#include "common.h"

#include <cmath>
#include <type_traits>

namespace {

constexpr int ROWS = 8;        // of x at a time in bfloat16, by two blocks of columns: 16 sums, two weights, one value
constexpr int NARROW_ROWS = 6;  // in 8 bits, where every row has two sums

// x in 16 bits, high and low byte apart: x = scale * (256 * high + low - 32768)
void quantise(const bf16* x, uint8_t* high, uint8_t* low, float* scale, int64_t width) {
    __m512 most = _mm512_setzero_ps(), nan = _mm512_setzero_ps();
    for (int64_t c = 0; c < width; c += LANES) {
        const __m512 y = load_bf16(x + c);
        most = _mm512_max_ps(most, _mm512_abs_ps(y));
        nan = _mm512_add_ps(nan, _mm512_mul_ps(y, _mm512_setzero_ps()));  // NaN where y is not finite
    }
    const float reach = _mm512_reduce_max_ps(most), broken = _mm512_reduce_add_ps(nan);
    *scale = broken == 0 ? reach / 32767 : __builtin_nanf("");
    const __m512 inverse = _mm512_set1_ps(broken == 0 && reach > 0 ? 32767 / reach : 0);
    for (int64_t c = 0; c < width; c += LANES) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(x + c), inverse));
        whole = _mm512_add_epi32(whole, _mm512_set1_epi32(32768));
        _mm_storeu_si128((__m128i*)(low + c), _mm512_cvtepi32_epi8(whole));
        _mm_storeu_si128((__m128i*)(high + c), _mm512_cvtepi32_epi8(_mm512_srli_epi32(whole, 8)));
    }
}

template <int MR>
inline void narrow_tile(const uint8_t* high, const uint8_t* low, int64_t width, const int8_t* weight, __m512i (*sums)[2]) {
    for (int i = 0; i < MR; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
    for (int64_t p = 0; p < width / 4; p++) {
        const __m512i w = _mm512_loadu_si512(weight + p * 64);
        for (int i = 0; i < MR; i++) {
            int32_t upper, lower;
            std::memcpy(&upper, high + i * width + 4 * p, 4);
            std::memcpy(&lower, low + i * width + 4 * p, 4);
            sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], _mm512_set1_epi32(upper), w);
            sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], _mm512_set1_epi32(lower), w);
        }
    }
}

inline void finish(float* out, bf16* narrow_out, int64_t at, int64_t left, __m512 y, int relu) {
    const __mmask16 mask = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
    if (relu) y = _mm512_max_ps(_mm512_setzero_ps(), y);  // of NaN and 0 the second: a NaN stays one
    if (out)
        _mm512_mask_storeu_ps(out + at, mask, y);
    else
        store_bf16(narrow_out + at, y, mask);
}

template <int MR>
inline void rows_of_block(const bf16* x, const uint32_t* weight, int64_t width, int blocks, float* out, bf16* narrow_out,
                          int64_t at, int64_t columns, int64_t column, int relu) {
    float sums[MR * 2 * LANES];
    if (blocks == 2) {
        // two blocks are two streams of pairs: rows of 16 pairs each, one behind the other
        __m512 total[MR][2];
        for (int i = 0; i < MR; i++) total[i][0] = total[i][1] = _mm512_setzero_ps();
        const uint32_t* second = weight + width / 2 * LANES;
        for (int64_t p = 0; p < width / 2; p++) {
            const __m512bh a = (__m512bh)_mm512_loadu_si512(weight + p * LANES);
            const __m512bh b = (__m512bh)_mm512_loadu_si512(second + p * LANES);
            for (int i = 0; i < MR; i++) {
                int32_t pair;
                std::memcpy(&pair, x + i * width + 2 * p, 4);
                const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
                total[i][0] = _mm512_dpbf16_ps(total[i][0], left, a);
                total[i][1] = _mm512_dpbf16_ps(total[i][1], left, b);
            }
        }
        for (int i = 0; i < MR; i++) {
            finish(out, narrow_out, at + i * columns, columns - column, total[i][0], relu);
            finish(out, narrow_out, at + i * columns + LANES, columns - column - LANES, total[i][1], relu);
        }
        return;
    }
    product_tile<MR, 1>(x, (int)width, weight, LANES, sums, LANES, (int)(width / 2), false);
    for (int i = 0; i < MR; i++)
        finish(out, narrow_out, at + i * columns, columns - column, _mm512_loadu_ps(sums + i * LANES), relu);
}

}  // namespace

extern "C" {

// packed: (columns in blocks of 16, the last filled with zeros; width / 2 pairs; 16) for weight (columns, width), width even
void intone_pack_linear(const bf16* weight, uint32_t* packed, int64_t columns, int64_t width, int threads) {
    const int64_t blocks = (columns + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < blocks; n++)
        for (int64_t p = 0; p < width / 2; p++)
            for (int64_t j = 0; j < LANES; j++) {
                uint32_t pair = 0;
                if (n * LANES + j < columns) std::memcpy(&pair, weight + (n * LANES + j) * width + 2 * p, 4);
                packed[(n * (width / 2) + p) * LANES + j] = pair;
            }
}

// out (rows, columns) float32, or narrow_out in bfloat16 where out is null: x (rows, width) @ weight transposed
void intone_linear(const bf16* x, const uint32_t* packed, float* out, bf16* narrow_out, int64_t rows, int64_t columns,
                   int64_t width, int64_t relu, int threads) {
    const int64_t blocks = (columns + LANES - 1) / LANES, pairs = (blocks + 1) / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t pair = 0; pair < pairs; pair++) {
        const int64_t n = 2 * pair;
        const int count = n + 1 < blocks ? 2 : 1;
        const uint32_t* weight = packed + n * (width / 2) * LANES;
        int64_t r = 0;
        const int64_t column = n * LANES;
#define TILE(MR)                                                                                                         \
    for (; r + MR <= rows; r += MR)                                                                                      \
        rows_of_block<MR>(x + r * width, weight, width, count, out, narrow_out, r * columns + column, columns, column, (int)relu);
        TILE(ROWS) TILE(4) TILE(1)
#undef TILE
    }
}

// packed (blocks of 16 columns; width / 4; 16; 4) int8 with one scale per column and the sum of its values;
// width is a multiple of 16
void intone_pack_narrow(const float* weight, int8_t* packed, float* scale, int32_t* sum, int64_t columns, int64_t width,
                        int threads) {
    const int64_t blocks = (columns + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < blocks; n++)
        for (int64_t j = 0; j < LANES; j++) {
            const int64_t column = n * LANES + j;
            float reach = 0;
            if (column < columns)
                for (int64_t c = 0; c < width; c++) reach = std::max(reach, std::abs(weight[column * width + c]));
            const float inverse = reach > 0 ? 127 / reach : 0;
            int32_t total = 0;
            for (int64_t c = 0; c < width; c++) {
                const float value = column < columns ? weight[column * width + c] * inverse : 0;
                const int8_t whole = (int8_t)std::lrint(value);
                packed[((n * (width / 4) + c / 4) * LANES + j) * 4 + c % 4] = whole;
                total += whole;
            }
            scale[column] = reach / 127;
            sum[column] = total;
        }
}

// like intone_linear with weights of 8 bits and x rounded to 16; scratch holds 2 * rows * width bytes
void intone_linear_narrow(const bf16* x, const int8_t* packed, const float* scale, const int32_t* sum, uint8_t* scratch,
                          float* out, bf16* narrow_out, int64_t rows, int64_t columns, int64_t width, int64_t relu, int threads) {
    const int64_t blocks = (columns + LANES - 1) / LANES;
    uint8_t *high = scratch, *low = scratch + rows * width;
    std::vector<float> row_scale(rows);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) quantise(x + r * width, high + r * width, low + r * width, &row_scale[r], width);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < blocks; n++) {
            const int8_t* weight = packed + n * width * LANES;
            const __m512 column_scale = _mm512_loadu_ps(scale + n * LANES);
            // 256 * (high - 128 * sum) + low is the sum with the signed value, without large numbers that cancel
            const __m512i shift = _mm512_slli_epi32(_mm512_loadu_si512(sum + n * LANES), 7);
            const int64_t column = n * LANES;
            int64_t r = 0;
            auto tile = [&](auto size) {
                constexpr int MR = decltype(size)::value;
                for (; r + MR <= rows; r += MR) {
                    __m512i sums[MR][2];
                    narrow_tile<MR>(high + r * width, low + r * width, width, weight, sums);
                    for (int i = 0; i < MR; i++) {
                        const __m512 upper = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][0], shift));
                        __m512 y = _mm512_fmadd_ps(upper, _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(sums[i][1]));
                        y = _mm512_mul_ps(y, _mm512_mul_ps(column_scale, _mm512_set1_ps(row_scale[r + i])));
                        finish(out, narrow_out, (r + i) * columns + column, columns - column, y, (int)relu);
                    }
                }
            };
            tile(std::integral_constant<int, NARROW_ROWS>());
            tile(std::integral_constant<int, 2>());
            tile(std::integral_constant<int, 1>());
        }
    }
}

}  // extern "C"
