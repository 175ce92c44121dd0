// RMSNorm (Zhang and Sennrich, 2019), forward and backward, and the norms of rows. A block handles one row: 128
// threads, grid = rows. Rows of up to 8192 values are read once and kept in registers; longer ones are read again.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
// Columns that a block covers at a time, and how many times a thread keeps what it read.
constexpr u32 STEP = THREADS * 8;
constexpr int KEPT = 8;

__device__ __forceinline__ float square(uint4 values) {
    float x[8], sum = 0.0f;
    widen(values, x);
#pragma unroll
    for (int i = 0; i < 8; i++) sum += x[i] * x[i];
    return sum;
}

// Reads this thread's share of a row of `cols` values: into `kept` as far as that goes.
__device__ __forceinline__ void keep(uint4 (&kept)[KEPT], const u16 *row, u32 cols) {
    u32 first = threadIdx.x * 8;
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        kept[i] = first + i * STEP < cols ? load(row + first + i * STEP) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void put_normal(uint4 values, float inverse, const float *weight, u16 *out) {
    float x[8], w[8];
    widen(values, x), load(weight, w);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = x[i] * inverse * w[i];
    store(out, narrow(x));
}

// out[t, :] = x[t, :] * inverse[t] * weight with inverse[t] = 1 / sqrt(mean(x[t, :]^2) + epsilon). `weight` is f32
// [cols], `epsilon` f32 bits, `inverse` f32 [rows] or null.
extern "C" __global__ __launch_bounds__(THREADS) void normalize(
    const u16 *x, u64 x_stride, const float *weight, u64 epsilon, u16 *out, u64 out_stride, float *inverse, u64 rows,
    u64 cols) {
    u64 row = blockIdx.x;
    u32 count = (u32)cols, first = threadIdx.x * 8;
    if (row >= rows) return;
    x += row * x_stride, out += row * out_stride;
    uint4 kept[KEPT];
    keep(kept, x, count);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < KEPT; i++) sum += square(kept[i]);
    for (u32 col = first + KEPT * STEP; col < count; col += STEP) sum += square(load(x + col));
    float root = 1.0f / sqrtf(sum_of_block<WARPS>(sum) / (float)count + f32_of(epsilon));
    if (inverse && threadIdx.x == 0) inverse[row] = root;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        u32 col = first + i * STEP;
        if (col < count) put_normal(kept[i], root, weight + col, out + col);
    }
    for (u32 col = first + KEPT * STEP; col < count; col += STEP)
        put_normal(load(x + col), root, weight + col, out + col);
}

// The sum of g * x of eight columns, g = dy * weight.
__device__ __forceinline__ float project(uint4 dy, uint4 values, const float *weight) {
    float g[8], x[8], w[8], sum = 0.0f;
    widen(dy, g), widen(values, x), load(weight, w);
#pragma unroll
    for (int i = 0; i < 8; i++) sum += g[i] * w[i] * x[i];
    return sum;
}

// onto += inverse * g - along * x.
__device__ __forceinline__ void add_gradient(uint4 dy, uint4 values, const float *weight, float inverse, float along,
                                             u16 *onto) {
    float g[8], x[8], w[8], sum[8];
    widen(dy, g), widen(values, x), load(weight, w), widen(load(onto), sum);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += g[i] * w[i] * inverse - along * x[i];
    store(onto, narrow(sum));
}

// onto[t, :] += the gradient with respect to x, given `dy`, that of the output: inverse * (g - x̂ * mean(g * x̂)) with
// g = dy * weight and x̂ = x * inverse.
extern "C" __global__ __launch_bounds__(THREADS) void normalize_back(
    const u16 *dy, u64 dy_stride, const u16 *x, u64 x_stride, const float *weight, const float *inverse, u16 *onto,
    u64 onto_stride, u64 rows, u64 cols) {
    u64 row = blockIdx.x;
    u32 count = (u32)cols, first = threadIdx.x * 8;
    if (row >= rows) return;
    dy += row * dy_stride, x += row * x_stride, onto += row * onto_stride;
    uint4 kept_dy[KEPT], kept_x[KEPT];
    keep(kept_dy, dy, count), keep(kept_x, x, count);
    float sum = 0.0f, root = inverse[row];
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        u32 col = first + i * STEP;
        if (col < count) sum += project(kept_dy[i], kept_x[i], weight + col);
    }
    for (u32 col = first + KEPT * STEP; col < count; col += STEP)
        sum += project(load(dy + col), load(x + col), weight + col);
    float along = sum_of_block<WARPS>(sum) / (float)count * root * root * root;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        u32 col = first + i * STEP;
        if (col < count) add_gradient(kept_dy[i], kept_x[i], weight + col, root, along, onto + col);
    }
    for (u32 col = first + KEPT * STEP; col < count; col += STEP)
        add_gradient(load(dy + col), load(x + col), weight + col, root, along, onto + col);
}

// out[n] = sqrt(sum(w[n, :]^2)), f32.
extern "C" __global__ __launch_bounds__(THREADS) void row_norms(const u16 *w, u64 stride, float *out, u64 rows,
                                                                u64 cols) {
    u64 row = blockIdx.x;
    if (row >= rows) return;
    float sum = 0.0f;
    for (u32 col = threadIdx.x * 8; col < cols; col += STEP) sum += square(load(w + row * stride + col));
    sum = sum_of_block<WARPS>(sum);
    if (threadIdx.x == 0) out[row] = sqrtf(sum);
}
