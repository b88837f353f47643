// Causal attention over packed rows, forward and backward, in float32.
//
// Query i sees keys first[i]..i of its row: a window and the start of its document in one number, which never falls
// along a row. PANEL queries stand side by side in the lanes, so that maxima and sums of the softmax need no sums across
// lanes; they begin anew where a document does, and keys outside of a panel's range are never touched. One task is one
// row and one key head. Exponents are of base 2.
#include "attention_avx2.h"

#include <cmath>

namespace {

constexpr int KEYS = 128;              // at a time in the forward pass: scores of a panel fill 8 KiB
constexpr int QUERIES = 64;            // of a block in the backward pass
constexpr int BLOCK_KEYS = 96;         // at a time there, a multiple of ROWS
// from one key's scores to the next: without the added panel all keys' scores would share few places of the cache
constexpr int LINE = QUERIES + PANEL;

struct Softmax {
    __m256 top[2], total[2];  // the highest score so far, and the sum of weights
    __m256 shrink[2];         // by what weights of before have to be multiplied since the latest call

    Softmax() {
        for (int j = 0; j < 2; j++) top[j] = all(-1e30f), total[j] = all(0.0f);
    }
    // scores (count, 16) of keys from from on become their weights
    void weigh(const Panel& panel, int from, int count, float* scores) {
        const int open = limited(panel.open_from - from, 0, count), closed = limited(panel.open_until - from, open, count);
        const auto hide = [&](int begin, int end) {
            for (int t = begin; t < end; t++)
                for (int j = 0; j < 2; j++) {
                    float* x = scores + t * PANEL + LANES * j;
                    _mm256_store_ps(x, _mm256_blendv_ps(_mm256_load_ps(x), all(-INFINITY), panel.hidden(j, from + t)));
                }
        };
        hide(0, open);
        hide(closed, count);
        __m256 low = top[0], high = top[1];
        for (int t = 0; t < count; t++) {
            low = _mm256_max_ps(low, _mm256_load_ps(scores + t * PANEL));
            high = _mm256_max_ps(high, _mm256_load_ps(scores + t * PANEL + LANES));
        }
        shrink[0] = exp2_ps(_mm256_sub_ps(top[0], low));
        shrink[1] = exp2_ps(_mm256_sub_ps(top[1], high));
        __m256 sum = _mm256_mul_ps(total[0], shrink[0]), high_sum = _mm256_mul_ps(total[1], shrink[1]);
        for (int t = 0; t < count; t++) {
            float* x = scores + t * PANEL;
            const __m256 a = exp2_ps(_mm256_sub_ps(_mm256_load_ps(x), low));
            const __m256 b = exp2_ps(_mm256_sub_ps(_mm256_load_ps(x + LANES), high));
            sum = _mm256_add_ps(sum, a);
            high_sum = _mm256_add_ps(high_sum, b);
            _mm256_store_ps(x, a);
            _mm256_store_ps(x + LANES, b);
        }
        top[0] = low, top[1] = high, total[0] = sum, total[1] = high_sum;
    }
};

// what a thread has to compute the forward pass of a row and key head
struct Forward {
    static constexpr int64_t fixed = KEYS * PANEL;
    float *keys, *values;      // (positions, width); (width / 16, positions, 16)
    float *queries, *columns;  // of a panel: (width / 16, 16, 16), times scale and log2 e, and turned
    float *scores, *sums;      // (KEYS, 16), (16, width)
    int64_t positions, width;
    Ahead ahead;

    Forward(Kept& kept, const Shape& s) : positions(s.positions), width(s.width), ahead(s.width) {
        keys = kept.of((2 * positions + 3 * PANEL) * width + fixed);
        values = keys + positions * width;
        queries = values + positions * width;
        columns = queries + PANEL * width;
        sums = columns + PANEL * width;
        scores = sums + PANEL * width;
    }

    // of positions [begin, end); k and v of the row's first one
    void copy_keys(const float* k, const float* v, int64_t stride, int begin, int end) {
        if (end <= begin) return;
        copy_rows(k + begin * stride, stride, end - begin, width, keys + begin * width);
        copy_panels([&](int i) { return v + (begin + i) * stride; }, end - begin, width, 1.0f, values + begin * PANEL, positions);
    }

