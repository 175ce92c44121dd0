// How far encoded values are from those that they stand for: the sums of src/ggml/quality.rs over chunks of the values,
// addition for addition, with decoders of single values that mirror src/ggml/decode.
//
// The first chunk has `first_len` values (or all), every other `chunk_len`, at least 1 (the last what is left). A chunk
// is summed in pieces of 256 values: 16 lanes in f32, and those in f64. A NaN may have other bits than a processor's.
#include "common.cuh"

// Threads of a thread block, and its pieces.
constexpr u32 THREADS = 256;
constexpr u32 LANES = 16;
constexpr u32 PIECES = THREADS / LANES;
// Values of a piece.
constexpr u32 PIECE = 256;
// Threads that add up a chunk's pieces: one a sum, and some idle.
constexpr u32 FOLDERS = 8;

// Sums over some values and their decoded counterparts: squared errors, squared values, squared decoded values, and
// products of the two; and the largest error.
struct Sums {
    double error, values, decoded, products;
    float largest;
    u32 unused;
};

__device__ __forceinline__ u32 word(const u8 *at) { return *(const u16 *)at; }
__device__ __forceinline__ float half(const u8 *at) { return f16_to_f32(word(at)); }

// The nibble of value `i` of 32: the first half has the low ones.
__device__ __forceinline__ u32 nibble(const u8 *packed, u32 i) { return packed[i & 15] >> (i >> 4 << 2) & 15u; }

// The code of five bits of value `i` of 32, whose fifth bits come before the nibbles.
__device__ __forceinline__ u32 five(const u8 *packed, u32 i) {
    return nibble(packed + 4, i) | ((u32)packed[i >> 3] >> (i & 7) & 1u) << 4;
}

// Value `code` of the 16 of IQ4 types.
__device__ __forceinline__ float iq4(u32 code) {
    // -127 -104 -83 -65 -49 -35 -22 -10, and 1 13 25 38 53 69 89 113.
    u64 table = code < 8 ? 0xf6eaddcfbfad9881ull : 0x7159453526190d01ull;
    return (float)(signed char)(table >> (8 * (code & 7)));
}

// Where the pairs of bits of value `i` of 256 are: 128 values share 32 bytes, each with one pair of four runs of 32.
__device__ __forceinline__ u32 pair(const u8 *packed, u32 i) {
    return packed[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3u;
}

// The 6-bit scale and minimum of sub-block `s` of eight, from 12 bytes.
__device__ __forceinline__ float factor(const u8 *packed, u32 s) {
    u32 code = s < 4 ? packed[s] & 63u : (packed[s + 4] & 15u) | packed[s - 4] >> 6 << 4;
    return (float)code;
}
__device__ __forceinline__ float least_factor(const u8 *packed, u32 s) {
    u32 code = s < 4 ? packed[s + 4] & 63u : packed[s + 4] >> 4 | packed[s] >> 6 << 4;
    return (float)code;
}

// The types: values and bytes of a block, and value `i` of one.

struct F16 {
    static constexpr u32 LEN = 1, BYTES = 2;
    static __device__ __forceinline__ float decode(const u8 *block, u32) { return half(block); }
};

struct Bf16 {
    static constexpr u32 LEN = 1, BYTES = 2;
    static __device__ __forceinline__ float decode(const u8 *block, u32) { return __uint_as_float(word(block) << 16); }
};

struct Q40 {
    static constexpr u32 LEN = 32, BYTES = 18;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        return (float)((int)nibble(block + 2, i) - 8) * half(block);
    }
};

struct Q41 {
    static constexpr u32 LEN = 32, BYTES = 20;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        return (float)nibble(block + 4, i) * half(block) + half(block + 2);
    }
};

struct Q50 {
    static constexpr u32 LEN = 32, BYTES = 22;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        return (float)((int)five(block + 2, i) - 16) * half(block);
    }
};

struct Q51 {
    static constexpr u32 LEN = 32, BYTES = 24;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        return (float)five(block + 4, i) * half(block) + half(block + 2);
    }
};

