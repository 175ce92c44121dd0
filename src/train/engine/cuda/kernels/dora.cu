// Weight-decomposed adapters (DoRA, Liu et al., 2024): the norms of adapted rows without making those rows, and the
// gradient of the magnitudes. Scaling by the gains is scale_columns of rows.cu.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr u32 CHUNK = 1024;

// out[i, j] = sum over k of a[i, k] * a[j, k], f32 [rank, rank], for a f32 [rank, cols]. 256 threads, grid = rank * rank.
extern "C" __global__ __launch_bounds__(THREADS) void gram(const float *a, float *out, u64 rank, u64 cols) {
}

// Of each row n of one slot: inverses[n] = 1 / ||W_n + s B_n A||, gains[n] = magnitudes[n] * inverses[n]. All f32:
// `norms` are ||W_n||, `wa` is W·Aᵀ [rows, rank] with a stride, `b` [rows, rank], `squares` A·Aᵀ [rank, rank]; `scale` is
// s as f32 bits. 256 threads, grid = ceil(rows / 256).
extern "C" __global__ __launch_bounds__(THREADS) void dora_gains(
    const float *norms, const float *wa, u64 wa_stride, const float *b, const float *squares, const float *magnitudes,
    u64 scale, float *gains, float *inverses, u64 rows, u64 rank) {
}

// partials[c, n] = sum over t of chunk c (1024 rows) of dy[t, n] * z[t, n]: f32 [chunks, cols], to be folded (factors.cu)
// with each = inverses for the gradient of magnitudes. 256 threads, grid = chunks * ceil(cols / 256).
extern "C" __global__ __launch_bounds__(THREADS) void column_dots(const u16 *dy, u64 dy_stride, const u16 *z,
                                                                  u64 z_stride, u64 rows, u64 cols, float *partials) {
}
