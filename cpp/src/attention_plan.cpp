// Checks the arguments of an attention call and finds every unit's pointers, strides and lengths.
#include "attention_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "sizes.h"

namespace fastmha {
namespace {

constexpr double kLog2e = 1.44269504088896341;
// What scores are multiplied by must still be a float when it is multiplied by log2(e).
constexpr double kLargestFactor = std::numeric_limits<float>::max() / kLog2e;
// Far beyond any sequence, and far enough from overflow that sums of a few need no check.
constexpr int64_t kMaxPosition = int64_t{1} << 46;

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
void set_scores(const char* op, const AttentionParams& params, int64_t head_dim, int64_t batch,
                AttentionPlan& plan) {
  const double scale =
      params.scale ? static_cast<double>(*params.scale) : 1.0 / std::sqrt(static_cast<double>(head_dim));
  FASTMHA_CHECK(std::abs(scale) <= kLargestFactor, op,
                ": scale must be finite and at most 2.3e38 in size, got ", scale);
  FASTMHA_CHECK(params.softcap == 0 || (params.softcap >= 1e-30f && params.softcap <= kLargestFactor), op,
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

void set_slopes(const char* op, const ConstView& slopes, int64_t batch, int64_t heads, AttentionPlan& plan) {
  if (slopes.empty()) return;
  check_float32(op, "alibi_slopes", slopes);
  const bool per_head = slopes.rank == 1 && slopes.shape[0] == heads;
  const bool per_sequence = slopes.rank == 2 && slopes.shape[0] == batch && slopes.shape[1] == heads;
  FASTMHA_CHECK(per_head || per_sequence, op, ": alibi_slopes must have shape (heads,) = (", heads,
                ",) or (batch, heads) = (", batch, ", ", heads, "), got ", shape_text(slopes));
  for (int64_t n = 0; n < (per_sequence ? batch : 1); ++n) {
    for (int64_t h = 0; h < heads; ++h) {
      const float slope =
          slopes.data[(per_sequence ? n * slopes.strides[0] : 0) + h * slopes.strides[slopes.rank - 1]];
      FASTMHA_CHECK(std::abs(slope) <= kLargestFactor, op,
                    ": alibi_slopes must be finite and at most 2.3e38 in size, got ", slope);
    }
  }
  plan.slopes = slopes.data;
  plan.slope_sequence_stride = per_sequence ? slopes.strides[0] : 0;
  plan.slope_head_stride = slopes.strides[slopes.rank - 1];
}

// Whether all numbers can be multiplied by log2(e): none is NaN, infinite or becomes it. 16 at a time: one by one the
// 65,000 of a large table took a quarter of a decoding step's time.
bool are_factors(const float* from, const float* end) {
  constexpr int kAtOnce = 16;
  const auto probe_of = [](float x) { return x * static_cast<float>(kLog2e) * 0.0f; };
  float probes[kAtOnce] = {};
  for (; end - from >= kAtOnce; from += kAtOnce) {
    for (int i = 0; i < kAtOnce; ++i) probes[i] += probe_of(from[i]);
  }
  for (; from < end; ++from) probes[0] += probe_of(*from);
  return std::none_of(probes, probes + kAtOnce, [](float probe) { return std::isnan(probe); });
}

// The least and the largest i + offset - j of all queries and keys.
std::pair<int64_t, int64_t> distances_of(const AttentionPlan& plan) {
  int64_t least = kMaxPosition, largest = -kMaxPosition;
  for (int64_t n = 0; n < plan.batch; ++n) {
    const int64_t offset = plan.query_offsets ? plan.query_offsets[n] : plan.shared.offset;
    least = std::min(least, offset - plan.kv_len_of(n) + 1);
    largest = std::max(largest, offset + plan.q_len_of(n) - 1);
  }
  return {least, largest};
}

void set_relative_bias(const char* op, const ConstView& bias, AttentionPlan& plan) {
  const auto [least, largest] = distances_of(plan);
  set_relative_bias(op, bias, least, largest, plan);
}

void set_mask(const char* op, const MaskView& mask, const int64_t (&full)[4], AttentionPlan& plan) {
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

// A plan with the four tensors in place. `sequence`, `head` and `row` are the axes of each; a ragged batch has no
// axis of sequences (-1).
AttentionPlan plan_tensors(const ConstView& query, const ConstView& key, const ConstView& value,
                           const MutableView& out, int sequence, int head, int row) {
  const auto layout = [&](const ConstView& view) {
    return AttentionPlan::Layout{sequence < 0 ? 0 : view.strides[sequence], view.strides[head],
                                 view.strides[row]};
  };
  AttentionPlan plan;
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

}  // namespace

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

void set_relative_bias(const char* op, const ConstView& bias, int64_t least, int64_t largest,
                       AttentionPlan& plan) {
  if (bias.empty()) return;
  const int64_t heads = plan.heads;
  FASTMHA_CHECK(bias.rank == 2 && bias.shape[0] == heads && bias.shape[1] % 2 == 1, op,
                ": relative_bias must have shape (heads, 2 R + 1) = (", heads,
                ", an odd number), one bias for each distance from -R to R, got ", shape_text(bias));
  check_float32(op, "relative_bias", bias);
  check_last_axis(op, "relative_bias", bias);
  // Biases of distances that do not occur are not read.
  const int64_t reach = bias.shape[1] / 2;
  least = std::clamp(least, -reach, reach);
  largest = std::clamp(largest, least, reach);
  for (int64_t h = 0; h < heads; ++h) {
    const float* middle = bias.data + h * bias.strides[0] + reach;
    const float *first = middle - largest, *end = middle - least + 1;
    if (are_factors(first, end)) continue;
    const float* bad = std::find_if(first, end, [](float x) { return !(std::abs(x) <= kLargestFactor); });
    FASTMHA_CHECK(bad == end, op, ": relative_bias must be finite and at most 2.3e38 in size, got ", *bad,
                  " for head ", h, "; to hide keys by distance set window");
  }
  plan.least_distance = least;
  plan.largest_distance = largest;
  plan.shared.relative.reach = reach;
  plan.shared.relative.by_key = bias.data + reach;
  plan.relative_head_stride = bias.strides[0];
}

void share_relative_bias(const AttentionPlan& from, AttentionPlan& plan) {
  plan.shared.relative = from.shared.relative;
  plan.least_distance = from.least_distance;
  plan.largest_distance = from.largest_distance;
  plan.relative_head_stride = from.relative_head_stride;
  plan.relative_row_floats = from.relative_row_floats;
}

size_t relative_rows(int64_t heads, int64_t reach, int bq) {
  return static_cast<size_t>(line_floats(heads * (2 * reach + 1 + 2 * bq)));
}

size_t relative_rows(const AttentionPlan& plan, int bq) {
  const RelativeBias& relative = plan.shared.relative;
  return relative.by_key == nullptr ? 0 : relative_rows(plan.heads, relative.reach, bq);
}

void set_relative_rows(AttentionPlan& plan, int bq, float* rows) {
  RelativeBias& relative = plan.shared.relative;
  if (relative.by_key == nullptr) return;
  const int64_t least = plan.least_distance, distances = plan.largest_distance - least + 1;
  relative.low = least - bq;
  relative.high = plan.largest_distance;
  relative.by_query = rows;
  plan.relative_row_floats = distances + 2 * bq;
  for (int64_t h = 0; h < plan.heads; ++h) {
    // Rows that begin before the least distance that occurs or behind the largest have the same bias in all lanes.
    const float* bias = relative.by_key + h * plan.relative_head_stride - least;
    float* row = rows + h * plan.relative_row_floats;
    std::fill_n(row, bq, static_cast<float>(kLog2e) * *bias);
    row += bq;
    for (int64_t at = 0; at < distances; ++at) row[at] = static_cast<float>(kLog2e) * bias[-at];
    std::fill_n(row + distances, bq, row[distances - 1]);
  }
}

AttentionHead AttentionPlan::head(int64_t n, int64_t h) const {
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
  if (one.relative.by_key) {
    one.relative.by_key += h * relative_head_stride;
    one.relative.by_query += h * relative_row_floats;  // null for kernels that need none: 0 floats
  }
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

AttentionPlan plan_dense_attention(const char* op, const ConstView& query, const ConstView& key,
                                   const ConstView& value, const MutableView& out,
                                   const AttentionParams& params) {
  check_tensors(op, query, key, value, out, 4, 1);
  AttentionPlan plan = plan_tensors(query, key, value, out, 0, 1, 2);
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
  set_relative_bias(op, params.relative_bias, plan);
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

AttentionPlan plan_varlen_attention(const char* op, const ConstView& query, const ConstView& key,
                                    const ConstView& value, const int64_t* cu_seqlens_q,
                                    const int64_t* cu_seqlens_k, int64_t sequences, const MutableView& out,
                                    const AttentionParams& params) {
  check_tensors(op, query, key, value, out, 3, 1);
  FASTMHA_CHECK(sequences >= 0 && cu_seqlens_q && cu_seqlens_k, op,
                ": cu_seqlens must have at least 1 entry");
  FASTMHA_CHECK(params.attn_mask.empty() && params.key_lengths == nullptr && params.weights.empty(), op,
                ": attn_mask, key_lengths and weights are not for ragged input");
  check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, sequences, query.shape[0]);
  check_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, sequences, key.shape[0]);

  AttentionPlan plan = plan_tensors(query, key, value, out, -1, 1, 0);
  plan.batch = sequences;
  plan.cu_seqlens_q = cu_seqlens_q;
  plan.cu_seqlens_k = cu_seqlens_k;
  AttentionHead& shared = plan.shared;
  set_scores(op, params, shared.head_dim, sequences, plan);
  set_slopes(op, params.alibi_slopes, sequences, plan.heads, plan);
  set_relative_bias(op, params.relative_bias, plan);
  plan.varlen_weights = params.varlen_weights;
  if (!params.lse.empty()) {
    check_shape(op, "lse", params.lse, {query.shape[0], plan.heads});
    shared.lse = params.lse.data;
    shared.lse_stride = params.lse.strides[0];
    plan.lse_head_stride = params.lse.strides[1];
  }
  return plan;
}

}  // namespace fastmha
