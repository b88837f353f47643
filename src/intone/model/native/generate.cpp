// One step of generation: the new tokens of any number of texts through the whole model, from ids to logits.
// The same function as engine/decoder.py computes with PyTorch. A token's bits depend on its own text alone.
#include "generate_attention.h"
#include "generate_draw.h"
#include "generate_products.h"

namespace {

// one block; pointers that do not apply are null
struct Block {
    Weight qkv, out, up, down;
    int64_t group;       // of pages
    int64_t reach;       // tokens before the newest that are seen, -1: all
    int64_t value;       // which value embedding, -1: none
    const float* gate;   // (K, GATE_CHANNELS)
    int64_t has_scale;
    float scale, embedding_scale;
    void* stored;        // keys and values: entries of (2, K, C)
};

struct Model {
    int64_t depth, width, heads, kv_heads, head_width, num_values, middle;
    int64_t is_half;         // tables, keys and values in bfloat16, else float32
    float eps, scale, softcap, smear_scale, backout;
    int64_t has_smear, has_backout;
    const void *embedding, *values;  // (V, D); (V, num_values, K * C)
    const float *smear_gate, *cos, *sin;
    const Block* blocks;
    Weight head;
};

// count tokens, texts one after another; pages: per group and text where its list of pages is
struct Batch {
    int64_t count, num_wanted, num_texts;
    const int64_t *ids, *previous, *positions, *wanted;
    const int32_t* text;
    const int32_t* const* pages;
    void* scratch;  // where keys and values go in place of every block's store, or null
};

// what a step gave one row: its token and that token's logit, the largest logit, and the sum of exp(logit - largest)
struct Found {
    int64_t id;
    float chosen, largest;
    double total;
};

// steps of rows that go on by themselves, one new token of each text a step
struct Burst {
    int64_t steps, num_stops, is_summed;  // steps at most; is_summed: whether totals are wanted
    const Drawing* drawing;               // per row; the uniforms are made here
    const uint64_t* streams;
    const int64_t *stops, *left;          // (count, num_stops) ids that end a text, -1: none; tokens that it may still get
    Found* found;                         // (steps, count)
};

constexpr int64_t SMEAR_CHANNELS = 24, GATE_CHANNELS = 12;

struct Span {
    int64_t first, count, kv_head;  // tokens of one text, one key head
};

struct Work {
    Buffer<float> stream, start, middle, qkv, mixed, hidden;
    Rows rows;
    Buffer<Span> spans;
    Buffer<int64_t> ids;
};

float inverse_rms(const float* x, int64_t width, float eps) {
    Vec total = zeros();
    for (int64_t c = 0; c < width; c += LANES) total = _mm256_fmadd_ps(load(x + c), load(x + c), total);
    return 1 / __builtin_sqrtf(sum_of(total) / width + eps);
}

// to = x / rms(x); may be x
void norm(const float* x, float* to, int64_t width, float eps) {
    const Vec scale = all(inverse_rms(x, width, eps));
    for (int64_t c = 0; c < width; c += LANES) store(to + c, _mm256_mul_ps(load(x + c), scale));
}

template <class T>
void embed(const Model& m, const Batch& batch, int64_t row, float* x, float* before) {
    const T* table = (const T*)m.embedding;
    for (int64_t c = 0; c < m.width; c += LANES) store(x + c, load(table + batch.ids[row] * m.width + c));
    norm(x, x, m.width, m.eps);
    if (!m.has_smear || batch.previous[row] < 0) return;
    float gate = 0;
    for (int64_t c = 0; c < SMEAR_CHANNELS; c++) gate += x[c] * m.smear_gate[c];
    const Vec share = all(m.smear_scale * sigmoid(gate));
    for (int64_t c = 0; c < m.width; c += LANES) store(before + c, load(table + batch.previous[row] * m.width + c));
    norm(before, before, m.width, m.eps);
    for (int64_t c = 0; c < m.width; c += LANES) store(x + c, _mm256_fmadd_ps(share, load(before + c), load(x + c)));
}

// turns x (C,) by minus the position's angle and norms it, times scale
void turn(float* x, const float* cos, const float* sin, int64_t width, float eps, float scale) {
    const int64_t half = width / 2;
    for (int64_t c = 0; c < half; c += LANES) {
        const Vec a = load(x + c), b = load(x + half + c), u = load(cos + c), v = load(sin + c);
        store(x + c, _mm256_fmadd_ps(b, v, _mm256_mul_ps(a, u)));
        store(x + half + c, _mm256_fmsub_ps(b, u, _mm256_mul_ps(a, v)));
    }
    const Vec factor = all(inverse_rms(x, width, eps) * scale);
    for (int64_t c = 0; c < width; c += LANES) store(x + c, _mm256_mul_ps(load(x + c), factor));
}

template <class T>
T* entry_of(const Model& m, const Block& block, const Batch& batch, int64_t row) {
    const int32_t* pages = batch.pages[block.group * batch.num_texts + batch.text[row]];
    const int64_t place = batch.positions[row], size = 2 * m.kv_heads * m.head_width;
    T* stored = (T*)(batch.scratch ? batch.scratch : block.stored);
    return stored + ((int64_t)pages[place / PAGE] * PAGE + place % PAGE) * size;
}

// a token's queries ready for attention, its keys and values stored; normed (D,) is what qkv was computed from
template <class T>
void place_heads(const Model& m, const Block& block, const Batch& batch, int64_t row, const float* normed, float* qkv) {
    const int64_t width = m.head_width, kv_width = m.kv_heads * width;
    const float *cos = m.cos + batch.positions[row] * (width / 2), *sin = m.sin + batch.positions[row] * (width / 2);
    for (int64_t h = 0; h < m.heads; h++) turn(qkv + h * width, cos, sin, width, m.eps, m.scale);
    float *key = qkv + m.heads * width, *value = key + kv_width;
    T* entry = entry_of<T>(m, block, batch, row);
    for (int64_t h = 0; h < m.kv_heads; h++) turn(key + h * width, cos, sin, width, m.eps, 1.0f);
    for (int64_t c = 0; c < kv_width; c += LANES) store(entry + c, load(key + c));
    for (int64_t h = 0; h < m.kv_heads; h++) {
        Vec gate = zeros();
        if (block.value >= 0) {
            float sum = 0;
            for (int64_t c = 0; c < GATE_CHANNELS; c++) sum += normed[c] * block.gate[h * GATE_CHANNELS + c];
            gate = all(3 * sigmoid(sum));
        }
        const T* added = (const T*)m.values + (batch.ids[row] * m.num_values + block.value) * kv_width + h * width;
        for (int64_t c = 0; c < width; c += LANES) {
            const Vec v = load(value + h * width + c);
            store(entry + kv_width + h * width + c, block.value < 0 ? v : _mm256_fmadd_ps(gate, load(added + c), v));
        }
    }
}

template <class T>
void attend_span(const Model& m, const Block& block, const Batch& batch, const Span& span, const float* qkv,
                 int64_t qkv_step, float* out) {
    thread_local Buffer<float> scratch;
    const int64_t width = m.head_width, per_head = m.heads / m.kv_heads;
    scratch.fit(2 * PAGE * width);
    const T* stored = (const T*)(batch.scratch ? batch.scratch : block.stored);
    const int32_t* pages = batch.pages[block.group * batch.num_texts + batch.text[span.first]];
    const Stored<T> keys{stored + span.kv_head * width, pages, 2 * m.kv_heads * width, m.kv_heads * width, width};
    Query queries[QUERIES];
    int64_t count = 0;
    for (int64_t row = span.first; row < span.first + span.count; row++)
        for (int64_t h = span.kv_head * per_head; h < (span.kv_head + 1) * per_head; h++) {
            const int64_t place = batch.positions[row];
            const int64_t low = block.reach < 0 ? 0 : most_of<int64_t>(0, place - block.reach);
            queries[count++] = {qkv + row * qkv_step + h * width, out + (row * m.heads + h) * width, low, place + 1};
            if (count == QUERIES) attend_queries<T>(queries, count, keys, scratch.data()), count = 0;
        }
    if (count) attend_queries<T>(queries, count, keys, scratch.data());
}

// what one task of attention is: one key head of as many tokens of a text as read a page together -> their number
int64_t plan_spans(const Model& m, const Batch& batch, Span* spans) {
    int64_t count = 0;
    const int64_t together = most_of<int64_t>(1, QUERIES * m.kv_heads / m.heads);
    for (int64_t row = 0; row < batch.count;) {
        int64_t end = row + 1;
        while (end < batch.count && end - row < together && batch.text[end] == batch.text[row]) end++;
        for (int64_t head = 0; head < m.kv_heads; head++) spans[count++] = {row, end - row, head};
        row = end;
    }
    return count;
}

template <class T>
void run(const Model& m, const Batch& batch, Work& work, float* logits, int threads) {
    const int64_t count = batch.count, width = m.width, num_heads = m.heads + 2 * m.kv_heads;
    const int64_t qkv_width = num_heads * m.head_width, mixed_width = m.heads * m.head_width;
    float *x = work.stream.fit(count * width), *start = work.start.fit(count * width);
    float *middle = work.middle.fit(count * width), *qkv = work.qkv.fit(count * qkv_width);
    float* mixed = work.mixed.fit(count * mixed_width);
    const Span* spans = work.spans.fit(count * m.kv_heads);
    const int64_t num_spans = plan_spans(m, batch, work.spans.data());
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 4)
    for (int64_t r = 0; r < count; r++) {
        embed<T>(m, batch, r, x + r * width, middle + r * width);
        copy(start + r * width, x + r * width, width);
    }
    for (int64_t index = 0; index < m.depth; index++) {
        const Block& block = m.blocks[index];
        product(block.qkv, work.rows, count, qkv, STORE, 0, threads, [&](int64_t r, float* to) {
            float* row = x + r * width;
            if (block.has_scale)
                for (int64_t c = 0; c < width; c += LANES)
                    store(row + c, _mm256_fmadd_ps(all(block.embedding_scale), load(start + r * width + c),
                                                   _mm256_mul_ps(all(block.scale), load(row + c))));
            norm(row, to, width, m.eps);
        });
#pragma omp parallel num_threads(threads) if (count * qkv_width > 4096)
        {
#pragma omp for schedule(static)
            for (int64_t r = 0; r < count; r++)
                place_heads<T>(m, block, batch, r, work.rows.wide.data() + r * width, qkv + r * qkv_width);
#pragma omp for schedule(dynamic, 1)
            for (int64_t s = 0; s < num_spans; s++)
                attend_span<T>(m, block, batch, spans[s], qkv, qkv_width, mixed);
        }
        product(block.out, work.rows, count, x, ADD, 0, threads, [&](int64_t r, float* to) {
            copy(to, mixed + r * mixed_width, mixed_width);
        });
        float* hidden = work.hidden.fit(count * block.up.columns);
        product(block.up, work.rows, count, hidden, SQUARED_RELU, 0, threads,
                [&](int64_t r, float* to) { norm(x + r * width, to, width, m.eps); });
        product(block.down, work.rows, count, x, ADD, 0, threads, [&](int64_t r, float* to) {
            copy(to, hidden + r * block.up.columns, block.up.columns);
        });
        if (m.has_backout && index == m.middle) copy(middle, x, count * width);
    }
    product(m.head, work.rows, batch.num_wanted, logits, SOFTCAP, m.softcap, threads, [&](int64_t r, float* to) {
        const float* row = x + batch.wanted[r] * width;
        const float* before = middle + batch.wanted[r] * width;
        if (m.has_backout)
            for (int64_t c = 0; c < width; c += LANES)
                store(to + c, _mm256_fnmadd_ps(all(m.backout), load(before + c), load(row + c)));
        else
            copy(to, row, width);
        norm(to, to, width, m.eps);
    });
}

}  // namespace

