// AVX-512: products of float32. 12 rows of 32 outputs take 24 of the 32 registers.

#define EMBELLAMA_ISA avx512
#define EMBELLAMA_LANES 16
#define EMBELLAMA_BF16 0
#define EMBELLAMA_ROWS 12

#include "cpu.h"

namespace embellama::avx512 {
static bool usable() { return has_avx512(); }
static void begin() {}
static void end() {}
} // namespace embellama::avx512

#include "kernels_inl.h"
