// IQ4_NL and IQ4_XS, as src/ggml/encode/iq4.rs has them: codes are indices of 16 values, and the scale of 32 codes is
// the best of 16 that are tried. A thread has 32 values, and eight threads side by side have a super-block of IQ4_XS.
#include "common.cuh"

#define THREADS 128
// Values of a block or a sub-block, and sub-blocks of a super-block.
#define LEN 32
#define SUBS 8
// Scales that take the value of the largest magnitude to -134, -133 and so on, down to -120.
#define TRIED 15
// Where no value is larger, all are taken for zeros.
#define NOTHING 1e-15f

// The values that codes stand for. Loops over them are unrolled, so that they become constants.
#define VALUES {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// The value of a code.
__device__ __forceinline__ constexpr float value_of(int code) {
    const signed char values[16] = VALUES;
    return values[code];
}

// The least number that is nearer to the value of a code than to the one before it, or as near.
__device__ __forceinline__ constexpr float bound_of(int code) { return (value_of(code - 1) + value_of(code)) / 2; }

// Four values.
struct Four {
    float of[4];

    __device__ __forceinline__ explicit Four(const float *from) {
        float4 four = *(const float4 *)from;
        of[0] = four.x, of[1] = four.y, of[2] = four.z, of[3] = four.w;
    }
};

// How much the error of a value counts: its square, or `importance` times a root.
template <bool WEIGHTED>
__device__ __forceinline__ float weight_of(float value, const float *importance, int at, float mean) {
    return WEIGHTED ? importance[at] * sqrtf(mean + value * value) : value * value;
}

// The scale of least weighted error among those that are tried.
template <bool WEIGHTED>
__device__ __forceinline__ float search(const float *values, const float *importance, float mean) {
    float peak = 0.0f;
#pragma unroll 1
    for (int j = 0; j < LEN; j += 4) {
        Four four(values + j);
#pragma unroll
        for (int i = 0; i < 4; i++) peak = fabsf(four.of[i]) > fabsf(peak) ? four.of[i] : peak;
    }
    if (fabsf(peak) < NOTHING) return 0.0f;
    float inverses[TRIED], products[TRIED], squares[TRIED];
#pragma unroll
    for (int t = 0; t < TRIED; t++) {
        inverses[t] = (value_of(0) - 7.0f + (float)t) / peak;
        products[t] = squares[t] = 0.0f;
    }
    // All tries take a value to one side or the other of one bound, at most.
    float last = (value_of(0) - 7.0f + (float)TRIED) / peak;
    // The try that comes first takes the value of the largest magnitude to 127.
    float opposite = 1.0f / (-peak / value_of(0)), product = 0.0f, square = 0.0f;
#pragma unroll 1
    for (int j = 0; j < LEN; j += 4) {
        Four four(values + j);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float value = four.of[i], weight = weight_of<WEIGHTED>(value, importance, j + i, mean);
            float a = value * inverses[0], b = value * last;
            float least = a < b ? a : b, scaled = value * opposite;
            float bound = bound_of(1), lower = value_of(0), upper = value_of(1), nearest = value_of(0);
#pragma unroll
            for (int c = 1; c < 15; c++) {
                bool past = least >= bound_of(c);
                bound = past ? bound_of(c + 1) : bound;
                lower = past ? value_of(c) : lower;
                upper = past ? value_of(c + 1) : upper;
            }
#pragma unroll
            for (int c = 1; c < 16; c++) nearest = scaled >= bound_of(c) ? value_of(c) : nearest;
            float weighted = weight * nearest;
            product = product + weighted * value;
            square = square + weighted * nearest;
#pragma unroll
            for (int t = 0; t < TRIED; t++) {
                float nearest = value * inverses[t] >= bound ? upper : lower;
                float weighted = weight * nearest;
                products[t] = products[t] + weighted * value;
                squares[t] = squares[t] + weighted * nearest;
            }
        }
    }
    float scale = square > 0.0f ? product / square : 0.0f;
    float best = scale * product;
#pragma unroll
    for (int t = 0; t < TRIED; t++) {
        if (squares[t] > 0.0f && products[t] * products[t] > best * squares[t]) {
            scale = products[t] / squares[t];
            best = scale * products[t];
        }
    }
    return scale;
}

// The codes of the values nearest to four scaled ones, a byte each; of NaN, the last.
__device__ __forceinline__ u32 codes_of(const float *values, float inverse) {
    Four four(values);
    u32 word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float scaled = four.of[i] * inverse;
        u32 code = 15;
#pragma unroll
        for (int c = 1; c < 16; c++) code -= scaled < bound_of(c) ? 1u : 0u;
        word |= code << 8 * i;
    }
    return word;
}

