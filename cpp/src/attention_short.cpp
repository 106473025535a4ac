// Shares out short sequences over the threads, a group of heads at a time.
#include <algorithm>

#include "attention_plan.h"
#include "fastmha/runtime.h"
#include "parallel.h"
#include "workspace.h"

namespace fastmha {
namespace {

// Time of a head on one core, within a tenth from 2 x 2 (35 ns) over 5 x 5 (75) to 14 x 14 (380) of 64 + 64 features.
constexpr double kHeadNanoseconds = 27.0;
constexpr double kPairNanoseconds = 0.0142;  // and feature of a key and its value
// A call that moves more than this leaves nothing in a cache for the next operation to find: its output goes past the
// caches (which saves reading it first) and its input is fetched ahead. 1,024 x 8 x 5 x 64 (42 MB): 0.56 ms, with the
// fetches alone 0.78, with neither 1.58. 128 x 8 x 5 x 64 (5 MB) took 63 us with the fetches and 57 without.
constexpr double kStreamFromBytes = 24e6;

// A group costs as much as this many heads of panels, however few heads it has: 0.6 us against 0.25.
constexpr int64_t kFewestHeads = 3;

// Where the arrays of a head begin.
struct Place {
  const float *query, *key, *value, *relative;
  float *out, *weights, *lse;
};

// The heads of all short sequences in a range of heads, in order. The first of a sequence is found by the plan, the
// others by their strides: one head takes 75 ns in all.
class Heads {
 public:
  Heads(const AttentionPlan& plan, const ShortKernels& kernels, bool stream, int64_t first, int64_t last)
      : plan_(plan), kernels_(kernels), stream_(stream), left_(last - first), n_(first / plan.heads) {
    enter(first % plan.heads);
  }

  // The next heads that share their sizes, as many as fill a group; none at the end.
  void fill(HeadGroup& group) {
    group.count = 0;
    if (left_ == 0) return;
    // Field by field from the plan, not from a head just written: reading back wide what was written narrow stalls.
    group.shared = plan_.shared;
    group.shared.q_len = q_len_;
    group.shared.kv_len = kv_len_;
    group.shared.offset = offset_;
    if (place_.weights) {  // ragged weights are not in the plan's head
      group.shared.weights = place_.weights;
      group.shared.weights_stride = weights_stride_;
    }
    group.stream = stream_;
    do {
      group.query[group.count] = place_.query;
      group.key[group.count] = place_.key;
      group.value[group.count] = place_.value;
      group.relative[group.count] = place_.relative;
      group.out[group.count] = place_.out;
      group.weights[group.count] = place_.weights;
      group.lse[group.count] = place_.lse;
      ++group.count;
      step();
    } while (left_ > 0 && group.count < kernels_.group && q_len_ == group.shared.q_len &&
             kv_len_ == group.shared.kv_len && offset_ == group.shared.offset);
  }

 private:
  // Head h of sequence n_, or the first of the next short sequence.
  void enter(int64_t h) {
    // One without queries has nothing to write, and the kernel counts on a row.
    while (left_ > 0 && (plan_.q_len_of(n_) == 0 || !takes_short(plan_, kernels_, n_))) {
      left_ -= std::min(left_, plan_.heads - h);
      h = 0;
      ++n_;
    }
    if (left_ == 0) return;
    const AttentionHead head = plan_.head(n_, h);
    place_ = {head.query, head.key, head.value, head.relative.by_key, head.out, head.weights, head.lse};
    q_len_ = head.q_len;
    kv_len_ = head.kv_len;
    offset_ = head.offset;
    weights_stride_ = head.weights_stride;
    weights_step_ = plan_.varlen_weights ? q_len_ * kv_len_ : plan_.weights_head_stride;
    to_next_sequence_ = plan_.heads - h;
    to_next_kv_head_ = plan_.group() - h % plan_.group();
  }

