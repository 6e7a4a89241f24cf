#include "graph.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "embellama_compute.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "ggml-impl.h"
#pragma GCC diagnostic pop
#include "weights.h"

namespace embellama {

namespace {

std::atomic<int64_t> n_products, n_attentions, n_norms, n_gates, n_given_back;

// Most queries in a block: fewer would pack the same keys more often, more would leave threads without a block.
constexpr int64_t MAX_QUERIES = 128;

bool is_view(const ggml_tensor *t) {
    return t->op == GGML_OP_NONE || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE ||
           t->op == GGML_OP_TRANSPOSE;
}

/// Rows of float32 that lie at equal distances.
bool has_rows(const ggml_tensor *t) {
    return t->type == GGML_TYPE_F32 && t->nb[0] == 4 && t->nb[1] % 4 == 0 && t->nb[2] == t->nb[1] * t->ne[1] &&
           t->nb[3] == t->nb[2] * t->ne[2];
}

int64_t stride(const ggml_tensor *t) { return t->nb[1] / 4; }

float *floats(const ggml_tensor *t) { return static_cast<float *>(t->data); }

/// One value for each column, such as a bias, that lies in the model and so is never overwritten.
bool is_column_vector(const ggml_tensor *t, int64_t n) {
    return t->op == GGML_OP_NONE && t->type == GGML_TYPE_F32 && t->ne[0] == n && ggml_nrows(t) == 1 && t->nb[0] == 4;
}

bool same_rows(const ggml_tensor *a, const ggml_tensor *b) { return ggml_are_same_shape(a, b) && has_rows(a) && has_rows(b); }

const char *start(const ggml_tensor *t) { return static_cast<const char *>(t->data); }

const char *end(const ggml_tensor *t) { return start(t) + ggml_nbytes(t); }

bool overlap(const ggml_tensor *a, const ggml_tensor *b) { return start(a) < end(b) && start(b) < end(a); }

/// Whether rows of `from` may be read while the same rows of `to` are written: they lie apart, or in the very same place.
bool row_by_row(const ggml_tensor *from, const ggml_tensor *to) {
    return !overlap(from, to) || (from->data == to->data && stride(from) == stride(to));
}

bool activation_of(ggml_unary_op op, Activation &activation) {
    switch (op) {
        case GGML_UNARY_OP_GELU: activation = Activation::gelu; return true;
        case GGML_UNARY_OP_GELU_ERF: activation = Activation::gelu_erf; return true;
        case GGML_UNARY_OP_GELU_QUICK: activation = Activation::gelu_quick; return true;
        case GGML_UNARY_OP_SILU: activation = Activation::silu; return true;
        case GGML_UNARY_OP_RELU: activation = Activation::relu; return true;
        default: return false;
    }
}

bool activation_of(ggml_glu_op op, Activation &activation) {
    switch (op) {
        case GGML_GLU_OP_GEGLU: activation = Activation::gelu; return true;
        case GGML_GLU_OP_GEGLU_ERF: activation = Activation::gelu_erf; return true;
        case GGML_GLU_OP_GEGLU_QUICK: activation = Activation::gelu_quick; return true;
        case GGML_GLU_OP_SWIGLU: activation = Activation::silu; return true;
        case GGML_GLU_OP_REGLU: activation = Activation::relu; return true;
        default: return false;
    }
}

/// The other operand of a sum or product one of whose operands is `t`.
const ggml_tensor *other(const ggml_tensor *node, const ggml_tensor *t) {
    return node->src[0] == t ? node->src[1] : node->src[0];
}

bool is_product(const ggml_tensor *t) { return t->op == GGML_OP_MUL_MAT && is_packed(t->src[0]); }

/// Copy rows that lie anyhow to where they follow each other.
void gather(const ggml_tensor *t, float *rows) {
    for (int64_t i3 = 0; i3 < t->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < t->ne[2]; i2++)
            for (int64_t i1 = 0; i1 < t->ne[1]; i1++, rows += t->ne[0])
                memcpy(rows, start(t) + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3], t->ne[0] * 4);
}

} // namespace

Memory64::~Memory64() { free(memory_); }

