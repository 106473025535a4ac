// Attention of one query per sequence.
//
// Lanes are features: K and V rows stream through once, for all heads of a group, at the speed of memory.
// Pieces of kSplit keys, counted from key 0, are computed apart (so that all cores can work on one sequence)
// and merged in order. What a head gets depends on its query and keys alone, however many heads are in its
// group: a score is one chain over the registers of features and one tree over their lanes, an output one
// chain over the keys of a piece.
#include "attention.h"

#include "attention_common.h"

namespace fastmha {
namespace {

// 256 keys of 128 floats are 128 KiB of K: a few microseconds of streaming, enough to hide handing out a
// piece.
constexpr int kSplit = 256;
constexpr int kStateHeader = 2;  // max, sum, then the value_dim outputs
// Keys that all heads of a group score while their rows are in L1: 8 KiB of rows of 128 floats.
constexpr int kBlock = 16;
// Floats of V that all heads of a group go over while they are in L1. With 32 KiB, 64 rows of 128 floats, what was
// asked for ahead of its use was gone again: 105 GB/s from L3 instead of 120 (4 heads, 2 threads).
constexpr int kValueBlock = 4096;
// How far ahead of their use rows are asked for. The hardware does not look past a page and does not see the order of
// a tile: without it 4 heads of a group get 50 GB/s from L3, with 16 rows of 128 floats 104, 32 rows 117, 64 rows 85.
// Asking in the order of addresses instead of a tile's was slower (106 with 32 rows).
constexpr int kAhead = 32;
// One head, whose rows are read one after the other, from memory: 32 heads of 4096 keys of 128 get 87 GB/s with 16
// rows, 83 with 24, 82 with 32, 76 with 64; 8 x 12 heads of 1024 keys of 64 104, 111, 121 and 132; from L3 175, 175,
// 172 and 160.
constexpr int64_t kAheadFloats = 2048;
constexpr int kLine = 16;  // floats of a cache line
static_assert(kAhead <= DecodeGroup::kSlotsBehind && 2 * kBlock <= DecodeGroup::kSlotsBehind,
              "slots of rows asked for ahead are read");
// Tiles are functions of their own. Inlined, their addresses compete for registers and all are spilled.
#define FASTMHA_NOINLINE __attribute__((noinline))

FASTMHA_INLINE int64_t padded_to_line(int64_t floats) { return (floats + kLine - 1) / kLine * kLine; }

// Scores of each head, aligned copies of the queries, and which keys are visible.
size_t decode_scratch(int64_t heads, int64_t head_dim) {
  return static_cast<size_t>(heads * (kSplit + padded_to_line(head_dim)) + kSplit);
}

struct EvenRows {
  const float* first;
  int64_t stride;
  FASTMHA_INLINE const float* at(int64_t row) const { return first + row * stride; }
  FASTMHA_INLINE EvenRows from(int64_t row) const { return {at(row), stride}; }
  FASTMHA_INLINE EvenRows features_from(int64_t d) const { return {first + d, stride}; }
};

// Each in a slot of its own: see DecodeGroup.
struct SlotRows {
  const float* first;
  int64_t stride;
  const int64_t* slots;
  int64_t slot_stride;
  FASTMHA_INLINE const float* at(int64_t row) const {
    return first + slots[row] * slot_stride + row * stride;
  }
  FASTMHA_INLINE SlotRows from(int64_t row) const {
    return {first + row * stride, stride, slots + row, slot_stride};
  }
  FASTMHA_INLINE SlotRows features_from(int64_t d) const { return {first + d, stride, slots, slot_stride}; }
};

// Loaded once. What two heads use, GCC reads twice, as an operand of either multiplication: a group of 4 on AVX2, 128
// features, in L2, 65 GFLOP/s a core instead of 100.
FASTMHA_INLINE Vec in_register(Vec a) {
#if defined(__x86_64__)
  __asm__("" : "+v"(a.reg));
#endif
  return a;
}

FASTMHA_INLINE void prefetch(const float* p) { __builtin_prefetch(p, 0, 3); }

// Whether one head's rows of `size` floats are scored one after the other, as a memory's prefetchers like to see them:
// with 16 rows side by side, as in dot_tile, 32 heads of 4096 keys of 128 got 69 GB/s instead of 87, where a plain read
// gets 89. The 8 rows of AVX2 are few enough: from memory 2% gained, from L2 and L3 11% lost. Short rows do not pay for
// their own beginnings and ends: 80 floats gained 11%, 40 lost 10%.
FASTMHA_INLINE bool row_by_row(int64_t size) { return kLanes == 16 && size >= 64; }

// Rows of `size` floats to ask for ahead, whole blocks of them.
FASTMHA_INLINE int64_t rows_ahead(int64_t heads, int64_t size) {
  if (heads > 1 || !row_by_row(size)) return kAhead;
  const int64_t block = kBlock * size;
  return smaller(2, (kAheadFloats + block - 1) / block) * kBlock;
}

// score[r] = scale * (query . row r) for kLanes rows, one after the other.
template <bool Prefetch, class Rows>
FASTMHA_NOINLINE void dot_rows(const float* query, Rows keys, int64_t size, Rows next, float scale,
                               float* score) {
  Vec acc[kLanes];
  FASTMHA_UNROLL
  for (int r = 0; r < kLanes; ++r) {
    const float *row = keys.at(r), *ahead = next.at(r);
    acc[r] = Vec::zero();
    int64_t d = 0;
    for (; d + kLine <= size; d += kLine) {
      if (Prefetch) prefetch(ahead + d);
      FASTMHA_UNROLL
      for (int v = 0; v < kLine; v += kLanes)
        acc[r] = fma(Vec::load(row + d + v), Vec::load(query + d + v), acc[r]);
    }
    for (; d < size; d += kLanes) {
      const int width = static_cast<int>(smaller(kLanes, size - d));
      acc[r] = fma(Vec::load_n(row + d, width), Vec::load_n(query + d, width), acc[r]);
    }
  }
  (add_lanes(acc) * Vec::set1(scale)).store(score);
}

// score[h * kSplit + r] = scale * (query h . row r) for Heads heads and kLanes / Heads rows. queries lie
// query_stride apart. Rows past `rows` are taken to be the last one.
template <int Heads, bool Full, bool Prefetch, class Rows>
FASTMHA_NOINLINE void dot_tile(const float* queries, int64_t query_stride, Rows keys, int rows, int64_t size,
                               Rows next, float scale, float* score) {
  constexpr int kRows = kLanes / Heads;
  const float* row[kRows];
  FASTMHA_UNROLL
  for (int r = 0; r < kRows; ++r) row[r] = keys.at(Full || r < rows ? r : rows - 1);
  Vec acc[kLanes];
  FASTMHA_UNROLL
  for (int i = 0; i < kLanes; ++i) acc[i] = Vec::zero();
  int64_t d = 0;
  for (; d + kLine <= size; d += kLine) {
    if (Prefetch) {
      FASTMHA_UNROLL
      for (int r = 0; r < kRows; ++r) prefetch(next.at(Full || r < rows ? r : rows - 1) + d);
    }
    FASTMHA_UNROLL
    for (int v = 0; v < kLine; v += kLanes) {
      Vec query[Heads];
      FASTMHA_UNROLL
      for (int h = 0; h < Heads; ++h) query[h] = Vec::load(queries + h * query_stride + d + v);
      FASTMHA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Vec key = in_register(Vec::load(row[r] + d + v));
        FASTMHA_UNROLL
        for (int h = 0; h < Heads; ++h) acc[h * kRows + r] = fma(key, query[h], acc[h * kRows + r]);
      }
    }
  }
  for (; d < size; d += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, size - d));
    FASTMHA_UNROLL
    for (int h = 0; h < Heads; ++h) {
      const Vec query = Vec::load_n(queries + h * query_stride + d, width);
      FASTMHA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        acc[h * kRows + r] = fma(Vec::load_n(row[r] + d, width), query, acc[h * kRows + r]);
      }
    }
  }
  const Vec scores = add_lanes(acc) * Vec::set1(scale);
  if (Heads == 1) {
    scores.store(score);
    return;
  }
  float lanes[kLanes];
  scores.store(lanes);
  FASTMHA_UNROLL
  for (int h = 0; h < Heads; ++h) {
    __builtin_memcpy(score + h * kSplit, lanes + h * kRows, kRows * sizeof(float));
  }
}

