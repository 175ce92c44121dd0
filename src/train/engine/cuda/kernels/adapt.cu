// The way into and out of the adapters' narrow middle: x·Aᵀ into the spare columns, and d·A onto the gradient of x. The
// gradients of the factors are in factors.cu.
//
// Slots 0..slots share x [rows, cols]. In a matrix with spare columns, column cols + m * rank + r belongs to row r of the
// A of slot m (`rank` is any number up to 256). `padded` is `rank` rounded up to a multiple of 8. `stack` is every A
// as bf16, [slots * padded, cols], and `turned` the same transposed, [cols, slots * padded]; pack_a of factors.cu writes both,
// zeros where r >= rank. `keys` are two u32 of each slot's mask, `threshold` that of all (0: no dropout, `keys` may be
// null) and `scale` the factor 1 / (1 - p) as f32 bits (that of 1.0 if there is no dropout).
#include "common.cuh"

constexpr int THREADS = 256;

// x[t, cols + m * rank + r] = scale * sum over k of keep_m(t, k) * x[t, k] * A_m[r, k]; the other spare columns, up to
// cols + room, become zeros. adapt_8 if padded = 8, adapt_16 if padded = 16, adapt_32 otherwise. 256 threads,
// grid = ceil(rows / 32) * slots * ceil(padded / 32). Without dropout and with rank = padded, one slot of slots * rank rows
// is the same and reads x once.
#define ADAPT(WIDTH)                                                                                                   \
    extern "C" __global__ __launch_bounds__(THREADS) void adapt_##WIDTH(                                               \
        u16 *x, u64 stride, const u16 *stack, const u32 *keys, u64 threshold, u64 scale, u64 rows, u64 cols,           \
        u64 slots, u64 rank, u64 room) {                                                                               \
    }

ADAPT(8)
ADAPT(16)
ADAPT(32)

// dx[t, k] += scale * sum over m and r of keep_m(t, k) * d_m[t, r] * A_m[r, k] for k in 0..cols, where d_m[t, r] is
// dx[t, cols + m * rank + r], which is left as it is. 256 threads, grid = ceil(rows / 128) * ceil(cols / 256).
extern "C" __global__ __launch_bounds__(THREADS) void adapt_back(
    u16 *dx, u64 stride, const u16 *turned, const u32 *keys, u64 threshold, u64 scale, u64 rows, u64 cols, u64 slots,
    u64 rank) {
}
