// Q8_0, and Q4_0, Q4_1, Q5_0 and Q5_1 with and without importance: a thread a block of 32. Mirrors
// src/ggml/encode/{q8,classic,weighted}.rs and, for the searches, k/{affine,symmetric}.rs there.
#include "common.cuh"

// Threads of a thread block, each of which has 32 values.
constexpr u32 THREADS = 128;
// Values of a thread block.
constexpr u32 SPAN = 32 * THREADS;

// Loads 32 values from where 16-byte loads may.
__device__ __forceinline__ void load(const float *values, float (&x)[32]) {
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
        float4 four = *(const float4 *)(values + i);
        x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
}

// Writes the staged blocks of a thread block, `BYTES` bytes each, side by side.
template <u32 BYTES> __device__ __forceinline__ void flush(const u16 *staged, u64 count, u8 *out) {
    __syncthreads();
    u64 first = (u64)blockIdx.x * THREADS, left = count / 32 - first;
    u32 halves = (u32)(left < THREADS ? left : THREADS) * (BYTES / 2);
    u16 *to = (u16 *)(out + first * BYTES);
    for (u32 i = threadIdx.x; i < halves; i += THREADS) to[i] = staged[i];
}

// The first of this thread's values, `count` or more if it has none.
__device__ __forceinline__ u64 first_value() { return ((u64)blockIdx.x * THREADS + threadIdx.x) * 32; }

// Rounds a value within the range of a byte to the nearest integer, ties away from zero.
__device__ __forceinline__ u32 round_away(float value) {
    float rounded = value + MAGIC;
    float rest = value - (rounded - MAGIC);
    float half = copysignf(0.5f, value);
    rounded = rest == half ? rounded + (half + half) : rounded;
    return __float_as_uint(rounded) & 0xffu;
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_q8_0(const float *values, u64 count, u8 *out, u32 *fault) {
    __shared__ u16 staged[THREADS * 17];
    u64 at = first_value();
    if (at < count) {
        float x[32];
        load(values + at, x);
        float largest = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        float scale = largest / 127.0f;
        float inverse = 1.0f / scale;
        // Where the scale is so small that its inverse overflows, codes are 0.
        inverse = inverse < __uint_as_float(0x7f800000u) ? inverse : 0.0f;
        u16 *to = staged + threadIdx.x * 17;
        store_f16(scale, (u8 *)to, fault);
#pragma unroll
        for (int i = 0; i < 32; i += 2)
            to[1 + i / 2] = (u16)(round_away(x[i] * inverse) | round_away(x[i + 1] * inverse) << 8);
    }
    flush<34>(staged, count, out);
}

// Writes codes: their fifth bits if there are such, and nibbles, the first half of the codes in the low ones.
template <bool FIFTH> __device__ __forceinline__ void store_codes(const u32 (&codes)[32], u16 *to) {
    if (FIFTH) {
        u32 bits = 0;
#pragma unroll
        for (int i = 0; i < 32; i++) bits |= (codes[i] >> 4 & 1u) << i;
        *to++ = (u16)bits;
        *to++ = (u16)(bits >> 16);
    }
#pragma unroll
    for (int i = 0; i < 16; i += 2)
        to[i / 2] = (u16)((codes[i] & 15u) | (codes[i + 16] & 15u) << 4 | (codes[i + 1] & 15u) << 8 |
                          (codes[i + 17] & 15u) << 12);
}

__device__ __forceinline__ bool finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// `(value - least) / scale + offset`, rounded down, at most `TOP`.
template <u32 TOP>
__device__ __forceinline__ void
choose_codes(const float (&x)[32], float least, float scale, float offset, u32 (&codes)[32]) {
    float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    // Where the scale or its inverse overflows, codes are 0.
    u32 mask = finite(scale) && finite(inverse) ? TOP : 0u;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        float exact = (x[i] - least) * inverse + offset;
        float near = exact + MAGIC;
        float down = near - MAGIC > exact ? near - 1.0f : near;
        u32 code = __float_as_uint(down) & 0xffu;
        codes[i] = (code < TOP ? code : TOP) & mask;
    }
}

// The value of the largest magnitude, the first if there are several; of nothing but zeros, a positive zero.
__device__ __forceinline__ float peak(const float (&x)[32]) {
    float peak = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; i++) peak = fabsf(x[i]) > fabsf(peak) ? x[i] : peak;
    return peak;
}