// Whether the query sees key j; the caller has applied the bounds by position.
FASTMHA_INLINE bool key_visible(const AttentionHead& head, int64_t j) {
  if (head.mask_kind == MaskKind::kBool) {
    return static_cast<const uint8_t*>(head.mask)[j * head.mask_key_stride] != 0;
  }
  return head.mask_kind != MaskKind::kFloat ||
         static_cast<const float*>(head.mask)[j * head.mask_key_stride] != -kInfinity;
}

// Heads heads' scores of a block of rows. `next` are the rows to ask for meanwhile, if this is the first to read the
// block.
template <int Heads, class Rows>
void dot_block(const float* queries, int64_t query_stride, Rows keys, int rows, int64_t size, Rows next,
               bool first, float scale, float* score) {
  constexpr int kRows = kLanes / Heads;
  for (int row = 0; row < rows; row += kRows) {
    const bool full = rows - row >= kRows;
    if (Heads == 1 && full && row_by_row(size)) {
      const auto tile = first ? dot_rows<true, Rows> : dot_rows<false, Rows>;
      tile(queries, keys.from(row), size, next.from(row), scale, score + row);
      continue;
    }
    const auto tile = first
                          ? (full ? dot_tile<Heads, true, true, Rows> : dot_tile<Heads, false, true, Rows>)
                          : (full ? dot_tile<Heads, true, false, Rows> : dot_tile<Heads, false, false, Rows>);
    tile(queries, query_stride, keys.from(row), rows - row, size, next.from(row), scale, score + row);
  }
}