void *Memory64::get(size_t n_bytes) {
    if (n_bytes > size_) {
        free(memory_);
        size_ = (n_bytes + n_bytes / 4 + 63) / 64 * 64;
        memory_ = aligned_alloc(64, size_);
        if (!memory_) {
            size_ = 0;
            throw std::bad_alloc();
        }
    }
    return memory_;
}

Graph::Graph(const Kernels &kernels)
    : kernels_(kernels), cpu_(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr)) {
    if (!cpu_) throw std::bad_alloc();
}

Graph::~Graph() { ggml_backend_free(cpu_); }

void Graph::set_n_threads(int n_threads) { team_.resize(n_threads); }

ggml_status Graph::compute(ggml_cgraph *graph) {
    graph_ = graph;
    waiting_ = 0;
    status_ = GGML_STATUS_SUCCESS;
    mask_blocks_.clear();
    for (auto &c : bf16_rows_) c.tensor = nullptr, c.n_readers = 0;
    for (int i = 0; i < graph->n_nodes && status_ == GGML_STATUS_SUCCESS;) {
        int done = 0; // the node after the chain that starts at i, if one does
        const ggml_tensor *t = node(i);
        if (t->flags & GGML_TENSOR_FLAG_COMPUTE) {
            if (t->op == GGML_OP_MUL_MAT) done = product(i);
            if (t->op == GGML_OP_NORM || t->op == GGML_OP_RMS_NORM) done = norm(i);
            if (t->op == GGML_OP_GLU) done = gated(i);
            if (t->op == GGML_OP_CPY || t->op == GGML_OP_FLASH_ATTN_EXT) done = attention(i);
        }
        if (done) waiting_ = done;
        i = done ? done : i + 1;
    }
    if (status_ == GGML_STATUS_SUCCESS) flush(graph->n_nodes);
    return status_;
}

/// Have ggml compute the nodes before `i` that nobody has computed.
void Graph::flush(int i) {
    int n_given = 0;
    bool heavy = false;
    for (int k = waiting_; k < i; k++) {
        const ggml_tensor *t = node(k);
        if (is_view(t)) continue;
        n_given++;
        heavy = heavy || t->op == GGML_OP_MUL_MAT || t->op == GGML_OP_MUL_MAT_ID || t->op == GGML_OP_FLASH_ATTN_EXT;
    }
    if (n_given) {
        // A second set of threads is worth waking for what takes long, no more. Other operations that do, such as SOFT_MAX and
        // SSM_SCAN, come together with products of weights or activations that nobody packs.
        ggml_backend_cpu_set_n_threads(cpu_, heavy ? team_.size() : 1);
        ggml_cgraph view = ggml_graph_view(graph_, waiting_, i);
        status_ = ggml_backend_graph_compute(cpu_, &view);
        n_given_back += n_given;
    }
    waiting_ = i;
}

ggml_tensor *Graph::node(int i) const { return graph_->nodes[i]; }

/// The next node that computes something, or `n_nodes`.
int Graph::next(int i) const {
    do i++;
    while (i < graph_->n_nodes && is_view(node(i)));
    return i;
}

/// The next node, if it has this operation, node `i`'s shape, and is all that reads it; else 0.
int Graph::follow(int i, ggml_op op) const {
    const int j = next(i);
    if (j >= graph_->n_nodes || node(j)->op != op || !(node(j)->flags & GGML_TENSOR_FLAG_COMPUTE)) return 0;
    const ggml_tensor *t = node(i);
    if (node(j)->src[0] != t && node(j)->src[1] != t) return 0;
    if (!ggml_are_same_shape(node(j), t)) return 0; // it repeats the node's rows
    return ggml_node_has_n_uses(graph_, i, 1) ? j : 0;
}

/// How many products from node `i` on take `inputs`.
int Graph::count_readers(const ggml_tensor *inputs, int i) const {
    constexpr int AHEAD = 16; // as far as the last of queries, keys and values, with norms between them
    int n = 0;
    for (int j = i; j < graph_->n_nodes && j < i + AHEAD; j++) n += is_product(node(j)) && node(j)->src[1] == inputs;
    return n;
}

