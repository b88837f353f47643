// Causal attention over packed rows, forward and backward, in float32.
//
// Query i sees keys first[i]..i of its row: a window and the start of its document in one number. Work goes in blocks
// of QUERIES queries that stand side by side in the lanes, so that maxima and sums of the softmax need no sums across
// lanes; keys outside of a block's range are never touched. One task is one row and one key head.
#include "common_avx2.h"

#include <cmath>

namespace {

constexpr int QUERIES = 32;               // in a block
constexpr int COLUMNS = QUERIES / LANES;  // registers that hold one value of each query
constexpr int KEYS = 64;                  // keys at a time: scores of a block fill 8 KiB

struct Shape {
    int64_t rows, positions, heads, kv_heads, width;
    int64_t q_row, q_position, kv_row, kv_position;  // strides in elements; heads are next to each other
    int64_t d_row, d_position;                       // strides of dq, dk and dv
};

// out[c][i] (width, length) = x[i][c]; zero from count on; width is a multiple of 8
void transpose(const float* x, int64_t stride, int64_t count, int64_t width, float* out, int64_t length) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int64_t c = 0; c < width; c += LANES) transpose_tile(x + i * stride + c, stride, out + c * length + i, length);
    for (; i < length; i++)
        for (int64_t c = 0; c < width; c++) out[c * length + i] = i < count ? x[i * stride + c] : 0;
}

// out (count, width) = rows of x next to each other
void copy_rows(const float* x, int64_t stride, int64_t count, int64_t width, float* out) {
    for (int64_t i = 0; i < count; i++) std::memcpy(out + i * width, x + i * stride, width * sizeof(float));
}

struct Block {
    int begin, count;           // queries
    int first_key, keys;        // keys some query sees
    int open_from, open_until;  // keys from open_from to before open_until are seen by all queries
    __m256i query[COLUMNS], first[COLUMNS];
};

Block block_at(int begin, int positions, const int32_t* first) {
    Block block;
    block.begin = begin;
    block.count = std::min(QUERIES, positions - begin);
    int32_t query[QUERIES], low[QUERIES];
    int lowest = positions, highest = 0;
    for (int i = 0; i < QUERIES; i++) {
        const bool there = i < block.count;
        query[i] = there ? begin + i : -1;  // a missing query sees nothing
        low[i] = there ? first[begin + i] : positions;
        lowest = std::min(lowest, (int)low[i]);
        highest = std::max(highest, (int)low[i]);
    }
    block.first_key = lowest;
    block.keys = begin + block.count - lowest;
    block.open_from = highest;  // positions where a query is missing: then no key is open to all
    block.open_until = begin + 1;
    for (int j = 0; j < COLUMNS; j++) {
        block.query[j] = _mm256_loadu_si256((const __m256i*)(query + LANES * j));
        block.first[j] = _mm256_loadu_si256((const __m256i*)(low + LANES * j));
    }
    return block;
}

// all bits where the query does not see the key
inline __m256 hidden(const Block& block, int j, int key) {
    const __m256i at = _mm256_set1_epi32(key);
    return _mm256_castsi256_ps(_mm256_or_si256(_mm256_cmpgt_epi32(at, block.query[j]), _mm256_cmpgt_epi32(block.first[j], at)));
}

}  // namespace

