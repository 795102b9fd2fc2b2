// From a layer's queries, keys and values to what attention reads: RMS norm per head of queries and keys (Qwen3),
// rotation by the position's angles (RoPE, arXiv 2104.09864), keys and values to their slots of the cache.
//
// The rotation turns the pairs (x[i], x[i + D/2]) of a head. All is done in float32 and rounded once, when a query
// or a line of the cache is written: to bf16, or to int8 with the line's own scale, its largest magnitude / 127. A
// line that is not finite has a scale of NaN, so that nothing hides. An item is one key head of a token, with the
// query heads that share it.
#include "kv_cache.h"

namespace {

constexpr int64_t kMaxHeadDim = 1024;

// 16 numbers from x[d] on, as many as there are before x[size], then zeros. (D is a multiple of 16, D/2 perhaps not.)
INLINE f32x16 load_padded(const float* x, int64_t d, int64_t size) {
    if (d + kLanes <= size) return load_f32(x + d);
    float padded[kLanes] = {};
    for (int64_t i = d; i < size; i++) padded[i - d] = x[i];
    return load_f32(padded);
}

INLINE float inverse_rms(const float* x, int64_t size, float eps) {
    f32x16 squares = {};
    for (int64_t d = 0; d < size; d += kLanes) squares = fma(load_f32(x + d), load_f32(x + d), squares);
    return 1.0f / sqrtf(sum(squares) / size + eps);
}

// `out` has room for 8 numbers after its D: where D/2 is no multiple of 16, the last vector of a half runs over. From
// the end to the beginning, then, so that what comes later puts it right.
void turn(const float* x, const float* norm, float eps, const float* cos, const float* sin, int64_t size, float* out) {
    const int64_t half = size / 2;
    const f32x16 scale = splat(norm ? inverse_rms(x, size, eps) : 1.0f);
    auto part = [&](int64_t begin, int64_t d) {
        const f32x16 v = load_padded(x + begin, d, half);
        return norm ? v * scale * load_padded(norm + begin, d, half) : v;
    };
    for (int64_t d = (half - 1) / kLanes * kLanes; d >= 0; d -= kLanes) {
        const f32x16 low = part(0, d), high = part(half, d);
        const f32x16 c = load_padded(cos, d, half), s = load_padded(sin, d, half);
        store_f32(out + d, low * c - high * s);
        store_f32(out + half + d, high * c + low * s);
    }
}

void round_to_bf16(const float* x, int64_t size, bf16* out) {
    for (int64_t d = 0; d < size; d += kLanes) store_bf16(out + d, load_f32(x + d));
}

// Integers in [-127, 127]; returns their scale.
float round_to_int8(const float* x, int64_t size, int8_t* out) {
    f32x16 top = {}, poison = {};
    for (int64_t d = 0; d < size; d += kLanes) {
        const f32x16 v = load_f32(x + d);
        top = max(abs(v), top);
        poison = poison + v * 0.0f;  // NaN where v is NaN or infinite, else 0
    }
    const float peak = largest(top), taint = sum(poison);
    const bool finite = taint == 0.0f;
    const f32x16 inverse = splat(finite && peak > 0.0f ? 127.0f / peak : 0.0f);
    for (int64_t d = 0; d < size; d += kLanes) {
        const f32x16 scaled = finite ? round_even(load_f32(x + d) * inverse) : f32x16{};
        store(out + d, __builtin_convertvector(to_i32(scaled), i8x16));
    }
    return peak / 127.0f + taint;
}

// x as a line of the cache would hold it; returns its scale (of no meaning in bf16).
INLINE float round_line(const KvCache& kv, const float* x, char* out) {
    if (kv.format == kInt8) return round_to_int8(x, kv.head_dim, reinterpret_cast<int8_t*>(out));
    round_to_bf16(x, kv.head_dim, reinterpret_cast<bf16*>(out));
    return 1.0f;
}

INLINE void write_key(const KvCache& kv, int64_t line, const float* x) {
    alignas(64) char rounded[kMaxHeadDim * sizeof(bf16)];
    const float scale = round_line(kv, x, rounded);
    if (kv.format == kInt8) kv.key_scales[line] = scale;
    char* words = key_words(kv, line);
    const int64_t steps = line_bytes(kv) / kWordBytes;
    for (int64_t k = 0; k < steps; k++) memcpy(words + k * kStepBytes, rounded + k * kWordBytes, kWordBytes);
}

// A key is written a word per line of the processor's caches, none of which need be there: they are asked for at once.
INLINE void fetch_line(const KvCache& kv, int64_t line) {
    const char* words = key_words(kv, line);
    const int64_t bytes = line_bytes(kv);
    for (int64_t k = 0; k < bytes / kWordBytes; k++) prefetch_write(words + k * kStepBytes);
    for (int64_t b = 0; b < bytes; b += 64) prefetch_write(value_line(kv, line) + b);
}

INLINE void write_value(const KvCache& kv, int64_t line, const float* x) {
    const float scale = round_line(kv, x, value_line(kv, line));
    if (kv.format == kInt8) kv.value_scales[line] = scale;
}

}  // namespace

KERNEL(rope_kv, RopeKvArgs) {
    const KvCache& kv = args->kv;
    const int64_t size = kv.head_dim, num_heads = args->num_heads, per_key = num_heads / kv.num_heads;
    team->share(step->num_tokens * kv.num_heads, [&](int64_t begin, int64_t end) {
        alignas(64) float turned[kMaxHeadDim + kLanes];
        for (int64_t item = begin; item < end; item++) {
            const int64_t token = item / kv.num_heads, head = item % kv.num_heads;
            const float* x = args->qkv + token * (num_heads + 2 * kv.num_heads) * size;
            const int64_t angles = step->positions[token] * (size / 2);
            const float *cos = args->cos + angles, *sin = args->sin + angles;
            const int64_t block = step->slots[token] / kv.block_size, offset = step->slots[token] % kv.block_size;
            const int64_t line = line_index(kv, block, offset, head);
            fetch_line(kv, line);
            for (int64_t query = head * per_key; query < (head + 1) * per_key; query++) {
                turn(x + query * size, args->q_norm, args->eps, cos, sin, size, turned);
                round_to_bf16(turned, size, args->q + (token * num_heads + query) * size);
            }
            turn(x + (num_heads + head) * size, args->k_norm, args->eps, cos, sin, size, turned);
            write_key(kv, line, turned);
            write_value(kv, line, x + (num_heads + kv.num_heads + head) * size);
        }
    });
}