// Writes the 16 bytes of 32 codes to an even address: the first half of them are the low nibbles.
__device__ __forceinline__ void write_codes(const float *values, float inverse, u8 *out) {
#pragma unroll 1
    for (int j = 0; j < LEN / 2; j += 4) {
        u32 word = codes_of(values + j, inverse) | codes_of(values + j + LEN / 2, inverse) << 4;
        ((u16 *)(out + j))[0] = (u16)word;
        ((u16 *)(out + j))[1] = (u16)(word >> 16);
    }
}

__device__ __forceinline__ float inverse_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

__device__ __forceinline__ void load(const float *values, float (&x)[LEN]) {
#pragma unroll
    for (int j = 0; j < LEN; j += 4) {
        Four four(values + j);
#pragma unroll
        for (int i = 0; i < 4; i++) x[j + i] = four.of[i];
    }
}

template <bool WEIGHTED>
__device__ __forceinline__ void encode_small(const float *values, u8 *out, u32 *fault, const float *importance) {
    float mean = 0.0f;
    if (WEIGHTED) {
#pragma unroll 1
        for (int j = 0; j < LEN; j += 4) {
            Four four(values + j);
#pragma unroll
            for (int i = 0; i < 4; i++) mean = mean + four.of[i] * four.of[i];
        }
        mean = mean * (2.0f / LEN);
    }
    float scale = search<WEIGHTED>(values, importance, mean);
    store_f16(scale, out, fault);
    write_codes(values, inverse_of(scale), out + 2);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_iq4_nl(const float *values, u64 count, u8 *out, u32 *fault) {
    u64 block = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (block * LEN >= count) return;
    encode_small<false>(values + block * LEN, out + block * 18, fault, 0);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_iq4_nl_weighted(const float *values, u64 count, u8 *out, u32 *fault, const float *importance, u64 columns,
                           u64 rows_per_matrix, u64 importance_len, u64 first) {
    u64 block = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (block * LEN >= count) return;
    encode_small<true>(values + block * LEN, out + block * 18, fault,
                       importance_at(importance, first + block * LEN, columns, rows_per_matrix, importance_len));
}

// Encodes the calling thread's part of a super-block; `out` is that of the super-block.
template <bool WEIGHTED>
__device__ __forceinline__ void encode_super(const float *values, u8 *out, u32 *fault, const float *importance) {
    u32 sub = threadIdx.x % SUBS, lanes = 0xffu << (threadIdx.x & 24u);
    float mean = 0.0f;
    if (WEIGHTED) {
        float x[LEN];
        load(values, x);
        mean = sum_of_squares<SUBS>(x, lanes) * (2.0f / (SUBS * LEN));
    }
    float found = search<WEIGHTED>(values, importance, mean), largest = 0.0f;
    for (int s = 0; s < SUBS; s++) {
        float other = __shfl_sync(lanes, found, s, SUBS);
        largest = fabsf(other) > fabsf(largest) ? other : largest;
    }
    float unit = -largest / 32.0f;
    int factor = nearest(inverse_of(unit) * found);
    factor = factor < -32 ? -32 : factor > 31 ? 31 : factor;
    write_codes(values, inverse_of(unit * (float)factor), out + 8 + LEN / 2 * sub);
    // Four low bits of each factor, and two high ones.
    u32 counted = (u32)(factor + 32), low = (counted & 15u) << 4 * sub, high = counted >> 4 << 2 * sub;
    for (int s = SUBS / 2; s > 0; s /= 2) {
        low |= __shfl_xor_sync(lanes, low, s);
        high |= __shfl_xor_sync(lanes, high, s);
    }
    if (sub == 0) {
        store_f16(unit, out, fault);
        ((u16 *)out)[1] = (u16)high;
        ((u16 *)out)[2] = (u16)low;
        ((u16 *)out)[3] = (u16)(low >> 16);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_iq4_xs(const float *values, u64 count, u8 *out, u32 *fault) {
    u64 block = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (block * LEN >= count) return;
    encode_super<false>(values + block * LEN, out + block / SUBS * 136, fault, 0);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_iq4_xs_weighted(const float *values, u64 count, u8 *out, u32 *fault, const float *importance, u64 columns,
                           u64 rows_per_matrix, u64 importance_len, u64 first) {
    u64 block = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (block * LEN >= count) return;
    encode_super<true>(values + block * LEN, out + block / SUBS * 136, fault,
                       importance_at(importance, first + block * LEN, columns, rows_per_matrix, importance_len));
}
