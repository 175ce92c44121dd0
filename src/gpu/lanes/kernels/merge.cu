// The merge on a card: what src/merge/kernel.rs does, value for value. Every value is one chain of fused multiply-adds
// in the order of there, so how elements are dealt to threads can't change a bit. Floats are numbered as
// src/merge/float.rs lists them; values that need the processor's judgement set `fault`.
#include "common.cuh"

#define THREADS 128
// Columns and rows of one thread: 16 bytes of bf16, and rows that share a load of `right`.
#define LANES 8
#define ROWS 4
// Rows of one warp in `row_gains`, and columns of one lane at a time.
#define NORM_ROWS 2
#define NORM_STEPS 2

enum Float { BF16 = 0, F16 = 1, F32 = 2, NO_FLOAT = 3 };

// One low-rank term, as the host lays it out: six u64. It is added to the source rows `start..end`.
struct Term {
    u64 start, end, rank, scale;
    // (end - start) x rank, and rank x columns.
    const float *left, *right;
};

// Rounds to the nearest bf16, ties to even; a NaN stays one.
__device__ __forceinline__ u32 f32_to_bf16(float value) {
    u32 bits = __float_as_uint(value), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return value == value ? rounded : bits >> 16 | 0x40u;
}

__device__ __forceinline__ float widen_bits(u64 type, u32 bits) {
    return type == BF16 ? __uint_as_float(bits << 16) : type == F16 ? f16_to_f32(bits) : __uint_as_float(bits);
}

__device__ __forceinline__ u32 narrow_bits(u64 type, float value) {
    return type == BF16 ? f32_to_bf16(value) : type == F16 ? f32_to_f16(value) : __float_as_uint(value);
}

// The smallest magnitude, as bits, that does not round to a finite value.
__device__ __forceinline__ u32 limit(u64 type) {
    return type == BF16 ? 0x7f7f8000u : type == F16 ? 0x477ff000u : 0x7f800000u;
}

__device__ __forceinline__ bool aligned(const void *at) {
    return ((u64)at & 15u) == 0;
}

__device__ __forceinline__ const void *element(const void *stored, u64 type, u64 index) {
    return (const u8 *)stored + index * (type == F32 ? 4u : 2u);
}

__device__ __forceinline__ float load_one(const void *stored, u64 type, u64 index) {
    const void *at = element(stored, type, index);
    return widen_bits(type, type == F32 ? __ldg((const u32 *)at) : (u32)__ldg((const u16 *)at));
}

// Which of a thread's `LANES` columns are there and asked for.
struct Span {
    u32 begin, end;

    __device__ __forceinline__ bool whole() const { return begin == 0 && end == LANES; }
    __device__ __forceinline__ bool has(u32 i) const { return i >= begin && i < end; }
};

// Widens `LANES` stored values; those outside of `span` are 0. What is not aligned goes one by one through memory, in
// loops that stay loops: that keeps the code small.
__device__ __forceinline__ void load(const void *stored, u64 type, u64 index, Span span, float *values) {
    const void *at = element(stored, type, index);
    if (span.whole() && aligned(at)) {
        uint4 low = __ldg((const uint4 *)at);
        u32 words[LANES] = {low.x, low.y, low.z, low.w};
        if (type == F32) {
            uint4 high = __ldg((const uint4 *)at + 1);
            words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
#pragma unroll
            for (u32 i = 0; i < LANES; i++) values[i] = __uint_as_float(words[i]);
        } else {
#pragma unroll
            for (u32 i = 0; i < LANES; i++) values[i] = widen_bits(type, words[i / 2] >> i % 2 * 16 & 0xffffu);
        }
    } else {
        float strip[LANES] = {};
#pragma unroll 1
        for (u32 i = span.begin; i < span.end; i++) strip[i] = load_one(stored, type, index + i);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) values[i] = strip[i];
    }
}

