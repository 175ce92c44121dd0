// The gradients of the factors A and B: sums over all rows, in chunks of 1024 whose sums `fold` adds in order, so that
// every run gives the same; and the factors in the layouts of products. Slots, masks and spare columns are as adapt.cu
// says. chunks = ceil(rows / 1024).
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr u32 CHUNK = 1024;
// Columns of a warp, of which a lane reads eight neighbours.
constexpr u32 SPAN = 32;

// acc[i][n] += tallᵀ · wide over rows begin..end: a SPAN of columns of `tall` (this lane's eight begin at `tall`; four
// lanes make a span) by WIDTH columns of `wide`, of which the first `rank` are there. Of tile i, row g or g + 8 of the
// product stands for column g / 2 * 8 + g % 2 + 4 * i (+ 2) of the span.
template <int WIDTH, bool DROPS>
__device__ __forceinline__ void contract(float (&acc)[2][WIDTH / 8][4], const u16 *tall, u64 tall_stride, bool there,
                                         const u16 *wide, u64 wide_stride, int rank, u32 begin, u32 end, Mask mask,
                                         u32 place, u32 cols) {
    u32 lane = threadIdx.x % 32, line = lane / 4;
    int quad = lane % 4;
    bool even = ((u64)wide & 3) == 0 && rank % 2 == 0;
#pragma unroll (WIDTH == 32 ? 1 : 2)
    for (u32 row = begin + line; row - line < end; row += 16) {
        uint4 values[2];
        u32 left[2][4], right[WIDTH / 8][2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            bool real = there && row + h * 8 < end;
            values[h] = real ? load(tall + (u64)(row + h * 8) * tall_stride) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++) {
                const u16 *at = wide + (u64)(row + h * 8) * wide_stride + n * 8 + quad * 2;
                int left_of = row + h * 8 < end ? rank - n * 8 - quad * 2 : 0;
                if (even) right[n][h] = left_of > 0 ? *(const u32 *)at : 0;
                else right[n][h] = (left_of > 0 ? at[0] : 0u) | (left_of > 1 ? (u32)at[1] << 16 : 0u);
            }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (DROPS) values[h] = mask.apply(values[h], ((row + h * 8) * cols + place) / 2);
            left[0][2 * h] = transpose(values[h].x), left[0][2 * h + 1] = transpose(values[h].y);
            left[1][2 * h] = transpose(values[h].z), left[1][2 * h + 1] = transpose(values[h].w);
        }
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) {
            if (n * 8 >= rank) continue;
            u32 early = transpose(right[n][0]), late = transpose(right[n][1]);
#pragma unroll
            for (int i = 0; i < 2; i++) mma(acc[i][n], left[i], early, late);
        }
    }
}

// The column within its span that element `e` of tile `i` of a product stands for.
__device__ __forceinline__ u32 column_of(int i, int e) {
    u32 line = threadIdx.x % 32 / 4;
    return line / 2 * 8 + line % 2 + 4 * i + 2 * (e / 2);
}

template <int WIDTH>
__device__ __forceinline__ void factor_a(const u16 *x, u64 stride, const u16 *d, u64 d_stride, const u32 *keys,
                                         u64 threshold, u64 rows, u32 cols, u32 slots, u32 rank, float *partials) {
    u32 parts = (rank + WIDTH - 1) / WIDTH, first = blockIdx.x % parts * WIDTH, block = blockIdx.x / parts;
    u32 slot = block % slots, across = (cols + WARPS * SPAN - 1) / (WARPS * SPAN), chunk = block / slots / across;
    u32 begin = (block / slots % across * WARPS + threadIdx.x / 32) * SPAN;
    if (begin >= cols || chunk * (u64)CHUNK >= rows) return;
    float acc[2][WIDTH / 8][4] = {};
    u32 quad = threadIdx.x % 4, col = begin + quad * 8;
    u64 stop = (chunk + 1) * (u64)CHUNK;
    u32 end = (u32)(stop < rows ? stop : rows);
    Mask mask = mask_of(keys, slot, threshold);
    x += col, d += slot * rank + first;
    int present = (int)(rank - first);
    bool there = col < cols;
    u32 row = chunk * CHUNK;
    if (threshold) contract<WIDTH, true>(acc, x, stride, there, d, d_stride, present, row, end, mask, col, cols);
    else contract<WIDTH, false>(acc, x, stride, there, d, d_stride, present, row, end, mask, col, cols);
    float *out = partials + ((u64)(chunk * slots + slot) * rank + first) * cols;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 k = begin + column_of(i, e);
                int r = n * 8 + (int)quad * 2 + e % 2;
                if (k < cols && r < present) out[(u64)r * cols + k] = acc[i][n][e];
            }
}