// All heads' scores of `count` keys; `after` is what will be read next.
template <class Rows>
void dots(const float* queries, int64_t query_stride, int64_t heads, Rows keys, int64_t count, int64_t size,
          Rows after, float scale, float* score) {
  constexpr int kMost = kLanes / 4, kHalf = kMost >= 4 ? 2 : 1;  // heads that share a row's load
  const int64_t ahead =
      smaller(rows_ahead(heads, size), count);  // few keys: their values, and no rows that nobody reads
  for (int64_t at = 0; at < count; at += kBlock) {
    const int rows = static_cast<int>(smaller(kBlock, count - at));
    const Rows block = keys.from(at);
    const Rows next = at + ahead < count ? keys.from(at + ahead) : after.from(at + ahead - count);
    for (int64_t h = 0; h < heads;) {
      const int64_t left = heads - h;
      const auto some = left >= kMost   ? dot_block<kMost, Rows>
                        : left >= kHalf ? dot_block<kHalf, Rows>
                                        : dot_block<1, Rows>;
      some(queries + h * query_stride, query_stride, block, rows, size, next, h == 0, scale,
           score + h * kSplit + at);
      h += left >= kMost ? kMost : left >= kHalf ? kHalf : 1;
    }
  }
}

// score[j] += log2(e) * bias of key + j: a constant before and behind the distances that the bias tells apart.
void add_relative_bias(const AttentionHead& head, int64_t key, int64_t keys, float* score) {
  const RelativeBias& relative = head.relative;
  const int64_t first = key - head.offset;  // the first key's distance
  const int64_t near = larger(0, smaller(keys, -relative.reach - first));
  const int64_t far = larger(near, smaller(keys, relative.reach - first));
  const float lowest = kLog2e * relative.by_key[-relative.reach];
  const float highest = kLog2e * relative.by_key[relative.reach];
  for (int64_t j = 0; j < near; ++j) score[j] += lowest;
  const float* bias = relative.by_key + first;
  for (int64_t j = near; j < far; ++j) score[j] += kLog2e * bias[j];
  for (int64_t j = far; j < keys; ++j) score[j] += highest;
}

// Scaled dot products -> final log2 scores of keys [key, key + keys) of one head, hidden ones -infinity.
void finish_scores(const AttentionHead& head, int64_t key, int64_t keys, float* score) {
  if (head.softcap != 0) {
    const Vec cap = Vec::set1(head.softcap), inverse_cap = Vec::set1(1.0f / head.softcap);
    for (int64_t j = 0; j < keys; j += kLanes) {  // score has room for whole registers
      (cap * tanh_of_score(Vec::load(score + j) * inverse_cap)).store(score + j);
    }
  }
  if (head.slope != 0) {
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t distance = head.offset - (key + j);
      score[j] -= head.slope * static_cast<float>(distance < 0 ? -distance : distance);
    }
  }
  if (head.relative.by_key != nullptr) add_relative_bias(head, key, keys, score);
  if (head.mask_kind == MaskKind::kNone) return;
  for (int64_t j = 0; j < keys; ++j) {
    if (!key_visible(head, key + j)) {
      score[j] = -kInfinity;
    } else if (head.mask_kind == MaskKind::kFloat) {
      const float mask = static_cast<const float*>(head.mask)[(key + j) * head.mask_key_stride];
      const float bias = mask * kLog2e;
      score[j] += bias == -kInfinity ? -__FLT_MAX__ : bias;  // as mask_to_log2 in attention_mask.h
    }
  }
}

