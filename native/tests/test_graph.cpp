// Graphs of ggml's, computed by `Graph` with each table of kernels and by ggml alone, on the same numbers.
//
// Memory comes from ggml's own graph allocator, so it is used again as in llama.cpp, and is filled with NaN beforehand.

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "embellama_compute.h"
#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include "../src/graph.h"
#include "../src/weights.h"
#include "check.h"
#include "emulated.h"

using namespace embellama;

/// One graph and its memory.
class Model {
  public:
    explicit Model(ggml_backend_buffer_type_t weights) : weights_type_(weights) {
        weights_ = make_context(), constants_ = make_context(), context_ = make_context();
        graph_ = ggml_new_graph_custom(context_, 1024, false);
    }
    Model(const Model &) = delete;
    ~Model() {
        if (allocator_) ggml_gallocr_free(allocator_);
        for (ggml_backend_buffer_t buffer : {packed_, plain_})
            if (buffer) ggml_backend_buffer_free(buffer);
        for (ggml_context *context : {weights_, constants_, context_}) ggml_free(context);
    }
    operator ggml_context *() { return context_; }
    ggml_cgraph *graph() { return graph_; }

    // ---- what a graph is made of

    ggml_tensor *weight(int64_t n_inputs, int64_t n_outputs, ggml_type type = GGML_TYPE_F32) {
        return fill(ggml_new_tensor_2d(weights_, type, n_inputs, n_outputs), 1.7f / std::sqrt(float(n_inputs)));
    }
    ggml_tensor *vector(int64_t n) { return fill(ggml_new_tensor_1d(constants_, GGML_TYPE_F32, n), 1); }
    ggml_tensor *input(int64_t n, int64_t n_rows) {
        ggml_tensor *t = ggml_new_tensor_2d(context_, GGML_TYPE_F32, n, n_rows);
        ggml_set_input(t);
        return fill(t, 1);
    }
    /// A mask: what each query (a row) may see of the keys.
    ggml_tensor *mask(int64_t n_keys, int64_t n_queries, std::function<float(int64_t query, int64_t key)> value) {
        ggml_tensor *t = ggml_new_tensor_2d(context_, GGML_TYPE_F32, n_keys, n_queries);
        ggml_set_input(t);
        std::vector<float> numbers;
        for (int64_t q = 0; q < n_queries; q++)
            for (int64_t k = 0; k < n_keys; k++) numbers.push_back(value(q, k));
        filled_.push_back({t, numbers});
        return ggml_cast(context_, t, GGML_TYPE_F16);
    }
    ggml_tensor *multiply(ggml_tensor *x, int64_t n_outputs, ggml_type type = GGML_TYPE_F32) {
        return ggml_mul_mat(context_, weight(x->ne[0], n_outputs, type), x);
    }
    ggml_tensor *multiply_and_add(ggml_tensor *x, int64_t n_outputs) {
        return ggml_add(context_, multiply(x, n_outputs), vector(n_outputs));
    }
    ggml_tensor *layer_norm(ggml_tensor *x) {
        x = ggml_mul(context_, ggml_norm(context_, x, 1e-5f), vector(x->ne[0]));
        return ggml_add(context_, x, vector(x->ne[0]));
    }
    void output(ggml_tensor *t) {
        ggml_set_output(t);
        ggml_build_forward_expand(graph_, t);
        outputs_.push_back(t);
    }

    // ---- what is done with it

    void allocate() {
        packed_ = ggml_backend_alloc_ctx_tensors_from_buft(weights_, weights_type_);
        plain_ = ggml_backend_alloc_ctx_tensors_from_buft(constants_, ggml_backend_cpu_buffer_type());
        allocator_ = ggml_gallocr_new(ggml_backend_cpu_buffer_type());
        check(ggml_gallocr_alloc_graph(allocator_, graph_), "the graph can't be allocated");
    }

    /// Write the same numbers each time.
    void set() {
        for (auto &[t, numbers] : filled_) // the inputs lie in the graph's memory
            if (t->buffer && t->flags & GGML_TENSOR_FLAG_INPUT) ggml_backend_buffer_clear(t->buffer, 0xff);
        for (auto &[t, numbers] : filled_) {
            if (!t->buffer) continue; // nothing in the graph reads it
            std::vector<uint16_t> halves;
            if (t->type == GGML_TYPE_F16)
                for (float x : numbers) halves.push_back(to_f16(x));
            if (t->type == GGML_TYPE_BF16)
                for (float x : numbers) halves.push_back(to_bf16(x));
            const void *data = halves.empty() ? static_cast<const void *>(numbers.data()) : halves.data();
            ggml_backend_tensor_set(t, data, 0, ggml_nbytes(t));
        }
    }

