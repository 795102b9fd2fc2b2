// Mixture of experts (Shazeer et al., arXiv 1701.06538): who goes where, and what comes back.
//
// `route`, once a layer: each token's k likeliest experts and their weights; then rows by expert, in the order of
// tokens; then copies of the tokens' inputs in that order, so that every expert's rows lie together. `combine` adds what
// the experts gave to the residual stream, a token's experts in the order of their likelihood: one order, whatever the
// company.
#include <algorithm>

#include "kernels.h"

namespace {

// 16 logits from `e` on; minus infinity beyond the last.
INLINE f32x16 load_logits(const float* logits, int64_t e, int64_t count) {
    if (e + kLanes <= count) return load_f32(logits + e);
    float padded[kLanes];
    for (int64_t i = 0; i < kLanes; i++) padded[i] = e + i < count ? logits[e + i] : -INFINITY;
    return load_f32(padded);
}

// The k likeliest experts of a token, the lowest among equals first, and their shares of the softmax over all experts or,
// normalised, over these. Logits that are not finite give weights that are not.
void choose_experts(const RouteArgs& args, const float* logits, int32_t* ids, float* weights) {
    const int64_t count = args.num_experts, chosen = args.routing.per_token;
    bool taken[kMaxExperts] = {};
    for (int64_t rank = 0; rank < chosen; rank++) {
        int64_t best = -1;
        for (int64_t e = 0; e < count; e++) {
            if (!taken[e] && (best < 0 || logits[e] > logits[best])) best = e;
        }
        taken[best] = true;
        ids[rank] = int32_t(best);
    }
    const f32x16 top = splat(logits[ids[0]]);
    f32x16 sums = {};
    if (!args.normalize) {
        for (int64_t e = 0; e < count; e += kLanes) sums = sums + exp(load_logits(logits, e, count) - top);
    }
    float total = sum(sums);
    for (int64_t rank = 0; rank < chosen; rank++) {
        weights[rank] = exp(splat(logits[ids[rank]]) - top)[0];
        if (args.normalize) total += weights[rank];
    }
    for (int64_t rank = 0; rank < chosen; rank++) weights[rank] /= total;
}

// Rows by expert: a counting sort of the (token, rank) pairs, which keeps the tokens' order.
void group_rows(const Routing& routing, int64_t num_experts, int64_t num_tokens) {
    int32_t next[kMaxExperts] = {};
    const int64_t pairs = num_tokens * routing.per_token;
    for (int64_t i = 0; i < pairs; i++) next[routing.ids[i]]++;
    int32_t active = 0, begin = 0;
    for (int64_t e = 0; e < num_experts; e++) {
        const int32_t rows = next[e];
        next[e] = begin;
        if (!rows) continue;
        routing.experts[active] = int32_t(e);
        routing.begins[active++] = begin;
        begin += rows;
    }
    routing.begins[active] = begin;
    *routing.num_active = active;
    for (int64_t i = 0; i < pairs; i++) routing.places[i] = next[routing.ids[i]]++;
}

template <class T> INLINE void copy_row(const T* from, int64_t token, T* to, int64_t place, int64_t size) {
    memcpy(to + place * size, from + token * size, size * sizeof(T));
}

}  // namespace

KERNEL(route, RouteArgs) {
    const Routing& routing = args->routing;
    const int64_t tokens = step->num_tokens, per_token = routing.per_token, size = args->size;
    team->share(tokens, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++) {
            const float* logits = args->logits + t * args->num_experts;
            choose_experts(*args, logits, routing.ids + t * per_token, routing.weights + t * per_token);
        }
    });
    team->barrier();
    if (team->rank == 0) group_rows(routing, args->num_experts, tokens);
    team->barrier();
    team->share(tokens, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * per_token; i < end * per_token; i++) {
            const int64_t t = i / per_token, place = routing.places[i];
            if (!args->group) {
                copy_row(args->x, t, args->out, place, size);
                continue;
            }
            const Quantized &from = args->quantized, &to = args->out_quantized;
            copy_row(from.values, t, to.values, place, size);
            copy_row(from.scales, t, to.scales, place, size / args->group);
            copy_row(from.sums, t, to.sums, place, size / args->group);
        }
    });
}

KERNEL(combine, CombineArgs) {
    const Routing& routing = args->routing;
    const int64_t size = args->size, per_token = routing.per_token;
    team->share(step->num_tokens, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++) {
            const int32_t* places = routing.places + t * per_token;
            const float* weights = routing.weights + t * per_token;
            float* out = args->out + t * size;
            auto add = [&](int64_t k, int64_t count) {
                float part[kLanes] = {};
                f32x16 total = {};
                for (int64_t rank = 0; rank < per_token; rank++) {
                    const float* row = args->x + places[rank] * size + k;
                    if (count < kLanes) memcpy(part, row, count * sizeof(float));
                    total = fma(splat(weights[rank]), count < kLanes ? load_f32(part) : load_f32(row), total);
                }
                if (count == kLanes) {
                    store_f32(out + k, load_f32(out + k) + total);
                } else {
                    for (int64_t i = 0; i < count; i++) out[k + i] += total[i];
                }
            };
            for (int64_t k = 0; k < size; k += kLanes) add(k, std::min<int64_t>(kLanes, size - k));
        }
    });
}
