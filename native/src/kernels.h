// What is computed, without saying with which instructions.
//
// `graph.cpp` finds these operations in ggml's graph; a `Kernels` table computes them with one instruction set. An operation
// is cut into tasks that don't depend on each other, so that any thread may take the next one.
//
// Rows are float32 unless said otherwise. Strides are in elements of what they step over.

#pragma once

#include <cstddef>
#include <cstdint>

namespace embellama {

/// Outputs of a product that are packed side by side. A matrix is packed as one such panel after another; in a panel come
/// the weights of its 16 outputs for the first input, then for the second, and so on (in pairs of inputs for bfloat16).
constexpr int PANEL = 16;

enum class Activation { none, gelu, gelu_erf, gelu_quick, silu, relu };

/// How one number of packed weights, or of keys and values, is stored.
enum class Format { f32, f16, bf16 };

/// out = residual + gate * activation(inputs * weights^T + bias), each part but the product where it is given.
struct Product {
    const void *inputs; // rows of float32; of bfloat16, padded with zeros to a multiple of 32, where `Kernels::bf16`
    int64_t stride;
    int64_t n_rows, n_inputs, n_outputs;
    const void *weights; // packed
    Format format;       // of the packed weights
    const float *bias;   // (n_outputs) or null
    Activation activation;
    const float *gate; // rows of n_outputs, or null
    int64_t gate_stride;
    const float *residual; // rows of n_outputs, or null
    int64_t residual_stride;
    float *out; // rows of n_outputs, or null
    int64_t out_stride;
    uint16_t *out_bf16; // the same rows once more, as inputs of the next product, or null
    int64_t out_bf16_stride;
};

/// LayerNorm or RMSNorm of rows, then * weight + bias where they are given.
struct Norm {
    const float *in;
    int64_t in_stride;
    int64_t n_rows, n;
    float epsilon;
    bool rms;
    const float *weight, *bias; // (n) or null
    float *out;                 // may be `in`
    int64_t out_stride;
    uint16_t *out_bf16;
    int64_t out_bf16_stride;
};

/// out = activation(a) * b, row by row.
struct Gated {
    Activation activation;
    const float *a, *b;
    int64_t a_stride, b_stride;
    int64_t n_rows, n;
    float *out; // may be `a` or `b`
    int64_t out_stride;
};

/// Rows of queries that see the same keys, or nearly: those of one text.
struct Block {
    int64_t first_query, end_query;
    int64_t first_key, end_key;
    bool masked; // the mask is not 0 for all of them
};

/// softmax(scale * queries * keys^T + slope * mask) * values, head by head.
struct Attention {
    const float *queries;
    int64_t query_stride, query_head_stride;
    const void *keys, *values;
    Format format; // f32 or f16
    int64_t key_stride, key_head_stride, value_stride, value_head_stride;
    const uint16_t *mask; // float16, (n_queries, mask_stride)
    int64_t mask_stride;
    int64_t n_heads, n_kv_heads;
    int64_t key_length, value_length; // of one head
    float scale;
    const float *slopes; // of the mask, for each head: 1 without ALiBi
    float *out;          // (n_queries, n_heads, value_length)
    const Block *blocks;
    int64_t n_blocks;
};

/// What computes with one instruction set. Every function may be called by several threads at once.
struct Kernels {
    const char *name;
    bool (*usable)(); // on this CPU, by this process

    /// Whether products take bfloat16. Then weights are packed as such, whatever the file has.
    bool bf16;

    size_t (*packed_bytes)(Format format, int64_t n_inputs, int64_t n_outputs);
    void (*pack)(Format format, const void *weights, int64_t n_inputs, int64_t n_outputs, void *packed);

    int64_t (*product_tasks)(const Product &);
    void (*product)(const Product &, int64_t task);

    void (*convert)(const float *row, int64_t n, uint16_t *bf16); // pads with zeros to a multiple of 32
    void (*norm)(const Norm &, int64_t row);
    void (*gated)(const Gated &, int64_t row);

    int64_t (*attention_tasks)(const Attention &);
    void (*attention)(const Attention &, int64_t task);

    /// Called by each thread before its first task and after its last one.
    void (*begin)();
    void (*end)();
};

extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512_bf16, kernels_amx;

/// Row length of a product's bfloat16 inputs.
constexpr int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

} // namespace embellama