// partials[c, m * rank + r, k] = sum over t of chunk c of d[t, m * rank + r] * keep_m(t, k) * x[t, k]: f32
// [chunks, slots * rank, cols], to be folded with factor = scale of dropout. `d` points at the first spare column of
// dx. factor_a_8 if padded = 8, factor_a_16 if padded = 16, factor_a_32 otherwise. 256 threads,
// grid = chunks * ceil(cols / 256) * slots * ceil(padded / 32).
#define FACTOR_A(WIDTH)                                                                                                \
    extern "C" __global__ __launch_bounds__(THREADS) void factor_a_##WIDTH(                                            \
        const u16 *x, u64 stride, const u16 *d, u64 d_stride, const u32 *keys, u64 threshold, u64 rows, u64 cols,      \
        u64 slots, u64 rank, float *partials) {                                                                        \
        factor_a<WIDTH>(x, stride, d, d_stride, keys, threshold, rows, (u32)cols, (u32)slots, (u32)rank, partials);    \
    }

FACTOR_A(8)
FACTOR_A(16)
FACTOR_A(32)

template <int WIDTH>
__device__ __forceinline__ void factor_b(const u16 *dy, u64 stride, const u16 *xa, u64 xa_stride, const u64 *spans,
                                         u64 rows, u32 slots, u32 rank, float *partials, u64 total) {
    u32 parts = (rank + WIDTH - 1) / WIDTH, first = blockIdx.x % parts * WIDTH, block = blockIdx.x / parts;
    u32 across = 0, slot = 0;
    for (u32 m = 0; m < slots; m++) across += ((u32)spans[2 * m + 1] + WARPS * SPAN - 1) / (WARPS * SPAN);
    u32 chunk = block / across, within = block % across;
    u64 start = 0;
    for (;; slot++) {
        u32 blocks = ((u32)spans[2 * slot + 1] + WARPS * SPAN - 1) / (WARPS * SPAN);
        if (within < blocks) break;
        within -= blocks, start += spans[2 * slot + 1] * rank;
    }
    u32 cols = (u32)spans[2 * slot + 1], begin = (within * WARPS + threadIdx.x / 32) * SPAN, quad = threadIdx.x % 4;
    if (begin >= cols || chunk * (u64)CHUNK >= rows) return;
    float acc[2][WIDTH / 8][4] = {};
    u32 col = begin + quad * 8;
    u64 stop = (chunk + 1) * (u64)CHUNK;
    contract<WIDTH, false>(acc, dy + spans[2 * slot] + col, stride, col < cols, xa + slot * rank + first, xa_stride,
                           (int)(rank - first), chunk * CHUNK, (u32)(stop < rows ? stop : rows), Mask(), 0, 0);
    float *out = partials + chunk * total + start;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 row = begin + column_of(i, e), r = first + n * 8 + quad * 2 + e % 2;
                if (row < cols && r < rank) out[(u64)row * rank + r] = acc[i][n][e];
            }
}

// partials[c, start_m + n * rank + r] = sum over t of chunk c of dy[t, first_m + n] * xa[t, m * rank + r] for n in
// 0..columns_m: f32 [chunks, total], to be folded with factor = s. `spans` are u64 {first_m, columns_m} of each slot
// (multiples of 8); start_m is rank times the columns of the slots before, and `total` rank times those of all. `xa`
// points at the first spare column of x. factor_b_8 if padded = 8, factor_b_16 if padded = 16, factor_b_32 otherwise.
// 256 threads, grid = chunks * (sum over m of ceil(columns_m / 256)) * ceil(padded / 32).
#define FACTOR_B(WIDTH)                                                                                                \
    extern "C" __global__ __launch_bounds__(THREADS) void factor_b_##WIDTH(                                            \
        const u16 *dy, u64 stride, const u16 *xa, u64 xa_stride, const u64 *spans, u64 rows, u64 slots, u64 rank,      \
        float *partials, u64 total) {                                                                                  \
        factor_b<WIDTH>(dy, stride, xa, xa_stride, spans, rows, (u32)slots, (u32)rank, partials, total);               \
    }

