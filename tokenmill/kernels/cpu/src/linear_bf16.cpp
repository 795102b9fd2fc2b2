// Linear layers with bfloat16 weights: pairs of inputs by dot product into float32, two inputs a step.
//
// A tile holds up to 6 rows x 64 outputs in registers: 24 of AVX-512's 32, so that 10 loads feed 24 dot products.
#include "linear.h"

namespace {

#if defined(__AVX512BF16__)
constexpr int kTileRows = 6, kTileVectors = 24;
#elif defined(__AVX512F__)
constexpr int kTileRows = 4, kTileVectors = 16;  // the dot product needs registers of its own
#else
constexpr int kTileRows = 4, kTileVectors = 8;
#endif

constexpr int64_t kInputsPerStep = 2;

template <int R, int kLines>
NOINLINE void tile(const bf16* x, int64_t stride, const char* weights, int64_t steps, const char* ahead, float* sums) {
    constexpr int V = tile_vectors(R, kTileVectors), kPasses = kPanelVectors / V;
    for (int j = 0; j < kPanelVectors; j += V) {
        f32xn acc[R][V];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) acc[r][v] = load<f32xn>(sums + r * kPanel + (j + v) * kNative);
        const char* w = weights + j * 4 * kNative;
        const bf16* from = x;
        for (int64_t s = 0; s < steps; s++, w += kStepBytes, from += kInputsPerStep) {
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

struct Bf16 {
    static int64_t chunk_inputs(const Weight& weight, int64_t count) {
        return count <= kTileRows ? weight.in_size : kChunkInputs;
    }

    static void accumulate(const LinearArgs& args, const Chunk& chunk) {
        const int64_t size = args.weight.in_size, steps = (chunk.end - chunk.begin) / kInputsPerStep;
        const char* weights = static_cast<const char*>(args.weight.data) +
                              (chunk.panel * size + chunk.begin) / kInputsPerStep * kStepBytes;
        auto one = [&](int64_t row, auto rows, auto lines, const char* ahead) {
            const bf16* x = args.x + (chunk.first + row) * size + chunk.begin;
            tile<rows, lines>(x, size, weights, steps, ahead, chunk.sums + row * kPanel);
        };
        for_tiles<kTileRows>(chunk.count, weights, steps, chunk.more, one);
    }
};

}  // namespace

KERNEL(linear_bf16, LinearArgs) { linear<Bf16>(*args, *step, *team); }
