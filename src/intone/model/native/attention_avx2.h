// What both passes of attention_avx2.cpp share: which queries are computed together, what they see, how rows are laid
// out for products, and rows that are fetched ahead.
#pragma once
#include "attention.h"
#include "common_avx2.h"

constexpr float LOG2_E = 1.44269504f;
constexpr int SHORT = 8;  // queries that are too few to begin anew for another document

// how many queries from the i-th on are computed together: at most so many, up to one that sees nothing of those before
inline int together(const Wanted& wanted, int i, int most) {
    int n = 1;
    while (n < most && i + n < wanted.count && (n < SHORT || wanted.first_of(i + n) <= wanted.at(i + n - 1))) n++;
    return n;
}

// queries side by side; missing ones see what the last one does
struct Panel {
    int count;
    int from, until;            // keys that some query sees
    int open_from, open_until;  // keys that all see
    __m256i query[2], first[2];

    Panel() = default;
    Panel(const Wanted& wanted, int begin, int count) : count(count) {
        int32_t at[PANEL], low[PANEL];
        for (int i = 0; i < PANEL; i++) {
            at[i] = wanted.at(begin + std::min(i, count - 1));
            low[i] = wanted.first[at[i]];
        }
        from = low[0], open_from = low[PANEL - 1];
        until = at[PANEL - 1] + 1, open_until = at[0] + 1;
        for (int j = 0; j < 2; j++) {
            query[j] = _mm256_loadu_si256((const __m256i*)(at + LANES * j));
            first[j] = _mm256_loadu_si256((const __m256i*)(low + LANES * j));
        }
    }
    // all bits where the query does not see the key
    __m256 hidden(int j, int key) const {
        const __m256i k = _mm256_set1_epi32(key);
        return _mm256_castsi256_ps(_mm256_or_si256(_mm256_cmpgt_epi32(k, query[j]), _mm256_cmpgt_epi32(first[j], k)));
    }
};

inline int limited(int x, int low, int high) { return std::max(low, std::min(x, high)); }

// rows of the next tile when so many are left: six, and no tile of one or two at the end
inline int tile_rows(int left) { return left >= 12 || left == 6 ? 6 : left > 6 ? (left + 1) / 2 : left; }

// out (count, width) = rows of x next to each other
inline void copy_rows(const float* x, int64_t stride, int64_t count, int64_t width, float* out) {
    for (int64_t i = 0; i < count; i++) std::memcpy(out + i * width, x + i * stride, width * sizeof(float));
}

// out (width / 16, length, 16): 16 channels of row(0), row(1)... times factor. From count on nothing is written: what
// missing queries hold stays in their lanes, which nobody reads
template <class Row>
void copy_panels(const Row& row, int count, int64_t width, float factor, float* out, int64_t length) {
    for (int i = 0; i < count; i++) {
        const float* from = row(i);
        float* to = out + i * PANEL;
        for (int64_t c = 0; c < width; c += PANEL, from += PANEL, to += PANEL * length) {
            _mm256_store_ps(to, _mm256_mul_ps(load(from), all(factor)));
            _mm256_store_ps(to + LANES, _mm256_mul_ps(load(from + LANES), all(factor)));
        }
    }
}

// out (width, 16): 16 rows, turned, of panels (width / 16, length, 16)
inline void turn(const float* panels, int64_t length, int64_t width, float* out) {
    for (int64_t c = 0; c < width; c += PANEL)
        for (int i = 0; i < PANEL; i += LANES)
            for (int j = 0; j < PANEL; j += LANES)
                transpose_tile(panels + c * length + i * PANEL + j, PANEL, out + (c + j) * PANEL + i, PANEL);
}

// Rows of width floats that are fetched into the cache a few at a time while something else is computed: they lie
// apart in memory, so that the processor sees no pattern in them and every read would wait.
struct Ahead {
    static constexpr int ROOM = 512;
    const float* rows[ROOM];
    int count = 0, at = 0, rate = 1;
    int64_t width;

    explicit Ahead(int64_t width) : width(width) {}
    void add(const float* row) {
        if (count < ROOM) rows[count++] = row;
    }
    // some() will be called about so often, at least once
    void begin(int calls) { rate = (count + calls - 1) / calls; }
    void some() {
        for (const int end = std::min(count, at + rate); at < end; at++)
            for (int64_t c = 0; c < width; c += PANEL) _mm_prefetch((const char*)(rows[at] + c), _MM_HINT_T0);
    }
    void end() {
        for (rate = count; at < count;) some();
        count = at = 0;
    }
};
