// Register tiles of the attention panels: scores from rows of K, weights and outputs from rows of V. Lanes are queries,
// two registers of them or one.
#pragma once

#include "attention_common.h"

namespace fastmha {
namespace {

constexpr int kBq = 2 * kLanes;
// 128 keys of 64 floats are 32 KiB: K, then V, of a block stays in the first-level cache. 256 measured the
// same.
constexpr int kBk = 128;
// Rows of a register tile: 14 x 2 accumulators, 2 operands and a broadcast fill 32 registers; 6 x 2 fill 16.
constexpr int kTileRows = Vec::kRegisters == 32 ? 14 : 6;
// Rows of the tile that also turns scores into weights and needs registers for that.
constexpr int kWeighRows = Vec::kRegisters == 32 ? 8 : 4;
constexpr int kKeysAhead = 8;
// The first-level cache has 64 sets of 64 bytes: rows that are a multiple of 4 KiB apart, as (length, 8 heads, 128)
// gives, fall into one set of 12 lines, those that are 2 KiB apart into two.
constexpr int64_t kSetSpan = 1024;  // floats

// How to walk through K and V of a head.
struct Strides {
  int64_t tile_rows = kTileRows;  // most keys of a score tile
  int64_t key_ahead;              // from the next tile's row of K to the one below, or 0: no fetching ahead
  int64_t value_ahead;            // from a row of V to the one to fetch meanwhile

  // Share of the peak on (length, 8 heads, 128), one set: 75% with tiles of 14 keys, which push each other out, 82%
  // with 10, 87% with 10 that do not fetch the next ones and 4 rows of V ahead. On (length, 8 heads, 64), two sets:
  // 85% with 14, 88% with 10, 85% without fetching.
  Strides(int64_t key_stride, int64_t value_stride)
      : key_ahead(key_stride), value_ahead(kKeysAhead * value_stride) {
    if (key_stride % (kSetSpan / 2) == 0) tile_rows = smaller(10, kTileRows);
    if (key_stride % kSetSpan == 0) key_ahead = 0;
    if (value_stride % kSetSpan == 0) value_ahead /= 2;
  }
};

// ---- what comes next ---------------------------------------------------------------------------------------

// Walks through rows that will be read later, some of them every kLine features of a tile of scores: asked for in one
// burst before each tile they kept the tile's own loads waiting. Whole rows, so that a line costs two instructions, and
// into the first-level cache. Each of the three counts. Together, two threads, AVX-512: 32 x 12 x 128 x 64 3.98 -> 3.70
// ms (4.76 without any), as (B, L, H, D) 4.78 -> 4.04, causal 2.77 -> 2.52, ragged sequences of 8 to 512 29.0 -> 27.0;
// 1 x 8 x 128 x 64, which is in a cache anyway, 77.3 -> 75.1 us (74.1 without any).
constexpr int64_t kLine = 16;  // floats
struct Fetch {
  const UpcomingRows* range = nullptr;
  const UpcomingRows* end = nullptr;
  int64_t lines_per_step = 0, row = 0;

  Fetch() = default;
  // `tiles` of scores, each over `depth` features.
  Fetch(const UpcomingRows* ranges, int count, int64_t tiles, int64_t depth)
      : range(ranges), end(ranges + count) {
    int64_t lines = 0;
    for (int i = 0; i < count; ++i) lines += ranges[i].count * ((ranges[i].width + kLine - 1) / kLine);
    const int64_t steps = larger(1, tiles * ((depth + kLine - 1) / kLine));
    lines_per_step = (lines + steps - 1) / steps;
  }

