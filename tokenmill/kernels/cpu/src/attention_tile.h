// Products of a few query rows with one tile of 64 keys and values, in the two formats of the cache.
//
// Both products have one shape: rows of words (4 bytes: two bf16, four int8) times vectors of 16 words,
//
//     acc[row][v] = acc[row][v] + sum over the word of a[row][k] * b[v][k]          k = 0, 1, 2, ... in this order
//
// For scores the words run over D and the vectors are groups of 16 keys, as they lie in the cache. For outputs the
// words run over positions and the vectors are columns of D: values lie by position, so a tile of them is turned once
// (`pack`) and serves all query rows. Several rows at a time only keep the registers busy; what is done to one row is
// the same whoever its neighbours are.
//
// bf16: queries, keys, probabilities and values in bf16, sums in float32.
//
// int8: queries and probabilities are cut into two digits of 8 bits, so that nothing is lost but what the cache itself
// lost: with scale s, query = s * (256 * high + low), digits signed; a probability times its value's scale =
// t * (256 * high + low), digits unsigned. All products are then exact sums of integers. dot_i8 wants one side
// unsigned: keys are read as value + 128, and the sums begin at -128 * (sum of the digits).
#pragma once

#include <algorithm>

#include "kv_cache.h"

constexpr int64_t kKeyTile = 64;
constexpr int kTileGroups = kKeyTile / kGroup;
constexpr float kNothing = -INFINITY;  // the score of what a row does not see

// How many rows of words go through the registers at a time: with 4 vectors each, what the registers hold.
#if defined(__AVX512F__)
constexpr int kWordRows = 6;
#else
constexpr int kWordRows = 2;
#endif

// acc += a b; `a` holds the word of row i and step k at k * a_step + i * a_row. Where `ahead` is given, every step also
// fetches a line of each of two groups of keys that are wanted next.
template <class Dot, int kRows, int kVectors, class Sum>
INLINE void multiply(Sum (&acc)[kRows][kVectors], const char* a, int64_t a_step, int64_t a_row, const char* const* b,
                     int64_t b_step, int64_t steps, const char* const* ahead = nullptr) {
    for (int64_t k = 0; k < steps; k++) {
        i32x16 v[kVectors];
        UNROLL for (int j = 0; j < kVectors; j++) v[j] = load<i32x16>(b[j] + k * b_step);
        if (ahead) prefetch_l2(ahead[0] + k * kStepBytes), prefetch_l2(ahead[1] + k * kStepBytes);
        UNROLL for (int i = 0; i < kRows; i++) {
            const i32x16 word = splat_bytes(a + k * a_step + i * a_row);
            UNROLL for (int j = 0; j < kVectors; j++) Dot::add(acc[i][j], word, v[j]);
        }
    }
}

// A vector of which only the first bytes are there; the others are 0.
template <class Vector, int kBytes> INLINE Vector load_part(const char* from) {
    Vector v = {};
    memcpy(&v, from, kBytes);
    return v;
}

// A row's view of a tile: 64 scores of which it sees positions first ... last (perhaps none, perhaps all).
struct Sight {
    int64_t first, last;
    bool whole() const { return first <= 0 && last >= kKeyTile - 1; }
};

// 0 where a row does not see the position.
INLINE f32x16 only_seen(f32x16 v, const Sight& sight, int vector, float otherwise) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const i32x16 at = lane + vector * kLanes;
    return (at >= int32_t(sight.first)) & (at <= int32_t(sight.last)) ? v : splat(otherwise);
}

// The running state of one query row: exp(score - top) is what probabilities are before they are divided by their sum.
struct RowState {
    f32x16 sum;  // lane by lane
    float top;
    int64_t first, last;  // positions that it sees
};

struct KeyScales {
    const float* keys[kTileGroups];
    const float* values[kTileGroups];
};

// scores (already times scale * log2 e) -> p = 2^(score - top); returns what earlier sums are to be multiplied with.
INLINE float soften(f32x16 (&s)[kTileGroups], const Sight& sight, RowState& row) {
    if (!sight.whole())
        for (int j = 0; j < kTileGroups; j++) s[j] = only_seen(s[j], sight, j, kNothing);
    const float top = std::max(row.top, largest(max(max(s[0], s[1]), max(s[2], s[3]))));
    for (int j = 0; j < kTileGroups; j++) s[j] = exp2(s[j] - splat(top));
    if (!sight.whole())  // 2^-126 is not 0, and a row that has seen nothing yet has a top of -inf
        for (int j = 0; j < kTileGroups; j++) s[j] = only_seen(s[j], sight, j, 0.0f);
    const float fade = top == row.top ? 1.0f : exp2(splat(row.top - top))[0];
    row.sum = row.sum * fade + ((s[0] + s[1]) + (s[2] + s[3]));
    row.top = top;
    return fade;
}

// ---- bf16 ---------------------------------------------------------------------------------------------------

