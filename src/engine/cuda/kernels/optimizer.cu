// AdamW (Loshchilov and Hutter, 2019), and the sum of squares of a vector in a fixed order. Vectors are f32.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// Values of a thread, and of a block that adds up squares.
constexpr int EACH = 4;
constexpr u64 SPAN = 8192;

__device__ __forceinline__ double f64_of(u64 bits) { return __longlong_as_double((long long)bits); }

// One step as torch.optim.AdamW computes it, on gradients times `clip`. The numbers are f64 BITS (not f32), so that
// 1 - beta is rounded once. correction1 = 1 - beta1^step, correction2 = 1 - beta2^step. 256 threads,
// grid = ceil(len / 1024).
extern "C" __global__ __launch_bounds__(THREADS) void adamw(
    float *parameters, const float *gradients, float *first, float *second, u64 len, u64 rate, u64 beta1, u64 beta2,
    u64 epsilon, u64 decay, u64 correction1, u64 correction2, u64 clip) {
    float shrink = (float)(1.0 - f64_of(rate) * f64_of(decay)), step = (float)(f64_of(rate) / f64_of(correction1));
    float keep2 = (float)f64_of(beta2), take1 = (float)(1.0 - f64_of(beta1)), take2 = (float)(1.0 - f64_of(beta2));
    float root = (float)sqrt(f64_of(correction2)), least = (float)f64_of(epsilon), factor = (float)f64_of(clip);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        u64 at = blockIdx.x * (u64)(THREADS * EACH) + i * THREADS + threadIdx.x;
        if (at >= len) return;
        float g = gradients[at] * factor, m = first[at], v = second[at] * keep2 + take2 * g * g;
        m += take1 * (g - m);
        first[at] = m, second[at] = v;
        parameters[at] = parameters[at] * shrink - step * (m / (sqrtf(v) / root + least));
    }
}

// partials[b] = the sum of squares of the b-th 8192 values, f64. 256 threads, grid = ceil(len / 8192).
extern "C" __global__ __launch_bounds__(THREADS) void sum_squares(const float *values, u64 len, double *partials) {
    u64 begin = blockIdx.x * SPAN, end = begin + SPAN < len ? begin + SPAN : len;
    double sum = 0.0;
    for (u64 at = begin + threadIdx.x; at < end; at += THREADS) sum += (double)values[at] * (double)values[at];
    sum = sum_of_block<WARPS>(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// *out = the sum of `count` partial sums, f64; not finite if any value was not. 256 threads, grid = 1.
extern "C" __global__ __launch_bounds__(THREADS) void sum_partials(const double *partials, u64 count, double *out) {
    double sum = 0.0;
    for (u64 at = threadIdx.x; at < count; at += THREADS) sum += partials[at];
    sum = sum_of_block<WARPS>(sum);
    if (threadIdx.x == 0) *out = sum;
}
