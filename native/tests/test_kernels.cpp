// Every kernel against plain loops in double precision, over random shapes.
//
// Memory is exactly as large as the kernels may use, so that AddressSanitizer sees what goes beyond it. bfloat16 is rounded
// here as the kernels round it, so that what remains to tolerate is the order of float32 sums.

#include <algorithm>
#include <vector>

#include "check.h"
#include "emulated.h"

using namespace embellama;

constexpr float UNTOUCHED = -12345;

static double activated(Activation activation, double x) {
    switch (activation) {
        case Activation::none: return x;
        case Activation::gelu: return 0.5 * x * (1 + std::tanh(0.79788456080286535588 * x * (1 + 0.044715 * x * x)));
        case Activation::gelu_erf: return 0.5 * x * std::erfc(-x * 0.70710678118654752440);
        case Activation::gelu_quick: return x / (1 + std::exp(-1.702 * x));
        case Activation::silu: return x / (1 + std::exp(-x));
        case Activation::relu: return x > 0 ? x : 0;
    }
    return x;
}

/// Rows of numbers, as far apart as `stride` says; nothing lies behind the last row.
template <typename T> struct Rows {
    int64_t n_rows, n, stride;
    std::vector<T> numbers;

    Rows(int64_t n_rows, int64_t n, int64_t stride, T fill)
        : n_rows(n_rows), n(n), stride(stride), numbers((n_rows - 1) * stride + n, fill) {}
    T &at(int64_t row, int64_t i) { return numbers[row * stride + i]; }
    T *data() { return numbers.data(); }

    /// Whether what lies between the rows is as it was.
    bool gaps_are(T fill) {
        for (int64_t i = 0; i < int64_t(numbers.size()); i++)
            if (i % stride >= n && numbers[i] != fill) return false;
        return true;
    }
};

static Rows<float> random_rows(Random &random, int64_t n_rows, int64_t n) {
    Rows<float> rows(n_rows, n, n + (random.coin() ? 0 : random.between(1, 40)), NAN);
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t i = 0; i < n; i++) rows.at(r, i) = random.uniform();
    return rows;
}

static Rows<float> untouched_rows(Random &random, int64_t n_rows, int64_t n) {
    return Rows<float>(n_rows, n, n + (random.coin() ? 0 : random.between(1, 40)), UNTOUCHED);
}

static std::vector<float> random_vector(Random &random, int64_t n) {
    std::vector<float> numbers(n);
    for (float &x : numbers) x = random.uniform();
    return numbers;
}

static void check_close(const Kernels &kernels, const char *what, double got, double want, double tolerance) {
    const bool close = std::fabs(got - want) <= tolerance * (1 + std::fabs(want));
    check(close, "%s: %s is %.9g, not %.9g", kernels.name, what, got, want);
}

/// Half a unit in the last of bfloat16's 8 places, and a little for sums that fall on the other side.
constexpr double BF16_TOLERANCE = 1.01 / 256;

// ---- product

