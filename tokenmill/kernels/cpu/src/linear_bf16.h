// A tile of a product with bfloat16 weights: pairs of inputs by dot product into float32, two inputs a step.
//
// It holds up to 6 rows x 64 outputs in registers: 24 of AVX-512's 32, so that 10 loads feed 24 dot products.
#pragma once

#include "linear.h"

namespace {

#if defined(__AVX512BF16__)
constexpr int kTileRows = 6, kTileVectors = 24;
#elif defined(__AVX512F__)
constexpr int kTileRows = 4, kTileVectors = 16;  // the dot product needs registers of its own
#else
constexpr int kTileRows = 4, kTileVectors = 8;
#endif

constexpr int64_t kPair = 2;  // inputs of a step

template <int R, int kLines>
NOINLINE void tile(const bf16* x, int64_t stride, const char* weights, int64_t steps, const char* ahead, float* sums) {
    constexpr int V = tile_vectors(R, kTileVectors), kPasses = kPanelVectors / V;
    for (int j = 0; j < kPanelVectors; j += V) {
        f32xn acc[R][V];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) acc[r][v] = load<f32xn>(sums + r * kPanel + (j + v) * kNative);
        const char* w = weights + j * 4 * kNative;
        const bf16* from = x;
        for (int64_t s = 0; s < steps; s++, w += kStepBytes, from += kPair) {
            ahead = prefetch_share<kLines, kPasses>(ahead);
            i32xn part[V];
            UNROLL for (int v = 0; v < V; v++) part[v] = load<i32xn>(w + v * 4 * kNative);
            UNROLL for (int r = 0; r < R; r++) {
                const i32xn input = splat_bytes_native(from + r * stride);
                UNROLL for (int v = 0; v < V; v++) acc[r][v] = dot_bf16(acc[r][v], input, part[v]);
            }
        }
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) store(sums + r * kPanel + (j + v) * kNative, acc[r][v]);
    }
}

}  // namespace
