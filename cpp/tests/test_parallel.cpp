// parallel_for and the number of threads.
#include "src/parallel.h"

#include <atomic>
#include <thread>

#include "fastmha/runtime.h"
#include "tests/test.h"

using namespace fastmha;
using namespace fastmha::test;

// More threads than there are runs of tasks (64), too: some begin by helping.
TEST(every_task_runs_once) {
  for (TaskOrder order : {TaskOrder::kRuns, TaskOrder::kInTurn}) {
    for (int threads : {1, 2, 3, 7, 64, 65, 100}) {
      for (int64_t tasks : {0, 1, 2, 3, 8, 63, 64, 65, 100, 301}) {
        std::vector<std::atomic<int>> hits(tasks);
        std::atomic<bool> threads_in_range{true};
        parallel_for(
            tasks, threads,
            [&](int64_t task, int thread) {
              ++hits[task];
              if (thread < 0 || thread >= threads) threads_in_range = false;
            },
            order);
        for (int64_t task = 0; task < tasks; ++task) {
          CHECK(hits[task] == 1, "order ", static_cast<int>(order), ": task ", task, " of ", tasks, " on ",
                threads, " threads ran ", hits[task].load(), " times");
        }
        CHECK(threads_in_range, tasks, " tasks on ", threads, " threads");
      }
    }
  }
}

TEST(one_thread_takes_tasks_in_their_order) {
  for (TaskOrder order : {TaskOrder::kRuns, TaskOrder::kInTurn}) {
    std::vector<int64_t> seen;
    parallel_for(10, 1, [&](int64_t task, int) { seen.push_back(task); }, order);
    for (int64_t i = 0; i < 10; ++i) CHECK(seen[i] == i, "task ", seen[i], " in place ", i);
  }
}

TEST(short_work_and_nested_work_stay_on_one_thread) {
  const int before = get_num_threads();
  set_num_threads(4);
  CHECK(threads_for(100, kSerialNanoseconds - 1) == 1, "work too short to share");
  CHECK(threads_for(1, 1e9) == 1, "one task");
  CHECK(threads_for(3, 1e9) == 3, "no more threads than tasks");
  CHECK(threads_for(100, 1e9) == 4, "all threads");
  std::atomic<int> most{0};
  parallel_for(4, 4, [&](int64_t, int) {
    const int inside = threads_for(100, 1e9);
    if (inside > most) most = inside;
  });
  CHECK(most == 1, "inside a parallel region: ", most.load());
  set_num_threads(before);
}

TEST_MAIN()