static void check_product(const Kernels &kernels, Random &random) {
    const int64_t n_rows = random.between(1, random.coin() ? 40 : 200), n_inputs = random.between(1, 600),
                  n_outputs = random.between(1, random.coin() ? 40 : 200);
    const Format format = Format(random.between(0, 2));

    // Weights, as stored and as they are used.
    const int64_t n = n_inputs * n_outputs;
    const float size = 2 / std::sqrt(float(n_inputs));
    std::vector<float> weights(n), plain(n);
    std::vector<uint16_t> halves(n);
    for (int64_t i = 0; i < n; i++) {
        weights[i] = plain[i] = random.uniform() * size;
        if (format == Format::f16) halves[i] = to_f16(weights[i]), plain[i] = of_f16(halves[i]);
        if (format == Format::bf16) halves[i] = to_bf16(weights[i]), plain[i] = of_bf16(halves[i]);
        if (kernels.bf16) plain[i] = of_bf16(to_bf16(plain[i]));
    }
    std::vector<char> packed(kernels.packed_bytes(format, n_inputs, n_outputs), 0x7f);
    kernels.pack(format, format == Format::f32 ? static_cast<void *>(weights.data()) : halves.data(), n_inputs, n_outputs,
                 packed.data());

    Product p{};
    p.n_rows = n_rows, p.n_inputs = n_inputs, p.n_outputs = n_outputs, p.weights = packed.data(), p.format = format;
    Rows<float> inputs = random_rows(random, n_rows, n_inputs);
    p.inputs = inputs.data(), p.stride = inputs.stride;
    // The rows up to the 32nd are anybody's: NaN.
    std::vector<uint16_t> converted(kernels.bf16 ? padded(n_rows) * padded(n_inputs) : 0, 0x7fc0);
    if (kernels.bf16) {
        p.inputs = converted.data(), p.stride = padded(n_inputs);
        for (int64_t r = 0; r < n_rows; r++) {
            kernels.convert(&inputs.at(r, 0), n_inputs, &converted[r * p.stride]);
            for (int64_t i = 0; i < n_inputs; i++) inputs.at(r, i) = of_bf16(to_bf16(inputs.at(r, i)));
        }
    }
    const auto bias = random_vector(random, n_outputs);
    Rows<float> gate = random_rows(random, n_rows, n_outputs), residual = random_rows(random, n_rows, n_outputs);
    Rows<float> out = untouched_rows(random, n_rows, n_outputs);
    Rows<uint16_t> out_bf16(n_rows, n_outputs, padded(n_outputs), 0x1234);
    p.activation = Activation(random.between(0, 5));
    if (random.coin()) p.bias = bias.data();
    if (random.coin()) p.gate = gate.data(), p.gate_stride = gate.stride;
    if (random.coin()) p.residual = residual.data(), p.residual_stride = residual.stride;
    const bool in_place = p.residual && random.coin(); // the result is written over what is added to it
    const Rows<float> added = residual;
    Rows<float> &result = in_place ? residual : out;
    const int64_t outputs = random.between(1, 3);
    if (outputs & 1) p.out = result.data(), p.out_stride = result.stride;
    if (outputs & 2) p.out_bf16 = out_bf16.data(), p.out_bf16_stride = out_bf16.stride;

    std::vector<int64_t> tasks(kernels.product_tasks(p));
    for (size_t i = 0; i < tasks.size(); i++) tasks[i] = i;
    for (size_t i = tasks.size(); i > 1; i--) std::swap(tasks[i - 1], tasks[random.between(0, i - 1)]);
    kernels.begin();
    for (int64_t task : tasks) kernels.product(p, task);
    kernels.end();

    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t o = 0; o < n_outputs; o++) {
            double want = 0;
            for (int64_t i = 0; i < n_inputs; i++) want += double(inputs.at(r, i)) * plain[o * n_inputs + i];
            if (p.bias) want += bias[o];
            want = activated(p.activation, want);
            if (p.gate) want *= gate.at(r, o);
            if (p.residual) want += added.numbers[r * added.stride + o];
            if (p.out) check_close(kernels, "a product", result.at(r, o), want, 1e-5);
            if (p.out_bf16) check_close(kernels, "a product's bfloat16", of_bf16(out_bf16.at(r, o)), want, BF16_TOLERANCE);
        }
    check(in_place || out.gaps_are(UNTOUCHED), "%s: a product writes beside its rows", kernels.name);
    check(out_bf16.gaps_are(0x1234), "%s: a product writes beside its bfloat16 rows", kernels.name);
}

// ---- rows

static void check_convert(const Kernels &kernels, Random &random) {
    const auto row = random_vector(random, random.between(1, 600));
    const int64_t n = row.size();
    std::vector<uint16_t> bf16(padded(n), 0x7fc0);
    kernels.convert(row.data(), n, bf16.data());
    for (int64_t i = 0; i < padded(n); i++)
        check(bf16[i] == (i < n ? to_bf16(row[i]) : 0), "%s: convert gives %04x at %d of %d", kernels.name, bf16[i],
              int(i), int(n));
}

static void check_norm(const Kernels &kernels, Random &random) {
    const int64_t n_rows = random.between(1, 30), n = random.between(1, 600);
    Rows<float> in = random_rows(random, n_rows, n), out = untouched_rows(random, n_rows, n);
    const float shift = random.uniform();
    for (float &x : in.numbers) x = 3 * x + shift;
    const Rows<float> before = in;
    const auto weight = random_vector(random, n), bias = random_vector(random, n);
    Rows<uint16_t> out_bf16(n_rows, padded(n), padded(n), 0x1234);
    Norm p{};
    p.in = in.data(), p.in_stride = in.stride, p.n_rows = n_rows, p.n = n;
    p.epsilon = 1e-3f, p.rms = random.coin();
    if (random.coin()) p.weight = weight.data();
    if (random.coin()) p.bias = bias.data();
    Rows<float> &result = random.coin() ? in : out;
    const int64_t outputs = random.between(1, 3);
    if (outputs & 1) p.out = result.data(), p.out_stride = result.stride;
    if (outputs & 2) p.out_bf16 = out_bf16.data(), p.out_bf16_stride = out_bf16.stride;
    for (int64_t r = 0; r < n_rows; r++) kernels.norm(p, r);

    for (int64_t r = 0; r < n_rows; r++) {
        const float *row = &before.numbers[r * before.stride];
        double mean = 0, variance = 0;
        if (!p.rms)
            for (int64_t i = 0; i < n; i++) mean += row[i] / double(n);
        for (int64_t i = 0; i < n; i++) variance += (row[i] - mean) * (row[i] - mean) / n;
        for (int64_t i = 0; i < n; i++) {
            double want = (row[i] - mean) / std::sqrt(variance + p.epsilon);
            if (p.weight) want *= weight[i];
            if (p.bias) want += bias[i];
            if (p.out) check_close(kernels, "a norm", result.at(r, i), want, 1e-5);
            if (p.out_bf16) check_close(kernels, "a norm's bfloat16", of_bf16(out_bf16.at(r, i)), want, BF16_TOLERANCE);
        }
        if (p.out_bf16)
            for (int64_t i = n; i < padded(n); i++)
                check(out_bf16.at(r, i) == 0, "%s: a norm's bfloat16 is not padded", kernels.name);
    }
    check(out.gaps_are(UNTOUCHED), "%s: a norm writes beside its rows", kernels.name);
}

