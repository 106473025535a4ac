// Attention: checks the arguments, lays out the units of work and shares them out.
//
// The unit of work is one panel of queries of one head of one sequence. Dense, padded, ragged and cached
// inputs differ only in how a unit's pointers, strides and lengths are found (Plan::head). Calls with a
// single query per sequence take the decode kernels instead, which split the keys.
#include "fastmha/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "fastmha/runtime.h"
#include "isa.h"
#include "parallel.h"
#include "workspace.h"

namespace fastmha {
namespace {

constexpr double kLog2e = 1.44269504088896341;
// Far beyond any sequence, and far enough from overflow that sums of a few need no check.
constexpr int64_t kMaxPosition = int64_t{1} << 46;

// What the kernels need for every head of every sequence.
struct Plan {
  // Axes of query, key, value and out: where a sequence, a head and a row begin.
  struct Layout {
    int64_t sequence = 0, head = 0, row = 0;
  };
  AttentionHead shared;  // what all heads have in common
  Layout query, key, value, out;
  int64_t batch = 0, heads = 0, kv_heads = 0;
  int64_t q_len = 0;  // the longest

  const int64_t* cu_seqlens_q = nullptr;  // ragged: sequences by row, not by batch stride
  const int64_t* cu_seqlens_k = nullptr;
  const int64_t* key_lengths = nullptr;
  const int64_t* query_offsets = nullptr;
  const float* slopes = nullptr;
  int64_t slope_sequence_stride = 0, slope_head_stride = 0;
  int64_t mask_sequence_stride = 0, mask_head_stride = 0;
  int64_t weights_sequence_stride = 0, weights_head_stride = 0;
  int64_t lse_sequence_stride = 0, lse_head_stride = 0;
  float* const* varlen_weights = nullptr;

