// Causal attention over segments, backward: three passes without atomics, so that every run gives the same bytes.
// Forward, and what the parameters mean, is in attention.cu; the products are in attention.cuh.
//
// attend_back_dot_D(dout, dout_stride, out, out_stride, dots, rows, heads): dots f32 [heads, rows] = the sum of
//   dout * out over a head. Grid: ceil(rows / (1024 / D)) * heads blocks.
// attend_back_queries_D, attend_back_keys_D(qkv, stride, dout, dout_stride, lse, dots, dqkv, dqkv_stride, starts,
//   tiles, tile_count, heads, kv_heads, scale, rows): the gradient of the queries, and that of keys and values, summed
//   over the query heads that share them, into the columns of dqkv that qkv has them in.
//   queries: a tile for each QUERY_ROWS rows of a segment, best the greatest first row first; grid tile_count * heads;
//     dynamic shared memory 58368 bytes for D = 64, 115712 for 128
//   keys: a tile for each KEY_ROWS rows of a segment, best the most rows from the tile's first to the segment's end
//     first; grid tile_count * kv_heads; dynamic shared memory 58368 bytes for D = 64, 107520 for 128
// All blocks have THREADS threads.
#include "attention.cuh"

constexpr int QUERY_ROWS = 128, KEY_ROWS = 64, STEP_ROWS = 64, N = STEP_ROWS / 8;

template <int D>
__device__ __forceinline__ void back_dot(const u16 *dout, u64 dout_stride, const u16 *out, u64 out_stride, float *dots,
                                         u64 rows, u64 heads) {
    constexpr int LANES = D / 8;
    u64 row = blockIdx.x / (u32)heads * (u64)(THREADS / LANES) + threadIdx.x / LANES, head = blockIdx.x % (u32)heads;
    u32 lane = threadIdx.x % LANES;
    float sum = 0.0f;
    if (row < rows) {
        uint4 a = *(const uint4 *)(dout + row * dout_stride + head * D + lane * 8);
        uint4 b = *(const uint4 *)(out + row * out_stride + head * D + lane * 8);
        sum = low_half(a.x) * low_half(b.x) + high_half(a.x) * high_half(b.x) + low_half(a.y) * low_half(b.y) +
              high_half(a.y) * high_half(b.y) + low_half(a.z) * low_half(b.z) + high_half(a.z) * high_half(b.z) +
              low_half(a.w) * low_half(b.w) + high_half(a.w) * high_half(b.w);
    }
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (lane == 0 && row < rows) dots[head * rows + row] = sum;
}

