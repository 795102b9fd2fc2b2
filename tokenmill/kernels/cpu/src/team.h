// The one pool of threads that all kernels run on, and how a kernel shares its work.
//
// A step is one task for the pool: every thread walks the same list of kernel calls, and after each call all meet at a
// barrier. Waiting there is spinning (a call takes microseconds; a sleep would take longer), with a yield now and then
// for machines whose cores are wanted by others. Between steps the threads sleep.
//
// A kernel cuts its work into items whose results do not depend on who computes them. Items lie in one stretch per
// thread; a thread claims those of its own from front to back, so that what it reads is one run of memory, and when
// they are gone helps the others with theirs: one that was held up does less. The barrier's last arrival resets the
// counters for the next call: between two `share` in one kernel there must be a barrier.
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
    const char* ahead = nullptr;  // memory up to `ahead_end` will be wanted soon, and is fetched while waiting
    const char* ahead_end = nullptr;

    // Call body(begin, end) for runs of `grain` items until all of 0 ... count - 1 are taken by somebody.
    template <class Body> INLINE void share(int64_t count, int64_t grain, Body body);
    // `grain` so that each thread comes several times where there is enough to do.
    template <class Body> INLINE void share(int64_t count, Body body) {
        const int64_t grain = count / (size * 8);
        share(count, grain > 1 ? grain : 1, body);
    }
    // Call body(item, following) for items in their order, each taken by who is free; `following` is the one that this
    // thread takes next, -1 if there is none.
    template <class Body> INLINE void take_turns(int64_t count, Body body);
    // The first of the items that lie in a thread's stretch.
    int64_t stretch(int64_t count, int of) const { return count * of / size; }
    // Whether this thread's stretch of `count` items goes on after `item`.
    bool goes_on(int64_t count, int64_t item) const { return item + 1 < count && item + 1 != stretch(count, rank + 1); }
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
    struct alignas(64) Counter {
        std::atomic<int64_t> taken{0};  // of a thread's stretch of the present call's items
    };
    std::vector<Counter> counters_;
};

template <class Body> INLINE void Team::share(int64_t count, int64_t grain, Body body) {
    if (size == 1 || count <= grain) {  // nothing to share: the first to be here would be as good as any
        if (rank == 0 && count > 0) body(int64_t{0}, count);
        return;
    }
    for (int turn = 0; turn < size; turn++) {
        const int of = rank + turn < size ? rank + turn : rank + turn - size;
        const int64_t first = stretch(count, of), end = stretch(count, of + 1);
        for (;;) {
            const int64_t begin = first + pool.counters_[of].taken.fetch_add(grain, std::memory_order_relaxed);
            if (begin >= end) break;
            body(begin, begin + grain < end ? begin + grain : end);
        }
    }
}

template <class Body> INLINE void Team::take_turns(int64_t count, Body body) {
    auto take = [&] { return pool.counters_[0].taken.fetch_add(1, std::memory_order_relaxed); };
    for (int64_t item = take(); item < count;) {
        const int64_t following = take();
        body(item, following < count ? following : -1);
        item = following;
    }
}
