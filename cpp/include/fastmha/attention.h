// Scaled dot-product attention: one call for dense, padded, ragged and cached inputs.
//
//   out = softmax(softcap(scale * Q K^T) + bias) V        per head
//
// Everything that limits or biases attention is a parameter, so no (q_len, kv_len) mask need exist: causal
// order, key lengths, a sliding window, ALiBi slopes, a bias by distance, soft-capping, grouped heads (GQA, MQA),
// value_dim != head_dim. Masked work is skipped and masked keys and values cannot reach a result, whatever they hold. A
// query that sees no key gives zeros. Extra memory per thread is a constant; a single query over many keys adds one
// partial result per 256 keys.
//
//   fastmha::ConstView q(query, {batch, heads, q_len, head_dim});
//   fastmha::AttentionParams params;
//   params.is_causal = true;
//   fastmha::scaled_dot_product_attention(q, k, v, out, params);
#pragma once

#include <cstdint>
#include <optional>

#include "fastmha/types.h"

namespace fastmha {

struct AttentionParams {
  // Query i stands at position i + query_offset on the key axis; query_offsets (batch), when set, holds one
  // for each sequence instead.
  int64_t query_offset = 0;
  const int64_t* query_offsets = nullptr;
  // Key j is visible when j <= i + offset.
  bool is_causal = false;
  // Key j is visible when i + offset - window_left <= j <= i + offset + window_right; -1 leaves a side open.
  int64_t window_left = -1;
  int64_t window_right = -1;
  // Keys at or past key_lengths[sequence] do not exist. Null: all exist.
  const int64_t* key_lengths = nullptr;
  // 1 / sqrt(head_dim) when not set.
  std::optional<float> scale;
  // softcap * tanh(score / softcap), before any mask; 0: none.
  float softcap = 0.0f;
  // (heads) or (batch, heads): adds -slope * |i + offset - j|, exact up to distances of 2^24. Empty: none.
  ConstView alibi_slopes;
  // (heads, 2 R + 1), contiguous in the last axis: adds relative_bias[h][R + clip(j - (i + offset), -R, R)] to the
  // score, the bias of T5 and its family. Finite. Empty: none.
  ConstView relative_bias;
  // Broadcastable to (batch, heads, q_len, kv_len): kBool (one byte each, true = may attend) or kFloat32
  // (added to the scores; -infinity hides the key). Not for varlen_attention.
  MaskView attn_mask;
  // Written when set: the probabilities (batch, heads, q_len, kv_len) with a contiguous last axis, and
  // log(sum(exp(score))) (batch, heads, q_len). For varlen_attention lse is (total_q, heads).
  MutableView weights;
  MutableView lse;
  // varlen_attention only: one (heads, q_len, kv_len) row-major matrix per sequence, or null.
  float* const* varlen_weights = nullptr;
};

// query (batch, heads, q_len, head_dim), key (batch, kv_heads, kv_len, head_dim), value (batch, kv_heads,
// kv_len, value_dim) -> out (batch, heads, q_len, value_dim). heads must be a multiple of kv_heads. Any
// strides; the last axis must be contiguous. out must not overlap an input or itself
// (not checked: views may interleave). Throws std::invalid_argument.
void scaled_dot_product_attention(const ConstView& query, const ConstView& key, const ConstView& value,
                                  const MutableView& out, const AttentionParams& params = {});

// Sequences of different lengths, end to end: query (total_q, heads, head_dim), key (total_k, kv_heads,
// head_dim), value (total_k, kv_heads, value_dim) -> out (total_q, heads, value_dim). Sequence n owns rows
// cu_seqlens[n] .. cu_seqlens[n + 1]; both arrays have sequences + 1 entries, start at 0 and end at the
// total.
void varlen_attention(const ConstView& query, const ConstView& key, const ConstView& value,
                      const int64_t* cu_seqlens_q, const int64_t* cu_seqlens_k, int64_t sequences,
                      const MutableView& out, const AttentionParams& params = {});

// Keys and values of the tokens so far: (batch, kv_heads, capacity, dim) each, of which sequence n holds
// lengths[n].
struct KVCacheView {
  MutableView key;
  MutableView value;
  int64_t* lengths = nullptr;
};

// Copies key and value (batch, kv_heads, count, dim) behind what each sequence holds and advances the
// lengths; with new_lengths (batch), only the first new_lengths[n] rows of sequence n. Throws, with nothing
// changed, when a sequence would exceed the capacity.
void kv_cache_append(const KVCacheView& cache, const ConstView& key, const ConstView& value,
                     const int64_t* new_lengths = nullptr);

// Attention of query (batch, heads, q_len, head_dim) over the cache. The last query stands at the last key:
// query i of sequence n at position i + lengths[n] - q_len. query_offset, key_lengths and attn_mask of params
// must be unset.
void attention_with_kvcache(const ConstView& query, const KVCacheView& cache, const MutableView& out,
                            const AttentionParams& params = {});

}  // namespace fastmha
