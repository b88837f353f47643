// Products of any number of rows with fixed weights, laid out once in the order in which they are read.
// A row's sums run over the channels in one order: its bits do not depend on how many rows there are.
#pragma once
#include "generate_vectors.h"

constexpr int COLUMNS = 16;     // of a block of weights
constexpr int MOST_ROWS = 6;    // 12 sums, two weights and a value in 16 registers
constexpr int64_t CHUNK = 512;  // channels whose products of 8 and 16 bits fit into a sum of 32: 512 * 127 * 32767 < 2^31
constexpr int ASKING_ROWS = 4, ASKING_PASSES = 3;  // fewer rows are bound by memory, more by products; see Ahead
constexpr int64_t SMALL = 1 << 17;  // multiplications below which a second thread costs more than it gives (guess)

enum Kind : int64_t { FLOAT = 0, HALF = 1, BYTE = 2, HALF_OF_512 = 3, BYTE_OF_512 = 4 };
enum Finish { STORE, SQUARED_RELU, ADD, SOFTCAP };

// the products of linear.cpp, for processors that have its instructions
using HalfProduct = void (*)(const bf16*, const void*, float*, bf16*, int64_t, int64_t, int64_t, int64_t, int);
using ByteProduct = void (*)(const bf16*, const void*, const float*, const int32_t*, uint8_t*, float*, bf16*, int64_t, int64_t,
                             int64_t, int64_t, int);

// columns are those that are wanted; packed holds whole blocks of 16. scale and sum per column, for bytes
struct Weight {
    int64_t kind, columns, width;
    const void* packed;
    const float* scale;
    const int32_t* sum;
    void* product;  // HalfProduct or ByteProduct
};

// rows in the forms that products take; grows and is kept
struct Rows {
    Buffer<float> wide, scale;
    Buffer<int16_t> whole;
    Buffer<bf16> half;
    Buffer<uint8_t> bytes;
    Buffer<float> out;

    void fit(int64_t count, const Weight& w) {
        wide.fit(count * w.width);
        scale.fit(count);
        if (w.kind == BYTE) whole.fit(count * w.width);
        if (w.kind >= HALF_OF_512) half.fit(count * w.width), out.fit(count * w.columns);
        if (w.kind == BYTE_OF_512) bytes.fit(2 * count * w.width);
    }
};

// x in steps of its reach / 32767
inline void to_whole(const float* x, int16_t* whole, float* scale, int64_t width) {
    Vec most = zeros(), nan = zeros();
    const Vec positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t c = 0; c < width; c += LANES) {
        const Vec y = load(x + c);
        most = _mm256_max_ps(most, _mm256_and_ps(y, positive));
        nan = _mm256_add_ps(nan, _mm256_mul_ps(y, zeros()));  // NaN where y is not finite
    }
    const float reach = largest_of(most), broken = sum_of(nan);
    *scale = broken == 0 ? reach / 32767 : __builtin_nanf("");
    const Vec inverse = all(broken == 0 && reach > 0 ? 32767 / reach : 0);
    for (int64_t c = 0; c < width; c += 2 * LANES) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(load(x + c), inverse));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(load(x + c + LANES), inverse));
        const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        _mm256_storeu_si256((__m256i*)(whole + c), both);
    }
}

