// Drawing the next token of one row of logits: what engine/sample.py decides with PyTorch, by the same rules.
// A row's draw reads that row alone, in one order, so it does not depend on what else is computed.
#pragma once
#include "generate_vectors.h"

constexpr int64_t SUMMED = 256;    // columns of a block of a sum
constexpr int64_t COMPARED = 64;   // columns of a block of which the largest is known
constexpr int64_t FIRST_LOOK = 128;  // likeliest tokens looked at first where only top_p limits a row (guess)
constexpr double GREEDY_TEMPERATURE = 1e-5;  // as in engine/sample.py

// settings of one row; top_k at least the columns, top_p 1 and min_p 0 keep every token. uniform in [0, 1)
struct Drawing {
    double temperature, top_p, min_p, uniform;
    int64_t top_k;
};

// eight values, of which left are there; the others are -inf
inline Vec load_some(const float* x, int64_t left) {
    if (left >= LANES) return load(x);
    alignas(32) float values[LANES];
    for (int64_t i = 0; i < LANES; i++) values[i] = i < left ? x[i] : -ENDLESS;
    return load(values);
}

// exp((x - most) / temperature); 0 below the smallest normal number, so that a token that may not come never does
inline Vec weight_of(Vec x, float most, float temperature) {
    const Vec z = _mm256_div_ps(_mm256_sub_ps(x, all(most)), all(temperature));
    return _mm256_and_ps(exp_of(z), _mm256_cmp_ps(z, all(-87.0f), _CMP_GT_OQ));
}

// the first of the largest, its value (NaN where x has one), and, unless total is null, the sum of exp(x - largest)
inline void summarise(const float* x, int64_t columns, int64_t* best, float* largest, double* total) {
    float most = -ENDLESS;
    double sum = 0;
    int64_t place = 0;
    bool broken = false;
    for (int64_t begin = 0; begin < columns; begin += SUMMED) {
        const int64_t end = least(columns, begin + SUMMED);
        Vec high = all(-ENDLESS), nan = zeros();
        int64_t c = begin;
        for (; c + LANES <= end; c += LANES) {
            high = _mm256_max_ps(high, load(x + c));
            nan = _mm256_or_ps(nan, _mm256_cmp_ps(load(x + c), load(x + c), _CMP_UNORD_Q));
        }
        float found = largest_of(high);
        broken |= _mm256_movemask_ps(nan) != 0;
        for (; c < end; c++) broken |= x[c] != x[c], found = most_of(found, x[c]);
        if (found > most) most = found, place = begin;  // a later block as large does not count
    }
    for (int64_t c = place; c < columns && !broken; c++)
        if (x[c] == most) {
            place = c;
            break;
        }
    for (int64_t begin = 0; total && begin < columns && !broken; begin += SUMMED) {
        const int64_t end = least(columns, begin + SUMMED);
        Vec part = zeros();
        float rest = 0;
        int64_t c = begin;
        for (; c + LANES <= end; c += LANES) part = _mm256_add_ps(part, exp_of(_mm256_sub_ps(load(x + c), all(most))));
        for (; c < end; c++) rest += _mm256_cvtss_f32(exp_of(all(x[c] - most)));
        sum += (double)sum_of(part) + rest;
    }
    *best = place;
    *largest = broken ? __builtin_nanf("") : most;
    if (total) *total = sum;
}