// Writes the bits of `LANES` values from element `index` on, or those in `span`.
__device__ __forceinline__ void store(void *out, u64 type, u64 index, Span span, const u32 *bits) {
    void *at = (void *)element(out, type, index);
    if (span.whole() && aligned(at)) {
        if (type == F32) {
            ((uint4 *)at)[0] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
            ((uint4 *)at)[1] = make_uint4(bits[4], bits[5], bits[6], bits[7]);
        } else {
            *(uint4 *)at = make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                                      bits[6] | bits[7] << 16);
        }
    } else {
        u32 strip[LANES];
#pragma unroll
        for (u32 i = 0; i < LANES; i++) strip[i] = bits[i];
#pragma unroll 1
        for (u32 i = span.begin; i < span.end; i++)
            if (type == F32) ((u32 *)at)[i] = strip[i];
            else ((u16 *)at)[i] = (u16)strip[i];
    }
}

// Moves rows up by one, the first to the end: a loop over rows then works on the first, and stays a loop.
__device__ __forceinline__ void rotate(float (*work)[LANES]) {
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        float first = work[0][i];
#pragma unroll
        for (u32 r = 1; r < ROWS; r++) work[r - 1][i] = work[r][i];
        work[ROWS - 1][i] = first;
    }
}

// The columns of a row that a thread makes: `at` is its first element, `stop` ends the row.
__device__ __forceinline__ Span span_of(u64 at, u64 stop, u64 first, u64 count) {
    stop = stop < first + count ? stop : first + count;
    u32 end = at >= stop ? 0u : stop - at < LANES ? (u32)(stop - at) : LANES;
    u32 begin = at >= first ? 0u : first - at < LANES ? (u32)(first - at) : LANES;
    return {begin < end ? begin : end, end};
}

// Which row of the source is row `row` of the output, as `source_row` of src/gpu/lanes/block.rs.
__device__ __forceinline__ u64 source_row(u64 row, u64 rows, u64 heads) {
    if (heads == 0) return row;
    u32 head = (u32)(rows / heads), within;
    head = head < 2u ? 2u : head;
    within = (u32)row % head;
    return row - within + within % 2u * (head / 2u) + within / 2u;
}

// Adds a term to `ROWS` rows of `LANES` columns: `value = fma(scale, left @ right, value)`. `WHOLE`: all the columns
// are there, and `right` is aligned.
template <bool WHOLE>
__device__ __forceinline__ void add_term(const Term *term, const u32 *sources, u64 column, u64 columns,
                                         float (*values)[LANES]) {
    const float *left[ROWS], *right = term->right + column;
    bool covered[ROWS];
    u32 rank = (u32)term->rank, there = WHOLE ? LANES : (u32)(columns - column);
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        covered[r] = sources[r] >= term->start && sources[r] < term->end;
        // A row that is not covered computes with another's factors, to no effect.
        left[r] = term->left + (covered[r] ? sources[r] - (u32)term->start : 0u) * (u64)rank;
    }
    float sums[ROWS][LANES] = {};
#pragma unroll 1
    for (u32 k = 0; k < rank; k++) {
        float line[LANES];
        if (WHOLE) {
            float4 low = __ldg((const float4 *)right), high = __ldg((const float4 *)right + 1);
            line[0] = low.x, line[1] = low.y, line[2] = low.z, line[3] = low.w;
            line[4] = high.x, line[5] = high.y, line[6] = high.z, line[7] = high.w;
        } else {
#pragma unroll
            for (u32 i = 0; i < LANES; i++) line[i] = i < there ? __ldg(right + i) : 0.0f;
        }
        right += columns;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            float factor = __ldg(left[r] + k);
#pragma unroll
            for (u32 i = 0; i < LANES; i++) sums[r][i] = __fmaf_rn(factor, line[i], sums[r][i]);
        }
    }
    float scale = __uint_as_float((u32)term->scale);
#pragma unroll
    for (u32 r = 0; r < ROWS; r++)
#pragma unroll
        for (u32 i = 0; i < LANES; i++)
            values[r][i] = covered[r] ? __fmaf_rn(scale, sums[r][i], values[r][i]) : values[r][i];
}

