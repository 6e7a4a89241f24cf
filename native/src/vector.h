// Vectors of floats for whichever instruction set a file is compiled for, and the functions that models apply to them.
//
// Everything is written with the compiler's own vector types, so that one text serves AVX2 (8 lanes) and AVX-512 (16).
// This header has no include guard against several instruction sets: each `kernels_*.cpp` sees it once, inside a
// namespace of its own, so that no function compiled for one CPU is ever linked in place of another's.

constexpr int LANES = EMBELLAMA_LANES;

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

static inline Floats all(float value) { return value - Floats{}; } // value - 0 is value, also where that is -0

static inline Floats load(const float *from) {
    Floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(float *to, Floats v) { memcpy(to, &v, sizeof v); }

/// The first `n` floats, and zeros behind them.
static inline Floats load_some(const float *from, int64_t n) {
    Floats v{};
    memcpy(&v, from, n * sizeof(float));
    return v;
}

static inline void store_some(float *to, Floats v, int64_t n) { memcpy(to, &v, n * sizeof(float)); }

/// Combine the lanes of a vector, halves with halves.
template <typename Combine> static inline float fold(Floats v, Combine combine) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight halves[LANES / 8];
    memcpy(halves, &v, sizeof v);
    Eight eight = halves[0];
    if (LANES == 16) eight = combine(eight, halves[LANES / 8 - 1]);
    Four quarters[2];
    memcpy(quarters, &eight, sizeof eight);
    const Four four = combine(quarters[0], quarters[1]);
    return combine(combine(four[0], four[1]), combine(four[2], four[3]));
}

static inline float sum(Floats v) { return fold(v, [](auto a, auto b) { return a + b; }); }

static inline float largest(Floats v) { return fold(v, [](auto a, auto b) { return a > b ? a : b; }); }

static inline Floats max(Floats a, Floats b) { return a > b ? a : b; }

/// x between two limits; of NaN, NaN.
static inline Floats clamp(Floats x, float lowest, float highest) {
#if defined(__AVX512F__) && EMBELLAMA_LANES == 16
    const __m512 above = _mm512_maskz_max_ps(0xffff, (__m512)all(lowest), (__m512)x);
    return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)all(highest), above); // both give their second where one is NaN
#else
    const Floats above = x < all(lowest) ? all(lowest) : x;
    return above > all(highest) ? all(highest) : above;
#endif
}

static inline Floats as_floats(Ints bits) {
    Floats v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/// The first `n` lanes of `v`, and `rest` in the others.
static inline Floats first_lanes(Floats v, int64_t n, float rest) {
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane < Ints{} + int32_t(n) ? v : all(rest);
}

/// The nearest whole number, for |x| < 2^22.
static inline Floats whole(Floats x) {
#ifdef __AVX512F__
    return (Floats)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, 0);
#else
    const Floats magic = all(12582912.0f); // 1.5 * 2^23, beside which a float has no fraction
    return (x + magic) - magic;
#endif
}

/// 2^(n + r), for whole n from -126 to 128 and |r| <= 1/2; of NaN, NaN.
///
/// A polynomial for 2^r that is 1 at 0 and otherwise has the least relative error, 9.2e-8.
static inline Floats power_of_two(Floats n, Floats r) {
    Floats p = all(1.3264727080e-3f);
    p = p * r + all(9.6715128622e-3f);
    p = p * r + all(5.5507337456e-2f);
    p = p * r + all(2.4022242082e-1f);
    p = p * r + all(6.9314697760e-1f);
    p = p * r + all(1.0f);
#ifdef __AVX512F__
    return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
    return p * as_floats((__builtin_convertvector(n, Ints) + 127) << 23); // of n = 128 infinity
#endif
}

/// 2^x to 3 units in the last place; 2^-126 below -126, and infinity from 128 on, or from 127.5.
static inline Floats exp2(Floats x) {
    const Floats clamped = clamp(x, -126.0f, 128.5f), n = whole(clamped);
    return power_of_two(n, clamped - n);
}

constexpr float LOG2_E = 1.44269504088896341f;

/// 1 / x to 2 units in the last place, for x from 1 to infinity.
static inline Floats reciprocal(Floats x) {
#ifdef __AVX512F__
    const Floats near = (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)x); // to 2^-14; a step of Newton's doubles that
    return x < all(INFINITY) ? near * (all(2.0f) - x * near) : near;
#else
    return all(1.0f) / x;
#endif
}

static inline Floats sigmoid(Floats x) { return reciprocal(all(1.0f) + exp2(x * all(-LOG2_E))); }

/// ggml's GELU: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), where (1 + tanh u) / 2 = sigmoid(2 u).
static inline Floats gelu(Floats x) {
    const Floats u = x * (all(1.0f) + all(0.044715f) * x * x);
    return x * sigmoid(all(2 * 0.79788456080286535588f) * u);
}

/// GELU's exact form, 0.5 x (1 + erf(x / sqrt 2)), with erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
static inline Floats gelu_erf(Floats x) {
    const Floats z = x * all(0.70710678118654752440f);
    const Floats distance = z < 0 ? -z : z;
    const Floats t = reciprocal(all(1.0f) + all(0.3275911f) * distance);
    Floats p = all(1.061405429f);
    p = p * t + all(-1.453152027f);
    p = p * t + all(1.421413741f);
    p = p * t + all(-0.284496736f);
    p = p * t + all(0.254829592f);
    const Floats tail = p * t * exp2(z * z * all(-LOG2_E)); // 1 - erf(|z|)
    const Floats half = all(0.5f) * x;
    return z < 0 ? half * tail : half * (all(2.0f) - tail);
}

static inline __attribute__((always_inline)) Floats activate(Activation activation, Floats x) {
    switch (activation) {
        case Activation::none: return x;
        case Activation::gelu: return gelu(x);
        case Activation::gelu_erf: return gelu_erf(x);
        case Activation::gelu_quick: return x * sigmoid(all(1.702f) * x);
        case Activation::silu: return x * sigmoid(x);
        case Activation::relu: return x > 0 ? x : (x == x ? Floats{} : x);
    }
    return x;
}

/// bfloat16, rounded to nearest even; NaN stays NaN.
static inline Halves to_bf16(Floats v) {
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh(v);
#else
    const Words bits = (Words)v;
    const Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const Words kept = (v == v ? rounded : bits | 0x400000) >> 16;
    return __builtin_convertvector(kept, Halves);
#endif
}

static inline Floats from_bf16(const uint16_t *from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return as_floats(__builtin_convertvector(halves, Ints) << 16);
}

static inline Floats from_f16(const uint16_t *from) {
#ifdef __AVX512F__
    __m256i halves;
    memcpy(&halves, from, sizeof halves);
    return (Floats)_mm512_maskz_cvtph_ps(0xffff, halves);
#else
    Floats v;
    for (int i = 0; i < LANES; i += 8) {
        __m128i halves;
        memcpy(&halves, from + i, sizeof halves);
        const __m256 floats = _mm256_cvtph_ps(halves);
        memcpy(reinterpret_cast<float *>(&v) + i, &floats, sizeof floats);
    }
    return v;
#endif
}