// Scores -> weights in place; returns their sum. Lanes past `keys` are set to -infinity first.
void decode_softmax(float* score, int64_t keys, float* max_out, float* sum_out) {
  const int64_t padded = (keys + kLanes - 1) / kLanes * kLanes;
  for (int64_t j = keys; j < padded; ++j) score[j] = -kInfinity;
  Vec top = Vec::set1(-kInfinity);
  for (int64_t j = 0; j < padded; j += kLanes) top = max(Vec::load(score + j), top);
  *max_out = reduce_max(top);
  const Vec pivot = Vec::set1(*max_out == -kInfinity ? 0.0f : *max_out);
  Vec sum = Vec::zero();
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec weight = exp2_small(Vec::load(score + j) - pivot);
    sum = sum + weight;
    weight.store(score + j);
  }
  *sum_out = reduce_add(sum);
}

// out[h * out_stride + d] += sum over keys of weights[h * kSplit + key] * V[key][d] for Heads heads and Vecs
// registers of d (the last one `width` wide). Hidden keys are stepped over. `next` are rows that will be read soon.
template <int Heads, int Vecs, bool Masked, bool Prefetch, class Rows>
FASTMHA_NOINLINE void value_tile(Rows values, int64_t keys, int width, Rows next, const float* weights,
                                 const uint8_t* visible, float* out, int64_t out_stride) {
  const auto load = [width](const float* p, int v) {
    return v + 1 < Vecs || width == kLanes ? Vec::load(p + v * kLanes) : Vec::load_n(p + v * kLanes, width);
  };
  Vec acc[Heads][Vecs];
  FASTMHA_UNROLL
  for (int h = 0; h < Heads; ++h) {
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) acc[h][v] = load(out + h * out_stride, v);
  }
  for (int64_t j = 0; j < keys; ++j) {
    if (Prefetch) {
      FASTMHA_UNROLL
      for (int d = 0; d < Vecs * kLanes; d += kLine) prefetch(next.at(j) + d);
    }
    if (Masked && !visible[j]) continue;
    Vec weight[Heads];
    FASTMHA_UNROLL
    for (int h = 0; h < Heads; ++h) weight[h] = Vec::set1(weights[h * kSplit + j]);
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      const Vec value = in_register(load(values.at(j), v));
      FASTMHA_UNROLL
      for (int h = 0; h < Heads; ++h) acc[h][v] = fma(weight[h], value, acc[h][v]);
    }
  }
  FASTMHA_UNROLL
  for (int h = 0; h < Heads; ++h) {
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      float* to = out + h * out_stride + v * kLanes;
      if (v + 1 < Vecs || width == kLanes) {
        acc[h][v].store(to);
      } else {
        acc[h][v].store_n(to, width);
      }
    }
  }
}

// Features [d, size) of Heads heads, Vecs registers at a time; returns the first feature that is left.
template <int Heads, int Vecs, bool Masked, class Rows>
FASTMHA_INLINE int64_t value_tiles(int64_t d, int64_t size, Rows values, int64_t keys, Rows next, bool first,
                                   const float* weights, const uint8_t* visible, float* out,
                                   int64_t out_stride) {
  const auto tile =
      first ? value_tile<Heads, Vecs, Masked, true, Rows> : value_tile<Heads, Vecs, Masked, false, Rows>;
  for (int64_t width; d < size && (size - d >= Vecs * kLanes || Vecs == 1); d += Vecs * width) {
    width = smaller(kLanes, size - d);
    tile(values.features_from(d), keys, static_cast<int>(width), next.features_from(d), weights, visible,
         out + d, out_stride);
  }
  return d;
}

// Most registers of features of a value tile: as many sums as there are registers for, so that they hide each other's
// latency (AVX2, two heads: 104 GFLOP/s a core with 6, 100 with 4).
template <int Heads>
constexpr int kValueVecs = Heads == 1                            ? 8
                           : Heads == 2 && Vec::kRegisters == 16 ? 6
                                                                 : 4;

