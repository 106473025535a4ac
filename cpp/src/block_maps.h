// The maps of a block, by name.
#pragma once

#include <cstdint>

#include "fastmha/decoder.h"
#include "linear_plan.h"
#include "packed_weight.h"

namespace fastmha {

// In the order in which they are used. Those over a memory are linear1 in a block that has none.
enum MapName { kIn, kOut, kMemoryQ, kMemoryOut, kLinear1, kLinear2, kMaps };

struct BlockMaps {
  LinearLayer at[kMaps];
  LinearLayer memory_kv, gate;  // linear1 where there is none

  explicit BlockMaps(const DecoderBlock& block)
      : at{held_by(*block.in_proj),
           held_by(*block.out_proj),
           or_linear1(block, block.memory_q_proj),
           or_linear1(block, block.memory_out_proj),
           held_by(*block.linear1),
           held_by(*block.linear2)},
        memory_kv(or_linear1(block, block.memory_kv_proj)),
        gate(or_linear1(block, block.gate)) {}

  int64_t in(MapName name) const { return at[name].weight.in_features(); }
  int64_t out(MapName name) const { return at[name].weight.out_features(); }

  // body(layer) for those that rows of x go through.
  template <class Body>
  void each(const DecoderBlock& block, Body&& body) const {
    for (const MapName name : {kIn, kOut, kLinear1, kLinear2}) body(at[name]);
    if (block.memory_q_proj != nullptr) body(at[kMemoryQ]);
    if (block.memory_out_proj != nullptr) body(at[kMemoryOut]);
    if (block.gate != nullptr) body(gate);
  }

 private:
  static LinearLayer or_linear1(const DecoderBlock& block, const PackedLinear* map) {
    return held_by(map == nullptr ? *block.linear1 : *map);
  }
};

// All maps must be there (those over a memory if there is one) and fit each other, the heads and rows of `features`.
void check_block_maps(const char* op, const DecoderBlock& block, int64_t features, bool over_memory);

}  // namespace fastmha
