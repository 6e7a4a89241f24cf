// AVX-512 with BF16: products of bfloat16, summed as float32. 12 rows of 32 outputs take 24 of the 32 registers.

#define EMBELLAMA_ISA avx512_bf16
#define EMBELLAMA_LANES 16
#define EMBELLAMA_BF16 1
#define EMBELLAMA_ROWS 12
#define EMBELLAMA_MULTIPLY "multiply_avx512_bf16.h"

#include "cpu.h"

namespace embellama::avx512_bf16 {
static bool usable() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
static void begin() {}
static void end() {}
} // namespace embellama::avx512_bf16

#include "kernels_inl.h"