  int64_t group() const { return heads / kv_heads; }
  int64_t q_len_of(int64_t n) const {
    return cu_seqlens_q ? cu_seqlens_q[n + 1] - cu_seqlens_q[n] : shared.q_len;
  }
  int64_t kv_len_of(int64_t n) const {
    if (cu_seqlens_k) return cu_seqlens_k[n + 1] - cu_seqlens_k[n];
    return key_lengths ? key_lengths[n] : shared.kv_len;
  }
  AttentionHead head(int64_t n, int64_t h) const;
};

AttentionHead Plan::head(int64_t n, int64_t h) const {
  AttentionHead one = shared;
  const int64_t kv_head = h / group();
  const int64_t query_row = cu_seqlens_q ? cu_seqlens_q[n] * query.row : n * query.sequence;
  const int64_t out_row = cu_seqlens_q ? cu_seqlens_q[n] * out.row : n * out.sequence;
  const int64_t key_row = cu_seqlens_k ? cu_seqlens_k[n] * key.row : n * key.sequence;
  const int64_t value_row = cu_seqlens_k ? cu_seqlens_k[n] * value.row : n * value.sequence;
  one.query += query_row + h * query.head;
  one.out += out_row + h * out.head;
  one.key += key_row + kv_head * key.head;
  one.value += value_row + kv_head * value.head;
  one.q_len = q_len_of(n);
  one.kv_len = kv_len_of(n);
  if (query_offsets) one.offset = query_offsets[n];
  if (slopes)
    one.slope = static_cast<float>(kLog2e * slopes[n * slope_sequence_stride + h * slope_head_stride]);
  if (one.mask) {
    const int64_t at = n * mask_sequence_stride + h * mask_head_stride;
    const int64_t bytes = one.mask_kind == MaskKind::kFloat ? 4 : 1;
    one.mask = static_cast<const char*>(one.mask) + at * bytes;
  }
  if (varlen_weights) {
    one.weights = varlen_weights[n] + h * one.q_len * one.kv_len;
    one.weights_stride = one.kv_len;
  } else if (one.weights) {
    one.weights += n * weights_sequence_stride + h * weights_head_stride;
  }
  if (one.lse)
    one.lse +=
        (cu_seqlens_q ? cu_seqlens_q[n] * one.lse_stride : n * lse_sequence_stride) + h * lse_head_stride;
  return one;
}

// ---- checks ----------------------------------------------------------------------------------------------

void check_last_axis(const char* op, const char* name, const ConstView& view) {
  const int last = view.rank - 1;
  FASTMHA_CHECK(view.strides[last] == 1 || view.shape[last] <= 1 || view.size() == 0, op, ": ", name,
                " must have a contiguous last axis, got stride ", view.strides[last]);
}

void check_float32(const char* op, const char* name, const ConstView& view) {
  FASTMHA_CHECK(view.dtype == DType::kFloat32, op, ": ", name, " must be float32");
  for (int i = 0; i < view.rank; ++i) {
    FASTMHA_CHECK(view.shape[i] >= 0, op, ": ", name, " has a negative extent: ", shape_text(view));
  }
  FASTMHA_CHECK(view.data != nullptr || view.size() == 0, op, ": ", name, " has no data (null pointer)");
}

// query, key, value, out of the given rank, with heads on axis `head_axis`.
void check_tensors(const char* op, const ConstView& query, const ConstView& key, const ConstView& value,
                   const MutableView& out, int rank, int head_axis) {
  const char* layout = rank == 4 ? "(batch, heads, length, head_dim)" : "(tokens, heads, head_dim)";
  const struct {
    const char* name;
    const ConstView view;
  } tensors[] = {{"query", query}, {"key", key}, {"value", value}, {"out", out}};
  for (const auto& tensor : tensors) {
    FASTMHA_CHECK(tensor.view.rank == rank, op, ": ", tensor.name, " must have ", rank, " axes ", layout,
                  ", got shape ", shape_text(tensor.view));
    check_float32(op, tensor.name, tensor.view);
    check_last_axis(op, tensor.name, tensor.view);
  }
  const int last = rank - 1;
  const int64_t heads = query.shape[head_axis], kv_heads = key.shape[head_axis];
  FASTMHA_CHECK(query.shape[last] == key.shape[last], op,
                ": query and key must have the same head_dim (last axis), got ", shape_text(query), " and ",
                shape_text(key));
  FASTMHA_CHECK(query.shape[last] > 0, op, ": head_dim (last axis of query) must be at least 1, got shape ",
                shape_text(query));
  FASTMHA_CHECK(rank == 3 || (query.shape[0] == key.shape[0] && key.shape[0] == value.shape[0]), op,
                ": query, key and value must have the same batch (axis 0), got ", shape_text(query), ", ",
                shape_text(key), " and ", shape_text(value));
  for (int axis = 0; axis < last; ++axis) {
    FASTMHA_CHECK(key.shape[axis] == value.shape[axis], op,
                  ": key and value must agree on all axes but the last, got ", shape_text(key), " and ",
                  shape_text(value));
  }
  FASTMHA_CHECK(kv_heads > 0 ? heads % kv_heads == 0 : heads == 0, op, ": heads (", heads,
                ") must be a multiple of kv_heads (", kv_heads, "); query ", shape_text(query), ", key ",
                shape_text(key));
  bool out_fits = out.shape[last] == value.shape[last];
  for (int axis = 0; axis < last; ++axis) out_fits = out_fits && out.shape[axis] == query.shape[axis];
  FASTMHA_CHECK(out_fits, op, ": out must have query's shape with value's last axis (", value.shape[last],
                "), got ", shape_text(out), " for query ", shape_text(query));
}

void check_position(const char* op, const char* name, int64_t position) {
  FASTMHA_CHECK(position >= -kMaxPosition && position <= kMaxPosition, op, ": ", name,
                " must be within +-2^46, got ", position);
}

// scale, softcap, causal order, window and offsets, which every form of the call has.
void set_scores(const char* op, const AttentionParams& params, int64_t head_dim, int64_t batch, Plan& plan) {
  const double scale =
      params.scale ? static_cast<double>(*params.scale) : 1.0 / std::sqrt(static_cast<double>(head_dim));
  // Times log2(e) they must still be floats.
  constexpr double kLargest = std::numeric_limits<float>::max() / kLog2e;
  FASTMHA_CHECK(std::abs(scale) <= kLargest, op, ": scale must be finite and at most 2.3e38 in size, got ",
                scale);
  FASTMHA_CHECK(params.softcap == 0 || (params.softcap >= 1e-30f && params.softcap <= kLargest), op,
                ": softcap must be 0 (none) or from 1e-30 to 2.3e38, got ", params.softcap);
  plan.shared.scale = static_cast<float>(scale * kLog2e);
  plan.shared.softcap = static_cast<float>(params.softcap * kLog2e);

  FASTMHA_CHECK(params.window_left >= -1 && params.window_right >= -1, op,
                ": each side of window must be at least 0, or -1 (open), got (", params.window_left, ", ",
                params.window_right, ")");
  if (params.window_left >= 0) plan.shared.left = std::min(params.window_left, AttentionHead::kOpenSide);
  if (params.window_right >= 0) plan.shared.right = std::min(params.window_right, AttentionHead::kOpenSide);
  if (params.is_causal) plan.shared.right = 0;

  check_position(op, "query_offset", params.query_offset);
  plan.shared.offset = params.query_offset;
  plan.query_offsets = params.query_offsets;
  if (params.query_offsets) {
    for (int64_t n = 0; n < batch; ++n) check_position(op, "query_offset", params.query_offsets[n]);
  }
}

void set_slopes(const char* op, const ConstView& slopes, int64_t batch, int64_t heads, Plan& plan) {
  if (slopes.empty()) return;
  check_float32(op, "alibi_slopes", slopes);
  const bool per_head = slopes.rank == 1 && slopes.shape[0] == heads;
  const bool per_sequence = slopes.rank == 2 && slopes.shape[0] == batch && slopes.shape[1] == heads;
  FASTMHA_CHECK(per_head || per_sequence, op, ": alibi_slopes must have shape (heads,) = (", heads,
                ",) or (batch, heads) = (", batch, ", ", heads, "), got ", shape_text(slopes));
  plan.slopes = slopes.data;
  plan.slope_sequence_stride = per_sequence ? slopes.strides[0] : 0;
  plan.slope_head_stride = slopes.strides[slopes.rank - 1];
}

void set_mask(const char* op, const MaskView& mask, const int64_t (&full)[4], Plan& plan) {
  if (mask.empty()) return;
  FASTMHA_CHECK(mask.data != nullptr || mask.size() == 0, op, ": attn_mask has no data (null pointer)");
  int64_t strides[4] = {0, 0, 0, 0};
  bool fits = true;
  for (int axis = 0; axis < mask.rank; ++axis) {
    const int to = 4 - mask.rank + axis;
    fits = fits && (mask.shape[axis] == full[to] || mask.shape[axis] == 1);
    strides[to] = mask.shape[axis] == 1 ? 0 : mask.strides[axis];
  }
  FASTMHA_CHECK(fits, op, ": attn_mask must be broadcastable to (batch, heads, q_len, kv_len) = (", full[0],
                ", ", full[1], ", ", full[2], ", ", full[3], "), got ", shape_text(mask));
  plan.shared.mask = mask.data;
  plan.shared.mask_kind = mask.dtype == DType::kBool ? MaskKind::kBool : MaskKind::kFloat;
  plan.mask_sequence_stride = strides[0];
  plan.mask_head_stride = strides[1];
  plan.shared.mask_query_stride = strides[2];
  plan.shared.mask_key_stride = strides[3];
}

void check_shape(const char* op, const char* name, const ConstView& view, const std::vector<int64_t>& shape) {
  bool fits = view.rank == static_cast<int>(shape.size());
  std::string expected;
  for (size_t i = 0; i < shape.size(); ++i) {
    fits = fits && view.shape[i] == shape[i];
    expected += concat(i ? ", " : "", shape[i]);
  }
  FASTMHA_CHECK(fits, op, ": ", name, " must have shape (", expected, "), got ", shape_text(view));
  check_float32(op, name, view);
}

// ---- running ---------------------------------------------------------------------------------------------

// A guess of one core's speed, good enough to decide between one thread and several.
constexpr double kFlopsPerNanosecond = 30.0;
constexpr double kBytesPerNanosecond = 15.0;
constexpr double kPanelOverheadNanoseconds = 200.0;
// Handing out a task takes about 0.1 us (an atomic increment that all threads want): 10 us of work make it
// invisible.
constexpr double kTaskNanoseconds = 10e3;

// Panels of all sequences, numbered from 0: sequence by sequence, head by head, within a head the last panel
// first (under a causal mask it is the longest, and long tasks should not come last).
class Panels {
 public:
  Panels(const Plan& plan, int bq) : plan_(plan), bq_(bq) {
    if (plan.cu_seqlens_q == nullptr) {
      total_ = plan.batch * plan.heads * count(0);
      return;
    }
    starts_.resize(static_cast<size_t>(plan.batch) + 1);
    for (int64_t n = 0; n < plan.batch; ++n) starts_[n + 1] = starts_[n] + plan.heads * count(n);
    total_ = starts_.back();
  }