// dQ = scale · (P ∘ (dO·Vᵀ - dots)) · K with P = exp(scale · Q·Kᵀ - lse): 128 queries of a head, by steps of keys.
template <int D>
__device__ __forceinline__ void back_queries(const u16 *qkv, u64 stride, const u16 *dout, u64 dout_stride,
                                             const float *lse, const float *dots, u16 *dqkv, u64 dqkv_stride,
                                             const u32 *starts, const u32 *tiles, u64 heads, u64 kv_heads,
                                             u64 scale_bits, u64 all_rows) {
    constexpr u32 TILE = STEP_ROWS * 2 * D, DOUT = QUERY_ROWS * 2 * D, KEYS = 2 * DOUT, VALUES = KEYS + 2 * TILE;
    constexpr u32 LSE = VALUES + TILE, DOTS = LSE + QUERY_ROWS * 4;
    Place place = find_place(starts, tiles, (u32)heads);
    u32 kv_head = place.head / (u32)(heads / kv_heads);
    u64 top_row = place.begin + place.first;
    const u16 *keys = qkv + place.begin * stride + (heads + kv_head) * D;
    int rows = min(place.length - place.first, QUERY_ROWS), seen = place.first + rows;

    u32 shared = shared_start();
    copy_tile<D, QUERY_ROWS>(shared, qkv + top_row * stride + place.head * D, stride, rows);
    copy_tile<D, QUERY_ROWS>(shared + DOUT, dout + top_row * dout_stride + place.head * D, dout_stride, rows);
    copy_tile<D, STEP_ROWS>(shared + KEYS, keys, stride, seen);
    copy_tile<D, STEP_ROWS>(shared + VALUES, keys + kv_heads * D, stride, seen);
    u64 line = place.head * all_rows + top_row + threadIdx.x;
    copy_4(shared + LSE + threadIdx.x * 4, lse + line, threadIdx.x < rows);
    copy_4(shared + DOTS + threadIdx.x * 4, dots + line, threadIdx.x < rows);

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warp_row = place.first + warp * 32;
    u32 own = warp * 32 * (2 * D) + shared;
    float scale = __uint_as_float((u32)scale_bits), unit = scale * LOG2_E;
    float acc[2][D / 8][4] = {};

#pragma unroll 1
    for (int key = 0; key < seen; key += STEP_ROWS) {
        u32 stage = shared + KEYS + (key & STEP_ROWS) * (2 * D), other = shared + KEYS + (~key & STEP_ROWS) * (2 * D);
        int next = key + STEP_ROWS;
        bool idle = key > warp_row + 31;
        wait_copies();
        __syncthreads();
        if (next < seen) copy_tile<D, STEP_ROWS>(other, keys + next * stride, stride, seen - next);

        // dO·Vᵀ comes first, to free the one tile of values for the next step's.
        u32 ds[2][N / 2][4];
        if (!idle) {
            float dp[2][N][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float dot = load_4(shared + DOTS + (warp * 32 + 16 * m + 8 * h + lane / 4) * 4);
#pragma unroll
                    for (int n = 0; n < N; n++) dp[m][n][2 * h] = dp[m][n][2 * h + 1] = -dot;
                }
            multiply_rows<D, N>(dp, own + DOUT + left_lane<D>(), shared + VALUES + right_lane<D>());
            pack_product<N>(ds, dp);
        }
        __syncthreads();
        if (next < seen) {
            const u16 *values = keys + afresh(next * stride + kv_heads * D);
            copy_tile<D, STEP_ROWS>(shared + VALUES, values, stride, seen - next);
        }
        if (idle) continue;

        float s[2][N][4] = {};
        multiply_rows<D, N>(s, own + left_lane<D>(), stage + right_lane<D>());
        if (next > warp_row + 1) mask<false, N>(s, key + 2 * (lane % 4) - warp_row - lane / 4);
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float top = load_4(shared + LSE + (warp * 32 + 16 * m + 8 * h + lane / 4) * 4) * LOG2_E;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    u32 &pair = ds[m][n / 2][n % 2 * 2 + h];
                    float p0 = exp2_fast(s[m][n][2 * h] * unit - top);
                    float p1 = exp2_fast(s[m][n][2 * h + 1] * unit - top);
                    pair = pack(p0 * low_half(pair), p1 * high_half(pair));
                }
            }
        multiply_columns<D, N / 2>(acc, ds, stage + left_lane<D>());
    }

    float factor[2][2] = {{scale, scale}, {scale, scale}};
    // Found again, which costs less than registers that hold it all along.
    place = find_place(starts, tiles, (u32)afresh(heads));
    u16 *to = dqkv + (place.begin + place.first + warp * 32) * dqkv_stride + place.head * D;
    write_rows<D>(to, dqkv_stride, place.length - place.first - warp * 32, acc, factor, own);
}