    // sums = weights of the panel's queries, from begin on, times their values
    Softmax panel(const Wanted& wanted, int begin, const Panel& panel) {
        Softmax softmax;
        turn(queries, PANEL, width, columns);
        ahead.begin((panel.until - panel.from) / ROWS + 3 * (int)(width / PANEL));
        for (int from = panel.from; from < panel.until; from += KEYS) {
            const int count = std::min(KEYS, panel.until - from);
            const bool more = from > panel.from;
            for (int t = 0, n; t < count; t += n) {
                n = tile_rows(count - t);
                tile_of<1>(n, keys + (from + t) * width, width, columns, scores + t * PANEL, PANEL, width, false);
                ahead.some();
            }
            softmax.weigh(panel, from, count, scores);
            if (more) {
                alignas(32) float shrink[PANEL];
                for (int j = 0; j < 2; j++) _mm256_store_ps(shrink + LANES * j, softmax.shrink[j]);
                for (int i = 0; i < panel.count; i++)
                    if (shrink[i] != 1)
                        for (float* x = sums + i * width; x < sums + (i + 1) * width; x += LANES)
                            _mm256_store_ps(x, _mm256_mul_ps(_mm256_load_ps(x), all(shrink[i])));
            }
            for (int64_t c = 0; c < width; c += PANEL)
                for (int i = 0, n; i < panel.count; i += n) {
                    n = tile_rows(panel.count - i);
                    const int low = limited(wanted.first_of(begin + i) - from, 0, count);
                    const int high = limited(wanted.at(begin + i + n - 1) + 1 - from, low, count);
                    tile_of<PANEL>(n, scores + low * PANEL + i, 0, values + c * positions + (from + low) * PANEL,
                                   sums + i * width + c, width, high - low, more);
                    ahead.some();
                }
        }
        ahead.end();
        return softmax;
    }
};

// what a thread has to compute the backward pass of a row and key head
struct Backward {
    static constexpr int64_t fixed = 2 * BLOCK_KEYS * LINE;
    float *keys, *values, *key_panels;    // (positions, width) twice; (width / 16, positions, 16), times scale and log2 e
    float *queries, *outs;                // of a block: (width / 16, QUERIES, 16), queries times scale and log2 e
    float *query_columns, *out_columns;   // of each of its panels: (QUERIES / 16, width, 16)
    float *sums, *shares, *slopes;        // (QUERIES, width), (BLOCK_KEYS, LINE)
    float logs[QUERIES], means[QUERIES];  // log2 of the sum of exponentials, mean of the slopes
    Panel panels[QUERIES / PANEL];
    int low[QUERIES / PANEL], high[QUERIES / PANEL];  // keys of a chunk that are computed
    bool begun[QUERIES / PANEL];
    int64_t positions, width;
    Ahead ahead;

    Backward(Kept& kept, const Shape& s) : positions(s.positions), width(s.width), ahead(s.width) {
        keys = kept.of((3 * positions + 5 * QUERIES) * width + fixed);
        values = keys + positions * width;
        key_panels = values + positions * width;
        queries = key_panels + positions * width;
        outs = queries + QUERIES * width;
        query_columns = outs + QUERIES * width;
        out_columns = query_columns + QUERIES * width;
        sums = out_columns + QUERIES * width;
        shares = sums + QUERIES * width;
        slopes = shares + BLOCK_KEYS * LINE;
    }

    // of positions [begin, end); k and v of the row's first one
    void copy_keys(const float* k, const float* v, int64_t stride, int begin, int end, float scale) {
        if (end <= begin) return;
        copy_rows(k + begin * stride, stride, end - begin, width, keys + begin * width);
        copy_rows(v + begin * stride, stride, end - begin, width, values + begin * width);
        copy_panels([&](int i) { return keys + (begin + i) * width; }, end - begin, width, scale * LOG2_E,
                    key_panels + begin * PANEL, positions);
    }

