// What a kernel is given: the step, and its own arguments, both plain records that the host fills in.
//
//     extern "C" void tm_<name>(const <Name>Args* args, const Step* step, Team* team)
//
// is called by every thread of the team. Arguments are fixed when a model is laid out (weights, buffers, sizes); what
// changes from step to step (how many tokens, whose, where) is in the Step alone. `kernels/cpu/records.py` mirrors
// this file field by field; a test compares the sizes.
//
// Shapes: T tokens of all rows one after the other, S of them with an output wanted, K the width of an input, N of an
// output, G = K / group quantisation groups. Matrices are row-major. Buffers begin at multiples of 64 bytes.
#pragma once

#include <cstdint>

#include "simd.h"
#include "team.h"

struct Step {
    int64_t num_tokens;    // T
    int64_t num_rows;      // B: sequences
    int64_t num_outputs;   // S
    int64_t table_stride;  // entries from one row of `tables` to the next
    const int32_t* token_ids;  // [T]
    const int32_t* positions;  // [T] in the sequence
    const int32_t* slots;      // [T] where the token's key and value go: block * block_size + offset
    const int32_t* row_begin;  // [B + 1] first token of each row among the T
    const int32_t* tables;     // [B, table_stride] block ids of each row's sequence
    const int32_t* outputs;    // [S] tokens whose hidden state goes to the output matrix
};

// Over which rows of its input a kernel runs.
enum Rows : int32_t { kTokens = 0, kOutputs = 1 };

INLINE int64_t count_rows(const Step& step, int32_t rows) { return rows == kTokens ? step.num_tokens : step.num_outputs; }

// An input in 8 bits with a scale per row and group: value = scale * int. `sums` are the groups' sums of ints, which
// take out the zero point that weights carry (see linear_int.cpp).
struct Quantized {
    int8_t* values;  // [T, K]
    float* scales;   // [T, G]
    int32_t* sums;   // [T, G]
};

enum WeightFormat : int32_t { kBf16 = 0, kInt8 = 1, kInt4 = 2 };

// A matrix [N, K] in panels of 64 outputs (N is padded with zeros to whole panels):
//     bf16  [N/64][K/2][64][2] bf16
//     int8  [N/64][K/4][64][4] uint8, value + 128;                 scales [N/64][G][64] f16
//     int4  [N/64][K/8][64][4] uint8, two values + 8 in a byte: the lower four bits hold k = 0 ... 3 of the eight, the
//           upper four k = 4 ... 7;                                scales [N/64][G][64] f16
struct Weight {
    const void* data;
    const f16* scales;
    int64_t in_size;   // K
    int64_t out_size;  // N, without padding
    int64_t group;     // outputs of a row share a scale over this many inputs; 0 for bf16
    int32_t format;    // WeightFormat
    int32_t pad_;
};
constexpr int64_t kPanel = 64;

// Token table row -> residual stream. Exactly one of `table` (bf16 [vocab, K]) and `packed` (the output matrix) is used.
struct EmbeddingArgs {
    const bf16* table;
    Weight packed;
    float* out;  // [T, K]
    int64_t size;
};

// out = x / sqrt(mean(x^2) + eps) * weight, as bf16 (`out`), or quantised (`quantized`, where group > 0).
// Over kOutputs, row i of the result is of token outputs[i].
struct RmsNormArgs {
    const float* x;       // [T, size]
    const float* weight;  // [size]
    bf16* out;            // [T, size]
    Quantized quantized;
    int64_t size;
    int64_t group;
    float eps;
    int32_t rows;
};

struct QuantizeArgs {
    const bf16* x;  // [T * rows_per_token, size]
    Quantized out;
    int64_t size;
    int64_t group;
    int64_t rows_per_token;  // 1, but where a token goes through several experts
};

enum Epilogue : int32_t {
    kStore = 0,   // out = result                                  float32 [T, N]
    kAdd = 1,     // out += result                                 float32 [T, N]
    kSwiglu = 2,  // out = silu(gate) * up                         bf16 [T, N / 2]; the weight's panels hold 32 outputs
                  // of the gate and the same 32 of up
};

// out = weight x + bias with an epilogue; `x` (bf16 weights) or `quantized` (int8, int4) is the input.
struct LinearArgs {
    Weight weight;
    const float* bias;  // [N] in the order of the panels, or null
    const bf16* x;      // [T, K]
    Quantized quantized;
    void* out;
    int32_t epilogue;
    int32_t rows;  // kOutputs: the S rows that a RmsNorm over kOutputs made
};

