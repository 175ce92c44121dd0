// Plain floats: F32, F16 and BF16, rounded to nearest, ties to even. Mirrors src/merge/float.rs. A value that becomes
// infinite, or is not finite to begin with, sets `fault`.
#include "common.cuh"

constexpr u32 THREADS = 256;
// Values of a thread, `THREADS` apart.
constexpr u32 EACH = 8;

struct F16 {
    static __device__ __forceinline__ u32 narrow(float value) { return f32_to_f16(value); }
    static __device__ __forceinline__ bool overflows(u32 bits) { return (bits & 0x7c00u) == 0x7c00u; }
};

struct Bf16 {
    static __device__ __forceinline__ u32 narrow(float value) {
        u32 bits = __float_as_uint(value);
        return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    }
    static __device__ __forceinline__ bool overflows(u32 bits) { return (bits & 0x7f80u) == 0x7f80u; }
};

template <class Float> __device__ __forceinline__ void encode(const float *values, u64 count, u8 *out, u32 *fault) {
    u64 at = (u64)blockIdx.x * (THREADS * EACH) + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < EACH; i++, at += THREADS) {
        if (at < count) {
            u32 bits = Float::narrow(values[at]);
            if (Float::overflows(bits)) *fault = 1u;
            ((u16 *)out)[at] = (u16)bits;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_f16(const float *values, u64 count, u8 *out, u32 *fault) {
    encode<F16>(values, count, out, fault);
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_bf16(const float *values, u64 count, u8 *out, u32 *fault) {
    encode<Bf16>(values, count, out, fault);
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_f32(const float *values, u64 count, u8 *out, u32 *fault) {
    // Whole words where the address allows it.
    bool aligned = ((u64)out & 3) == 0;
    u64 at = (u64)blockIdx.x * (THREADS * EACH) + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < EACH; i++, at += THREADS) {
        if (at < count) {
            u32 bits = __float_as_uint(values[at]);
            if ((bits & 0x7f800000u) == 0x7f800000u) *fault = 1u;
            if (aligned) {
                ((u32 *)out)[at] = bits;
            } else {
                ((u16 *)out)[2 * at] = (u16)bits;
                ((u16 *)out)[2 * at + 1] = (u16)(bits >> 16);
            }
        }
    }
}