extern "C" {

// out (rows, positions, heads, width) contiguous; log_sum (rows, heads, positions): log of each query's sum of
// exponentials, which the backward pass needs
void intone_attention_forward(const float* q, const float* k, const float* v, const int32_t* first, float* out, float* log_sum,
                              const Shape* shape, float scale, int threads) {
    const Shape s = *shape;
    const int64_t positions = s.positions, width = s.width, group = s.heads / s.kv_heads;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> keys(positions * width), values(width * positions), queries(width * QUERIES);
        std::vector<float> scores(KEYS * QUERIES), sums(width * QUERIES), rows(QUERIES * width);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < s.rows; b++)
            for (int64_t g = 0; g < s.kv_heads; g++) {
                const int64_t at = b * s.kv_row + g * width;
                copy_rows(k + at, s.kv_position, positions, width, keys.data());
                transpose(v + at, s.kv_position, positions, width, values.data(), positions);
                for (int64_t h = g * group; h < (g + 1) * group; h++)
                    for (int begin = 0; begin < positions; begin += QUERIES) {
                        const Block block = block_at(begin, (int)positions, first + b * positions);
                        transpose(q + b * s.q_row + begin * s.q_position + h * width, s.q_position, block.count, width, queries.data(),
                                  QUERIES);
                        __m256 top[COLUMNS], total[COLUMNS];
                        for (int j = 0; j < COLUMNS; j++) top[j] = all(-1e30f), total[j] = all(0.0f);
                        for (int done = 0; done < block.keys; done += KEYS) {
                            const int from = block.first_key + done, count = std::min(KEYS, block.keys - done);
                            const bool open = from >= block.open_from && from + count <= block.open_until;
                            product(count, QUERIES, width, keys.data() + from * width, width, queries.data(), QUERIES, scores.data(),
                                    QUERIES, false);
                            for (int j = 0; j < COLUMNS; j++) {
                                float* column = scores.data() + LANES * j;
                                __m256 peak = top[j];
                                for (int t = 0; t < count; t++) {
                                    __m256 x = _mm256_mul_ps(load(column + t * QUERIES), all(scale));
                                    if (!open) x = _mm256_blendv_ps(x, all(-INFINITY), hidden(block, j, from + t));
                                    store(column + t * QUERIES, x);
                                    peak = _mm256_max_ps(peak, x);
                                }
                                if (_mm256_movemask_ps(_mm256_cmp_ps(peak, top[j], _CMP_NEQ_OQ)) && done) {
                                    const __m256 shrink = exp_ps(_mm256_sub_ps(top[j], peak));
                                    total[j] = _mm256_mul_ps(total[j], shrink);
                                    for (int64_t c = 0; c < width; c++) {
                                        float* sum = sums.data() + c * QUERIES + LANES * j;
                                        store(sum, _mm256_mul_ps(load(sum), shrink));
                                    }
                                }
                                top[j] = peak;
                                for (int t = 0; t < count; t++) {
                                    const __m256 x = load(column + t * QUERIES);
                                    __m256 weight = exp_ps(_mm256_sub_ps(x, peak));
                                    if (!open) weight = _mm256_and_ps(weight, _mm256_cmp_ps(x, all(-1e30f), _CMP_GT_OQ));
                                    total[j] = _mm256_add_ps(total[j], weight);
                                    store(column + t * QUERIES, weight);
                                }
                            }
                            product(width, QUERIES, count, values.data() + from, positions, scores.data(), QUERIES, sums.data(), QUERIES,
                                    done > 0);
                        }
                        float share[QUERIES], logs[QUERIES], peaks[QUERIES];
                        for (int j = 0; j < COLUMNS; j++) {
                            store(share + LANES * j, _mm256_div_ps(all(1.0f), total[j]));
                            store(logs + LANES * j, total[j]);
                            store(peaks + LANES * j, top[j]);
                        }
                        transpose(sums.data(), QUERIES, width, QUERIES, rows.data(), width);
                        for (int i = 0; i < block.count; i++) {
                            log_sum[(b * s.heads + h) * positions + begin + i] = peaks[i] + std::log(logs[i]);
                            float* target = out + ((b * positions + begin + i) * s.heads + h) * width;
                            for (int64_t c = 0; c < width; c += LANES)
                                store(target + c, _mm256_mul_ps(load(rows.data() + i * width + c), all(share[i])));
                        }
                    }
            }
    }
}

