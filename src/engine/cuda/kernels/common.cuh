// What the kernels of training share: eight bf16 at a time, sums over a block, dropout masks. Matrices are row-major
// bf16 with a stride in elements; arithmetic is f32 and stores round to nearest even. Contraction is allowed.
//
// Every parameter is a pointer or a u64; "f32 bits" is the bit pattern of a float in a u64. Pointers to bf16 are
// multiples of 16 bytes; strides and, unless said, counts of columns are multiples of 8. Grids and blocks have one
// dimension.
#pragma once
#include "mma.cuh"

constexpr u32 ALL = 0xffffffffu;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

__device__ __forceinline__ float f32_of(u64 bits) { return __uint_as_float((u32)bits); }

__device__ __forceinline__ void widen(uint4 from, float (&to)[8]) {
    to[0] = low_half(from.x), to[1] = high_half(from.x), to[2] = low_half(from.y), to[3] = high_half(from.y);
    to[4] = low_half(from.z), to[5] = high_half(from.z), to[6] = low_half(from.w), to[7] = high_half(from.w);
}

__device__ __forceinline__ uint4 narrow(const float (&from)[8]) {
    return make_uint4(pack(from[0], from[1]), pack(from[2], from[3]), pack(from[4], from[5]), pack(from[6], from[7]));
}

__device__ __forceinline__ uint4 load(const u16 *from) { return *(const uint4 *)from; }
__device__ __forceinline__ void store(u16 *to, uint4 values) { *(uint4 *)to = values; }

// Eight f32 at a multiple of 16 bytes.
__device__ __forceinline__ void load(const float *from, float (&to)[8]) {
    float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
    return value;
}

// The sum over a block of 32·WARPS threads, for all of them: once in a kernel.
template <int WARPS, class T>
__device__ __forceinline__ T sum_of_block(T value) {
    __shared__ T sums[WARPS];
    value = sum_of_warp(value);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    T total = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) total += sums[warp];
    return total;
}

// The mask of a slot, as src/engine/dropout.rs defines it; `threshold` is that of 16 bits.
struct Mask {
    u32 key0, key1, threshold;

    static __device__ __forceinline__ u32 mix(u32 x) {
        x = (x ^ x >> 16) * 0x85ebca6bu;
        x = (x ^ x >> 13) * 0xc2b2ae35u;
        return x ^ x >> 16;
    }

    // The kept bits of the pair of columns at `place`, which is (row * columns + column) / 2 of an even column.
    __device__ __forceinline__ u32 bits(u32 place) const {
        u32 mixed = mix(mix(place ^ key0) + key1), least = threshold << 16;
        return (mixed << 16 >= least ? 0xffffu : 0u) | (mixed >= least ? 0xffff0000u : 0u);
    }

    // Zeroes what is dropped of the eight values from an even place on, which is given halved.
    __device__ __forceinline__ uint4 apply(uint4 values, u32 place) const {
        return make_uint4(values.x & bits(place), values.y & bits(place + 1u), values.z & bits(place + 2u),
                          values.w & bits(place + 3u));
    }
};

// The mask of slot `slot`; `keys` are two for each.
__device__ __forceinline__ Mask mask_of(const u32 *keys, u32 slot, u64 threshold) {
    if (threshold == 0) return {0, 0, 0};
    return {keys[2 * slot], keys[2 * slot + 1], (u32)threshold};
}