    // q of the row's first position; o, d_out and log_sum of the block's first query
    void load_block(const Wanted& wanted, int begin, int count, const float* q, int64_t q_position, const float* o,
                    const float* d_out, const float* log_sum, int64_t heads, float scale) {
        const auto query = [&](int i) { return q + wanted.at(begin + i) * q_position; };
        copy_panels(query, count, width, scale * LOG2_E, queries, QUERIES);
        copy_panels([&](int i) { return d_out + i * heads * width; }, count, width, 1.0f, outs, QUERIES);
        for (int i = 0, p = 0; i < count; i += PANEL, p++) {
            panels[p] = Panel(wanted, begin + i, std::min<int>(PANEL, count - i));
            begun[p] = false;
            turn(queries + i * PANEL, QUERIES, width, query_columns + i * width);
            turn(outs + i * PANEL, QUERIES, width, out_columns + i * width);
        }
        for (int i = 0; i < (count + PANEL - 1) / PANEL * PANEL; i++) {
            logs[i] = means[i] = 0;
            if (i >= count) continue;
            logs[i] = log_sum[i * heads];
            __m256 sum = all(0.0f);
            for (int64_t c = i * heads * width; c < (i * heads + 1) * width; c += LANES)
                sum = _mm256_fmadd_ps(load(o + c), load(d_out + c), sum);
            means[i] = sum_of(sum);
        }
    }

    // shares and slopes of keys [begin, end) of the chunk that begins at from
    template <bool MASKED>
    void weigh(int p, int from, int begin, int end) {
        for (int t = begin; t < end; t++)
            for (int j = 0; j < 2; j++) {
                const int lane = p * PANEL + LANES * j, cell = t * LINE + lane;
                __m256 share = exp2_ps(_mm256_sub_ps(_mm256_load_ps(shares + cell), load(logs + lane)));
                if (MASKED) share = _mm256_andnot_ps(panels[p].hidden(j, from + t), share);
                const __m256 change = _mm256_sub_ps(_mm256_load_ps(slopes + cell), load(means + lane));
                _mm256_store_ps(shares + cell, share);
                _mm256_store_ps(slopes + cell, _mm256_mul_ps(_mm256_mul_ps(share, all(1 / LOG2_E)), change));
            }
    }

    // a panel's part of a chunk of keys: shares, slopes and what they add to the gradient of its queries
    void panel(const Wanted& wanted, int begin, int p, int from, int count) {
        const Panel& panel = panels[p];
        // whole tiles of ROWS keys, counted from the chunk's first: the sums over queries read them so
        low[p] = limited(panel.from - from, 0, count) / ROWS * ROWS;
        high[p] = std::min((limited(panel.until - from, 0, count) + ROWS - 1) / ROWS * ROWS, count);
        if (panel.from >= from + count || low[p] >= high[p]) {
            low[p] = high[p] = 0;
            return;
        }
        for (int t = low[p], n; t < high[p]; t += n) {
            n = tile_rows(high[p] - t);
            const int64_t at = (from + t) * width, cell = t * LINE + p * PANEL;
            tile_of<1>(n, keys + at, width, query_columns + p * PANEL * width, shares + cell, LINE, width, false);
            tile_of<1>(n, values + at, width, out_columns + p * PANEL * width, slopes + cell, LINE, width, false);
            ahead.some();
        }
        const int open = limited(panel.open_from - from, low[p], high[p]);
        const int closed = limited(panel.open_until - from, open, high[p]);
        weigh<true>(p, from, low[p], open);
        weigh<false>(p, from, open, closed);
        weigh<true>(p, from, closed, high[p]);
        for (int64_t c = 0; c < width; c += PANEL)
            for (int i = 0, n; i < panel.count; i += n) {
                n = tile_rows(panel.count - i);
                const int at = p * PANEL + i;
                const int lowest = limited(wanted.first_of(begin + at) - from, low[p], high[p]);
                const int highest = limited(wanted.at(begin + at + n - 1) + 1 - from, lowest, high[p]);
                tile_of<LINE>(n, slopes + lowest * LINE + at, 0, key_panels + c * positions + (from + lowest) * PANEL,
                              sums + at * width + c, width, highest - lowest, begun[p]);
                ahead.some();
            }
        begun[p] = true;
    }

