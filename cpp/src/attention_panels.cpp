// Shares out panels of queries over the threads.
#include <algorithm>
#include <vector>

#include "attention_plan.h"
#include "fastmha/runtime.h"
#include "parallel.h"
#include "workspace.h"

namespace fastmha {
namespace {

// A head whose queries, keys and values are at most this long is fetched from memory while the one before it is
// computed. Longer ones reuse what they read so often that the first read does not matter (1% at 1024 keys of 64),
// and two of them would not fit in a second-level cache of 1 MB.
constexpr int64_t kFetchedFloats = 96 * 1024;

// Fewer keys than this stay in the second-level cache, and reading them where they lie is as fast as copying: 512 keys
// of 128 measured the same within 2%, causal ones 2% slower with a copy.
constexpr int64_t kFewestCopied = 1024;

// Fewer panels than this are not worth a copy of K and V: groups of 8 and of 16 (38.1 and 36.8 ms) say that it costs half of
// a panel's work, reading rows where they lie 4 to 8% of each.
constexpr int64_t kFewestGrouped = 8;

// Whether rows of K and V are a multiple of 4 KiB apart, so that they share a set of the first-level cache. For those
// 2 KiB apart the tiles' own measures suffice: (2048, 8 heads, 64) took 19.1 ms with a copy and 18.8 without.
bool rows_alias(const AttentionPlan& plan) {
  constexpr int64_t kAliasing = 1024;  // floats
  constexpr int64_t kWidest = 256;     // more, and what a group keeps outgrows the second-level cache
  const AttentionHead& shared = plan.shared;
  return shared.head_dim + shared.value_dim <= kWidest && shared.key_stride % kAliasing == 0 &&
         shared.value_stride % kAliasing == 0 && shared.key_stride > shared.head_dim &&
         shared.value_stride > shared.value_dim;
}

// Panels of all sequences, numbered from 0: sequence by sequence, head by head, within a head the last panel
// first (under a causal mask it is the longest, and long tasks should not come last).
class Panels {
 public:
  Panels(const AttentionPlan& plan, int bq) : plan_(plan), bq_(bq) {
    if (plan.cu_seqlens_q == nullptr && plan.left_to_short == nullptr) {
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
        const int64_t h = index / panels;
        AttentionHead head = plan_.head(n, h);
        // The next head of this task, if it has one.
        const bool fetches = left > panels - index % panels && small(n);
        const AttentionHead next = fetches ? next_head(n, h) : AttentionHead();
        for (int64_t p = index % panels; p < panels && left > 0;) {
          const int64_t count = grouped(kernels, n, std::min(panels - p, left));
          const int64_t first = (panels - p - count) * bq_;
          p += count;
          index += count;
          left -= count;
          if (count > 1) {
            kernels.run_group(head, first, static_cast<int>(count), scratch);
            continue;
          }
          if (small(n)) set_upcoming(head, next, first, p - 1, panels);
          kernels.run(head, first, scratch);
        }
      }
    }
  }

 private:
  // How many of `left` panels of a sequence go over one copy of K and V.
  int64_t grouped(const PanelKernels& kernels, int64_t n, int64_t left) const {
    if (!rows_alias(plan_) || plan_.kv_len_of(n) < kFewestCopied || left < kFewestGrouped) return 1;
    return std::min<int64_t>(left, kernels.group);
  }
  int64_t count(int64_t n) const {
    if (plan_.batch == 0) return 0;
    if (plan_.left_to_short && takes_short(plan_, *plan_.left_to_short, n)) return 0;
    return (plan_.q_len_of(n) + bq_ - 1) / bq_;
  }
  int64_t start(int64_t n) const { return starts_.empty() ? n * plan_.heads * count(0) : starts_[n]; }
  int64_t find(int64_t panel) const {
    if (starts_.empty()) return panel / (plan_.heads * count(0));
    return std::upper_bound(starts_.begin(), starts_.end(), panel) - starts_.begin() - 1;
  }

