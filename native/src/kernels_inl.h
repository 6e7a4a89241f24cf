// All kernels, for the instruction set that the including file chose:
//
//   EMBELLAMA_ISA     the name of its table and its namespace
//   EMBELLAMA_LANES   floats in a vector: 8 or 16
//   EMBELLAMA_BF16    whether products take bfloat16
//   EMBELLAMA_ROWS    rows that one call of `multiply` computes at most
//
// and, where EMBELLAMA_BF16, EMBELLAMA_MULTIPLY, the file with its `multiply`. One product, `multiply`, serves the layers' weights and both products of
// attention:
//
//   weights ── pack, once ──► panels ─┐
//   keys, values ── pack_keys … ──► panels ─┴─► multiply ──► a tile of sums in the cache ── finish ──► rows

#include <cmath>
#include <cstring>
#include <memory>

#include <immintrin.h>

#include "kernels.h"

namespace embellama {
namespace EMBELLAMA_ISA {
namespace {

#include "vector.h"

// Not std::min: what is compiled here must have no symbol that a file for another CPU has too.
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/// Panels whose sums fit the registers together with EMBELLAMA_ROWS rows.
constexpr int MAX_PANELS = LANES == 16 ? 2 : 1;

/// Length of a row of sums.
constexpr int TILE_WIDTH = MAX_PANELS * PANEL;

/// Rows of a product that are computed by one task with the same weights: their inputs fit the second-level cache.
constexpr int64_t TASK_ROWS = 256;

/// Inputs that are multiplied before the next rows' turn: so many of the weights stay in the first-level cache meanwhile,
/// beside the rows' inputs and sums. A multiple of 32.
constexpr int64_t BLOCK = EMBELLAMA_BF16 ? 384 : 192;

/// Memory of one thread that is used again and again.
template <typename T> struct Scratch {
    T *get(int64_t n) {
        if (!memory || n > size) {
            memory.reset(static_cast<T *>(::operator new(n * sizeof(T), std::align_val_t(64))));
            size = n;
        }
        return memory.get();
    }

  private:
    struct Delete {
        void operator()(T *p) { ::operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<T, Delete> memory;
    int64_t size = 0;
};

#if EMBELLAMA_BF16
typedef uint16_t Number; // what `multiply` takes
#else
typedef float Number;
#endif

#if EMBELLAMA_BF16
static uint16_t bf16_of(float value) { return to_bf16(all(value))[0]; }

#include EMBELLAMA_MULTIPLY
/// Inputs of a product, rounded up to what `multiply` takes at a time.
static int64_t depth(int64_t n) { return padded(n); }
#else
static int64_t depth(int64_t n) { return n; }

/// As `multiply`, with all sums in registers.
template <int ROWS, int PANELS>
static inline __attribute__((always_inline)) void multiply_rows(const float *a, int64_t stride, const float *panels,
                                                                int64_t distance, int64_t n, bool add, float *sums,
                                                                int64_t width) {
    constexpr int PER_PANEL = PANEL / LANES, VECTORS = PANELS * PER_PANEL;
    Floats total[ROWS][VECTORS] = {};
    if (add)
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++) total[r][v] = load(sums + r * width + v * LANES);
    for (int64_t i = 0; i < n; i++) {
        Floats b[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            b[v] = load(panels + (v / PER_PANEL) * distance + i * PANEL + (v % PER_PANEL) * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const Floats x = all(a[r * stride + i]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) total[r][v] += x * b[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) store(sums + r * width + v * LANES, total[r][v]);
}

template <int PANELS>
static void multiply_panels(const float *a, int64_t stride, int n_rows, const float *panels, int64_t distance,
                            int64_t n, bool add, float *sums, int64_t width) {
    switch (n_rows) {
#define CASE(r)                                                                                                        \
    case r: return multiply_rows<r, PANELS>(a, stride, panels, distance, n, add, sums, width);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if EMBELLAMA_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
    }
}

/// sums (n_rows, n_panels * 16), in rows of `width`: the products of `n` inputs, added to what is there if `add`.
///
/// At most EMBELLAMA_ROWS rows and MAX_PANELS panels, which lie `distance` numbers apart.
static void multiply(const float *a, int64_t stride, int n_rows, const float *panels, int n_panels, int64_t distance,
                     int64_t n, bool add, float *sums, int64_t width) {
    if (n_panels == MAX_PANELS)
        multiply_panels<MAX_PANELS>(a, stride, n_rows, panels, distance, n, add, sums, width);
    else
        multiply_panels<1>(a, stride, n_rows, panels, distance, n, add, sums, width);
}
#endif

static Floats load_number(Format format, const void *from) {
    switch (format) {
        case Format::f32: return load(static_cast<const float *>(from));
        case Format::f16: return from_f16(static_cast<const uint16_t *>(from));
        case Format::bf16: return from_bf16(static_cast<const uint16_t *>(from));
    }
    return Floats{};
}

static constexpr int64_t size_of(Format format) { return format == Format::f32 ? 4 : 2; }

/// One number of any format as float32.
static float number(Format format, const void *from, int64_t index) {
    if (format == Format::f32) return static_cast<const float *>(from)[index];
    const uint16_t half = static_cast<const uint16_t *>(from)[index];
    if (format == Format::f16) return _cvtsh_ss(half);
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// ---- weights

static size_t packed_bytes(Format format, int64_t n_inputs, int64_t n_outputs) {
    const int64_t n_panels = (n_outputs + PANEL - 1) / PANEL;
    return n_panels * PANEL * depth(n_inputs) * (EMBELLAMA_BF16 ? 2 : size_of(format));
}

static void pack(Format format, const void *weights, int64_t n_inputs, int64_t n_outputs, void *packed) {
    memset(packed, 0, packed_bytes(format, n_inputs, n_outputs));
    for (int64_t o = 0; o < n_outputs; o++) {
        const int64_t panel = o / PANEL * PANEL * depth(n_inputs), column = o % PANEL;
        for (int64_t i = 0; i < n_inputs; i++) {
            const int64_t from = o * n_inputs + i;
#if EMBELLAMA_BF16
            static_cast<uint16_t *>(packed)[panel + i / 2 * 2 * PANEL + column * 2 + i % 2] =
                format == Format::bf16 ? static_cast<const uint16_t *>(weights)[from]
                                       : bf16_of(number(format, weights, from));
#else
            const int64_t to = panel + i * PANEL + column;
            if (format == Format::f32)
                static_cast<float *>(packed)[to] = static_cast<const float *>(weights)[from];
            else
                static_cast<uint16_t *>(packed)[to] = static_cast<const uint16_t *>(weights)[from];
#endif
        }
    }
}

// ---- product

static int64_t column_tasks(const Product &p) { return (p.n_outputs + TILE_WIDTH - 1) / TILE_WIDTH; }

static int64_t product_tasks(const Product &p) {
    return column_tasks(p) * ((p.n_rows + TASK_ROWS - 1) / TASK_ROWS);
}

static inline void put(float *out, uint16_t *out_bf16, Floats v, int64_t n) {
    if (n >= LANES) {
        if (out) store(out, v);
        if (out_bf16) {
            const Halves h = to_bf16(v);
            memcpy(out_bf16, &h, sizeof h);
        }
        return;
    }
    if (out) store_some(out, v, n);
    if (out_bf16) {
        const Halves h = to_bf16(v);
        memcpy(out_bf16, &h, n * 2);
    }
}

static inline Floats get(const float *from, int64_t n) { return n >= LANES ? load(from) : load_some(from, n); }

/// Apply what follows the product to rows of sums, and write them.
template <Activation ACTIVATION>
static void finish(const Product &p, const float *sums, int64_t first_row, int64_t n_rows, int64_t first_column,
                   int64_t n_columns) {
    for (int64_t r = 0; r < n_rows; r++) {
        const int64_t row = first_row + r;
        for (int64_t c = 0; c < n_columns; c += LANES) {
            const int64_t column = first_column + c, n = n_columns - c;
            Floats v = load(sums + r * TILE_WIDTH + c);
            if (p.bias) v += get(p.bias + column, n);
            v = activate(ACTIVATION, v);
            if (p.gate) v *= get(p.gate + row * p.gate_stride + column, n);
            if (p.residual) v += get(p.residual + row * p.residual_stride + column, n);
            put(p.out ? p.out + row * p.out_stride + column : nullptr,
                p.out_bf16 ? p.out_bf16 + row * p.out_bf16_stride + column : nullptr, v, n);
        }
    }
}

/// `finish` for each activation.
static constexpr decltype(&finish<Activation::none>) finish_with[] = {
    finish<Activation::none>,       finish<Activation::gelu>, finish<Activation::gelu_erf>,
    finish<Activation::gelu_quick>, finish<Activation::silu>, finish<Activation::relu>,
};

/// A block of a product's weights: `n` inputs of the panels from `first_column` on.
struct Weights {
    const Number *panels; // as `multiply` takes them
    int64_t distance;     // of one panel from the next
    const char *packed;   // where the first panel's lie in memory
    int64_t n_bytes;
};

/// Find a block, and bring it into the form that `multiply` takes; `expanded` is memory for that.
static Weights block_of(const Product &p, int64_t first_column, [[maybe_unused]] int n_panels, int64_t first, int64_t n,
                        [[maybe_unused]] Number *expanded) {
    const int64_t size = EMBELLAMA_BF16 ? 2 : size_of(p.format), distance = depth(p.n_inputs) * PANEL;
    const char *packed =
        static_cast<const char *>(p.weights) + (first_column * depth(p.n_inputs) + first * PANEL) * size;
    Weights block{reinterpret_cast<const Number *>(packed), distance, packed, n * PANEL * size};
#if !EMBELLAMA_BF16
    if (p.format == Format::f32) return block;
    for (int panel = 0; panel < n_panels; panel++)
        for (int64_t i = 0; i < n * PANEL; i += LANES)
            store(expanded + panel * n * PANEL + i, load_number(p.format, packed + (panel * distance + i) * size));
    block.panels = expanded, block.distance = n * PANEL;
#endif
    return block;
}

static void product(const Product &p, int64_t task) {
    alignas(64) float sums[TASK_ROWS * TILE_WIDTH];
    alignas(64) Number expanded[EMBELLAMA_BF16 ? 1 : BLOCK * TILE_WIDTH];
    const int64_t n_columns = column_tasks(p), n = depth(p.n_inputs);
    const int64_t first_column = task % n_columns * TILE_WIDTH, first_row = task / n_columns * TASK_ROWS;
    const int64_t columns = least(TILE_WIDTH, p.n_outputs - first_column);
    const int64_t rows = least(TASK_ROWS, p.n_rows - first_row);
    const int n_panels = (columns + PANEL - 1) / PANEL;
    const Number *inputs = static_cast<const Number *>(p.inputs) + first_row * p.stride;
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t n_block = least(BLOCK, n - i);
        const Weights block = block_of(p, first_column, n_panels, i, n_block, expanded);
        // While a block is multiplied, the next one is fetched, a share with each call.
        const int64_t share = (block.n_bytes * EMBELLAMA_ROWS / rows + 63) / 64 * 64;
        const char *next = block.packed + block.n_bytes;
        for (int64_t row = 0; row < rows; row += EMBELLAMA_ROWS) {
            for (int64_t byte = 0; byte < share; byte += 64) _mm_prefetch(next + byte, _MM_HINT_T0);
            next += share;
            const int n_rows = least(EMBELLAMA_ROWS, rows - row);
            multiply(inputs + row * p.stride + i, p.stride, n_rows, block.panels, n_panels, block.distance, n_block,
                     i > 0, sums + row * TILE_WIDTH, TILE_WIDTH);
        }
    }
    finish_with[int(p.activation)](p, sums, first_row, rows, first_column, columns);
}

// ---- rows

static void convert(const float *row, int64_t n, uint16_t *bf16) {
    for (int64_t i = 0; i < n; i += LANES) put(nullptr, bf16 + i, get(row + i, n - i), n - i);
    memset(bf16 + n, 0, (padded(n) - n) * 2);
}

static void norm(const Norm &p, int64_t row) {
    const float *in = p.in + row * p.in_stride;
    float *out = p.out ? p.out + row * p.out_stride : nullptr;
    uint16_t *out_bf16 = p.out_bf16 ? p.out_bf16 + row * p.out_bf16_stride : nullptr;
    float mean = 0;
    if (!p.rms) {
        Floats total{};
        for (int64_t i = 0; i < p.n; i += LANES) total += get(in + i, p.n - i);
        mean = sum(total) / p.n;
    }
    Floats squares{};
    int64_t i = 0;
    for (; i + LANES <= p.n; i += LANES) {
        const Floats v = load(in + i) - all(mean);
        squares += v * v;
    }
    float variance = sum(squares);
    for (; i < p.n; i++) variance += (in[i] - mean) * (in[i] - mean);
    const Floats scale = all(1.0f / std::sqrt(variance / p.n + p.epsilon));
    for (i = 0; i < p.n; i += LANES) {
        const int64_t n = p.n - i;
        Floats v = (get(in + i, n) - all(mean)) * scale;
        if (p.weight) v *= get(p.weight + i, n);
        if (p.bias) v += get(p.bias + i, n);
        put(out ? out + i : nullptr, out_bf16 ? out_bf16 + i : nullptr, v, n);
    }
    if (out_bf16) memset(out_bf16 + p.n, 0, (padded(p.n) - p.n) * 2);
}

static void gated(const Gated &p, int64_t row) {
    const float *a = p.a + row * p.a_stride, *b = p.b + row * p.b_stride;
    float *out = p.out + row * p.out_stride;
    for (int64_t i = 0; i < p.n; i += LANES) {
        const int64_t n = p.n - i;
        put(out + i, nullptr, activate(p.activation, get(a + i, n)) * get(b + i, n), n);
    }
}

// ---- attention

static int64_t attention_tasks(const Attention &p) { return p.n_blocks * p.n_kv_heads; }

static inline Number as_number(float value) {
#if EMBELLAMA_BF16
    return bf16_of(value);
#else
    return value;
#endif
}

/// One vector of numbers in whatever `multiply` takes.
static inline void put_numbers(Number *to, Floats v) {
#if EMBELLAMA_BF16
    const Halves h = to_bf16(v);
    memcpy(to, &h, sizeof h);
#else
    store(to, v);
#endif
}

/// Inputs of a product that lie side by side in a panel, for one output after another.
constexpr int64_t GROUP = sizeof(float) / sizeof(Number);

/// Rows of `length` numbers as the outputs of panels: keys, each of which becomes a score.
static void pack_keys(Format format, const char *rows, int64_t stride, int64_t n_rows, int64_t length, Number *panels,
                      Number *row_numbers) {
    const int64_t n = depth(length), last_panel = n_rows / PANEL * PANEL;
    if (last_panel < n_rows) memset(panels + last_panel * n, 0, PANEL * n * sizeof(Number));
    for (int64_t i = length; i < n; i++) row_numbers[i] = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        const char *row = rows + r * stride * size_of(format);
        int64_t i = 0;
        for (; i + LANES <= length; i += LANES) put_numbers(row_numbers + i, load_number(format, row + i * size_of(format)));
        for (; i < length; i++) row_numbers[i] = as_number(number(format, row, i));
        Number *to = panels + r / PANEL * PANEL * n + r % PANEL * GROUP;
        for (i = 0; i < n; i += GROUP) memcpy(to + i * PANEL, row_numbers + i, sizeof(float));
    }
}

/// Rows of `length` numbers as the inputs of panels: values, which are added up with the scores' weights.
static void pack_values(Format format, const char *rows, int64_t stride, int64_t n_rows, int64_t length,
                        Number *panels) {
    const int64_t n = depth(n_rows), size = size_of(format);
    if (length % PANEL) memset(panels, 0, (length + PANEL - 1) / PANEL * PANEL * n * sizeof(Number));
    for (int64_t r = 0; r < n; r += GROUP) {
        const char *row = rows + r * stride * size;
        int64_t o = 0;
        for (; o + LANES <= length; o += LANES) {
            Number *to = panels + o / PANEL * PANEL * n + r * PANEL + o % PANEL * GROUP;
            const Floats first = r < n_rows ? load_number(format, row + o * size) : Floats{};
#if EMBELLAMA_BF16
            const Floats second = r + 1 < n_rows ? load_number(format, row + (stride + o) * size) : Floats{};
            const Words pairs = __builtin_convertvector(to_bf16(first), Words) |
                                __builtin_convertvector(to_bf16(second), Words) << 16;
            memcpy(to, &pairs, sizeof pairs);
#else
            store(to, first);
#endif
        }
        for (; o < length; o++)
            for (int64_t g = 0; g < GROUP; g++)
                panels[o / PANEL * PANEL * n + r * PANEL + o % PANEL * GROUP + g] =
                    r + g < n_rows ? as_number(number(format, row + g * stride * size, o)) : Number(0);
    }
}

static bool any_nan(const float *numbers, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (numbers[i] != numbers[i]) return true;
    return false;
}

/// Turn a row of scores into weights that are yet to be divided by their sum, which is returned.
///
/// `scores` and `weights` have room for whole vectors.
static float soften(float *scores, int64_t n, float scale, const uint16_t *mask, float slope, Number *weights) {
    if (mask) {
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES)
            store(scores + i, load(scores + i) * all(scale) + from_f16(mask + i) * all(slope));
        for (; i < n; i++) scores[i] = scores[i] * scale + number(Format::f16, mask, i) * slope;
        scale = 1;
    }
    const int64_t end = (n + LANES - 1) / LANES * LANES, last = end - LANES;
    if (n < end) store(scores + last, first_lanes(load(scores + last), n - last, -INFINITY));
    Floats most = all(-INFINITY);
    for (int64_t i = 0; i < end; i += LANES) most = max(load(scores + i), most); // which passes by NaN
    const float highest = largest(most);
    if (highest == -INFINITY && !any_nan(scores, n)) { // nothing may be seen
        memset(weights, 0, depth(n) * sizeof(Number));
        return 0;
    }
    // As a power of 2, so that scale and base are one factor. What rounding does to `shift` is the same for the whole row.
    const float factor = scale * LOG2_E, shift = highest * factor;
    Floats total{};
    for (int64_t i = 0; i < end; i += LANES) {
        const Floats score = load(scores + i) * all(factor) - all(shift), power = exp2(score);
        const Floats v = score < all(-126.0f) ? Floats{} : power; // what may not be seen has no weight at all
        total += v;
        put_numbers(weights + i, v);
    }
    for (int64_t i = end; i < depth(n); i++) weights[i] = 0;
    return sum(total);
}

static void attention(const Attention &p, int64_t task) {
    thread_local Scratch<Number> key_panels, value_panels, query_rows, weight_rows;
    thread_local Scratch<float> score_rows;
    alignas(64) float sums[EMBELLAMA_ROWS * TILE_WIDTH];

    const Block &block = p.blocks[task / p.n_kv_heads];
    const int64_t kv_head = task % p.n_kv_heads, heads = p.n_heads / p.n_kv_heads;
    const int64_t n_keys = block.end_key - block.first_key;
    const int64_t n_key_panels = (n_keys + PANEL - 1) / PANEL, n_value_panels = (p.value_length + PANEL - 1) / PANEL;
    const int64_t n_key = depth(p.key_length), n_value = depth(n_keys);

    Number *keys = key_panels.get(n_key_panels * PANEL * n_key);
    Number *values = value_panels.get(n_value_panels * PANEL * n_value);
    const int64_t size = size_of(p.format);
    pack_keys(p.format,
              static_cast<const char *>(p.keys) +
                  (block.first_key * p.key_stride + kv_head * p.key_head_stride) * size,
              p.key_stride, n_keys, p.key_length, keys, query_rows.get(EMBELLAMA_ROWS * n_key));
    pack_values(p.format,
                static_cast<const char *>(p.values) +
                    (block.first_key * p.value_stride + kv_head * p.value_head_stride) * size,
                p.value_stride, n_keys, p.value_length, values);

    const int64_t score_stride = padded(n_keys);
    float *scores = score_rows.get(EMBELLAMA_ROWS * score_stride);
    Number *weights = weight_rows.get(EMBELLAMA_ROWS * score_stride);
    for (int64_t h = 0; h < heads; h++) {
        const int64_t head = kv_head * heads + h;
        for (int64_t first = block.first_query; first < block.end_query; first += EMBELLAMA_ROWS) {
            const int n_rows = least(EMBELLAMA_ROWS, block.end_query - first);
            const float *queries = p.queries + first * p.query_stride + head * p.query_head_stride;
#if EMBELLAMA_BF16
            Number *rows = query_rows.get(EMBELLAMA_ROWS * n_key);
            for (int r = 0; r < n_rows; r++) convert(queries + r * p.query_stride, p.key_length, rows + r * n_key);
            const int64_t stride = n_key;
#else
            const float *rows = queries;
            const int64_t stride = p.query_stride;
#endif
            for (int64_t panel = 0; panel < n_key_panels; panel += MAX_PANELS)
                multiply(rows, stride, n_rows, keys + panel * PANEL * n_key, least(MAX_PANELS, n_key_panels - panel),
                         n_key * PANEL, n_key, false, scores + panel * PANEL, score_stride);
            float scale[EMBELLAMA_ROWS];
            for (int r = 0; r < n_rows; r++) {
                const uint16_t *mask =
                    block.masked ? p.mask + (first + r) * p.mask_stride + block.first_key : nullptr;
                const float total = soften(scores + r * score_stride, n_keys, p.scale, mask, p.slopes[head],
                                           weights + r * score_stride);
                scale[r] = total == 0 ? 0 : 1 / total;
            }
            for (int64_t panel = 0; panel < n_value_panels; panel += MAX_PANELS) {
                const int n_panels = least(MAX_PANELS, n_value_panels - panel);
                multiply(weights, score_stride, n_rows, values + panel * PANEL * n_value, n_panels, n_value * PANEL,
                         n_value, false, sums, TILE_WIDTH);
                const int64_t n = least(n_panels * PANEL, p.value_length - panel * PANEL);
                for (int r = 0; r < n_rows; r++) {
                    float *out = p.out + ((first + r) * p.n_heads + head) * p.value_length + panel * PANEL;
                    for (int64_t c = 0; c < n; c += LANES)
                        put(out + c, nullptr, load(sums + r * TILE_WIDTH + c) * all(scale[r]), n - c);
                }
            }
        }
    }
}

} // namespace
} // namespace EMBELLAMA_ISA

#define EMBELLAMA_CONCAT(a, b) a##b
#define EMBELLAMA_TABLE(isa) EMBELLAMA_CONCAT(kernels_, isa)
#define EMBELLAMA_TEXT(isa) #isa
#define EMBELLAMA_NAME(isa) EMBELLAMA_TEXT(isa)

const Kernels EMBELLAMA_TABLE(EMBELLAMA_ISA) = {
    EMBELLAMA_NAME(EMBELLAMA_ISA),
    EMBELLAMA_ISA::usable,
    EMBELLAMA_BF16,
    EMBELLAMA_ISA::packed_bytes,
    EMBELLAMA_ISA::pack,
    EMBELLAMA_ISA::product_tasks,
    EMBELLAMA_ISA::product,
    EMBELLAMA_ISA::convert,
    EMBELLAMA_ISA::norm,
    EMBELLAMA_ISA::gated,
    EMBELLAMA_ISA::attention_tasks,
    EMBELLAMA_ISA::attention,
    EMBELLAMA_ISA::begin,
    EMBELLAMA_ISA::end,
};

} // namespace embellama
