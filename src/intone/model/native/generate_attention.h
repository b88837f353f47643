// Attention of new tokens over the pages of their texts: every query reads its keys page after page, in one order
// whatever else is computed, so its bits depend on its own text alone.
#pragma once
#include "generate_vectors.h"

constexpr int64_t PAGE = 64;       // tokens, as in engine/pages.py
constexpr int64_t MOST_WIDTH = 256;  // of a head
constexpr int64_t QUERIES = 16;    // of one key head that read a page together, widened once

// queries of one key head of one text: (token, head) pairs; q (C,), out (C,) and what each sees, [low, high)
struct Query {
    const float* q;
    float* out;
    int64_t low, high;
};

// one text's keys in one block: token j is entry pages[j / PAGE] * PAGE + j % PAGE of stored (2, K, C)
template <class T>
struct Stored {
    const T* first;  // the key of entry 0 in this head
    const int32_t* pages;
    int64_t entry, values;  // distances: from one entry to the next, from a key to its value
    int64_t width;

    const T* key(int64_t page) const { return first + (int64_t)pages[page] * PAGE * entry; }
};

struct Running {
    float most, total;
    alignas(32) float sum[MOST_WIDTH];
};

// scores of keys [begin, end) of a page, then their values: one step of the softmax over pages
template <class T>
inline void attend_page(const Query& query, Running& run, const T* keys, const T* values, int64_t key_step,
                        int64_t value_step, int64_t begin, int64_t end, int64_t width) {
    alignas(32) float share[PAGE];
    float most = run.most;
    Vec largest = all(-ENDLESS), broken = zeros();
    for (int64_t j = begin; j < end; j += LANES) {
        const T* at[LANES];
        for (int64_t i = 0; i < LANES; i++) at[i] = keys + least<int64_t>(j + i, end - 1) * key_step;
        Vec sums[LANES];
        for (int i = 0; i < LANES; i++) sums[i] = zeros();
        for (int64_t c = 0; c < width; c += LANES) {
            const Vec q = load(query.q + c);
#pragma GCC unroll 8
            for (int i = 0; i < LANES; i++) sums[i] = _mm256_fmadd_ps(q, load(at[i] + c), sums[i]);
        }
        Vec scores = sums_of(sums);
        broken = _mm256_add_ps(broken, _mm256_sub_ps(scores, scores));  // NaN where a score is not finite
        if (end - j < LANES) {
            const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            const __m256i is_key = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(end - j)), place);
            scores = _mm256_blendv_ps(all(-ENDLESS), scores, _mm256_castsi256_ps(is_key));
        }
        store(share + j - begin, scores);
        largest = _mm256_max_ps(largest, scores);
    }
    most = most_of(most, largest_of(largest));
    if (sum_of(broken) != 0) most = __builtin_nanf("");
    Vec total = zeros();
    for (int64_t j = begin; j < end; j += LANES) {
        const Vec scores = load(share + j - begin);
        const Vec is_key = _mm256_cmp_ps(scores, all(-ENDLESS), _CMP_NEQ_UQ);
        const Vec y = _mm256_and_ps(exp_of(_mm256_sub_ps(scores, all(most))), is_key);
        store(share + j - begin, y);
        total = _mm256_add_ps(total, y);
    }
    const float kept = run.most == -ENDLESS ? 0.0f : _mm256_cvtss_f32(exp_of(all(run.most - most)));
    run.total = run.total * kept + sum_of(total);
    run.most = most;
    for (int64_t c = 0; c < width; c += 8 * LANES) {
        const int64_t parts = least<int64_t>(8, (width - c) / LANES);
        Vec sum[8];
        for (int64_t i = 0; i < parts; i++) sum[i] = _mm256_mul_ps(load(run.sum + c + i * LANES), all(kept));
        if (parts == 8) {
            for (int64_t j = begin; j < end; j++) {
                const Vec y = all(share[j - begin]);
                const T* value = values + j * value_step + c;
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) sum[i] = _mm256_fmadd_ps(y, load(value + i * LANES), sum[i]);
            }
        } else {
            for (int64_t j = begin; j < end; j++)
                for (int64_t i = 0; i < parts; i++)
                    sum[i] = _mm256_fmadd_ps(all(share[j - begin]), load(values + j * value_step + c + i * LANES), sum[i]);
        }
        for (int64_t i = 0; i < parts; i++) store(run.sum + c + i * LANES, sum[i]);
    }
}

// count queries, at most QUERIES; scratch: 2 * PAGE * C floats for pages that several queries read
template <class T>
void attend_queries(const Query* queries, int64_t count, const Stored<T>& stored, float* scratch) {
    const int64_t width = stored.width;
    Running running[QUERIES];
    int64_t low = queries[0].low, high = queries[0].high;
    for (int64_t i = 0; i < count; i++) {
        running[i].most = -ENDLESS;
        running[i].total = 0;
        __builtin_memset(running[i].sum, 0, width * sizeof(float));
        low = least<int64_t>(low, queries[i].low);
        high = most_of<int64_t>(high, queries[i].high);
    }
    for (int64_t page = low / PAGE; page * PAGE < high; page++) {
        const int64_t start = page * PAGE;
        const T *keys = stored.key(page), *values = keys + stored.values;
        const bool widens = sizeof(T) == 2 && count > 1;
        if (widens) {
            const int64_t begin = most_of<int64_t>(low - start, 0), end = least<int64_t>(high - start, PAGE);
            for (int64_t j = begin; j < end; j++)
                for (int64_t c = 0; c < width; c += LANES) {
                    store(scratch + j * width + c, load(keys + j * stored.entry + c));
                    store(scratch + (PAGE + j) * width + c, load(values + j * stored.entry + c));
                }
        }
        for (int64_t i = 0; i < count; i++) {
            const int64_t begin = most_of<int64_t>(queries[i].low - start, 0), end = least<int64_t>(queries[i].high - start, PAGE);
            if (begin >= end) continue;
            if (widens)
                attend_page<float>(queries[i], running[i], scratch, scratch + PAGE * width, width, width, begin, end, width);
            else
                attend_page<T>(queries[i], running[i], keys, values, stored.entry, stored.entry, begin, end, width);
        }
    }
    for (int64_t i = 0; i < count; i++) {
        const Vec inverse = all(1 / running[i].total);
        for (int64_t c = 0; c < width; c += LANES) store(queries[i].out + c, _mm256_mul_ps(load(running[i].sum + c), inverse));
    }
}
