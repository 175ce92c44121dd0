// Cross entropy over rows of logits, and its gradient in their place. A block handles one row: 512 threads, grid = rows.
#include "common.cuh"

constexpr int THREADS = 512;

// losses[i] = -weights[i] * ln softmax(logits[i, :])[targets[i]]; and if `back` is 1,
// logits[i, v] = scale * weights[i] * (softmax(logits[i, :])[v] - (v == targets[i])), rounded to bf16. `vocabulary` is any number:
// columns up to the next multiple of 8 (which `stride` covers) are not read as logits, and become zeros if `back` is 1.
// `targets` u32 and `weights`, `losses` f32, all [rows]; `scale` f32 bits.
extern "C" __global__ __launch_bounds__(THREADS) void cross_entropy(
    u16 *logits, u64 stride, const u32 *targets, const float *weights, u64 scale, float *losses, u64 back, u64 rows,
    u64 vocabulary) {
}
