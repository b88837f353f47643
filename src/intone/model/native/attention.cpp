// Causal attention over packed rows, forward and backward, in bfloat16 with float32 sums.
//
// Query i sees keys first[i]..i of its row: a window and the start of its document in one number, which never falls
// along a row. Work goes in blocks of QUERIES queries that stand side by side in the lanes, so that maxima and sums of
// the softmax need no sums across lanes; keys outside of a block's range are never touched. One task is one row and one
// key head.
#include "attention.h"
#include "common.h"

#include <cmath>

namespace {

constexpr int QUERIES = 32;  // in a block: two registers
constexpr int KEYS = 128;    // keys at a time: scores of a block fill 16 KiB

// pairs along the channels, transposed: out[c][i] = channels 2c and 2c + 1 of query i; missing queries are zero
void lay_channels(const bf16* const* rows, int count, int width, uint32_t* out) {
    for (int i = 0; i < QUERIES; i++)
        for (int c = 0; c < width / 2; c++) {
            uint32_t pair = 0;
            if (i < count) std::memcpy(&pair, rows[i] + 2 * c, 4);
            out[c * QUERIES + i] = pair;
        }
}

// pairs along the queries: out[p][c] = channel c of queries 2p and 2p + 1
void lay_queries(const bf16* const* rows, int count, int width, uint32_t* out) {
    for (int p = 0; p < QUERIES / 2; p++)
        for (int c = 0; c < width; c++) {
            uint32_t low = 2 * p < count ? rows[2 * p][c] : 0;
            uint32_t high = 2 * p + 1 < count ? rows[2 * p + 1][c] : 0;
            out[p * width + c] = low | high << 16;
        }
}

// rows of x side by side as columns: out (width, length) with out[c][t] = x[t][c], zero from count on
void transpose(const bf16* x, int64_t stride, int count, int width, bf16* out, int length) {
    for (int t0 = 0; t0 < length; t0 += LANES)
        for (int c = 0; c < width; c++)
            for (int t = t0; t < std::min(t0 + LANES, length); t++) out[(size_t)c * length + t] = t < count ? x[t * stride + c] : 0;
}

void copy_rows(const bf16* x, int64_t stride, int count, int width, bf16* out, int length) {
    for (int t = 0; t < count; t++) std::memcpy(out + (size_t)t * width, x + t * stride, width * sizeof(bf16));
    std::memset(out + (size_t)count * width, 0, (size_t)(length - count) * width * sizeof(bf16));
}

// two rows of QUERIES floats -> one row of pairs
inline void interleave(const __m512* even, const __m512* odd, uint32_t* out) {
    for (int j = 0; j < QUERIES / LANES; j++) {
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even[j]));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd[j]));
        _mm512_storeu_si512(out + LANES * j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

struct Block {
    int begin, count;     // of the wanted queries
    int first_key, keys;  // keys some query sees; first_key is even
    __m512i query[2], first[2];
};

Block block_at(const Wanted& wanted, int begin) {
    Block block;
    block.begin = begin;
    block.count = std::min(QUERIES, wanted.count - begin);
    int32_t query[QUERIES], low[QUERIES];
    const int lowest = wanted.first_of(begin), last = wanted.at(begin + block.count - 1);
    for (int i = 0; i < QUERIES; i++) {
        bool there = i < block.count;
        query[i] = there ? wanted.at(begin + i) : -1;  // a missing query sees nothing
        low[i] = there ? wanted.first_of(begin + i) : last + 1;
    }
    block.first_key = lowest & ~1;
    block.keys = last + 1 - block.first_key;
    for (int j = 0; j < 2; j++) {
        block.query[j] = _mm512_loadu_si512(query + LANES * j);
        block.first[j] = _mm512_loadu_si512(low + LANES * j);
    }
    return block;
}

inline __mmask16 sees(const Block& block, int j, int key) {
    __m512i at = _mm512_set1_epi32(key);
    return _mm512_cmple_epi32_mask(at, block.query[j]) & _mm512_cmpge_epi32_mask(at, block.first[j]);
}

}  // namespace