  int64_t total() const { return total_; }

  void run(const AttentionKernels& kernels, int64_t from, int64_t to, float* scratch) const {
    int64_t n = find(from);
    int64_t index = from - start(n);
    for (int64_t left = to - from; left > 0; ++n, index = 0) {
      const int64_t panels = count(n);
      for (; index < plan_.heads * panels && left > 0;) {
        const AttentionHead head = plan_.head(n, index / panels);
        for (int64_t p = index % panels; p < panels && left > 0; ++p, ++index, --left) {
          kernels.panel(head, (panels - 1 - p) * bq_, scratch);
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

  const Plan& plan_;
  int64_t bq_;
  int64_t total_ = 0;
  std::vector<int64_t> starts_;  // ragged only
};

// Multiply-adds twice, of the visible part as far as causal order and key lengths tell.
double flops(const Plan& plan) {
  double pairs = 0;
  for (int64_t n = 0; n < plan.batch; ++n) {
    pairs += static_cast<double>(plan.q_len_of(n)) * static_cast<double>(plan.kv_len_of(n));
  }
  const double per_pair = 2.0 * static_cast<double>(plan.shared.head_dim + plan.shared.value_dim) + 20.0;
  return pairs * per_pair * static_cast<double>(plan.heads) * (plan.shared.right == 0 ? 0.6 : 1.0);
}

void run_panels(const Plan& plan, const AttentionKernels& kernels) {
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
  const Workspace workspace(
      threads, kernels.panel_scratch(plan.shared.head_dim, plan.shared.value_dim) * sizeof(float));
  parallel_for(tasks, threads, [&](int64_t task, int thread) {
    panels.run(kernels, task * per_task, std::min(total, (task + 1) * per_task), workspace.slice(thread));
  });
}

// At most one query per sequence. Keys are cut into pieces of fixed size; pieces are merged in order, whether
// one thread does them all or each goes to another thread, so the result is the same either way.
class Decode {
 public:
  Decode(const Plan& plan, const AttentionKernels& kernels)
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
      kernels_.decode_merge(total + g * state_, piece + g * state_, plan_.shared.value_dim);
    }
  }

  void finish(const AttentionHead* heads, const float* total) const {
    for (int64_t g = 0; g < group_; ++g) kernels_.decode_finish(heads[g], total + g * state_);
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
    const size_t bytes =
        heads_bytes() + (2 * states_floats() + kernels_.decode_scratch(group_)) * sizeof(float);
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
        kernels_.decode(work, 0, total, rest);
        for (int64_t index = 1; index < pieces_of(heads[0]); ++index) {
          kernels_.decode(work, index, piece, rest);
          merge(total, piece);
        }
        finish(heads, total);
      }
    });
  }

