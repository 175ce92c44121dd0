// What the kernels share: half precision for all, rounding and codes for the encoders, bit for bit as
// src/ggml/float16.rs and src/ggml/encode have them. Compiled with --fmad=false, so that a product and a sum round
// twice, as there.
//
// Every parameter of a kernel is a pointer or a u64. `fault` is set to 1 where a block needs the processor's judgement:
// a value or a scale that its type can't hold.
//
// Encoders take (values, count, out, fault): `count` finite values, whole blocks of the type, at an address that 16-byte
// loads may read; `out` begins at an even address. Weighted ones also take (importance, columns, rows_per_matrix,
// importance_len, first): whole rows of a tensor from its element `first` on, and a row of weights for each matrix, or
// one for all.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Widens the f16 with these bits. Exact.
__device__ __forceinline__ float f16_to_f32(u32 bits) {
    u32 sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    u32 scaled = __float_as_uint(__uint_as_float(magnitude << 13) * __uint_as_float((127u + 112u) << 23));
    u32 special = (magnitude << 13) | 0x7f800000u;
    return __uint_as_float(sign | (magnitude < 0x7c00u ? scaled : special));
}

// Rounds to the nearest f16, ties to even; a NaN becomes 0xfe00.
__device__ __forceinline__ u32 f32_to_f16(float value) {
    u32 bits = __float_as_uint(value);
    u32 sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    u32 normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    u32 small = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
    u32 finite = magnitude < 113u << 23 ? small : normal;
    u32 rounded = magnitude < 0x477ff000u ? finite : 0x7c00u;
    return magnitude > 0x7f800000u ? 0xfe00u : sign | rounded;
}

// Writes a scale as f16 at an even address and gives it as a decoder will see it. Sets `fault` where it is not finite.
__device__ __forceinline__ float store_f16(float value, u8 *out, u32 *fault) {
    u32 bits = f32_to_f16(value);
    if ((bits & 0x7c00u) == 0x7c00u) *fault = 1u;
    *(u16 *)out = (u16)bits;
    return f16_to_f32(bits);
}

// Rounds to the nearest integer, ties to even, as `nearest_int` of ggml-quants.c: past 2^22 it wraps, and NaN gives 0
// (said aloud, since the NaN that a card makes has other bits than a processor's).
__device__ __forceinline__ int nearest(float value) {
    int rounded = (int)(__float_as_uint(value + 12582912.0f) & 0x7fffffu) - 0x400000;
    return value == value ? rounded : 0;
}

// Adding it leaves a float's integer part, rounded to even, in the low mantissa bits.
constexpr float MAGIC = 12582912.0f;

// `nearest` held between two small integers, plus MAGIC: its bits count integers too.
__device__ __forceinline__ float round_shifted(float value, float low, float high) {
    float wrapped = __uint_as_float((__float_as_uint(value + MAGIC) & 0x7fffffu) | 0x4b000000u);
    float shifted = value == value ? wrapped : MAGIC;
    return fminf(fmaxf(shifted, low + MAGIC), high + MAGIC);
}

// The code of a value: `nearest` held between two small integers, counted from the lower.
__device__ __forceinline__ u32 code(float value, float low, float high) {
    return __float_as_uint(round_shifted(value, low, high)) - __float_as_uint(low + MAGIC);
}

// Where the importance of the values from element `at` of a tensor on lies, up to the end of their row. Rows share the
// importance of their matrix, and matrices take turns where there is more than one (experts).
__device__ __forceinline__ const float *importance_at(const float *importance, u64 at, u64 columns,
                                                      u64 rows_per_matrix, u64 importance_len) {
    u64 row = at / columns;
    return importance + row / rows_per_matrix * columns % importance_len + at % columns;
}

// The sum of the squares of a super-block in order, `N` values in each of `THREADS_BESIDE` threads side by side. Every
// thread adds its own to every sum so far, and the one whose turn it is hands on the result.
template <int THREADS_BESIDE, int N>
__device__ __forceinline__ float sum_of_squares(const float (&x)[N], u32 lanes) {
    float sum = 0.0f;
#pragma unroll 1
    for (int j = 0; j < THREADS_BESIDE; j++) {
#pragma unroll
        for (int i = 0; i < N; i++) sum = sum + x[i] * x[i];
        sum = __shfl_sync(lanes, sum, j, THREADS_BESIDE);
    }
    return sum;
}