  void step() {
    --left_;
    if (--to_next_sequence_ == 0) {
      ++n_;
      enter(0);
      return;
    }
    place_.query += plan_.query.head;
    if (place_.relative) place_.relative += plan_.relative_head_stride;
    place_.out += plan_.out.head;
    if (--to_next_kv_head_ == 0) {
      to_next_kv_head_ = plan_.group();
      place_.key += plan_.key.head;
      place_.value += plan_.value.head;
    }
    if (place_.weights) place_.weights += weights_step_;
    if (place_.lse) place_.lse += plan_.lse_head_stride;
  }

  const AttentionPlan& plan_;
  const ShortKernels& kernels_;
  bool stream_;
  int64_t left_, n_;
  int64_t to_next_sequence_ = 0, to_next_kv_head_ = 0;
  int64_t q_len_ = 0, kv_len_ = 0, offset_ = 0, weights_stride_ = 0, weights_step_ = 0;
  Place place_{};
};

// What all short sequences move and take.
struct Load {
  double bytes = 0, nanoseconds = 0;

  Load(const AttentionPlan& plan, const ShortKernels& kernels) {
    const double heads = static_cast<double>(plan.heads), kv_heads = static_cast<double>(plan.kv_heads);
    const double features = static_cast<double>(plan.shared.head_dim + plan.shared.value_dim);
    for (int64_t n = 0; n < plan.batch; ++n) {
      if (!takes_short(plan, kernels, n)) continue;
      const double queries = static_cast<double>(plan.q_len_of(n)),
                   keys = static_cast<double>(plan.kv_len_of(n));
      bytes += 4.0 * features * (queries * heads + keys * kv_heads);
      nanoseconds += heads * (kHeadNanoseconds + kPairNanoseconds * queries * keys * features);
    }
  }
};

}  // namespace

bool takes_short(const AttentionPlan& plan, const ShortKernels& kernels, int64_t n) {
  // Heads that are sure to fill lanes together: those of a sequence, or all where lengths are the same.
  const bool alike = !plan.cu_seqlens_q && !plan.key_lengths && !plan.query_offsets;
  return (alike ? plan.batch : 1) * plan.heads >= kFewestHeads && plan.q_len_of(n) <= kernels.max_queries &&
         plan.kv_len_of(n) <= kernels.max_keys && plan.shared.mask_kind == MaskKind::kNone &&
         plan.shared.softcap == 0 && plan.slopes == nullptr;
}

void run_short_here(const AttentionPlan& plan, const ShortKernels& kernels, int64_t first, int64_t last,
                    bool stream, float* scratch) {
  Heads heads(plan, kernels, stream, first, last);
  HeadGroup groups[2];
  heads.fill(groups[0]);
  for (int at = 0; groups[at].count > 0; at = 1 - at) {
    heads.fill(groups[1 - at]);
    kernels.run(groups[at], stream ? &groups[1 - at] : nullptr, scratch);
  }
}

void run_short(const AttentionPlan& plan, const ShortKernels& kernels) {
  const int64_t total = plan.batch * plan.heads;
  const Load load(plan, kernels);
  const bool stream = load.bytes > kStreamFromBytes;
  const int64_t even_share = total / (int64_t{4} * get_num_threads()) + 1;
  int64_t per_task = static_cast<int64_t>(kTaskNanoseconds * static_cast<double>(total) / load.nanoseconds);
  per_task = std::min(std::max<int64_t>(per_task, 1), even_share);
  per_task = (per_task + kernels.group - 1) / kernels.group * kernels.group;
  const int64_t tasks = (total + per_task - 1) / per_task;
  const int threads = threads_for(tasks, load.nanoseconds);
  const Workspace workspace(threads, kernels.scratch * sizeof(float));
  parallel_for(tasks, threads, [&](int64_t task, int thread) {
    run_short_here(plan, kernels, task * per_task, std::min(total, (task + 1) * per_task), stream,
                   workspace.slice(thread));
  });
}

}  // namespace fastmha
