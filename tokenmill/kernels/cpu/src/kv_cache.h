// Where things lie in a paged cache (the layout is told at `KvCache` in kernels.h).
//
// A *line* is one position of one head: D numbers. Lines are counted (block, head, position in the block), so the
// value and the scales of a line have its number for an index. The keys of 16 lines in a row, a *group*, are stored
// together and turned: step by step of 4 bytes of a line (two bf16 or four int8), the 16 lines' words side by side.
// One load of 64 bytes then holds, lane by lane, the same part of 16 positions.
#pragma once

#include "kernels.h"

constexpr int64_t kGroup = 16;       // lines of a group
constexpr int64_t kWordBytes = 4;    // of a line in one step of a group
constexpr int64_t kStepBytes = 64;   // of a group in one step

INLINE int64_t line_bytes(const KvCache& kv) { return int64_t{kv.head_dim} * (kv.format == kBf16 ? 2 : 1); }

INLINE int64_t line_index(const KvCache& kv, int64_t block, int64_t offset, int64_t head) {
    return (block * kv.num_heads + head) * kv.block_size + offset;
}

// The group that `line` belongs to, and its words in it.
INLINE char* key_group(const KvCache& kv, int64_t line) {
    return static_cast<char*>(kv.keys) + line / kGroup * kGroup * line_bytes(kv);
}
INLINE char* key_words(const KvCache& kv, int64_t line) { return key_group(kv, line) + line % kGroup * kWordBytes; }

INLINE char* value_line(const KvCache& kv, int64_t line) {
    return static_cast<char*>(kv.values) + line * line_bytes(kv);
}