// Blocks of `BYTES` bytes, of codes up to `TOP`, `AFFINE` if they have a minimum.
template <bool AFFINE, u32 TOP, u32 BYTES>
__device__ __forceinline__ void encode(const float *values, u64 count, u8 *out, u32 *fault) {
    __shared__ u16 staged[THREADS * BYTES / 2];
    u64 at = first_value();
    if (at < count) {
        float x[32];
        u32 codes[32];
        load(values + at, x);
        u16 *to = staged + threadIdx.x * (BYTES / 2);
        if (AFFINE) {
            // Of zeros of both signs the first counts.
            float low = x[0], high = x[0];
#pragma unroll
            for (int i = 1; i < 32; i++) {
                low = x[i] < low ? x[i] : low;
                high = x[i] > high ? x[i] : high;
            }
            float scale = high > low ? (high - low) / (float)TOP : 0.0f;
            choose_codes<TOP>(x, low, scale, 0.5f, codes);
            store_f16(scale, (u8 *)to, fault);
            store_f16(low, (u8 *)(to + 1), fault);
        } else {
            constexpr float HALF = (float)(TOP / 2 + 1);
            float scale = peak(x) / -HALF;
            choose_codes<TOP>(x, 0.0f, scale, HALF + 0.5f, codes);
            store_f16(scale, (u8 *)to, fault);
        }
        store_codes<(TOP > 15)>(codes, to + (AFFINE ? 2 : 1));
    }
    flush<BYTES>(staged, count, out);
}

// The inverse of a scale, and where it overflows what gives the same codes, without products that are NaN: 0.
__device__ __forceinline__ float codable(float inverse) { return finite(inverse) ? inverse : 0.0f; }

// Searches scale and minimum (`make_qkx3_quants` of ggml-quants.c), `floor` being the minimum, negative or 0, and gives
// codes.
template <u32 TOP>
__device__ __forceinline__ void
search_affine(const float (&x)[32], const float (&w)[32], float sum_w, float &scale, float &min, u32 (&codes)[32]) {
    constexpr float HIGH = (float)TOP;
    float max = x[0], sum_x = w[0] * x[0];
    min = x[0];
#pragma unroll
    for (int i = 1; i < 32; i++) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
        sum_x = sum_x + w[i] * x[i];
    }
    min = 0.0f < min ? 0.0f : min;
    float lowest = min, floor = min, inverse = 0.0f, best = 0.0f;
    bool varied = max > min;
    // The first round is that of the whole range, whose scale and minimum are taken as they are.
#pragma unroll 1
    for (int round = 0; round < 38; round++) {
        // The range is measured from the minimum of the best candidate so far, not from that of the values.
        float spread = round == 0 ? HIGH : -0.9f + 0.05f * (float)(round - 1) + HIGH;
        float exact_inverse = spread / (max - min), this_inverse = codable(exact_inverse);
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f, tried[32];
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float code = round_shifted(this_inverse * (x[i] - min), 0.0f, HIGH) - MAGIC;
            tried[i] = code;
            float wl = w[i] * code;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * code;
            sum_xl = sum_xl + wl * x[i];
        }
        float determinant = sum_w * sum_l2 - sum_l * sum_l;
        float this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        float above = sum_w * sum_xl - sum_x * sum_l, below = determinant;
        if (this_min > 0.0f) this_min = 0.0f, above = sum_xl, below = sum_l2;
        if (round == 0) this_min = min, above = 1.0f, below = exact_inverse;
        float this_scale = above / below, error = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float difference = this_scale * tried[i] + this_min - x[i];
            error = error + w[i] * (difference * difference);
        }
        if (round == 0 || (error < best && determinant > 0.0f)) {
            best = error, inverse = this_inverse, floor = min, scale = this_scale, min = this_min;
        }
    }
    if (!varied) scale = 0.0f, min = lowest, inverse = 0.0f, floor = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; i++)
        codes[i] = __float_as_uint(round_shifted(inverse * (x[i] - floor), 0.0f, HIGH)) & 0xffu;
}

// Searches the scale (`make_qx_quants` of ggml-quants.c) for codes from `-HALF` up to `HALF - 1`; gives codes counted
// from 0.
template <u32 TOP>
__device__ __forceinline__ void
search_symmetric(const float (&x)[32], const float (&w)[32], float &scale, u32 (&codes)[32]) {
    constexpr float HALF = (float)(TOP / 2 + 1);
    float max = peak(x), inverse = 0.0f, best = 0.0f, wx[32];
#pragma unroll
    for (int i = 0; i < 32; i++) wx[i] = w[i] * x[i];
    scale = 0.0f;
    // The first round is that of no step.
#pragma unroll 1
    for (int round = 0; round < 19; round++) {
        int step = round > 9 ? round - 9 : round - 10;
        float this_inverse = (round == 0 ? -HALF : -(HALF + 0.1f * (float)step)) / max;
        float lx = 0.0f, l2 = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float code = round_shifted(this_inverse * x[i], -HALF, HALF - 1.0f) - MAGIC;
            lx = lx + wx[i] * code;
            l2 = l2 + w[i] * code * code;
        }
        // Without weight the first scale is 0.
        if (round == 0 || (l2 > 0.0f && lx * lx > best * l2)) {
            scale = l2 != 0.0f ? lx / l2 : 0.0f, best = scale * lx, inverse = this_inverse;
        }
    }
    bool nothing = fabsf(max) < 1e-15f;
    scale = nothing ? 0.0f : scale;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        u32 code = __float_as_uint(round_shifted(inverse * x[i], -HALF, HALF - 1.0f)) - __float_as_uint(MAGIC - HALF);
        codes[i] = nothing ? 0u : code & 0xffu;
    }
}