static void check_gated(const Kernels &kernels, Random &random) {
    const int64_t n_rows = random.between(1, 30), n = random.between(1, 600);
    Rows<float> a = random_rows(random, n_rows, n), b = random_rows(random, n_rows, n);
    for (float &x : a.numbers) x *= 8;
    const Rows<float> left = a, right = b;
    Rows<float> out = untouched_rows(random, n_rows, n);
    Rows<float> *results[] = {&a, &b, &out};
    Rows<float> &result = *results[random.between(0, 2)];
    const Gated p{Activation(random.between(0, 5)), a.data(), b.data(), a.stride, b.stride, n_rows, n,
                  result.data(), result.stride};
    for (int64_t r = 0; r < n_rows; r++) kernels.gated(p, r);
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t i = 0; i < n; i++) {
            const double want =
                activated(p.activation, left.numbers[r * left.stride + i]) * right.numbers[r * right.stride + i];
            check_close(kernels, "a gated value", result.at(r, i), want, 1e-5);
        }
    check(out.gaps_are(UNTOUCHED), "%s: a gate writes beside its rows", kernels.name);
}

// ---- attention

/// Rows of heads: those of one token side by side, or those of one head.
struct Heads {
    int64_t n_tokens, n_heads, length, stride, head_stride;
    std::vector<float> numbers;
    std::vector<uint16_t> halves;

    Heads(Random &random, int64_t n_tokens, int64_t n_heads, int64_t length, Format format)
        : n_tokens(n_tokens), n_heads(n_heads), length(length) {
        const int64_t gap = random.coin() ? 0 : random.between(1, 9);
        if (random.coin()) {
            head_stride = length, stride = n_heads * length + gap;
            numbers.resize((n_tokens - 1) * stride + n_heads * length, NAN);
        } else {
            stride = length + gap, head_stride = n_tokens * stride;
            numbers.resize((n_heads - 1) * head_stride + (n_tokens - 1) * stride + length, NAN);
        }
        for (int64_t t = 0; t < n_tokens; t++)
            for (int64_t h = 0; h < n_heads; h++)
                for (int64_t i = 0; i < length; i++) at(t, h, i) = random.uniform();
        if (format == Format::f16)
            for (float &x : numbers) halves.push_back(to_f16(x)), x = of_f16(halves.back());
    }
    float &at(int64_t token, int64_t head, int64_t i) { return numbers[token * stride + head * head_stride + i]; }
    const void *data() const { return halves.empty() ? static_cast<const void *>(numbers.data()) : halves.data(); }
    void round() {
        for (float &x : numbers) x = of_bf16(to_bf16(x));
    }
};

struct Texts {
    std::vector<float> mask; // (n_queries, n_keys)
    std::vector<Block> blocks;
};

/// Texts one after the other, whose tokens see each other, those before them, or those near them; some see nothing.
static Texts random_texts(Random &random, int64_t n_texts, std::vector<int64_t> &starts, bool alibi) {
    const int64_t n = starts.back();
    Texts texts{std::vector<float>(n * n, -INFINITY), {}};
    for (int64_t t = 0; t < n_texts; t++) {
        const int64_t begin = starts[t], end = starts[t + 1], kind = random.between(0, 3), window = random.between(1, 20);
        const bool blind = kind == 3;
        for (int64_t q = begin; q < end; q++)
            for (int64_t k = begin; k < end; k++) {
                const bool seen = kind == 0 || (kind == 1 && k <= q) || (kind == 2 && std::abs(q - k) < window) ||
                                  (blind && q % 3 == 0);
                if (seen) texts.mask[q * n + k] = alibi ? -float(std::abs(q - k)) : 0;
            }
        const int64_t most = random.between(1, 50);
        for (int64_t q = begin; q < end; q += most)
            texts.blocks.push_back({q, std::min(q + most, end), begin, end, alibi || kind != 0});
        if (random.between(0, 4) == 0) { // the last row sees nothing, and no key is in its block
            for (int64_t k = 0; k < n; k++) texts.mask[(end - 1) * n + k] = -INFINITY;
            if (--texts.blocks.back().end_query == texts.blocks.back().first_query) texts.blocks.pop_back();
            texts.blocks.push_back({end - 1, end, n, n, false});
        }
    }
    return texts;
}

