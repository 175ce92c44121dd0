// The way into and out of the adapters' narrow middle: x·Aᵀ into the spare columns, and d·A onto the gradient of x. The
// gradients of the factors are in factors.cu.
//
// Slots 0..slots share x [rows, cols]. In a matrix with spare columns, column cols + m * rank + r belongs to row r of
// the A of slot m (`rank` is any number). `padded` is `rank` rounded up to a multiple of 8. `stack` is every A as bf16,
// [slots * padded, cols], and `turned` the same transposed, [cols, slots * padded]; pack_a of factors.cu writes both,
// zeros where r >= rank. `keys` are two u32 of each slot's mask, `threshold` that of all (0: no dropout, `keys` may be
// null) and `scale` the factor 1 / (1 - p) as f32 bits (that of 1.0 if there is no dropout).
//
// A product's terms may come in any order that both sides agree on, and so may its columns: here, those that let a lane
// read and write eight neighbours in a row. Four lanes cover SPAN columns of one row.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr u32 SPAN = 32;

// Rows of a block in `adapt`, and tiles of 16 rows in them.
constexpr u32 ROWS = 32;
constexpr int TILES = ROWS / 16;

// Adds up the products of a block's warps, and gives the first warp the totals.
template <int N>
__device__ __forceinline__ void add_warps(float (&acc)[N]) {
    __shared__ float sums[WARPS / 2][N][32];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (u32 half = WARPS / 2; half > 0; half /= 2) {
        if (warp >= half && warp < 2 * half)
#pragma unroll
            for (int i = 0; i < N; i++) sums[warp - half][i][lane] = acc[i];
        __syncthreads();
        if (warp < half)
#pragma unroll
            for (int i = 0; i < N; i++) acc[i] += sums[warp][i][lane];
        __syncthreads();
    }
}

// Adds this warp's share of columns to the products of ROWS rows of x with WIDTH rows of one slot's A, of which
// `present` are there.
template <int WIDTH, bool DROPS>
__device__ __forceinline__ void multiply(float (&acc)[TILES][WIDTH / 8][4], const u16 *x, u64 stride,
                                         const u16 *factor, u32 present, Mask mask, u32 row, u64 rows, u32 cols) {
    u32 lane = threadIdx.x % 32, line = lane / 4, quad = lane % 4;
    // Rows past the last are computed with the last's values, and not written.
    const u16 *from[TILES * 2];
    u32 place[TILES * 2];
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        u64 mine = row + i * 8 + line < rows ? row + i * 8 + line : rows - 1;
        from[i] = x + mine * stride;
        place[i] = (u32)mine * cols;
    }
    factor += (u64)line * cols;
#pragma unroll (WIDTH == 8 ? 2 : 1)
    for (u32 begin = threadIdx.x / 32 * SPAN; begin < cols; begin += WARPS * SPAN) {
        u32 col = begin + quad * 8;
        bool there = col < cols;
        uint4 left[TILES * 2];
#pragma unroll
        for (int i = 0; i < TILES * 2; i++) left[i] = there ? load(from[i] + col) : make_uint4(0, 0, 0, 0);
        if (DROPS)
#pragma unroll
            for (int i = 0; i < TILES * 2; i++) left[i] = mask.apply(left[i], (place[i] + col) / 2);
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) {
            if (n * 8 >= present) continue;
            uint4 right = there ? load(factor + (u64)(n * 8) * cols + col) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                uint4 a = left[2 * i], b = left[2 * i + 1];
                u32 early[4] = {a.x, b.x, a.y, b.y}, late[4] = {a.z, b.z, a.w, b.w};
                mma(acc[i][n], early, right.x, right.y);
                mma(acc[i][n], late, right.z, right.w);
            }
        }
    }
}

template <int WIDTH>
__device__ __forceinline__ void adapt(u16 *x, u64 stride, const u16 *stack, const u32 *keys, u64 threshold, float scale,
                                      u64 rows, u32 cols, u32 slots, u32 rank, u32 room) {
    constexpr int N = WIDTH / 8;
    u32 parts = (rank + WIDTH - 1) / WIDTH, padded = (rank + 7) / 8 * 8, block = blockIdx.x / parts;
    u32 first = blockIdx.x % parts * WIDTH, slot = block % slots, row = block / slots * ROWS;
    if (row >= rows) return;
    float acc[TILES][N][4] = {};
    Mask mask = mask_of(keys, slot, threshold);
    const u16 *factor = stack + (u64)(slot * padded + first) * cols;
    if (threshold) multiply<WIDTH, true>(acc, x, stride, factor, padded - first, mask, row, rows, cols);
    else multiply<WIDTH, false>(acc, x, stride, factor, padded - first, mask, row, rows, cols);
    add_warps(*(float(*)[TILES * N * 4])&acc);
    if (threadIdx.x >= 32) return;
    u32 line = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        u64 mine = row + i * 8 + line;
        if (mine >= rows) continue;
        u16 *out = x + mine * stride + cols;
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float *sums = acc[i / 2][n] + i % 2 * 2;
            u32 r = first + n * 8 + pair, both = pack(sums[0] * scale, sums[1] * scale);
            if (r < rank) out[slot * rank + r] = (u16)both;
            if (r + 1 < rank) out[slot * rank + r + 1] = (u16)(both >> 16);
        }
        if (slot == 0 && first == 0)
            for (u32 spare = slots * rank + pair / 2; spare < room; spare += 4) out[spare] = 0;
    }
}