struct Bf16Tile {
    static constexpr int kRows = kWordRows;
    static constexpr int64_t kNumberBytes = 2;
    static constexpr int64_t kPositions = 2;  // in a word of probabilities

    struct Dot {
        static INLINE void add(f32x16& acc, i32x16 word, i32x16 vector) { acc = dot_bf16(acc, vector, word); }
    };
    struct Query {};  // what belongs to a query row beside its words
    struct Weights {  // probabilities of a few rows
        alignas(64) bf16 p[kRows][kKeyTile];

        void take(const Weights& from, int i) { memcpy(p[0], from.p[i], sizeof p[0]); }
    };

    static INLINE Query load_query(const bf16* q, int64_t size, char* words, int64_t step) {
        for (int64_t k = 0; k < size / 2; k++) memcpy(words + k * step, q + 2 * k, kWordBytes);
        return {};
    }

    template <int kCount, int kGroups>
    static INLINE void scores(const char* words, const Query*, const char* const* keys, int64_t size, const KeyScales&,
                              float scale, const char* const* ahead, f32x16 (*out)[kTileGroups]) {
        f32x16 acc[kCount][kGroups] = {};
        multiply<Dot>(acc, words, kCount * kWordBytes, kWordBytes, keys, kStepBytes, size / 2, ahead);
        UNROLL for (int i = 0; i < kCount; i++)
            UNROLL for (int j = 0; j < kGroups; j++) out[i][j] = acc[i][j] * scale;
    }

    static INLINE void weigh(const f32x16 (&p)[kTileGroups], const Sight&, const KeyScales&, RowState&,
                             Weights& weights, int i) {
        for (int j = 0; j < kTileGroups; j++) store_bf16(weights.p[i] + j * kLanes, p[j]);
    }

    template <int kCount, int kVectors>
    static INLINE void accumulate(const Weights& weights, const float* fade, const char* values, int64_t step,
                                  int64_t positions, float* const* out, const char* const* ahead) {
        f32x16 acc[kCount][kVectors];
        const char* columns[kVectors];
        UNROLL for (int j = 0; j < kVectors; j++) columns[j] = values + j * kStepBytes;
        UNROLL for (int i = 0; i < kCount; i++)
            UNROLL for (int j = 0; j < kVectors; j++) acc[i][j] = load_f32(out[i] + j * kLanes) * fade[i];
        multiply<Dot>(acc, reinterpret_cast<const char*>(weights.p), kWordBytes, sizeof weights.p[0], columns, step,
                      positions / kPositions, ahead);
        UNROLL for (int i = 0; i < kCount; i++)
            UNROLL for (int j = 0; j < kVectors; j++) store_f32(out[i] + j * kLanes, acc[i][j]);
    }

    // Columns of two positions -> two vectors of words. `probe` becomes NaN where a value is not finite.
    template <int kColumns, bool kProbe>
    static INLINE void pack(const char* const* lines, char* out, f32x16& probe) {
        i32x16 low, high;
        interleave(load_part<i32x16, 2 * kColumns>(lines[0]), load_part<i32x16, 2 * kColumns>(lines[1]), low, high);
        store(out, low), store(out + kStepBytes, high);
        if (kProbe) probe = dot_bf16(dot_bf16(probe, low, i32x16{}), high, i32x16{});
    }
};

// ---- int8 ---------------------------------------------------------------------------------------------------

struct Int8Tile {
    static constexpr int kRows = kWordRows / 2;
    static constexpr int64_t kNumberBytes = 1;
    static constexpr int64_t kPositions = 4;

    struct KeyDot {
        static INLINE void add(i32x16& acc, i32x16 word, i32x16 vector) {
            dot_i8(acc, vector ^ int32_t(0x80808080), word);  // as unsigned: value + 128
        }
    };
    struct ValueDot {
        static INLINE void add(i32x16& acc, i32x16 word, i32x16 vector) { dot_i8(acc, word, vector); }
    };
    struct Query {
        float scale;
        int32_t start[2];  // -128 * sum of the high digits, of the low ones
    };
    struct Weights {
        alignas(64) uint8_t digits[2 * kRows][kKeyTile];
        float scale[kRows];

        void take(const Weights& from, int i) {
            memcpy(digits[0], from.digits[2 * i], 2 * kKeyTile);
            scale[0] = from.scale[i];
        }
    };

