// Causal attention over segments of any length, forward (FlashAttention-2, Dao 2023: a running softmax per row over
// tiles of keys). Backward is in attention_back.cu, the products in attention.cuh.
//
// attend_D(qkv, stride, out, out_stride, lse, starts, tiles, tile_count, heads, kv_heads, scale, rows): head size D.
//   qkv    bf16 [rows, stride]: `heads` queries of D, then `kv_heads` keys, then `kv_heads` values; rotated already
//   out    bf16 [rows, out_stride]: head h is columns h*D..
//   lse    f32 [heads, rows]: natural logarithm of the sum of exp(scale * score)
//   starts u32 [segments + 1]: where segments begin among the rows
//   tiles  u32 [tile_count, 2]: segment, first row within it; a tile for each BLOCK_ROWS rows of each segment, best
//          those with the greatest first row first
//   scale  the bits of an f32 above zero
// Pointers and strides are multiples of 16 bytes. Grid: tile_count * heads blocks of THREADS.
// Dynamic shared memory: 49152 bytes for D = 64, 98304 for 128.
#include "attention.cuh"

constexpr int BLOCK_ROWS = 128, STEP_KEYS = 64;

// How far, in powers of two, a row's scores may outgrow the maximum in use before its sums are rescaled.
constexpr float SLACK = 8.0f;

template <int D>
__device__ __forceinline__ void attend(const u16 *qkv, u64 stride, u16 *out, u64 out_stride, float *lse,
                                       const u32 *starts, const u32 *tiles, u64 heads, u64 kv_heads, u64 scale_bits,
                                       u64 all_rows) {
    constexpr int N = STEP_KEYS / 8;
    constexpr u32 TILE = STEP_KEYS * 2 * D, KEYS = BLOCK_ROWS * 2 * D, VALUES = KEYS + 2 * TILE;
    Place place = find_place(starts, tiles, (u32)heads);
    u32 kv_head = place.head / (u32)(heads / kv_heads);
    const u16 *queries = qkv + (place.begin + place.first) * stride + place.head * D;
    const u16 *keys = qkv + place.begin * stride + (heads + kv_head) * D;
    const u16 *values = keys + kv_heads * D;
    int rows = min(place.length - place.first, BLOCK_ROWS), seen = place.first + rows;
    int steps = (seen + STEP_KEYS - 1) / STEP_KEYS;

    u32 shared = shared_start();
    copy_tile<D, BLOCK_ROWS>(shared, queries, stride, rows);
    copy_tile<D, STEP_KEYS>(shared + KEYS, keys, stride, seen);
    copy_tile<D, STEP_KEYS>(shared + VALUES, values, stride, seen);

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warp_row = place.first + warp * 32;
    u32 own = shared + warp * 32 * (2 * D);
    // Scores are compared times `unit`, as powers of two. `top` is the maximum in use.
    float unit = __uint_as_float((u32)scale_bits) * LOG2_E;
    float acc[2][D / 8][4] = {}, top[2][2], sum[2][2] = {};
    top[0][0] = top[0][1] = top[1][0] = top[1][1] = minus_infinity();

#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        u32 stage = (step & 1) * TILE;
        int key = step * STEP_KEYS, next = key + STEP_KEYS;
        wait_copies();
        __syncthreads();
        if (next < seen) {
            copy_tile<D, STEP_KEYS>(shared + KEYS + (stage ^ TILE), keys + next * stride, stride, seen - next);
            copy_tile<D, STEP_KEYS>(shared + VALUES + (stage ^ TILE), values + next * stride, stride, seen - next);
        }
        if (key > warp_row + 31) continue;

        float s[2][N][4] = {};
        multiply_rows<D, N>(s, own + left_lane<D>(), shared + KEYS + stage + right_lane<D>());
        if (next > warp_row + 1) mask<false, N>(s, key + 2 * (lane % 4) - warp_row - lane / 4);

        float highest[2][2];
        bool outgrown = false;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float most = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]);
#pragma unroll
                for (int n = 1; n < N; n++) most = fmaxf(most, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                highest[m][h] = max_of_quad(most) * unit;
                outgrown |= highest[m][h] > top[m][h] + SLACK;
            }
        // Any maximum not too far below the true one will do, so most steps rescale nothing.
        if (__any_sync(0xffffffffu, outgrown)) {
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float higher = fmaxf(top[m][h], highest[m][h]), factor = exp2_fast(top[m][h] - higher);
                    top[m][h] = higher;
                    sum[m][h] *= factor;
#pragma unroll
                    for (int n = 0; n < D / 8; n++) {
                        acc[m][n][2 * h] *= factor;
                        acc[m][n][2 * h + 1] *= factor;
                    }
                }
        }
        u32 p[2][N / 2][4];
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[m][n][e] = exp2_fast(s[m][n][e] * unit - top[m][e >> 1]);
                    sum[m][e >> 1] += s[m][n][e];
                }
        pack_product<N>(p, s);
        multiply_columns<D, N / 2>(acc, p, shared + VALUES + stage + left_lane<D>());
    }

    float factor[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum_of_quad(sum[m][h]);
            factor[m][h] = inverse_fast(total);
            int row = warp * 32 + 16 * m + 8 * h + lane / 4;
            if (lane % 4 == 0 && row < rows)
                lse[place.head * all_rows + place.begin + place.first + row] = (top[m][h] + log2_fast(total)) * LN_2;
        }
    u16 *to = out + (place.begin + place.first + warp * 32) * out_stride + place.head * D;
    write_rows<D>(to, out_stride, rows - warp * 32, acc, factor, own);
}

#define ATTEND(D)                                                                                                      \
    extern "C" __global__ __launch_bounds__(THREADS, 2) void attend_##D(                                               \
        const u16 *qkv, u64 stride, u16 *out, u64 out_stride, float *lse, const u32 *starts, const u32 *tiles,         \
        u64 tile_count, u64 heads, u64 kv_heads, u64 scale, u64 rows) {                                                \
        if (blockIdx.x < tile_count * heads)                                                                           \
            attend<D>(qkv, stride, out, out_stride, lse, starts, tiles, heads, kv_heads, scale, rows);                 \
    }

ATTEND(64)
ATTEND(128)
