// BLAKE3 of the base's bytes, beside the merge: chaining values of pieces of the input, which the host joins
// to a digest (src/digest/tree.rs). The function is that of the BLAKE3 paper, sections 2.1 to 2.5.
#include "common.cuh"

// Chunks of a block: one a thread.
#define THREADS 128

enum Flag { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4 };

#define IV0 0x6a09e667u
#define IV1 0xbb67ae85u
#define IV2 0x3c6ef372u
#define IV3 0xa54ff53au

__device__ __forceinline__ u32 rotate_right(u32 value, u32 by) {
    return __funnelshift_r(value, value, by);
}

__device__ __forceinline__ void mix(u32 &a, u32 &b, u32 &c, u32 &d, u32 x, u32 y) {
    a = a + b + x, d = rotate_right(d ^ a, 16);
    c = c + d, b = rotate_right(b ^ c, 12);
    a = a + b + y, d = rotate_right(d ^ a, 8);
    c = c + d, b = rotate_right(b ^ c, 7);
}

// The compression function, to a chaining value. `words` is the message, and is used up.
__device__ __forceinline__ void compress(u32 *chaining, u32 *words, u64 counter, u32 length, u32 flags) {
    u32 v[16];
#pragma unroll
    for (u32 i = 0; i < 8; i++) v[i] = chaining[i];
    v[8] = IV0, v[9] = IV1, v[10] = IV2, v[11] = IV3;
    v[12] = (u32)counter, v[13] = (u32)(counter >> 32), v[14] = length, v[15] = flags;
    const u32 order[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};
#pragma unroll
    for (u32 round = 0; round < 7; round++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            mix(v[i], v[4 + i], v[8 + i], v[12 + i], words[2 * i], words[2 * i + 1]);
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            mix(v[i], v[4 + (i + 1) % 4], v[8 + (i + 2) % 4], v[12 + (i + 3) % 4], words[8 + 2 * i], words[9 + 2 * i]);
        u32 next[16];
#pragma unroll
        for (u32 i = 0; i < 16; i++) next[i] = words[order[i]];
#pragma unroll
        for (u32 i = 0; i < 16; i++) words[i] = next[i];
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) chaining[i] = v[i] ^ v[8 + i];
}

__device__ __forceinline__ void start(u32 *chaining) {
    chaining[0] = IV0, chaining[1] = IV1, chaining[2] = IV2, chaining[3] = IV3;
    chaining[4] = 0x510e527fu, chaining[5] = 0x9b05688cu, chaining[6] = 0x1f83d9abu, chaining[7] = 0x5be0cd19u;
}

// The message words of a block of which `length` bytes are there, the rest zero.
__device__ __forceinline__ void load(const u8 *at, u32 length, u32 *words) {
    if (length == 64u && ((u64)at & 15u) == 0) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            uint4 four = __ldg((const uint4 *)at + i);
            words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
        }
    } else {
        u32 strip[16] = {};
#pragma unroll 1
        for (u32 i = 0; i < length; i++) strip[i / 4] |= (u32)__ldg(at + i) << i % 4 * 8;
#pragma unroll
        for (u32 i = 0; i < 16; i++) words[i] = strip[i];
    }
}

// Chaining values, none of them a root's, of the pieces of `len` bytes that begin with chunk `first_chunk` of a longer
// input: 32 bytes a piece of `piece_chunks` chunks, a power of two up to 128 that divides `first_chunk`. The last
// piece, and its last chunk, may be short. A block makes 128 chunks; `out` is aligned to 4 bytes.
extern "C" __global__ void __launch_bounds__(THREADS)
    blake3_pieces(const u8 *bytes, u64 len, u64 first_chunk, u64 piece_chunks, u8 *out) {
    __shared__ u32 tree[8][THREADS];
    u64 chunk = (u64)blockIdx.x * THREADS + threadIdx.x, chunks = (len + 1023) / 1024;
    u32 chaining[8] = {}, words[16];
    if (chunk < chunks) {
        const u8 *at = bytes + chunk * 1024;
        u32 there = len - chunk * 1024 < 1024 ? (u32)(len - chunk * 1024) : 1024u, flags = CHUNK_START;
        start(chaining);
#pragma unroll 1
        while (true) {
            u32 length = there < 64u ? there : 64u;
            load(at, length, words);
            if (length == there) flags |= CHUNK_END;
            compress(chaining, words, first_chunk + chunk, length, flags);
            if (length == there) break;
            there -= length, at += length, flags = 0;
        }
    }
    // Neighbours join level by level; a node without one to its right rises as it is, which is BLAKE3's tree.
#pragma unroll 1
    for (u32 width = 1; width < (u32)piece_chunks; width *= 2) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) tree[i][threadIdx.x] = chaining[i];
        __syncthreads();
        if (threadIdx.x % (2 * width) == 0 && chunk + width < chunks) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) words[i] = chaining[i], words[8 + i] = tree[i][threadIdx.x + width];
            start(chaining);
            compress(chaining, words, 0, 64, PARENT);
        }
        __syncthreads();
    }
    if (threadIdx.x % (u32)piece_chunks == 0 && chunk < chunks) {
        u32 *at = (u32 *)out + chunk / piece_chunks * 8;
#pragma unroll
        for (u32 i = 0; i < 8; i++) at[i] = chaining[i];
    }
}