// sums += channels [begin, end) of MR rows of x times NB blocks of packed, MR * NB at most 6.
// Every sum has a name and every step its order: left to itself the compiler makes all products before it adds them, or
// keeps sums in memory, and is half as fast.
template <int MR, int NB>
inline void byte_chunk(const int16_t* x, const int8_t* packed, int64_t begin, int64_t end, int64_t width, float* sums) {
    static_assert(MR * NB <= 6, "twelve sums, two weights, a value and a product are all registers there are");
#define EACH(DO) DO(0, a0, b0) DO(1, a1, b1) DO(2, a2, b2) DO(3, a3, b3) DO(4, a4, b4) DO(5, a5, b5)
#define NAME(k, a, b) __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();
    EACH(NAME)
    for (int64_t c = begin; c < end; c += 2) {
#define STEP(k, a, b)                                                                               \
    if constexpr (k < MR * NB) {                                                                    \
        const __m128i* at = (const __m128i*)(packed + (k / MR) * width * COLUMNS + c * COLUMNS);    \
        const __m256i left = _mm256_cvtepi8_epi16(_mm_loadu_si128(at));                             \
        const __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1));                        \
        __m256i pair, products;                                                                     \
        asm volatile(                                                                               \
            "vpbroadcastd %[x], %[pair]\n\t"                                                        \
            "vpmaddwd %[left], %[pair], %[products]\n\t"                                            \
            "vpaddd %[products], %[sum], %[sum]\n\t"                                                \
            "vpmaddwd %[right], %[pair], %[products]\n\t"                                           \
            "vpaddd %[products], %[second], %[second]"                                              \
            : [sum] "+x"(a), [second] "+x"(b), [pair] "=&x"(pair), [products] "=&x"(products)       \
            : [x] "m"(*(const int32_t*)(x + (k % MR) * width + c)), [left] "x"(left), [right] "x"(right)); \
    }
        EACH(STEP)
    }
#define KEEP(k, a, b)                                                    \
    if constexpr (k < MR * NB) {                                         \
        float* at = sums + (k % MR) * NB * COLUMNS + (k / MR) * COLUMNS; \
        store(at, _mm256_add_ps(load(at), _mm256_cvtepi32_ps(a)));       \
        store(at + LANES, _mm256_add_ps(load(at + LANES), _mm256_cvtepi32_ps(b))); \
    }
    EACH(KEEP)
#undef EACH
#undef NAME
#undef STEP
#undef KEEP
}

// what a pass of several rows over a block asks of memory meanwhile: its share of the block behind it. Without, the first
// pass over every block waits for memory and the others leave it idle: 16 rows took 8 to 18 % longer (EPYC 7003)
struct Ahead {
    const char* at;
    int64_t step;  // bytes on, per 64 that are read
};

// sums (MR, NB * 16) = x (MR rows of width) @ NB blocks of packed
template <int64_t KIND, int MR, int NB>
inline void tile(const Rows& rows, int64_t first, const Weight& w, int64_t block, const Ahead& ahead, float* sums) {
    const int64_t width = w.width;
    const char* next = ahead.at;
    if constexpr (KIND == BYTE) {
        const int16_t* x = rows.whole.data() + first * width;
        const int8_t* packed = (const int8_t*)w.packed + block * width * COLUMNS;
        for (int i = 0; i < MR * NB * COLUMNS; i++) sums[i] = 0;
        for (int64_t begin = 0; begin < width; begin += CHUNK)
            byte_chunk<MR, NB>(x, packed, begin, least(width, begin + CHUNK), width, sums);
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < 2 * NB; j++) {
                float* at = sums + i * NB * COLUMNS + j * LANES;
                const Vec scale = _mm256_mul_ps(load(w.scale + block * COLUMNS + j * LANES), all(rows.scale.data()[first + i]));
                store(at, _mm256_mul_ps(load(at), scale));
            }
    } else {
        const float* x = rows.wide.data() + first * width;
        Vec sum[MR][2 * NB];
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < 2 * NB; j++) sum[i][j] = zeros();
        auto add = [&](int n, int64_t c, Vec left, Vec right) {
#pragma GCC unroll 8
            for (int i = 0; i < MR; i++) {
                const Vec value = all(x[i * width + c]);
                sum[i][2 * n] = _mm256_fmadd_ps(value, left, sum[i][2 * n]);
                sum[i][2 * n + 1] = _mm256_fmadd_ps(value, right, sum[i][2 * n + 1]);
            }
        };
        if constexpr (KIND == HALF) {
            // pairs of channels in 32 bits: the first is the low half
            const uint32_t* packed = (const uint32_t*)w.packed + block * (width / 2) * COLUMNS;
            const __m256i high = _mm256_set1_epi32((int)0xffff0000);
            for (int64_t p = 0; p < width / 2; p++) {
                if constexpr (MR >= ASKING_ROWS) __builtin_prefetch(next), next += ahead.step;
#pragma GCC unroll 4
                for (int n = 0; n < NB; n++) {
                    const __m256i* at = (const __m256i*)(packed + n * (width / 2) * COLUMNS + p * COLUMNS);
                    const __m256i left = _mm256_loadu_si256(at), right = _mm256_loadu_si256(at + 1);
                    add(n, 2 * p, _mm256_castsi256_ps(_mm256_slli_epi32(left, 16)),
                        _mm256_castsi256_ps(_mm256_slli_epi32(right, 16)));
                    add(n, 2 * p + 1, _mm256_castsi256_ps(_mm256_and_si256(left, high)),
                        _mm256_castsi256_ps(_mm256_and_si256(right, high)));
                }
            }
        } else {
            const float* packed = (const float*)w.packed + block * width * COLUMNS;
            for (int64_t c = 0; c < width; c++) {
                if constexpr (MR >= ASKING_ROWS) __builtin_prefetch(next), next += ahead.step;
#pragma GCC unroll 4
                for (int n = 0; n < NB; n++) {
                    const float* at = packed + n * width * COLUMNS + c * COLUMNS;
                    add(n, c, load(at), load(at + LANES));
                }
            }
        }
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < 2 * NB; j++) store(sums + i * NB * COLUMNS + j * LANES, sum[i][j]);
    }
}

