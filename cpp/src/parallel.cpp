#include "parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "check.h"
#include "fastmha/runtime.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fastmha {
namespace {

// CPUs granted by the cgroup's quota (v2, then v1), or 0 when there is none.
int cgroup_cpus() {
  double quota = -1, period = 0;
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string first;
  if (v2 >> first >> period) {
    if (first == "max") return 0;
    quota = std::atof(first.c_str());
  } else {
    std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(quota_file >> quota) || !(period_file >> period)) return 0;
  }
  if (quota <= 0 || period <= 0) return 0;
  return std::max(1, static_cast<int>(quota / period + 0.5));
}

int usable_cpus() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
  if (const int quota = cgroup_cpus()) cpus = std::min(cpus, quota);
  return std::max(1, cpus);
}

constexpr int kMaxThreads = 4096;

// The number in an environment variable; 0 when it is not set. OMP_NUM_THREADS may be a list: its first
// number counts.
int threads_from_environment(const char* name, bool list) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  const bool complete = *end == '\0' || (list && *end == ',');
  FASTMHA_CHECK(end != text && complete && value >= 1 && value <= kMaxThreads, name,
                " must be a whole number from 1 to ", kMaxThreads, ", got '", text, "'");
  return static_cast<int>(value);
}

int default_threads() {
  if (const int n = threads_from_environment("FASTMHA_NUM_THREADS", false)) return n;
  if (const int n = threads_from_environment("OMP_NUM_THREADS", true)) return n;
  return usable_cpus();
}

std::atomic<int>& thread_setting() {
  static std::atomic<int> setting{default_threads()};
  return setting;
}

// A pool of OpenMP threads does not survive fork: a child that waits for it hangs.
std::atomic<bool> pool_exists{false};
std::atomic<bool> forked_from_pool{false};

void after_fork_in_child() {
  if (pool_exists.load(std::memory_order_relaxed)) forked_from_pool.store(true, std::memory_order_relaxed);
}

void note_pool() {
  if (pool_exists.load(std::memory_order_relaxed)) return;
  static const int registered = pthread_atfork(nullptr, nullptr, after_fork_in_child);
  (void)registered;
  pool_exists.store(true, std::memory_order_relaxed);
}

}  // namespace

void set_num_threads(int num_threads) {
  FASTMHA_CHECK(num_threads >= 1 && num_threads <= kMaxThreads,
                "set_num_threads: num_threads must be from 1 to ", kMaxThreads, ", got ", num_threads);
  thread_setting().store(num_threads, std::memory_order_relaxed);
}

int get_num_threads() { return thread_setting().load(std::memory_order_relaxed); }

int threads_for(int64_t tasks, double nanoseconds) {
#if defined(_OPENMP)
  if (tasks <= 1 || nanoseconds < kSerialNanoseconds) return 1;
  if (forked_from_pool.load(std::memory_order_relaxed) || omp_in_parallel()) return 1;
  return static_cast<int>(std::min<int64_t>(get_num_threads(), tasks));
#else
  (void)tasks;
  (void)nanoseconds;
  return 1;
#endif
}

void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context) {
#if defined(_OPENMP)
  if (threads > 1) {
    note_pool();
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) function(context, task, omp_get_thread_num());
    return;
  }
#else
  (void)threads;
#endif
  for (int64_t task = 0; task < tasks; ++task) function(context, task, 0);
}

}  // namespace fastmha