// Makes the elements `first..first + count` of an output of `columns` columns. `base` begins with element `base_first`,
// its rows in the output's order; terms count rows in the source's order. Writes narrow values to `bytes` and rounded
// but wide ones to `values`, each if it is there, and sets `fault` where `out_float` can't hold a value.
//
// Threads are dealt groups of rows and columns that cover the elements' rows, so any grid does; ceil(count / 4096)
// blocks give each thread about one group.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    merge(const void *base, u64 base_float, u64 base_first, u64 first, u64 count, u64 columns, const u64 *terms,
          u64 term_count, u64 rows, u64 heads, u64 rounded_first, const float *row_gains, u64 gains_first,
          const float *column_gains, u64 out_float, float *values, void *bytes, u32 *fault) {
    if (count == 0) return;
    u64 first_row = first / columns, last_row = (first + count - 1) / columns;
    // Elements of one row need not look at all of its columns.
    u64 column_begin = 0, column_end = columns;
    if (first_row == last_row) {
        column_begin = (first - first_row * columns) / LANES * LANES;
        column_end = first + count - first_row * columns;
    }
    u64 across = (column_end - column_begin + LANES - 1) / LANES;
    u64 groups = (last_row - first_row + ROWS) / ROWS * across;
    for (u64 group = (u64)blockIdx.x * THREADS + threadIdx.x; group < groups; group += (u64)gridDim.x * THREADS) {
        u64 down = groups >> 32 ? group / across : (u32)group / (u32)across;
        u64 row = first_row + down * ROWS, column = column_begin + (group - down * across) * LANES;
        float work[ROWS][LANES] = {};
        u32 sources[ROWS];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
            sources[r] = row + r > last_row ? ~0u : (u32)source_row(row + r, rows, heads);
#pragma unroll 1
        for (u32 r = 0; r < ROWS; r++) {
            u64 at = (row + r) * columns + column;
            load(base, base_float, at - base_first, span_of(at, at - column + columns, first, count), work[0]);
            if (rounded_first != NO_FLOAT) {
#pragma unroll
                for (u32 i = 0; i < LANES; i++)
                    work[0][i] = widen_bits(rounded_first, narrow_bits(rounded_first, work[0][i]));
            }
            rotate(work);
        }
        for (u64 t = 0; t < term_count; t++) {
            const Term *term = (const Term *)terms + t;
            bool any = false;
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) any |= sources[r] >= term->start && sources[r] < term->end;
            if (!any) continue;
            bool whole = column + LANES <= columns && aligned(term->right) && columns % 4 == 0;
            if (whole) add_term<true>(term, sources, column, columns, work);
            else add_term<false>(term, sources, column, columns, work);
        }
        u32 beyond = limit(out_float);
        bool faulty = false;
#pragma unroll 1
        for (u32 r = 0; r < ROWS; r++, rotate(work)) {
            u64 at = (row + r) * columns + column;
            Span span = span_of(at, at - column + columns, first, count);
            if (span.begin == span.end) continue;
            float row_gain = row_gains ? __ldg(row_gains + (row + r - gains_first)) : 1.0f;
            u32 bits[LANES], wide[LANES];
#pragma unroll
            for (u32 i = 0; i < LANES; i++) {
                float value = work[0][i];
                if (row_gains) value *= row_gain;
                if (column_gains && span.has(i)) value *= __ldg(column_gains + column + i);
                faulty |= span.has(i) && (__float_as_uint(value) & 0x7fffffffu) >= beyond;
                bits[i] = narrow_bits(out_float, value) & (out_float == F32 ? ~0u : 0xffffu);
                wide[i] = __float_as_uint(widen_bits(out_float, bits[i]));
            }
            if (values) store(values, F32, at - first, span, wide);
            if (bytes) store(bytes, out_float, at - first, span, bits);
        }
        if (faulty) *fault = 1u;
    }
}

