// Encoder blocks over few rows: a short text, through all blocks in one call and one parallel region.
//
// The results are those of multi_head_attention and feed_forward, block by block, bit for bit. Those take slices of
// many rows through a sub-layer, each on one thread; here all threads share every step, which is what is left to
// share out when there are few rows, and what costs is to read the weights.
//
//   std::vector<EncoderBlock> blocks = ...;   // weights
//   EncoderBlocksParams params;
//   params.sequences = 1;
//   fastmha::encoder_blocks(blocks.data(), 6, {x, {8, 384}}, {out, {8, 384}}, params);
#pragma once

#include <cstdint>
#include <optional>

#include "fastmha/sublayer.h"

namespace fastmha {

// Self-attention, feed-forward, with a norm and an addition around each.
struct EncoderBlock {
  const PackedLinear* in_proj = nullptr;  // as in multi_head_attention: queries, keys and values
  const PackedLinear* out_proj = nullptr;
  const PackedLinear* linear1 = nullptr;
  const PackedLinear* linear2 = nullptr;
  const PackedLinear* gate = nullptr;  // or null; see FeedForwardParams
  int64_t heads = 1;
  int64_t kv_heads = 1;
  std::optional<float> scale;  // 1 / sqrt(head_dim) when not set
  SublayerNorm norms[2];
  bool norm_first = false;  // x + f(norm(x)), not norm(x + f(x))
};

struct EncoderBlocksParams {
  // Sequences of equal length, or of any: sequence n is rows cu_seqlens[n] .. cu_seqlens[n + 1]. One of them must have
  // two rows or more: single queries take the decode kernels, which are not here.
  int64_t sequences = 1;
  const int64_t* cu_seqlens = nullptr;
  ConstView relative_bias;  // see AttentionParams. Empty: none
  SublayerNorm norm;        // behind the last block
};

// x (rows, features) -> out, the same. What lies between takes scratch memory for all rows at once. Throws
// std::invalid_argument with nothing written.
void encoder_blocks(const EncoderBlock* blocks, int64_t count, const ConstView& x, const MutableView& out,
                    const EncoderBlocksParams& params);

}  // namespace fastmha