extern "C" {

// taken: positions of the wanted queries, ascending in each row, row after row; those of row b are starts[b] to before
// starts[b + 1]. starts null: all. out (wanted queries, heads, width) contiguous; log_sum (wanted queries, heads) float32:
// log of each query's sum of exponentials, which the backward pass needs
void intone_attention_forward(const bf16* q, const bf16* k, const bf16* v, const int32_t* first, const int32_t* taken,
                              const int64_t* starts, bf16* out, float* log_sum, const Shape* shape, float scale, int threads) {
    const Shape s = *shape;
    const int length = (int)(s.positions + 15) / 16 * 16, width = (int)s.width, group = (int)(s.heads / s.kv_heads);
#pragma omp parallel num_threads(threads)
    {
        std::vector<bf16> keys((size_t)(length + 16) * width), values((size_t)width * length);
        std::vector<uint32_t> queries(QUERIES * width / 2), weights(KEYS / 2 * QUERIES);
        std::vector<float> scores(KEYS * QUERIES), sums((size_t)width * QUERIES);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < s.rows; b++)
            for (int64_t g = 0; g < s.kv_heads; g++) {
                const Wanted wanted = wanted_of(b, s, first, taken, starts);
                const int64_t at = b * s.kv_row + g * width;
                copy_rows(k + at, s.kv_position, (int)s.positions, width, keys.data(), length + 16);
                transpose(v + at, s.kv_position, (int)s.positions, width, values.data(), length);
                for (int64_t h = g * group; h < (g + 1) * group; h++)
                    for (int begin = 0; begin < wanted.count; begin += QUERIES) {
                        const Block block = block_at(wanted, begin);
                        const bf16* q_rows[QUERIES];
                        for (int i = 0; i < block.count; i++)
                            q_rows[i] = q + b * s.q_row + wanted.at(begin + i) * s.q_position + h * width;
                        lay_channels(q_rows, block.count, width, queries.data());
                        __m512 top[2], total[2];
                        for (int j = 0; j < 2; j++) top[j] = _mm512_set1_ps(-1e30f), total[j] = _mm512_setzero_ps();
                        std::memset(sums.data(), 0, sums.size() * sizeof(float));
                        for (int done = 0; done < block.keys; done += KEYS) {
                            const int from = block.first_key + done;
                            const int count = (std::min(KEYS, block.keys - done) + 1) & ~1;
                            product(count, QUERIES, width / 2, keys.data() + (size_t)from * width, width, queries.data(),
                                    QUERIES, scores.data(), QUERIES, false);
                            __m512 peak[2] = {top[0], top[1]};
                            for (int t = 0; t < count; t++)
                                for (int j = 0; j < 2; j++) {
                                    float* at_score = scores.data() + t * QUERIES + LANES * j;
                                    __m512 x = _mm512_mul_ps(_mm512_loadu_ps(at_score), _mm512_set1_ps(scale));
                                    x = _mm512_mask_blend_ps(sees(block, j, from + t), _mm512_set1_ps(-INFINITY), x);
                                    _mm512_storeu_ps(at_score, x);
                                    peak[j] = _mm512_max_ps(peak[j], x);
                                }
                            for (int j = 0; j < 2; j++) {
                                if (_mm512_cmp_ps_mask(peak[j], top[j], _CMP_NEQ_OQ) == 0) continue;
                                const __m512 shrink = exp_ps(_mm512_sub_ps(top[j], peak[j]));
                                total[j] = _mm512_mul_ps(total[j], shrink);
                                if (done)
                                    for (int c = 0; c < width; c++) {
                                        float* sum = sums.data() + c * QUERIES + LANES * j;
                                        _mm512_storeu_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(sum), shrink));
                                    }
                                top[j] = peak[j];
                            }
                            for (int t = 0; t < count; t += 2) {
                                __m512 weight[2][2];
                                for (int i = 0; i < 2; i++)
                                    for (int j = 0; j < 2; j++) {
                                        __m512 x = _mm512_loadu_ps(scores.data() + (t + i) * QUERIES + LANES * j);
                                        __mmask16 seen = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-1e30f), _CMP_GT_OQ);
                                        weight[i][j] = _mm512_maskz_mov_ps(seen, exp_ps(_mm512_sub_ps(x, top[j])));
                                        total[j] = _mm512_add_ps(total[j], weight[i][j]);
                                    }
                                interleave(weight[0], weight[1], weights.data() + t / 2 * QUERIES);
                            }
                            product(width, QUERIES, count / 2, values.data() + from, length, weights.data(), QUERIES,
                                    sums.data(), QUERIES, true);
                        }
                        float share[QUERIES], logs[QUERIES], peaks[QUERIES];
                        for (int j = 0; j < 2; j++) {
                            _mm512_storeu_ps(share + LANES * j, _mm512_div_ps(_mm512_set1_ps(1.0f), total[j]));
                            _mm512_storeu_ps(logs + LANES * j, total[j]);
                            _mm512_storeu_ps(peaks + LANES * j, top[j]);
                        }
                        for (int i = 0; i < block.count; i++) {
                            const int64_t place = (wanted.begin + begin + i) * s.heads + h;
                            log_sum[place] = peaks[i] + std::log(logs[i]);
                            bf16* target = out + place * width;
                            const __m512i step = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                                                    _mm512_set1_epi32(QUERIES));
                            for (int c = 0; c < width; c += LANES) {
                                __m512 x = _mm512_i32gather_ps(step, sums.data() + c * QUERIES + i, 4);
                                store_bf16(target + c, _mm512_mul_ps(x, _mm512_set1_ps(share[i])));
                            }
                        }
                    }
            }
    }
}

