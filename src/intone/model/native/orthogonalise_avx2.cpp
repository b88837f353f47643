// Muon's products in float32: odd polynomials of the singular values of matrices, all but the last product symmetric.
//
// Operands lie in panels: PANEL columns side by side, row below row, with zeros beyond the last row and column. A product
// of one turned by another reads both as they lie, so that a symmetric result is the next product's operand and nothing
// is packed twice. Results are computed on and below their diagonal, in squares, and mirrored square by square.
//
// Matrices of a stack that are small are each computed by one thread alone, which waits for nobody and keeps its matrix in
// its own cache; of the others, and of those that are left over, all threads compute one together. The bits are the same.
#include "common_avx2.h"

namespace {

constexpr int64_t SQUARE = PANEL * PANEL;
constexpr int64_t ALONE = 512;  // the shorter side of matrices that threads compute alone: 6 MiB of scratch a thread

inline int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

// a matrix by its two strides, one of which is 1
struct View {
    const float* data;
    int64_t row, column;
    View turned() const { return {data, column, row}; }
};

// work(i) for i below count, by this thread alone or shared among those that call it
template <bool SHARED, class Work>
inline void each(int64_t count, Work work) {
    if (!SHARED) {
        for (int64_t i = 0; i < count; i++) work(i);
        return;
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; i++) work(i);
}

// panel j of y (rows, columns), zeros below its last row and right of its last column
void make_panel(View y, int64_t rows, int64_t columns, int64_t j, float* panel) {
    const int64_t first = j * PANEL;
    pack_panel(y.data + first * y.column, y.row, y.column, rows, std::min(PANEL, columns - first), panel);
    std::fill(panel + rows * PANEL, panel + padded(rows) * PANEL, 0.0f);
}

// where a square is: its rows are ld apart
struct Place {
    float* c;
    int64_t ld = PANEL;
};

// to (16, 16) = or += a turned @ b, both k rows of a panel
inline void square(const float* a, const float* b, int64_t k, Place to, bool add) {
    packed_tile<6, PANEL>(a, 0, b, to.c, to.ld, k, add);
    packed_tile<5, PANEL>(a + 6, 0, b, to.c + 6 * to.ld, to.ld, k, add);
    packed_tile<5, PANEL>(a + 11, 0, b, to.c + 11 * to.ld, to.ld, k, add);
}

// one panel of m rows by a symmetric matrix (m, m), to place(i) for each of its panels i; right: it is on the right
template <class Where>
inline void squares(const float* panel, const float* matrix, int64_t m, bool right, Where place) {
    for (int64_t from = 0; from < m; from += DEPTH)
        for (int64_t i = 0; i < m / PANEL; i++) {
            const float *here = panel + from * PANEL, *other = matrix + (i * m + from) * PANEL;
            square(right ? here : other, right ? other : here, std::min(DEPTH, m - from), place(i), from > 0);
        }
}

inline void turn_square(const float* from, float* to) {
    for (int64_t i = 0; i < PANEL; i += LANES)
        for (int64_t j = 0; j < PANEL; j += LANES) transpose_tile(from + i * PANEL + j, PANEL, to + j * PANEL + i, PANEL);
}

// what happens to a product: times alpha, plus beta * d where there is a d, plus diagonal where row and column are equal
struct Finish {
    float alpha = 1;
    const float* d = nullptr;
    float beta = 0, diagonal = 0;
};

// c (m, m) = or += a turned (m, k) @ b (k, m), which must be symmetric; panels, m a multiple of PANEL
template <bool SHARED>
void symmetric_product(const float* a, const float* b, int64_t k, int64_t m, bool add, Finish finish, float* c) {
    const int64_t panels = m / PANEL;
    each<SHARED>(panels, [&](int64_t task) {
        const int64_t i = panels - 1 - task;  // those with most to do first
        for (int64_t from = 0; from < k; from += DEPTH) {
            const int64_t depth = std::min(DEPTH, k - from);
            for (int64_t j = 0; j <= i; j++) {
                float* to = c + j * m * PANEL + i * SQUARE;
                square(a + (i * k + from) * PANEL, b + (j * k + from) * PANEL, depth, {to}, add || from > 0);
                if (from + depth < k) continue;
                if (finish.d || finish.alpha != 1)
                    for (int64_t at = 0; at < SQUARE; at += LANES) {
                        __m256 x = _mm256_mul_ps(load(to + at), all(finish.alpha));
                        if (finish.d) x = _mm256_fmadd_ps(load(finish.d + (to - c) + at), all(finish.beta), x);
                        store(to + at, x);
                    }
                if (i > j) {
                    turn_square(to, c + i * m * PANEL + j * SQUARE);
                    continue;
                }
                for (int64_t r = 0; r < PANEL; r++) {
                    to[r * PANEL + r] += finish.diagonal;
                    for (int64_t s = 0; s < r; s++) to[s * PANEL + r] = to[r * PANEL + s];
                }
            }
        }
    });
}

struct Polynomials {
    const float* abc;  // (steps, 3)
    int64_t steps;
};

// One matrix x (rows, columns), in place; y is x or x turned, wider than high
struct Matrix {
    float* x;
    int64_t rows, columns;
    bool tall() const { return rows > columns; }
    int64_t low() const { return std::min(rows, columns); }
    int64_t high() const { return std::max(rows, columns); }
    View y() const { return tall() ? View{x, 1, columns} : View{x, columns, 1}; }
    // square (i, j) of y; of x, if it is tall, square (j, i)
    Place place(int64_t i, int64_t j) const { return {x + (tall() ? j * columns + i : i * columns + j) * PANEL, columns}; }
    bool is_inside(int64_t i, int64_t j) const { return (i + 1) * PANEL <= low() && (j + 1) * PANEL <= high(); }
    // what is there of a square of x
    void write(const float* square, int64_t i, int64_t j) const {
        if (tall()) std::swap(i, j);
        float* to = x + (i * columns + j) * PANEL;
        const __m256i masks[2] = {lanes(columns - j * PANEL), lanes(columns - j * PANEL - LANES)};
        for (int64_t r = 0; r < std::min(PANEL, rows - i * PANEL); r++)
            for (int half = 0; half < 2; half++)
                store(to + r * columns + half * LANES, load(square + r * PANEL + half * LANES), masks[half]);
    }
};

// values that a matrix's computation needs; of these, each thread on its own
int64_t scratch_of(Matrix x) {
    const int64_t m = padded(x.low()), n = padded(x.high());
    return std::max(2 * m * (m + n), m * (5 * m + DEPTH));
}
int64_t own_scratch_of(Matrix x) { return 2 * padded(x.low()) * PANEL; }

// Nearly square: y itself is multiplied in every step. It may have singular values so small that their squares drown in the
// rounding of its Gram matrix, on which all steps together would need no fewer operations.
template <bool SHARED>
void by_steps(Matrix x, Polynomials polynomials, float* scratch, float* fresh) {
    const int64_t m = padded(x.low()), n = padded(x.high());
    float *across = scratch, *along = across + m * n;  // panels of y, and of y turned
    float *gram = along + m * n, *polynomial = gram + m * m;
    each<SHARED>(n / PANEL, [&](int64_t j) { make_panel(x.y(), x.low(), x.high(), j, across + j * m * PANEL); });
    each<SHARED>(m / PANEL, [&](int64_t i) { make_panel(x.y().turned(), x.high(), x.low(), i, along + i * n * PANEL); });
    for (int64_t step = 0; step < polynomials.steps; step++) {
        const float* abc = polynomials.abc + 3 * step;
        symmetric_product<SHARED>(along, along, n, m, false, {}, gram);
        symmetric_product<SHARED>(gram, gram, m, m, false, {abc[2], gram, abc[1], abc[0]}, polynomial);
        each<SHARED>(n / PANEL, [&](int64_t j) {
            float* panel = across + j * m * PANEL;
            squares(panel, polynomial, m, false, [&](int64_t i) { return Place{fresh + i * SQUARE}; });
            std::memcpy(panel, fresh, m * PANEL * sizeof(float));
            for (int64_t i = 0; i < m / PANEL; i++) turn_square(fresh + i * SQUARE, along + i * n * PANEL + j * SQUARE);
        });
    }
    each<SHARED>(n / PANEL, [&](int64_t j) {
        for (int64_t i = 0; i < m / PANEL; i++)
            x.write(x.tall() ? along + i * n * PANEL + j * SQUARE : across + j * m * PANEL + i * SQUARE, i, j);
    });
}

// Long: the polynomials act on the Gram matrix of the shorter side and are multiplied up, so that x is read twice
template <bool SHARED>
void by_gram(Matrix x, Polynomials polynomials, float* scratch, float* own) {
    const int64_t m = padded(x.low());
    float *gram = scratch, *polynomial = gram + m * m, *inner = polynomial + m * m;
    float *whole = inner + m * m, *spare = whole + m * m, *piece = spare + m * m;
    for (int64_t from = 0; from < x.high(); from += DEPTH) {
        const int64_t depth = std::min(DEPTH, x.high() - from);
        const View turned = x.y().turned(), part = {turned.data + from * turned.row, turned.row, turned.column};
        each<SHARED>(m / PANEL, [&](int64_t i) {
            pack_panel(part.data + i * PANEL * part.column, part.row, part.column, depth, std::min(PANEL, x.low() - i * PANEL),
                       piece + i * depth * PANEL);
        });
        symmetric_product<SHARED>(piece, piece, depth, m, from > 0, {}, gram);
    }
    for (int64_t step = 0; step < polynomials.steps; step++) {
        const float* abc = polynomials.abc + 3 * step;
        float* here = step ? polynomial : whole;  // the first polynomial is the product so far
        symmetric_product<SHARED>(gram, gram, m, m, false, {abc[2], gram, abc[1], abc[0]}, here);
        if (step) {
            symmetric_product<SHARED>(here, whole, m, m, false, {}, spare);
            std::swap(whole, spare);
        }
        if (step + 1 < polynomials.steps) {
            symmetric_product<SHARED>(here, gram, m, m, false, {}, inner);
            symmetric_product<SHARED>(here, inner, m, m, false, {}, gram);
        }
    }
    float *panel = own, *fresh = own + m * PANEL;
    each<SHARED>(padded(x.high()) / PANEL, [&](int64_t j) {
        auto place = [&](int64_t i) { return x.is_inside(i, j) ? x.place(i, j) : Place{fresh + i * SQUARE}; };
        make_panel(x.y(), x.low(), x.high(), j, panel);
        squares(panel, whole, m, x.tall(), place);
        for (int64_t i = 0; i < m / PANEL; i++)
            if (!x.is_inside(i, j)) x.write(fresh + i * SQUARE, i, j);
    });
}

template <bool SHARED>
void orthogonalise(Matrix x, Polynomials polynomials, float* scratch, float* own) {
    if (4 * x.high() <= 5 * x.low())
        by_steps<SHARED>(x, polynomials, scratch, own);
    else
        by_gram<SHARED>(x, polynomials, scratch, own);
}

}  // namespace

extern "C" {

// x (count, rows, columns) in place: the odd polynomials a s + b s^3 + c s^5 applied to each matrix's singular values s, one
// after the other; coefficients (steps, 3)
void intone_orthogonalise(float* x, const float* coefficients, int64_t steps, int64_t count, int64_t rows, int64_t columns,
                          int threads) {
    const Polynomials polynomials{coefficients, steps};
    const Matrix first{x, rows, columns};
    const int64_t alone = first.low() <= ALONE ? count / threads * threads : 0;
    Kept shared;
    float* scratch = alone < count ? shared.of(scratch_of(first)) : nullptr;
#pragma omp parallel num_threads(threads)
    {
        Kept kept;
        float* own = kept.of(own_scratch_of(first) + (alone ? scratch_of(first) : 0));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < alone; i++)
            orthogonalise<false>({x + i * rows * columns, rows, columns}, polynomials, own + own_scratch_of(first), own);
        for (int64_t i = alone; i < count; i++)
            orthogonalise<true>({x + i * rows * columns, rows, columns}, polynomials, scratch, own);
    }
}

}  // extern "C"
