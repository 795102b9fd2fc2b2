#include "team.h"

#include <chrono>

namespace {

constexpr int kSpinsBeforeYield = 4096;
constexpr auto kSpinBetweenSteps = std::chrono::microseconds(50);

INLINE void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

Pool::Pool(int size) : size_(size < 1 ? 1 : size), counters_(size_) {
    for (int rank = 1; rank < size_; rank++) threads_.emplace_back([this, rank] { work(rank); });
}

Pool::~Pool() {
    stopping_ = true;
    started_.fetch_add(1, std::memory_order_release);
    started_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Pool::run(void (*task)(void*, Team&), void* context) {
    task_ = task;
    context_ = context;
    if (size_ > 1) {
        started_.fetch_add(1, std::memory_order_release);
        started_.notify_all();
    }
    Team team{*this, 0, size_, nullptr, nullptr};
    task(context, team);
    team.barrier();
}

void Pool::work(int rank) {
    uint32_t seen = 0;
    for (;;) {
        const auto until = std::chrono::steady_clock::now() + kSpinBetweenSteps;
        while (started_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < until) relax();
        started_.wait(seen, std::memory_order_acquire);
        seen = started_.load(std::memory_order_acquire);
        if (stopping_) return;
        Team team{*this, rank, size_, nullptr, nullptr};
        task_(context_, team);
        team.barrier();
    }
}

void Team::barrier() {
    if (size == 1) {
        pool.counters_[0].taken.store(0, std::memory_order_relaxed);
        return;
    }
    const uint32_t phase = pool.phase_.load(std::memory_order_relaxed);
    if (pool.arrived_.fetch_add(1, std::memory_order_acq_rel) == uint32_t(size - 1)) {
        for (auto& counter : pool.counters_) counter.taken.store(0, std::memory_order_relaxed);
        pool.arrived_.store(0, std::memory_order_relaxed);
        pool.phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; pool.phase_.load(std::memory_order_acquire) == phase; spins++) {
        if (ahead < ahead_end) {
            prefetch_l2(ahead);
            ahead += 64;
        } else if (spins < kSpinsBeforeYield)
            relax();
        else
            std::this_thread::yield();
    }
}
