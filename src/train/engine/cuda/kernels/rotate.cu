// Rotary position embeddings (Su et al., 2021), in place, with value i of a head paired with value i + size / 2, as
// `rotate_half` of transformers does. A thread handles eight pairs: 256 threads, grid = ceil(rows * heads * (size / 16) / 256).
#include "common.cuh"

constexpr int THREADS = 256;

// Rotates the first `heads` heads of each row by its position (queries and keys lie side by side), or back if `back` is 1.
// `cos` and `sin` are f32 [positions, size / 2], `positions` u32 [rows]; `size` is a multiple of 16.
extern "C" __global__ __launch_bounds__(THREADS) void rotate(
    u16 *qkv, u64 stride, const float *cos, const float *sin, const u32 *positions, u64 rows, u64 heads, u64 size,
    u64 back) {
}