// With rows for keys and columns for queries, over the query heads that share them:
//   dV = Pᵀ · dO and dK = scale · (Pᵀ ∘ (V·dOᵀ - dots)) · Q.
// Two warps share 32 keys: one makes Pᵀ and dV, the other V·dOᵀ and, once it was handed Pᵀ, dK. Each then holds one
// gradient of 32 rows in registers, so that what is read of Q and dO serves twice the rows it would otherwise.
template <int D>
__device__ __forceinline__ void back_keys(const u16 *qkv, u64 stride, const u16 *dout, u64 dout_stride,
                                          const float *lse, const float *dots, u16 *dqkv, u64 dqkv_stride,
                                          const u32 *starts, const u32 *tiles, u64 heads, u64 kv_heads, u64 scale_bits,
                                          u64 all_rows) {
    constexpr u32 TILE = STEP_ROWS * 2 * D, LINE = STEP_ROWS * 4, OWN = KEY_ROWS * 2 * D;
    // A stage is a tile of Q, one of dO, and a line each of lse and dots.
    constexpr u32 STAGE = 2 * TILE + 2 * LINE, STAGES = 2 * OWN, HANDED = STAGES + 2 * STAGE;
    constexpr int PAIRS = KEY_ROWS / 32;
    Place place = find_place(starts, tiles, (u32)kv_heads);
    int group = (int)(heads / kv_heads), rows = min(place.length - place.first, KEY_ROWS);
    u64 top_row = place.begin + place.first;
    u64 key_column = (heads + place.head) * D, value_column = key_column + kv_heads * D;

    u32 shared = shared_start();
    copy_tile<D, KEY_ROWS>(shared, qkv + top_row * stride + key_column, stride, rows);
    copy_tile<D, KEY_ROWS>(shared + OWN, qkv + top_row * stride + value_column, stride, rows);

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, pair = warp % PAIRS;
    bool values = warp < PAIRS;
    u32 own = shared + (values ? 0 : OWN) + pair * 32 * (2 * D);
    u32 handed = shared + HANDED + pair * 32 * STEP_ROWS * 2 + lane * 16;
    float scale = __uint_as_float((u32)scale_bits), unit = scale * LOG2_E;
    float acc[2][D / 8][4] = {};

    auto copy_stage = [&](u32 stage, int head, int query) {
        int valid = place.length - query;
        u64 row = place.begin + query, column = place.head * group + head;
        copy_tile<D, STEP_ROWS>(stage, qkv + row * stride + column * D, stride, valid);
        copy_tile<D, STEP_ROWS>(stage + TILE, dout + row * dout_stride + column * D, dout_stride, valid);
        int at = threadIdx.x % STEP_ROWS;
        const float *from = (threadIdx.x < STEP_ROWS ? lse : dots) + column * all_rows + row;
        copy_4(stage + 2 * TILE + threadIdx.x * 4, from + at, at < valid);
    };
    copy_stage(shared + STAGES, 0, place.first);

    int head = 0, query = place.first;
    u32 stage = shared + STAGES, other = stage + STAGE;
#pragma unroll 1
    while (head < group) {
        int next_query = query + STEP_ROWS, next_head = head;
        if (next_query >= place.length) next_query = place.first, next_head++;
        wait_copies();
        __syncthreads();
        if (next_head < group) copy_stage(other, next_head, next_query);

        // One product gives scores, the other begins at -dots.
        float s[2][N][4];
        u32 line = stage + 2 * TILE + (values ? 0 : LINE) + lane % 4 * 8;
#pragma unroll
        for (int n = 0; n < N; n++) {
            float dot[2] = {0.0f, 0.0f};
            if (!values) load_pair(dot, line + n * 32);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[m][n][e] = -dot[e & 1];
        }
        multiply_rows<D, N>(s, own + left_lane<D>(), stage + (values ? 0 : TILE) + right_lane<D>());
        u32 product[2][N / 2][4];
        if (values) {
            if (query == place.first) mask<true, N>(s, pair * 32 + lane / 4 - 2 * (lane % 4));
#pragma unroll
            for (int n = 0; n < N; n++) {
                float top[2];
                load_pair(top, line + n * 32);
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        s[m][n][e] = exp2_fast(s[m][n][e] * unit - top[e & 1] * LOG2_E);
            }
            pack_product<N>(product, s);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int k = 0; k < N / 2; k++) store_16(handed + (m * N / 2 + k) * 512, product[m][k]);
            pair == 0 ? announce<1>() : announce<2>();
        } else {
            pair == 0 ? await<1>() : await<2>();
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int k = 0; k < N / 2; k++) load_16(product[m][k], handed + (m * N / 2 + k) * 512);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        u32 &p = product[m][n / 2][n % 2 * 2 + h];
                        p = pack(low_half(p) * s[m][n][2 * h], high_half(p) * s[m][n][2 * h + 1]);
                    }
        }
        multiply_columns<D, N / 2>(acc, product, stage + (values ? TILE : 0) + left_lane<D>());
        head = next_head, query = next_query;
        u32 swapped = stage;
        stage = other, other = swapped;
    }

    float by = values ? 1.0f : scale, factor[2][2] = {{by, by}, {by, by}};
    place = find_place(starts, tiles, (u32)kv_heads);
    key_column = (heads + place.head) * D + (values ? kv_heads * D : 0);
    u16 *to = dqkv + (place.begin + place.first + pair * 32) * dqkv_stride + key_column;
    write_rows<D>(to, dqkv_stride, place.length - place.first - pair * 32, acc, factor, own);
}

#define BACK_DOT(D)                                                                                                    \
    extern "C" __global__ __launch_bounds__(THREADS) void attend_back_dot_##D(                                         \
        const u16 *dout, u64 dout_stride, const u16 *out, u64 out_stride, float *dots, u64 rows, u64 heads) {          \
        back_dot<D>(dout, dout_stride, out, out_stride, dots, rows, heads);                                            \
    }

#define BACK(OF, ACROSS, D)                                                                                            \
    extern "C" __global__ __launch_bounds__(THREADS, 2) void attend_back_##OF##_##D(                                   \
        const u16 *qkv, u64 stride, const u16 *dout, u64 dout_stride, const float *lse, const float *dots, u16 *dqkv,  \
        u64 dqkv_stride, const u32 *starts, const u32 *tiles, u64 tile_count, u64 heads, u64 kv_heads, u64 scale,      \
        u64 rows) {                                                                                                    \
        if (blockIdx.x < tile_count * ACROSS)                                                                          \
            back_##OF<D>(qkv, stride, dout, dout_stride, lse, dots, dqkv, dqkv_stride, starts, tiles, heads, kv_heads, \
                         scale, rows);                                                                                 \
    }

BACK_DOT(64)
BACK_DOT(128)
BACK(queries, heads, 64)
BACK(queries, heads, 128)
BACK(keys, kv_heads, 64)
BACK(keys, kv_heads, 128)
