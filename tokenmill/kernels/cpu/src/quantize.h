// A row to 8-bit integers with a scale per group: scale = largest magnitude / 127, value = round(x / scale).
//
// The group's sum of integers goes along: weights are stored with a zero point, sum(x * (w + z)) - z * sum(x) takes it
// out. A row that is not finite becomes one whose scales are NaN, so that what follows is NaN too and nothing hides.
#pragma once

#include "kernels.h"

// `value(k)` gives elements k ... k + 15 of the row; `group` is a multiple of 16 that divides `size`.
template <class Value> INLINE void quantize_row(Value value, int64_t row, int64_t size, int64_t group, const Quantized& out) {
    const int64_t num_groups = size / group;
    int8_t* ints = out.values + row * size;
    for (int64_t g = 0; g < num_groups; g++) {
        f32x16 top = {}, poison = {};
        for (int64_t k = g * group; k < (g + 1) * group; k += kLanes) {
            const f32x16 v = value(k);
            top = max(abs(v), top);
            poison = poison + v * 0.0f;  // NaN where v is NaN or infinite, else 0
        }
        const float peak = largest(top), taint = sum(poison);
        const float scale = peak > 0.0f ? peak / 127.0f : 1.0f;
        const f32x16 inverse = splat(taint == 0.0f ? 1.0f / scale : 0.0f);
        i32x16 total = {};
        for (int64_t k = g * group; k < (g + 1) * group; k += kLanes) {
            const f32x16 scaled = taint == 0.0f ? round_even(value(k) * inverse) : f32x16{};
            const i32x16 rounded = to_i32(scaled);
            total += rounded;
            store(ints + k, __builtin_convertvector(rounded, i8x16));
        }
        out.scales[row * num_groups + g] = scale + taint;
        out.sums[row * num_groups + g] = sum(total);
    }
}
