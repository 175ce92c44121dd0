// Levels: the small integers that code the scales and minimums of a super-block's sub-blocks, with one unit for all,
// bit for bit as src/ggml/encode/k/levels.rs. A thread does one super-block's scales or minimums.
//
// `x` and `w` are X and W floats apart, and levels a byte. All give the value of level one.
#pragma once
#include "common.cuh"

// `nearest` of at most `high`, as a float.
__device__ __forceinline__ float round_below(float value, int high) {
    int rounded = nearest(value);
    return (float)(rounded < high ? rounded : high);
}

// An integer that `round_below` gave, as a `uint8_t` would keep it.
__device__ __forceinline__ float wrap(float level) { return (float)((int)level & 0xff); }

// Levels up to `top`, which the largest value gets, and none above `held`.
template <int COUNT, int X>
__device__ __forceinline__ float largest_levels(const float *x, int top, u32 held, u8 *levels) {
    float max = 0.0f;
#pragma unroll
    for (int j = 0; j < COUNT; j++) max = x[j * X] > max ? x[j * X] : max;
    float inverse = (float)top / max;
#pragma unroll 4
    for (int j = 0; j < COUNT; j++) {
        u32 level = (u32)nearest(inverse * x[j * X]) & 0xffu;
        level = level < held ? level : held;
        levels[j] = max > 0.0f ? (u8)level : (u8)0;
    }
    return max / (float)top;
}

// Levels up to `top` with small weighted squares of differences: a search for the unit, then up to five rounds of
// single steps (`make_qp_quants` of ggml-quants.c). None is stored above `held`.
template <int COUNT, int X, int W>
__device__ __forceinline__ float fit_levels(const float *x, const float *w, int top, u32 held, u8 *levels) {
    float max = 0.0f;
#pragma unroll
    for (int j = 0; j < COUNT; j++) max = x[j * X] < max ? max : x[j * X];
    if (max < 1e-15f) {
#pragma unroll 1
        for (int j = 0; j < COUNT; j++) levels[j] = 0;
        return 0.0f;
    }
    float best = 0.0f, inverse = 0.0f;
    // The first round, with the plain unit, lets levels wrap; the others hold them.
#pragma unroll 1
    for (int round = 0; round < 9; round++) {
        int step = round < 5 ? round - 5 : round - 4;
        float tried = (round == 0 ? (float)top : 0.1f * (float)step + (float)top) / max;
        float unit = 1.0f / tried, error = 0.0f;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            float level = round_below(tried * x[j * X], round == 0 ? 4194303 : top);
            level = round == 0 ? wrap(level) : level;
            float difference = x[j * X] - unit * level;
            error = error + w[j * W] * difference * difference;
        }
        if (round == 0 || error < best) {
            best = error;
            inverse = tried;
        }
    }
    float sum_lx = 0.0f, sum_l2 = 0.0f;
#pragma unroll 4
    for (int j = 0; j < COUNT; j++) {
        float level = round_below(inverse * x[j * X], top);
        levels[j] = (u8)(int)level;
        sum_lx = sum_lx + w[j * W] * x[j * X] * level;
        sum_l2 = sum_l2 + w[j * W] * level * level;
    }
#pragma unroll 1
    for (int round = 0; round < 5; round++) {
        bool changed = false;
#pragma unroll 1
        for (int j = 0; j < COUNT; j++) {
            float value = x[j * X], weight = w[j * W], old = (float)levels[j], wx = weight * value;
            float lx = sum_lx - wx * old;
            float l2 = sum_l2 - weight * old * old;
            if (!(lx > 0.0f && l2 > 0.0f)) continue;
            float level = round_below(value * l2 / lx, top);
            if (level == old) continue;
            lx = lx + wx * level;
            l2 = l2 + weight * level * level;
            if (lx * lx * sum_l2 > sum_lx * sum_lx * l2) {
                levels[j] = (u8)(int)level;
                sum_lx = lx;
                sum_l2 = l2;
                changed = true;
            }
        }
        if (!changed) break;
    }
    // Held only now: the rounds compare with what was chosen.
#pragma unroll 1
    for (int j = 0; j < COUNT; j++) levels[j] = levels[j] < held ? levels[j] : (u8)held;
    return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}