/// Run the tasks of an operation on all threads.
template <typename Task> void Graph::run(int64_t n_tasks, Task task) {
    team_.run([&](std::atomic<int64_t> &next) {
        kernels_.begin();
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n_tasks;) task(i);
        kernels_.end();
    });
}

/// Run an operation whose rows are independent, several rows at a time.
template <typename Row> void Graph::run_rows(int64_t n_rows, Row row) {
    constexpr int64_t ROWS = 16;
    run((n_rows + ROWS - 1) / ROWS, [&](int64_t task) {
        for (int64_t r = task * ROWS; r < std::min((task + 1) * ROWS, n_rows); r++) row(r);
    });
}

/// Memory for a tensor's rows as bfloat16, kept until `n_readers` products have read them.
Graph::Bf16Rows &Graph::rows_for(const ggml_tensor *tensor, int64_t n, int64_t n_rows, int n_readers) {
    auto c = std::find_if(bf16_rows_.begin(), bf16_rows_.end(), [](const Bf16Rows &c) { return c.n_readers == 0; });
    if (c == bf16_rows_.end()) c = bf16_rows_.emplace(c);
    c->tensor = tensor, c->n_readers = n_readers;
    const size_t n_bytes = padded(n) * padded(n_rows) * 2; // kernels may read, but not use, 31 rows more
    c->rows = static_cast<uint16_t *>(c->memory.get(n_bytes));
    if (padded(n) != n) memset(c->rows, 0, n_bytes); // what is multiplied by 0 must not be NaN
    return *c;
}

/// Bring the inputs of the product at `i` into the form that it takes. What is returned, unless null, it has read afterwards.
Graph::Bf16Rows *Graph::prepare_inputs(int i, Product &p) {
    const ggml_tensor *t = node(i)->src[1];
    for (auto &c : bf16_rows_) {
        if (c.tensor != t || c.n_readers == 0) continue;
        p.inputs = c.rows, p.stride = padded(p.n_inputs);
        return &c;
    }
    const float *rows = floats(t);
    p.stride = stride(t);
    if (!has_rows(t)) {
        auto *gathered = static_cast<float *>(rows_.get(p.n_rows * p.n_inputs * 4));
        gather(t, gathered);
        rows = gathered, p.stride = p.n_inputs;
    }
    p.inputs = rows;
    if (!kernels_.bf16) return nullptr;
    Bf16Rows &c = rows_for(t, p.n_inputs, p.n_rows, count_readers(t, i));
    run_rows(p.n_rows, [&](int64_t r) {
        kernels_.convert(rows + r * p.stride, p.n_inputs, c.rows + r * padded(p.n_inputs));
    });
    p.inputs = c.rows, p.stride = padded(p.n_inputs);
    return &c;
}

/// Find MUL and ADD after the norm at `i`; return the last node of the chain.
int Graph::follow_norm(int i, Norm &p) const {
    p.rms = node(i)->op == GGML_OP_RMS_NORM;
    memcpy(&p.epsilon, node(i)->op_params, sizeof p.epsilon);
    if (int j = follow(i, GGML_OP_MUL)) {
        const ggml_tensor *weight = other(node(j), node(i));
        if (!is_column_vector(weight, p.n)) return i;
        p.weight = floats(weight);
        i = j;
        if (int k = follow(i, GGML_OP_ADD)) {
            const ggml_tensor *bias = other(node(k), node(i));
            if (!is_column_vector(bias, p.n)) return i;
            p.bias = floats(bias);
            i = k;
        }
    }
    return i;
}