    // The digits' words lie behind each other: those of row i are rows 2 i and 2 i + 1 of the product.
    static INLINE Query load_query(const bf16* q, int64_t size, char* words, int64_t step) {
        f32x16 top = {}, poison = {};
        for (int64_t d = 0; d < size; d += kLanes) {
            const f32x16 v = load_bf16(q + d);
            top = max(abs(v), top);
            poison = poison + v * 0.0f;
        }
        const float peak = largest(top), taint = sum(poison);
        const bool usable = taint == 0.0f && peak > 1e-30f;
        const f32x16 inverse = splat(usable ? 32512.0f / peak : 0.0f);  // 127 * 256
        i32x16 highs = {}, lows = {};
        for (int64_t d = 0; d < size; d += kLanes) {
            const i32x16 v = to_i32(usable ? round_even(load_bf16(q + d) * inverse) : f32x16{});
            const i32x16 high = (v + 128) >> 8, low = v - (high << 8);
            const i8x16 high_bytes = __builtin_convertvector(high, i8x16);
            const i8x16 low_bytes = __builtin_convertvector(low, i8x16);
            for (int64_t k = 0; k < 4; k++) {
                char* word = words + (d / 4 + k) * step;
                memcpy(word, reinterpret_cast<const char*>(&high_bytes) + k * kWordBytes, kWordBytes);
                memcpy(word + kWordBytes, reinterpret_cast<const char*>(&low_bytes) + k * kWordBytes, kWordBytes);
            }
            highs += high;
            lows += low;
        }
        return {peak / 32512.0f + taint, {-128 * sum(highs), -128 * sum(lows)}};
    }

    template <int kCount, int kGroups>
    static INLINE void scores(const char* words, const Query* queries, const char* const* keys, int64_t size,
                              const KeyScales& scales, float scale, const char* const* ahead,
                              f32x16 (*out)[kTileGroups]) {
        i32x16 acc[2 * kCount][kGroups];
        UNROLL for (int i = 0; i < 2 * kCount; i++)
            UNROLL for (int j = 0; j < kGroups; j++) acc[i][j] = splat(queries[i / 2].start[i % 2]);
        multiply<KeyDot>(acc, words, 2 * kCount * kWordBytes, kWordBytes, keys, kStepBytes, size / 4, ahead);
        UNROLL for (int i = 0; i < kCount; i++)
            UNROLL for (int j = 0; j < kGroups; j++) {
                const f32x16 dot = fma(to_f32(acc[2 * i][j]), splat(256.0f), to_f32(acc[2 * i + 1][j]));
                out[i][j] = dot * load_f32(scales.keys[j]) * (queries[i].scale * scale);
            }
    }

    static INLINE void weigh(const f32x16 (&p)[kTileGroups], const Sight& sight, const KeyScales& scales, RowState& row,
                             Weights& weights, int i) {
        f32x16 w[kTileGroups];
        for (int j = 0; j < kTileGroups; j++) {
            w[j] = p[j] * load_f32(scales.values[j]);
            if (!sight.whole()) w[j] = only_seen(w[j], sight, j, 0.0f);
        }
        const float peak = largest(max(max(w[0], w[1]), max(w[2], w[3])));
        // A scale that is not finite ends in the row's sum, and so in all of its output.
        row.sum = row.sum + ((w[0] + w[1]) + (w[2] + w[3])) * 0.0f;
        const bool usable = peak > 1e-30f && peak < INFINITY;
        const f32x16 inverse = splat(usable ? 65535.0f / peak : 0.0f);
        for (int j = 0; j < kTileGroups; j++) {
            const i32x16 v = to_i32(round_even(w[j] * inverse));
            store(weights.digits[2 * i] + j * kLanes, __builtin_convertvector(v >> 8, i8x16));
            store(weights.digits[2 * i + 1] + j * kLanes, __builtin_convertvector(v, i8x16));
        }
        weights.scale[i] = usable ? peak / 65535.0f : 0.0f;
    }

    template <int kCount, int kVectors>
    static INLINE void accumulate(const Weights& weights, const float* fade, const char* values, int64_t step,
                                  int64_t positions, float* const* out, const char* const* ahead) {
        i32x16 acc[2 * kCount][kVectors] = {};
        const char* columns[kVectors];
        UNROLL for (int j = 0; j < kVectors; j++) columns[j] = values + j * kStepBytes;
        multiply<ValueDot>(acc, reinterpret_cast<const char*>(weights.digits), kWordBytes, kKeyTile, columns, step,
                           positions / kPositions, ahead);
        UNROLL for (int i = 0; i < kCount; i++)
            UNROLL for (int j = 0; j < kVectors; j++) {
                const f32x16 tile = to_f32((acc[2 * i][j] << 8) + acc[2 * i + 1][j]);
                const f32x16 before = load_f32(out[i] + j * kLanes) * fade[i];
                store_f32(out[i] + j * kLanes, fma(tile, splat(weights.scale[i]), before));
            }
    }

    // Columns of four positions -> two vectors of words.
    template <int kColumns, bool kProbe>
    static INLINE void pack(const char* const* lines, char* out, f32x16&) {
        typedef uint8_t u8x32 __attribute__((vector_size(32)));
        typedef uint16_t u16x32 __attribute__((vector_size(64)));
        u16x32 wide[4];
        UNROLL for (int i = 0; i < 4; i++)
            wide[i] = __builtin_convertvector(load_part<u8x32, kColumns>(lines[i]), u16x32);
        i32x16 low, high;
        interleave((i32x16)(wide[0] | wide[1] << 8), (i32x16)(wide[2] | wide[3] << 8), low, high);
        store(out, low), store(out + kStepBytes, high);
    }
};
