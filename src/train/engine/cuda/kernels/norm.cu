// RMSNorm (Zhang and Sennrich, 2019), forward and backward, and the norms of rows. A block handles one row: 128 threads,
// grid = rows. Rows of up to 8192 values are read once and kept in registers; longer ones are read again.
#include "common.cuh"

constexpr int THREADS = 128;
// Eights of values that a thread keeps.
constexpr int KEPT = 8;

// out[t, :] = x[t, :] * inverse[t] * weight with inverse[t] = 1 / sqrt(mean(x[t, :]^2) + epsilon). `weight` is f32 [cols],
// `epsilon` f32 bits, `inverse` f32 [rows] or null.
extern "C" __global__ __launch_bounds__(THREADS) void normalize(
    const u16 *x, u64 x_stride, const float *weight, u64 epsilon, u16 *out, u64 out_stride, float *inverse, u64 rows,
    u64 cols) {
}

// onto[t, :] += the gradient with respect to x, given `dy`, that of the output: inverse * (g - x̂ * mean(g * x̂)) with
// g = dy * weight and x̂ = x * inverse.
extern "C" __global__ __launch_bounds__(THREADS) void normalize_back(
    const u16 *dy, u64 dy_stride, const u16 *x, u64 x_stride, const float *weight, const float *inverse, u16 *onto,
    u64 onto_stride, u64 rows, u64 cols) {
}

// out[n] = sqrt(sum(w[n, :]^2)), f32.
extern "C" __global__ __launch_bounds__(THREADS) void row_norms(const u16 *w, u64 stride, float *out, u64 rows,
                                                                u64 cols) {
}