    // a chunk of keys for a block of queries; dk and dv are of the chunk's first key, add: to what they hold
    void chunk(const Wanted& wanted, int begin, int num_queries, int from, int count, float* dk, float* dv, int64_t stride,
               bool add) {
        const int num_panels = (num_queries + PANEL - 1) / PANEL;
        for (int p = 0; p < num_panels; p++) panel(wanted, begin, p, from, count);
        for (const bool is_key : {false, true})
            for (int t = 0; t < count; t += ROWS) {
                const int n = std::min(ROWS, count - t);
                int p = 0, last = 0;  // the panels that hold something of these keys, then the queries that see some
                while (p < num_panels && !(low[p] <= t && t < high[p])) p++;
                for (last = p; last < num_panels && low[last] <= t && t < high[last];) last++;
                int i = p * PANEL, end = std::min<int>(num_queries, last * PANEL);
                while (i < end && wanted.at(begin + i) < from + t) i++;
                while (i < end && wanted.first_of(begin + end - 1) > from + t + n - 1) end--;
                ahead.some();
                if (i >= end) {
                    if (add) continue;
                    i = end = 0;  // nobody sees them: zeros
                }
                const float* weights = (is_key ? slopes : shares) + t * LINE + i;
                const float* rows = (is_key ? queries : outs) + i * PANEL;
                float* to = (is_key ? dk : dv) + t * stride;
                for (int64_t c = 0; c < width; c += PANEL)
                    tile_of<1>(n, weights, LINE, rows + c * QUERIES, to + c, stride, end - i, add);
            }
    }
};

}  // namespace

extern "C" {

// taken: positions of the wanted queries, ascending in each row, row after row; those of row b are starts[b] to before
// starts[b + 1]. starts null: all. out (wanted queries, heads, width) contiguous; log_sum (wanted queries, heads): log2
// of each query's sum of exponentials, which the backward pass needs
void intone_attention_forward(const float* q, const float* k, const float* v, const int32_t* first, const int32_t* taken,
                              const int64_t* starts, float* out, float* log_sum, const Shape* shape, float scale, int threads) {
    const Shape s = *shape;
    const int64_t width = s.width, group = s.heads / s.kv_heads;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Kept kept;
        Forward work(kept, s);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < s.rows; b++)
            for (int64_t g = 0; g < s.kv_heads; g++) {
                const Wanted wanted = wanted_of(b, s, first, taken, starts);
                const float *k_row = k + b * s.kv_row + g * width, *v_row = v + (k_row - k);
                int copied = 0;
                for (int64_t h = g * group; h < (g + 1) * group; h++)
                    for (int begin = 0, count; begin < wanted.count; begin += count) {
                        count = together(wanted, begin, PANEL);
                        const Panel panel(wanted, begin, count);
                        const auto query = [&](int i) { return q + b * s.q_row + wanted.at(i) * s.q_position + h * width; };
                        const auto target = [&](int i) { return out + ((wanted.begin + i) * s.heads + h) * width; };
                        copy_panels([&](int i) { return query(begin + i); }, count, width, scale * LOG2_E, work.queries, PANEL);
                        work.copy_keys(k_row, v_row, s.kv_position, copied, panel.until);
                        copied = std::max(copied, panel.until);
                        for (int i = begin; i < begin + count; i++) work.ahead.add(target(i));
                        if (const int next = begin + count; next < wanted.count) {
                            const int more = together(wanted, next, PANEL);
                            for (int i = next; i < next + more; i++) work.ahead.add(query(i));
                            for (int t = copied; t <= wanted.at(next + more - 1); t++)
                                work.ahead.add(k_row + t * s.kv_position), work.ahead.add(v_row + t * s.kv_position);
                        }
                        const Softmax softmax = work.panel(wanted, begin, panel);
                        float totals[PANEL], tops[PANEL];
                        for (int j = 0; j < 2; j++) {
                            store(totals + LANES * j, softmax.total[j]);
                            store(tops + LANES * j, softmax.top[j]);
                        }
                        for (int i = 0; i < count; i++) {
                            log_sum[(wanted.begin + begin + i) * s.heads + h] = tops[i] + std::log2(totals[i]);
                            const __m256 share = all(1 / totals[i]);
                            const float* sum = work.sums + i * width;
                            float* to = target(begin + i);
                            for (int64_t c = 0; c < width; c += LANES)
                                store(to + c, _mm256_mul_ps(_mm256_load_ps(sum + c), share));
                        }
                    }
            }
    }
}