// what becomes of a product: y (eight values) goes to out, of which left columns are wanted. cap: of SOFTCAP
inline void finish(float* out, int64_t left, Vec y, Finish how, float cap) {
    if (how == SQUARED_RELU) {
        y = _mm256_max_ps(zeros(), y);
        y = _mm256_mul_ps(y, y);
    } else if (how == SOFTCAP) {
        // cap * tanh(y / cap)
        y = _mm256_min_ps(all(40 * cap), _mm256_max_ps(all(-40 * cap), y));
        const Vec e = exp_of(_mm256_mul_ps(y, all(2 / cap)));
        y = _mm256_sub_ps(all(cap), _mm256_div_ps(all(2 * cap), _mm256_add_ps(e, all(1))));
    }
    if (left >= LANES) {
        store(out, how == ADD ? _mm256_add_ps(load(out), y) : y);
        return;
    }
    float values[LANES];
    store(values, y);
    for (int64_t j = 0; j < left; j++) out[j] = how == ADD ? out[j] + values[j] : values[j];
}

template <int64_t KIND, int MR, int NB>
inline void finished_tile(const Rows& rows, int64_t first, const Weight& w, int64_t block, const Ahead& ahead, float* out,
                          Finish how, float cap) {
    float sums[MR * NB * COLUMNS];
    tile<KIND, MR, NB>(rows, first, w, block, ahead, sums);
    const int64_t column = block * COLUMNS;
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < 2 * NB; j++)
            finish(out + (first + i) * w.columns + column + j * LANES, w.columns - column - j * LANES,
                   load(sums + i * NB * COLUMNS + j * LANES), how, cap);
}

