// Attention: the public operations.
//
// The unit of work is one panel of queries of one head of one sequence. Dense, padded, ragged and cached
// inputs differ only in how a unit's pointers, strides and lengths are found (attention_plan.h). Heads of short
// sequences are computed in groups, to the same bits. Calls with a single query per sequence take the decode kernels
// instead, which split the keys.
#include "fastmha/attention.h"

#include <algorithm>
#include <vector>

#include "attention_plan.h"
#include "check.h"
#include "isa.h"

namespace fastmha {
namespace {

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

}  // namespace

void run_attention(const AttentionPlan& plan) {
  if (plan.batch == 0 || plan.heads == 0) return;
  const Isa& isa = active_isa();
  const bool ragged = plan.cu_seqlens_q != nullptr;
  int64_t longest = 0;
  for (int64_t n = 0; n < (ragged ? plan.batch : 1); ++n) longest = std::max(longest, plan.q_len_of(n));
  if (longest == 0) return;
  if (longest == 1 && !plan.among_longer) {
    run_decode(plan, *isa.decode);
    return;
  }
  // Each sequence takes the path that suits its own lengths; both give the same bits.
  int64_t are_short = 0;
  const int64_t sequences = ragged || plan.key_lengths ? plan.batch : 1;
  for (int64_t n = 0; n < sequences; ++n) are_short += takes_short(plan, *isa.short_sequences, n);
  if (are_short > 0) run_short(plan, *isa.short_sequences);
  if (are_short == sequences) return;
  AttentionPlan rest = plan;
  if (are_short > 0) rest.left_to_short = isa.short_sequences;
  run_panels(rest, *isa.panel);
}

size_t attend_scratch(int64_t head_dim, int64_t value_dim, const ConstView& relative_bias) {
  const Isa& isa = active_isa();
  const size_t kernels = std::max(isa.panel->scratch(head_dim, value_dim), isa.short_sequences->scratch);
  if (relative_bias.empty()) return kernels;
  return kernels + relative_rows(relative_bias.shape[0], relative_bias.shape[1] / 2, isa.panel->bq);
}

void attend_here(const AttentionPlan& checked, float* scratch) {
  const Isa& isa = active_isa();
  AttentionPlan plan = checked;
  set_relative_rows(plan, isa.panel->bq, scratch);
  scratch += relative_rows(plan, isa.panel->bq);
  run_short_here(plan, *isa.short_sequences, 0, plan.batch * plan.heads, false, scratch);
  const int64_t bq = isa.panel->bq;
  for (int64_t n = 0; n < plan.batch; ++n) {
    if (takes_short(plan, *isa.short_sequences, n)) continue;
    const int64_t panels = (plan.q_len_of(n) + bq - 1) / bq;
    for (int64_t h = 0; h < plan.heads; ++h) {
      const AttentionHead head = plan.head(n, h);
      for (int64_t panel = panels - 1; panel >= 0; --panel) isa.panel->run(head, panel * bq, scratch);
    }
  }
}

void scaled_dot_product_attention(const ConstView& query, const ConstView& key, const ConstView& value,
                                  const MutableView& out, const AttentionParams& params) {
  const char* op = "scaled_dot_product_attention";
  FASTMHA_CHECK(params.varlen_weights == nullptr, op,
                ": varlen_weights belongs to varlen_attention; set weights");
  run_attention(plan_dense_attention(op, query, key, value, out, params));
  clear_weights_past_lengths(params);
}

void varlen_attention(const ConstView& query, const ConstView& key, const ConstView& value,
                      const int64_t* cu_seqlens_q, const int64_t* cu_seqlens_k, int64_t sequences,
                      const MutableView& out, const AttentionParams& params) {
  const char* op = "varlen_attention";
  run_attention(
      plan_varlen_attention(op, query, key, value, cu_seqlens_q, cu_seqlens_k, sequences, out, params));
}

void attention_with_kvcache(const ConstView& query, const KVCacheView& cache, const MutableView& out,
                            const AttentionParams& params) {
  const char* op = "attention_with_kvcache";
  FASTMHA_CHECK(params.key_lengths == nullptr && params.query_offsets == nullptr && params.query_offset == 0,
                op, ": key_lengths and query_offset come from the cache and must not be set");
  FASTMHA_CHECK(params.attn_mask.empty(), op,
                ": attn_mask is not for cached attention; use is_causal or window");
  FASTMHA_CHECK(query.rank == 4 && cache.key.rank == 4 && query.shape[0] == cache.key.shape[0], op,
                ": query must be (batch, heads, q_len, head_dim) with the cache's batch; query ",
                shape_text(query), ", cache ", shape_text(cache.key));
  FASTMHA_CHECK(cache.lengths != nullptr || query.shape[0] == 0, op,
                ": the cache has no lengths (null pointer)");
  // Copies, so that the plan's arrays stay as they were checked.
  const std::vector<int64_t> lengths(cache.lengths, cache.lengths + query.shape[0]);
  std::vector<int64_t> offsets(lengths);
  for (int64_t& offset : offsets) offset -= query.shape[2];
  AttentionParams cached = params;
  cached.key_lengths = lengths.data();
  cached.query_offsets = offsets.data();
  run_attention(plan_dense_attention(op, query, cache.key, cache.value, out, cached));
  clear_weights_past_lengths(cached);
}

}  // namespace fastmha
