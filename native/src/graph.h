// Compute a graph of ggml's: with kernels where there are some, with ggml's own CPU backend otherwise.

#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "ggml-backend.h"
#include "kernels.h"
#include "team.h"

struct ggml_cgraph;

namespace embellama {

/// Memory that grows and is used again; aligned to cache lines.
class Memory64 {
  public:
    Memory64() = default;
    Memory64(const Memory64 &) = delete;
    ~Memory64();
    void *get(size_t n_bytes);

  private:
    void *memory_ = nullptr;
    size_t size_ = 0;
};

/// What computes the graphs of one llama.cpp context.
///
/// The nodes of a graph are walked in order. A node that starts one of the chains below is computed together with what follows
/// it; the others gather until ggml computes them, before the next chain or at the end.
///
///     MUL_MAT (packed weights) -> ADD bias -> UNARY or GLU -> ADD residual -> NORM or RMS_NORM -> MUL -> ADD     each but the first optional
///     NORM or RMS_NORM -> MUL -> ADD
///     CPY keys -> CPY values -> FLASH_ATTN_EXT
///     GLU
///
/// A tensor inside a chain is not written, so a chain ends at one that somebody else reads. ggml gives the memory of a tensor
/// to another one after its last reader, so what a chain reads may lie where it writes: then it writes beside it first.
class Graph {
  public:
    explicit Graph(const Kernels &kernels);
    ~Graph();
    Graph(const Graph &) = delete;

    void set_n_threads(int n_threads);
    ggml_status compute(ggml_cgraph *graph);

  private:
    /// A tensor's rows as bfloat16, padded to what a product takes.
    struct Bf16Rows {
        const ggml_tensor *tensor = nullptr;
        int n_readers = 0; // products that have yet to read it
        uint16_t *rows = nullptr;
        Memory64 memory;
    };
    /// What a mask lets its first queries see; found once for each graph.
    struct MaskBlocks {
        const ggml_tensor *mask;
        int64_t n_queries;
        std::vector<Block> blocks;
    };

    ggml_tensor *node(int i) const;
    int next(int i) const;
    int follow(int i, ggml_op op) const;
    int count_readers(const ggml_tensor *inputs, int i) const;

    int product(int i);
    int norm(int i);
    int gated(int i);
    int attention(int i);
    bool can_attend(const ggml_tensor *result) const;
    void attend(ggml_tensor *result, const ggml_tensor *keys, const ggml_tensor *values);

    int follow_norm(int i, Norm &norm) const;
    Bf16Rows *prepare_inputs(int i, Product &product);
    void flush(int i);
    Bf16Rows &rows_for(const ggml_tensor *tensor, int64_t n, int64_t n_rows, int n_readers);
    template <typename Task> void run(int64_t n_tasks, Task task);
    template <typename Row> void run_rows(int64_t n_rows, Row row);
    const std::vector<Block> &blocks(const ggml_tensor *mask, int64_t n_queries, int64_t n_keys);

    const Kernels &kernels_;
    ggml_backend_t cpu_;
    Team team_;
    ggml_cgraph *graph_ = nullptr;
    int waiting_ = 0; // the first node that ggml has yet to compute
    ggml_status status_ = GGML_STATUS_SUCCESS;
    std::list<Bf16Rows> bf16_rows_;
    std::vector<MaskBlocks> mask_blocks_;
    Memory64 rows_, out_;
};

} // namespace embellama
