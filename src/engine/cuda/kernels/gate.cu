// SwiGLU (Shazeer, 2020), forward and backward; rows are [gate | up], `width` values each. A thread handles eight
// columns: 256 threads, grid = ceil(rows * (width / 8) / 256), and rows * width / 8 is below 2^32.
#include "common.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ float sigmoid(float x) { return inverse_fast(1.0f + exp2_fast(-LOG2_E * x)); }

// out[t, i] = silu(gate[t, i]) * up[t, i].
extern "C" __global__ __launch_bounds__(THREADS) void gate(const u16 *gate_up, u64 stride, u16 *out, u64 out_stride,
                                                           u64 rows, u64 width) {
    u32 index = blockIdx.x * THREADS + threadIdx.x, across = (u32)width / 8, row = index / across;
    u32 col = (index - row * across) * 8;
    if (row >= rows) return;
    gate_up += row * stride + col;
    float g[8], u[8];
    widen(load(gate_up), g), widen(load(gate_up + width), u);
#pragma unroll
    for (int i = 0; i < 8; i++) u[i] *= g[i] * sigmoid(g[i]);
    store(out + row * out_stride + col, narrow(u));
}

// Overwrites gate and up by the gradients with respect to them, given `dy`, that of the output.
extern "C" __global__ __launch_bounds__(THREADS) void gate_back(const u16 *dy, u64 dy_stride, u16 *gate_up, u64 stride,
                                                                u64 rows, u64 width) {
    u32 index = blockIdx.x * THREADS + threadIdx.x, across = (u32)width / 8, row = index / across;
    u32 col = (index - row * across) * 8;
    if (row >= rows) return;
    gate_up += row * stride + col;
    float d[8], g[8], u[8];
    widen(load(dy + row * dy_stride + col), d), widen(load(gate_up), g), widen(load(gate_up + width), u);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float share = sigmoid(g[i]), silu = g[i] * share;
        g[i] = d[i] * u[i] * (share + silu * (1.0f - share));
        u[i] = d[i] * silu;
    }
    store(gate_up, narrow(g)), store(gate_up + width, narrow(u));
}