struct Q80 {
    static constexpr u32 LEN = 32, BYTES = 34;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        return (float)(signed char)block[2 + i] * half(block);
    }
};

struct Iq4Nl {
    static constexpr u32 LEN = 32, BYTES = 18;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        return half(block) * iq4(nibble(block + 2, i));
    }
};

struct Q2K {
    static constexpr u32 LEN = 256, BYTES = 84;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        u32 levels = block[i / 16];
        float scale = half(block + 80) * (float)(levels & 15u), least = half(block + 82) * (float)(levels >> 4);
        return scale * (float)pair(block + 16, i) - least;
    }
};

struct Q3K {
    static constexpr u32 LEN = 256, BYTES = 110;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        const u8 *levels = block + 96;
        u32 s = i / 16;
        u32 level = (levels[s % 8] >> (s / 8 * 4) & 15u) | (levels[8 + s % 4] >> (s / 4 * 2) & 3u) << 4;
        float scale = half(block + 108) * (float)((int)level - 32);
        u32 code = pair(block + 32, i) | (block[i % 32] >> (i / 32) & 1u) << 2;
        return scale * (float)((int)code - 4);
    }
};

struct Q4K {
    static constexpr u32 LEN = 256, BYTES = 144;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        u32 s = i / 32;
        float scale = half(block) * factor(block + 4, s), least = half(block + 2) * least_factor(block + 4, s);
        u32 code = block[16 + s / 2 * 32 + i % 32] >> (s % 2 * 4) & 15u;
        return scale * (float)code - least;
    }
};

struct Q5K {
    static constexpr u32 LEN = 256, BYTES = 176;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        u32 s = i / 32;
        float scale = half(block) * factor(block + 4, s), least = half(block + 2) * least_factor(block + 4, s);
        u32 code = (block[48 + s / 2 * 32 + i % 32] >> (s % 2 * 4) & 15u) | (block[16 + i % 32] >> s & 1u) << 4;
        return scale * (float)code - least;
    }
};

struct Q6K {
    static constexpr u32 LEN = 256, BYTES = 210;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        float scale = half(block + 208) * (float)(signed char)block[192 + i / 16];
        // 128 values share 64 bytes of nibbles and 32 of pairs; the nibbles go round twice, the pairs four times.
        u32 low = block[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15u;
        return scale * (float)((int)(low | pair(block + 128, i) << 4) - 32);
    }
};

struct Iq4Xs {
    static constexpr u32 LEN = 256, BYTES = 136;
    static __device__ __forceinline__ float decode(const u8 *block, u32 i) {
        u32 s = i / 32;
        u32 level = (block[4 + s / 2] >> (s % 2 * 4) & 15u) | (word(block + 2) >> (2 * s) & 3u) << 4;
        float scale = half(block) * (float)((int)level - 32);
        return scale * iq4(nibble(block + 8 + 16 * s, i % 32));
    }
};

// A piece in the values: where it begins and ends. Past the last piece it is empty.
__device__ __forceinline__ void find(u64 piece, u64 count, u64 first_len, u64 chunk_len, u64 &at, u64 &end) {
    u64 first = first_len < count ? first_len : count;
    u64 in_first = (first + PIECE - 1) / PIECE;
    if (piece < in_first) {
        at = piece * PIECE, end = first;
    } else {
        u64 in_chunk = (chunk_len + PIECE - 1) / PIECE, chunk = (piece - in_first) / in_chunk;
        u64 start = first + chunk * chunk_len;
        at = start + (piece - in_first - chunk * in_chunk) * PIECE;
        end = start + chunk_len < count ? start + chunk_len : count;
    }
    end = at + PIECE < end ? at + PIECE : end;
}