static void check_attention(const Kernels &kernels, Random &random) {
    const int64_t n_texts = random.between(1, 4), n_kv_heads = random.between(1, 3);
    const int64_t n_heads = n_kv_heads * random.between(1, 3), key_length = random.between(1, 130);
    const int64_t value_length = random.coin() ? key_length : random.between(1, 130);
    std::vector<int64_t> starts{0};
    for (int64_t t = 0; t < n_texts; t++) starts.push_back(starts.back() + random.between(1, random.coin() ? 5 : 60));
    const int64_t n = starts.back();
    const Format format = random.coin() ? Format::f32 : Format::f16;
    const bool alibi = random.coin();

    Heads queries(random, n, n_heads, key_length, Format::f32);
    Heads keys(random, n, n_kv_heads, key_length, format), values(random, n, n_kv_heads, value_length, format);
    const Texts texts = random_texts(random, n_texts, starts, alibi);
    const int64_t mask_stride = n + random.between(0, 5);
    std::vector<uint16_t> mask((n - 1) * mask_stride + n, 0x7e00);
    for (int64_t q = 0; q < n; q++)
        for (int64_t k = 0; k < n; k++) mask[q * mask_stride + k] = to_f16(texts.mask[q * n + k]);
    std::vector<float> slopes(n_heads, 1.0f), out(n * n_heads * value_length, UNTOUCHED);
    if (alibi)
        for (int64_t h = 0; h < n_heads; h++) slopes[h] = 1 / float(2 << h);

    Attention p{};
    p.queries = queries.numbers.data(), p.query_stride = queries.stride, p.query_head_stride = queries.head_stride;
    p.keys = keys.data(), p.key_stride = keys.stride, p.key_head_stride = keys.head_stride;
    p.values = values.data(), p.value_stride = values.stride, p.value_head_stride = values.head_stride;
    p.format = format, p.mask = mask.data(), p.mask_stride = mask_stride;
    p.n_heads = n_heads, p.n_kv_heads = n_kv_heads, p.key_length = key_length, p.value_length = value_length;
    p.scale = 3 / std::sqrt(float(key_length)), p.slopes = slopes.data(), p.out = out.data();
    p.blocks = texts.blocks.data(), p.n_blocks = texts.blocks.size();
    kernels.begin();
    for (int64_t task = kernels.attention_tasks(p); task-- > 0;) kernels.attention(p, task);
    kernels.end();

    if (kernels.bf16) queries.round(), keys.round(), values.round();
    std::vector<double> weights(n);
    for (int64_t h = 0; h < n_heads; h++)
        for (int64_t q = 0; q < n; q++) {
            const int64_t kv = h / (n_heads / n_kv_heads);
            double most = -INFINITY, total = 0;
            for (int64_t k = 0; k < n; k++) {
                weights[k] = texts.mask[q * n + k] * double(slopes[h]);
                if (weights[k] == -INFINITY) continue;
                double product = 0;
                for (int64_t i = 0; i < key_length; i++) product += double(queries.at(q, h, i)) * keys.at(k, kv, i);
                weights[k] += product * p.scale;
                most = std::max(most, weights[k]);
            }
            for (double &w : weights) total += w = w == -INFINITY ? 0 : std::exp(w - most);
            for (int64_t i = 0; i < value_length; i++) {
                double want = 0;
                for (int64_t k = 0; k < n; k++)
                    if (weights[k] > 0) want += weights[k] * values.at(k, kv, i) / total;
                const float got = out[(q * n_heads + h) * value_length + i];
                check(total > 0 || got == 0, "%s: a row that sees nothing is %g, not 0", kernels.name, got);
                // The kernels round the weights to bfloat16 too.
                check_close(kernels, "attention", got, want, kernels.bf16 ? BF16_TOLERANCE : 1e-5);
            }
        }
}

static void check_all(const Kernels &kernels, int n_cases) {
    Random random{20250717};
    for (int i = 0; i < n_cases; i++) {
        check_product(kernels, random);
        check_convert(kernels, random);
        check_norm(kernels, random);
        check_gated(kernels, random);
        check_attention(kernels, random);
    }
    printf("%s: %d cases\n", kernels.name, n_cases);
}

int main(int n_arguments, char **arguments) {
    const int n_cases = n_arguments > 1 ? atoi(arguments[1]) : 20;
    for (const Kernels *kernels : {&kernels_avx2, &kernels_emulated_bf16, &kernels_emulated_amx})
        check_all(*kernels, n_cases);
}
