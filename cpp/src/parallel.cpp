// Threads: how many there are to use (settings, affinity, cgroups), when several are worth it, and handing
// out tasks.
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

// CPUs that a file like cpu.max ("max 100000" or "50000 100000") grants, or 0 when it sets no limit.
double quota_in(const std::string& path) {
  std::ifstream file(path);
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return std::atof(quota.c_str()) / period;
}

// Version 1 keeps the two numbers in files of their own; a container sees its own group at the root.
double quota_of_version_1() {
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return 0;
  return quota / period;
}

// The tightest quota of this process's cgroup (version 2) and of those above it, or 0 when there is none.
int cgroup_cpus() {
  std::string group;
  std::ifstream membership("/proc/self/cgroup");
  for (std::string line; std::getline(membership, line);) {
    if (line.rfind("0::", 0) == 0) group = line.substr(3);
  }
  double tightest = quota_of_version_1();
  for (;;) {
    const double cpus = quota_in("/sys/fs/cgroup" + group + "/cpu.max");
    if (cpus > 0 && (tightest == 0 || cpus < tightest)) tightest = cpus;
    const size_t slash = group.find_last_of('/');
    if (slash == std::string::npos) break;
    group.resize(slash);
  }
  return tightest > 0 ? std::max(1, static_cast<int>(tightest + 0.5)) : 0;
}

int usable_cpus() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
  if (const int quota = cgroup_cpus()) cpus = std::min(cpus, quota);
  return std::max(1, cpus);
}

// More threads than this gain nothing, and OpenMP ends the process when the system refuses it a thread.
int max_threads() {
  static const int most = std::max(64, 4 * static_cast<int>(std::thread::hardware_concurrency()));
  return most;
}

// The whole number that a text starts with, if it is a sensible number of threads; else 0.
int threads_in(const char* text, bool list) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  const bool complete = end != text && (*end == '\0' || (list && (*end == ',' || *end == ' ')));
  return complete && value >= 1 && value <= max_threads() ? static_cast<int>(value) : 0;
}

int default_threads() {
  if (const char* own = std::getenv("FASTMHA_NUM_THREADS"); own != nullptr && *own != '\0') {
    const int threads = threads_in(own, false);
    FASTMHA_CHECK(threads > 0, "FASTMHA_NUM_THREADS must be a whole number from 1 to ", max_threads(),
                  ", got '", own, "'");
    return threads;
  }
  // OpenMP's variable may be a list ("4,2") and is not ours to judge: what makes no sense is passed over.
  if (const char* openmp = std::getenv("OMP_NUM_THREADS")) {
    if (const int threads = threads_in(openmp, true)) return threads;
  }
  return usable_cpus();
}

std::atomic<int>& thread_setting() {
  static std::atomic<int> setting{default_threads()};
  return setting;
}

// A pool of OpenMP threads does not survive fork: a child that waits for it hangs. The pool may be another
// library's (PyTorch's), so every child of a fork runs serially.
std::atomic<bool> forked{false};
const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

// A run of consecutive tasks that one thread starts with and others help to finish. Each has a cache line of
// its own: as long as a thread works on its own share, taking a task is an increment that nobody else wants.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};
constexpr int kMaxShares = 64;

}  // namespace

void set_num_threads(int num_threads) {
  FASTMHA_CHECK(num_threads >= 1 && num_threads <= max_threads(),
                "set_num_threads: num_threads must be from 1 to ", max_threads(), ", got ", num_threads);
  thread_setting().store(num_threads, std::memory_order_relaxed);
}

int get_num_threads() { return thread_setting().load(std::memory_order_relaxed); }

int threads_for(int64_t tasks, double nanoseconds) {
#if defined(_OPENMP)
  if (tasks <= 1 || nanoseconds < kSerialNanoseconds) return 1;
  if (forked.load(std::memory_order_relaxed) || omp_in_parallel()) return 1;
  return static_cast<int>(std::min<int64_t>(get_num_threads(), tasks));
#else
  (void)tasks;
  (void)nanoseconds;
  return 1;
#endif
}

void run_tasks(int64_t tasks, int threads, TaskOrder order, TaskFunction function, void* context) {
#if defined(_OPENMP)
  if (threads > 1) {
    Share shares[kMaxShares];
    const int count = order == TaskOrder::kInTurn ? 1 : std::min(threads, kMaxShares);
    for (int i = 0; i < count; ++i) {
      shares[i].next.store(tasks * i / count, std::memory_order_relaxed);
      shares[i].end = tasks * (i + 1) / count;
    }
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
      for (int turn = 0; turn < count; ++turn) {
        Share& share = shares[(thread + turn) % count];
        while (share.next.load(std::memory_order_relaxed) < share.end) {
          const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
          if (task < share.end) function(context, task, thread);
        }
      }
    }
    return;
  }
#else
  (void)threads;
  (void)order;
#endif
  for (int64_t task = 0; task < tasks; ++task) function(context, task, 0);
}

void Team::barrier() {
#if defined(_OPENMP)
#pragma omp barrier
#endif
}

void run_team(int threads, TeamFunction function, void* context) {
  Team::Shares shares;
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      Team team(shares, omp_get_thread_num(), omp_get_num_threads());
      function(context, team);
    }
    return;
  }
#endif
  (void)threads;
  Team team(shares, 0, 1);
  function(context, team);
}

}  // namespace fastmha
