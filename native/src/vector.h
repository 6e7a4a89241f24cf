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

static inline float sum(Floats v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

static inline float largest(Floats v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

static inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats min(Floats a, Floats b) { return a < b ? a : b; }

static inline Floats as_floats(Ints bits) {
    Floats v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/// e^x to 2 units in the last place; 0 below -87.3, and infinity above 88.37.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; a polynomial of degree 6 for e^r (the coefficients of Cephes' expf), and n added to
/// the exponent.
static inline Floats exp(Floats x) {
    const Floats lowest = all(-87.3f);
    const Floats clamped = min(max(x, lowest), all(89.0f));
    const Floats magic = all(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
    const Floats n = (clamped * all(1.44269504088896341f) + magic) - magic;
    Floats r = clamped - n * all(0.693359375f);
    r = r - n * all(-2.12194440e-4f);
    Floats p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23; // of n = 128 infinity
    const Floats result = p * as_floats(power);
    // NaN stays NaN: the comparisons above let it through only where they are written this way round.
    return x < lowest ? Floats{} : (x == x ? result : x);
}

static inline Floats sigmoid(Floats x) { return all(1.0f) / (all(1.0f) + exp(-x)); }

/// ggml's GELU: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), where (1 + tanh u) / 2 = sigmoid(2 u).
static inline Floats gelu(Floats x) {
    const Floats u = x * (all(1.0f) + all(0.044715f) * x * x);
    return x * sigmoid(all(2 * 0.79788456080286535588f) * u);
}

/// GELU's exact form, 0.5 x (1 + erf(x / sqrt 2)), with erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
static inline Floats gelu_erf(Floats x) {
    const Floats z = x * all(0.70710678118654752440f);
    const Floats distance = z < 0 ? -z : z;
    const Floats t = all(1.0f) / (all(1.0f) + all(0.3275911f) * distance);
    Floats p = all(1.061405429f);
    p = p * t + all(-1.453152027f);
    p = p * t + all(1.421413741f);
    p = p * t + all(-0.284496736f);
    p = p * t + all(0.254829592f);
    const Floats tail = p * t * exp(-z * z); // 1 - erf(|z|)
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