// weights of x in blocks of SUMMED, added up: sums[b] is all up to block b
inline void add_up(const float* x, int64_t columns, float most, float temperature, double min_p, double* sums) {
    double total = 0;
    for (int64_t begin = 0; begin < columns; begin += SUMMED) {
        __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
        for (int64_t c = begin; c < least(columns, begin + SUMMED); c += LANES) {
            const Vec y = weight_of(load_some(x + c, columns - c), most, temperature);
            const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(y)), b = _mm256_cvtps_pd(_mm256_extractf128_ps(y, 1));
            const __m256d bound = _mm256_set1_pd(min_p);
            low = _mm256_add_pd(low, _mm256_and_pd(a, _mm256_cmp_pd(a, bound, _CMP_GE_OQ)));
            high = _mm256_add_pd(high, _mm256_and_pd(b, _mm256_cmp_pd(b, bound, _CMP_GE_OQ)));
        }
        alignas(32) double parts[4];
        _mm256_store_pd(parts, _mm256_add_pd(low, high));
        sums[begin / SUMMED] = total += (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
}

// among x (count, in vocabulary order), those of at least smallest and min_p: where their running sum, begun at before,
// passes target; the last of them where it does not, and -1 where there are none
inline int64_t passed(const float* x, int64_t count, float most, float temperature, float smallest, double min_p,
                      double before, double target) {
    int64_t last = -1;
    for (int64_t c = 0; c < count; c += LANES) {
        alignas(32) float weights[LANES];
        store(weights, weight_of(load_some(x + c, count - c), most, temperature));
        for (int64_t i = 0; i < least<int64_t>(LANES, count - c); i++) {
            if (!(x[c + i] >= smallest) || weights[i] < min_p || weights[i] == 0) continue;
            last = c + i;
            before += weights[i];
            if (before > target) return last;
        }
    }
    return last;
}

// sorts x, the largest first: a heap with the smallest in front gives up its front again and again
inline void sort_down(float* x, int64_t count) {
    auto sink = [&](int64_t at, int64_t end) {
        const float value = x[at];
        for (int64_t child; (child = 2 * at + 1) < end; at = child) {
            if (child + 1 < end && x[child + 1] < x[child]) child++;
            if (value <= x[child]) break;
            x[at] = x[child];
        }
        x[at] = value;
    };
    for (int64_t at = count / 2; at-- > 0;) sink(at, count);
    for (int64_t end = count; end-- > 1;) {
        const float front = x[0];
        x[0] = x[end], x[end] = front;
        sink(0, end);
    }
}

// a value that at least count of x reach, or all of them: the count-th largest of the largest of its blocks
inline float reached_by(const float* x, int64_t columns, int64_t count) {
    thread_local Buffer<float> buffer;
    const int64_t blocks = (columns + COMPARED - 1) / COMPARED;
    if (count >= blocks) return -ENDLESS;
    float* largest = buffer.fit(blocks);
    for (int64_t b = 0; b < blocks; b++) {
        Vec high = all(-ENDLESS);
        for (int64_t c = b * COMPARED; c < least(columns, (b + 1) * COMPARED); c += LANES)
            high = _mm256_max_ps(high, load_some(x + c, columns - c));
        largest[b] = largest_of(high);
    }
    sort_down(largest, blocks);
    return largest[count - 1];
}

// the draw where top_k or top_p limit it: the largest tokens are gathered, as many as settle which are kept
inline int64_t draw_ranked(const float* x, int64_t columns, float most, float temperature, const Drawing& how) {
    thread_local Buffer<float> gathered, ordered;
    thread_local Buffer<int32_t> ids;
    thread_local Buffer<double> sums;
    const bool is_counted = how.top_k < columns;
    const int64_t blocks = (columns + SUMMED - 1) / SUMMED;
    float *values = gathered.fit(columns), *sorted = ordered.fit(columns + LANES);
    int32_t* places = ids.fit(columns);
    double total = 0;
    if (!is_counted) add_up(x, columns, most, temperature, 0, sums.fit(blocks)), total = sums.data()[blocks - 1];
    for (int64_t look = is_counted ? how.top_k : FIRST_LOOK;; look *= 8) {
        const float bound = reached_by(x, columns, look);
        int64_t count = 0;
        for (int64_t c = 0; c < columns; c += LANES) {
            const Vec y = load_some(x + c, columns - c);
            const Vec is_in = _mm256_and_ps(_mm256_cmp_ps(y, all(bound), _CMP_GE_OQ), _mm256_cmp_ps(y, all(-ENDLESS), _CMP_GT_OQ));
            for (int bits = _mm256_movemask_ps(is_in); bits; bits &= bits - 1) {
                places[count] = (int32_t)(c + __builtin_ctz(bits));
                values[count] = x[places[count]];
                count++;
            }
        }
        if (!count) return 0;
        copy(sorted, values, count);
        sort_down(sorted, count);
        const int64_t rank = least(is_counted ? how.top_k : count, count) - 1;
        double share = 0;
        if (is_counted)
            for (int64_t i = 0; i <= rank; i += LANES) {
                alignas(32) float weights[LANES];
                store(weights, weight_of(load_some(sorted + i, rank + 1 - i), most, temperature));
                for (int64_t j = 0; j < LANES; j++) total += weights[j];
            }
        int64_t last = rank;
        bool is_enough = how.top_p >= 1;
        for (int64_t i = 0; i <= rank && !is_enough; i++) {
            share += _mm256_cvtss_f32(weight_of(all(sorted[i]), most, temperature));
            if (share >= how.top_p * total) last = i, is_enough = true;
        }
        if (!is_enough && !is_counted && bound > -ENDLESS) continue;
        const float smallest = sorted[last];
        // what is kept, added up in vocabulary order; then the same way to where the uniform's share is passed
        double kept = 0;
        for (int64_t c = 0; c < count; c += LANES) {
            alignas(32) float weights[LANES];
            store(weights, weight_of(load_some(values + c, count - c), most, temperature));
            for (int64_t i = 0; i < least<int64_t>(LANES, count - c); i++)
                if (values[c + i] >= smallest && weights[i] >= how.min_p) kept += weights[i];
        }
        const int64_t found = passed(values, count, most, temperature, smallest, how.min_p, 0, how.uniform * kept);
        return found < 0 ? 0 : places[found];
    }
}

// the draw among all tokens, or those of at least min_p
inline int64_t draw_any(const float* x, int64_t columns, float most, float temperature, const Drawing& how) {
    thread_local Buffer<double> buffer;
    const int64_t blocks = (columns + SUMMED - 1) / SUMMED;
    double* sums = buffer.fit(blocks);
    add_up(x, columns, most, temperature, how.min_p, sums);
    const double target = how.uniform * sums[blocks - 1];
    int64_t block = 0;
    while (block + 1 < blocks && sums[block] <= target) block++;
    // rounding may put the target at the very end: the last block that holds anything
    while (block > 0 && sums[block] == sums[block - 1]) block--;
    const int64_t begin = block * SUMMED;
    const int64_t found = passed(x + begin, least(SUMMED, columns - begin), most, temperature, -ENDLESS, how.min_p,
                                 block ? sums[block - 1] : 0, target);
    return found < 0 ? 0 : begin + found;
}

// the id of a row of finite logits (or -inf, where not all are); best and most: the first of the largest, and its value
inline int64_t draw(const float* x, int64_t columns, int64_t best, float most, const Drawing& how) {
    const float temperature = (float)how.temperature;
    if (how.temperature < GREEDY_TEMPERATURE || !(most - most == 0)) return best;
    if (how.top_k < columns || how.top_p < 1) return draw_ranked(x, columns, most, temperature, how);
    return draw_any(x, columns, most, temperature, how);
}

// SplitMix64's finaliser over a stream's state and a position, as uniforms() of engine/sample.py
inline double uniform_at(uint64_t stream, uint64_t position) {
    uint64_t x = (stream ^ position) + 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    return (double)(x >> 11) * 0x1p-53;
}