  FASTMHA_INLINE void step() {
    for (int64_t left = lines_per_step; left > 0; ++row) {
      while (row >= range->count) {
        row = 0;
        if (++range == end) {
          lines_per_step = 0;
          return;
        }
      }
      const float* at = range->rows + row * range->stride;
      for (const float* stop = at + range->width; at < stop; at += kLine, --left) __builtin_prefetch(at);
    }
  }
};

// ---- register tiles --------------------------------------------------------------------------------------

// out[row][lane] = sum over k of rows[row * stride + k] * columns[k][lane], and top[lane] = max(top[lane], out's
// rows): while the scores are still in registers the maximum costs nothing, a pass of its own 2% of the time.
template <int Rows, int Vecs>
void score_tile(const float* rows, int64_t stride, int64_t stride_ahead, const float* columns, int64_t depth,
                Fetch* fetch, float* out, float* top) {
  Vec acc[Rows][Vecs];
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) acc[r][v] = Vec::zero();
  }
  // Rows of the next tile, line by line as this one gets there.
  const float* ahead = rows;
  for (int64_t k = 0; k < depth; ++k) {
    const bool line_begins = (k & (kLine - 1)) == 0;
    if (line_begins) fetch->step();
    ahead = line_begins ? rows + Rows * stride_ahead + k : ahead + stride_ahead;
    __builtin_prefetch(ahead);
    Vec column[Vecs];
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) column[v] = Vec::load(columns + k * kBq + v * kLanes);
    FASTMHA_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Vec scalar = Vec::set1(rows[r * stride + k]);
      FASTMHA_UNROLL
      for (int v = 0; v < Vecs; ++v) acc[r][v] = fma(scalar, column[v], acc[r][v]);
    }
  }
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    // In this order a NaN score leaves the maximum alone; its own weight becomes NaN later.
    Vec highest = Vec::load(top + v * kLanes);
    FASTMHA_UNROLL
    for (int r = 0; r < Rows; ++r) {
      highest = max(acc[r][v], highest);
      acc[r][v].store(out + r * kBq + v * kLanes);
    }
    highest.store(top + v * kLanes);
  }
}

template <int Rows, int Vecs>
FASTMHA_INLINE void clear_tile(Vec (&acc)[Rows][Vecs]) {
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) acc[r][v] = Vec::zero();
  }
}

// acc[row][lane] += row[r] * weight[lane]
template <int Rows, int Vecs>
FASTMHA_INLINE void add_value_row(const float* row, int64_t ahead, const Vec (&weight)[Vecs],
                                  Vec (&acc)[Rows][Vecs]) {
  // The same place some keys on, which is at most two lines. Rows that are 2 KiB or more apart are gone from the
  // first-level cache before the next tile comes to them, so that fetching for that tile does not help there: 87%
  // of the peak on (512, 8 heads, 64) instead of 88.5%, and 82% without any fetching. 12 keys: 0.5% less.
  __builtin_prefetch(row + ahead);
  __builtin_prefetch(row + ahead + Rows - 1);
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const Vec scalar = Vec::set1(row[r]);
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) acc[r][v] = fma(scalar, weight[v], acc[r][v]);
  }
}

// out <- alpha * out + acc, what earlier blocks left, rescaled, and this block's sums. Without alpha nothing has been
// left yet. Every block sums from zero: one chain over all keys, started from the rescaled output, had 8 times
// PyTorch's largest error at 8192 keys, and is no faster.
template <int Rows, int Vecs>
FASTMHA_INLINE void add_to_output(const Vec (&acc)[Rows][Vecs], const float* alpha, float* out) {
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    if (alpha != nullptr) {
      const Vec scale = Vec::load(alpha + v * kLanes);
      FASTMHA_UNROLL
      for (int r = 0; r < Rows; ++r) {
        float* at = out + r * kBq + v * kLanes;
        fma(Vec::load(at), scale, acc[r][v]).store(at);
      }
    } else {
      FASTMHA_UNROLL
      for (int r = 0; r < Rows; ++r) acc[r][v].store(out + r * kBq + v * kLanes);
    }
  }
}

// Keys [0, keys) of a block. The second register of queries does not see those before `both`, the first those from
// `late` on: at the edge of a causal panel that saves a quarter of the work.
struct KeyRange {
  int64_t both, late, keys;
};

// acc[row] += row[r] * weight, for one register of queries out of two
template <int Rows, int Vecs>
FASTMHA_INLINE void add_value_rows_to(int v, const float* values, int64_t stride, const float* weights,
                                      int64_t from, int64_t to, Vec (&acc)[Rows][Vecs]) {
  for (int64_t key = from; key < to; ++key) {
    const Vec weight = Vec::load(weights + key * kBq + v * kLanes);
    FASTMHA_UNROLL
    for (int r = 0; r < Rows; ++r) acc[r][v] = fma(Vec::set1(values[key * stride + r]), weight, acc[r][v]);
  }
}

