// Encodes Q2_K, Q4_K and Q5_K: a value is scale * code - minimum. Mirrors src/ggml/encode/k/affine.rs.
//
// A thread block has 16 super-blocks of 256 values, and a thread a sub-block; for the codes a thread takes 4 values of
// each of the runs that share bytes. The bytes are put together in shared memory.
#include "affine.cuh"
#include "levels.cuh"

// Values of a super-block, and super-blocks of a thread block: one warp finds the levels of all scales and minimums.
constexpr int LEN = 256, BLOCKS = 16;

struct SearchQ2K {
    static constexpr float LOW = -0.5f, STEP = 0.1f;
    static constexpr int LAST = 15;
    static constexpr bool ABSOLUTE = true;
};

struct SearchQ4K {
    static constexpr float LOW = -1.0f, STEP = 0.1f;
    static constexpr int LAST = 20;
    static constexpr bool ABSOLUTE = false;
};

struct SearchQ5K {
    static constexpr float LOW = -0.5f, STEP = 0.1f;
    static constexpr int LAST = 15;
    static constexpr bool ABSOLUTE = false;
};

// What was found for a thread block's sub-blocks, and the bytes of its super-blocks. A sub-block's number comes first
// where the threads of a warp have super-blocks side by side.
template <class K>
struct Shared {
    static constexpr int SUBS = LEN / K::S;
    // Scales and negated minimums as found.
    float found[SUBS][2][BLOCKS];
    // Sums of weights.
    float weight[SUBS][BLOCKS];
    // The codes of the search are those of `inverse * (x - floor)`.
    float inverse[BLOCKS][SUBS], floor[BLOCKS][SUBS];
    // Scales and minimums as a decoder will see them.
    float scale[BLOCKS][SUBS], min[BLOCKS][SUBS];
    float unit[BLOCKS][2];
    u8 levels[BLOCKS][2][SUBS];
    u32 image[BLOCKS * K::BYTES / 4];
};

// The weights of sub-blocks of 32 where importance is unknown, as ggml-quants.c has them: root mean square plus
// magnitude; gives the sum.
__device__ __forceinline__ float weigh_32(const float (&x)[32], float (&w)[32]) {
    float squares = 0.0f, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; i++) squares = squares + x[i] * x[i];
    float mean = sqrtf(squares / 32.0f);
#pragma unroll
    for (int i = 0; i < 32; i++) {
        w[i] = mean + fabsf(x[i]);
        sum = sum + w[i];
    }
    return sum;
}

// Writes sub-block `j`'s part of the 12 bytes of eight pairs of six-bit levels, and gives what a decoder will read.
// Levels above 63 spill into their neighbours as they do in ggml-quants.c.
__device__ __forceinline__ uint2 pack_pair(const u8 *scales, const u8 *mins, int j, u8 *out) {
    int k = j & 3;
    u32 scale = scales[k], min = mins[k], other_scale = scales[k + 4], other_min = mins[k + 4];
    scale = (scale | other_scale >> 4 << 6) & 0xffu;
    min = (min | other_min >> 4 << 6) & 0xffu;
    u32 rest = ((other_scale & 15u) | other_min << 4) & 0xffu;
    if (j < 4) {
        out[k] = (u8)scale;
        out[4 + k] = (u8)min;
        return {scale & 63u, min & 63u};
    }
    out[8 + k] = (u8)rest;
    return {(rest & 15u) | scale >> 6 << 4, rest >> 4 | min >> 6 << 4};
}

// What sets a type apart from the others: values of a sub-block, bytes of a super-block, the largest code of a value,
// the largest level that is aimed at, where levels that absurd weights bring above are cut off, the place of the units,
// and the search and weights where importance is unknown. SQUARES is mean squares in the weights of importance.
struct Q2K {
    static constexpr int S = 16, BYTES = 84, TOP = 3, TOP_LEVEL = 15, UNITS = 80;
    static constexpr u32 HELD = 255, HELD_WEIGHTED = 255;
    typedef SearchQ2K Plain;
    static constexpr float SQUARES = 1.0f;

