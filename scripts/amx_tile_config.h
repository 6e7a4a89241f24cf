// Included before every C++ file of llama.cpp (`-include`, by scripts/setup), so that GCC builds ggml's AMX as it is
// meant. Nothing is left of it for other compilers, and for CPUs without AMX.
//
// Until 13.3 GCC's `_tile_loadconfig` says that it reads 8 bytes, where the CPU reads 64 (bug 114098), so the compiler
// drops the stores of the other 56: of ggml's table of tiles (ggml-cpu/amx/mmq.cpp, `ggml_tile_config_init`) only the
// first byte is left, and the first product of tiles ends the process. This says that all memory is read. -fno-dse keeps
// the stores too, but no pass need keep them before the instruction.
#pragma once
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
static inline void embellama_tile_loadconfig(const void *config) {
    __asm__ volatile("" ::"r"(config) : "memory");
    _tile_loadconfig(config);
}
#define _tile_loadconfig embellama_tile_loadconfig
#endif