  // Whether a sequence's heads are short enough for the next one to be fetched ahead.
  bool small(int64_t n) const {
    const int64_t dims = plan_.shared.head_dim + plan_.shared.value_dim;
    return plan_.q_len_of(n) * plan_.shared.head_dim + plan_.kv_len_of(n) * dims <= kFetchedFloats;
  }

  AttentionHead next_head(int64_t n, int64_t h) const {
    if (h + 1 < plan_.heads) return plan_.head(n, h + 1);
    for (++n; n < plan_.batch; ++n) {
      if (plan_.q_len_of(n) > 0) return small(n) ? plan_.head(n, 0) : AttentionHead();
    }
    return AttentionHead();
  }

  // Of `length` rows to fetch those that come before panel p of `panels`: as much as its share of the work, of which
  // under a causal mask the first panels (the last queries) have most.
  int64_t done(int64_t length, int64_t p, int64_t panels) const {
    if (plan_.shared.right != 0) return length * p / panels;
    const int64_t left = panels - p;
    return length - length * left * (left + 1) / (panels * (panels + 1));
  }

  // While panel p of `panels` is computed, its rows of the output and its share of the next head are fetched.
  void set_upcoming(AttentionHead& head, const AttentionHead& next, int64_t first, int64_t p,
                    int64_t panels) const {
    const auto share = [&](const float* rows, int64_t stride, int64_t length, int64_t width) {
      const int64_t from = done(length, p, panels), to = done(length, p + 1, panels);
      return UpcomingRows{rows + from * stride, stride, to - from, width};
    };
    head.upcoming[0] = {head.out + first * head.out_stride, head.out_stride,
                        std::min<int64_t>(bq_, head.q_len - first), head.value_dim};
    head.upcoming[1] = share(next.query, next.query_stride, next.q_len, next.head_dim);
    head.upcoming[2] = head.upcoming[3] = UpcomingRows();
    if (next.key == head.key) return;  // the same group
    head.upcoming[2] = share(next.key, next.key_stride, next.kv_len, next.head_dim);
    head.upcoming[3] = share(next.value, next.value_stride, next.kv_len, next.value_dim);
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

// Where tasks begin: long ones first, that run through neighbouring heads and so know what comes next, then ever
// shorter ones, so that threads end together. Each takes a share of what is left, but at least `smallest` panels.
std::vector<int64_t> task_starts(int64_t total, int64_t smallest, int threads) {
  std::vector<int64_t> starts = {0};
  while (starts.back() < total) {
    const int64_t left = total - starts.back();
    const int64_t share = threads == 1 ? left : left / (int64_t{2} * threads);
    starts.push_back(starts.back() + std::min(left, std::max(smallest, share)));
  }
  return starts;
}

}  // namespace

void run_panels(const AttentionPlan& checked, const PanelKernels& kernels) {
  AttentionPlan plan = checked;
  const Panels panels(plan, kernels.bq);
  const int64_t total = panels.total();
  if (total == 0) return;
  const double nanoseconds =
      flops(plan) / kFlopsPerNanosecond + static_cast<double>(total) * kPanelOverheadNanoseconds;
  const int64_t smallest =
      static_cast<int64_t>(kTaskNanoseconds * static_cast<double>(total) / nanoseconds) + 1;
  const int threads = threads_for((total + smallest - 1) / smallest, nanoseconds);
  const std::vector<int64_t> starts = task_starts(total, smallest, threads);
  const auto scratch = rows_alias(plan) ? kernels.group_scratch : kernels.scratch;
  const Workspace workspace(threads, scratch(plan.shared.head_dim, plan.shared.value_dim) * sizeof(float),
                            relative_rows(plan, kernels.bq) * sizeof(float));
  set_relative_rows(plan, kernels.bq, workspace.shared());
  parallel_for(
      static_cast<int64_t>(starts.size()) - 1, threads,
      [&](int64_t task, int thread) {
        panels.run(kernels, starts[task], starts[task + 1], workspace.slice(thread));
      },
      TaskOrder::kInTurn);
}

}  // namespace fastmha