    std::vector<std::vector<float>> read() const {
        std::vector<std::vector<float>> results;
        for (const ggml_tensor *t : outputs_) {
            check(ggml_is_contiguous(t) && t->type == GGML_TYPE_F32, "an output is not read so");
            results.emplace_back(ggml_nelements(t));
            ggml_backend_tensor_get(t, results.back().data(), 0, ggml_nbytes(t));
        }
        return results;
    }

  private:
    static ggml_context *make_context() {
        return ggml_init({ggml_tensor_overhead() * 1024 + ggml_graph_overhead_custom(1024, false), nullptr, true});
    }
    ggml_tensor *fill(ggml_tensor *t, float size) {
        std::vector<float> numbers(ggml_nelements(t));
        for (float &x : numbers) x = random_.uniform() * size;
        filled_.push_back({t, numbers});
        return t;
    }

    ggml_backend_buffer_type_t weights_type_;
    ggml_context *weights_, *constants_, *context_;
    ggml_cgraph *graph_;
    ggml_backend_buffer_t packed_ = nullptr, plain_ = nullptr;
    ggml_gallocr_t allocator_ = nullptr;
    Random random_{7};
    std::vector<std::pair<ggml_tensor *, std::vector<float>>> filled_;
    std::vector<ggml_tensor *> outputs_;
};

using Build = std::function<void(Model &)>;

/// How many operations a graph should be computed with; -1: any number.
struct Expected {
    int64_t products = -1, attentions = -1, norms = -1, gates = -1, given_back = -1;
};

static void check_counts(const char *name, const Expected &expected, const embellama_compute_counts &before,
                         const embellama_compute_counts &after) {
    const auto one = [&](const char *what, int64_t want, int64_t n) {
        check(want < 0 || n == want, "%s: %d %s, not %d", name, int(n), what, int(want));
    };
    one("products", expected.products, after.products - before.products);
    one("attentions", expected.attentions, after.attentions - before.attentions);
    one("norms", expected.norms, after.norms - before.norms);
    one("gates", expected.gates, after.gates - before.gates);
    one("given back", expected.given_back, after.given_back - before.given_back);
}

/// The largest difference, as a share of the largest number.
static double difference(const std::vector<float> &got, const std::vector<float> &want) {
    double most = 0, largest = 1e-2; // ggml has its inputs in float16, where small ones lose places
    for (size_t i = 0; i < want.size(); i++) {
        if (!(std::fabs(got[i] - want[i]) < 1e30)) return INFINITY;
        most = std::max(most, double(std::fabs(got[i] - want[i])));
        largest = std::max(largest, double(std::fabs(want[i])));
    }
    return most / largest;
}

static std::vector<std::vector<float>> compute_with_ggml(const Build &build) {
    Model model(ggml_backend_cpu_buffer_type());
    build(model);
    model.allocate();
    model.set();
    ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    ggml_backend_cpu_set_n_threads(cpu, 1);
    check(ggml_backend_graph_compute(cpu, model.graph()) == GGML_STATUS_SUCCESS, "ggml fails");
    ggml_backend_free(cpu);
    return model.read();
}

static void check_graph(const char *name, const Build &build, Expected expected = {}, double tolerance = 4e-3) {
    const auto want = compute_with_ggml(build);
    for (const Kernels *kernels : {&kernels_avx2, &kernels_emulated_bf16, &kernels_emulated_amx}) {
        auto type = make_weights_type(*kernels, nullptr);
        Graph graph(*kernels);
        for (int n_threads : {1, 3}) {
            Model model(&type);
            build(model);
            model.allocate();
            graph.set_n_threads(n_threads);
            for (int run = 0; run < 2; run++) {
                model.set();
                embellama_compute_counts before, after;
                embellama_compute_count(&before);
                check(graph.compute(model.graph()) == GGML_STATUS_SUCCESS, "%s fails", name);
                embellama_compute_count(&after);
                check_counts(name, expected, before, after);
                const auto got = model.read();
                for (size_t i = 0; i < want.size(); i++) {
                    const double d = difference(got[i], want[i]);
                    check(d <= tolerance * (kernels->bf16 ? 10 : 1), "%s (%s, %d threads): output %d is off by %.3g", name,
                          kernels->name, n_threads, int(i), d);
                }
            }
        }
    }
}

