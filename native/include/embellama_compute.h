// Products, attention and norms for llama.cpp on a CPU, loaded beside an unmodified llama.cpp.
//
// A caller gives `embellama_compute_device` to `llama_model_params.devices`, and `embellama_compute_weights` to
// `tensor_buft_overrides` for the weights of layers that are only multiplied. llama.cpp then hands the graphs of that model's
// contexts, and of no others, to this library, which gives back to ggml what it has no kernels for.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EMBELLAMA_COMPUTE_API __attribute__((visibility("default")))

/// The versions of llama-cpp-python and ggml whose headers this was compiled with. With others nothing here may be called.
EMBELLAMA_COMPUTE_API const char *embellama_compute_built_for(void);

/// The instruction sets that this CPU can compute with, fastest first, separated by spaces; "" if there are none.
EMBELLAMA_COMPUTE_API const char *embellama_compute_instruction_sets(void);

/// The device that computes with an instruction set, for as long as the process lives; null for an unknown one.
EMBELLAMA_COMPUTE_API ggml_backend_dev_t embellama_compute_device(const char *instruction_set);

/// The buffer type of that device's weights. Only matrices of F32, F16 and BF16 that nothing but GGML_OP_MUL_MAT reads may lie
/// in it.
EMBELLAMA_COMPUTE_API ggml_backend_buffer_type_t embellama_compute_weights(const char *instruction_set);

/// Lay the next weights that this thread loads into the memory behind a file descriptor (a memfd), or use them from there
/// if another process has laid down those with the same key. An fd of -1 ends this: the weights are complete, and others may
/// use them.
EMBELLAMA_COMPUTE_API void embellama_compute_share(int fd, uint64_t key);

/// How many operations of ggml's graphs have been computed here, by kind, and how many were given back to ggml.
struct embellama_compute_counts {
    int64_t products, attentions, norms, gates, given_back;
};
EMBELLAMA_COMPUTE_API void embellama_compute_count(struct embellama_compute_counts *counts);

#ifdef __cplusplus
}
#endif
