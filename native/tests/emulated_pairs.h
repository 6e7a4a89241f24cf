// What AVX512-BF16's vdpbf16ps does: two products for each float, added one after the other.

template <typename Totals, typename Pairs>
static inline __attribute__((always_inline)) Totals dot(Totals total, Pairs a, Pairs b) {
    constexpr uint32_t SECOND = 0xffff0000;
    total += (Totals)(a & SECOND) * (Totals)(b & SECOND);
    total += (Totals)(a << 16) * (Totals)(b << 16);
    return total;
}

#include "../src/multiply_pairs.h"
