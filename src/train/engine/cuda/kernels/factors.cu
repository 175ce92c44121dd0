// The gradients of the factors A and B: sums over all rows, in chunks of 1024 whose sums `fold` adds in order, so that
// every run gives the same. Slots, masks and spare columns are as adapt.cu says. chunks = ceil(rows / 1024).
#include "common.cuh"

constexpr int THREADS = 256;
constexpr u32 CHUNK = 1024;

// partials[c, m * rank + r, k] = sum over t of chunk c of d[t, m * rank + r] * keep_m(t, k) * x[t, k]: f32
// [chunks, slots * rank, cols], to be folded with factor = scale of dropout. `d` points at the first spare column of dx.
// factor_a_8 if padded = 8, factor_a_16 if padded = 16, factor_a_32 otherwise. 256 threads,
// grid = chunks * ceil(cols / 256) * slots * ceil(padded / 32).
#define FACTOR_A(WIDTH)                                                                                                \
    extern "C" __global__ __launch_bounds__(THREADS) void factor_a_##WIDTH(                                            \
        const u16 *x, u64 stride, const u16 *d, u64 d_stride, const u32 *keys, u64 threshold, u64 rows, u64 cols,      \
        u64 slots, u64 rank, float *partials) {                                                                        \
    }

FACTOR_A(8)
FACTOR_A(16)
FACTOR_A(32)

// partials[c, start_m + n * rank + r] = sum over t of chunk c of dy[t, first_m + n] * xa[t, m * rank + r] for n in
// 0..columns_m: f32 [chunks, total], to be folded with factor = s. `spans` are u64 {first_m, columns_m} of each slot (multiples of
// 8); start_m is rank times the columns of the slots before, and `total` rank times those of all. `xa` points at the first
// spare column of x. factor_b_8 if padded = 8, factor_b_16 if padded = 16, factor_b_32 otherwise. 256 threads,
// grid = chunks * (sum over m of ceil(columns_m / 256)) * ceil(padded / 32).
#define FACTOR_B(WIDTH)                                                                                                \
    extern "C" __global__ __launch_bounds__(THREADS) void factor_b_##WIDTH(                                            \
        const u16 *dy, u64 stride, const u16 *xa, u64 xa_stride, const u64 *spans, u64 rows, u64 slots, u64 rank,      \
        float *partials, u64 total) {                                                                                  \
    }

FACTOR_B(8)
FACTOR_B(16)
FACTOR_B(32)

// out[offset_m + i - start_m] += factor * each[i] * sum over c of partials[c, i], where slot m is the last whose start is
// at most i, for i in 0..total. `spans` are u64 {start_m, offset_m} of each slot, starts ascending from 0; `factor` is f32
// bits; `each` is f32 [total] or null (ones). 256 threads, grid = ceil(total / 1024).
extern "C" __global__ __launch_bounds__(THREADS) void fold(
    const float *partials, u64 chunks, u64 total, float *out, const u64 *spans, u64 slots, u64 factor,
    const float *each) {
}

// Rounds every A of a group to bf16, both ways round: see adapt.cu for `stack` and `turned`. Slot m's A is f32 [rank, cols]
// from parameters[offsets[m]] on; `offsets` are u64. 256 threads, grid = slots * (padded / 8) * ceil(cols / 256).
extern "C" __global__ __launch_bounds__(THREADS) void pack_a(
    const float *parameters, const u64 *offsets, u64 slots, u64 rank, u64 cols, u16 *stack, u16 *turned) {
}

// Fills the spare columns of stacked weights [rows, cols + room]: w[n, cols + m * rank + r] = scale * B_m[n - first_m, r]
// for the rows n of slot m, zeros elsewhere. `spans` are u64 {first_m, rows_m, offset_m} of each slot, first_m ascending;
// B_m is f32 [rows_m, rank] from parameters[offset_m] on. `scale` is f32 bits. 256 threads, grid = ceil(rows * room / 256).
extern "C" __global__ __launch_bounds__(THREADS) void pack_b(
    const float *parameters, const u64 *spans, u64 slots, u64 rank, u64 scale, u16 *w, u64 stride, u64 rows, u64 cols,
    u64 room) {
}
