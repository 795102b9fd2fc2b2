// The ceilings that kernels are held against: how fast this machine reads memory, and how fast it multiplies.
//
// `probe_read` adds up a large buffer, each thread its own half from front to back: what a product with one row can
// reach at best. `probe_bf16` and `probe_int8` keep 24 accumulators in registers (the largest tile of the linear
// kernels) and multiply them by values that never leave the registers either: no kernel can do more of these a second.
#include "kernels.h"

namespace {

constexpr int kAccumulators = 24;

INLINE void dot(f32x16& acc, i32x16 a, i32x16 b) { acc = dot_bf16(acc, a, b); }
INLINE void dot(i32x16& acc, i32x16 a, i32x16 b) { dot_i8(acc, a, b); }

template <class Accumulator> INLINE Accumulator saturate(int64_t num_rounds) {
    i32x16 factors[2] = {splat(0x3f803f80), splat(0x3f803f80)};
    Accumulator start[kAccumulators] = {};
    asm volatile("" : : "r"(factors), "r"(start) : "memory");  // values that the compiler cannot know
    const i32x16 a = factors[0], b = factors[1];
    Accumulator acc[kAccumulators];
    UNROLL for (int i = 0; i < kAccumulators; i++) acc[i] = start[i];
    for (int64_t round = 0; round < num_rounds; round++) {
        UNROLL for (int i = 0; i < kAccumulators; i++) dot(acc[i], a, b);
    }
    Accumulator total = {};
    UNROLL for (int i = 0; i < kAccumulators; i++) total += acc[i];
    return total;
}

}  // namespace

KERNEL(probe_read, ProbeArgs) {
    const int64_t lines = args->num_bytes / 64, begin = lines * team->rank / team->size;
    const int64_t end = lines * (team->rank + 1) / team->size;
    const char* data = static_cast<const char*>(args->data);
    i32x16 sums[4] = {};
    for (int64_t line = begin; line + 4 <= end; line += 4) UNROLL
        for (int i = 0; i < 4; i++) sums[i] += load<i32x16>(data + (line + i) * 64);
    store(args->sink + team->rank * kLanes, sums[0] + sums[1] + sums[2] + sums[3]);
}

// 2 * 2 * 16 * 24 operations a round and thread
KERNEL(probe_bf16, ProbeArgs) {
    store_f32(args->sink + team->rank * kLanes, saturate<f32x16>(args->num_rounds));
}

// 2 * 4 * 16 * 24 operations a round and thread
KERNEL(probe_int8, ProbeArgs) { store(args->sink + team->rank * kLanes, saturate<i32x16>(args->num_rounds)); }
