// The functions of vector.h against libm, over the whole range of float32.

#include <vector>

#include "../src/kernels.h"
#include "check.h"

namespace embellama {

namespace eight {
#define EMBELLAMA_LANES 8
#include "../src/vector.h"
#undef EMBELLAMA_LANES
} // namespace eight

namespace sixteen {
#define EMBELLAMA_LANES 16
#include "../src/vector.h"
#undef EMBELLAMA_LANES
} // namespace sixteen

} // namespace embellama

using namespace embellama;

static float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/// Numbers of every sign and exponent, and those that are special; as many as fill vectors.
static std::vector<float> numbers() {
    std::vector<float> all;
    for (uint64_t bits = 0; bits < uint64_t(1) << 32; bits += 20011) all.push_back(of_bits(bits));
    for (float x = -130; x < 130; x += 0.003f) all.push_back(x); // where the functions bend
    for (float x : {0.0f, 1e-45f, 1.17549435e-38f, 1.0f, 88.7f, 126.0f, 127.5f, 128.0f, 3.40282347e38f, INFINITY, float(NAN)})
        all.push_back(x), all.push_back(-x);
    for (uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x3f808000u, 0x3f818000u, 0x3f808001u})
        all.push_back(of_bits(bits));
    while (all.size() % 16) all.push_back(0);
    return all;
}

/// Compare a function of vectors with one of doubles: within `relative` of the result plus `absolute` times min(1, |x|).
#define COMPARE(name, lanes, relative, absolute, expected)                                                             \
    for (size_t i = 0; i < all.size(); i += lanes::LANES) {                                                            \
        float got[lanes::LANES];                                                                                       \
        lanes::store(got, lanes::name(lanes::load(&all[i])));                                                          \
        for (int lane = 0; lane < lanes::LANES; lane++) {                                                              \
            const double x = all[i + lane], y = got[lane], want = expected;                                            \
            if (std::isnan(x)) {                                                                                       \
                check(std::isnan(y), #name "(nan) is %g", y);                                                          \
                continue;                                                                                              \
            }                                                                                                          \
            if (y == want || (std::isnan(y) && std::isnan(want))) continue;                                            \
            const double allowed = relative * std::fabs(want) + absolute * std::fmin(1, std::fabs(x)) + 3e-45;         \
            check(std::fabs(y - want) <= allowed, #name "(%.9g) is %.9g, not %.9g", x, y, want);                       \
        }                                                                                                              \
    }

static double exp2_of(double x) { return x >= 128 ? INFINITY : std::exp2(std::fmax(x, -126)); }
static double gelu_of(double x) {
    return 0.5 * x * (1 + std::tanh(0.79788456080286535588 * x * (1 + 0.044715 * x * x)));
}
static double gelu_erf_of(double x) { return 0.5 * x * std::erfc(-x * 0.70710678118654752440); }
static double silu_of(double x) { return x / (1 + std::exp(-x)); }

static eight::Floats silu(eight::Floats x) { return eight::activate(Activation::silu, x); }

static void check_functions(const std::vector<float> &all) {
    namespace lanes = eight;
    COMPARE(exp2, lanes, 4e-7, 0, x >= 127.5 && x < 128 && std::isinf(y) ? y : exp2_of(x))
    COMPARE(gelu, lanes, 1e-6, 1e-6, gelu_of(x))
    COMPARE(gelu_erf, lanes, 1e-6, 1e-6, gelu_erf_of(x))
    for (size_t i = 0; i < all.size(); i += 8) {
        float got[8];
        lanes::store(got, silu(lanes::load(&all[i])));
        for (int lane = 0; lane < 8; lane++) {
            const double x = all[i + lane], y = got[lane], want = silu_of(x);
            check((std::isnan(y) && std::isnan(want)) || y == want ||
                      std::fabs(y - want) <= 1e-7 * std::fmax(10, std::fabs(x)) * std::fabs(want) + 1e-35,
                  "silu(%.9g) is %.9g, not %.9g", x, y, want);
        }
    }
    // Sixteen lanes compute what eight do.
    for (size_t i = 0; i < all.size(); i += 16) {
        float wide[16], narrow[16];
        for (auto activation : {Activation::gelu, Activation::gelu_erf, Activation::gelu_quick, Activation::silu,
                                Activation::relu, Activation::none}) {
            sixteen::store(wide, sixteen::activate(activation, sixteen::load(&all[i])));
            for (int half = 0; half < 16; half += 8)
                eight::store(narrow + half, eight::activate(activation, eight::load(&all[i + half])));
            for (int lane = 0; lane < 16; lane++)
                check(wide[lane] == narrow[lane] || (std::isnan(wide[lane]) && std::isnan(narrow[lane])),
                      "16 lanes differ from 8 at %.9g", all[i + lane]);
        }
    }
}

static void check_simple(const std::vector<float> &all) {
    for (float x : all) {
        const float relu = eight::activate(Activation::relu, eight::all(x))[3];
        check(std::isnan(x) ? std::isnan(relu) : relu == (x > 0 ? x : 0), "relu(%g) is %g", x, relu);
        check(bits_of(eight::all(x)[7]) == bits_of(x) || std::isnan(x), "all(%g)", x);
        check(bits_of(sixteen::all(x)[15]) == bits_of(x) || std::isnan(x), "all(%g)", x);
    }
}

template <typename Halves> static void check_rounding(const float *from, Halves got, int n) {
    for (int i = 0; i < n; i++) {
        if (std::isnan(from[i]))
            check(std::isnan(of_bf16(got[i])), "the bfloat16 of nan (%08x) is %04x", bits_of(from[i]), got[i]);
        else
            check(got[i] == to_bf16(from[i]), "the bfloat16 of %.9g is %04x, not %04x", from[i], got[i], to_bf16(from[i]));
    }
}

static void check_halves(const std::vector<float> &all) {
    for (size_t i = 0; i < all.size(); i += 16) {
        check_rounding(&all[i], eight::to_bf16(eight::load(&all[i])), 8);
        check_rounding(&all[i], sixteen::to_bf16(sixteen::load(&all[i])), 16);
    }
    for (int first = 0; first < 65536; first += 16) {
        uint16_t halves[16];
        for (int i = 0; i < 16; i++) halves[i] = first + i;
        float f16[2][16], bf16[2][16];
        sixteen::store(f16[0], sixteen::from_f16(halves)), sixteen::store(bf16[0], sixteen::from_bf16(halves));
        for (int i = 0; i < 16; i += 8) {
            eight::store(f16[1] + i, eight::from_f16(halves + i));
            eight::store(bf16[1] + i, eight::from_bf16(halves + i));
        }
        for (int i = 0; i < 32; i++) {
            const float a = f16[i / 16][i % 16], b = bf16[i / 16][i % 16];
            const double want = of_f16(halves[i % 16]);
            check(std::isnan(want) ? std::isnan(a) : a == want && std::signbit(a) == std::signbit(want),
                  "float16 %04x is %g, not %g", halves[i % 16], a, want);
            check(bits_of(b) == uint32_t(halves[i % 16]) << 16, "bfloat16 %04x is %g", halves[i % 16], b);
        }
    }
}

int main() {
    const auto all = numbers();
    check_functions(all);
    check_simple(all);
    check_halves(all);
    printf("%zu numbers\n", all.size());
}
