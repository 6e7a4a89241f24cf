// The kernels for AMX as any CPU with AVX2 can run them.

#define EMBELLAMA_ISA emulated_amx
#define EMBELLAMA_LANES 16
#define EMBELLAMA_BF16 1
#define EMBELLAMA_ROWS 32
#define EMBELLAMA_MULTIPLY "multiply_tiles.h"

#include "check.h"
#include "emulated.h"

namespace embellama::emulated_amx {

constexpr int ROWS = 16, BYTES = 64;

/// A tile of the Intel manual: rows of 64 bytes, as floats or as pairs of bfloat16.
struct Tile {
    float rows[ROWS][BYTES / 4];
};

static thread_local Tile tiles[8];
static thread_local bool configured = false;

static bool usable() { return true; }

static void begin() {
    check(!configured, "begin() was called twice");
    configured = true;
    memset(tiles, 0xff, sizeof tiles); // NaN: nothing may be used before it is set
}

static void end() {
    check(configured, "end() was called before begin()");
    configured = false;
}

static void tile_zero(int t) {
    check(configured, "a tile is used before begin()");
    memset(&tiles[t], 0, sizeof tiles[t]);
}

static void tile_load(int t, const void *from, int64_t step) {
    check(configured, "a tile is used before begin()");
    for (int r = 0; r < ROWS; r++) memcpy(tiles[t].rows[r], static_cast<const char *>(from) + r * step, BYTES);
}

static void tile_store(int t, void *to, int64_t step) {
    for (int r = 0; r < ROWS; r++) memcpy(static_cast<char *>(to) + r * step, tiles[t].rows[r], BYTES);
}

/// TDPBF16PS: to[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1], one after the other.
static void tile_dot(int to, int a, int b) {
    float left[ROWS][32], right[ROWS][32];
    for (int r = 0; r < ROWS; r++) {
        uint16_t halves[2][32];
        memcpy(halves[0], tiles[a].rows[r], BYTES);
        memcpy(halves[1], tiles[b].rows[r], BYTES);
        for (int i = 0; i < 32; i++) left[r][i] = of_bf16(halves[0][i]), right[r][i] = of_bf16(halves[1][i]);
    }
    for (int m = 0; m < ROWS; m++)
        for (int k = 0; k < ROWS; k++)
            for (int n = 0; n < ROWS; n++) {
                tiles[to].rows[m][n] += left[m][2 * k] * right[k][2 * n];
                tiles[to].rows[m][n] += left[m][2 * k + 1] * right[k][2 * n + 1];
            }
}

} // namespace embellama::emulated_amx

#define TILE_ZERO(t) tile_zero(t)
#define TILE_LOAD(t, from, step) tile_load(t, from, step)
#define TILE_DOT(to, a, b) tile_dot(to, a, b)
#define TILE_STORE(t, to, step) tile_store(t, to, step)

#include "../src/kernels_inl.h"