// Heads heads' sums over a block of rows; `next` and `first` as in dot_block.
template <int Heads, bool Masked, class Rows>
void value_block(int64_t size, Rows values, int64_t keys, Rows next, bool first, const float* weights,
                 const uint8_t* visible, float* out, int64_t stride) {
  constexpr int kMost = kValueVecs<Heads>;
  int64_t d = 0;
  d = value_tiles<Heads, kMost, Masked>(d, size, values, keys, next, first, weights, visible, out, stride);
  d = value_tiles<Heads, 4, Masked>(d, size, values, keys, next, first, weights, visible, out, stride);
  d = value_tiles<Heads, 2, Masked>(d, size, values, keys, next, first, weights, visible, out, stride);
  value_tiles<Heads, 1, Masked>(d, size, values, keys, next, first, weights, visible, out, stride);
}

// All heads' sums over `keys` rows; `after` is what will be read next. What is masked is done head by head.
template <bool Masked, class Rows>
void outputs(int64_t heads, Rows values, int64_t keys, int64_t size, Rows after, const float* weights,
             const uint8_t* visible, float* out, int64_t stride) {
  // Heads that share a row's load.
  constexpr int kMost = Masked ? 1 : Vec::kRegisters == 32 ? 4 : 2, kHalf = kMost >= 2 ? 2 : 1;
  const bool one_tile =
      heads == 1 ? size <= kValueVecs<1> * kLanes : heads <= kMost && size <= kValueVecs<kMost> * kLanes;
  const int64_t block_rows = larger(kBlock, kValueBlock / larger(1, size));
  const int64_t ahead = smaller(rows_ahead(heads, size), keys);
  for (int64_t at = 0, rows; at < keys; at += rows) {
    const int64_t left = keys - at;
    rows = smaller(left, one_tile ? larger(ahead, left - ahead) : block_rows);
    const Rows next = left > ahead ? values.from(at + ahead) : after.from(ahead - left);
    for (int64_t h = 0; h < heads;) {
      const int64_t heads_left = heads - h;
      const auto some = heads_left >= kMost   ? value_block<kMost, Masked, Rows>
                        : heads_left >= kHalf ? value_block<kHalf, Masked, Rows>
                                              : value_block<1, Masked, Rows>;
      some(size, values.from(at), rows, next, h == 0, weights + h * kSplit + at,
           Masked ? visible + at : nullptr, out + h * stride, stride);
      h += heads_left >= kMost ? kMost : heads_left >= kHalf ? kHalf : 1;
    }
  }
}

// Keys [low, low + keys) of all heads; `later` is what will be read when they are done.
template <class Rows>
void decode_keys(const DecodeGroup& group, int64_t low, int64_t keys, Rows key_rows, Rows value_rows,
                 Rows later_keys, Rows later_values, float* state, float* scratch) {
  const AttentionHead& head = group.heads[0];
  const int64_t heads = group.count, state_stride = kStateHeader + head.value_dim;
  const int64_t query_stride = padded_to_line(head.head_dim);
  float* queries = scratch;
  float* score = queries + heads * query_stride;
  auto* visible = reinterpret_cast<uint8_t*>(score + heads * kSplit);

  for (int64_t h = 0; h < heads; ++h) {
    __builtin_memcpy(queries + h * query_stride, group.heads[h].query,
                     static_cast<size_t>(head.head_dim) * sizeof(float));
  }
  dots(queries, query_stride, heads, key_rows, keys, head.head_dim, later_values, head.scale, score);
  for (int64_t h = 0; h < heads; ++h) {
    float* header = state + h * state_stride;
    finish_scores(group.heads[h], low, keys, score + h * kSplit);
    if (group.heads[h].weights != nullptr) {
      __builtin_memcpy(group.heads[h].weights + low, score + h * kSplit,
                       static_cast<size_t>(keys) * sizeof(float));
    }
    decode_softmax(score + h * kSplit, keys, &header[0], &header[1]);
  }
  float* out = state + kStateHeader;
  if (head.mask_kind == MaskKind::kNone) {
    outputs<false>(heads, value_rows, keys, head.value_dim, later_keys, score, nullptr, out, state_stride);
    return;
  }
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t j = 0; j < keys; ++j) visible[j] = key_visible(group.heads[h], low + j);
    outputs<true>(1, value_rows, keys, head.value_dim, later_keys, score + h * kSplit, visible,
                  out + h * state_stride, state_stride);
  }
}