  void run_split(int64_t groups, double nanoseconds) const {
    const int threads = threads_for(groups * pieces_, nanoseconds);
    const Workspace states(1, static_cast<size_t>(groups * pieces_) * states_floats() * sizeof(float));
    const Workspace workspace(threads, heads_bytes() + kernels_.decode_scratch(group_) * sizeof(float));
    float* all = states.slice(0);
    const auto state_at = [&](int64_t group, int64_t index) {
      return all + static_cast<size_t>(group * pieces_ + index) * states_floats();
    };
    parallel_for(groups * pieces_, threads, [&](int64_t task, int thread) {
      char* scratch = workspace.slice<char>(thread);
      const int64_t group = task / pieces_, index = task % pieces_;
      const AttentionHead* heads = heads_of(group, scratch);
      if (!has_query(group) || index >= pieces_of(heads[0])) return;
      kernels_.decode({heads, group_}, index, state_at(group, index),
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

  const Plan& plan_;
  const AttentionKernels& kernels_;
  int64_t group_;
  int64_t state_;  // floats of one head's state
  int64_t pieces_ = 1;
};

void run(const Plan& plan) {
  const AttentionKernels& kernels = *active_isa().attention;
  if (plan.batch == 0 || plan.heads == 0) return;
  int64_t longest = 0;
  for (int64_t n = 0; n < plan.batch; ++n) longest = std::max(longest, plan.q_len_of(n));
  if (longest == 0) return;
  if (longest == 1) {
    Decode(plan, kernels).run();
  } else {
    run_panels(plan, kernels);
  }
}

// A plan with the four tensors in place. `sequence`, `head` and `row` are the axes of each; a ragged batch has no
// axis of sequences (-1).
Plan plan_tensors(const ConstView& query, const ConstView& key, const ConstView& value,
                  const MutableView& out, int sequence, int head, int row) {
  const auto layout = [&](const ConstView& view) {
    return Plan::Layout{sequence < 0 ? 0 : view.strides[sequence], view.strides[head], view.strides[row]};
  };
  Plan plan;
  plan.heads = query.shape[head];
  plan.kv_heads = key.shape[head];
  plan.query = layout(query);
  plan.key = layout(key);
  plan.value = layout(value);
  plan.out = layout(out);

  AttentionHead& shared = plan.shared;
  shared.query = query.data;
  shared.key = key.data;
  shared.value = value.data;
  shared.out = out.data;
  shared.query_stride = plan.query.row;
  shared.key_stride = plan.key.row;
  shared.value_stride = plan.value.row;
  shared.out_stride = plan.out.row;
  shared.head_dim = query.shape[query.rank - 1];
  shared.value_dim = value.shape[value.rank - 1];
  return plan;
}

Plan dense_plan(const char* op, const ConstView& query, const ConstView& key, const ConstView& value,
                const MutableView& out, const AttentionParams& params) {
  check_tensors(op, query, key, value, out, 4, 1);
  Plan plan = plan_tensors(query, key, value, out, 0, 1, 2);
  plan.batch = query.shape[0];
  AttentionHead& shared = plan.shared;
  shared.q_len = query.shape[2];
  shared.kv_len = key.shape[2];

  set_scores(op, params, shared.head_dim, plan.batch, plan);
  set_slopes(op, params.alibi_slopes, plan.batch, plan.heads, plan);
  const int64_t full[4] = {plan.batch, plan.heads, shared.q_len, shared.kv_len};
  set_mask(op, params.attn_mask, full, plan);
  plan.key_lengths = params.key_lengths;
  if (params.key_lengths) {
    for (int64_t n = 0; n < plan.batch; ++n) {
      FASTMHA_CHECK(params.key_lengths[n] >= 0 && params.key_lengths[n] <= shared.kv_len, op,
                    ": key_lengths must be from 0 to kv_len (", shared.kv_len, "), got ",
                    params.key_lengths[n], " for sequence ", n);
    }
  }
  if (!params.weights.empty()) {
    check_shape(op, "weights", params.weights, {plan.batch, plan.heads, shared.q_len, shared.kv_len});
    check_last_axis(op, "weights", params.weights);
    shared.weights = params.weights.data;
    shared.weights_stride = params.weights.strides[2];
    plan.weights_sequence_stride = params.weights.strides[0];
    plan.weights_head_stride = params.weights.strides[1];
  }
  if (!params.lse.empty()) {
    check_shape(op, "lse", params.lse, {plan.batch, plan.heads, shared.q_len});
    shared.lse = params.lse.data;
    shared.lse_stride = params.lse.strides[2];
    plan.lse_sequence_stride = params.lse.strides[0];
    plan.lse_head_stride = params.lse.strides[1];
  }
  return plan;
}

// Weights of keys past a sequence's length are zero; the kernels do not know of those.
void clear_weights_past_lengths(const AttentionParams& params) {
  const MutableView& weights = params.weights;
  if (weights.empty() || params.key_lengths == nullptr) return;
  for (int64_t n = 0; n < weights.shape[0]; ++n) {
    for (int64_t h = 0; h < weights.shape[1]; ++h) {
      for (int64_t i = 0; i < weights.shape[2]; ++i) {
        float* row = weights.data + n * weights.strides[0] + h * weights.strides[1] + i * weights.strides[2];
        std::fill(row + params.key_lengths[n], row + weights.shape[3], 0.0f);
      }
    }
  }
}

void check_cu_seqlens(const char* op, const char* name, const int64_t* cu_seqlens, int64_t sequences,
                      int64_t total) {
  FASTMHA_CHECK(cu_seqlens[0] == 0, op, ": ", name, " must start at 0, got ", cu_seqlens[0]);
  for (int64_t n = 0; n < sequences; ++n) {
    FASTMHA_CHECK(cu_seqlens[n] <= cu_seqlens[n + 1], op, ": ", name, " must not decrease, got ",
                  cu_seqlens[n], " then ", cu_seqlens[n + 1], " at ", n + 1);
  }
  FASTMHA_CHECK(cu_seqlens[sequences] == total, op, ": ", name, " must end at the number of tokens (", total,
                "), got ", cu_seqlens[sequences]);
}

}  // namespace

void scaled_dot_product_attention(const ConstView& query, const ConstView& key, const ConstView& value,
                                  const MutableView& out, const AttentionParams& params) {
  const char* op = "scaled_dot_product_attention";
  FASTMHA_CHECK(params.varlen_weights == nullptr, op,
                ": varlen_weights belongs to varlen_attention; set weights");
  run(dense_plan(op, query, key, value, out, params));
  clear_weights_past_lengths(params);
}

void varlen_attention(const ConstView& query, const ConstView& key, const ConstView& value,
                      const int64_t* cu_seqlens_q, const int64_t* cu_seqlens_k, int64_t sequences,
                      const MutableView& out, const AttentionParams& params) {
  const char* op = "varlen_attention";
  check_tensors(op, query, key, value, out, 3, 1);
  FASTMHA_CHECK(sequences >= 0 && cu_seqlens_q && cu_seqlens_k, op,
                ": cu_seqlens must have at least 1 entry");
  FASTMHA_CHECK(params.attn_mask.empty() && params.key_lengths == nullptr && params.weights.empty(), op,
                ": attn_mask, key_lengths and weights are not for ragged input");
  check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, sequences, query.shape[0]);
  check_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, sequences, key.shape[0]);

  Plan plan = plan_tensors(query, key, value, out, -1, 1, 0);
  plan.batch = sequences;
  plan.cu_seqlens_q = cu_seqlens_q;
  plan.cu_seqlens_k = cu_seqlens_k;
  AttentionHead& shared = plan.shared;
  set_scores(op, params, shared.head_dim, sequences, plan);
  set_slopes(op, params.alibi_slopes, sequences, plan.heads, plan);
  plan.varlen_weights = params.varlen_weights;
  if (!params.lse.empty()) {
    check_shape(op, "lse", params.lse, {query.shape[0], plan.heads});
    shared.lse = params.lse.data;
    shared.lse_stride = params.lse.strides[0];
    plan.lse_head_stride = params.lse.strides[1];
  }
  run(plan);
}

void attention_with_kvcache(const ConstView& query, const KVCacheView& cache, const MutableView& out,
                            const AttentionParams& params) {
  const char* op = "attention_with_kvcache";
  FASTMHA_CHECK(params.key_lengths == nullptr && params.query_offsets == nullptr && params.query_offset == 0,
                op, ": key_lengths and query_offset come from the cache and must not be set");
  FASTMHA_CHECK(params.attn_mask.empty(), op,
                ": attn_mask is not for cached attention; use is_causal or window");
  FASTMHA_CHECK(cache.lengths != nullptr, op, ": the cache has no lengths (null pointer)");
  FASTMHA_CHECK(query.rank == 4 && cache.key.rank == 4 && query.shape[0] == cache.key.shape[0], op,
                ": query must be (batch, heads, q_len, head_dim) with the cache's batch; query ",
                shape_text(query), ", cache ", shape_text(cache.key));
  // Copies, so that the plan's arrays stay as they were checked.
  const std::vector<int64_t> lengths(cache.lengths, cache.lengths + query.shape[0]);
  std::vector<int64_t> offsets(lengths);
  for (int64_t& offset : offsets) offset -= query.shape[2];
  AttentionParams cached = params;
  cached.key_lengths = lengths.data();
  cached.query_offsets = offsets.data();
  run(dense_plan(op, query, cache.key, cache.value, out, cached));
  clear_weights_past_lengths(cached);
}

}  // namespace fastmha
