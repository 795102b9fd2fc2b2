// The next token of each output: the likeliest, or a draw from the softmax, without the logits leaving this place.
//
// At temperature 0 the likeliest, lowest id first among equals: lane by lane the largest value and the first index that
// had it, then over the lanes. Otherwise the cumulative distribution is inverted in order of token id: with weights
// w = exp((x - max) / temperature), the first token at which the running sum exceeds uniform * total. The sum is made
// in stretches; the stretch in which it is exceeded is walked once more, one token at a time. Every row does the same
// operations in the same order whatever the other rows do, so a seeded draw does not depend on its company.
//
// A NaN anywhere, or a +inf, or nothing but -inf, has no answer: -1. A negative temperature asks for none either.
#include <limits>

#include "kernels.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kStretch = 1024;
constexpr float kNever = -87.0f;  // below this exponent a weight is 0: no float sum of such could matter

struct Peak {
    float value;
    int32_t id;  // -1: there is none
};

Peak peak_of(const float* x, int64_t size) {
    f32x16 best = splat(-kInf), taint = {};
    i32x16 where = splat(0), index = {};
    for (int i = 0; i < kLanes; i++) index[i] = i;
    int64_t k = 0;
    for (; k + kLanes <= size; k += kLanes, index += kLanes) {
        const f32x16 v = load_f32(x + k);
        taint = v == v ? taint : v;  // remembers a NaN
        const i32x16 better = v > best;
        where = better ? index : where;
        best = better ? v : best;
    }
    Peak peak{-kInf, -1};
    for (int i = 0; i < kLanes; i++) {
        if (taint[i] != taint[i]) return {0, -1};
        if (best[i] > peak.value || (best[i] == peak.value && peak.id >= 0 && where[i] < peak.id))
            peak = {best[i], where[i]};
    }
    for (; k < size; k++) {
        if (x[k] != x[k]) return {0, -1};
        if (x[k] > peak.value) peak = {x[k], int32_t(k)};
    }
    return peak.value < kInf ? peak : Peak{0, -1};
}

INLINE f32x16 weights(f32x16 x, f32x16 top, f32x16 inverse_temperature) {
    const f32x16 exponent = (x - top) * inverse_temperature;
    return exponent > kNever ? exp(exponent) : f32x16{};
}

// Elements k ... k + 15, beyond the end -inf, which weighs nothing.
INLINE f32x16 load_padded(const float* x, int64_t k, int64_t size) {
    if (k + kLanes <= size) return load_f32(x + k);
    f32x16 v = splat(-kInf);
    for (int64_t i = 0; k + i < size; i++) v[i] = x[k + i];
    return v;
}

int32_t draw(const float* x, int64_t size, float top, float temperature, double uniform) {
    const f32x16 peak = splat(top), inverse = splat(1.0f / temperature);
    auto stretch_sum = [&](int64_t begin) {
        const int64_t end = begin + kStretch < size ? begin + kStretch : size;
        f32x16 total = {};
        for (int64_t k = begin; k < end; k += kLanes) total += weights(load_padded(x, k, size), peak, inverse);
        return double(sum(total));
    };
    double total = 0;
    for (int64_t begin = 0; begin < size; begin += kStretch) total += stretch_sum(begin);
    const double goal = uniform * total;
    double before = 0;
    int32_t last = -1;  // the last token of weight in a stretch that reached the goal but for rounding
    for (int64_t begin = 0; begin < size; begin += kStretch) {
        const double stretch = stretch_sum(begin);
        const bool reaches = before + stretch > goal;
        if (reaches || begin + kStretch >= size) {
            double running = before;
            const int64_t end = begin + kStretch < size ? begin + kStretch : size;
            for (int64_t k = begin; k < end; k += kLanes) {
                const f32x16 w = weights(load_padded(x, k, size), peak, inverse);
                for (int i = 0; i < kLanes; i++) {
                    if (w[i] == 0.0f) continue;
                    running += w[i];
                    last = int32_t(k + i);
                    if (running > goal) return last;
                }
            }
            if (last >= 0) return last;
        }
        before += stretch;
    }
    return last;
}

}  // namespace

KERNEL(choose, ChooseArgs) {
    team->share(step->num_outputs, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const float temperature = args->temperatures[row];
            if (temperature < 0) {
                args->ids[row] = -1;
                continue;
            }
            const float* x = args->logits + row * args->size;
            const Peak peak = peak_of(x, args->size);
            const bool drawn = peak.id >= 0 && temperature > 0;
            args->ids[row] = drawn ? draw(x, args->size, peak.value, temperature, args->uniforms[row]) : peak.id;
        }
    });
}
