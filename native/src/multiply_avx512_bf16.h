static inline __attribute__((always_inline)) __m512 dot(__m512 total, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(total, (__m512bh)a, (__m512bh)b);
}
#define dot(total, a, b) (Totals)dot((__m512)(total), (__m512i)(a), (__m512i)(b))
#include "multiply_pairs.h"
#undef dot
