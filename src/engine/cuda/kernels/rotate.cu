// Rotary position embeddings (Su et al., 2021), in place, with value i of a head paired with value i + size / 2, as
// `rotate_half` of transformers does. A thread handles eight pairs: 256 threads,
// grid = ceil(rows * heads * (size / 16) / 256), and rows * heads * size / 16 is below 2^32.
#include "common.cuh"

constexpr int THREADS = 256;

// Rotates the first `heads` heads of each row by its position (queries and keys lie side by side), or back if `back` is
// 1. `cos` and `sin` are f32 [positions, size / 2], `positions` u32 [rows]; `size` is a multiple of 16.
extern "C" __global__ __launch_bounds__(THREADS) void rotate(
    u16 *qkv, u64 stride, const float *cos, const float *sin, const u32 *positions, u64 rows, u64 heads, u64 size,
    u64 back) {
    u32 index = blockIdx.x * THREADS + threadIdx.x, half = (u32)size / 2, across = half / 8, work = (u32)heads * across;
    u32 row = index / work, within = index - row * work, head = within / across, col = (within - head * across) * 8;
    if (row >= rows) return;
    u16 *at = qkv + row * stride + head * size + col;
    u64 place = positions[row] * (u64)half + col;
    float low[8], high[8], c[8], s[8], turned[8];
    widen(load(at), low), widen(load(at + half), high), load(cos + place, c), load(sin + place, s);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float sine = back ? -s[i] : s[i];
        turned[i] = low[i] * c[i] - high[i] * sine;
        high[i] = high[i] * c[i] + low[i] * sine;
    }
    store(at, narrow(turned)), store(at + half, narrow(high));
}
