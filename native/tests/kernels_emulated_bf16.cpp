// The kernels for AVX512-BF16 as any CPU with AVX2 can run them.

#define EMBELLAMA_ISA emulated_bf16
#define EMBELLAMA_LANES 16
#define EMBELLAMA_BF16 1
#define EMBELLAMA_ROWS 12
#define EMBELLAMA_MULTIPLY "../tests/emulated_pairs.h"

#include "emulated.h"

namespace embellama::emulated_bf16 {
static bool usable() { return true; }
static void begin() {}
static void end() {}
} // namespace embellama::emulated_bf16

#include "../src/kernels_inl.h"
