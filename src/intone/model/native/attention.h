// What attention in bfloat16 (attention.cpp) and in float32 (attention_avx2.cpp) share: sizes, and which queries are wanted.
#pragma once
#include <cstdint>
#include <cstring>

struct Shape {
    int64_t rows, positions, heads, kv_heads, width;
    int64_t q_row, q_position, kv_row, kv_position;  // strides in elements; heads are next to each other
    int64_t d_row, d_position;                       // strides of dq, dk and dv
};

// the queries of a row that are wanted
struct Wanted {
    const int32_t* position;  // of each, ascending; null: all of the row
    const int32_t* first;     // of each position
    int64_t begin;            // wanted queries of earlier rows
    int count;

    int at(int i) const { return position ? position[i] : i; }
    int first_of(int i) const { return first[at(i)]; }
};

inline Wanted wanted_of(int64_t row, const Shape& s, const int32_t* first, const int32_t* taken, const int64_t* starts) {
    first += row * s.positions;
    if (!starts) return {nullptr, first, row * s.positions, (int)s.positions};
    return {taken + starts[row], first, starts[row], (int)(starts[row + 1] - starts[row])};
}

// zeros for the gradients of queries that are not wanted: size numbers of each position of the row
template <class Number>
void clear_others(const Wanted& wanted, int64_t positions, Number* dq, int64_t stride, int64_t size) {
    if (wanted.count == positions) return;
    for (int t = 0, i = 0; t < positions; t++)
        if (i < wanted.count && wanted.at(i) == t)
            i++;
        else
            std::memset(dq + t * stride, 0, size * sizeof(Number));
}
