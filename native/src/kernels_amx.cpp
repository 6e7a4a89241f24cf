// AMX with BF16: products of bfloat16 in tiles, summed as float32; all else with AVX-512.

#define EMBELLAMA_ISA amx
#define EMBELLAMA_LANES 16
#define EMBELLAMA_BF16 1
#define EMBELLAMA_ROWS 32
#define EMBELLAMA_MULTIPLY "multiply_tiles.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include <immintrin.h>

#include "cpu.h"

namespace embellama::amx {

/// What `ldtilecfg` reads: 8 tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static bool usable() {
    unsigned a, b, c, d;
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    if (!has_avx512() || !__builtin_cpu_supports("avx512bf16") || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d & AMX_BF16) || !(d & AMX_TILE)) return false;
    // Linux gives a process the tiles' registers only when it asks (Documentation/arch/x86/xstate.rst).
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

// ggml sets its own configuration once for each thread, so it is put back.
static thread_local TileConfig before;

// The barriers keep GCC before 13.3 from dropping what it does not see the instructions read (its bug 114098).
static void begin() {
    static const TileConfig ours;
    _tile_storeconfig(&before);
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&ours);
}

static void end() {
    __asm__ volatile("" ::: "memory");
    if (before.palette == 0)
        _tile_release();
    else
        _tile_loadconfig(&before);
}

} // namespace embellama::amx

#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, from, step) _tile_loadd(t, from, step)
#define TILE_DOT(to, a, b) _tile_dpbf16ps(to, a, b)
#define TILE_STORE(t, to, step) _tile_stored(t, to, step)

#include "kernels_inl.h"
