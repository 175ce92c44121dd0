// What the passes of attention share: tiles in shared memory, products on tensor cores, and where a block works.
// Forward is in attention.cu, backward in attention_back.cu. Contraction and fast exponentials are allowed in all.
//
// A tile is ROWS rows of D bf16 in shared memory without padding; the 16-byte chunk c of row r lies at chunk
// c ^ (r & 7), so that the eight rows of an 8x8 matrix fall into different banks. Shared memory is addressed by 32-bit
// offsets, and every instruction that C++ can't say is one small function here; a host emulation brings its own
// (QFT_EMULATED).
#pragma once

#include "mma.cuh"

constexpr int THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

#ifndef QFT_EMULATED
extern __shared__ __align__(1024) u8 dynamic_shared[];

// The offset at which the block's dynamic shared memory begins.
__device__ __forceinline__ u32 shared_start() { return (u32)__cvta_generic_to_shared(dynamic_shared); }

// Four 8x8 matrices of 16-bit values: lanes 8i..8i+7 name the rows of matrix i, which arrives in to[i].
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// Begins to copy 16 bytes into shared memory; if not `real`, zeros, and nothing is read.
__device__ __forceinline__ void copy_16(u32 to, const void *from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy_4(u32 to, const void *from, bool real) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(real ? 4 : 0) : "memory");
}

// Closes the group of this thread's copies since the last one.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies.
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Announces at one of the numbered barriers of 64 threads that what this warp wrote may be read.
template <int BARRIER>
__device__ __forceinline__ void announce() { asm volatile("bar.arrive %0, 64;" ::"n"(BARRIER) : "memory"); }

// Waits at a numbered barrier for the other warp's announcement.
template <int BARRIER>
__device__ __forceinline__ void await() { asm volatile("bar.sync %0, 64;" ::"n"(BARRIER) : "memory"); }

__device__ __forceinline__ void store_4(u32 at, u32 value) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(value) : "memory");
}

__device__ __forceinline__ void store_16(u32 at, const u32 (&value)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};"
                 ::"r"(at), "r"(value[0]), "r"(value[1]), "r"(value[2]), "r"(value[3]) : "memory");
}

__device__ __forceinline__ void load_16(u32 (&to)[4], u32 at) {
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// The same value, unknown to the compiler, so that what follows from it is computed here rather than kept in registers.
__device__ __forceinline__ u64 afresh(u64 value) {
    asm volatile("" : "+l"(value));
    return value;
}

// Writes 16 bytes to global memory if `real`.
__device__ __forceinline__ void write_16(void *to, const u32 (&value)[4], bool real) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p st.global.v4.b32 [%0], {%1,%2,%3,%4};}"
                 ::"l"(to), "r"(value[0]), "r"(value[1]), "r"(value[2]), "r"(value[3]), "r"((int)real) : "memory");
}

__device__ __forceinline__ float load_4(u32 at) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(at) : "memory");
    return value;
}

