// What the attention kernels take and which of them an instruction set has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmha {

enum class MaskKind : int32_t { kNone, kBool, kFloat };

// Rows of floats that a later panel reads or writes.
struct UpcomingRows {
  const float* rows = nullptr;
  int64_t stride = 0, count = 0, width = 0;
};

// What is added to a score by how far key j is from query i; the same for all sequences.
struct RelativeBias {
  // As the caller has it, in units of the scores: by_key[clip(j - (i + offset), -reach, reach)]. Null: no bias.
  const float* by_key = nullptr;
  int64_t reach = 0;
  // For lanes that are queries, in units of log2: from by_query[clip(i + offset - j, low, high) - low] on lie the
  // biases of key j and the queries i, i + 1, ... of a panel. Both ends are long enough that clipping where the row
  // begins is clipping every lane.
  const float* by_query = nullptr;
  int64_t low = 0, high = 0;
};

// One head of one sequence. Strides are in elements and may be anything; the last axis of query, key, value
// and out is contiguous. Query i sees key j when all of these hold:
//   0 <= j < kv_len,   i + offset - left <= j <= i + offset + right,   mask(i, j) is neither false nor
//   -infinity.
// Causal attention is right = 0. Open sides are kOpenSide. Scores are kept in units of log2, so that the
// softmax needs exp2 and no multiplication: scale, softcap and slope come multiplied by log2(e).
struct AttentionHead {
  static constexpr int64_t kOpenSide = int64_t{1} << 48;

  const float* query = nullptr;
  const float* key = nullptr;
  const float* value = nullptr;
  float* out = nullptr;
  int64_t query_stride = 0, key_stride = 0, value_stride = 0, out_stride = 0;  // from row to row
  int64_t q_len = 0, kv_len = 0, head_dim = 0, value_dim = 0;

  int64_t offset = 0, left = kOpenSide, right = kOpenSide;
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  float slope = 0.0f;    // ALiBi: -slope * |i + offset - j|
  RelativeBias relative;

  const void* mask = nullptr;
  MaskKind mask_kind = MaskKind::kNone;
  int64_t mask_query_stride = 0, mask_key_stride = 0;

  float* weights = nullptr;  // (q_len, kv_len), or null
  int64_t weights_stride = 0;
  float* lse = nullptr;  // (q_len,), or null
  int64_t lse_stride = 0;

  // A hint that changes no result: what to bring to the cache while a panel is computed.
  UpcomingRows upcoming[4];
};

// A group of query heads that share one key/value head, one query each. Only query, out, slope, mask, weights and
// lse differ from head to head.
struct DecodeGroup {
  // So many slots behind those of the keys must be slots, too: what is fetched ahead of its use may pass the end.
  static constexpr int kSlotsBehind = 64;

  const AttentionHead* heads = nullptr;
  int64_t count = 0;
  // Where rows lie that are not just one stride apart: key j at key + slots[j] * key_slot + j * key_stride, its value
  // likewise. Null: all in one piece.
  const int64_t* slots = nullptr;
  int64_t key_slot = 0, value_slot = 0;
  // A hint that changes no result: the first of keys and values that are read later, with their slots if there are
  // any, to be fetched when what comes next is fetched already. Null: what lies behind its own.
  const float *later_key = nullptr, *later_value = nullptr;
  const int64_t* later_slots = nullptr;
};

// Heads of short sequences that share everything but where they lie: the pointers of `shared` are not used (weights
// and lse are wanted when not null there).
struct HeadGroup {
  static constexpr int kHeads = 8;  // at most

  AttentionHead shared;
  bool stream = false;  // out is written past the caches
  int count = 0;
  const float* query[kHeads];
  const float* key[kHeads];
  const float* value[kHeads];
  const float* relative[kHeads];  // RelativeBias::by_key
  float* out[kHeads];
  float* weights[kHeads];
  float* lse[kHeads];
};

struct ShortKernels {
  const char* name;
  int group;  // heads that fill the lanes
  // Heads with at most as many queries and keys, without mask, softcap and slope, give the bits that PanelKernels give.
  int max_queries;
  int max_keys;
  size_t scratch;  // floats that `run` needs
  // `next`, if not null, is what comes next: it is fetched into the cache meanwhile.
  void (*run)(const HeadGroup& group, const HeadGroup* next, float* scratch);
};

struct PanelKernels {
  const char* name;
  int bq;  // queries per panel: two registers of lanes
  int bk;  // keys per block of the online softmax, counted from key 0
  // Floats of scratch that `run` needs.
  size_t (*scratch)(int64_t head_dim, int64_t value_dim);
  // Attention of queries [first, min(first + bq, q_len)) over all their keys, written to out (and weights,
  // lse).
  void (*run)(const AttentionHead& head, int64_t first, float* scratch);
  // The same, bit for bit, for `count` <= `group` panels, queries from `first` on, over a copy of each block of K and V:
  // for rows so far apart that they share sets of the first-level cache. The hint `upcoming` is not used.
  int group;
  size_t (*group_scratch)(int64_t head_dim, int64_t value_dim);
  void (*run_group)(const AttentionHead& head, int64_t first, int count, float* scratch);
};

struct DecodeKernels {
  const char* name;
  int split;  // keys per piece of a single query's attention, counted from key 0
  size_t (*scratch)(int64_t heads, int64_t head_dim);
  // Keys [split * index, split * (index + 1)) for the one query of each head in the group. state: per head
  // max, sum, out[value_dim], of stride 2 + value_dim.
  void (*piece)(const DecodeGroup& group, int64_t index, float* state, float* scratch);
  // left <- left merged with right, both as `piece` writes them.
  void (*merge)(float* left, const float* right, int64_t value_dim);
  // state -> out, lse, and weights (which hold log2 scores until then).
  void (*finish)(const AttentionHead& head, const float* state);
};

extern "C" {
extern const PanelKernels fastmha_panel_generic;
extern const PanelKernels fastmha_panel_avx2;
extern const PanelKernels fastmha_panel_avx512;
extern const ShortKernels fastmha_short_generic;
extern const ShortKernels fastmha_short_avx2;
extern const ShortKernels fastmha_short_avx512;
extern const DecodeKernels fastmha_decode_generic;
extern const DecodeKernels fastmha_decode_avx2;
extern const DecodeKernels fastmha_decode_avx512;
}

}  // namespace fastmha
