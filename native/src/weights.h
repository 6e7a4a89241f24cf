// Packed weights: a ggml buffer type whose tensors are laid out for `Kernels::product`.

#pragma once

#include "ggml-backend.h"
#include "kernels.h"

namespace embellama {

/// The format of a tensor's numbers, as far as it can be packed.
bool format_of(ggml_type type, Format &format);

/// The buffer type for weights that `kernels` compute with; `device` is what ggml is told that they belong to.
ggml_backend_buffer_type make_weights_type(const Kernels &kernels, ggml_backend_dev_t device);

/// Whether a tensor lies in such a buffer, or is a view of one that does.
bool is_packed(const ggml_tensor *tensor);

} // namespace embellama
