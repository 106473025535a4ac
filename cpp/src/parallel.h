// parallel_for: the only door to OpenMP.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

namespace fastmha {

// Below this much work on one thread, waking others costs more than it saves. Fork and join of 2 threads with
// GOMP_SPINCOUNT=1000, as the Python package sets it (and with libgomp's default, which spins for 15 ms): hot
// 1.2 us (0.5), after 50 us of serial work 28 us (0.5), after 2 ms 31 us (1.3), after 10 ms idle 63 us (30).
// 20 us in two halves take 11.5 us hot (10.6) and 31 us after 2 ms (10.8).
inline constexpr double kSerialNanoseconds = 20e3;

// Tasks of about this length (by guesses of a core's speed that are low: 1 to 10 us in truth) keep all
// threads busy to the end, and handing them out does not show: it takes 0.1 us each, an atomic increment that
// all threads want.
inline constexpr double kTaskNanoseconds = 10e3;

// Threads worth using for `tasks` independent pieces that take `nanoseconds` in all on one thread. 1 inside
// another parallel region and in the child of a fork (the OpenMP pool, ours or another library's, does not
// survive it).
int threads_for(int64_t tasks, double nanoseconds);

// How tasks are handed out.
enum class TaskOrder {
  // Each thread starts with a run of consecutive tasks of its own and helps the others when it is done.
  // Neighbours in the order of tasks should be neighbours in memory: a thread that walks through it keeps the
  // hardware's prefetching in step (handing out one by one read 134 MB in pieces of 64 KiB at 52 GB/s, runs
  // at 60; 34 MB from L3 at 130 and 168), and call after call it comes to the same data, which may be in its
  // caches and on its NUMA node.
  kRuns,
  // To whoever is free, the first ones first: for tasks of very different length, long ones in front.
  kInTurn,
};

using TaskFunction = void (*)(void* context, int64_t task, int thread);
void run_tasks(int64_t tasks, int threads, TaskOrder order, TaskFunction function, void* context);

// body(task, thread) for every task in [0, tasks), thread in [0, threads). Which thread takes which task is
// not fixed: a result must depend on the task alone. body must not throw and must not allocate.
template <class Body>
void parallel_for(int64_t tasks, int threads, Body&& body, TaskOrder order = TaskOrder::kRuns) {
  using Plain = std::remove_reference_t<Body>;
  run_tasks(
      tasks, threads, order,
      [](void* context, int64_t task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// ---- steps that all threads take together -----------------------------------------------------------------

// The threads of one parallel region, which go through the same steps side by side: a barrier costs 0.3 us, a
// region of its own 1.2 us. Every thread has a Team of its own and calls the same methods in the same order.
class Team {
 public:
  static constexpr int kMostShares = 64;
  // Tasks of a step that were taken from one thread's run of them; on a cache line of its own.
  struct alignas(64) Share {
    std::atomic<int64_t> taken{0};
  };
  // Two steps' shares: those of the step before are made ready for the next one meanwhile.
  struct Shares {
    Share of[2][kMostShares];
  };

  Team(Shares& shares, int thread, int threads) : shares_(shares), thread_(thread), threads_(threads) {}

  int thread() const { return thread_; }
  // body(task) for every task in [0, tasks), in runs as TaskOrder::kRuns has them. Returns when all are done.
  // body must not throw and must not allocate.
  template <class Body>
  void each(int64_t tasks, Body&& body) {
    if (threads_ == 1) {
      for (int64_t task = 0; task < tasks; ++task) body(task);
      return;
    }
    const int count = threads_ < kMostShares ? threads_ : kMostShares;
    Share* const now = shares_.of[step_ & 1];
    if (thread_ < count) shares_.of[~step_ & 1][thread_].taken.store(0, std::memory_order_relaxed);
    ++step_;
    for (int turn = 0; turn < count; ++turn) {
      const int owner = (thread_ + turn) % count;
      const int64_t first = tasks * owner / count, size = tasks * (owner + 1) / count - first;
      std::atomic<int64_t>& taken = now[owner].taken;
      while (taken.load(std::memory_order_relaxed) < size) {
        const int64_t task = taken.fetch_add(1, std::memory_order_relaxed);
        if (task < size) body(first + task);
      }
    }
    barrier();
  }

 private:
  static void barrier();

  Shares& shares_;
  int thread_, threads_;
  unsigned step_ = 0;
};

using TeamFunction = void (*)(void* context, Team& team);
void run_team(int threads, TeamFunction function, void* context);

// body(team) on each of `threads` threads. The same rules as for the tasks of parallel_for.
template <class Body>
void parallel_team(int threads, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_team(
      threads, [](void* context, Team& team) { (*static_cast<Plain*>(context))(team); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fastmha