int Graph::product(int i) {
    if (!is_product(node(i))) return 0;
    const ggml_tensor *weights = node(i)->src[0];
    Product p{};
    p.n_inputs = weights->ne[0], p.n_outputs = weights->ne[1], p.n_rows = ggml_nrows(node(i));
    p.weights = weights->data;
    GGML_ASSERT(format_of(weights->type, p.format));

    // Follow the chain to its last node, and note what it reads row by row.
    int last = i;
    const ggml_tensor *gate = nullptr, *residual = nullptr;
    if (int j = follow(last, GGML_OP_ADD)) {
        const ggml_tensor *bias = other(node(j), node(last));
        if (is_column_vector(bias, p.n_outputs)) p.bias = floats(bias), last = j;
    }
    if (int j = follow(last, GGML_OP_UNARY)) {
        if (activation_of(ggml_get_unary_op(node(j)), p.activation)) last = j;
    } else if (int j = follow(last, GGML_OP_GLU)) {
        const ggml_tensor *b = node(j)->src[1];
        if (node(j)->src[0] == node(last) && b && b != node(last) && same_rows(node(j), b) &&
            activation_of(ggml_get_glu_op(node(j)), p.activation))
            gate = b, p.gate = floats(b), p.gate_stride = stride(b), last = j;
    }
    if (int j = follow(last, GGML_OP_ADD)) {
        const ggml_tensor *t = other(node(j), node(last));
        if (t != node(last) && same_rows(node(j), t))
            residual = t, p.residual = floats(t), p.residual_stride = stride(t), last = j;
    }
    Norm norm{};
    norm.n_rows = p.n_rows, norm.n = p.n_outputs;
    int normed = follow(last, GGML_OP_NORM);
    if (!normed) normed = follow(last, GGML_OP_RMS_NORM);
    if (normed && !same_rows(node(normed), node(last))) normed = 0;
    if (normed) last = follow_norm(normed, norm);

    flush(i);
    if (status_ != GGML_STATUS_SUCCESS) return 0;
    Bf16Rows *inputs = prepare_inputs(i, p);

    ggml_tensor *result = node(last);
    GGML_ASSERT(has_rows(result));
    const int n_readers = kernels_.bf16 ? count_readers(result, last + 1) : 0;
    uint16_t *bf16 = n_readers ? rows_for(result, p.n_outputs, p.n_rows, n_readers).rows : nullptr;
    const bool float_wanted = !n_readers || !ggml_node_has_n_uses(graph_, last, n_readers);

    // Inputs that are still read when rows are written must lie elsewhere.
    const bool in_the_way = (!kernels_.bf16 && overlap(node(i)->src[1], result)) ||
                            (gate && !row_by_row(gate, result)) || (residual && !row_by_row(residual, result));
    float *out = floats(result);
    int64_t out_stride = stride(result);
    if (in_the_way || (normed && !float_wanted))
        out = static_cast<float *>(out_.get(p.n_rows * p.n_outputs * 4)), out_stride = p.n_outputs;
    if (normed || float_wanted) p.out = out, p.out_stride = out_stride;
    if (!normed) p.out_bf16 = bf16, p.out_bf16_stride = padded(p.n_outputs);
    run(kernels_.product_tasks(p), [&](int64_t task) { kernels_.product(p, task); });
    if (inputs) inputs->n_readers--; // not before: the result must not get their memory
    n_products++;

    if (normed) {
        norm.in = out, norm.in_stride = out_stride;
        if (float_wanted) norm.out = floats(result), norm.out_stride = stride(result);
        norm.out_bf16 = bf16, norm.out_bf16_stride = padded(p.n_outputs);
        run_rows(norm.n_rows, [&](int64_t row) { kernels_.norm(norm, row); });
        n_norms++;
    } else if (float_wanted && out != floats(result)) {
        for (int64_t r = 0; r < p.n_rows; r++)
            memcpy(floats(result) + r * stride(result), out + r * out_stride, p.n_outputs * 4);
    }
    return last + 1;
}

int Graph::norm(int i) {
    const ggml_tensor *in = node(i)->src[0];
    if (!same_rows(in, node(i))) return 0;
    Norm p{};
    p.in = floats(in), p.in_stride = stride(in);
    p.n_rows = ggml_nrows(in), p.n = in->ne[0];
    const int last = follow_norm(i, p);
    ggml_tensor *result = node(last);
    if (!has_rows(result) || !row_by_row(in, result)) return 0;

    flush(i);
    if (status_ != GGML_STATUS_SUCCESS) return 0;
    p.out = floats(result), p.out_stride = stride(result);
    if (const int n_readers = kernels_.bf16 ? count_readers(result, last + 1) : 0) {
        p.out_bf16 = rows_for(result, p.n, p.n_rows, n_readers).rows, p.out_bf16_stride = padded(p.n);
        if (ggml_node_has_n_uses(graph_, last, n_readers)) p.out = nullptr;
    }
    run_rows(p.n_rows, [&](int64_t row) { kernels_.norm(p, row); });
    n_norms++;
    return last + 1;
}