// The mean squares of the rows that the thread block has values of, summed in order, a warp a row. Other thread blocks
// may sum the same row: waiting for the last addition costs more than the additions.
__device__ __forceinline__ void
mean_squares(const float *values, u64 first_row, u64 last_row, u64 columns, float *means) {
    __shared__ float4 tiles[THREADS / 32][32];
    u32 lane = threadIdx.x % 32;
    float4 *tile = tiles[threadIdx.x / 32];
    for (u64 row = first_row + threadIdx.x / 32; row <= last_row; row += THREADS / 32) {
        const float4 *line = (const float4 *)(values + row * columns);
        u64 fours = columns / 4;
        float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f), next = lane < fours ? line[lane] : zero;
        float sum = 0.0f;
#pragma unroll 1
        for (u64 at = lane; at < fours + lane; at += 32) {
            tile[lane] = make_float4(next.x * next.x, next.y * next.y, next.z * next.z, next.w * next.w);
            next = at + 32 < fours ? line[at + 32] : zero;
            __syncwarp();
            // Past the end there are zeros, which change no sum.
#pragma unroll 8
            for (int i = 0; i < 32; i++) {
                float4 four = tile[i];
                sum = sum + four.x;
                sum = sum + four.y;
                sum = sum + four.z;
                sum = sum + four.w;
            }
            __syncwarp();
        }
        if (lane == 0) means[row - first_row] = sum / (float)columns;
    }
    __syncthreads();
}

// As `encode`, with importance.
template <bool AFFINE, u32 TOP, u32 BYTES>
__device__ __forceinline__ void
encode_weighted(const float *values, u64 count, u8 *out, u32 *fault, const float *importance, u64 columns,
                u64 rows_per_matrix, u64 importance_len, u64 first) {
    __shared__ u16 staged[THREADS * BYTES / 2];
    __shared__ float means[THREADS];
    u64 start = (u64)blockIdx.x * SPAN, end = count - start < SPAN ? count : start + SPAN;
    u64 first_row = start / columns;
    mean_squares(values, first_row, (end - 1) / columns, columns, means);
    u64 at = first_value();
    if (at < count) {
        float x[32], w[32];
        u32 codes[32];
        load(values + at, x);
        u64 row = at / columns, matrix = (first / columns + row) / rows_per_matrix;
        importance += matrix * columns % importance_len + (at - row * columns);
        float mean = means[row - first_row], sum = 0.0f, scale;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            w[i] = importance[i] * __fsqrt_rn(mean + x[i] * x[i]);
            sum = sum + w[i];
        }
        u16 *to = staged + threadIdx.x * (BYTES / 2);
        if (AFFINE) {
            float min;
            search_affine<TOP>(x, w, sum, scale, min, codes);
            store_f16(min, (u8 *)(to + 1), fault);
        } else {
            search_symmetric<TOP>(x, w, scale, codes);
        }
        store_f16(scale, (u8 *)to, fault);
        store_codes<(TOP > 15)>(codes, to + (AFFINE ? 2 : 1));
    }
    flush<BYTES>(staged, count, out);
}

// The two kernels of a type.
#define ENCODERS(NAME, AFFINE, TOP, BYTES)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    encode_##NAME(const float *values, u64 count, u8 *out, u32 *fault) {                                               \
        encode<AFFINE, TOP, BYTES>(values, count, out, fault);                                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    encode_##NAME##_weighted(const float *values, u64 count, u8 *out, u32 *fault, const float *importance,             \
                             u64 columns, u64 rows_per_matrix, u64 importance_len, u64 first) {                        \
        encode_weighted<AFFINE, TOP, BYTES>(values, count, out, fault, importance, columns, rows_per_matrix,           \
                                            importance_len, first);                                                    \
    }

ENCODERS(q4_0, false, 15, 18)
ENCODERS(q4_1, true, 15, 20)
ENCODERS(q5_0, false, 31, 22)
ENCODERS(q5_1, true, 31, 24)