// out[row][lane] = alpha[lane] * out[row][lane] + sum over keys of values[key * stride + row] *
// weights[key][lane]
template <int Rows, int Vecs>
void output_tile(const float* values, int64_t stride, int64_t ahead, const float* weights,
                 const KeyRange& range, const float* alpha, float* out) {
  Vec acc[Rows][Vecs];
  clear_tile(acc);
  add_value_rows_to(0, values, stride, weights, 0, range.both, acc);
  for (int64_t key = range.both; key < range.late; ++key) {
    Vec weight[Vecs];
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) weight[v] = Vec::load(weights + key * kBq + v * kLanes);
    add_value_row(values + key * stride, ahead, weight, acc);
  }
  add_value_rows_to(Vecs - 1, values, stride, weights, range.late, range.keys, acc);
  add_to_output(acc, alpha, out);
}

// weights[0][lane] = 2^(scores[0][lane] - top[lane])
template <int Vecs>
FASTMHA_INLINE void weigh_key(const Vec (&top)[Vecs], float* scores, Vec (&weight)[Vecs]) {
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    weight[v] = exp2_small(Vec::load(scores + v * kLanes) - top[v]);
    weight[v].store(scores + v * kLanes);
  }
}

// The output tile that comes first: its weights are still scores. sum[lane] = alpha[lane] * sum[lane] + their sum.
// The exponential's additions, comparisons and roundings run on other pipes than the tile's FMAs, and its latency
// hides behind them: one key's weights are computed while the key before is multiplied.
template <int Vecs>
void weigh_tile(const float* values, int64_t stride, int64_t ahead, float* scores, int64_t keys,
                const float* max, const float* alpha, bool first, float* sum, float* out) {
  Vec acc[kWeighRows][Vecs], top[Vecs], total[Vecs], weight[Vecs];
  clear_tile(acc);
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    top[v] = Vec::load(max + v * kLanes);
    total[v] = Vec::zero();
  }
  weigh_key(top, scores, weight);
  for (int64_t key = 0; key < keys - 1; ++key) {
    Vec next[Vecs];
    weigh_key(top, scores + (key + 1) * kBq, next);
    add_value_row(values + key * stride, ahead, weight, acc);
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      total[v] = total[v] + weight[v];
      weight[v] = next[v];
    }
  }
  add_value_row(values + (keys - 1) * stride, ahead, weight, acc);
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    total[v] = total[v] + weight[v];
    fma(Vec::load(sum + v * kLanes), Vec::load(alpha + v * kLanes), total[v]).store(sum + v * kLanes);
  }
  add_to_output(acc, first ? nullptr : alpha, out);
}

using ScoreTile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, Fetch*, float*, float*);
using OutputTile = void (*)(const float*, int64_t, int64_t, const float*, const KeyRange&, const float*,
                            float*);

// One kernel per height, so that rows can be shared out evenly: 128 keys are 8 x 13 + 2 x 12 and leave no
// ragged tail.
template <int Vecs>
struct Tiles;
#define FASTMHA_TILES_LOW(kernel, vecs)                                                                 \
  kernel<1, vecs>, kernel<1, vecs>, kernel<2, vecs>, kernel<3, vecs>, kernel<4, vecs>, kernel<5, vecs>, \
      kernel<6, vecs>
#if defined(FASTMHA_KERNEL_ISA_AVX512)
#define FASTMHA_TILES(kernel, vecs)                                                                     \
  FASTMHA_TILES_LOW(kernel, vecs), kernel<7, vecs>, kernel<8, vecs>, kernel<9, vecs>, kernel<10, vecs>, \
      kernel<11, vecs>, kernel<12, vecs>, kernel<13, vecs>, kernel<14, vecs>
#else
#define FASTMHA_TILES(kernel, vecs) FASTMHA_TILES_LOW(kernel, vecs)
#endif
template <>
struct Tiles<1> {
  static constexpr ScoreTile kScore[] = {FASTMHA_TILES(score_tile, 1)};
  static constexpr OutputTile kOutput[] = {FASTMHA_TILES(output_tile, 1)};
};
template <>
struct Tiles<2> {
  static constexpr ScoreTile kScore[] = {FASTMHA_TILES(score_tile, 2)};
  static constexpr OutputTile kOutput[] = {FASTMHA_TILES(output_tile, 2)};
};

}  // namespace
}  // namespace fastmha