// dq (rows, positions, heads, width), dk and dv (rows, positions, kv_heads, width) share their strides; o and d_out are
// contiguous like out above
void intone_attention_backward(const float* q, const float* k, const float* v, const int32_t* first, const float* o,
                               const float* d_out, const float* log_sum, float* dq, float* dk, float* dv, const Shape* shape,
                               float scale, int threads) {
    const Shape s = *shape;
    const int64_t positions = s.positions, width = s.width, group = s.heads / s.kv_heads, o_position = s.heads * width;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> keys(positions * width), values(positions * width), key_columns(width * positions);
        std::vector<float> queries(width * QUERIES), outs(width * QUERIES), rows(QUERIES * width);
        std::vector<float> shares(KEYS * QUERIES), slopes(KEYS * QUERIES), sums(width * QUERIES);
        std::vector<float> key_sums(positions * width), value_sums(positions * width);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < s.rows; b++)
            for (int64_t g = 0; g < s.kv_heads; g++) {
                const int64_t at = b * s.kv_row + g * width;
                copy_rows(k + at, s.kv_position, positions, width, keys.data());
                copy_rows(v + at, s.kv_position, positions, width, values.data());
                transpose(k + at, s.kv_position, positions, width, key_columns.data(), positions);
                std::fill(key_sums.begin(), key_sums.end(), 0.0f);
                std::fill(value_sums.begin(), value_sums.end(), 0.0f);
                for (int64_t h = g * group; h < (g + 1) * group; h++)
                    for (int begin = 0; begin < positions; begin += QUERIES) {
                        const Block block = block_at(begin, (int)positions, first + b * positions);
                        const float* q_at = q + b * s.q_row + begin * s.q_position + h * width;
                        const float *o_at = o + ((b * positions + begin) * s.heads + h) * width, *d_at = d_out + (o_at - o);
                        transpose(q_at, s.q_position, block.count, width, queries.data(), QUERIES);
                        transpose(d_at, o_position, block.count, width, outs.data(), QUERIES);
                        float logs[QUERIES], mean[QUERIES];
                        for (int i = 0; i < QUERIES; i++) {
                            logs[i] = mean[i] = 0;
                            if (i >= block.count) continue;
                            logs[i] = log_sum[(b * s.heads + h) * positions + begin + i];
                            __m256 sum = all(0.0f);
                            for (int64_t c = 0; c < width; c += LANES)
                                sum = _mm256_fmadd_ps(load(o_at + i * o_position + c), load(d_at + i * o_position + c), sum);
                            mean[i] = sum_of(sum);
                        }
                        for (int done = 0; done < block.keys; done += KEYS) {
                            const int from = block.first_key + done, count = std::min(KEYS, block.keys - done);
                            const bool open = from >= block.open_from && from + count <= block.open_until;
                            product(count, QUERIES, width, keys.data() + from * width, width, queries.data(), QUERIES, shares.data(),
                                    QUERIES, false);
                            product(count, QUERIES, width, values.data() + from * width, width, outs.data(), QUERIES, slopes.data(),
                                    QUERIES, false);
                            for (int t = 0; t < count; t++)
                                for (int j = 0; j < COLUMNS; j++) {
                                    const int cell = t * QUERIES + LANES * j;
                                    const __m256 x = _mm256_fmsub_ps(load(shares.data() + cell), all(scale), load(logs + LANES * j));
                                    __m256 share = exp_ps(_mm256_min_ps(x, all(1.0f)));
                                    if (!open) share = _mm256_andnot_ps(hidden(block, j, from + t), share);
                                    const __m256 change = _mm256_sub_ps(load(slopes.data() + cell), load(mean + LANES * j));
                                    store(shares.data() + cell, share);
                                    store(slopes.data() + cell, _mm256_mul_ps(_mm256_mul_ps(share, change), all(scale)));
                                }
                            product(count, width, block.count, shares.data(), QUERIES, d_at, o_position,
                                    value_sums.data() + from * width, width, true);
                            product(count, width, block.count, slopes.data(), QUERIES, q_at, s.q_position,
                                    key_sums.data() + from * width, width, true);
                            product(width, QUERIES, count, key_columns.data() + from, positions, slopes.data(), QUERIES, sums.data(),
                                    QUERIES, done > 0);
                        }
                        transpose(sums.data(), QUERIES, width, QUERIES, rows.data(), width);
                        for (int i = 0; i < block.count; i++)
                            std::memcpy(dq + b * s.d_row + (begin + i) * s.d_position + h * width, rows.data() + i * width,
                                        width * sizeof(float));
                    }
                for (int64_t t = 0; t < positions; t++) {
                    const int64_t to = b * s.d_row + t * s.d_position + g * width;
                    std::memcpy(dk + to, key_sums.data() + t * width, width * sizeof(float));
                    std::memcpy(dv + to, value_sums.data() + t * width, width * sizeof(float));
                }
            }
    }
}

}  // extern "C"
