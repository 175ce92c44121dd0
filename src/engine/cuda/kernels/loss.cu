// Cross entropy over rows of logits, and its gradient in their place. A block handles one row: 512 threads,
// grid = rows.
#include "common.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
// Below every logit, and finite, so that the difference of two is a number.
constexpr float LEAST = -3.0e38f;

// The greatest of some logits, times log2(e), and the sum of 2^(logit * log2(e) - greatest).
struct Powers {
    float top, sum;

    __device__ __forceinline__ void merge(float other_top, float other_sum) {
        float most = fmaxf(top, other_top);
        sum = sum * exp2_fast(top - most) + other_sum * exp2_fast(other_top - most);
        top = most;
    }
};

// The logits from column `col` on, times log2(e); those from `vocabulary` on are least.
__device__ __forceinline__ void scaled(const u16 *row, u32 col, u32 vocabulary, float (&x)[8]) {
    widen(load(row + col), x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = col + i < vocabulary ? x[i] * LOG2_E : LEAST;
}

// losses[i] = -weights[i] * ln softmax(logits[i, :])[targets[i]]; and if `back` is 1,
// logits[i, v] = scale * weights[i] * (softmax(logits[i, :])[v] - (v == targets[i])), rounded to bf16. `vocabulary` is
// any number: columns up to the next multiple of 8 (which `stride` covers) are not read as logits, and become zeros if
// `back` is 1. `targets` u32, `weights` and `losses` f32, all [rows]; `scale` f32 bits.
extern "C" __global__ __launch_bounds__(THREADS) void cross_entropy(
    u16 *logits, u64 stride, const u32 *targets, const float *weights, u64 scale, float *losses, u64 back, u64 rows,
    u64 vocabulary) {
    __shared__ Powers shared[WARPS];
    u64 row = blockIdx.x;
    if (row >= rows) return;
    logits += row * stride;
    u32 count = (u32)vocabulary, target = targets[row], first = threadIdx.x * 8;
    float weight = weights[row], x[8];
    float chosen = low_half(logits[target]);
    Powers all = {LEAST, 0.0f};
#pragma unroll 4
    for (u32 col = first; col < count; col += THREADS * 8) {
        scaled(logits, col, count, x);
        float top = fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7])));
        if (top > all.top) all.sum *= exp2_fast(all.top - top), all.top = top;
#pragma unroll
        for (int i = 0; i < 8; i++) all.sum += exp2_fast(x[i] - all.top);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        all.merge(__shfl_xor_sync(ALL, all.top, step), __shfl_xor_sync(ALL, all.sum, step));
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = all;
    // From here on, every thread has read the target's logit.
    __syncthreads();
    all = shared[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) all.merge(shared[warp].top, shared[warp].sum);
    // The logarithm, base 2, of the sum of all exponentials.
    float log = all.top + log2f(all.sum);
    if (threadIdx.x == 0) losses[row] = weight * ((log - chosen * LOG2_E) * LN_2);
    if (!back) return;
    float factor = weight * f32_of(scale);
#pragma unroll 4
    for (u32 col = first; col < count; col += THREADS * 8) {
        scaled(logits, col, count, x);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = factor * (exp2_fast(x[i] - log) - (col + i == target ? 1.0f : 0.0f));
        store(logits + col, narrow(x));
    }
}