void decode(const DecodeGroup& group, int64_t index, float* state, float* scratch) {
  const AttentionHead& head = group.heads[0];
  const int64_t state_stride = kStateHeader + head.value_dim;
  for (int64_t h = 0; h < group.count; ++h) {
    float* header = state + h * state_stride;
    header[0] = -kInfinity;
    header[1] = 0.0f;
    __builtin_memset(header + kStateHeader, 0, static_cast<size_t>(head.value_dim) * sizeof(float));
  }
  const int64_t low = larger(index * kSplit, larger(0, head.offset - head.left));
  const int64_t high = smaller((index + 1) * kSplit, smaller(head.kv_len, head.offset + head.right + 1));
  const int64_t keys = high - low;
  if (keys <= 0) return;

  // Few keys take less time than it takes to fetch as many: those of a later group are asked for. Else a group asks for
  // its own values, and where it ends for what comes then.
  const bool last = group.later_key != nullptr && high == head.kv_len,
             few = last && keys <= rows_ahead(group.count, head.head_dim);
  if (group.slots == nullptr) {
    const EvenRows key_rows = EvenRows{head.key, head.key_stride}.from(low);
    const EvenRows value_rows = EvenRows{head.value, head.value_stride}.from(low);
    decode_keys(group, low, keys, key_rows, value_rows,
                last ? EvenRows{group.later_key, head.key_stride} : key_rows.from(keys),
                few ? EvenRows{group.later_value, head.value_stride} : value_rows, state, scratch);
  } else {
    const auto rows = [&](const float* first, int64_t stride, const int64_t* slots, int64_t slot_stride) {
      return SlotRows{first, stride, slots, slot_stride};
    };
    const SlotRows key_rows = rows(head.key, head.key_stride, group.slots, group.key_slot).from(low);
    const SlotRows value_rows = rows(head.value, head.value_stride, group.slots, group.value_slot).from(low);
    decode_keys(
        group, low, keys, key_rows, value_rows,
        last ? rows(group.later_key, head.key_stride, group.later_slots, group.key_slot)
             : key_rows.from(keys),
        few ? rows(group.later_value, head.value_stride, group.later_slots, group.value_slot) : value_rows,
        state, scratch);
  }
}

// m <- max(m1, m2);  o <- o1 * exp2(m1 - m) + o2 * exp2(m2 - m);  l likewise
void decode_merge(float* left, const float* right, int64_t value_dim) {
  const float top = left[0] > right[0] ? left[0] : right[0];
  const float pivot = top == -kInfinity ? 0.0f : top;
  const Vec left_scale = exp2_small(Vec::set1(left[0] - pivot));
  const Vec right_scale = exp2_small(Vec::set1(right[0] - pivot));
  left[0] = top;
  float scales[2][kLanes];
  left_scale.store(scales[0]);
  right_scale.store(scales[1]);
  left[1] = left[1] * scales[0][0] + right[1] * scales[1][0];
  for (int64_t d = 0; d < value_dim; d += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, value_dim - d));
    const Vec merged = fma(Vec::load_n(right + kStateHeader + d, width), right_scale,
                           Vec::load_n(left + kStateHeader + d, width) * left_scale);
    merged.store_n(left + kStateHeader + d, width);
  }
}

void decode_finish(const AttentionHead& head, const float* state) {
  const float top = state[0], sum = state[1];
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  const Vec scale = Vec::set1(inverse);
  for (int64_t d = 0; d < head.value_dim; d += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, head.value_dim - d));
    // + 0 as in write_output.
    (Vec::load_n(state + kStateHeader + d, width) * scale + Vec::zero()).store_n(head.out + d, width);
  }
  if (head.lse != nullptr) *head.lse = sum == 0.0f ? -kInfinity : top * kLn2 + __builtin_logf(sum);
  if (head.weights == nullptr) return;
  const int64_t low = larger(0, head.offset - head.left);
  const int64_t high = smaller(head.kv_len, head.offset + head.right + 1);
  const Vec pivot = Vec::set1(top == -kInfinity ? 0.0f : top);
  for (int64_t j = 0; j < head.kv_len; j += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, head.kv_len - j));
    (exp2_small(Vec::load_n(head.weights + j, width) - pivot) * scale).store_n(head.weights + j, width);
  }
  for (int64_t j = 0; j < head.kv_len; ++j) {
    if (j < low || j >= high || !key_visible(head, j)) head.weights[j] = 0.0f;
  }
}

}  // namespace

extern "C" const DecodeKernels FASTMHA_KERNEL_SYMBOL(decode) = {
    "attention_decode_f32_" FASTMHA_STRINGIZE(FASTMHA_KERNEL_ISA),
    kSplit,
    decode_scratch,
    decode,
    decode_merge,
    decode_finish,
};

}  // namespace fastmha
