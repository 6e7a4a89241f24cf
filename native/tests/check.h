// What the test programs share: checks that say what failed, and numbers that are as random each time.

#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <immintrin.h>

/// End the program unless `condition`, and say why as printf does.
__attribute__((format(printf, 2, 3))) inline void check(bool condition, const char *format, ...) {
    if (condition) return;
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    abort();
}

/// Steele, Lea and Flood's splitmix64.
struct Random {
    uint64_t state;

    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    /// A whole number, both ends included.
    int64_t between(int64_t low, int64_t high) { return low + int64_t(next() % uint64_t(high - low + 1)); }
    bool coin() { return next() & 1; }
    /// From -1 to 1.
    float uniform() { return float(next() >> 40) / float(1 << 23) - 1; }
};

// ---- 16 bits

inline double of_f16(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double sign = half >> 15 ? -1 : 1;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

inline uint16_t to_f16(float value) { return _cvtss_sh(value, 0); }

inline float of_bf16(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/// To nearest, ties to even.
inline uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return (bits >> 16) | 0x40;
    const uint32_t rest = bits & 0xffff, half = 0x8000, kept = bits >> 16;
    return kept + (rest > half || (rest == half && (kept & 1)));
}
