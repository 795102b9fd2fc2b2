// The next token of each output: the likeliest, or a draw from the softmax, without the logits leaving this place.
//
// At temperature 0 the likeliest, lowest id first among equals: lane by lane the largest value and the first index that
// had it, then over the lanes. Otherwise the cumulative distribution is inverted in order of token id: with weights
// w = exp((x - max) / temperature), the first token at which the running sum exceeds uniform * total. The sum is made
// in stretches; the stretch in which it is exceeded is walked once more, one token at a time. Every row does the same
// operations in the same order whatever the other rows do, so a seeded draw does not depend on its company.
//
// Top-k, top-p and min-p look at tokens from the likeliest down (equal ones by id). The first few nearly always settle the
// matter, so a row is tried on its 64 likeliest, then on 1,024: one pass collects what exceeds the least of the best seen so
// far. If the last of these was filtered out nothing beyond could have been kept, and the draw is among them in that order;
// else, and for a top-k beyond them, the answer is left to the host.
//
// A NaN anywhere, or a +inf, or nothing but -inf, has no answer: -1. A negative temperature asks for none either.
#include <algorithm>
#include <limits>
#include <vector>

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

// Weights of elements begin ... begin + kStretch.
double stretch_sum(const float* x, int64_t begin, int64_t size, f32x16 peak, f32x16 inverse) {
    const int64_t end = begin + kStretch < size ? begin + kStretch : size;
    f32x16 total = {};
    for (int64_t k = begin; k < end; k += kLanes) total += weights(load_padded(x, k, size), peak, inverse);
    return double(sum(total));
}

double mass_of(const float* x, int64_t size, f32x16 peak, f32x16 inverse) {
    double total = 0;
    for (int64_t begin = 0; begin < size; begin += kStretch) total += stretch_sum(x, begin, size, peak, inverse);
    return total;
}

int32_t draw(const float* x, int64_t size, float top, float temperature, double uniform) {
    const f32x16 peak = splat(top), inverse = splat(1.0f / temperature);
    const double goal = uniform * mass_of(x, size, peak, inverse);
    double before = 0;
    int32_t last = -1;  // the last token of weight in a stretch that reached the goal but for rounding
    for (int64_t begin = 0; begin < size; begin += kStretch) {
        const double stretch = stretch_sum(x, begin, size, peak, inverse);
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

constexpr int64_t kWidths[] = {64, 1024};

bool any(i32x16 mask) {
    int32_t found = 0;
    for (int i = 0; i < kLanes; i++) found |= mask[i];
    return found != 0;
}

// The `width` largest, in order (all if there are fewer).
void likeliest(const float* x, int64_t size, int64_t width, std::vector<Peak>& found) {
    const auto before = [](const Peak& a, const Peak& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); };
    const size_t full = size_t(4 * width);
    float least = -kInf;  // `width` values are at least this; a later equal one comes after them
    found.clear();
    for (int64_t k = 0; k < size; k += kLanes) {
        const f32x16 v = load_padded(x, k, size);
        if (!any(v > splat(least))) continue;
        for (int i = 0; i < kLanes; i++)
            if (v[i] > least) found.push_back({v[i], int32_t(k + i)});
        if (found.size() >= full) {
            std::nth_element(found.begin(), found.begin() + (width - 1), found.end(), before);
            found.resize(size_t(width));
            least = found.back().value;
        }
    }
    std::sort(found.begin(), found.end(), before);
    if (int64_t(found.size()) > width) found.resize(size_t(width));
}

int32_t draw_filtered(const float* x, const ChooseArgs* args, int64_t row, float top) {
    thread_local std::vector<Peak> best;
    thread_local std::vector<float> kept;
    const f32x16 peak = splat(top), inverse = splat(1.0f / args->temperatures[row]);
    const float min_p = args->min_ps[row];
    const double top_p = args->top_ps[row];
    const int64_t top_k = args->top_ks[row];
    for (const int64_t width : kWidths) {
        if (top_k > width) continue;
        likeliest(x, args->size, width, best);
        const bool complete = int64_t(best.size()) < width;  // nothing of weight lies beyond
        const size_t limit = top_k > 0 ? std::min(size_t(top_k), best.size()) : best.size();
        kept.assign(limit, 0.0f);
        double mass = 0;
        for (size_t i = 0; i < limit; i += kLanes) {
            f32x16 v = splat(-kInf);
            for (size_t j = 0; j < kLanes && i + j < limit; j++) v[j] = best[i + j].value;
            const f32x16 w = weights(v, peak, inverse);
            for (size_t j = 0; j < kLanes && i + j < limit; j++) mass += kept[i + j] = w[j];
        }
        if (top_k == 0 && top_p < 1) mass = mass_of(x, args->size, peak, inverse);
        size_t count = 0;
        double total = 0;
        while (count < limit && kept[count] > 0 && (top_p >= 1 || total < top_p * mass) &&
               kept[count] >= min_p * kept[0])
            total += kept[count++];
        const bool open = count == limit && !complete && (top_k == 0 || limit < size_t(top_k));
        if (open) continue;
        double running = 0;
        for (size_t i = 0; i < count; i++) {
            running += kept[i];
            if (running > args->uniforms[row] * total) return best[i].id;
        }
        return best[count - 1].id;
    }
    return -1;
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
            const bool filtered = args->top_ks[row] > 0 || args->top_ps[row] < 1 || args->min_ps[row] > 0;
            if (peak.id < 0 || temperature == 0)
                args->ids[row] = peak.id;
            else if (filtered)
                args->ids[row] = draw_filtered(x, args, row, peak.value);
            else
                args->ids[row] = draw(x, args->size, peak.value, temperature, args->uniforms[row]);
        }
    });
}
