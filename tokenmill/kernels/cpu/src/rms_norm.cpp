// RMS norm over a row of the residual stream (arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * weight.
//
// One pass adds up the squares (lane by lane, then over the lanes as a tree: one order whatever the company), a second
// scales and writes, as bf16 or, for weights in 8 and 4 bits, straight into groups of bytes. A row is one item.
#include "kernels.h"
#include "quantize.h"

namespace {

// x[0 ... size) scaled, 16 at a time through `put(k, values)`; a tail shorter than 16 is padded with zeros.
INLINE f32x16 load_tail(const float* x, int64_t count) {
    float padded[16] = {};
    for (int64_t i = 0; i < count; i++) padded[i] = x[i];
    return load_f32(padded);
}

INLINE float inverse_rms(const float* x, int64_t size, float eps) {
    f32x16 squares = {};
    int64_t k = 0;
    for (; k + kLanes <= size; k += kLanes) {
        const f32x16 v = load_f32(x + k);
        squares = fma(v, v, squares);
    }
    if (k < size) {
        const f32x16 v = load_tail(x + k, size - k);
        squares = fma(v, v, squares);
    }
    return 1.0f / sqrtf(sum(squares) / size + eps);
}

}  // namespace

KERNEL(rms_norm, RmsNormArgs) {
    const int64_t size = args->size;
    team->share(count_rows(*step, args->rows), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const float* x = args->x + (args->rows == kTokens ? row : step->outputs[row]) * size;
            const f32x16 scale = splat(inverse_rms(x, size, args->eps));
            auto normed = [&](int64_t k) { return load_f32(x + k) * scale * load_f32(args->weight + k); };
            if (args->group) {
                quantize_row(normed, row, size, args->group, args->quantized);
                continue;
            }
            bf16* out = args->out + row * size;
            int64_t k = 0;
            for (; k + kLanes <= size; k += kLanes) store_bf16(out + k, normed(k));
            for (; k < size; k++) out[k] = float_to_bf16(x[k] * scale[0] * args->weight[k]);
        }
    });
}