// dq (rows, positions, heads, width), dk and dv (rows, positions, kv_heads, width) share their strides; o and d_out are
// as out above. Queries that are not wanted have the gradient zero
void intone_attention_backward(const bf16* q, const bf16* k, const bf16* v, const int32_t* first, const int32_t* taken,
                               const int64_t* starts, const bf16* o, const bf16* d_out, const float* log_sum, bf16* dq, bf16* dk,
                               bf16* dv, const Shape* shape, float scale, int threads) {
    const Shape s = *shape;
    const int length = (int)(s.positions + 15) / 16 * 16, width = (int)s.width, group = (int)(s.heads / s.kv_heads);
    const int64_t o_position = s.heads * width;
#pragma omp parallel num_threads(threads)
    {
        std::vector<bf16> keys((size_t)(length + 16) * width), values((size_t)(length + 16) * width);
        std::vector<bf16> key_columns((size_t)width * length), share(KEYS * QUERIES), slope(KEYS * QUERIES);
        std::vector<uint32_t> queries(QUERIES * width / 2), queries_paired(QUERIES / 2 * width);
        std::vector<uint32_t> outs(QUERIES * width / 2), outs_paired(QUERIES / 2 * width), slopes(KEYS / 2 * QUERIES);
        std::vector<float> scores(KEYS * QUERIES), d_scores(KEYS * QUERIES), sums((size_t)width * QUERIES);
        std::vector<float> key_sums((size_t)(length + 16) * width), value_sums((size_t)(length + 16) * width);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < s.rows; b++)
            for (int64_t g = 0; g < s.kv_heads; g++) {
                const Wanted wanted = wanted_of(b, s, first, taken, starts);
                const int64_t at = b * s.kv_row + g * width;
                copy_rows(k + at, s.kv_position, (int)s.positions, width, keys.data(), length + 16);
                copy_rows(v + at, s.kv_position, (int)s.positions, width, values.data(), length + 16);
                transpose(k + at, s.kv_position, (int)s.positions, width, key_columns.data(), length);
                std::memset(key_sums.data(), 0, key_sums.size() * sizeof(float));
                std::memset(value_sums.data(), 0, value_sums.size() * sizeof(float));
                for (int64_t h = g * group; h < (g + 1) * group; h++)
                    for (int begin = 0; begin < wanted.count; begin += QUERIES) {
                        const Block block = block_at(wanted, begin);
                        const int64_t place = (wanted.begin + begin) * s.heads + h, o_at = place * width;
                        const bf16 *q_rows[QUERIES], *d_rows[QUERIES];
                        for (int i = 0; i < block.count; i++) {
                            q_rows[i] = q + b * s.q_row + wanted.at(begin + i) * s.q_position + h * width;
                            d_rows[i] = d_out + o_at + i * o_position;
                        }
                        lay_channels(q_rows, block.count, width, queries.data());
                        lay_queries(q_rows, block.count, width, queries_paired.data());
                        lay_channels(d_rows, block.count, width, outs.data());
                        lay_queries(d_rows, block.count, width, outs_paired.data());
                        float logs[QUERIES], mean[QUERIES];
                        for (int i = 0; i < QUERIES; i++) {
                            logs[i] = mean[i] = 0;
                            if (i >= block.count) continue;
                            logs[i] = log_sum[place + i * s.heads];
                            __m512 sum = _mm512_setzero_ps();
                            for (int c = 0; c < width; c += LANES)
                                sum = _mm512_fmadd_ps(load_bf16(o + o_at + i * o_position + c),
                                                      load_bf16(d_out + o_at + i * o_position + c), sum);
                            mean[i] = _mm512_reduce_add_ps(sum);
                        }
                        std::memset(sums.data(), 0, sums.size() * sizeof(float));
                        for (int done = 0; done < block.keys; done += KEYS) {
                            const int from = block.first_key + done;
                            const int count = (std::min(KEYS, block.keys - done) + 1) & ~1;
                            product(count, QUERIES, width / 2, keys.data() + (size_t)from * width, width, queries.data(),
                                    QUERIES, scores.data(), QUERIES, false);
                            product(count, QUERIES, width / 2, values.data() + (size_t)from * width, width, outs.data(),
                                    QUERIES, d_scores.data(), QUERIES, false);
                            for (int t = 0; t < count; t += 2) {
                                __m512 d[2][2];
                                for (int i = 0; i < 2; i++)
                                    for (int j = 0; j < 2; j++) {
                                        const int cell = (t + i) * QUERIES + LANES * j;
                                        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores.data() + cell), _mm512_set1_ps(scale),
                                                                   _mm512_loadu_ps(logs + LANES * j));
                                        __m512 p = _mm512_maskz_mov_ps(sees(block, j, from + t + i),
                                                                       exp_ps(_mm512_min_ps(x, _mm512_set1_ps(1.0f))));
                                        store_bf16(share.data() + cell, p);
                                        __m512 change = _mm512_sub_ps(_mm512_loadu_ps(d_scores.data() + cell),
                                                                      _mm512_loadu_ps(mean + LANES * j));
                                        d[i][j] = _mm512_mul_ps(_mm512_mul_ps(p, change), _mm512_set1_ps(scale));
                                        store_bf16(slope.data() + cell, d[i][j]);
                                    }
                                interleave(d[0], d[1], slopes.data() + t / 2 * QUERIES);
                            }
                            product(count, width, QUERIES / 2, share.data(), QUERIES, outs_paired.data(), width,
                                    value_sums.data() + (size_t)from * width, width, true);
                            product(count, width, QUERIES / 2, slope.data(), QUERIES, queries_paired.data(), width,
                                    key_sums.data() + (size_t)from * width, width, true);
                            product(width, QUERIES, count / 2, key_columns.data() + from, length, slopes.data(), QUERIES,
                                    sums.data(), QUERIES, true);
                        }
                        const __m512i step = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                                                _mm512_set1_epi32(QUERIES));
                        for (int i = 0; i < block.count; i++)
                            for (int c = 0; c < width; c += LANES)
                                store_bf16(dq + b * s.d_row + wanted.at(begin + i) * s.d_position + h * width + c,
                                           _mm512_i32gather_ps(step, sums.data() + c * QUERIES + i, 4));
                    }
                clear_others(wanted, s.positions, dq + b * s.d_row + g * group * width, s.d_position, (int64_t)group * width);
                for (int64_t t = 0; t < s.positions; t++)
                    for (int c = 0; c < width; c += LANES) {
                        const int64_t to = b * s.d_row + t * s.d_position + g * width + c;
                        store_bf16(dk + to, _mm512_loadu_ps(key_sums.data() + t * width + c));
                        store_bf16(dv + to, _mm512_loadu_ps(value_sums.data() + t * width + c));
                    }
            }
    }
}

}  // extern "C"
