// `multiply` with tiles of 16 rows of 64 bytes: 32 bfloat16 of one row of inputs, or 16 outputs of two inputs.
//
// Two tiles of rows and two of weights make four of sums. Rows up to the 32nd are read, though not all may be asked for.

static void multiply(const Number *a, int64_t stride, int n_rows, const Number *panels, int n_panels, int64_t distance,
                     int64_t n, bool add, float *sums, int64_t width) {
    const int64_t step = stride * sizeof(Number);
    const Number *low = a + 16 * stride, *second = panels + distance;
    const bool two_rows = n_rows > 16, two_panels = n_panels > 1;
    float *const low_sums = sums + 16 * width;
    const int64_t row_bytes = width * sizeof(float);
    if (add) {
        TILE_LOAD(0, sums, row_bytes);
        if (two_panels) TILE_LOAD(1, sums + PANEL, row_bytes);
        if (two_rows) TILE_LOAD(2, low_sums, row_bytes);
        if (two_rows && two_panels) TILE_LOAD(3, low_sums + PANEL, row_bytes);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    for (int64_t i = 0; i < n; i += 32) {
        TILE_LOAD(4, a + i, step);
        TILE_LOAD(6, panels + i * PANEL, 64);
        TILE_DOT(0, 4, 6);
        if (two_panels) {
            TILE_LOAD(7, second + i * PANEL, 64);
            TILE_DOT(1, 4, 7);
        }
        if (two_rows) {
            TILE_LOAD(5, low + i, step);
            TILE_DOT(2, 5, 6);
            if (two_panels) TILE_DOT(3, 5, 7);
        }
    }
    TILE_STORE(0, sums, row_bytes);
    if (two_panels) TILE_STORE(1, sums + PANEL, row_bytes);
    if (two_rows) TILE_STORE(2, low_sums, row_bytes);
    if (two_rows && two_panels) TILE_STORE(3, low_sums + PANEL, row_bytes);
}
