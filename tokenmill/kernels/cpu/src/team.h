// The one pool of threads that all kernels run on, and how a kernel shares its work.
//
// A step is one task for the pool: every thread walks the same list of kernel calls, and after each call all meet at a
// barrier. Waiting there is spinning (a call takes microseconds; a sleep would take longer), with a yield now and then
// for machines whose cores are wanted by others. Between steps the threads sleep.
//
// A kernel cuts its work into items whose results do not depend on who computes them; threads claim runs of items from
// a counter, so that one that was held up does less. The barrier's last arrival resets the counter for the next call:
// between two `share` in one kernel there must be a barrier.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "simd.h"

class Pool;

// One thread's view while a task runs.
struct Team {
    Pool& pool;
    int rank;  // 0 ... size - 1
    int size;

    // Call body(begin, end) for runs of `grain` items until all of 0 ... count - 1 are taken by somebody.
    template <class Body> INLINE void share(int64_t count, int64_t grain, Body body);
    // `grain` so that each thread comes several times where there is enough to do.
    template <class Body> INLINE void share(int64_t count, Body body) {
        const int64_t grain = count / (size * 8);
        share(count, grain > 1 ? grain : 1, body);
    }
    void barrier();
};

class Pool {
  public:
    explicit Pool(int size);
    ~Pool();
    int size() const { return size_; }

    // Run task(context, team) on every thread; the caller is one of them and returns when all are done.
    void run(void (*task)(void* context, Team& team), void* context);

  private:
    friend struct Team;
    void work(int rank);

    const int size_;
    std::vector<std::thread> threads_;
    void (*task_)(void*, Team&) = nullptr;
    void* context_ = nullptr;
    bool stopping_ = false;
    alignas(64) std::atomic<uint32_t> started_{0};  // counts tasks; sleepers wait for it to move
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};  // counts barriers
    alignas(64) std::atomic<int64_t> next_{0};    // first item of the present call that nobody has taken
};

template <class Body> INLINE void Team::share(int64_t count, int64_t grain, Body body) {
    if (size == 1 || count <= grain) {  // nothing to share: the first to be here would be as good as any
        if (rank == 0 && count > 0) body(int64_t{0}, count);
        return;
    }
    for (;;) {
        const int64_t begin = pool.next_.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= count) return;
        body(begin, begin + grain < count ? begin + grain : count);
    }
}