// ---- chains

/// Bias, activation, residual and norm, as BERT has them.
static ggml_tensor *feed_forward(Model &m, ggml_tensor *x, int64_t n_hidden) {
    ggml_tensor *hidden = ggml_gelu(m, m.multiply_and_add(x, n_hidden));
    return m.layer_norm(ggml_add(m, m.multiply_and_add(hidden, x->ne[0]), x));
}

static void check_chains() {
    for (int64_t n : {64, 33})
        for (int64_t n_rows : {1, 7, 150})
            check_graph("a chain", [=](Model &m) { m.output(feed_forward(m, m.input(n, n_rows), 3 * n)); },
                        {2, 0, 1, 0, 0});
    check_graph("several layers", [](Model &m) {
        ggml_tensor *x = m.input(48, 40);
        for (int layer = 0; layer < 5; layer++) x = feed_forward(m, x, 96);
        m.output(x);
    }, {10, 0, 5, 0, 0});
    check_graph("weights of every format", [](Model &m) {
        ggml_tensor *x = m.input(40, 9);
        x = m.multiply(x, 70, GGML_TYPE_F16);
        m.output(m.multiply(x, 30, GGML_TYPE_BF16));
    }, {2, 0, 0, 0, 0});
    check_graph("gates", [](Model &m) {
        ggml_tensor *x = m.layer_norm(m.input(48, 20));
        ggml_tensor *up = m.multiply(x, 80), *gate = m.multiply(x, 80);
        m.output(ggml_add(m, m.multiply(ggml_swiglu_split(m, gate, up), 48), x));
        m.output(m.multiply(ggml_geglu(m, m.multiply(x, 160)), 48));
        m.output(m.multiply(ggml_geglu_swapped(m, m.multiply(x, 160)), 48));
    });
    check_graph("RMS norms", [](Model &m) {
        ggml_tensor *x = m.input(70, 20);
        for (int layer = 0; layer < 3; layer++) {
            ggml_tensor *normed = ggml_mul(m, ggml_rms_norm(m, x, 1e-6f), m.vector(70));
            x = ggml_add(m, m.multiply(ggml_silu(m, m.multiply(normed, 100)), 70), x);
        }
        m.output(x);
    }, {6, 0, 3, 0, 0});
    check_graph("inputs whose rows lie apart", [](Model &m) {
        ggml_tensor *x = m.input(90, 20);
        m.output(m.multiply(ggml_view_2d(m, x, 40, 20, x->nb[1], 7 * 4), 30));
        m.output(m.multiply(ggml_permute(m, ggml_view_3d(m, x, 30, 3, 20, 30 * 4, x->nb[1], 0), 0, 2, 1, 3), 30));
    }, {2, 0, 0, 0, 0});
}

// ---- readers

/// A chain whose `reader`th tensor somebody else reads too, or is an output.
static void check_readers() {
    for (int reader = 0; reader < 8; reader++)
        for (int how = 0; how < 3; how++)
            check_graph("a tensor inside a chain that is read twice", [=](Model &m) {
                ggml_tensor *x = m.input(48, 20), *read = nullptr;
                int n = 0;
                const auto next = [&](ggml_tensor *t) {
                    if (n++ == reader) read = t;
                    return t;
                };
                ggml_tensor *t = next(m.multiply(x, 48));
                t = next(ggml_add(m, t, m.vector(48)));
                t = next(ggml_gelu(m, t));
                t = next(ggml_add(m, t, x));
                t = next(ggml_norm(m, t, 1e-5f));
                t = next(ggml_mul(m, t, m.vector(48)));
                t = next(ggml_add(m, t, m.vector(48)));
                t = next(m.multiply(t, 48));
                if (how == 0) m.output(read);
                m.output(t);
                if (how == 1) m.output(ggml_scale(m, read, 3));
                if (how == 2) m.output(m.multiply(ggml_reshape_2d(m, read, 24, 40), 20));
            });
    check_graph("a residual that is its product's input", [](Model &m) {
        ggml_tensor *x = m.multiply(m.input(48, 20), 48);
        m.output(ggml_add(m, m.multiply(x, 48), x));
    });
    check_graph("a product that is added to itself", [](Model &m) {
        ggml_tensor *x = m.multiply(m.input(48, 20), 48);
        m.output(ggml_add(m, x, x));
    });
    check_graph("a product with more readers than are looked for", [](Model &m) {
        ggml_tensor *x = m.layer_norm(m.input(48, 20)), *sum = m.multiply(x, 48);
        for (int i = 0; i < 30; i++) sum = ggml_add(m, ggml_tanh(m, sum), m.multiply(x, 48));
        m.output(sum);
    });
}