extern "C" {

// packed (blocks of 16 columns, the last filled with zeros; width; 16) for weight (columns, width)
void intone_pack_float(const float* weight, float* packed, int64_t columns, int64_t width, int threads) {
    const int64_t blocks = (columns + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < blocks; n++)
        for (int64_t c = 0; c < width; c++)
            for (int64_t j = 0; j < COLUMNS; j++) {
                const int64_t column = n * COLUMNS + j;
                packed[(n * width + c) * COLUMNS + j] = column < columns ? weight[column * width + c] : 0;
            }
}

// packed (blocks; width / 2; 16) pairs of channels rounded to bfloat16, the first in the low half; the layout of linear.cpp
void intone_pack_half(const float* weight, uint32_t* packed, int64_t columns, int64_t width, int threads) {
    const int64_t blocks = (columns + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < blocks; n++)
        for (int64_t c = 0; c < width; c += LANES) {
            alignas(16) bf16 halves[COLUMNS][LANES] = {};
            for (int64_t j = 0; j < least<int64_t>(COLUMNS, columns - n * COLUMNS); j++)
                store(halves[j], load(weight + (n * COLUMNS + j) * width + c));
            uint32_t* to = packed + (n * width + c) / 2 * COLUMNS;
            for (int64_t p = 0; p < LANES / 2; p++)
                for (int64_t j = 0; j < COLUMNS; j++) __builtin_memcpy(to + p * COLUMNS + j, halves[j] + 2 * p, 4);
        }
}

// packed (blocks; width / 2; 16; 2) int8, scale (blocks * 16): one per column
void intone_pack_byte(const float* weight, int8_t* packed, float* scale, int64_t columns, int64_t width, int threads) {
    const int64_t blocks = (columns + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < blocks; n++)
        for (int64_t j = 0; j < COLUMNS; j++) {
            const int64_t column = n * COLUMNS + j;
            float reach = 0;
            if (column < columns)
                for (int64_t c = 0; c < width; c++) reach = most_of(reach, __builtin_fabsf(weight[column * width + c]));
            const float inverse = reach > 0 ? 127 / reach : 0;
            for (int64_t c = 0; c < width; c++) {
                const float value = column < columns ? weight[column * width + c] * inverse : 0;
                packed[((n * (width / 2) + c / 2) * COLUMNS + j) * 2 + c % 2] = (int8_t)__builtin_lrintf(value);
            }
            scale[column] = reach / 127;
        }
}

// out (count, columns) = x (count, width) @ weight transposed; relu: its square where positive, else 0
void intone_packed_product(const Weight* weight, const float* x, float* out, int64_t count, int64_t relu, int threads) {
    Rows rows;
    product(*weight, rows, count, out, relu ? SQUARED_RELU : STORE, 0, threads, [&](int64_t r, float* to) {
        copy(to, x + r * weight->width, weight->width);
    });
}

// of each row of logits (count, columns), which are finite or NaN: the first of the largest, its value (NaN where the row
// has one), and the sum of exp(logit - largest), in one order whatever else is computed
void intone_summary(const float* logits, int64_t count, int64_t columns, int64_t* best, float* largest, double* total,
                    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 1 && count * columns > SMALL)
    for (int64_t r = 0; r < count; r++)
        summarise(logits + r * columns, columns, best + r, largest + r, total ? total + r : nullptr);
}

