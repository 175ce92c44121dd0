// Q3_K and Q6_K, as src/ggml/encode/k/symmetric.rs has them: a value is scale * code, codes being of either sign. A
// thread has a sub-block of 16 values, and sixteen threads side by side have a super-block.
#include "common.cuh"

#define THREADS 128
// Values of a sub-block, and sub-blocks of a super-block.
#define S 16
// Super-blocks of a thread block.
#define SUPERS (THREADS / S)
// Below this magnitude nothing is coded.
#define NOTHING 1e-15f

// What a search finds. Where all values are next to nothing, all codes are the lowest.
struct Fit {
    float scale, inverse;
    bool nothing;
};

// The best of the candidates of a search so far.
struct Search {
    float scale = 0.0f, best = 0.0f, inverse = 0.0f;

    // Candidate `k` of 19: the middle comes first, and is taken for what it is.
    static __device__ __forceinline__ float candidate(int k, float half, float max) {
        int step = k == 0 ? 0 : k < 10 ? k - 10 : k - 9;
        return -(half + 0.1f * (float)step) / max;
    }

    // Takes a candidate if it is better: `lx` and `l2` are its sums of `w * x * code` and of `w * code^2`.
    __device__ __forceinline__ void take(int k, float tried, float lx, float l2) {
        if (k == 0 || (l2 > 0.0f && lx * lx > best * l2)) {
            scale = l2 != 0.0f ? lx / l2 : 0.0f;
            best = scale * lx;
            inverse = tried;
        }
    }

    __device__ __forceinline__ Fit found(float max) const {
        bool nothing = fabsf(max) < NOTHING;
        return {nothing ? 0.0f : scale, inverse, nothing};
    }
};

// Searches scales (`make_qx_quants` of ggml-quants.c) for codes from `-half` up to `half - 1`. Values are finite, so
// that none exceeds half + 1 when scaled, and rounding need not wrap.
__device__ __forceinline__ Fit fit(const float (&x)[S], const float (&w)[S], float half) {
    float max = 0.0f, wx[S];
#pragma unroll
    for (int i = 0; i < S; i++) {
        max = fabsf(x[i]) > fabsf(max) ? x[i] : max;
        wx[i] = w[i] * x[i];
    }
    Search search;
#pragma unroll 1
    for (int k = 0; k < 19; k++) {
        float tried = Search::candidate(k, half, max), lx = 0.0f, l2 = 0.0f;
#pragma unroll
        for (int i = 0; i < S; i++) {
            float l = fminf(fmaxf(tried * x[i] + MAGIC, MAGIC - half), MAGIC + half - 1.0f) - MAGIC;
            lx = lx + wx[i] * l;
            l2 = l2 + w[i] * l * l;
        }
        search.take(k, tried, lx, l2);
    }
    return search.found(max);
}

// A thread's place: its sub-block in the super-block, the super-block in the thread block, and the lanes that share it.
struct Place {
    u32 sub, super, lanes;
    u64 block;

    __device__ __forceinline__ Place()
        : sub(threadIdx.x % S), super(threadIdx.x / S), lanes(0xffffu << (threadIdx.x & 16u)),
          block((u64)blockIdx.x * SUPERS + threadIdx.x / S) {}
};

__device__ __forceinline__ void load(const float *values, float (&x)[S]) {
#pragma unroll
    for (int i = 0; i < S / 4; i++) {
        float4 four = ((const float4 *)values)[i];
        x[4 * i] = four.x, x[4 * i + 1] = four.y, x[4 * i + 2] = four.z, x[4 * i + 3] = four.w;
    }
}

// The scale of largest magnitude in a super-block, the first of equals; NaN is passed over.
__device__ __forceinline__ float extreme_scale(float scale, u32 lanes) {
    float extreme = 0.0f;
    for (int j = 0; j < S; j++) {
        float other = __shfl_sync(lanes, scale, j, S);
        extreme = fabsf(other) > fabsf(extreme) ? other : extreme;
    }
    return extreme;
}

// As `fit`, of the scales of a super-block, which may be infinite or NaN, with codes from -32 to 31. A thread sums for
// one or two candidates, and all threads choose.
__device__ __forceinline__ Fit fit_scales(const float *scales, const float *weights, float max, const Place &place) {
    float lx[2], l2[2];
#pragma unroll
    for (int turn = 0; turn < 2; turn++) {
        float tried = Search::candidate(place.sub + S * turn, 32.0f, max);
        lx[turn] = l2[turn] = 0.0f;
#pragma unroll 4
        for (int j = 0; j < S; j++) {
            float l = round_shifted(tried * scales[j], -32.0f, 31.0f) - MAGIC;
            lx[turn] = lx[turn] + weights[j] * scales[j] * l;
            l2[turn] = l2[turn] + weights[j] * l * l;
        }
    }
    Search search;
#pragma unroll 1
    for (int k = 0; k < 19; k++) {
        float this_lx = __shfl_sync(place.lanes, k < S ? lx[0] : lx[1], k % S, S);
        float this_l2 = __shfl_sync(place.lanes, k < S ? l2[0] : l2[1], k % S, S);
        search.take(k, Search::candidate(k, 32.0f, max), this_lx, this_l2);
    }
    return search.found(max);
}

