// What AVX512-BF16's vdpbf16ps does, in plain C++: two products for each float, added one after the other.

template <typename Totals, typename Pairs> static Totals dot(Totals total, Pairs a, Pairs b) {
    const auto high = [](uint32_t bits) {
        float value;
        bits &= 0xffff0000;
        memcpy(&value, &bits, sizeof value);
        return value;
    };
    for (int i = 0; i < 16; i++) {
        total[i] += high(a[i]) * high(b[i]);
        total[i] += high(a[i] << 16) * high(b[i] << 16);
    }
    return total;
}

#include "../src/multiply_pairs.h"