// all rows with blocks [block, block + count), count at most 4
template <int64_t KIND>
__attribute__((noinline)) void columns_of(const Rows& rows, int64_t num_rows, const Weight& w, int64_t block, int64_t count, float* out, Finish how,
                float cap) {
    const int64_t end = block + count;
    if (num_rows <= 3) {
        // few sums a block: more blocks at once, that the sums do not wait for each other
#define WIDER(MR, NB)                                                       \
    for (; num_rows == MR && block + NB <= end; block += NB)                \
        finished_tile<KIND, MR, NB>(rows, 0, w, block, {}, out, how, cap);
        WIDER(1, 4) WIDER(1, 1) WIDER(2, 2) WIDER(2, 1) WIDER(3, 2) WIDER(3, 1)
#undef WIDER
        return;
    }
    const int64_t num_tiles = (num_rows + MOST_ROWS - 1) / MOST_ROWS;
    const int64_t size = w.width * COLUMNS * (KIND == FLOAT ? 4 : KIND == HALF ? 2 : 1);  // bytes of a block
    const int64_t share = num_tiles <= ASKING_PASSES ? 64 / num_tiles : 0;
    for (; block < end; block++)
        for (int64_t t = 0; t < num_tiles; t++) {
            const int64_t first = t * num_rows / num_tiles, next = (t + 1) * num_rows / num_tiles;
            // where many passes share the wait, asking costs more than it saves: what was just read is asked for then
            const char* weights = (const char*)w.packed + block * size;
            const Ahead ahead{share ? weights + size + t * size / num_tiles : weights, share};
            switch (next - first) {
                case 6: finished_tile<KIND, 6, 1>(rows, first, w, block, ahead, out, how, cap); break;
                case 5: finished_tile<KIND, 5, 1>(rows, first, w, block, ahead, out, how, cap); break;
                case 4: finished_tile<KIND, 4, 1>(rows, first, w, block, ahead, out, how, cap); break;
                case 3: finished_tile<KIND, 3, 1>(rows, first, w, block, ahead, out, how, cap); break;
                default: for (int64_t r = first; r < next; r++) finished_tile<KIND, 1, 1>(rows, r, w, block, ahead, out, how, cap);
            }
        }
}

// writes one row of what a product reads; context: whatever the caller needs
using Prepare = void (*)(const void* context, int64_t row, float* to);

// out (count, w.columns) by finish from the rows that prepare writes
inline void prepared_product(const Weight& w, Rows& rows, int64_t count, float* out, Finish how, float cap, int threads,
                             Prepare prepare, const void* context) {
    rows.fit(count, w);
    const int64_t width = w.width, blocks = (w.columns + COLUMNS - 1) / COLUMNS, groups = (blocks + 3) / 4;
    const bool is_ours = w.kind <= BYTE;
#pragma omp parallel num_threads(threads) if (count * w.columns * width > SMALL)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < count; r++) {
            float* x = rows.wide.data() + r * width;
            prepare(context, r, x);
            if (w.kind == BYTE) to_whole(x, rows.whole.data() + r * width, rows.scale.data() + r, width);
            if (!is_ours)
                for (int64_t c = 0; c < width; c += LANES) store(rows.half.data() + r * width + c, load(x + c));
        }
        if (is_ours) {
#pragma omp for schedule(static)
            for (int64_t group = 0; group < groups; group++) {
                const int64_t block = 4 * group, some = least<int64_t>(4, blocks - block);
                if (w.kind == FLOAT) columns_of<FLOAT>(rows, count, w, block, some, out, how, cap);
                if (w.kind == HALF) columns_of<HALF>(rows, count, w, block, some, out, how, cap);
                if (w.kind == BYTE) columns_of<BYTE>(rows, count, w, block, some, out, how, cap);
            }
        }
    }
    if (is_ours) return;
    if (w.kind == HALF_OF_512)
        ((HalfProduct)w.product)(rows.half.data(), w.packed, rows.out.data(), nullptr, count, w.columns, width, 0, threads);
    else
        ((ByteProduct)w.product)(rows.half.data(), w.packed, w.scale, w.sum, rows.bytes.data(), rows.out.data(), nullptr, count,
                                 w.columns, width, 0, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (count * w.columns > SMALL)
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < w.columns; c += LANES) {
            const int64_t left = w.columns - c;
            float values[LANES] = {0};
            __builtin_memcpy(values, rows.out.data() + r * w.columns + c, 4 * least<int64_t>(LANES, left));
            finish(out + r * w.columns + c, left, load(values), how, cap);
        }
}

// the same from the rows that make(row, float* to) writes; one function for all of them, which builds in half the time
template <class Make>
inline void product(const Weight& w, Rows& rows, int64_t count, float* out, Finish how, float cap, int threads, const Make& make) {
    const Prepare prepare = [](const void* context, int64_t row, float* to) { (*(const Make*)context)(row, to); };
    prepared_product(w, rows, count, out, how, cap, threads, prepare, &make);
}
