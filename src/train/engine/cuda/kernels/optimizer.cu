// AdamW (Loshchilov and Hutter, 2019), and the sum of squares of a vector in a fixed order. Vectors are f32.
#include "common.cuh"

constexpr int THREADS = 256;
// Values that a block adds up in `sum_squares`.
constexpr u32 SPAN = 8192;

// One step as torch.optim.AdamW computes it, on gradients times `clip`. The numbers are f64 BITS (not f32): so that
// 1 - beta is rounded once. correction1 = 1 - beta1^step, correction2 = 1 - beta2^step. 256 threads, grid = ceil(len / 1024).
extern "C" __global__ __launch_bounds__(THREADS) void adamw(
    float *parameters, const float *gradients, float *first, float *second, u64 len, u64 rate, u64 beta1, u64 beta2,
    u64 epsilon, u64 decay, u64 correction1, u64 correction2, u64 clip) {
}

// partials[b] = the sum of squares of the b-th 8192 values, f64. 256 threads, grid = ceil(len / 8192).
extern "C" __global__ __launch_bounds__(THREADS) void sum_squares(const float *values, u64 len, double *partials) {
}

// *out = the sum of `count` partial sums, f64; not finite if any value was not. 256 threads, grid = 1.
extern "C" __global__ __launch_bounds__(THREADS) void sum_partials(const double *partials, u64 count, double *out) {
}
