// parallel_for: the only door to OpenMP.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastmha {

// Below this much work on one thread, waking others costs more than it saves: a hot fork and join takes about
// 1 us, one after a millisecond of serial work 4 us and more.
inline constexpr double kSerialNanoseconds = 20e3;

// Threads worth using for `tasks` independent pieces that take `nanoseconds` in all on one thread. 1 inside another
// parallel region and in the child of a fork (the OpenMP pool, ours or another library's, does not survive it).
int threads_for(int64_t tasks, double nanoseconds);

using TaskFunction = void (*)(void* context, int64_t task, int thread);
void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context);
void run_ranges(int64_t tasks, int threads, TaskFunction function, void* context);

// body(task, thread) for every task in [0, tasks), thread in [0, threads). Which thread takes which task is
// not fixed: a result must depend on the task alone. body must not throw and must not allocate.
template <class Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_tasks(
      tasks, threads,
      [](void* context, int64_t task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// The same, but thread t of n begins with tasks [t * tasks / n, (t + 1) * tasks / n), in order, and helps the others
// when it is done. For tasks that read a weight once, from front to back: what a core has in its caches and on its
// NUMA node since the last call is what it reads again, and the hardware prefetcher follows from task to task (9 MB in
// L3: 4 to 9% faster than tasks taken in turn).
template <class Body>
void parallel_for_ranges(int64_t tasks, int threads, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_ranges(
      tasks, threads,
      [](void* context, int64_t task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fastmha
