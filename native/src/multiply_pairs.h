// `multiply` with an instruction that multiplies pairs of bfloat16 and adds them to floats: dot(total, a, b).

typedef float Totals __attribute__((vector_size(64)));
typedef uint32_t Pairs __attribute__((vector_size(64)));

/// As `multiply`, with all sums in registers.
template <int ROWS, int PANELS>
static inline __attribute__((always_inline)) void multiply_rows(const Number *a, int64_t stride, const Number *panels,
                                                                int64_t distance, int64_t n, bool add, float *sums, int64_t width) {
    Totals total[ROWS][PANELS] = {};
    if (add)
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < PANELS; p++) memcpy(&total[r][p], sums + r * width + p * PANEL, sizeof(Totals));
    for (int64_t i = 0; i < n; i += 2) {
        Pairs b[PANELS];
        for (int p = 0; p < PANELS; p++) memcpy(&b[p], panels + p * distance + i * PANEL, sizeof b[p]);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            uint32_t pair;
            memcpy(&pair, a + r * stride + i, sizeof pair);
            for (int p = 0; p < PANELS; p++) total[r][p] = dot(total[r][p], Pairs{} + pair, b[p]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++) memcpy(sums + r * width + p * PANEL, &total[r][p], sizeof(Totals));
}

template <int PANELS>
static void multiply_panels(const Number *a, int64_t stride, int n_rows, const Number *panels, int64_t distance,
                            int64_t n, bool add, float *sums, int64_t width) {
    switch (n_rows) {
#define CASE(r)                                                                                                        \
    case r: return multiply_rows<r, PANELS>(a, stride, panels, distance, n, add, sums, width);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
    }
}

static void multiply(const Number *a, int64_t stride, int n_rows, const Number *panels, int n_panels, int64_t distance,
                     int64_t n, bool add, float *sums, int64_t width) {
    if (n_panels == 2)
        multiply_panels<2>(a, stride, n_rows, panels, distance, n, add, sums, width);
    else
        multiply_panels<1>(a, stride, n_rows, panels, distance, n, add, sums, width);
}
