// Shares out the keys of single queries over the threads.
#include <algorithm>
#include <atomic>
#include <vector>

#include "attention_plan.h"
#include "fastmha/runtime.h"
#include "parallel.h"
#include "workspace.h"

namespace fastmha {
namespace {

// Fewer groups (a kv head of a sequence) of equal length than this per thread are cut into pieces: the last group
// that a thread works on alone is then at most an eighth of its share.
constexpr int64_t kGroupsPerThread = 8;

// At most one query per sequence. Keys are cut into pieces of fixed size; pieces are merged in order, whether
// one thread does them all or each goes to another thread, so the result is the same either way.
class Decode {
 public:
  Decode(const AttentionPlan& plan, const DecodeKernels& kernels)
      : plan_(plan), kernels_(kernels), group_(plan.group()), state_(2 + plan.shared.value_dim) {}

  void run() const {
    const int64_t groups = plan_.batch * plan_.kv_heads;
    double keys = 0, longest = 0;
    for (int64_t n = 0; n < plan_.batch; ++n) {
      const double visible = static_cast<double>(range_of(n).keys());
      keys += visible;
      longest = std::max(longest, visible);
    }
    keys *= static_cast<double>(plan_.kv_heads);
    const double bytes = 4.0 * static_cast<double>(plan_.shared.head_dim + plan_.shared.value_dim) * keys;
    const double nanoseconds = bytes / kBytesPerNanosecond * (0.5 + 0.5 * static_cast<double>(group_)) +
                               static_cast<double>(plan_.batch * plan_.heads) * kPanelOverheadNanoseconds;
    const bool even = keys >= longest * static_cast<double>(kGroupsPerThread * get_num_threads());
    if (even || longest <= kernels_.split || threads_for(2, nanoseconds) == 1) {
      run_whole(groups, nanoseconds);
    } else {
      run_split(nanoseconds);
    }
  }

 private:
  // Keys that the query of a sequence may see, as far as position tells.
  struct Range {
    int64_t low, high;
    int64_t keys() const { return std::max<int64_t>(0, high - low); }
  };
  // Pieces with such keys, or one when there are none: it gives the output its zeros.
  struct Pieces {
    int64_t first, count;
  };

  size_t heads_bytes() const { return (static_cast<size_t>(group_) * sizeof(AttentionHead) + 63) / 64 * 64; }
  size_t states_floats() const { return static_cast<size_t>(group_ * state_); }

  // A sequence of a ragged batch may have no query at all.
  bool has_query(int64_t n) const { return plan_.q_len_of(n) == 1; }

  Range range_of(int64_t n) const {
    const int64_t offset = plan_.query_offsets ? plan_.query_offsets[n] : plan_.shared.offset;
    if (!has_query(n)) return {0, 0};
    return {std::max<int64_t>(0, offset - plan_.shared.left),
            std::min(plan_.kv_len_of(n), offset + plan_.shared.right + 1)};
  }

  Pieces pieces_of(int64_t n) const {
    const Range range = range_of(n);
    if (range.keys() == 0) return {0, 1};
    const int64_t first = range.low / kernels_.split;
    return {first, (range.high + kernels_.split - 1) / kernels_.split - first};
  }

  // The heads of a group, built at the start of a thread's scratch.
  AttentionHead* heads_of(int64_t n, int64_t kv_head, char* scratch) const {
    auto* heads = reinterpret_cast<AttentionHead*>(scratch);
    for (int64_t g = 0; g < group_; ++g) heads[g] = plan_.head(n, kv_head * group_ + g);
    return heads;
  }

  void merge(float* total, const float* piece) const {
    for (int64_t g = 0; g < group_; ++g) {
      kernels_.merge(total + g * state_, piece + g * state_, plan_.shared.value_dim);
    }
  }

  void finish(const AttentionHead* heads, const float* total) const {
    for (int64_t g = 0; g < group_; ++g) kernels_.finish(heads[g], total + g * state_);
  }

