// Decoder blocks, all of them in one call and one parallel region: over few rows, as encoder.h has it for encoders
// (decoder_blocks), and while they generate, the next positions of every hypothesis (decoder_step).
//
// For decoder_step:
//
// A source has `beam_size` hypotheses next to each other. Each hypothesis has a slot, to which the keys and values of
// its new positions are written. What came before may lie in other slots: a hypothesis that continues another one takes
// over the numbers of its slots, and nothing is copied, as in beam search every position is written once:
//
//   position          0  1  2  3                       0  1  2  3
//   hypothesis 0      0  0  0  .     continues 0       0  0  0  0 <- written by the step
//   hypothesis 1      1  1  1  .     continues 0       0  0  0  1
//
// The keys and values of a source's memory are there once, for all of its hypotheses, anywhere in one pair of
// arrays for all sources.
//
// The bits of a hypothesis depend on its own source and positions alone. One position per hypothesis takes the
// decode kernels of attention, whose sums differ from those for several positions.
//
//   std::vector<DecoderBlock> blocks = ...;   // weights, and where the block's keys and values are
//   DecoderStepParams params;
//   params.sources = 1;
//   params.slots = &slot;                     // int64_t[1], as the others
//   params.lengths = &length;
//   params.memory_starts = &start;
//   params.memory_lengths = &memory_length;
//   fastmha::decoder_step(blocks.data(), 6, {x, {1, 512}}, {out, {1, 512}}, params);
//   ++length;
#pragma once

#include <cstdint>
#include <optional>

#include "fastmha/sublayer.h"

namespace fastmha {

// Self-attention, attention over the memory, feed-forward, with a norm and an addition around each.
struct DecoderBlock {
  const PackedLinear* in_proj = nullptr;  // as in multi_head_attention: queries, keys and values
  const PackedLinear* out_proj = nullptr;
  const PackedLinear* memory_q_proj = nullptr;   // queries to the memory
  const PackedLinear* memory_kv_proj = nullptr;  // keys and values of the memory. For decoder_blocks alone
  const PackedLinear* memory_out_proj = nullptr;
  const PackedLinear* linear1 = nullptr;
  const PackedLinear* linear2 = nullptr;
  const PackedLinear* gate = nullptr;  // or null; see FeedForwardParams
  int64_t heads = 1;                   // of both attentions
  int64_t kv_heads = 1;
  std::optional<float> scale;  // of both; 1 / sqrt(head_dim) when not set
  SublayerNorm norms[3];
  bool norm_first = false;  // x + f(norm(x)), not norm(x + f(x))

  // For decoder_step alone.
  MutableView key, value;              // (slots, kv_heads, capacity, head_dim): of hypotheses
  ConstView memory_key, memory_value;  // (kv_heads, rows, head_dim): of all sources
};

struct DecoderBlocksParams {
  // Sequences of x and of the memory, both of equal length, or both of any: sequence n is rows cu_seqlens[n] ..
  // cu_seqlens[n + 1] of x. One of x must have two rows or more: single queries take the decode kernels, which are
  // not here.
  int64_t sequences = 1;
  const int64_t* cu_seqlens = nullptr;
  const int64_t* cu_seqlens_memory = nullptr;
  ConstView relative_bias;  // of self-attention; see AttentionParams. Empty: none
  SublayerNorm norm;        // behind the last block
};

// x (rows, features) -> out, the same, with a memory (memory_rows, memory_features): causal self-attention, attention
// over the memory, feed-forward. The results are those of multi_head_attention and feed_forward, block by block, bit
// for bit. What lies between takes scratch memory for all rows at once. Throws std::invalid_argument with nothing
// written.
void decoder_blocks(const DecoderBlock* blocks, int64_t count, const ConstView& x, const ConstView& memory,
                    const MutableView& out, const DecoderBlocksParams& params);

struct DecoderStepParams {
  int64_t sources = 0;
  int64_t beam_size = 1;
  // For each of the sources * beam_size hypotheses: its slot, no two the same; how many positions it has before the
  // call; how many of x's count, the first ones (null: all).
  const int64_t* slots = nullptr;
  const int64_t* lengths = nullptr;
  const int64_t* new_lengths = nullptr;
  // The slots that hold a hypothesis's positions before the call, those of the next hypothesis `position_slots_stride`
  // further on. Null: all lie in its own slot. None may lie in a slot of the call at or behind the length of that
  // slot's hypothesis: it is written to there.
  const int64_t* position_slots = nullptr;
  int64_t position_slots_stride = 0;
  // For each source: its rows in the memory's keys and values.
  const int64_t* memory_starts = nullptr;
  const int64_t* memory_lengths = nullptr;
  ConstView relative_bias;  // of self-attention; see AttentionParams. Empty: none
  SublayerNorm norm;        // behind the last block
};

// x (hypotheses * length, features), the new positions of a hypothesis next to each other -> out, the same; rows
// that do not count are zeros. Writes the keys and values of the new positions behind those that the slots hold; the
// caller counts them in `lengths`. Throws std::invalid_argument with nothing written.
void decoder_step(const DecoderBlock* blocks, int64_t count, const ConstView& x, const MutableView& out,
                  const DecoderStepParams& params);

}  // namespace fastmha
