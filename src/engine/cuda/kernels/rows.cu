// Kernels that move rows: gathered (embeddings, too), scattered, filled with biases, scaled by column. A thread handles
// eight columns of a row: 256 threads, grid = ceil(rows * (cols / 8) / 256), and rows * cols / 8 is below 2^32.
#include "common.cuh"

constexpr int THREADS = 256;

// Where a thread works, if at all.
struct Place {
    u64 row, col;
    bool there;
};

__device__ __forceinline__ Place find_place(u64 rows, u64 cols) {
    u32 index = blockIdx.x * THREADS + threadIdx.x, across = (u32)cols / 8u, row = index / across;
    return {row, (index - row * across) * 8u, row < rows};
}

// out[i, :] = from[indices[i], :] for i in 0..rows. Embeddings are `from` a table, `indices` tokens.
extern "C" __global__ __launch_bounds__(THREADS) void gather_rows(
    const u16 *from, u64 from_stride, const u32 *indices, u16 *out, u64 out_stride, u64 rows, u64 cols) {
    Place at = find_place(rows, cols);
    if (at.there)
        store(out + at.row * out_stride + at.col, load(from + indices[at.row] * from_stride + at.col));
}

// out[indices[i], :] = from[i, :] for i in 0..rows; `indices` are distinct.
extern "C" __global__ __launch_bounds__(THREADS) void scatter_rows(
    const u16 *from, u64 from_stride, const u32 *indices, u16 *out, u64 out_stride, u64 rows, u64 cols) {
    Place at = find_place(rows, cols);
    if (at.there)
        store(out + indices[at.row] * out_stride + at.col, load(from + at.row * from_stride + at.col));
}

// out[t, :] = bias + onto[t, :]. Either of `bias` (f32) and `onto` may be null: zeros. `onto` may be `out`.
extern "C" __global__ __launch_bounds__(THREADS) void fill_rows(
    const float *bias, const u16 *onto, u64 onto_stride, u16 *out, u64 out_stride, u64 rows, u64 cols) {
    Place at = find_place(rows, cols);
    if (!at.there) return;
    float sum[8] = {}, more[8] = {};
    if (bias) load(bias + at.col, sum);
    if (onto) widen(load(onto + at.row * onto_stride + at.col), more);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += more[i];
    store(out + at.row * out_stride + at.col, narrow(sum));
}

// out[t, n] = gains[n] * y[t, n] + bias[n] + onto[t, n]. `bias` (f32) and `onto` may be null; `y` or `onto` may be
// `out`.
extern "C" __global__ __launch_bounds__(THREADS) void scale_columns(
    const u16 *y, u64 y_stride, const float *gains, const float *bias, const u16 *onto, u64 onto_stride, u16 *out,
    u64 out_stride, u64 rows, u64 cols) {
    Place at = find_place(rows, cols);
    if (!at.there) return;
    float sum[8] = {}, more[8] = {}, gain[8], value[8];
    if (bias) load(bias + at.col, sum);
    if (onto) widen(load(onto + at.row * onto_stride + at.col), more);
    load(gains + at.col, gain);
    widen(load(y + at.row * y_stride + at.col), value);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] = gain[i] * value[i] + sum[i] + more[i];
    store(out + at.row * out_stride + at.col, narrow(sum));
}