// ---- broadcasts

static void check_broadcasts() {
    check_graph("one row of a product that is added to many", [](Model &m) {
        ggml_tensor *x = m.input(48, 20), *row = m.input(48, 1);
        m.output(ggml_add(m, x, m.multiply(row, 48)));
    });
    check_graph("one row that is added to a product's many", [](Model &m) {
        ggml_tensor *x = m.input(48, 20), *row = ggml_tanh(m, m.input(48, 1));
        m.output(ggml_add(m, m.multiply(x, 48), row));
    });
    check_graph("a norm of one row that scales many", [](Model &m) {
        ggml_tensor *x = m.input(48, 20), *row = m.input(48, 1);
        m.output(ggml_mul(m, x, ggml_norm(m, m.multiply(row, 48), 1e-5f)));
    });
    check_graph("columns that are computed, for one row", [](Model &m) {
        ggml_tensor *x = m.input(48, 1), *bias = ggml_tanh(m, m.input(48, 1)), *weight = ggml_tanh(m, m.input(48, 1));
        x = ggml_add(m, m.multiply(x, 48), ggml_reshape_1d(m, bias, 48));
        m.output(ggml_add(m, ggml_mul(m, ggml_norm(m, x, 1e-5f), weight), ggml_tanh(m, m.input(48, 1))));
    });
    check_graph("rows in three dimensions", [](Model &m) {
        ggml_tensor *x = ggml_reshape_3d(m, m.input(48, 20), 48, 4, 5);
        x = ggml_add(m, m.multiply(x, 48), x);
        m.output(m.multiply(ggml_mul(m, ggml_norm(m, x, 1e-5f), m.vector(48)), 16));
    });
    check_graph("a plane that is added to several", [](Model &m) {
        ggml_tensor *x = ggml_reshape_3d(m, m.input(48, 20), 48, 4, 5), *plane = m.input(48, 4);
        m.output(ggml_add(m, m.multiply(x, 48), ggml_tanh(m, plane)));
        m.output(ggml_add(m, ggml_tanh(m, x), m.multiply(plane, 48)));
    });
}

// ---- attention

struct Shape {
    int64_t n_tokens = 30, n_heads = 4, n_kv_heads = 4, length = 16;
    float max_bias = 0;
    bool in_order = true;    // queries, keys and values come before the first cast, as llama.cpp has it
    bool sums_first = false; // keys and values are read by somebody else too
};

static ggml_tensor *attend(Model &m, ggml_tensor *x, ggml_tensor *mask, const Shape &s) {
    const auto heads = [&](int64_t n) {
        ggml_tensor *t = m.multiply_and_add(x, n * s.length);
        return ggml_permute(m, ggml_reshape_3d(m, t, s.length, n, x->ne[1]), 0, 2, 1, 3);
    };
    ggml_tensor *q = heads(s.n_heads), *k = heads(s.n_kv_heads), *v = heads(s.n_kv_heads);
    if (s.in_order)
        for (ggml_tensor *t : {q, k, v}) ggml_build_forward_expand(m.graph(), t);
    if (s.sums_first) m.output(ggml_sum_rows(m, ggml_cont(m, k))), m.output(ggml_sum_rows(m, ggml_cont(m, v)));
    k = ggml_cast(m, k, GGML_TYPE_F16), v = ggml_cast(m, v, GGML_TYPE_F16);
    ggml_tensor *t = ggml_flash_attn_ext(m, q, k, v, mask, 1 / std::sqrt(float(s.length)), s.max_bias, 0);
    return ggml_reshape_2d(m, t, t->ne[0] * t->ne[1], t->ne[2] * t->ne[3]);
}

static ggml_tensor *layer(Model &m, ggml_tensor *x, ggml_tensor *mask, const Shape &s) {
    ggml_tensor *attended = m.multiply_and_add(attend(m, x, mask, s), x->ne[0]);
    return feed_forward(m, m.layer_norm(ggml_add(m, attended, x)), 2 * x->ne[0]);
}