  // A group is a thread's from its first piece to its output.
  void run_whole(int64_t groups, double nanoseconds) const {
    const int64_t per_task = std::max<int64_t>(
        1, std::min(static_cast<int64_t>(kTaskNanoseconds * static_cast<double>(groups) / nanoseconds),
                    groups / (int64_t{4} * get_num_threads())));
    const int64_t tasks = (groups + per_task - 1) / per_task;
    const int threads = threads_for(tasks, nanoseconds);
    const size_t bytes = heads_bytes() + (2 * states_floats() + kernel_floats()) * sizeof(float);
    const Workspace workspace(threads, bytes);
    parallel_for(tasks, threads, [&](int64_t task, int thread) {
      char* scratch = workspace.slice<char>(thread);
      float* rest = reinterpret_cast<float*>(scratch + heads_bytes());
      float* total = rest + kernel_floats();
      float* piece = total + states_floats();
      for (int64_t group = task * per_task; group < std::min(groups, (task + 1) * per_task); ++group) {
        const int64_t n = group / plan_.kv_heads;
        if (!has_query(n)) continue;
        const AttentionHead* heads = heads_of(n, group % plan_.kv_heads, scratch);
        const DecodeGroup work{heads, group_};
        const Pieces pieces = pieces_of(n);
        kernels_.piece(work, pieces.first, total, rest);
        for (int64_t index = 1; index < pieces.count; ++index) {
          kernels_.piece(work, pieces.first + index, piece, rest);
          merge(total, piece);
        }
        finish(heads, total);
      }
    });
  }

  // A task is one piece; the thread that is done with the last piece of a group merges them all. Their states take
  // at most (queries per key) / 512 of the memory that K and V take.
  void run_split(double nanoseconds) const {
    const int64_t kv_heads = plan_.kv_heads;
    std::vector<int64_t> starts(static_cast<size_t>(plan_.batch) +
                                1);  // pieces of one kv head before sequence n
    for (int64_t n = 0; n < plan_.batch; ++n) {
      starts[n + 1] = starts[n] + (has_query(n) ? pieces_of(n).count : 0);
    }
    const int64_t tasks = starts.back() * kv_heads;
    const int threads = threads_for(tasks, nanoseconds);
    const Workspace workspace(threads, heads_bytes() + kernel_floats() * sizeof(float),
                              static_cast<size_t>(tasks) * states_floats() * sizeof(float));
    float* states = workspace.shared();
    const auto state_of = [&](int64_t task) { return states + static_cast<size_t>(task) * states_floats(); };
    // Pieces yet to do of each group. Counted down once in some microseconds: threads may share a cache line.
    std::vector<std::atomic<int32_t>> left(static_cast<size_t>(plan_.batch * kv_heads));
    for (int64_t n = 0; n < plan_.batch; ++n) {
      for (int64_t h = 0; h < kv_heads; ++h) {
        left[n * kv_heads + h].store(static_cast<int32_t>(starts[n + 1] - starts[n]),
                                     std::memory_order_relaxed);
      }
    }
    parallel_for(tasks, threads, [&](int64_t task, int thread) {
      const int64_t n = std::upper_bound(starts.begin(), starts.end(), task / kv_heads) - starts.begin() - 1;
      const Pieces pieces = pieces_of(n);
      const int64_t within = task - starts[n] * kv_heads;
      const int64_t kv_head = within / pieces.count, index = within % pieces.count;
      char* scratch = workspace.slice<char>(thread);
      const AttentionHead* heads = heads_of(n, kv_head, scratch);
      kernels_.piece({heads, group_}, pieces.first + index, state_of(task),
                     reinterpret_cast<float*>(scratch + heads_bytes()));
      if (left[n * kv_heads + kv_head].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
      float* total = state_of(task - index);
      for (int64_t other = 1; other < pieces.count; ++other) merge(total, state_of(task - index + other));
      finish(heads, total);
    });
  }

  size_t kernel_floats() const { return kernels_.scratch(group_, plan_.shared.head_dim); }

  const AttentionPlan& plan_;
  const DecodeKernels& kernels_;
  int64_t group_;
  int64_t state_;  // floats of one head's state
};

}  // namespace

void run_decode(const AttentionPlan& plan, const DecodeKernels& kernels) { Decode(plan, kernels).run(); }

}  // namespace fastmha
