// Linear layers with weights in 8 or 4 bits and activations in bfloat16: only the weights are rounded ("weight-only").
//
// A chunk of a panel is unpacked once, w = scale * (u - z), into bfloat16 pairs that stay in the caches, and the tiles of
// linear_bf16.h run over those. So memory is read as in 8 or 4 bits, and what is computed is what a bfloat16 layer with
// these weights would give, bit for bit, whoever shares the step. Unpacking costs one multiply-add and half a rounding per
// weight and block of rows: with one row longer than reading takes, with many next to nothing.
#include "experts.h"
#include "linear_bf16.h"

namespace {

struct Bytes {
    static constexpr int kQuads = 1;  // of inputs in a step's four bytes of an output
    static constexpr int32_t kZero = 128;
    static INLINE i32xn quad(i32xn stored, int) { return stored; }
};
struct Nibbles {
    static constexpr int kQuads = 2;
    static constexpr int32_t kZero = 8;
    static INLINE i32xn quad(i32xn stored, int q) { return (q == 0 ? stored : stored >> 4) & 0x0f0f0f0f; }
};

// Pairs of floats rounded to bfloat16, to nearest and even: `low` in the lower halves of the result, `high` in the upper.
#if defined(__AVX512BF16__)
INLINE u32xn pairs(f32xn low, f32xn high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (u32xn)_mm512_permutexvar_epi16(order, both);
}
#else
INLINE u32xn rounded(f32xn v) {  // in the upper half
    const u32xn bits = (u32xn)v;
    return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
}
INLINE u32xn pairs(f32xn low, f32xn high) { return (rounded(low) >> 16) | rounded(high); }
#endif

template <class Stored> struct WeightOnly {
    static constexpr int kInputs = 4 * Stored::kQuads;  // of a packed step

    // Where one tile takes all rows a group at a time, which the first-level cache holds.
    static int64_t chunk_inputs(const Weight& weight, int64_t count) {
        return count <= kTileRows ? weight.group : kChunkInputs / weight.group * weight.group;
    }

    static NOINLINE void unpack(const uint8_t* from, const f16* scales, int64_t groups, int64_t group, bf16* to) {
        char* out = reinterpret_cast<char*>(to);
        for (int64_t g = 0; g < groups; g++, scales += kPanel) {
            f32xn scale[kPanelVectors], zero[kPanelVectors];
            UNROLL for (int v = 0; v < kPanelVectors; v++) {
                scale[v] = load_f16_native(scales + v * kNative);
                zero[v] = scale[v] * float(-Stored::kZero);
            }
            for (int64_t k = 0; k < group; k += kInputs, from += kStepBytes) {
                UNROLL for (int v = 0; v < kPanelVectors; v++) {
                    const i32xn stored = load<i32xn>(from + v * 4 * kNative);
                    UNROLL for (int q = 0; q < Stored::kQuads; q++) {
                        const i32xn quad = Stored::quad(stored, q);
                        UNROLL for (int pair = 0; pair < 2; pair++) {
                            const f32xn low = to_f32((quad >> (16 * pair)) & 0xff);
                            const f32xn high = to_f32((quad >> (16 * pair + 8)) & 0xff);
                            store(out + (2 * q + pair) * kStepBytes + v * 4 * kNative,
                                  pairs(fma(low, scale[v], zero[v]), fma(high, scale[v], zero[v])));
                        }
                    }
                }
                out += 2 * Stored::kQuads * kStepBytes;
            }
        }
    }

    static void accumulate(const LinearArgs& args, const Chunk& chunk) {
        const Weight& weight = args.weight;
        const int64_t size = weight.in_size, length = chunk.end - chunk.begin;
        alignas(64) bf16 unpacked[kChunkInputs * kPanel];
        const uint8_t* packed =
            static_cast<const uint8_t*>(weight.data) + (chunk.panel * size + chunk.begin) / kInputs * kStepBytes;
        const f16* scales = weight.scales + (chunk.panel * size + chunk.begin) / weight.group * kPanel;
        unpack(packed, scales, length / weight.group, weight.group, unpacked);
        const char* weights = reinterpret_cast<const char*>(unpacked);
        auto one = [&](int64_t row, auto rows, auto, const char* ahead) {
            const bf16* x = args.x + (chunk.first + row) * size + chunk.begin;
            tile<rows, 0>(x, size, weights, length / kPair, ahead, chunk.sums + row * kPanel);
        };
        for_tiles<kTileRows>(chunk.count, weights, length / kPair, false, one);
    }
};

}  // namespace

KERNEL(linear_w8a16, LinearArgs) { linear<WeightOnly<Bytes>>(*args, *step, *team); }
KERNEL(linear_w4a16, LinearArgs) { linear<WeightOnly<Nibbles>>(*args, *step, *team); }
KERNEL(experts_w8a16, ExpertsArgs) { experts<WeightOnly<Bytes>>(*args, *team); }
KERNEL(experts_w4a16, ExpertsArgs) { experts<WeightOnly<Nibbles>>(*args, *team); }