static float same_text(int64_t q, int64_t k) { return (q < 11) == (k < 11) && (q < 24) == (k < 24) ? 0 : -INFINITY; }

static void check_attentions() {
    for (int64_t n_tokens : {1, 30, 200})
        for (int64_t n_kv_heads : {4, 2}) {
            const Shape s{n_tokens, 4, n_kv_heads};
            check_graph("two layers over three texts", [=](Model &m) {
                ggml_tensor *x = m.input(64, s.n_tokens), *mask = m.mask(s.n_tokens, s.n_tokens, same_text);
                m.output(layer(m, layer(m, x, mask, s), mask, s));
            }, {12, 2, 4, 0, -1}); // ggml copies the mask, and what this is written over
        }
    const auto one = [](const char *name, Shape s, std::function<float(int64_t, int64_t)> value) {
        check_graph(name, [=](Model &m) {
            ggml_tensor *mask = m.mask(s.n_tokens, s.n_tokens, value);
            m.output(layer(m, m.input(64, s.n_tokens), mask, s));
        });
    };
    one("causal", {150}, [](int64_t q, int64_t k) { return k <= q ? 0 : -INFINITY; });
    one("causal texts", {150}, [](int64_t q, int64_t k) { return k <= q ? same_text(q, k) : -INFINITY; });
    one("a sliding window", {150}, [](int64_t q, int64_t k) { return std::abs(q - k) < 9 ? 0 : -INFINITY; });
    one("texts by turns", {60}, [](int64_t q, int64_t k) { return q % 3 == k % 3 ? 0 : -INFINITY; });
    one("rows that see nothing", {60}, [](int64_t q, int64_t k) { return q % 5 ? same_text(q, k) : -INFINITY; });
    for (int64_t n_heads : {4, 6})
        one("ALiBi", {60, n_heads, n_heads, 16, 8.0f},
            [](int64_t q, int64_t k) { return same_text(q, k) - std::abs(q - k); });
    one("casts apart from each other", {60, 4, 4, 16, 0, false}, same_text);
    one("keys that somebody else reads", {30, 4, 4, 16, 0, true, true}, same_text);
    check_graph("fewer queries with the same mask", [](Model &m) {
        ggml_tensor *mask = m.mask(30, 30, same_text);
        ggml_tensor *k = ggml_cast(m, ggml_reshape_3d(m, m.input(16, 60), 16, 30, 2), GGML_TYPE_F16);
        ggml_tensor *v = ggml_cast(m, ggml_reshape_3d(m, m.input(16, 60), 16, 30, 2), GGML_TYPE_F16);
        for (int64_t n : {30, 7, 30}) {
            ggml_tensor *q = ggml_reshape_3d(m, m.input(16, 2 * n), 16, n, 2);
            m.output(ggml_flash_attn_ext(m, q, k, v, mask, 0.25f, 0, 0));
        }
    }, {0, 3, 0, 0, -1});
    check_graph("copies of keys and values that are read again", [](Model &m) {
        ggml_tensor *mask = m.mask(30, 30, same_text), *k = m.multiply(m.input(16, 60), 16), *v = m.multiply(k, 16);
        ggml_tensor *q = ggml_reshape_3d(m, m.multiply(v, 16), 16, 30, 2);
        for (ggml_tensor *t : {mask, q}) ggml_build_forward_expand(m.graph(), t);
        k = ggml_cast(m, ggml_reshape_3d(m, k, 16, 30, 2), GGML_TYPE_F16);
        v = ggml_cast(m, ggml_reshape_3d(m, v, 16, 30, 2), GGML_TYPE_F16);
        m.output(ggml_flash_attn_ext(m, q, k, v, mask, 0.25f, 0, 0));
        m.output(ggml_cast(m, k, GGML_TYPE_F32));
        m.output(ggml_cast(m, ggml_view_1d(m, v, 40, 80), GGML_TYPE_F32));
    });
    check_graph("keys that are values", [](Model &m) {
        ggml_tensor *mask = m.mask(30, 30, same_text);
        ggml_tensor *k = ggml_cast(m, ggml_reshape_3d(m, m.input(16, 60), 16, 30, 2), GGML_TYPE_F16);
        ggml_tensor *q = ggml_reshape_3d(m, m.input(16, 60), 16, 30, 2);
        m.output(ggml_flash_attn_ext(m, q, k, k, mask, 0.25f, 0, 0));
    });
    check_graph("keys longer than values", [](Model &m) {
        ggml_tensor *mask = m.mask(30, 30, same_text);
        ggml_tensor *k = ggml_cast(m, ggml_reshape_3d(m, m.input(48, 60), 48, 30, 2), GGML_TYPE_F16);
        ggml_tensor *v = ggml_cast(m, ggml_reshape_3d(m, m.input(20, 60), 20, 30, 2), GGML_TYPE_F16);
        ggml_tensor *q = ggml_reshape_3d(m, m.input(48, 60), 48, 30, 2);
        m.output(ggml_flash_attn_ext(m, q, k, v, mask, 0.25f, 0, 0));
    });
    check_graph("a cap of scores", [](Model &m) {
        ggml_tensor *mask = m.mask(30, 30, same_text);
        ggml_tensor *k = ggml_cast(m, ggml_reshape_3d(m, m.input(16, 60), 16, 30, 2), GGML_TYPE_F16);
        ggml_tensor *v = ggml_cast(m, ggml_reshape_3d(m, m.input(16, 60), 16, 30, 2), GGML_TYPE_F16);
        ggml_tensor *q = ggml_reshape_3d(m, m.input(16, 60), 16, 30, 2);
        m.output(ggml_flash_attn_ext(m, q, k, v, mask, 0.25f, 0, 2));
    }, {0, 0, 0, 0, -1});
}