// dq (rows, positions, heads, width), dk and dv (rows, positions, kv_heads, width) share their strides; o and d_out are
// as out above. Queries that are not wanted have the gradient zero
void intone_attention_backward(const float* q, const float* k, const float* v, const int32_t* first, const int32_t* taken,
                               const int64_t* starts, const float* o, const float* d_out, const float* log_sum, float* dq,
                               float* dk, float* dv, const Shape* shape, float scale, int threads) {
    const Shape s = *shape;
    const int positions = (int)s.positions;
    const int64_t width = s.width, group = s.heads / s.kv_heads;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Kept kept;
        Backward work(kept, s);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < s.rows; b++)
            for (int64_t g = 0; g < s.kv_heads; g++) {
                const Wanted wanted = wanted_of(b, s, first, taken, starts);
                const float *k_row = k + b * s.kv_row + g * width, *v_row = v + (k_row - k);
                float *dq_row = dq + b * s.d_row, *dk_row = dk + b * s.d_row + g * width, *dv_row = dv + (dk_row - dk);
                int copied = 0;
                int written = 0;  // keys whose gradients hold something; those that no query saw are zero
                const auto clear_until = [&](int end) {
                    for (; written < end; written++)
                        for (float* row : {dk_row, dv_row}) std::memset(row + written * s.d_position, 0, width * sizeof(float));
                };
                for (int64_t h = g * group; h < (g + 1) * group; h++) {
                    for (int begin = 0, count; begin < wanted.count; begin += count) {
                        count = together(wanted, begin, QUERIES);
                        const int64_t place = (wanted.begin + begin) * s.heads + h;
                        work.load_block(wanted, begin, count, q + b * s.q_row + h * width, s.q_position, o + place * width,
                                        d_out + place * width, log_sum + place, s.heads, scale);
                        const int last = wanted.at(begin + count - 1) + 1;
                        work.copy_keys(k_row, v_row, s.kv_position, copied, last, scale);
                        copied = std::max(copied, last);
                        const auto target = [&](int i) { return dq_row + wanted.at(i) * s.d_position + h * width; };
                        for (int i = begin; i < begin + count; i++) work.ahead.add(target(i));
                        if (const int next = begin + count; next < wanted.count) {
                            const int more = together(wanted, next, QUERIES);
                            for (int i = 0; i < more; i++) {
                                work.ahead.add(q + b * s.q_row + wanted.at(next + i) * s.q_position + h * width);
                                work.ahead.add(o + place * width + (count + i) * s.heads * width);
                                work.ahead.add(d_out + place * width + (count + i) * s.heads * width);
                            }
                            for (int t = copied; t <= wanted.at(next + more - 1); t++)
                                work.ahead.add(k_row + t * s.kv_position), work.ahead.add(v_row + t * s.kv_position);
                        }
                        const int num_panels = (count + (int)PANEL - 1) / PANEL, num_tiles = (last - wanted.first_of(begin)) / ROWS;
                        work.ahead.begin(num_tiles * (num_panels + 2) + 3 * num_panels * (int)(width / PANEL));
                        clear_until(wanted.first_of(begin));
                        for (int from = wanted.first_of(begin), until; from < last; from = until) {
                            const bool add = from < written;
                            until = std::min(from + BLOCK_KEYS, add ? std::min(written, last) : last);
                            const int64_t to = from * s.d_position;
                            work.chunk(wanted, begin, count, from, until - from, dk_row + to, dv_row + to, s.d_position, add);
                        }
                        work.ahead.end();
                        written = std::max(written, last);
                        for (int i = 0; i < count; i++)
                            std::memcpy(target(begin + i), work.sums + i * width, width * sizeof(float));
                    }
                    clear_until(positions);
                }
                clear_others(wanted, positions, dq_row + g * group * width, s.d_position, group * width);
            }
    }
}

}  // extern "C"
