// What the maps of a block must be.
#include "block_maps.h"

#include "check.h"

namespace fastmha {
namespace {

void check_map(const char* op, const char* name, const PackedLinear* map, int64_t in, int64_t out) {
  FASTMHA_CHECK(map->in_features() == in && map->out_features() == out, op, ": ", name, " must be ", in,
                " -> ", out, ", got ", map->in_features(), " -> ", map->out_features());
}

void check_there(const char* op, const PackedLinear* map) {
  FASTMHA_CHECK(map != nullptr, op, ": a block needs all its maps (only gate may be null)");
}

}  // namespace

void check_block_maps(const char* op, const DecoderBlock& block, int64_t features, bool over_memory) {
  for (const PackedLinear* map : {block.in_proj, block.out_proj, block.linear1, block.linear2}) {
    check_there(op, map);
  }
  const int64_t heads = block.heads, kv_heads = block.kv_heads;
  FASTMHA_CHECK(heads >= 1 && kv_heads >= 1 && heads % kv_heads == 0, op, ": heads (", heads,
                ") must be a multiple of kv_heads (", kv_heads, "), both at least 1");
  const char* const whole = ": in_features of out_proj must be a multiple of heads";
  const int64_t dim = block.out_proj->in_features() / heads, hidden = block.linear1->out_features();
  FASTMHA_CHECK(dim >= 1, op, whole);
  check_map(op, "in_proj", block.in_proj, features, (heads + 2 * kv_heads) * dim);
  check_map(op, "out_proj", block.out_proj, heads * dim, features);
  check_map(op, "linear1", block.linear1, features, hidden);
  check_map(op, "linear2", block.linear2, hidden, features);
  if (block.gate != nullptr) check_map(op, "gate", block.gate, features, hidden);
  if (!over_memory) return;
  check_there(op, block.memory_q_proj);
  check_there(op, block.memory_out_proj);
  const int64_t memory_dim = block.memory_out_proj->in_features() / heads;
  FASTMHA_CHECK(memory_dim >= 1, op, whole);
  check_map(op, "memory_q_proj", block.memory_q_proj, features, heads * memory_dim);
  check_map(op, "memory_out_proj", block.memory_out_proj, heads * memory_dim, features);
}

}  // namespace fastmha
