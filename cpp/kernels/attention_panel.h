// A panel of queries: its scratch and state, how its queries come in and its results go out.
#pragma once

#include "attention.h"
#include "attention_tiles.h"

namespace fastmha {
namespace {

// Scratch and state of a panel. All but `visible` are [row][kBq lanes].
struct Panel {
  const AttentionHead& head;
  int64_t first;    // its first query
  int rows;         // its queries, 1 .. kBq
  int64_t key_low;  // keys that any of its queries may see: [key_low, key_high)
  int64_t key_high;
  float* query;       // [head_dim]
  float* out;         // [value_dim]
  float* score;       // [kBk]: scores, then weights
  float* bias;        // [kBk]: the float mask
  float* max;         // [1]: of the blocks that are in sum and out
  float* top;         // [1]: of the scores so far, the block in work included
  float* sum;         // [1]
  float* alpha;       // [1]: what earlier blocks are rescaled by
  uint32_t* visible;  // [kBk] words: bit r is set when query r sees the key
  Fetch* fetch;       // what later panels read
  // Rows of K and V from key `rows_from` on: the head's own from 0, or a copy of the block in work.
  int64_t rows_from;
  const float* key_rows;
  const float* value_rows;
  int64_t key_stride, value_stride;
  Strides strides;

  FASTMHA_INLINE int64_t low_of(int64_t row) const { return first_visible(head, first + row); }
  FASTMHA_INLINE int64_t high_of(int64_t row) const { return after_visible(head, first + row); }
};

// What a panel keeps from block to block, and what is free again after each.
constexpr size_t kept_floats(int64_t head_dim, int64_t value_dim) {
  return static_cast<size_t>(kBq) * static_cast<size_t>(head_dim + value_dim + 4);
}
constexpr size_t kBlockFloats = static_cast<size_t>(kBq) * 2 * kBk + kBk;

size_t panel_scratch(int64_t head_dim, int64_t value_dim) {
  return kept_floats(head_dim, value_dim) + kBlockFloats;
}

// `kept` and `block` are scratch of the sizes above.
Panel make_panel(const AttentionHead& head, int64_t first, float* kept, float* block, Fetch* fetch) {
  Panel p{head,
          first,
          static_cast<int>(smaller(kBq, head.q_len - first)),
          0,
          0,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          fetch,
          0,
          head.key,
          head.value,
          head.key_stride,
          head.value_stride,
          Strides(head.key_stride, head.value_stride)};
  // Both bounds grow with the row.
  p.key_low = p.low_of(0);
  p.key_high = p.high_of(p.rows - 1);
  if (p.key_low >= p.key_high) p.key_low = p.key_high = 0;  // a window beyond the last key: no block at all
  p.query = kept;
  p.out = p.query + head.head_dim * kBq;
  p.max = p.out + head.value_dim * kBq;
  p.top = p.max + kBq;
  p.sum = p.top + kBq;
  p.alpha = p.sum + kBq;
  p.score = block;
  p.bias = p.score + kBk * kBq;
  p.visible = reinterpret_cast<uint32_t*>(p.bias + kBk * kBq);
  return p;
}

// sink(column, v, x) with x[lane] = from[(v * kLanes + lane) * stride + column], lanes past `rows` zero.
template <int Vecs, class Sink>
FASTMHA_INLINE void transpose_in(const float* from, int64_t stride, int rows, int64_t columns, Sink sink) {
  for (int v = 0; v < Vecs; ++v) {
    const int live = rows - v * kLanes < 0 ? 0 : (rows - v * kLanes < kLanes ? rows - v * kLanes : kLanes);
    for (int64_t column = 0; column < columns; column += kLanes) {
      const int width = static_cast<int>(smaller(kLanes, columns - column));
      const float* corner = from + v * kLanes * stride + column;
      Vec block[kLanes];
      if (live == kLanes && width == kLanes) {
        FASTMHA_UNROLL
        for (int r = 0; r < kLanes; ++r) block[r] = Vec::load(corner + r * stride);
      } else {
        FASTMHA_UNROLL
        for (int r = 0; r < kLanes; ++r)
          block[r] = r < live ? Vec::load_n(corner + r * stride, width) : Vec::zero();
      }
      transpose(block);
      for (int c = 0; c < width; ++c) sink(column + c, v, block[c]);
    }
  }
}

// to[d][lane] = scale * query
template <int Vecs>
void load_queries(const Panel& p) {
  const AttentionHead& head = p.head;
  const Vec scale = Vec::set1(head.scale);
  transpose_in<Vecs>(head.query + p.first * head.query_stride, head.query_stride, p.rows, head.head_dim,
                     [&](int64_t d, int v, Vec x) { (x * scale).store(p.query + d * kBq + v * kLanes); });
}

// to[lane * stride + column] = from[column][lane] * factor[lane] for lanes below `rows`.
template <int Vecs>
void transpose_out(const float* from, int64_t columns, int rows, const float* factor, float* to,
                   int64_t stride) {
  for (int v = 0; v < Vecs; ++v) {
    const int live = rows - v * kLanes < 0 ? 0 : (rows - v * kLanes < kLanes ? rows - v * kLanes : kLanes);
    const Vec scale = Vec::load(factor + v * kLanes);
    for (int64_t column = 0; column < columns; column += kLanes) {
      const int width = static_cast<int>(smaller(kLanes, columns - column));
      float* corner = to + v * kLanes * stride + column;
      Vec block[kLanes];
      FASTMHA_UNROLL
      for (int c = 0; c < kLanes; ++c) {
        // + 0: whether a negative sum that underflowed is -0 or +0 would depend on the masked keys behind it.
        block[c] =
            c < width ? Vec::load(from + (column + c) * kBq + v * kLanes) * scale + Vec::zero() : Vec::zero();
      }
      transpose(block);
      if (width == kLanes) {
        for (int r = 0; r < live; ++r) block[r].store(corner + r * stride);
      } else {
        for (int r = 0; r < live; ++r) block[r].store_n(corner + r * stride, width);
      }
    }
  }
}

}  // namespace
}  // namespace fastmha
