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
    typedef float Totals __attribute__((vector_size(BYTES)));
    typedef uint32_t Pairs __attribute__((vector_size(BYTES)));
    constexpr uint32_t SECOND = 0xffff0000;
    uint32_t left[ROWS][ROWS];
    Pairs right[ROWS];
    memcpy(left, tiles[a].rows, sizeof left);
    memcpy(right, tiles[b].rows, sizeof right);
    for (int m = 0; m < ROWS; m++) {
        Totals total;
        memcpy(&total, tiles[to].rows[m], BYTES);
        for (int k = 0; k < ROWS; k++) {
            const Pairs pair = Pairs{} + left[m][k];
            total += (Totals)(pair << 16) * (Totals)(right[k] << 16);
            total += (Totals)(pair & SECOND) * (Totals)(right[k] & SECOND);
        }
        memcpy(tiles[to].rows[m], &total, BYTES);
    }
}

} // namespace embellama::emulated_amx

#define TILE_ZERO(t) tile_zero(t)
#define TILE_LOAD(t, from, step) tile_load(t, from, step)
#define TILE_DOT(to, a, b) tile_dot(to, a, b)
#define TILE_STORE(t, to, step) tile_store(t, to, step)

#include "../src/kernels_inl.h"