// the id of each row of logits (count, columns), which are finite, -inf or NaN, and its largest (NaN where it has one)
void intone_draw(const float* logits, int64_t count, int64_t columns, const Drawing* drawing, int64_t* ids, float* largest,
                 int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 1 && count * columns > SMALL)
    for (int64_t r = 0; r < count; r++) {
        const float* x = logits + r * columns;
        summarise(x, columns, ids + r, largest + r, nullptr);
        ids[r] = draw(x, columns, ids[r], largest[r], drawing[r]);
    }
}

void* intone_new_work() { return new Work; }

void intone_free_work(void* work) { delete (Work*)work; }

// logits (num_wanted, columns of the head) float32
void intone_step(const Model* model, const Batch* batch, void* work, float* logits, int threads) {
    if (model->is_half)
        run<bf16>(*model, *batch, *(Work*)work, logits, threads);
    else
        run<float>(*model, *batch, *(Work*)work, logits, threads);
}

// steps that follow each other without the host -> how many were made: all, or up to the first in which a text ended
int64_t intone_burst(const Model* model, const Batch* first, const Burst* burst, void* work, float* logits, int threads) {
    Work& own = *(Work*)work;
    Batch batch = *first;
    const int64_t count = batch.count, columns = model->head.columns;
    int64_t* ids = own.ids.fit(3 * count);
    int64_t *previous = ids + count, *positions = previous + count;
    for (int64_t r = 0; r < count; r++) ids[r] = batch.ids[r], previous[r] = batch.previous[r], positions[r] = batch.positions[r];
    batch.ids = ids, batch.previous = previous, batch.positions = positions;
    for (int64_t step = 0; step < burst->steps; step++) {
        intone_step(model, &batch, work, logits, threads);
        Found* found = burst->found + step * count;
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 1 && count * columns > SMALL)
        for (int64_t r = 0; r < count; r++) {
            const float* x = logits + r * columns;
            Found& row = found[r];
            Drawing how = burst->drawing[r];
            how.uniform = uniform_at(burst->streams[r], positions[r] + 1);
            row.total = 0;
            summarise(x, columns, &row.id, &row.largest, burst->is_summed ? &row.total : nullptr);
            row.id = draw(x, columns, row.id, row.largest, how);
            row.chosen = x[row.id];
        }
        bool has_ended = false;
        for (int64_t r = 0; r < count; r++) {
            has_ended |= !(found[r].largest - found[r].largest == 0) || burst->left[r] <= step + 1;
            for (int64_t i = 0; i < burst->num_stops; i++) has_ended |= found[r].id == burst->stops[r * burst->num_stops + i];
            previous[r] = ids[r], ids[r] = found[r].id, positions[r]++;
        }
        if (has_ended) return step + 1;
    }
    return burst->steps;
}

}  // extern "C"