    static __device__ __forceinline__ float weigh(const float (&x)[16], float (&w)[16]) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            w[i] = fabsf(x[i]);
            sum = sum + w[i];
        }
        return sum;
    }

    static __device__ __forceinline__ uint2 write_levels(const u8 *scales, const u8 *mins, int j, u8 *out) {
        u32 pair = ((u32)scales[j] | (u32)mins[j] << 4) & 0xffu;
        out[j] = (u8)pair;
        return {pair & 15u, pair >> 4};
    }

    // Four runs of 32 codes share 32 bytes.
    template <class Codes>
    static __device__ __forceinline__ void write_codes(Codes codes, int q, u32 *out) {
        int half = q / 8, at = q % 8;
        u32 word = 0;
#pragma unroll 1
        for (int run = 0; run < 4; run++) word |= codes(128 * half + 32 * run + 4 * at) << (2 * run);
        out[4 + 8 * half + at] = word;
    }
};

struct Q4K {
    static constexpr int S = 32, BYTES = 144, TOP = 15, TOP_LEVEL = 63, UNITS = 0;
    // With importance, this type alone lets levels above 63 through.
    static constexpr u32 HELD = 63, HELD_WEIGHTED = 255;
    typedef SearchQ4K Plain;
    static constexpr float SQUARES = 2.0f;
    static __device__ __forceinline__ float weigh(const float (&x)[32], float (&w)[32]) { return weigh_32(x, w); }

    static __device__ __forceinline__ uint2 write_levels(const u8 *scales, const u8 *mins, int j, u8 *out) {
        return pack_pair(scales, mins, j, out + 4);
    }

    // Two runs of 32 codes share 32 bytes.
    template <class Codes>
    static __device__ __forceinline__ void write_codes(Codes codes, int q, u32 *out) {
#pragma unroll 1
        for (int pair = 0; pair < 4; pair++) {
            u32 low = codes(64 * pair + 4 * q), high = codes(64 * pair + 32 + 4 * q);
            out[4 + 8 * pair + q] = low | high << 4;
        }
    }
};

struct Q5K {
    static constexpr int S = 32, BYTES = 176, TOP = 31, TOP_LEVEL = 63, UNITS = 0;
    static constexpr u32 HELD = 63, HELD_WEIGHTED = 63;
    typedef SearchQ5K Plain;
    static constexpr float SQUARES = 2.0f;
    static __device__ __forceinline__ float weigh(const float (&x)[32], float (&w)[32]) { return weigh_32(x, w); }

    static __device__ __forceinline__ uint2 write_levels(const u8 *scales, const u8 *mins, int j, u8 *out) {
        return pack_pair(scales, mins, j, out + 4);
    }

    // As Q4_K, and run `r` gives bit `r` of 32 bytes.
    template <class Codes>
    static __device__ __forceinline__ void write_codes(Codes codes, int q, u32 *out) {
        u32 bits = 0;
#pragma unroll 1
        for (int pair = 0; pair < 4; pair++) {
            u32 low = codes(64 * pair + 4 * q), high = codes(64 * pair + 32 + 4 * q);
            bits |= ((low >> 4 & 0x01010101u) | (high >> 3 & 0x02020202u)) << (2 * pair);
            out[12 + 8 * pair + q] = (low & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4;
        }
        out[4 + q] = bits;
    }
};

// The weights that importance gives: `qw * sqrt(sigma2 + x^2)`, `sigma2` being so many mean squares of the super-block
// at `block`; gives the sum.
template <class K>
__device__ __forceinline__ float weigh_by_importance(
    const float (&x)[K::S], float (&w)[K::S], const float *block, const float *importance
) {
    float squares = 0.0f, sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < LEN; i += 4) {
        float4 v = *(const float4 *)(block + i);
        squares = squares + v.x * v.x;
        squares = squares + v.y * v.y;
        squares = squares + v.z * v.z;
        squares = squares + v.w * v.w;
    }
    float sigma2 = K::SQUARES * squares / 256.0f;
#pragma unroll
    for (int i = 0; i < K::S; i++) {
        w[i] = importance[i] * sqrtf(sigma2 + x[i] * x[i]);
        sum = sum + w[i];
    }
    return sum;
}

