// The frame of products with experts: y = W_e x for the rows that `route` laid together for each expert e.
//
// The experts' matrices lie one after the other as panels of one weight, each from a new panel on. An item is one panel
// of one expert for one block of its rows, so an expert's weights are read once a step, however many rows it has up to
// a block, and experts that nobody was sent to are not read at all. Within an item all is as in linear.h: one reduction
// order, whoever else was sent to the expert.
#pragma once

#include "linear.h"

template <class Format> INLINE void experts(const ExpertsArgs& args, Team& team) {
    const LinearArgs& linear = args.linear;
    const Weight& weight = linear.weight;
    const Routing& routing = args.routing;
    const int64_t panels = (weight.out_size + kPanel - 1) / kPanel, active = *routing.num_active;
    auto num_blocks = [&](int64_t at) { return (routing.begins[at + 1] - routing.begins[at] + kBlockRows - 1) / kBlockRows; };
    int64_t items = 0;
    for (int64_t at = 0; at < active; at++) items += num_blocks(at) * panels;
    team.share(items, [&](int64_t begin, int64_t end) {
        alignas(64) float sums[kBlockRows * kPanel];
        int64_t at = 0, before = 0;  // the active expert of the item, and the items of those before it
        for (int64_t item = begin; item < end; item++) {
            int64_t blocks = num_blocks(at);
            while (item - before >= blocks * panels) {
                before += blocks * panels;
                blocks = num_blocks(++at);
            }
            const int64_t block = (item - before) / panels, panel = (item - before) % panels;
            const int64_t rows = routing.begins[at + 1] - routing.begins[at];
            const int64_t from = block * rows / blocks, count = (block + 1) * rows / blocks - from;
            const int64_t first = routing.begins[at] + from, stored = routing.experts[at] * panels + panel;
            memset(sums, 0, count * kPanel * sizeof(float));
            const int64_t size = weight.in_size, length = Format::chunk_inputs(weight, count);
            for (int64_t k = 0; k < size; k += length) {
                const int64_t stop = std::min(k + length, size);
                Format::accumulate(linear, {stored, k, stop, first, count, sums, stop < size || team.goes_on(items, item)});
            }
            finish(linear, panel, first, count, sums);
        }
    });
}
