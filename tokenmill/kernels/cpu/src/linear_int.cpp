// Linear layers with weights in 8 or 4 bits: bytes by exact dot product into int32, scaled to float32 once per group.
//
//     y = sum over groups g of  weight_scale[g] * x_scale[g] * sum over k in g of  w[k] * x[k]
//
// The instruction multiplies unsigned by signed bytes, so weights are stored as u = w + z (z = 128 for 8 bits, 8 for
// 4): sum(w * x) = sum(u * x) - z * sum(x), and the quantised input comes with its groups' sum(x). The accumulators
// start at -z * sum(x). Within a group all is exact; what rounds is one multiplication of the scales and one fused
// multiply-add per group.
//
// A tile keeps both kinds of sums in registers: up to 6 rows x 32 outputs, in two passes over a chunk. A single tile
// reads from memory, where passing once is worth more: it takes all 64 outputs, and the float sums rest while a group's
// dot products are made. In 4 bits a byte holds two weights, which are taken apart in registers.
#include "experts.h"
#include "linear.h"

namespace {

#if defined(__AVX512VNNI__)
constexpr int kTileRows = 6, kTileVectors = 12;
#elif defined(__AVX512F__)
constexpr int kTileRows = 4, kTileVectors = 8;  // the dot product needs registers of its own
#else
constexpr int kTileRows = 4, kTileVectors = 4;
#endif

// A step's four bytes of an output hold `kParts` quads of inputs.
struct Bytes {
    static constexpr int kParts = 1;
    static INLINE i32xn part(i32xn stored, int) { return stored; }
};
struct Nibbles {
    static constexpr int kParts = 2;
    static INLINE i32xn part(i32xn stored, int p) { return (p == 0 ? stored : stored >> 4) & 0x0f0f0f0f; }
};

// A chunk of quantised weights and of the rows' inputs.
struct Groups {
    const uint8_t* weights;
    const f16* weight_scales;  // [count][64]
    const int8_t* values;      // row i is `size` after row i - 1
    const float* scales;       // row i is `stride` after row i - 1
    const int32_t* sums;
    int64_t size, stride;
    int64_t count, group;
};

// R rows and a panel: sums [R][64] += scales * dot products, group by group.
template <class Stored, int R, int kLines>
NOINLINE void tile(const Groups& in, int32_t zero, const char* ahead, float* sums) {
    constexpr int V = tile_vectors(R, kLines == kAlone ? 2 * kTileVectors : kTileVectors);
    constexpr int kPasses = kPanelVectors / V, kParts = Stored::kParts;
    for (int j = 0; j < kPanelVectors; j += V) {
        f32xn total[R][V];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) total[r][v] = load<f32xn>(sums + r * kPanel + (j + v) * kNative);
        const uint8_t* w = in.weights + j * 4 * kNative;
        const int8_t* x = in.values;
        const f16* weight_scales = in.weight_scales + j * kNative;
        for (int64_t g = 0; g < in.count; g++, weight_scales += kPanel) {
            i32xn acc[R][V];
            UNROLL for (int r = 0; r < R; r++) {
                const i32xn start = -zero * in.sums[r * in.stride + g] - i32xn{};
                UNROLL for (int v = 0; v < V; v++) acc[r][v] = start;
            }
            for (const int8_t* end = x + in.group; x < end; x += 4 * kParts, w += kStepBytes) {
                ahead = prefetch_share<kLines, kPasses>(ahead);
                UNROLL for (int p = 0; p < kParts; p++) {
                    i32xn part[V];
                    UNROLL for (int v = 0; v < V; v++) part[v] = Stored::part(load<i32xn>(w + v * 4 * kNative), p);
                    UNROLL for (int r = 0; r < R; r++) {
                        const i32xn input = splat_bytes_native(x + r * in.size + 4 * p);
                        UNROLL for (int v = 0; v < V; v++) dot_i8(acc[r][v], part[v], input);
                    }
                }
            }
            UNROLL for (int v = 0; v < V; v++) {
                const f32xn scale = load_f16_native(weight_scales + v * kNative);
                UNROLL for (int r = 0; r < R; r++)
                    total[r][v] = fma(to_f32(acc[r][v]), scale * in.scales[r * in.stride + g], total[r][v]);
            }
        }
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) store(sums + r * kPanel + (j + v) * kNative, total[r][v]);
    }
}

template <class Stored> struct Int {
    static constexpr int kInputsPerStep = 4 * Stored::kParts;
    static constexpr int32_t kZero = Stored::kParts == 1 ? 128 : 8;

    static int64_t chunk_inputs(const Weight& weight, int64_t count) {
        return count <= kTileRows ? weight.in_size : kChunkInputs / weight.group * weight.group;
    }

    static void accumulate(const LinearArgs& args, const Chunk& chunk) {
        const Weight& weight = args.weight;
        const int64_t size = weight.in_size, num_groups = size / weight.group, group = chunk.begin / weight.group;
        const int64_t steps = (chunk.end - chunk.begin) / kInputsPerStep;
        const uint8_t* weights = static_cast<const uint8_t*>(weight.data) +
                                 (chunk.panel * size + chunk.begin) / kInputsPerStep * kStepBytes;
        const f16* scales = weight.scales + (chunk.panel * num_groups + group) * kPanel;
        auto one = [&](int64_t row, auto rows, auto lines, const char* ahead) {
            const int64_t from = chunk.first + row, at = from * num_groups + group;
            const Groups in = {weights, scales, args.quantized.values + from * size + chunk.begin,
                               args.quantized.scales + at, args.quantized.sums + at, size, num_groups,
                               (chunk.end - chunk.begin) / weight.group, weight.group};
            tile<Stored, rows, lines>(in, kZero, ahead, chunk.sums + row * kPanel);
        };
        for_tiles<kTileRows>(chunk.count, weights, steps, chunk.more, one);
    }
};

}  // namespace

KERNEL(linear_int8, LinearArgs) { linear<Int<Bytes>>(*args, *step, *team); }
KERNEL(linear_int4, LinearArgs) { linear<Int<Nibbles>>(*args, *step, *team); }
KERNEL(experts_int8, ExpertsArgs) { experts<Int<Bytes>>(*args, *team); }
KERNEL(experts_int4, ExpertsArgs) { experts<Int<Nibbles>>(*args, *team); }