constexpr int64_t kMaxExperts = 1024;

// Where the step's tokens go in a layer with experts: k = per_token experts each, a row for every one of them. `route`
// fills the arrays, the kernels after it read them.
struct Routing {
    int32_t* ids;         // [T, k] experts, the likeliest first
    float* weights;       // [T, k]
    int32_t* places;      // [T, k] row among the T * k, which lie expert by expert
    int32_t* num_active;  // [1] A: experts with rows
    int32_t* experts;     // [A] their numbers, ascending
    int32_t* begins;      // [A + 1] first row of each
    int64_t per_token;
};

// Choose experts by logits, and copy the inputs, in bf16 (`x` to `out`) or, where group > 0, quantised, to their rows.
struct RouteArgs {
    const float* logits;  // [T, num_experts]
    Routing routing;
    const bf16* x;  // [T, size]
    Quantized quantized;
    bf16* out;  // [T * k, size]
    Quantized out_quantized;
    int64_t num_experts;  // at most kMaxExperts
    int64_t size;
    int64_t group;
    int32_t normalize;  // a token's weights add up to 1
    int32_t pad_;
};

// A product with experts over the T * k rows. `linear.weight` holds the matrices of all of them, each from a new panel
// on, and its out_size is of one; no bias; kStore or kSwiglu.
struct ExpertsArgs {
    LinearArgs linear;
    Routing routing;
};

// out[t] += sum over ranks r of weights[t, r] * x[places[t, r]].
struct CombineArgs {
    const float* x;  // [T * k, size]
    Routing routing;
    float* out;  // [T, size]
    int64_t size;
};

// One layer's cache. A block holds block_size positions (a multiple of 16) of every key head:
//     keys    [block][head][block_size / 16][D / 2][16][2] bf16     or [...][D / 4][16][4] int8
//     values  [block][head][block_size][D] bf16                     or int8
// so that 16 positions' scores are made by dot products lane by lane. In 8 bits, a position of a head has a scale:
// [block][head][block_size] float32.
struct KvCache {
    void* keys;
    void* values;
    float* key_scales;
    float* value_scales;
    int64_t block_size;
    int32_t num_heads;
    int32_t head_dim;  // a multiple of 16
    int32_t format;    // kBf16 or kInt8
    int32_t pad_;
};

// From a layer's queries, keys and values to rotated queries and the cache: RMS norm per head where there are weights,
// rotation by the position's angles (halves, as Hugging Face lays them), keys and values to their slots.
struct RopeKvArgs {
    const float* qkv;     // [T, (num_heads + 2 * kv.num_heads) * D]
    const float* q_norm;  // [D] or null
    const float* k_norm;
    const float* cos;  // [positions, D / 2]
    const float* sin;
    bf16* q;  // [T, num_heads, D]
    KvCache kv;
    int32_t num_heads;
    float eps;
};

struct AttentionArgs {
    const bf16* q;  // [T, num_heads, D]
    KvCache kv;
    bf16* out;  // [T, num_heads, D]
    int32_t num_heads;
    int32_t window;  // a token sees this many positions, itself included; 0: all before it
    float scale;
    int32_t pad_;
};

// The next token of each output (choose.cpp); -1 where there is none, or none was asked for.
struct ChooseArgs {
    const float* logits;        // [S, size]
    const float* temperatures;  // [S] 0: the likeliest; below 0: none is asked for
    const double* uniforms;     // [S] in [0, 1)
    const int32_t* top_ks;      // [S] 0: not filtered so
    const float* top_ps;        // [S] 1: not filtered so
    const float* min_ps;        // [S] 0: not filtered so
    int32_t* ids;               // [S]
    int64_t size;
};

// Copy whole blocks within a cache; the host gives pairs whose sources are no destinations.
struct CopyBlocksArgs {
    void* data;
    int64_t block_bytes;
    const int64_t* pairs;  // [num_pairs, 2] source, destination
    int64_t num_pairs;
};

// What this machine can do, for `probe.cpp`.
struct ProbeArgs {
    const void* data;
    int64_t num_bytes;
    int64_t num_rounds;
    float* sink;  // [threads, 16], so that no work can be left out
};

// One kernel with its arguments; a program is an array of these. `ahead`: the next linear layer's arguments, or null;
// threads that wait meanwhile fetch the first of the weights that will be theirs.
struct Call {
    void (*kernel)(const void* args, const Step* step, Team* team);
    const void* args;
    const LinearArgs* ahead;
};

#define KERNEL(name, Args) extern "C" void tm_##name(const Args* args, const Step* step, Team* team)
