// Dropped inputs and their gradients, for weight-decomposed adapters (DoRA, Liu et al., 2024): with dropout, PEFT takes the
// magnitudes' share of the base's outputs from the dropped input. A thread handles eight columns of a row: 256 threads,
// and rows * columns / 8 is below 2^32. `keys` are the two u32 of the mask, `threshold` its own, and `scale` the factor
// 1 / (1 - p) as f32 bits.
#include "common.cuh"

constexpr int THREADS = 256;

struct Place {
    u64 row;
    u32 col;
    bool there;
};

__device__ __forceinline__ Place find_place(u64 rows, u64 cols) {
    u32 index = blockIdx.x * THREADS + threadIdx.x, across = (u32)cols / 8u, row = index / across;
    return {row, (index - row * across) * 8u, row < rows};
}

__device__ __forceinline__ void drop(uint4 values, Place at, u32 cols, const u32 *keys, u64 threshold, float scale,
                                     float (&to)[8]) {
    u32 place = (u32)at.row * cols + at.col;
    widen(mask_of(keys, 0, threshold).apply(values, place >> 1), to);
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] *= scale;
}

// dropped[t, k] = keep(t, k) * scale * x[t, k] and rest[t, k] = x[t, k] - dropped[t, k] for k in 0..cols; the spare columns
// of `dropped`, up to cols + room, are those of x. `rest` may be null. grid = ceil(rows * ((cols + room) / 8) / 256).
extern "C" __global__ __launch_bounds__(THREADS) void drop_rows(
    const u16 *x, u64 stride, const u32 *keys, u64 threshold, u64 scale, u16 *dropped, u64 dropped_stride, u16 *rest,
    u64 rest_stride, u64 rows, u64 cols, u64 room) {
    Place at = find_place(rows, cols + room);
    if (!at.there) return;
    uint4 values = load(x + at.row * stride + at.col);
    if (at.col < cols) {
        float all[8], kept[8];
        widen(values, all);
        drop(values, at, (u32)cols, keys, threshold, f32_of(scale), kept);
        values = narrow(kept);
        // What is left is left of the rounded one.
        widen(values, kept);
#pragma unroll
        for (int i = 0; i < 8; i++) all[i] -= kept[i];
        if (rest) store(rest + at.row * rest_stride + at.col, narrow(all));
    }
    store(dropped + at.row * dropped_stride + at.col, values);
}

// dx[t, k] += keep(t, k) * scale * d[t, k] for k in 0..cols. grid = ceil(rows * (cols / 8) / 256).
extern "C" __global__ __launch_bounds__(THREADS) void add_dropped(
    u16 *dx, u64 stride, const u16 *d, u64 d_stride, const u32 *keys, u64 threshold, u64 scale, u64 rows, u64 cols) {
    Place at = find_place(rows, cols);
    if (!at.there) return;
    float sum[8], more[8];
    widen(load(dx + at.row * stride + at.col), sum);
    drop(load(d + at.row * d_stride + at.col), at, (u32)cols, keys, threshold, f32_of(scale), more);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += more[i];
    store(dx + at.row * stride + at.col, narrow(sum));
}

// out[t, n] = (gains[n] - 1) * y[t, n], with `gains` f32 [cols]. grid = ceil(rows * (cols / 8) / 256).
extern "C" __global__ __launch_bounds__(THREADS) void scale_beyond_one(
    const u16 *y, u64 y_stride, const float *gains, u16 *out, u64 out_stride, u64 rows, u64 cols) {
    Place at = find_place(rows, cols);
    if (!at.there) return;
    float value[8], gain[8];
    widen(load(y + at.row * y_stride + at.col), value);
    load(gains + at.col, gain);
#pragma unroll
    for (int i = 0; i < 8; i++) value[i] *= gain[i] - 1.0f;
    store(out + at.row * out_stride + at.col, narrow(value));
}
