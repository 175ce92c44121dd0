// Weight-decomposed adapters (DoRA, Liu et al., 2024): the norms of adapted rows without making those rows, and the
// gradient of the magnitudes. Scaling by the gains is scale_columns of rows.cu.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr u32 CHUNK = 1024;

// out[i, j] = sum over k of a[i, k] * a[j, k], f32 [rank, rank], for a f32 [rank, cols]. 256 threads,
// grid = rank * rank.
extern "C" __global__ __launch_bounds__(THREADS) void gram(const float *a, float *out, u64 rank, u64 cols) {
    u64 i = blockIdx.x / (u32)rank, j = blockIdx.x % (u32)rank;
    if (i >= rank) return;
    float sum = 0.0f;
    for (u64 k = threadIdx.x; k < cols; k += THREADS) sum += a[i * cols + k] * a[j * cols + k];
    sum = sum_of_block<WARPS>(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Of each row n of one slot: inverses[n] = 1 / ||W_n + s B_n A||, gains[n] = magnitudes[n] * inverses[n]. All f32:
// `norms` are ||W_n||, `wa` is W·Aᵀ [rows, rank] with a stride, `b` [rows, rank], `squares` A·Aᵀ [rank, rank]; `scale`
// is s as f32 bits. 256 threads, grid = ceil(rows / 256).
extern "C" __global__ __launch_bounds__(THREADS) void dora_gains(
    const float *norms, const float *wa, u64 wa_stride, const float *b, const float *squares, const float *magnitudes,
    u64 scale, float *gains, float *inverses, u64 rows, u64 rank) {
    u64 row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    wa += row * wa_stride, b += row * rank;
    // ||w + s b·A||² = ||w||² + s b·(2 w·Aᵀ + s b·AAᵀ).
    float s = f32_of(scale), cross = 0.0f;
    for (u64 i = 0; i < rank; i++) {
        float along = 0.0f;
        for (u64 j = 0; j < rank; j++) along += b[j] * squares[i * rank + j];
        cross += b[i] * (2.0f * wa[i] + s * along);
    }
    float inverse = 1.0f / sqrtf(norms[row] * norms[row] + s * cross);
    inverses[row] = inverse, gains[row] = magnitudes[row] * inverse;
}

// partials[c, n] = sum over t of chunk c (1024 rows) of dy[t, n] * z[t, n]: f32 [chunks, cols], to be folded
// (factors.cu) with each = inverses for the gradient of magnitudes. 256 threads, grid = chunks * ceil(cols / 256).
extern "C" __global__ __launch_bounds__(THREADS) void column_dots(const u16 *dy, u64 dy_stride, const u16 *z,
                                                                  u64 z_stride, u64 rows, u64 cols, float *partials) {
    __shared__ float sums[WARPS][THREADS];
    u32 across = ((u32)cols + THREADS - 1) / THREADS, chunk = blockIdx.x / across, warp = threadIdx.x / 32;
    u32 begin = blockIdx.x % across * THREADS, col = begin + threadIdx.x % 32 * 8;
    u64 first = chunk * (u64)CHUNK, end = first + CHUNK < rows ? first + CHUNK : rows;
    float sum[8] = {};
    if (col < cols)
#pragma unroll 2
        for (u64 row = first + warp; row < end; row += WARPS) {
            float a[8], b[8];
            widen(load(dy + row * dy_stride + col), a), widen(load(z + row * z_stride + col), b);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += a[i] * b[i];
        }
#pragma unroll
    for (int i = 0; i < 8; i++) sums[warp][threadIdx.x % 32 * 8 + i] = sum[i];
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += sums[w][threadIdx.x];
    if (first < rows && begin + threadIdx.x < cols) partials[(u64)chunk * cols + begin + threadIdx.x] = total;
}