// Puts the codes of a sub-block where the super-block's are, four a word: those of values over `stored`, the scale that
// a decoder will see, or what `searched` gives where that is zero. A value that `searched` gives counts as scaled.
template <class Searched>
__device__ __forceinline__ void put_codes(const float (&x)[S], float stored, float half, u32 kept, Searched searched,
                                          u32 *codes) {
#pragma unroll
    for (int i = 0; i < S; i += 4) {
        u32 word = 0;
#pragma unroll
        for (int b = 0; b < 4; b++) {
            float scaled = stored == 0.0f ? searched(i + b) : x[i + b] / stored;
            word |= code(scaled, -half, half - 1.0f) << 8 * b;
        }
        codes[i / 4] = word & kept;
    }
}

// Writes a finished super-block to an even address.
template <int BYTES>
__device__ __forceinline__ void write(const u32 *block, u8 *out, const Place &place) {
    __syncwarp(place.lanes);
    u16 *to = (u16 *)(out + place.block * BYTES);
    for (u32 i = place.sub; i < BYTES / 2; i += S) to[i] = ((const u16 *)block)[i];
}

__device__ __forceinline__ void encode_q6(const float (&x)[S], const Fit &found, const Place &place, u8 *out,
                                          u32 *fault) {
    // Codes, four a word; and the bytes of super-blocks, from an address that words can have.
    __shared__ u32 all_codes[SUPERS][64], blocks[SUPERS][53];
    u32 *codes = all_codes[place.super], *block = blocks[place.super];
    float max = extreme_scale(found.scale, place.lanes);
    bool empty = fabsf(max) < NOTHING;
    float inverse = -128.0f / max;
    float unit = store_f16(empty ? 0.0f : 1.0f / inverse, (u8 *)block + 208, fault);
    int level = nearest(inverse * found.scale);
    signed char held = empty ? 0 : level < 127 ? level : 127;
    ((signed char *)block)[192 + place.sub] = held;
    float stored = unit * (float)held;
    bool lowest = empty || (stored == 0.0f && found.nothing);
    put_codes(x, stored, 32.0f, lowest ? 0u : ~0u, [&](int i) { return found.inverse * x[i]; }, codes + 4 * place.sub);
    __syncwarp(place.lanes);
    // Half a super-block has four runs of 32 codes: low nibbles of two share bytes, and the upper bits of all four.
    for (u32 w = place.sub; w < 32; w += S) {
        const u32 *run = codes + w / 16 * 32 + w % 16;
        block[w] = (run[0] & 0x0f0f0f0fu) | (run[16] & 0x0f0f0f0fu) << 4;
    }
    const u32 *run = codes + place.sub / 8 * 32 + place.sub % 8;
    u32 high = 0;
    for (int r = 0; r < 4; r++) high |= (run[8 * r] >> 4 & 0x03030303u) << 2 * r;
    block[32 + place.sub] = high;
    write<210>(block, out, place);
}

// Chooses codes of either sign and refines them one by one (`make_q3_quants` of ggml-quants.c): the scale; `codes` from
// -4 to 3.
__device__ __forceinline__ float refine(const float (&x)[S], float (&codes)[S]) {
    float max = 0.0f;
#pragma unroll
    for (int i = 0; i < S; i++) max = fabsf(x[i]) > fabsf(max) ? x[i] : max;
    bool nothing = fabsf(max) < NOTHING;
    float inverse = -4.0f / max, w[S], wx[S], sum_lx = 0.0f, sum_l2 = 0.0f;
#pragma unroll
    for (int i = 0; i < S; i++) {
        codes[i] = nothing ? -4.0f : round_shifted(inverse * x[i], -4.0f, 3.0f) - MAGIC;
        // Without weight nothing is refined.
        w[i] = nothing ? 0.0f : x[i] * x[i];
        wx[i] = w[i] * x[i];
        sum_lx = sum_lx + wx[i] * codes[i];
        sum_l2 = sum_l2 + w[i] * codes[i] * codes[i];
    }
    bool changed = true;
#pragma unroll 1
    for (int round = 0; round < 5 && changed; round++) {
        changed = false;
#pragma unroll
        for (int i = 0; i < S; i++) {
            float lx = sum_lx - wx[i] * codes[i];
            float l2 = sum_l2 - w[i] * codes[i] * codes[i];
            float l = round_shifted(x[i] * l2 / lx, -4.0f, 3.0f) - MAGIC;
            bool open = lx > 0.0f && l != codes[i];
            lx = lx + wx[i] * l;
            l2 = l2 + w[i] * l * l;
            bool better = open && l2 > 0.0f && lx * lx * sum_l2 > sum_lx * sum_lx * l2;
            codes[i] = better ? l : codes[i];
            sum_lx = better ? lx : sum_lx;
            sum_l2 = better ? l2 : sum_l2;
            changed |= better;
        }
    }
    return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}

