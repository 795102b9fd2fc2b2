// Running a program: a list of kernel calls on fixed buffers, every one a step's T tokens wide.
//
// A model is laid out once as such a list. One call from the host then carries out a step: no allocation, no dispatch
// and no host language between layers, whatever the mix of prompt chunks and single tokens, since the counts are in
// the Step. With `seconds` given, each call's time on thread 0 is added up there (the bench and the profile read it).
#include <algorithm>
#include <chrono>

#include "kernels.h"

namespace {

struct Run {
    const Call* calls;
    int64_t num_calls;
    const Step* step;
    double* seconds;
};

constexpr int64_t kAheadBytes = 256 * 1024;  // of the next weights: what fits the second-level cache beside all else

// The first of the panels in this thread's stretch (linear.h).
void look_ahead(const LinearArgs* args, Team& team) {
    if (!args) {
        team.ahead = team.ahead_end = nullptr;
        return;
    }
    const Weight& weight = args->weight;
    const int64_t panels = (weight.out_size + kPanel - 1) / kPanel;
    const int64_t panel_bytes = weight.in_size * kPanel * (weight.format == kBf16 ? 4 : weight.format == kInt8 ? 2 : 1) / 2;
    const int64_t first = team.stretch(panels, team.rank), end = team.stretch(panels, team.rank + 1);
    team.ahead = static_cast<const char*>(weight.data) + first * panel_bytes;
    team.ahead_end = team.ahead + std::min(kAheadBytes, (end - first) * panel_bytes);
}

void walk(void* context, Team& team) {
    const Run& run = *static_cast<const Run*>(context);
    auto before = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < run.num_calls; i++) {
        if (i == 0 || run.calls[i].ahead != run.calls[i - 1].ahead) look_ahead(run.calls[i].ahead, team);
        run.calls[i].kernel(run.calls[i].args, run.step, &team);
        team.barrier();
        if (run.seconds && team.rank == 0) {
            const auto now = std::chrono::steady_clock::now();
            run.seconds[i] += std::chrono::duration<double>(now - before).count();
            before = now;
        }
    }
}

}  // namespace

extern "C" {

Pool* tm_pool_new(int32_t num_threads) { return new Pool(num_threads); }
void tm_pool_delete(Pool* pool) { delete pool; }

// Returns when all calls are done. One run at a time per pool.
void tm_run(Pool* pool, const Call* calls, int64_t num_calls, const Step* step, double* seconds) {
    Run run{calls, num_calls, step, seconds};
    pool->run(walk, &run);
}

// Sizes of the records, in the order of the host's mirror of them.
int32_t tm_record_sizes(int32_t* sizes, int32_t capacity) {
    const int32_t all[] = {sizeof(Step),        sizeof(Quantized),  sizeof(Weight),     sizeof(EmbeddingArgs),
                           sizeof(RmsNormArgs), sizeof(QuantizeArgs), sizeof(LinearArgs), sizeof(KvCache),
                           sizeof(RopeKvArgs),  sizeof(AttentionArgs), sizeof(ChooseArgs), sizeof(CopyBlocksArgs),
                           sizeof(ProbeArgs),   sizeof(Routing),     sizeof(RouteArgs),  sizeof(ExpertsArgs),
                           sizeof(CombineArgs), sizeof(Call)};
    const int32_t count = sizeof all / sizeof *all;
    for (int32_t i = 0; i < count && i < capacity; i++) sizes[i] = all[i];
    return count;
}
}