// x[t, cols + m * rank + r] = scale * sum over k of keep_m(t, k) * x[t, k] * A_m[r, k]; the other spare columns, up to
// cols + room, become zeros. adapt_8 if padded = 8, adapt_16 if padded = 16, adapt_32 otherwise. 256 threads,
// grid = ceil(rows / 32) * slots * ceil(padded / 32). Without dropout and with rank = padded, one slot of slots * rank
// rows is the same and reads x once.
#define ADAPT(WIDTH)                                                                                                   \
    extern "C" __global__ __launch_bounds__(THREADS) void adapt_##WIDTH(                                               \
        u16 *x, u64 stride, const u16 *stack, const u32 *keys, u64 threshold, u64 scale, u64 rows, u64 cols,           \
        u64 slots, u64 rank, u64 room) {                                                                               \
        adapt<WIDTH>(x, stride, stack, keys, threshold, f32_of(scale), rows, (u32)cols, (u32)slots, (u32)rank,         \
                     (u32)room);                                                                                       \
    }

ADAPT(8)
ADAPT(16)
ADAPT(32)

// Rows of a block in `adapt_back`.
constexpr u32 BACK_ROWS = 128;

// Two neighbours from an even `r` on of a row of `rank` values, zeros past its end.
__device__ __forceinline__ u32 load_pair(const u16 *from, u32 r, u32 rank) {
    if (rank % 2 == 0) return r < rank ? *(const u32 *)(from + r) : 0;
    return (r < rank ? from[r] : 0u) | (r + 1 < rank ? (u32)from[r + 1] << 16 : 0u);
}

// dx[t, k] += scale * sum over m and r of keep_m(t, k) * d_m[t, r] * A_m[r, k] for k in 0..cols, where d_m[t, r] is
// dx[t, cols + m * rank + r], which is left as it is. 256 threads, grid = ceil(rows / 128) * ceil(cols / 256).
extern "C" __global__ __launch_bounds__(THREADS, 3) void adapt_back(
    u16 *dx, u64 stride, const u16 *turned, const u32 *keys, u64 threshold, u64 scale, u64 rows, u64 cols, u64 slots,
    u64 rank) {
    u32 width = (u32)cols, across = (width + 8 * SPAN - 1) / (8 * SPAN), narrow_rank = (u32)rank;
    u32 padded = (narrow_rank + 7) / 8 * 8, depth = (u32)slots * padded;
    u32 lane = threadIdx.x % 32, line = lane / 4, quad = lane % 4;
    u32 begin = (blockIdx.x % across * 8 + threadIdx.x / 32) * SPAN, col = begin + quad * 8;
    u32 row = blockIdx.x / across * BACK_ROWS;
    if (begin >= width) return;
    // Of tile j, this lane gives column `line` of the right side and gets columns 2 * quad and 2 * quad + 1 of the
    // product: they stand for columns line / 2 * 8 + 2 * j + line % 2 and quad * 8 + 2 * j (+ 1) of the span.
    u32 given = begin + line / 2 * 8 + line % 2;
    bool there = col < width, gives = begin + line / 2 * 8 < width;
    u32 right[4];
#pragma unroll
    for (int j = 0; j < 4; j++) right[j] = (gives ? given + 2 * j : 0) * depth + quad * 2;
    float factor = f32_of(scale);
#pragma unroll 1
    for (u32 end = row + BACK_ROWS; row < end && row < rows; row += 16) {
        u64 mine[2];
        uint4 old[2];
        float sum[2][8];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            mine[h] = row + h * 8 + line < rows ? row + h * 8 + line : rows - 1;
            old[h] = there ? load(dx + mine[h] * stride + col) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) widen(old[h], sum[h]);
#pragma unroll 1
        for (u32 slot = 0; slot < (u32)slots; slot++) {
            float acc[4][4] = {};
            const u16 *d[2] = {dx + mine[0] * stride + width + slot * narrow_rank,
                               dx + mine[1] * stride + width + slot * narrow_rank};
#pragma unroll 1
            for (u32 r = 0; r < padded; r += 8) {
                u32 left[2] = {load_pair(d[0], r + quad * 2, narrow_rank), load_pair(d[1], r + quad * 2, narrow_rank)};
#pragma unroll
                for (int j = 0; j < 4; j++)
                    mma_8(acc[j], left[0], left[1], *(const u32 *)(turned + (right[j] + slot * padded + r)));
            }
            Mask mask = mask_of(keys, slot, threshold);
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    u32 kept = threshold ? mask.bits(((u32)mine[h] * width + col) / 2 + j) : ALL;
                    sum[h][2 * j] += kept & 0xffffu ? factor * acc[j][2 * h] : 0.0f;
                    sum[h][2 * j + 1] += kept >> 16 ? factor * acc[j][2 * h + 1] : 0.0f;
                }
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (there && row + h * 8 + line < rows) store(dx + mine[h] * stride + col, narrow(sum[h]));
    }
}