// Writes a super-block of Q3_K. `level` of the sub-block counts from zero on; where the stored scale is zero, codes are
// the lowest if there is `nothing`, or else what `searched` gives.
template <class Searched>
__device__ __forceinline__ void encode_q3(const float (&x)[S], float unit, u32 level, bool nothing, Searched searched,
                                          const Place &place, u8 *out, u32 *fault) {
    __shared__ u32 all_codes[SUPERS][64], blocks[SUPERS][28];
    __shared__ u8 all_levels[SUPERS][S];
    u32 *codes = all_codes[place.super], *block = blocks[place.super];
    u8 *levels = all_levels[place.super];
    levels[place.sub] = (u8)level;
    float stored = store_f16(unit, (u8 *)block + 108, fault) * ((float)level - 32.0f);
    put_codes(x, stored, 4.0f, stored == 0.0f && nothing ? 0u : ~0u, searched, codes + 4 * place.sub);
    __syncwarp(place.lanes);
    // Bit 2 of the eight runs of 32 codes, then the low bits of the four runs of each half.
    u32 words = place.sub % 8, bits = 0, low = 0;
    for (int r = 0; r < 8; r++) bits |= (codes[8 * r + words] >> 2 & 0x01010101u) << r;
    for (int r = 0; r < 4; r++) low |= (codes[place.sub / 8 * 32 + 8 * r + words] & 0x03030303u) << 2 * r;
    if (place.sub < 8) block[place.sub] = bits;
    block[8 + place.sub] = low;
    // Twelve bytes of levels: low nibbles of two, then the upper bits of four.
    if (place.sub < 8) ((u8 *)block)[96 + place.sub] = (levels[place.sub] & 15) | levels[place.sub + 8] << 4;
    if (place.sub < 4) {
        u32 upper = 0;
        for (int r = 0; r < 4; r++) upper |= (levels[place.sub + 4 * r] >> 4 & 3) << 2 * r;
        ((u8 *)block)[104 + place.sub] = (u8)upper;
    }
    write<110>(block, out, place);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_q3_k(const float *values, u64 count, u8 *out, u32 *fault) {
    Place place;
    u64 at = (place.block * S + place.sub) * S;
    if (at >= count) return;
    float x[S], codes[S];
    load(values + at, x);
    float scale = refine(x, codes);
    float max = extreme_scale(scale, place.lanes);
    float inverse = -32.0f / max;
    signed char wrapped = (signed char)nearest(inverse * scale);
    int level = (wrapped < -32 ? -32 : wrapped > 31 ? 31 : wrapped) + 32;
    bool empty = max == 0.0f;
    encode_q3(x, empty ? 0.0f : 1.0f / inverse, empty ? 0 : level, false, [&](int i) { return codes[i]; }, place, out,
              fault);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_q3_k_weighted(const float *values, u64 count, u8 *out, u32 *fault, const float *importance, u64 columns,
                         u64 rows_per_matrix, u64 importance_len, u64 first) {
    __shared__ float all_scales[SUPERS][S], all_sums[SUPERS][S];
    Place place;
    u64 at = (place.block * S + place.sub) * S;
    if (at >= count) return;
    float x[S], w[S], sum = 0.0f;
    load(values + at, x);
    const float *weights = importance_at(importance, first + at, columns, rows_per_matrix, importance_len);
    float sigma2 = 2.0f * sum_of_squares<S>(x, place.lanes) / 256.0f;
#pragma unroll
    for (int i = 0; i < S; i++) {
        w[i] = weights[i] * sqrtf(sigma2 + x[i] * x[i]);
        sum = sum + w[i];
    }
    Fit found = fit(x, w, 4.0f);
    // The scales of a super-block are fitted as the values of a sub-block are.
    all_scales[place.super][place.sub] = found.scale;
    all_sums[place.super][place.sub] = sum;
    __syncwarp(place.lanes);
    float max = extreme_scale(found.scale, place.lanes);
    Fit unit = fit_scales(all_scales[place.super], all_sums[place.super], max, place);
    u32 level = unit.nothing ? 0u : code(unit.inverse * found.scale, -32.0f, 31.0f);
    encode_q3(x, unit.scale, level, found.nothing, [&](int i) { return found.inverse * x[i]; }, place, out, fault);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_q6_k(const float *values, u64 count, u8 *out, u32 *fault) {
    Place place;
    u64 at = (place.block * S + place.sub) * S;
    if (at >= count) return;
    float x[S], w[S];
    load(values + at, x);
#pragma unroll
    for (int i = 0; i < S; i++) w[i] = x[i] * x[i];
    encode_q6(x, fit(x, w, 32.0f), place, out, fault);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_q6_k_weighted(const float *values, u64 count, u8 *out, u32 *fault, const float *importance, u64 columns,
                         u64 rows_per_matrix, u64 importance_len, u64 first) {
    Place place;
    u64 at = (place.block * S + place.sub) * S;
    if (at >= count) return;
    float x[S], w[S];
    load(values + at, x);
    const float *weights = importance_at(importance, first + at, columns, rows_per_matrix, importance_len);
#pragma unroll
    for (int i = 0; i < S; i++) w[i] = weights[i];
    encode_q6(x, fit(x, w, 32.0f), place, out, fault);
}