// ---- anything

/// A graph of random operations, many of which nobody fuses, over a pool of tensors.
static void build_random(Model &m, uint64_t seed) {
    Random random{seed};
    const int64_t n_rows = random.coin() ? random.between(1, 4) : random.between(5, 50), widths[] = {32, 48, 33};
    std::vector<ggml_tensor *> pool;
    for (int64_t n : widths) pool.push_back(m.input(n, n_rows));
    const int n_operations = random.between(5, 25);
    for (int i = 0; i < n_operations; i++) {
        // Mostly the newest, so that chains come about.
        ggml_tensor *x = random.between(0, 3) ? pool.back() : pool[random.between(0, pool.size() - 1)];
        ggml_tensor *same = nullptr;
        for (ggml_tensor *t : pool)
            if (ggml_are_same_shape(t, x) && (!same || random.coin())) same = t;
        const int64_t n = x->ne[0];
        switch (random.between(0, 16)) {
            case 0: case 1: case 2: case 3:
                x = m.multiply(x, widths[random.between(0, 2)], random.coin() ? GGML_TYPE_F32 : GGML_TYPE_F16);
                break;
            case 4: x = ggml_add(m, x, m.vector(n)); break;
            case 5: case 6: x = random.coin() ? ggml_add(m, x, same) : ggml_add(m, same, x); break;
            case 7: x = ggml_gelu(m, x); break;
            case 8: x = random.coin() ? ggml_silu(m, x) : ggml_relu(m, x); break;
            case 9: x = ggml_tanh(m, x); break;
            case 10: case 11: x = random.coin() ? ggml_norm(m, x, 1e-2f) : ggml_rms_norm(m, x, 1e-2f); break;
            case 12: x = ggml_mul(m, x, m.vector(n)); break;
            case 13: x = ggml_scale(m, x, 0.7f); break;
            case 14: x = ggml_geglu_split(m, x, ggml_tanh(m, same)); break;
            case 15: x = ggml_swiglu(m, m.multiply(x, 2 * n)); break;
            case 16: x = ggml_reshape_2d(m, ggml_reshape_1d(m, ggml_gelu_erf(m, x), n * n_rows), n, n_rows); break;
        }
        pool.push_back(x);
        if (random.between(0, 9) == 0) m.output(x);
    }
    m.output(pool.back());
}

int main(int n_arguments, char **arguments) {
    const int n_random = n_arguments > 1 ? atoi(arguments[1]) : 30;
    check_chains();
    check_readers();
    check_broadcasts();
    check_attentions();
    for (int seed = 0; seed < n_random; seed++) {
        const std::string name = "random graph " + std::to_string(seed);
        check_graph(name.c_str(), [=](Model &m) { build_random(m, seed); }, {}, 1e-2);
    }
    printf("%d random graphs\n", n_random);
}
