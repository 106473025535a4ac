// Shares out panels of queries over the threads.
#include <algorithm>
#include <vector>

#include "attention_plan.h"
#include "fastmha/runtime.h"
#include "parallel.h"
#include "workspace.h"

namespace fastmha {
namespace {

// Panels of all sequences, numbered from 0: sequence by sequence, head by head, within a head the last panel
// first (under a causal mask it is the longest, and long tasks should not come last).
class Panels {
 public:
  Panels(const AttentionPlan& plan, int bq) : plan_(plan), bq_(bq) {
    if (plan.cu_seqlens_q == nullptr) {
      total_ = plan.batch * plan.heads * count(0);
      return;
    }
    starts_.resize(static_cast<size_t>(plan.batch) + 1);
    for (int64_t n = 0; n < plan.batch; ++n) starts_[n + 1] = starts_[n] + plan.heads * count(n);
    total_ = starts_.back();
  }

  int64_t total() const { return total_; }

  void run(const PanelKernels& kernels, int64_t from, int64_t to, float* scratch) const {
    int64_t n = find(from);
    int64_t index = from - start(n);
    for (int64_t left = to - from; left > 0; ++n, index = 0) {
      const int64_t panels = count(n);
      for (; index < plan_.heads * panels && left > 0;) {
        const AttentionHead head = plan_.head(n, index / panels);
        for (int64_t p = index % panels; p < panels && left > 0; ++p, ++index, --left) {
          kernels.run(head, (panels - 1 - p) * bq_, scratch);
        }
      }
    }
  }

 private:
  int64_t count(int64_t n) const { return plan_.batch == 0 ? 0 : (plan_.q_len_of(n) + bq_ - 1) / bq_; }
  int64_t start(int64_t n) const { return starts_.empty() ? n * plan_.heads * count(0) : starts_[n]; }
  int64_t find(int64_t panel) const {
    if (starts_.empty()) return panel / (plan_.heads * count(0));
    return std::upper_bound(starts_.begin(), starts_.end(), panel) - starts_.begin() - 1;
  }

  const AttentionPlan& plan_;
  int64_t bq_;
  int64_t total_ = 0;
  std::vector<int64_t> starts_;  // ragged only
};

// Multiply-adds twice, of the visible part as far as causal order and key lengths tell.
double flops(const AttentionPlan& plan) {
  double pairs = 0;
  for (int64_t n = 0; n < plan.batch; ++n) {
    pairs += static_cast<double>(plan.q_len_of(n)) * static_cast<double>(plan.kv_len_of(n));
  }
  const double per_pair = 2.0 * static_cast<double>(plan.shared.head_dim + plan.shared.value_dim) + 20.0;
  return pairs * per_pair * static_cast<double>(plan.heads) * (plan.shared.right == 0 ? 0.6 : 1.0);
}

}  // namespace

void run_panels(const AttentionPlan& plan, const PanelKernels& kernels) {
  const Panels panels(plan, kernels.bq);
  if (panels.total() == 0) return;
  const double nanoseconds =
      flops(plan) / kFlopsPerNanosecond + static_cast<double>(panels.total()) * kPanelOverheadNanoseconds;
  const int64_t total = panels.total();
  int64_t per_task = static_cast<int64_t>(kTaskNanoseconds * static_cast<double>(total) / nanoseconds) + 1;
  const int64_t even_share = total / (int64_t{4} * get_num_threads()) + 1;
  per_task = std::min(per_task, even_share);
  const int64_t tasks = (total + per_task - 1) / per_task;
  const int threads = threads_for(tasks, nanoseconds);
  const Workspace workspace(threads,
                            kernels.scratch(plan.shared.head_dim, plan.shared.value_dim) * sizeof(float));
  parallel_for(tasks, threads, [&](int64_t task, int thread) {
    panels.run(kernels, task * per_task, std::min(total, (task + 1) * per_task), workspace.slice(thread));
  });
}

}  // namespace fastmha
