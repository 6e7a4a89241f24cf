// AVX2 with FMA: products of float32. 6 rows of 16 outputs take 12 of the 16 registers.

#define EMBELLAMA_ISA avx2
#define EMBELLAMA_LANES 8
#define EMBELLAMA_BF16 0
#define EMBELLAMA_ROWS 6

namespace embellama::avx2 {
static bool usable() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
static void begin() {}
static void end() {}
} // namespace embellama::avx2

#include "kernels_inl.h"
