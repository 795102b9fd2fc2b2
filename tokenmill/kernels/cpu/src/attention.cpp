// Attention over a paged cache: softmax(scale * q k^T) v for any mix of prompt chunks and single tokens, one call.
//
// Work is cut into items: one row's *query tile* (consecutive tokens; with the query heads that share a key head they
// make up to about a hundred query rows) for one key head. An item walks the keys from the first to the last that any
// of its tokens sees, in *key tiles* of 64 positions at absolute multiples of 64, and keeps for each query row a
// running maximum, sum and output (online softmax, arXiv 1805.02867; tiled, arXiv 2205.14135):
//
//     s = scale * log2(e) * q k^T          over D from the front, one chain
//     m' = max(m, s)
//     p = 2^(s - m')                       0 where the row does not see the position
//     sum = sum * 2^(m - m') + p,   out = out * 2^(m - m') + p v        over positions from the front, one chain
//
// A query row goes through the same operations in the same order whether it is alone or among others: the tiles are
// those of its own position; a tile (or a part of one) that it does not see adds zeros, and that changes nothing but
// the sign of a zero and, where dot_bf16 flushes them, denormals: one more addition of zero at the end makes these
// alike too. So a token's output has the same bits alone, in any chunk, in any company, on any number of threads,
// and with any size of block.
//
// What a row does not see never gets in, not even NaN: scores are replaced, values of positions that no row of the item
// sees are taken as zeros, and where some rows see a position and others do not, values that are not finite make the
// kernel take row by row.
//
// The longest items are handed out first. While one key tile is worked on, the next, of this item or of the one that
// the thread takes after it, is fetched into the second level of cache: reading memory is all that a decode step costs,
// and the first level has too few lines in flight for it.
#include <utility>
#include <vector>

#include "attention_tile.h"

#define NOINLINE __attribute__((noinline))

