// Token ids to rows of the residual stream: copied from a bf16 table, or gathered out of the packed output matrix where
// a model ties the two, in whichever format that has. An output's inputs lie a step (4 bytes of every output of its
// panel) apart, so a gather reads one cache line per step: microseconds a token. A token is one item.
#include "kernels.h"

namespace {

constexpr int64_t kStepBytes = 4 * kPanel;

// Row `output` of a packed matrix, dequantised, to out [K].
void gather(const Weight& weight, int64_t output, float* out) {
    const int64_t size = weight.in_size, panel = output / kPanel, lane = output % kPanel;
    const int64_t inputs_per_step = weight.format == kBf16 ? 2 : weight.format == kInt8 ? 4 : 8;
    const uint8_t* from = static_cast<const uint8_t*>(weight.data) + panel * size / inputs_per_step * kStepBytes;
    from += lane * 4;
    if (weight.format == kBf16) {
        for (int64_t k = 0; k < size; k += 2, from += kStepBytes) {
            bf16 pair[2];
            memcpy(pair, from, sizeof pair);
            out[k] = bf16_to_float(pair[0]);
            out[k + 1] = bf16_to_float(pair[1]);
        }
        return;
    }
    const int64_t num_groups = size / weight.group;
    for (int64_t g = 0; g < num_groups; g++) {
        const f16* scales = weight.scales + (panel * num_groups + g) * kPanel + lane / kLanes * kLanes;
        const float scale = load_f16(scales)[lane % kLanes];
        for (int64_t k = g * weight.group; k < (g + 1) * weight.group; k += inputs_per_step, from += kStepBytes)
            for (int j = 0; j < 4; j++) {
                if (weight.format == kInt8) {
                    out[k + j] = float(from[j] - 128) * scale;
                } else {
                    out[k + j] = float((from[j] & 15) - 8) * scale;
                    out[k + 4 + j] = float((from[j] >> 4) - 8) * scale;
                }
            }
    }
}

}  // namespace

KERNEL(embedding, EmbeddingArgs) {
    team->share(step->num_tokens, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; token++) {
            const int64_t id = step->token_ids[token], size = args->size;
            float* out = args->out + token * size;
            if (args->table) {
                for (int64_t k = 0; k < size; k++) out[k] = bf16_to_float(args->table[id * size + k]);
            } else {
                gather(args->packed, id, out);
            }
        }
    });
}