FACTOR_B(8)
FACTOR_B(16)
FACTOR_B(32)

// out[offset_m + i - start_m] += factor * each[i] * sum over c of partials[c, i], where slot m is the last whose start
// is at most i, for i in 0..total. `spans` are u64 {start_m, offset_m} of each slot, starts ascending from 0; `factor`
// is f32 bits; `each` is f32 [total] or null (ones). 256 threads, grid = ceil(total / 1024).
extern "C" __global__ __launch_bounds__(THREADS) void fold(
    const float *partials, u64 chunks, u64 total, float *out, const u64 *spans, u64 slots, u64 factor,
    const float *each) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u64 at = blockIdx.x * (u64)(THREADS * 4) + i * THREADS + threadIdx.x;
        if (at >= total) return;
        float sum = 0.0f;
#pragma unroll 8
        for (u64 chunk = 0; chunk < chunks; chunk++) sum += partials[chunk * total + at];
        u64 to = 0;
        for (u32 m = 0; m < slots && spans[2 * m] <= at; m++) to = spans[2 * m + 1] + at - spans[2 * m];
        out[to] += f32_of(factor) * (each ? each[at] * sum : sum);
    }
}

// Rounds every A of a group to bf16, both ways round: see adapt.cu for `stack` and `turned`. Slot m's A is f32
// [rank, cols] from parameters[offsets[m]] on; `offsets` are u64. 256 threads,
// grid = slots * (padded / 8) * ceil(cols / 256).
extern "C" __global__ __launch_bounds__(THREADS) void pack_a(
    const float *parameters, const u64 *offsets, u64 slots, u64 rank, u64 cols, u16 *stack, u16 *turned) {
    u32 padded = ((u32)rank + 7) / 8 * 8, eights = padded / 8, across = ((u32)cols + THREADS - 1) / THREADS;
    u32 eight = blockIdx.x / across, slot = eight / eights, first = eight % eights * 8;
    u64 col = blockIdx.x % across * THREADS + threadIdx.x;
    if (col >= cols || slot >= slots) return;
    const float *a = parameters + offsets[slot] + col;
    float values[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) values[i] = first + i < rank ? a[(first + i) * cols] : 0.0f;
    u32 row = slot * padded + first;
#pragma unroll
    for (u32 i = 0; i < 8; i++) stack[(row + i) * cols + col] = (u16)pack(values[i], 0.0f);
    store(turned + col * slots * padded + row, narrow(values));
}

// Fills the spare columns of stacked weights [rows, cols + room]: w[n, cols + m * rank + r] = scale * B_m[n - first_m,
// r] for the rows n of slot m, zeros elsewhere. `spans` are u64 {first_m, rows_m, offset_m} of each slot, first_m
// ascending; B_m is f32 [rows_m, rank] from parameters[offset_m] on. `scale` is f32 bits. 256 threads,
// grid = ceil(rows * room / 256).
extern "C" __global__ __launch_bounds__(THREADS) void pack_b(
    const float *parameters, const u64 *spans, u64 slots, u64 rank, u64 scale, u16 *w, u64 stride, u64 rows, u64 cols,
    u64 room) {
    u32 index = blockIdx.x * THREADS + threadIdx.x, row = index / (u32)room, spare = index % (u32)room;
    u32 slot = spare / (u32)rank, r = spare % (u32)rank;
    if (row >= rows) return;
    float value = 0.0f;
    if (slot < slots) {
        u64 first = spans[3 * slot], count = spans[3 * slot + 1], offset = spans[3 * slot + 2];
        if (row >= first && row < first + count) value = f32_of(scale) * parameters[offset + (row - first) * rank + r];
    }
    w[row * stride + cols + spare] = (u16)pack(value, 0.0f);
}
