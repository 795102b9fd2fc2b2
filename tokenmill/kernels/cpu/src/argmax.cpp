// The likeliest token of each row of logits: the greedy choice, without a copy of the logits ever leaving this place.
//
// Lane by lane the largest value and the first index that had it, then over the lanes the lowest index among equals.
// A NaN anywhere, or a +inf, has no likeliest token: the answer is -1, as for a row of nothing but -inf.
#include <limits>

#include "kernels.h"

namespace {

int32_t argmax(const float* x, int64_t size) {
    const float inf = std::numeric_limits<float>::infinity();
    f32x16 best = splat(-inf), taint = {};
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
    float top = -inf;
    int32_t at = -1;
    for (int i = 0; i < kLanes; i++) {
        if (taint[i] != taint[i]) return -1;
        if (best[i] > top || (best[i] == top && at >= 0 && where[i] < at)) top = best[i], at = where[i];
    }
    for (; k < size; k++) {
        if (x[k] != x[k]) return -1;
        if (x[k] > top) top = x[k], at = int32_t(k);
    }
    return top < inf ? at : -1;
}

}  // namespace

KERNEL(argmax, ArgmaxArgs) {
    team->share(step->num_outputs, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) args->ids[row] = argmax(args->logits + row * args->size, args->size);
    });
}