// The sums of each piece: 16 threads a piece.
template <class Type>
__device__ __forceinline__ void
measure(const float *values, u64 count, const u8 *blocks, u64 first_len, u64 chunk_len, Sums *partial) {
    // What the lanes summed. The odd row keeps reads of one place in all rows apart.
    __shared__ float lanes[PIECES][4][LANES + 1];
    u32 lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    u64 piece = (u64)blockIdx.x * PIECES + slot, at, end;
    find(piece, count, first_len, chunk_len, at, end);
    float error = 0.0f, xx = 0.0f, yy = 0.0f, xy = 0.0f, largest = 0.0f;
    // Values that aren't there count as zeros, which change no sum.
    u32 here = at < end ? (u32)(end - at) : 0u;
    u64 block = at / Type::LEN;
    u32 within = (u32)(at % Type::LEN);
    blocks += block * Type::BYTES;
#pragma unroll 4
    for (u32 i = lane; i < PIECE; i += LANES) {
        float x = 0.0f, y = 0.0f;
        if (i < here) {
            x = values[at + i];
            u32 place = within + i;
            y = Type::decode(blocks + place / Type::LEN * Type::BYTES, place % Type::LEN);
        }
        float e = x - y;
        error = error + e * e;
        xx = xx + x * x;
        yy = yy + y * y;
        xy = xy + x * y;
        largest = fabsf(e) > largest ? fabsf(e) : largest;
    }
    lanes[slot][0][lane] = error;
    lanes[slot][1][lane] = xx;
    lanes[slot][2][lane] = yy;
    lanes[slot][3][lane] = xy;
#pragma unroll
    for (u32 far = LANES / 2; far > 0; far /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, largest, far);
        largest = other > largest ? other : largest;
    }
    __syncwarp();
    if (here == 0) return;
    if (lane < 4) {
        double sum = 0.0;
#pragma unroll
        for (u32 i = 0; i < LANES; i++) sum = sum + (double)lanes[slot][lane][i];
        ((double *)(partial + piece))[lane] = sum;
    } else if (lane == 4) {
        partial[piece].largest = largest;
        partial[piece].unused = 0;
    }
}

#define MEASURE(NAME, TYPE)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) measure_##NAME(                                              \
        const float *values, u64 count, const u8 *blocks, u64 first_len, u64 chunk_len, Sums *partial) {               \
        measure<TYPE>(values, count, blocks, first_len, chunk_len, partial);                                           \
    }

MEASURE(f16, F16)
MEASURE(bf16, Bf16)
MEASURE(q4_0, Q40)
MEASURE(q4_1, Q41)
MEASURE(q5_0, Q50)
MEASURE(q5_1, Q51)
MEASURE(q8_0, Q80)
MEASURE(q2_k, Q2K)
MEASURE(q3_k, Q3K)
MEASURE(q4_k, Q4K)
MEASURE(q5_k, Q5K)
MEASURE(q6_k, Q6K)
MEASURE(iq4_nl, Iq4Nl)
MEASURE(iq4_xs, Iq4Xs)

// The sums of each chunk, from those of its pieces, in order.
extern "C" __global__ void __launch_bounds__(THREADS)
fold_sums(const Sums *partial, u64 count, u64 first_len, u64 chunk_len, Sums *out) {
    u64 chunk = ((u64)blockIdx.x * THREADS + threadIdx.x) / FOLDERS;
    u32 sum = threadIdx.x % FOLDERS;
    u64 first = first_len < count ? first_len : count;
    u64 start = chunk == 0 ? 0 : first + (chunk - 1) * chunk_len;
    if (sum > 4 || (chunk > 0 && start >= count)) return;
    u64 len = chunk == 0 ? first : count - start < chunk_len ? count - start : chunk_len;
    u64 pieces = (len + PIECE - 1) / PIECE;
    u64 in_first = (first + PIECE - 1) / PIECE, in_chunk = (chunk_len + PIECE - 1) / PIECE;
    if (chunk > 0) partial += in_first + (chunk - 1) * in_chunk;
    if (sum < 4) {
        double total = 0.0;
#pragma unroll 8
        for (u64 i = 0; i < pieces; i++) total = total + ((const double *)(partial + i))[sum];
        ((double *)(out + chunk))[sum] = total;
    } else {
        float largest = 0.0f;
#pragma unroll 8
        for (u64 i = 0; i < pieces; i++) {
            float other = partial[i].largest;
            largest = other > largest ? other : largest;
        }
        out[chunk].largest = largest;
        out[chunk].unused = 0;
    }
}