namespace {

constexpr int64_t kQueryRows = 96;  // of an item, about
constexpr int64_t kColumns = 4 * kLanes;

// Consecutive tokens of one row of the step.
struct QueryTile {
    int64_t row, token, count;
    int64_t position;  // of the first, in the sequence
    int64_t cost;      // key tiles times tokens
};

INLINE int64_t first_seen(int64_t position, int64_t window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}

// An item: a tile's queries of one key head.
struct Work {
    const QueryTile* tile;
    int64_t head;
};

// Every thread makes the same list.
void plan(const AttentionArgs& args, const Step& step, std::vector<QueryTile>& tiles) {
    const int64_t heads_per_key = args.num_heads / args.kv.num_heads;
    const int64_t most = std::max<int64_t>(1, kQueryRows / heads_per_key);
    tiles.clear();
    for (int64_t row = 0; row < step.num_rows; row++) {
        const int64_t end = step.row_begin[row + 1];
        for (int64_t token = step.row_begin[row]; token < end; token += most) {
            const int64_t count = std::min(most, end - token), position = step.positions[token];
            const int64_t keys = position + count - first_seen(position, args.window);
            tiles.push_back({row, token, count, position, (keys + kKeyTile) * (count + 4)});
        }
    }
    std::stable_sort(tiles.begin(), tiles.end(), [](const auto& a, const auto& b) { return a.cost > b.cost; });
}

// Where a key tile lies in the cache. Groups that no row of the item sees are given as their nearest neighbour: they
// are read at most, never used.
struct KeyTile {
    int64_t base;  // position
    const char* keys[kTileGroups];
    const char* values[kTileGroups];
    KeyScales scales;
};

template <class Format> class Item {
  public:
    // (Not inlined, nor is `pack`: the item is thread_local, and every use of a member would look up where it is.)
    // `following`: what this thread does next; its first keys are fetched meanwhile.
    NOINLINE void run(const AttentionArgs& args, const Step& step, Work work, const Work* following) {
        const QueryTile& tile = *work.tile;
        args_ = &args;
        step_ = &step;
        tile_ = &tile;
        head_ = work.head;
        size_ = args.kv.head_dim;
        width_ = (size_ + 31) / 32 * 32;
        per_key_ = args.num_heads / args.kv.num_heads;
        rows_ = tile.count * per_key_;
        first_ = first_seen(tile.position, args.window);
        last_ = tile.position + tile.count - 1;
        prepare();
        KeyTile now = locate(work, first_ / kKeyTile * kKeyTile), next;
        if (!fetched_) fetch(now);
        load_queries();
        for (;; now = next) {
            const bool more = now.base + kKeyTile <= last_;
            next = now;
            if (more) {
                next = locate(work, now.base + kKeyTile);
            } else if (following) {
                next = locate(*following, first_seen(following->tile->position, args.window) / kKeyTile * kKeyTile);
                if (now.base + kKeyTile - 1 > last_) fetch(next);  // too little to do to fetch it on the way
            }
            attend(now, next);
            if (!more) break;
        }
        fetched_ = following;
        finish();
    }

  private:
    static constexpr int kRows = Format::kRows;
    struct Chunk {  // query rows that go through the registers together; even shares
        int64_t row, count;
    };
    using Query = typename Format::Query;
    using Weights = typename Format::Weights;

    int64_t query_bytes() const { return size_ * Format::kNumberBytes * (kWordRows / kRows); }

    void prepare() {
        if (int64_t(queries_.size()) < rows_) queries_.resize(rows_), states_.resize(rows_);
        words_.resize(std::max<size_t>(words_.size(), (rows_ * query_bytes() + 63) / 64));
        out_.resize(std::max<size_t>(out_.size(), rows_ * width_ / kLanes));
        packed_.resize(std::max<size_t>(packed_.size(), kKeyTile * width_ * Format::kNumberBytes / 64));
        zeros_.resize(std::max<size_t>(zeros_.size(), width_ / kLanes));
        for (int64_t row = 0; row < rows_; row++) {
            const int64_t position = tile_->position + row / per_key_;
            states_[row] = {f32x16{}, kNothing, first_seen(position, args_->window), position};
        }
        chunks_.clear();
        for (int64_t row = 0, left = (rows_ + kRows - 1) / kRows; left; row += chunks_.back().count, left--)
            chunks_.push_back({row, (rows_ - row + left - 1) / left});
        for (int64_t i = 0; i < rows_ * width_ / kLanes; i++) out_[i] = f32x16{};
    }

    KeyTile locate(Work work, int64_t base) const {
        const KvCache& kv = args_->kv;
        const int64_t first = first_seen(work.tile->position, args_->window) / kGroup * kGroup;
        const int64_t last = (work.tile->position + work.tile->count - 1) / kGroup * kGroup;
        const uint32_t block_size = uint32_t(kv.block_size);  // dividing 64 bits takes twice as long
        KeyTile tile;
        tile.base = base;
        for (int j = 0; j < kTileGroups; j++) {
            const int64_t near = std::clamp(base + j * kGroup, first, last);
            const uint32_t at = uint32_t(near);
            const int64_t block = step_->tables[work.tile->row * step_->table_stride + at / block_size];
            const int64_t line = line_index(kv, block, at % block_size, work.head);
            tile.keys[j] = key_group(kv, line);
            tile.values[j] = value_line(kv, line);
            tile.scales.keys[j] = kv.key_scales + line;
            tile.scales.values[j] = kv.value_scales + line;
        }
        return tile;
    }

    void fetch(const KeyTile& tile) const {
        const int64_t bytes = kGroup * size_ * Format::kNumberBytes;
        for (int j = 0; j < kTileGroups; j++)
            for (int64_t b = 0; b < bytes; b += 64) prefetch_l2(tile.keys[j] + b), prefetch_l2(tile.values[j] + b);
    }

    void load_queries() {
        char* words = reinterpret_cast<char*>(words_.data());
        for (const auto [row, count] : chunks_) {
            const int64_t digits = kWordRows / kRows;
            for (int64_t i = 0; i < count; i++) {
                const int64_t token = tile_->token + (row + i) / per_key_;
                const int64_t head = head_ * per_key_ + (row + i) % per_key_;
                const bf16* q = args_->q + (token * args_->num_heads + head) * size_;
                char* begin = words + i * digits * kWordBytes;
                queries_[row + i] = Format::load_query(q, size_, begin, count * digits * kWordBytes);
            }
            words += count * query_bytes();
        }
    }

    // The tile's values of positions first ... last, turned into words; others as zeros. True if one is not finite.
    template <bool kProbe>
    NOINLINE bool pack(const KeyTile& tile, int64_t positions, int64_t first, int64_t last, const char* const* ahead) {
        const int64_t size = size_, line_size = size * Format::kNumberBytes;
        char* out = reinterpret_cast<char*>(packed_.data());
        const char* zeros = reinterpret_cast<const char*>(zeros_.data());
        f32x16 probe = {};
        for (int64_t p = 0; p < positions; p += Format::kPositions) {
            const char* lines[Format::kPositions];
            for (int64_t i = 0; i < Format::kPositions; i++) {
                const bool seen = tile.base + p + i >= first && tile.base + p + i <= last;
                lines[i] = seen ? tile.values[(p + i) / kGroup] + (p + i) % kGroup * line_size : zeros;
            }
            const char* soon = ahead ? ahead[p / kGroup] + p % kGroup * line_size : nullptr;
            if (soon)
                for (int64_t b = 0; b < Format::kPositions * line_size; b += 64) prefetch_l2(soon + b);
            int64_t d = 0;
            for (; d + 32 <= size; d += 32, out += 2 * kStepBytes) {
                Format::template pack<32, kProbe>(lines, out, probe);
                for (auto& line : lines) line += 32 * Format::kNumberBytes;
            }
            if (d < size) {
                Format::template pack<16, kProbe>(lines, out, probe);
                out += 2 * kStepBytes;
            }
        }
        return kProbe && sum(probe) != 0.0f;  // NaN, or 0
    }

    void attend(const KeyTile& now, const KeyTile& next) {
        const int64_t end = std::min(now.base + kKeyTile - 1, last_);
        const int64_t positions = (end - now.base) / kGroup * kGroup + kGroup;
        // Does a row see less of this tile than the others? Then their values must not be able to hurt it.
        const bool ragged = tile_->position < end || first_seen(last_, args_->window) > std::max(now.base, first_);
        const bool poisoned = ragged ? pack<true>(now, positions, first_, last_, next.values)
                                     : pack<false>(now, positions, first_, last_, next.values);
        const char* words = reinterpret_cast<const char*>(words_.data());
        const char* const* ahead = next.keys;
        for (const auto [row, count] : chunks_) {
            const int64_t top = states_[row + count - 1].last, bottom = states_[row].first;
            if (top >= now.base && bottom < now.base + kKeyTile) {
                const int64_t seen = std::min<int64_t>((top - now.base) / kGroup + 1, kTileGroups);
                attend_rows(now, row, count, seen, words, ahead, poisoned);
                ahead = nullptr;
            }
            words += count * query_bytes();
        }
    }

    void attend_rows(const KeyTile& tile, int64_t row, int64_t count, int64_t groups, const char* words,
                     const char* const* ahead, bool poisoned) {
        f32x16 s[kRows][kTileGroups];
        float fade[kRows];
        float* out[kRows];
        Weights weights;
        kScores[count - 1][groups - 1](*this, tile, row, words, ahead, s);
        for (int64_t i = 0; i < count; i++) {
            RowState& state = states_[row + i];
            const Sight sight = {state.first - tile.base, state.last - tile.base};
            fade[i] = soften(s[i], sight, state);
            Format::weigh(s[i], sight, tile.scales, state, weights, int(i));
            out[i] = reinterpret_cast<float*>(out_.data()) + (row + i) * width_;
        }
        if (!poisoned) {
            kAccumulate[count - 1](*this, weights, fade, groups * kGroup, out, ahead);
            return;
        }
        for (int64_t i = 0; i < count; i++) {  // each row with values that it sees itself
            const RowState& state = states_[row + i];
            pack<false>(tile, groups * kGroup, state.first, state.last, nullptr);
            Weights alone;
            alone.take(weights, int(i));
            kAccumulate[0](*this, alone, fade + i, groups * kGroup, out + i, nullptr);
        }
        pack<false>(tile, kKeyTile, first_, last_, nullptr);
    }

    void finish() {
        for (int64_t row = 0; row < rows_; row++) {
            const f32x16 share = splat(1.0f / sum(states_[row].sum));
            const int64_t token = tile_->token + row / per_key_, head = head_ * per_key_ + row % per_key_;
            bf16* out = args_->out + (token * args_->num_heads + head) * size_;
            for (int64_t d = 0; d < size_; d += kLanes) {
                const f32x16 total = dot_bf16(out_[(row * width_ + d) / kLanes], i32x16{}, i32x16{});
                store_bf16(out + d, total * share);
            }
        }
    }

    // The products, for every number of rows and groups.
    using ScoresFunction = void (*)(Item&, const KeyTile&, int64_t row, const char* words, const char* const* ahead,
                                    f32x16 (*)[kTileGroups]);
    using AccumulateFunction = void (*)(Item&, const Weights&, const float* fade, int64_t positions, float* const* out,
                                        const char* const* ahead);

    template <int kCount, int kGroups>
    static void scores(Item& item, const KeyTile& tile, int64_t row, const char* words, const char* const* ahead,
                       f32x16 (*out)[kTileGroups]) {
        const float scale = item.args_->scale * 1.44269504f;
        Format::template scores<kCount, kGroups>(words, item.queries_.data() + row, tile.keys, item.size_, tile.scales,
                                                 scale, ahead, out);
    }
    template <int kCount>
    static void accumulate(Item& item, const Weights& weights, const float* fade, int64_t positions, float* const* out,
                           const char* const* ahead) {
        const int64_t step = item.width_ * Format::kPositions * Format::kNumberBytes;
        const char* values = reinterpret_cast<const char*>(item.packed_.data());
        float* columns[kCount];
        for (int i = 0; i < kCount; i++) columns[i] = out[i];
        const char* rest[2] = {ahead ? ahead[2] : nullptr, ahead ? ahead[3] : nullptr};
        const char* const* soon = ahead ? rest : nullptr;
        for (int64_t d = 0; d < item.width_; d += kColumns) {
            if (d + kColumns <= item.width_)
                Format::template accumulate<kCount, 4>(weights, fade, values, step, positions, columns, soon);
            else
                Format::template accumulate<kCount, 2>(weights, fade, values, step, positions, columns, soon);
            values += kColumns * kWordBytes;
            for (auto& column : columns) column += kColumns;
            for (auto& group : rest) group += positions / Format::kPositions * kStepBytes;
        }
    }
    struct ScoresTable {
        ScoresFunction of[kRows][kTileGroups];
        template <int... kCount> constexpr ScoresTable(std::integer_sequence<int, kCount...>)
            : of{{scores<kCount + 1, 1>, scores<kCount + 1, 2>, scores<kCount + 1, 3>, scores<kCount + 1, 4>}...} {}
        const ScoresFunction* operator[](int64_t i) const { return of[i]; }
    };
    struct AccumulateTable {
        AccumulateFunction of[kRows];
        template <int... kCount> constexpr AccumulateTable(std::integer_sequence<int, kCount...>)
            : of{accumulate<kCount + 1>...} {}
        AccumulateFunction operator[](int64_t i) const { return of[i]; }
    };
    static inline const ScoresTable kScores{std::make_integer_sequence<int, kRows>()};
    static inline const AccumulateTable kAccumulate{std::make_integer_sequence<int, kRows>()};

    const AttentionArgs* args_;
    const Step* step_;
    const QueryTile* tile_;
    int64_t head_, size_, width_, per_key_, rows_;
    int64_t first_, last_;  // positions that some row sees
    bool fetched_ = false;  // the first keys of what comes next are on their way
    std::vector<Query> queries_;
    std::vector<RowState> states_;
    std::vector<Chunk> chunks_;
    std::vector<i32x16> words_;   // of queries, chunk by chunk, step by step
    std::vector<f32x16> out_;     // [rows, width]
    std::vector<i32x16> packed_;  // the key tile's values, as words
    std::vector<f32x16> zeros_;
};

template <class Format> void attend(const AttentionArgs& args, const Step& step, Team& team) {
    static thread_local Item<Format> item;  // keeps its memory from call to call
    static thread_local std::vector<QueryTile> tiles;
    plan(args, step, tiles);
    const int64_t heads = args.kv.num_heads;
    team.take_turns(int64_t(tiles.size()) * heads, [&](int64_t i, int64_t following) {
        const Work next = {following < 0 ? nullptr : &tiles[following / heads], following % heads};
        item.run(args, step, {&tiles[i / heads], i % heads}, next.tile ? &next : nullptr);
    });
}

}  // namespace

KERNEL(attention, AttentionArgs) {
    if (args->kv.format == kInt8)
        attend<Int8Tile>(*args, *step, *team);
    else
        attend<Bf16Tile>(*args, *step, *team);
}