int Graph::gated(int i) {
    const ggml_tensor *t = node(i), *a = t->src[0], *b = t->src[1];
    Gated p{};
    if (!activation_of(ggml_get_glu_op(t), p.activation) || !has_rows(a) || (b && !has_rows(b)) || !has_rows(t)) return 0;
    p.n = t->ne[0], p.n_rows = ggml_nrows(t);
    p.a = floats(a), p.a_stride = stride(a);
    p.b = b ? floats(b) : p.a + p.n, p.b_stride = b ? stride(b) : p.a_stride;
    const bool swapped = ggml_get_op_params_i32(t, 1);
    if (!b && swapped) std::swap(p.a, p.b);
    if (overlap(a, t) && (!b || !row_by_row(a, t))) return 0;
    if (b && !row_by_row(b, t)) return 0;

    flush(i);
    if (status_ != GGML_STATUS_SUCCESS) return 0;
    p.out = floats(t), p.out_stride = stride(t);
    run_rows(p.n_rows, [&](int64_t row) { kernels_.gated(p, row); });
    n_gates++;
    return i + 1;
}

/// Whether attention has a form that the kernels know.
bool Graph::can_attend(const ggml_tensor *t) const {
    const ggml_tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *mask = t->src[3];
    float params[3]; // scale, largest slope of ALiBi, cap of scores
    memcpy(params, t->op_params, sizeof params);
    return q->type == GGML_TYPE_F32 && q->nb[0] == 4 && q->nb[1] % 4 == 0 && q->nb[2] % 4 == 0 && q->ne[3] == 1 &&
           k->type == GGML_TYPE_F16 && k->nb[0] == 2 && k->ne[3] == 1 && v->type == GGML_TYPE_F16 && v->nb[0] == 2 &&
           v->ne[3] == 1 && k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 && mask && mask->type == GGML_TYPE_F16 &&
           mask->nb[0] == 2 && mask->ne[0] == k->ne[1] && mask->ne[1] >= q->ne[1] && mask->ne[2] == 1 &&
           mask->ne[3] == 1 && params[2] == 0 && !t->src[4] && t->type == GGML_TYPE_F32 && ggml_is_contiguous(t);
}

/// Attention, or the copies to float16 before it.
int Graph::attention(int i) {
    // Keys and values are copied to float16 just before. Their float32 will do, as long as nothing is written over it.
    constexpr int COPIES = 4; // of keys, of values, and in the first layer of masks
    int last = i;
    for (int n = 0; n < COPIES && last < graph_->n_nodes && node(last)->op == GGML_OP_CPY; n++) last = next(last);
    if (last >= graph_->n_nodes || node(last)->op != GGML_OP_FLASH_ATTN_EXT || !can_attend(node(last))) return 0;
    ggml_tensor *result = node(last);
    const ggml_tensor *sources[2] = {result->src[1], result->src[2]};
    bool skipped[COPIES] = {};
    bool both = true;
    for (const ggml_tensor *&source : sources) {
        bool found = false;
        int n = 0;
        for (int j = i; j < last; j = next(j), n++) {
            const ggml_tensor *from = node(j)->src[0];
            if (node(j) != source || from->type != GGML_TYPE_F32 || from->nb[0] != 4 || !ggml_node_has_n_uses(graph_, j, 2))
                continue; // a cast counts as a use of itself
            found = skipped[n] = true;
            source = from;
            break;
        }
        both = both && found;
    }
    for (int j = i, n = 0; j < last; j = next(j), n++)
        for (const ggml_tensor *source : sources) both = both && (skipped[n] || !overlap(node(j), source));

    if (!both) { // from float16, once the copies are made
        if (i != last) return 0;
        sources[0] = result->src[1], sources[1] = result->src[2];
    }
    flush(i);
    for (int j = i, n = 0; j < last && status_ == GGML_STATUS_SUCCESS; j = next(j), n++) {
        waiting_ = j;
        if (!skipped[n]) flush(j + 1);
    }
    if (status_ != GGML_STATUS_SUCCESS) return 0;
    attend(result, sources[0], sources[1]);
    return last + 1;
}

