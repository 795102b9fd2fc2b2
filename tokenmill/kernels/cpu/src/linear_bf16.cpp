// Linear layers with bfloat16 weights. How a tile is computed: linear_bf16.h.
#include "experts.h"
#include "linear_bf16.h"

namespace {

struct Bf16 {
    static int64_t chunk_inputs(const Weight& weight, int64_t count) {
        return count <= kTileRows ? weight.in_size : kChunkInputs;
    }

    static void accumulate(const LinearArgs& args, const Chunk& chunk) {
        const int64_t size = args.weight.in_size, steps = (chunk.end - chunk.begin) / kPair;
        const char* weights = static_cast<const char*>(args.weight.data) +
                              (chunk.panel * size + chunk.begin) / kPair * kStepBytes;
        auto one = [&](int64_t row, auto rows, auto lines, const char* ahead) {
            const bf16* x = args.x + (chunk.first + row) * size + chunk.begin;
            tile<rows, lines>(x, size, weights, steps, ahead, chunk.sums + row * kPanel);
        };
        for_tiles<kTileRows>(chunk.count, weights, steps, chunk.more, one);
    }
};

}  // namespace

KERNEL(linear_bf16, LinearArgs) { linear<Bf16>(*args, *step, *team); }
KERNEL(experts_bf16, ExpertsArgs) { experts<Bf16>(*args, *team); }