// DoRA's factors on rows: `gains[i]` is `magnitude[source row] / norm` of output row `first_row + i`, as `row_norms` of
// kernel.rs takes norms: squares in 16 f64 sums by column, then a tree. `base` holds whole rows. A warp makes
// `NORM_ROWS` rows, a block 8.
extern "C" __global__ void __launch_bounds__(THREADS)
    row_gains(const void *base, u64 base_float, u64 base_first, u64 first_row, u64 row_count, u64 columns,
              const u64 *terms, u64 term_count, u64 rows, u64 heads, u64 rounded_first, const float *magnitude,
              float *gains) {
    u32 lane = threadIdx.x % 32;
    u64 place = ((u64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * NORM_ROWS;
    if (place >= row_count) return;
    u64 sources[NORM_ROWS], starts[NORM_ROWS];
    double sums[NORM_ROWS] = {};
#pragma unroll
    for (u32 r = 0; r < NORM_ROWS; r++) {
        // A row past the last does the last one's work again.
        u64 row = first_row + (place + r < row_count ? place + r : row_count - 1);
        sources[r] = source_row(row, rows, heads);
        starts[r] = row * columns - base_first;
    }
    for (u64 start = 0; start < columns; start += 32 * NORM_STEPS) {
        float work[NORM_ROWS][NORM_STEPS];
#pragma unroll
        for (u32 r = 0; r < NORM_ROWS; r++)
#pragma unroll
            for (u32 s = 0; s < NORM_STEPS; s++) {
                u64 column = start + 32 * s + lane;
                float value = column < columns ? load_one(base, base_float, starts[r] + column) : 0.0f;
                if (rounded_first != NO_FLOAT) value = widen_bits(rounded_first, narrow_bits(rounded_first, value));
                work[r][s] = value;
            }
        for (u64 t = 0; t < term_count; t++) {
            const Term *term = (const Term *)terms + t;
            const float *left[NORM_ROWS], *right = term->right + start + lane;
            bool covered[NORM_ROWS], any = false;
#pragma unroll
            for (u32 r = 0; r < NORM_ROWS; r++) {
                covered[r] = sources[r] >= term->start && sources[r] < term->end;
                left[r] = term->left + (covered[r] ? sources[r] - term->start : 0) * term->rank;
                any |= covered[r];
            }
            if (!any) continue;
            float sum[NORM_ROWS][NORM_STEPS] = {};
#pragma unroll 4
            for (u64 k = 0; k < term->rank; k++, right += columns) {
                float line[NORM_STEPS];
#pragma unroll
                for (u32 s = 0; s < NORM_STEPS; s++)
                    line[s] = start + 32 * s + lane < columns ? __ldg(right + 32 * s) : 0.0f;
#pragma unroll
                for (u32 r = 0; r < NORM_ROWS; r++)
#pragma unroll
                    for (u32 s = 0; s < NORM_STEPS; s++)
                        sum[r][s] = __fmaf_rn(__ldg(left[r] + k), line[s], sum[r][s]);
            }
#pragma unroll
            for (u32 r = 0; r < NORM_ROWS; r++)
#pragma unroll
                for (u32 s = 0; s < NORM_STEPS; s++)
                    if (covered[r]) work[r][s] = __fmaf_rn(__uint_as_float((u32)term->scale), sum[r][s], work[r][s]);
        }
        // The lower half of the warp keeps the sums; the upper half's values come second in each step. Past the last
        // column they are made 0, which adds nothing.
#pragma unroll
        for (u32 r = 0; r < NORM_ROWS; r++)
#pragma unroll
            for (u32 s = 0; s < NORM_STEPS; s++) {
                float own = start + 32 * s + lane < columns ? work[r][s] : 0.0f;
                float other = __shfl_xor_sync(0xffffffffu, own, 16);
                sums[r] = __dadd_rn(sums[r], __dmul_rn((double)own, (double)own));
                sums[r] = __dadd_rn(sums[r], __dmul_rn((double)other, (double)other));
            }
    }
#pragma unroll
    for (u32 r = 0; r < NORM_ROWS; r++) {
#pragma unroll
        for (u32 half = 8; half > 0; half /= 2)
            sums[r] = __dadd_rn(sums[r], __shfl_down_sync(0xffffffffu, sums[r], half));
        if (lane == 0 && place + r < row_count)
            gains[place + r] = __fdiv_rn(__ldg(magnitude + sources[r]), (float)__dsqrt_rn(sums[r]));
    }
}

// Widens stored floats, and sets `fault` where one is not finite. A block widens 1024.
extern "C" __global__ void __launch_bounds__(THREADS)
    widen(const void *stored, u64 type, u64 count, float *values, u32 *fault) {
    u64 at = ((u64)blockIdx.x * THREADS + threadIdx.x) * LANES;
    if (at >= count) return;
    u32 there = count - at < LANES ? (u32)(count - at) : LANES;
    float work[LANES];
    load(stored, type, at, {0, there}, work);
    u32 bits[LANES];
    bool faulty = false;
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        bits[i] = __float_as_uint(work[i]);
        faulty |= (bits[i] & 0x7fffffffu) >= 0x7f800000u;
    }
    store(values, F32, at, {0, there}, bits);
    if (faulty) *fault = 1u;
}