void Graph::attend(ggml_tensor *result, const ggml_tensor *keys, const ggml_tensor *values) {
    const ggml_tensor *q = result->src[0], *mask = result->src[3];
    Attention p{};
    p.queries = floats(q), p.query_stride = q->nb[1] / 4, p.query_head_stride = q->nb[2] / 4;
    GGML_ASSERT(format_of(keys->type, p.format) && keys->type == values->type);
    const int64_t size = ggml_type_size(keys->type);
    p.keys = keys->data, p.key_stride = keys->nb[1] / size, p.key_head_stride = keys->nb[2] / size;
    p.values = values->data, p.value_stride = values->nb[1] / size, p.value_head_stride = values->nb[2] / size;
    p.mask = static_cast<const uint16_t *>(mask->data), p.mask_stride = mask->nb[1] / 2;
    p.n_heads = q->ne[2], p.n_kv_heads = keys->ne[2];
    p.key_length = keys->ne[0], p.value_length = values->ne[0];

    float max_bias;
    memcpy(&p.scale, result->op_params, sizeof p.scale);
    memcpy(&max_bias, reinterpret_cast<const float *>(result->op_params) + 1, sizeof max_bias);
    // ALiBi's slopes, for any number of heads (Press et al., 2022).
    std::vector<float> slopes(p.n_heads, 1.0f);
    if (max_bias > 0) {
        const int64_t power = int64_t(1) << int(std::floor(std::log2(p.n_heads)));
        for (int64_t h = 0; h < p.n_heads; h++)
            slopes[h] = h < power ? std::pow(2.0f, -max_bias / power * (h + 1))
                                  : std::pow(2.0f, -max_bias / 2 / power * (2 * (h - power) + 1));
    }
    p.slopes = slopes.data();
    const std::vector<Block> &found = blocks(mask, q->ne[1], keys->ne[1]);
    p.blocks = found.data(), p.n_blocks = found.size();

    bool in_the_way = false;
    for (const ggml_tensor *t : {q, keys, values, mask}) in_the_way = in_the_way || overlap(t, result);
    const size_t n_bytes = ggml_nbytes(result);
    p.out = in_the_way ? static_cast<float *>(out_.get(n_bytes)) : floats(result);
    run(kernels_.attention_tasks(p), [&](int64_t task) { kernels_.attention(p, task); });
    if (in_the_way) memcpy(result->data, p.out, n_bytes);
    n_attentions++;
}

/// Find which queries see which keys.
const std::vector<Block> &Graph::blocks(const ggml_tensor *mask, int64_t n_queries, int64_t n_keys) {
    for (const auto &known : mask_blocks_)
        if (known.mask == mask && known.n_queries == n_queries) return known.blocks;
    constexpr uint16_t HIDDEN = 0xfc00; // -infinity
    std::vector<Block> blocks;
    for (int64_t q = 0; q < n_queries; q++) {
        auto *row = reinterpret_cast<const uint16_t *>(start(mask) + q * mask->nb[1]);
        int64_t first = 0, end = n_keys;
        while (first < end && row[first] == HIDDEN) first++;
        while (end > first && row[end - 1] == HIDDEN) end--;
        bool masked = false;
        for (int64_t k = first; k < end; k++) masked = masked || row[k] != 0;
        Block *block = blocks.empty() ? nullptr : &blocks.back();
        const bool joins = block && q - block->first_query < MAX_QUERIES && first < block->end_key && block->first_key < end;
        if (!joins) {
            blocks.push_back({q, q + 1, first, end, masked});
            continue;
        }
        block->masked = block->masked || masked || first != block->first_key || end != block->end_key;
        block->first_key = std::min(block->first_key, first), block->end_key = std::max(block->end_key, end);
        block->end_query = q + 1;
    }
    mask_blocks_.push_back({mask, n_queries, std::move(blocks)});
    return mask_blocks_.back().blocks;
}

} // namespace embellama

void embellama_compute_count(embellama_compute_counts *counts) {
    using namespace embellama;
    *counts = {n_products, n_attentions, n_norms, n_gates, n_given_back};
}
