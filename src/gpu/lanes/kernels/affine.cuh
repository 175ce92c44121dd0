// The search for scale and minimum of a sub-block, one a thread, bit for bit as `fit` of src/ggml/encode/k/affine.rs.
// Loads and stores nothing.
#pragma once
#include "common.cuh"

// What a search found: the minimum is negated, and the codes are those of `inverse * (x - floor)`.
struct Fit {
    float scale, min, inverse, floor;
};

// Candidates of a search, and the error that it makes small: candidate `i` spreads the values over
// `top + LOW + STEP * i` codes, up to candidate LAST; ABSOLUTE sums differences, not their squares.
struct SearchWeighted {
    static constexpr float LOW = -0.9f, STEP = 0.05f;
    static constexpr int LAST = 36;
    static constexpr bool ABSOLUTE = false;
};

// `nearest` held between 0 and `top`, as a float.
__device__ __forceinline__ float code_of(float value, float top) {
    float shifted = __uint_as_float((__float_as_uint(value + MAGIC) & 0x7fffffu) | 0x4b000000u);
    float code = value == value ? shifted - MAGIC : 0.0f;
    code = 0.0f > code ? 0.0f : code;
    return top < code ? top : code;
}

// Searches scale and minimum (`make_qkx2_quants` and `make_qkx3_quants` of ggml-quants.c). Weights sum up to `sum_w`.
template <class Search, int S>
__device__ __forceinline__ Fit fit_affine(const float (&x)[S], const float (&w)[S], float sum_w, float top) {
    float min = x[0], max = x[0], sum_x = w[0] * x[0];
#pragma unroll
    for (int i = 1; i < S; i++) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
        sum_x = sum_x + w[i] * x[i];
    }
    min = 0.0f < min ? 0.0f : min;
    if (!(max > min)) return {0.0f, -min, 0.0f, 0.0f};
    const float lowest = min;
    float best = 0.0f;
    Fit fit = {0.0f, 0.0f, 0.0f, 0.0f};
    // The first round takes the plain spread, without a fit.
#pragma unroll 1
    for (int step = -1; step <= Search::LAST; step++) {
        float spread = step < 0 ? top : Search::LOW + Search::STEP * (float)step + top;
        // The range is measured from the minimum of the best candidate so far, not from that of the values.
        float inverse = spread / (max - min);
        float code[S];
        // Rounding is monotonic, so that what holds for the outermost values holds for all: no NaN, nothing that wraps.
        if (fabsf(inverse * (lowest - min)) < 4194303.0f && fabsf(inverse * (max - min)) < 4194303.0f) {
#pragma unroll
            for (int i = 0; i < S; i++)
                code[i] = fminf(fmaxf(inverse * (x[i] - min) + MAGIC, MAGIC), top + MAGIC) - MAGIC;
        } else {
#pragma unroll
            for (int i = 0; i < S; i++) code[i] = code_of(inverse * (x[i] - min), top);
        }
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
#pragma unroll
        for (int i = 0; i < S; i++) {
            float wl = w[i] * code[i];
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * code[i];
            sum_xl = sum_xl + wl * x[i];
        }
        float determinant = sum_w * sum_l2 - sum_l * sum_l;
        if (step >= 0 && !(determinant > 0.0f)) continue;
        float this_min = min, this_scale;
        if (step < 0) {
            this_scale = 1.0f / inverse;
        } else {
            this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            if (this_min > 0.0f) {
                this_min = 0.0f;
                this_scale = sum_xl / sum_l2;
            }
        }
        float error = 0.0f;
#pragma unroll
        for (int i = 0; i < S; i++) {
            float difference = this_scale * code[i] + this_min - x[i];
            error = error + w[i] * (Search::ABSOLUTE ? fabsf(difference) : difference * difference);
        }
        if (step < 0 || error < best) {
            best = error;
            fit = {this_scale, this_min, inverse, min};
            min = this_min;
        }
    }
    fit.min = -fit.min;
    return fit;
}