__device__ __forceinline__ void load_pair(float (&to)[2], u32 at) {
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(to[0]), "=f"(to[1]) : "r"(at) : "memory");
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// The sum, or the greatest, over the four lanes that share a row of a product.
__device__ __forceinline__ float sum_of_quad(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

__device__ __forceinline__ float max_of_quad(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// Which rows of which segment a block works on. `block` counts heads fastest: `across` of them to a tile of the list.
struct Place {
    u64 begin;  // first row of the segment among all rows
    int length; // rows of the segment
    int first;  // first row of the tile within the segment
    u32 head;
};

__device__ __forceinline__ Place find_place(const u32 *starts, const u32 *tiles, u32 across) {
    const u32 *tile = tiles + 2 * (u64)(blockIdx.x / across);
    u32 begin = starts[tile[0]];
    return {begin, (int)(starts[tile[0] + 1] - begin), (int)tile[1], blockIdx.x % across};
}

// Begins to copy `valid` rows of D bf16, `stride` elements apart, into a tile of ROWS whose other rows become zeros.
template <int D, int ROWS>
__device__ __forceinline__ void copy_tile(u32 tile, const u16 *from, u64 stride, int valid) {
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    u32 to = tile + row * (2 * D) + ((chunk ^ (row & 7)) << 4);
    const u16 *source = from + row * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        copy_16(to + i * STEP * (2 * D), source, row + i * STEP < valid);
        source += STEP * stride;
    }
}

// Where this lane finds its rows of a tile for `load_matrices`, so that four matrices are a 16x16 left operand (or,
// transposed, a right operand of 16 rows and 16 columns). The k-th 16 columns are at this ^ (k << 5).
template <int D>
__device__ __forceinline__ u32 left_lane() {
    u32 lane = threadIdx.x & 31;
    return (lane & 15) * (2 * D) + (((lane >> 4) ^ (lane & 7)) << 4);
}

// As `left_lane` for a right operand whose columns are the tile's rows: 16 of them.
template <int D>
__device__ __forceinline__ u32 right_lane() {
    u32 lane = threadIdx.x & 31;
    return ((lane & 7) + (lane >> 4) * 8) * (2 * D) + ((((lane >> 3) & 1) ^ (lane & 7)) << 4);
}

// acc += left · rightᵀ over D columns: 32 rows of one tile (at `left`, of a `left_lane`) by 8·N rows of another.
template <int D, int N>
__device__ __forceinline__ void multiply_rows(float (&acc)[2][N][4], u32 left, u32 right) {
    // What the next 16 columns need first is loaded before the products of these.
    u32 a[2][2][4], b[2][4];
    load_matrices(b[0], right);
    load_matrices(a[0][0], left);
    load_matrices(a[0][1], left + 16 * (2 * D));
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        if (k + 1 < D / 16) {
            load_matrices(a[(k + 1) & 1][0], left ^ ((k + 1) << 5));
            load_matrices(a[(k + 1) & 1][1], (left ^ ((k + 1) << 5)) + 16 * (2 * D));
        }
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            int next = k * (N / 2) + n + 1;
            if (next < D / 16 * (N / 2))
                load_matrices(b[next & 1], (right ^ (next / (N / 2) << 5)) + next % (N / 2) * 16 * (2 * D));
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma(acc[m][2 * n], a[k & 1][m], b[~next & 1][0], b[~next & 1][1]);
                mma(acc[m][2 * n + 1], a[k & 1][m], b[~next & 1][2], b[~next & 1][3]);
            }
        }
    }
}

// acc += left · right: 32 rows by 16·K columns in registers, times 16·K rows of a tile (`right`, of a `left_lane`).
template <int D, int K>
__device__ __forceinline__ void multiply_columns(float (&acc)[2][D / 8][4], const u32 (&left)[2][K][4], u32 right) {
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            u32 b[4];
            load_matrices_transposed(b, (right ^ (n << 5)) + k * 16 * (2 * D));
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma(acc[m][2 * n], left[m][k], b[0], b[1]);
                mma(acc[m][2 * n + 1], left[m][k], b[2], b[3]);
            }
        }
}

// A product rounded to bf16, as the left operand of the next: a lane holds the same elements of both.
template <int N>
__device__ __forceinline__ void pack_product(u32 (&to)[2][N / 2][4], const float (&from)[2][N][4]) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            to[m][n / 2][n % 2 * 2] = pack(from[m][n][0], from[m][n][1]);
            to[m][n / 2][n % 2 * 2 + 1] = pack(from[m][n][2], from[m][n][3]);
        }
}

// Takes out of a product what lies past the diagonal: with rows for queries, the columns n > row - ahead; with columns
// for queries (BY_COLUMN), the rows m > column - ahead. `ahead` is for this lane's first element.
template <bool BY_COLUMN, int N>
__device__ __forceinline__ void mask(float (&s)[2][N][4], int ahead) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = 16 * m + 8 * (e >> 1), column = 8 * n + (e & 1);
                if (BY_COLUMN ? ahead > column - row : ahead > row - column) s[m][n][e] = minus_infinity();
            }
}

// Writes a warp's 32 rows, times the `factor` of each, as bf16 `stride` elements apart, by way of 32 rows of a tile
// that no other warp uses. Rows from `valid` on are not written.
template <int D>
__device__ __forceinline__ void write_rows(u16 *out, u64 stride, int valid, const float (&acc)[2][D / 8][4],
                                           const float (&factor)[2][2], u32 tile) {
    constexpr int CHUNKS = D / 8, STEP = 32 / CHUNKS;
    int lane = threadIdx.x & 31, row = lane / 4;
    u32 to = tile + row * (2 * D) + (row << 4) + lane % 4 * 4;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float scale = factor[m][h];
                store_4((to ^ (n << 4)) + (16 * m + 8 * h) * (2 * D),
                        pack(acc[m][n][2 * h] * scale, acc[m][n][2 * h + 1] * scale));
            }
    __syncwarp();
    int first = lane / CHUNKS, chunk = lane % CHUNKS;
    u32 from = tile + first * (2 * D) + ((chunk ^ first) << 4);
    out += first * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < 32; i += STEP) {
        u32 values[4];
        load_16(values, (from ^ ((i & 7) << 4)) + i * (2 * D));
        write_16(out, values, first + i < valid);
        out += STEP * stride;
    }
}
