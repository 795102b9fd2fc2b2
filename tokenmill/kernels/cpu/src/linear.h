// The frame of every linear kernel: y = W x for T rows, in items of one panel of outputs for one block of rows.
//
// An item walks its panel once, from the first input to the last, in chunks; a chunk serves all rows of the block, a
// tile of a few rows at a time whose sums stay in registers. Between chunks the sums rest in memory, which is exact. So
// a row's sums are made by the same operations in the same order whatever the tile it is in, the block, the chunk size
// or the thread: one reduction order.
//
//     for chunk of the panel's inputs          read from memory once, while the chunk before it is computed
//         for tile of the block's rows         kTileRows x 64 sums in registers
//             for step of the chunk            load 64 x 4 bytes, broadcast 4 bytes of each row, dot
//
// Memory and arithmetic overlap: the tiles of a chunk share out among them the prefetching of the next, so that the
// time of a product is the longer of the two and not their sum. A chunk is as long as the second-level cache holds
// well, since what a tile costs beside its dot products is paid once a chunk. Where one tile holds all rows, a matter
// of bandwidth, the chunk is the whole panel: a thread then reads one run of memory, panel after panel, and the
// processor's own prefetching does that best (docs/log.md).
//
// What a chunk is and how a tile is computed is the format's (linear_bf16.cpp, linear_int.cpp); bias and epilogue are
// here.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels.h"

#define NOINLINE __attribute__((noinline))

constexpr int kPanelVectors = kPanel / kNative;
constexpr int64_t kStepBytes = 4 * kPanel;  // of weights that one step takes: 4 bytes per output, in every format

// Rows of a block: few enough that a chunk's activations and the sums stay in the caches next to the weights.
constexpr int64_t kBlockRows = 96;

// Inputs of a chunk where there are several tiles.
constexpr int64_t kChunkInputs = 512;

// Part of an item: inputs begin ... end - 1 of a panel for `count` rows from `first` on, whose sums [count][64] are
// added to. `more`: the weights that follow in memory are next.
struct Chunk {
    int64_t panel, begin, end, first, count;
    float* sums;
    bool more;
};

// Vectors of a panel that a tile of `rows` takes at once, where registers hold `budget` vectors of sums.
constexpr int tile_vectors(int rows, int budget) {
    int vectors = kPanelVectors;
    while (vectors > 1 && rows * vectors > budget) vectors /= 2;
    return vectors;
}

// body(std::integral_constant<int, n>), for n in 1 ... kMost.
template <int kMost, class Body> INLINE void with_constant(int64_t n, Body body) {
    if constexpr (kMost > 1) {
        if (n < kMost) return with_constant<kMost - 1>(n, body);
    }
    body(std::integral_constant<int, kMost>{});
}

// In place of a tile's lines: it is the only one, and reads its weights from memory.
constexpr int kAlone = -1;

// Prefetch a step's share of a tile's `kLines`, where the tile passes over its weights `kPasses` times.
template <int kLines, int kPasses> INLINE const char* prefetch_share(const char* ahead) {
    if (kLines <= 0) return ahead;
    for (int line = 0; line * kPasses < kLines; line++) prefetch_l2(ahead + line * 64);
    return ahead + kLines * 64 / kPasses;
}

// Call tile(first row, rows, lines, ahead) for rows 0 ... count - 1 of a chunk, in tiles of nearly one size, kTileRows
// at most. In each of its steps a tile prefetches `lines` (0, 1 or 2) from `ahead` on; together the tiles cover the
// next chunk, where that is wanted (`more`). `rows` and `lines` are constants.
template <int kTileRows, class Tile>
INLINE void for_tiles(int64_t count, const void* weights, int64_t steps, bool more, Tile tile) {
    const char* from = static_cast<const char*>(weights);
    if (count <= kTileRows) {
        with_constant<kTileRows>(count, [&](auto rows) {
            tile(0, rows, std::integral_constant<int, kAlone>{}, nullptr);
        });
        return;
    }
    const int64_t tiles = (count + kTileRows - 1) / kTileRows, lines = tiles < 4 ? 2 : 1;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t begin = t * count / tiles, end = (t + 1) * count / tiles;
        const char* ahead = from + steps * kStepBytes + t * lines * steps * 64;
        with_constant<kTileRows>(end - begin, [&](auto rows) {
            if (!more || t * lines >= 4)
                tile(begin, rows, std::integral_constant<int, 0>{}, ahead);
            else if (lines == 2)
                tile(begin, rows, std::integral_constant<int, 2>{}, ahead);
            else
                tile(begin, rows, std::integral_constant<int, 1>{}, ahead);
        });
    }
}

INLINE f32x16 silu(f32x16 x) { return x / (exp(-x) + 1.0f); }

// The sums of `count` rows from `first` on, [count][64], to the output.
INLINE void finish(const LinearArgs& args, int64_t panel, int64_t first, int64_t count, const float* sums) {
    const bool swiglu = args.epilogue == kSwiglu;
    const int64_t panel_width = swiglu ? kPanel / 2 : kPanel;
    const int64_t stride = swiglu ? args.weight.out_size / 2 : args.weight.out_size;
    const int64_t column = panel * panel_width, width = std::min(panel_width, stride - column);
    for (int64_t i = 0; i < count; i++, sums += kPanel) {
        const int64_t at = (first + i) * stride + column;
        if (swiglu) {
            alignas(64) bf16 row[kPanel / 2];
            for (int j = 0; j < kPanel / 2; j += kLanes)
                store_bf16(row + j, silu(load_f32(sums + j)) * load_f32(sums + kPanel / 2 + j));
            memcpy(static_cast<bf16*>(args.out) + at, row, width * sizeof(bf16));
            continue;
        }
        float* out = static_cast<float*>(args.out) + at;
        if (args.epilogue == kStore) {
            memcpy(out, sums, width * sizeof(float));
        } else {
            for (int64_t j = 0; j < width; j++) out[j] += sums[j];
        }
    }
}

// Format::accumulate(args, chunk) adds to the chunk's sums; Format::chunk_inputs(weight, count) says how long one is.
template <class Format> INLINE void linear(const LinearArgs& args, const Step& step, Team& team) {
    const Weight& weight = args.weight;
    const int64_t rows = count_rows(step, args.rows);
    if (rows == 0) return;
    const int64_t panels = (weight.out_size + kPanel - 1) / kPanel;
    const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
    const int64_t items = blocks * panels;
    team.share(items, [&](int64_t begin, int64_t end) {
        alignas(64) float sums[kBlockRows * kPanel];
        for (int64_t item = begin; item < end; item++) {
            const int64_t block = item / panels, panel = item % panels;
            const int64_t first = block * rows / blocks, count = (block + 1) * rows / blocks - first;
            for (int64_t i = 0; i < count; i++) {
                float* row = sums + i * kPanel;
                if (args.bias)
                    memcpy(row, args.bias + panel * kPanel, kPanel * sizeof(float));
                else
                    memset(row, 0, kPanel * sizeof(float));
            }
            const int64_t size = weight.in_size, length = Format::chunk_inputs(weight, count);
            for (int64_t k = 0; k < size; k += length) {
                const int64_t stop = std::min(k + length, size);
                Format::accumulate(args, {panel, k, stop, first, count, sums, stop < size || team.goes_on(items, item)});
            }
            finish(args, panel, first, count, sums);
        }
    });
}
