// The sub-layers of a Transformer block, each in one call:
//
//   out = norm_after(residual + f(norm_before(x)))
//
//   feed_forward           f(x) = linear2(linear1(x)), with linear1's activation, or linear2(linear1(x) * gate(x))
//   multi_head_attention   f(x) = out_proj(attention of in_proj(x)), over x itself or over a memory
//
// Both norms (layer_norm or rms_norm) and the residual are optional: with norm_after it is the block of "Attention
// Is All You Need", with norm_before the one that normalises first.
//
// The result is bit for bit that of linear, scaled_dot_product_attention or varlen_attention, and the norm
// called one after the other. The difference is where the intermediate results live: one thread takes a slice
// of the rows (of whole sequences) through the whole sub-layer, so that they stay in its L2 cache instead of
// going through memory. Too few rows for that share their columns and heads among the threads, as the
// separate operations do.
//
// Scratch memory is at most 8 MiB a thread, or the projected rows of the longest sequence where those are more.
//
// out may be x or the residual itself (exactly the same view) and must otherwise not overlap an input. All
// throw std::invalid_argument with nothing written.
//
//   fastmha::FeedForwardParams params;
//   params.residual = x;
//   params.norm_after = {{norm_weight, {d_model}}, {norm_bias, {d_model}}};
//   fastmha::feed_forward(linear1, linear2, x, out, params);
#pragma once

#include <cstdint>
#include <optional>

#include "fastmha/linear.h"
#include "fastmha/types.h"

namespace fastmha {

enum class NormKind : uint8_t { kLayerNorm, kRmsNorm };

// A norm inside a sub-layer.
struct SublayerNorm {
  ConstView weight;  // (features); empty: no norm here
  ConstView bias;    // (features); empty: none. Not for an RMS norm
  float eps = 1e-5f;
  NormKind kind = NormKind::kLayerNorm;
};

struct FeedForwardParams {
  SublayerNorm norm_before;
  SublayerNorm norm_after;
  ConstView residual;  // (rows, out_features), added before norm_after; empty: none
  // As wide as linear1, on both sides: its result multiplies that of linear1, activation included. Null: none.
  const PackedLinear* gate = nullptr;
};

// x (rows, in_features of linear1) -> out (rows, out_features of linear2).
void feed_forward(const PackedLinear& linear1, const PackedLinear& linear2, const ConstView& x,
                  const MutableView& out, const FeedForwardParams& params = {});

struct MultiHeadAttentionParams {
  int64_t heads = 1;
  int64_t kv_heads = 0;  // a divisor of heads; 0: as many as heads
  // The rows of x are `sequences` sequences end to end: of equal length, or of the lengths that cu_seqlens
  // tells (sequences + 1 entries, from 0 to the number of rows).
  int64_t sequences = 1;
  const int64_t* cu_seqlens = nullptr;
  // The same for the rows of the memory; set both or neither.
  const int64_t* cu_seqlens_memory = nullptr;
  // (sequences), not with cu_seqlens: keys at or past the length do not exist. Null: all exist.
  const int64_t* key_lengths = nullptr;
  // Query i of a sequence sees the keys 0 .. i.
  bool is_causal = false;
  // Of the scores; 1 / sqrt(head_dim) when not set.
  std::optional<float> scale;
  // (heads, 2 R + 1), added to the scores by distance; see AttentionParams. Empty: none.
  ConstView relative_bias;
  SublayerNorm norm_before;  // of x; a memory is taken as it is
  SublayerNorm norm_after;
  ConstView residual;  // of out's shape, added before norm_after; empty: none
};

// Self-attention. x (rows, features) -> out (rows, out_features of out_proj). A row of in_proj's result holds
// `heads` queries, then kv_heads keys, then kv_heads values, each of head_dim = in_features of out_proj /
// heads.
void multi_head_attention(const PackedLinear& in_proj, const PackedLinear& out_proj, const ConstView& x,
                          const MutableView& out, const MultiHeadAttentionParams& params = {});

// Attention over a memory (memory_rows, features): queries by q_proj from x, keys and values, kv_heads each,
// by kv_proj from the memory.
void multi_head_attention(const PackedLinear& q_proj, const PackedLinear& kv_proj,
                          const PackedLinear& out_proj, const ConstView& x, const ConstView& memory,
                          const MutableView& out, const MultiHeadAttentionParams& params = {});

}  // namespace fastmha
