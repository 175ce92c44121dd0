// SwiGLU (Shazeer, 2020), forward and backward; rows are [gate | up], `width` values each. A thread handles eight columns:
// 256 threads, grid = ceil(rows * (width / 8) / 256), and rows * width / 8 is below 2^32.
#include "common.cuh"

constexpr int THREADS = 256;

// out[t, i] = silu(gate[t, i]) * up[t, i].
extern "C" __global__ __launch_bounds__(THREADS) void gate(const u16 *gate_up, u64 stride, u16 *out, u64 out_stride,
                                                           u64 rows, u64 width) {
}

// Overwrites gate and up by the gradients with respect to them, given `dy`, that of the output.
extern "C" __global__ __launch_bounds__(THREADS) void gate_back(const u16 *dy, u64 dy_stride, u16 *gate_up, u64 stride,
                                                                u64 rows, u64 width) {
}
