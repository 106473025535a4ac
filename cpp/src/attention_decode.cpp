// Shares out the keys of single queries over the threads.
#include <algorithm>

#include "attention_plan.h"
#include "fastmha/runtime.h"
#include "parallel.h"
#include "workspace.h"

namespace fastmha {
namespace {

// At most one query per sequence. Keys are cut into pieces of fixed size; pieces are merged in order, whether
// one thread does them all or each goes to another thread, so the result is the same either way.
class Decode {
 public:
  Decode(const AttentionPlan& plan, const DecodeKernels& kernels)
      : plan_(plan), kernels_(kernels), group_(plan.group()), state_(2 + plan.shared.value_dim) {
    int64_t longest = 0;
    for (int64_t n = 0; n < plan.batch; ++n) longest = std::max(longest, plan.kv_len_of(n));
    pieces_ = std::max<int64_t>(1, (longest + kernels.split - 1) / kernels.split);
  }

  void run() const {
    const int64_t groups = plan_.batch * plan_.kv_heads;
    if (groups == 0) return;
    const double bytes = 4.0 * static_cast<double>(plan_.shared.head_dim + plan_.shared.value_dim) *
                         static_cast<double>(plan_.kv_heads) * keys();
    const double nanoseconds = bytes / kBytesPerNanosecond * (0.5 + 0.5 * static_cast<double>(group_)) +
                               static_cast<double>(plan_.batch * plan_.heads) * kPanelOverheadNanoseconds;
    const bool enough_groups = groups >= int64_t{4} * get_num_threads();
    if (pieces_ == 1 || enough_groups || threads_for(groups * pieces_, nanoseconds) == 1) {
      run_whole(groups, nanoseconds);
    } else {
      run_split(groups, nanoseconds);
    }
  }

 private:
  double keys() const {
    double total = 0;
    for (int64_t n = 0; n < plan_.batch; ++n) total += static_cast<double>(plan_.kv_len_of(n));
    return total;
  }
  size_t heads_bytes() const { return (static_cast<size_t>(group_) * sizeof(AttentionHead) + 63) / 64 * 64; }
  size_t states_floats() const { return static_cast<size_t>(group_ * state_); }

  // A sequence of a ragged batch may have no query at all.
  bool has_query(int64_t group) const { return plan_.q_len_of(group / plan_.kv_heads) == 1; }

  // The heads of a group, built at the start of a thread's scratch.
  AttentionHead* heads_of(int64_t group, char* scratch) const {
    auto* heads = reinterpret_cast<AttentionHead*>(scratch);
    const int64_t n = group / plan_.kv_heads, kv_head = group % plan_.kv_heads;
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

  int64_t pieces_of(const AttentionHead& head) const {
    return std::max<int64_t>(1, (head.kv_len + kernels_.split - 1) / kernels_.split);
  }

  void run_whole(int64_t groups, double nanoseconds) const {
    const int64_t per_task = std::max<int64_t>(
        1, std::min(static_cast<int64_t>(kTaskNanoseconds * static_cast<double>(groups) / nanoseconds),
                    groups / (int64_t{4} * get_num_threads())));
    const int64_t tasks = (groups + per_task - 1) / per_task;
    const int threads = threads_for(tasks, nanoseconds);
    const size_t bytes = heads_bytes() + (2 * states_floats() + kernels_.scratch(group_)) * sizeof(float);
    const Workspace workspace(threads, bytes);
    parallel_for(tasks, threads, [&](int64_t task, int thread) {
      char* scratch = workspace.slice<char>(thread);
      float* total = reinterpret_cast<float*>(scratch + heads_bytes());
      float* piece = total + states_floats();
      float* rest = piece + states_floats();
      for (int64_t group = task * per_task; group < std::min(groups, (task + 1) * per_task); ++group) {
        if (!has_query(group)) continue;
        const AttentionHead* heads = heads_of(group, scratch);
        const DecodeGroup work{heads, group_};
        kernels_.piece(work, 0, total, rest);
        for (int64_t index = 1; index < pieces_of(heads[0]); ++index) {
          kernels_.piece(work, index, piece, rest);
          merge(total, piece);
        }
        finish(heads, total);
      }
    });
  }

  void run_split(int64_t groups, double nanoseconds) const {
    const int threads = threads_for(groups * pieces_, nanoseconds);
    const Workspace states(1, static_cast<size_t>(groups * pieces_) * states_floats() * sizeof(float));
    const Workspace workspace(threads, heads_bytes() + kernels_.scratch(group_) * sizeof(float));
    float* all = states.slice(0);
    const auto state_at = [&](int64_t group, int64_t index) {
      return all + static_cast<size_t>(group * pieces_ + index) * states_floats();
    };
    parallel_for(groups * pieces_, threads, [&](int64_t task, int thread) {
      char* scratch = workspace.slice<char>(thread);
      const int64_t group = task / pieces_, index = task % pieces_;
      const AttentionHead* heads = heads_of(group, scratch);
      if (!has_query(group) || index >= pieces_of(heads[0])) return;
      kernels_.piece({heads, group_}, index, state_at(group, index),
                     reinterpret_cast<float*>(scratch + heads_bytes()));
    });
    for (int64_t group = 0; group < groups; ++group) {
      if (!has_query(group)) continue;
      const AttentionHead* heads = heads_of(group, workspace.slice<char>(0));
      float* total = state_at(group, 0);
      for (int64_t index = 1; index < pieces_of(heads[0]); ++index) merge(total, state_at(group, index));
      finish(heads, total);
    }
  }

  const AttentionPlan& plan_;
  const DecodeKernels& kernels_;
  int64_t group_;
  int64_t state_;  // floats of one head's state
  int64_t pieces_ = 1;
};

}  // namespace

void run_decode(const AttentionPlan& plan, const DecodeKernels& kernels) { Decode(plan, kernels).run(); }

}  // namespace fastmha