// Encodes 16 super-blocks with 4096 / K::S threads.
template <class K, bool WEIGHTED>
__device__ __forceinline__ void encode(
    const float *values, u64 count, u8 *out, u32 *fault, const float *importance, u64 columns, u64 rows_per_matrix,
    u64 importance_len, u64 first
) {
    constexpr int S = K::S, SUBS = LEN / S, THREADS = BLOCKS * SUBS;
    __shared__ Shared<K> shared;
    const int block = threadIdx.x / SUBS, sub = threadIdx.x % SUBS;
    const u64 at = ((u64)blockIdx.x * BLOCKS + block) * LEN;
    const bool live = at < count;

    Fit fit = {0.0f, 0.0f, 0.0f, 0.0f};
    float sum = 0.0f;
    if (live) {
        float x[S], w[S];
#pragma unroll
        for (int i = 0; i < S; i += 4) {
            float4 v = *(const float4 *)(values + at + sub * S + i);
            x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
        }
        if (WEIGHTED) {
            u64 element = first + at + sub * S, row = element / columns;
            importance += row / rows_per_matrix * columns % importance_len + (element - row * columns);
            sum = weigh_by_importance<K>(x, w, values + at, importance);
            fit = fit_affine<SearchWeighted, S>(x, w, sum, (float)K::TOP);
        } else {
            sum = K::weigh(x, w);
            fit = fit_affine<typename K::Plain, S>(x, w, sum, (float)K::TOP);
        }
    }
    shared.found[sub][0][block] = fit.scale;
    shared.found[sub][1][block] = fit.min;
    shared.weight[sub][block] = sum;
    shared.inverse[block][sub] = fit.inverse;
    shared.floor[block][sub] = fit.floor;
    __syncthreads();

    if (threadIdx.x < 2 * BLOCKS) {
        const int which = threadIdx.x / BLOCKS, b = threadIdx.x % BLOCKS;
        const float *found = &shared.found[0][which][b];
        u8 *levels = shared.levels[b][which];
        float unit = WEIGHTED
            ? fit_levels<SUBS, 2 * BLOCKS, BLOCKS>(found, &shared.weight[0][b], K::TOP_LEVEL, K::HELD_WEIGHTED, levels)
            : largest_levels<SUBS, 2 * BLOCKS>(found, K::TOP_LEVEL, K::HELD, levels);
        shared.unit[b][which] = store_f16(unit, (u8 *)shared.image + b * K::BYTES + K::UNITS + 2 * which, fault);
    }
    __syncthreads();

    const u8 *levels = shared.levels[block][0];
    u32 *image = shared.image + block * (K::BYTES / 4);
    uint2 pair = K::write_levels(levels, levels + SUBS, sub, (u8 *)image);
    shared.scale[block][sub] = shared.unit[block][0] * (float)pair.x;
    shared.min[block][sub] = shared.unit[block][1] * (float)pair.y;
    __syncthreads();

    if (live) {
        // Codes of four values, a byte each; those of the search stay where the stored scale is zero.
        K::write_codes(
            [&](int i) {
                float4 v = *(const float4 *)(values + at + i);
                float x[4] = {v.x, v.y, v.z, v.w};
                float scale = shared.scale[block][i / S], min = shared.min[block][i / S];
                float inverse = shared.inverse[block][i / S], floor = shared.floor[block][i / S];
                u32 word = 0;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    float value = scale == 0.0f ? inverse * (x[k] - floor) : (x[k] + min) / scale;
                    word |= (u32)code_of(value, (float)K::TOP) << (8 * k);
                }
                return word;
            },
            sub, image
        );
    }
    __syncthreads();

    const u64 start = (u64)blockIdx.x * BLOCKS, blocks = count / LEN - start;
    const u32 halves = (u32)(blocks < BLOCKS ? blocks : BLOCKS) * (K::BYTES / 2);
    u16 *to = (u16 *)(out + start * K::BYTES);
    for (u32 i = threadIdx.x; i < halves; i += THREADS) to[i] = ((const u16 *)shared.image)[i];
}

// At least 512 threads share a multiprocessor, so that a thread has up to 128 registers.
#define KERNELS(NAME, K, THREADS) \
    extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) \
    encode_##NAME(const float *values, u64 count, u8 *out, u32 *fault) { \
        encode<K, false>(values, count, out, fault, nullptr, 0, 0, 0, 0); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) encode_##NAME##_weighted( \
        const float *values, u64 count, u8 *out, u32 *fault, const float *importance, u64 columns, \
        u64 rows_per_matrix, u64 importance_len, u64 first \
    ) { \
        encode<K, true>( \
            values, count, out, fault, importance, columns, rows_per_matrix, importance_len, first \
        ); \
    }

KERNELS(q2_k, Q2K, 256)
KERNELS(q4_k, Q4K, 128)
KERNELS(q5_k, Q5K, 128)
