// Attention for one panel of queries: online softmax over blocks of keys, computed transposed.
//
// Lanes are queries. A panel of bq = 2 registers of queries is transposed once (and multiplied by the scale);
// then keys and values are read as scalars from row-major memory, so neither is packed or copied, for grouped
// heads included:
//
//   S^T[key][lane]  = sum over d of K[key][d] * Q^T[d][lane]    keys down the rows, queries across the lanes
//   m, P^T, sum     = lane-vertical, no shuffles
//   O^T[d][lane]   += sum over keys of V[key][d] * P^T[key][lane]
//
// What this buys beside speed: a lane's arithmetic does not depend on the other lanes, on where a tile starts
// or on how high it is. Blocks of bk keys count from key 0. So a query's result depends on its own visible
// keys alone, bit for bit, whatever panel, batch, padding or thread it is in.
//
// One panel passes over all its keys before the next one starts. Two panels that share each tile of K and V,
// so that it comes from the second-level cache half as often, measured the same within 2% at head_dim 64 and
// 128.
//
// A masked (query, key) pair never contributes: its score is replaced (not biased) by -infinity, whose weight
// is exactly 0, and where a masked value row might hold NaN or infinity (0 * NaN is NaN) the product is
// skipped by selection.
#include "attention.h"

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

// ---- register tiles --------------------------------------------------------------------------------------

// out[row][lane] = sum over k of rows[row * stride + k] * columns[k][lane], and top[lane] = max(top[lane], out's
// rows): while the scores are still in registers the maximum costs nothing, a pass of its own 2% of the time.
template <int Rows, int Vecs>
void score_tile(const float* rows, int64_t stride, int64_t stride_ahead, const float* columns, int64_t depth,
                float* out, float* top) {
  Vec acc[Rows][Vecs];
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) acc[r][v] = Vec::zero();
  }
  // Rows of the next tile, line by line as this one gets there.
  const float* ahead = rows;
  for (int64_t k = 0; k < depth; ++k) {
    ahead = (k & 15) == 0 ? rows + Rows * stride_ahead + k : ahead + stride_ahead;
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

using ScoreTile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, float*, float*);
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

// ---- one panel -------------------------------------------------------------------------------------------

// Walks through rows that will be read later, a few cache lines per register tile.
// As many tiles share them as there are tiles of scores. Spread over the tiles of values, too, they left
// 32 x 12 x 128 x 64 and ragged batches as they were, and (B, L, H, D) got 6% slower.
struct Fetch {
  const UpcomingRows* range;
  const UpcomingRows* end;
  int64_t lines_per_tile = 0, row = 0, column = 0;

  Fetch(const AttentionHead& head, int64_t tiles) : range(head.upcoming), end(head.upcoming + 4) {
    int64_t lines = 0;
    for (const UpcomingRows& rows : head.upcoming) lines += rows.count * ((rows.width + 15) / 16);
    lines_per_tile = (lines + tiles - 1) / tiles;
  }

  FASTMHA_INLINE void step() {
    for (int64_t line = 0; line < lines_per_tile; ++line) {
      while (row >= range->count) {
        row = column = 0;
        if (++range == end) {
          lines_per_tile = 0;
          return;
        }
      }
      __builtin_prefetch(range->rows + row * range->stride + column, 0, 2);
      column += 16;
      if (column >= range->width) {
        column = 0;
        ++row;
      }
    }
  }
};

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
  Strides strides;

  FASTMHA_INLINE int64_t low_of(int64_t row) const { return first_visible(head, first + row); }
  FASTMHA_INLINE int64_t high_of(int64_t row) const { return after_visible(head, first + row); }
};

size_t panel_scratch(int64_t head_dim, int64_t value_dim) {
  return static_cast<size_t>(kBq) * static_cast<size_t>(head_dim + value_dim + 2 * kBk + 4) + kBk;
}

Panel make_panel(const AttentionHead& head, int64_t first, float* scratch, Fetch* fetch) {
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
          nullptr,
          Strides(head.key_stride, head.value_stride)};
  // Both bounds grow with the row.
  p.key_low = p.low_of(0);
  p.key_high = p.high_of(p.rows - 1);
  if (p.key_low >= p.key_high) p.key_low = p.key_high = 0;  // a window beyond the last key: no block at all
  p.fetch = fetch;
  p.query = scratch;
  p.out = p.query + head.head_dim * kBq;
  p.score = p.out + head.value_dim * kBq;
  p.bias = p.score + kBk * kBq;
  p.max = p.bias + kBk * kBq;
  p.top = p.max + kBq;
  p.sum = p.top + kBq;
  p.alpha = p.sum + kBq;
  p.visible = reinterpret_cast<uint32_t*>(p.alpha + kBq);
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

// ---- masks -----------------------------------------------------------------------------------------------

// Bits [from, to) of a word, both clamped to the panel.
FASTMHA_INLINE uint32_t bit_range(int64_t from, int64_t to) {
  from = larger(0, from);
  to = smaller(32, to);
  if (from >= to) return 0;
  return static_cast<uint32_t>(((uint64_t{1} << to) - 1) & ~((uint64_t{1} << from) - 1));
}

// The queries that may see key j by position: i + offset - left <= j <= i + offset + right. All of them see
// [clear_from, clear_to).
void visible_by_position(const Panel& p, int64_t key, int64_t keys, int64_t clear_from, int64_t clear_to) {
  const AttentionHead& head = p.head;
  const auto edge = [&](int64_t from, int64_t to) {
    for (int64_t j = from; j < to; ++j) {
      const int64_t relative = key + j - head.offset - p.first;
      p.visible[j] = bit_range(relative - head.right, smaller(p.rows, relative + head.left + 1));
    }
  };
  edge(0, clear_from);
  const uint32_t all = bit_range(0, p.rows);
  for (int64_t j = clear_from; j < clear_to; ++j) p.visible[j] = all;
  edge(clear_to, keys);
}

// Bit c of word r <-> bit r of word c: swaps of ever smaller quarters.
FASTMHA_INLINE void transpose_bits(uint32_t (&words)[32]) {
  uint32_t low = 0x0000ffff;
  FASTMHA_UNROLL
  for (int size = 16; size > 0; size /= 2, low ^= low << size) {
    for (int quarter = 0; quarter < 32; quarter += 2 * size) {
      for (int r = quarter; r < quarter + size; ++r) {
        const uint32_t swapped = ((words[r] >> size) ^ words[r + size]) & low;
        words[r] ^= swapped << size;
        words[r + size] ^= swapped;
      }
    }
  }
}

// A row of a mask is far from the next, and no hardware sees the pattern: what the next block needs is fetched while
// this one is computed (a float mask of 2048 x 2048: 63% -> 65% of the peak, a bool one 73% -> 75%).
FASTMHA_INLINE void fetch_mask(const Panel& p, int64_t key, int64_t bytes) {
  const AttentionHead& head = p.head;
  if (head.mask_query_stride == 0 || head.mask_key_stride != 1) return;
  const char* next =
      static_cast<const char*>(head.mask) + (p.first * head.mask_query_stride + key + kBk) * bytes;
  for (int r = 0; r < p.rows; ++r) {
    for (int64_t at = 0; at < kBk * bytes; at += 64) {
      __builtin_prefetch(next + r * head.mask_query_stride * bytes + at, 0, 2);
    }
  }
}

void hide_by_bool_mask(const Panel& p, int64_t key, int64_t keys) {
  const AttentionHead& head = p.head;
  const auto* mask =
      static_cast<const uint8_t*>(head.mask) + p.first * head.mask_query_stride + key * head.mask_key_stride;
  if (head.mask_query_stride == 0) {  // a mask of keys alone
    for (int64_t j = 0; j < keys; ++j) p.visible[j] = mask[j * head.mask_key_stride] ? p.visible[j] : 0;
    return;
  }
  // 32 keys at a time: a word of bits per query, turned into a word per key. Bit by bit it cost a fifth of the time.
  for (int64_t from = 0; from < keys; from += 32) {
    const int64_t count = smaller(32, keys - from);
    uint32_t words[32] = {};
    for (int r = 0; r < p.rows; ++r) {
      const uint8_t* row = mask + r * head.mask_query_stride + from * head.mask_key_stride;
      uint8_t bytes[32] = {};
      if (head.mask_key_stride != 1) {
        for (int64_t j = 0; j < count; ++j) bytes[j] = row[j * head.mask_key_stride];
        row = bytes;
      } else if (count < 32) {
        __builtin_memcpy(bytes, row, static_cast<size_t>(count));
        row = bytes;
      }
      words[r] = nonzero_bytes(row);
    }
    transpose_bits(words);
    for (int64_t j = 0; j < count; ++j) p.visible[from + j] &= words[j];
  }
}

// A float mask in units of log2. A finite one stays finite: the lowest float, a common way to say "masked",
// times log2(e) would overflow to the -infinity that hides a key.
FASTMHA_INLINE Vec mask_to_log2(Vec mask) { return max(Vec::set1(-__FLT_MAX__), mask * Vec::set1(kLog2e)); }

// bias[key][lane] = log2(e) * mask; -infinity hides the key.
template <int Vecs>
void load_float_mask(const Panel& p, int64_t key, int64_t keys) {
  const AttentionHead& head = p.head;
  const float* mask =
      static_cast<const float*>(head.mask) + p.first * head.mask_query_stride + key * head.mask_key_stride;
  const auto take = [&](int64_t j, int v, Vec bias) {
    const Mask hides = equal(bias, Vec::set1(-kInfinity));
    p.visible[j] &= ~(to_bits(hides) << (v * kLanes));
    mask_to_log2(bias).store(p.bias + j * kBq + v * kLanes);
  };
  if (head.mask_query_stride != 0 && head.mask_key_stride == 1) {
    transpose_in<Vecs>(mask, head.mask_query_stride, p.rows, keys, take);
    return;
  }
  for (int64_t j = 0; j < keys; ++j) {
    float lanes[kBq] = {};
    for (int r = 0; r < p.rows; ++r) lanes[r] = mask[r * head.mask_query_stride + j * head.mask_key_stride];
    for (int v = 0; v < Vecs; ++v) take(j, v, Vec::load(lanes + v * kLanes));
  }
}

// ---- one block of keys -----------------------------------------------------------------------------------

// Scores of keys [from, to) of the block that starts at `key` for the queries from register `lane` on, and their
// maximum into `top`.
template <int Vecs>
void compute_scores(const Panel& p, int64_t key, int64_t from, int64_t to, int lane, float* top) {
  if (from == to) return;
  const AttentionHead& head = p.head;
  const EvenTiles tiles(to - from, p.strides.tile_rows);
  for (int64_t tile = 0; tile < tiles.count; ++tile) {
    p.fetch->step();
    const int64_t height = tiles.height(tile);
    Tiles<Vecs>::kScore[height](head.key + (key + from) * head.key_stride, head.key_stride,
                                p.strides.key_ahead, p.query + lane, head.head_dim,
                                p.score + from * kBq + lane, top + lane);
    from += height;
  }
}

// softcap * tanh(s / softcap), then -slope * |i + offset - j|, then + relative bias, then + mask, then -infinity where
// hidden; and the maximum of what comes out.
template <int Vecs>
void finish_scores(const Panel& p, int64_t key, int64_t from, int64_t to, bool hides) {
  if (from == to) return;
  const AttentionHead& head = p.head;
  float lane_index[kBq];
  for (int r = 0; r < kBq; ++r) lane_index[r] = static_cast<float>(r);
  const Vec hidden = Vec::set1(-kInfinity);
  const Vec cap = Vec::set1(head.softcap),
            inverse_cap = Vec::set1(head.softcap != 0 ? 1.0f / head.softcap : 0.0f);
  const Vec slope = Vec::set1(head.slope);
  const RelativeBias& relative = head.relative;
  Vec top[Vecs];
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) top[v] = Vec::load(p.top + v * kLanes);
  for (int64_t j = from; j < to; ++j) {
    // Position of the panel's first query relative to the key; exact in float up to 2^24.
    const int64_t behind = p.first + head.offset - (key + j);
    const Vec distance = Vec::set1(static_cast<float>(behind));
    const float* biases =
        relative.by_query + (smaller(larger(behind, relative.low), relative.high) - relative.low);
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      float* at = p.score + j * kBq + v * kLanes;
      Vec s = Vec::load(at);
      if (head.softcap != 0) s = cap * tanh_of_score(s * inverse_cap);
      if (head.slope != 0) s = fnma(slope, abs(distance + Vec::load(lane_index + v * kLanes)), s);
      if (relative.by_query != nullptr) s = s + Vec::load(biases + v * kLanes);
      if (head.mask_kind == MaskKind::kFloat) s = s + Vec::load(p.bias + j * kBq + v * kLanes);
      if (hides) s = select(Mask::from_bits(p.visible[j] >> (v * kLanes)), s, hidden);
      top[v] = max(s, top[v]);
      s.store(at);
    }
  }
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) top[v].store(p.top + v * kLanes);
}

enum class Visible { kNothing, kSome, kAll };

// Adds the mask to the words of a block. Keys behind the last one that anybody sees are dropped: they would add
// nothing, and what padding leaves is often visible to all.
template <int Vecs>
Visible look_at_mask(const Panel& p, int64_t key, int64_t* keys) {
  if (p.head.mask_kind == MaskKind::kBool) {
    hide_by_bool_mask(p, key, *keys);
    fetch_mask(p, key, 1);
  } else {
    load_float_mask<Vecs>(p, key, *keys);
    fetch_mask(p, key, 4);
  }
  const uint32_t all = bit_range(0, p.rows);
  while (*keys > 0 && (p.visible[*keys - 1] & all) == 0) --*keys;
  if (*keys == 0) return Visible::kNothing;
  uint32_t seen_by_all = all;
  for (int64_t j = 0; j < *keys; ++j) seen_by_all &= p.visible[j];
  return seen_by_all == all ? Visible::kAll : Visible::kSome;
}

// Final scores of a block of keys that starts at `key`, hidden ones -infinity, and the maximum so far in p.top. Tells
// how much of the block is visible, and may drop keys at its end; where it is kSome, p.visible holds the block's words.
template <int Vecs>
Visible score_block(const Panel& p, int64_t key, KeyRange* range) {
  const AttentionHead& head = p.head;
  const auto inside = [&](int64_t position, int64_t least) {
    return larger(smaller(position - key, range->keys), least);
  };
  // Every query sees every key of [clear_from, clear_to).
  int64_t clear_from = inside(p.low_of(p.rows - 1), 0), clear_to = inside(p.high_of(0), clear_from);
  Visible visible = clear_from == 0 && clear_to == range->keys ? Visible::kAll : Visible::kSome;
  range->both = 0;
  range->late = range->keys;
  if (Vecs == 2 && head.mask_kind == MaskKind::kNone) {
    range->both = smaller(inside(p.low_of(kLanes), 0), clear_from);
    range->late = inside(p.high_of(kLanes - 1), clear_to);
  }
  if (head.mask_kind != MaskKind::kNone || visible == Visible::kSome)
    visible_by_position(p, key, range->keys, clear_from, clear_to);
  if (head.mask_kind != MaskKind::kNone) {
    visible = look_at_mask<Vecs>(p, key, &range->keys);
    if (visible == Visible::kNothing) return visible;
    clear_from = visible == Visible::kAll ? 0 : range->keys;
    range->late = clear_to = range->keys;
  }
  const bool changes = head.softcap != 0 || head.slope != 0 || head.relative.by_query != nullptr ||
                       head.mask_kind == MaskKind::kFloat;
  // alpha is free until the maximum is known: a place for maxima that do not count.
  if (Vecs == 2) compute_scores<1>(p, key, 0, range->both, 0, p.alpha);
  compute_scores<Vecs>(p, key, range->both, clear_from, 0, p.alpha);
  compute_scores<Vecs>(p, key, clear_from, clear_to, 0, changes ? p.alpha : p.top);
  compute_scores<Vecs>(p, key, clear_to, range->late, 0, p.alpha);
  if (Vecs == 2) compute_scores<1>(p, key, range->late, range->keys, kLanes, p.alpha);
  finish_scores<Vecs>(p, key, 0, clear_from, true);
  if (changes) finish_scores<Vecs>(p, key, clear_from, clear_to, false);
  finish_scores<Vecs>(p, key, clear_to, range->keys, true);
  return visible;
}

// m_new = max(m, colmax(S^T)) is known:  alpha <- exp2(m - m_new);  m <- m_new. `shift` is what scores are
// measured from.
template <int Vecs>
void raise_maximum(const Panel& p, float* shift) {
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    const Vec old = Vec::load(p.max + v * kLanes);
    const Vec top = Vec::load(p.top + v * kLanes);
    top.store(p.max + v * kLanes);
    // No key seen yet: -infinity - -infinity would be NaN, -infinity - 0 weighs nothing.
    const Vec finite = select(equal(top, Vec::set1(-kInfinity)), Vec::zero(), top);
    finite.store(shift + v * kLanes);
    exp2_small(old - finite).store(p.alpha + v * kLanes);
  }
}

// P^T <- exp2(S^T - m_new);  l <- l * alpha + colsum(P^T)
template <int Vecs>
void weigh_scores(const Panel& p, const float* shift, int64_t keys) {
  Vec top[Vecs], sum[Vecs], weight[Vecs];
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    top[v] = Vec::load(shift + v * kLanes);
    sum[v] = Vec::zero();
  }
  for (int64_t j = 0; j < keys; ++j) {
    weigh_key(top, p.score + j * kBq, weight);
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) sum[v] = sum[v] + weight[v];
  }
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    fma(Vec::load(p.sum + v * kLanes), Vec::load(p.alpha + v * kLanes), sum[v]).store(p.sum + v * kLanes);
  }
}

// Whether rows [key, key + keys) of V are all finite: x * 0 is 0 for finite x and NaN else, and NaN sticks.
bool values_are_finite(const AttentionHead& head, int64_t key, int64_t keys) {
  Vec probe = Vec::zero();
  for (int64_t j = 0; j < keys; ++j) {
    const float* row = head.value + (key + j) * head.value_stride;
    int64_t d = 0;
    for (; d + kLanes <= head.value_dim; d += kLanes) probe = fma(Vec::load(row + d), Vec::zero(), probe);
    if (d < head.value_dim) {
      probe = fma(Vec::load_n(row + d, static_cast<int>(head.value_dim - d)), Vec::zero(), probe);
    }
  }
  return to_bits(equal(probe, probe)) == bit_range(0, kLanes);
}

// Scores -> weights, and O^T += V^T P^T.
template <int Vecs>
void add_values(const Panel& p, const float* shift, int64_t key, const KeyRange& range, bool first) {
  const AttentionHead& head = p.head;
  const float* values = head.value + key * head.value_stride;
  int64_t row = 0;
  if (head.value_dim >= kWeighRows) {
    weigh_tile<Vecs>(values, head.value_stride, p.strides.value_ahead, p.score, range.keys, shift, p.alpha,
                     first, p.sum, p.out);
    row = kWeighRows;
  } else {
    weigh_scores<Vecs>(p, shift, range.keys);
  }
  if (row == head.value_dim) return;
  const EvenTiles tiles(head.value_dim - row, kTileRows);
  for (int64_t tile = 0; tile < tiles.count; ++tile) {
    p.fetch->step();
    const int64_t height = tiles.height(tile);
    Tiles<Vecs>::kOutput[height](values + row, head.value_stride, p.strides.value_ahead, p.score, range,
                                 first ? nullptr : p.alpha, p.out + row * kBq);
    row += height;
  }
}

// The same sums in the same order, but a masked value row is stepped over, not multiplied by 0.
template <int Vecs>
void add_visible_values(const Panel& p, const float* shift, int64_t key, int64_t keys, bool first) {
  const AttentionHead& head = p.head;
  weigh_scores<Vecs>(p, shift, keys);
  for (int64_t d = 0; d < head.value_dim; ++d) {
    for (int v = 0; v < Vecs; ++v) {
      float* at = p.out + d * kBq + v * kLanes;
      Vec acc = Vec::zero();
      for (int64_t j = 0; j < keys; ++j) {
        const Vec value = Vec::set1(head.value[(key + j) * head.value_stride + d]);
        const Vec weight = Vec::load(p.score + j * kBq + v * kLanes);
        acc = select(Mask::from_bits(p.visible[j] >> (v * kLanes)), fma(value, weight, acc), acc);
      }
      (first ? acc : fma(Vec::load(at), Vec::load(p.alpha + v * kLanes), acc)).store(at);
    }
  }
}

// ---- results ---------------------------------------------------------------------------------------------

// O / l; a row that saw no key (l = 0) is zero.
template <int Vecs>
void write_output(const Panel& p) {
  const AttentionHead& head = p.head;
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    const Vec sum = Vec::load(p.sum + v * kLanes);
    select(equal(sum, Vec::zero()), Vec::zero(), Vec::set1(1.0f) / sum).store(p.alpha + v * kLanes);
  }
  transpose_out<Vecs>(p.out, head.value_dim, p.rows, p.alpha, head.out + p.first * head.out_stride,
                      head.out_stride);
}

void write_lse(const Panel& p) {
  for (int r = 0; r < p.rows; ++r) {
    p.head.lse[(p.first + r) * p.head.lse_stride] = log_sum_exp(p.max[r], p.sum[r]);
  }
}

// The probabilities need the final maximum and sum, so the scores are computed once more.
template <int Vecs>
void write_weights(const Panel& p) {
  const AttentionHead& head = p.head;
  for (int r = 0; r < p.rows; ++r) {
    float* row = head.weights + (p.first + r) * head.weights_stride;
    __builtin_memset(row, 0, static_cast<size_t>(head.kv_len) * sizeof(float));
  }
  float ones[kBq];
  for (int v = 0; v < Vecs; ++v) Vec::set1(1.0f).store(ones + v * kLanes);
  for (int64_t block = p.key_low / kBk * kBk; block < p.key_high; block += kBk) {
    const int64_t key = larger(block, p.key_low);
    KeyRange range = {0, 0, smaller(block + kBk, p.key_high) - key};
    // Where each score is 0 nothing has been seen; alpha stays as write_output left it.
    float inverse[kBq];
    for (int v = 0; v < Vecs; ++v) Vec::load(p.alpha + v * kLanes).store(inverse + v * kLanes);
    const Visible visible = score_block<Vecs>(p, key, &range);
    for (int v = 0; v < Vecs; ++v) Vec::load(inverse + v * kLanes).store(p.alpha + v * kLanes);
    if (visible == Visible::kNothing) continue;
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      Vec top = Vec::load(p.max + v * kLanes);
      top = select(equal(top, Vec::set1(-kInfinity)), Vec::zero(), top);
      for (int64_t j = 0; j < range.keys; ++j) {
        float* at = p.score + j * kBq + v * kLanes;
        Vec weight = exp2_small(Vec::load(at) - top) * Vec::load(inverse + v * kLanes);
        // A NaN elsewhere in the row makes `inverse` NaN: masked weights stay 0.
        if (visible == Visible::kSome)
          weight = select(Mask::from_bits(p.visible[j] >> (v * kLanes)), weight, Vec::zero());
        weight.store(at);
      }
    }
    transpose_out<Vecs>(p.score, range.keys, p.rows, ones, head.weights + p.first * head.weights_stride + key,
                        head.weights_stride);
  }
}

// All blocks of keys into max, sum and out. A hidden key has the weight 0, and 0 * NaN and 0 * infinity are NaN: a
// careful pass looks for such values and steps over them. Returns whether any key was hidden from any query.
template <int Vecs>
bool attend(const Panel& p, bool careful) {
  for (int v = 0; v < Vecs; ++v) {
    Vec::set1(-kInfinity).store(p.max + v * kLanes);
    Vec::set1(-kInfinity).store(p.top + v * kLanes);
    Vec::zero().store(p.sum + v * kLanes);
    Vec::zero().store(p.alpha + v * kLanes);
  }
  bool hides = false, first = true;
  for (int64_t block = p.key_low / kBk * kBk; block < p.key_high; block += kBk) {
    const int64_t key = larger(block, p.key_low);
    KeyRange range = {0, 0, smaller(block + kBk, p.key_high) - key};
    const Visible visible = score_block<Vecs>(p, key, &range);
    if (visible == Visible::kNothing) continue;
    hides = hides || visible == Visible::kSome;
    float shift[kBq];
    raise_maximum<Vecs>(p, shift);
    if (careful && visible == Visible::kSome && !values_are_finite(p.head, key, range.keys)) {
      add_visible_values<Vecs>(p, shift, key, range.keys, first);
    } else {
      add_values<Vecs>(p, shift, key, range, first);
    }
    first = false;
  }
  if (first) {
    for (int64_t d = 0; d < p.head.value_dim; ++d) {
      for (int v = 0; v < Vecs; ++v) Vec::zero().store(p.out + d * kBq + v * kLanes);
    }
  }
  return hides;
}

// Whether no query's output has a NaN.
template <int Vecs>
bool output_is_number(const Panel& p) {
  uint32_t numbers = bit_range(0, p.rows);
  for (int v = 0; v < Vecs; ++v) {
    Vec probe[2] = {Vec::zero(), Vec::zero()};
    for (int64_t d = 0; d < p.head.value_dim; ++d) {
      probe[d & 1] = fma(Vec::load(p.out + d * kBq + v * kLanes), Vec::zero(), probe[d & 1]);
    }
    const Vec both = probe[0] + probe[1];
    numbers &= ~(~to_bits(equal(both, both)) << (v * kLanes) & bit_range(v * kLanes, (v + 1) * kLanes));
  }
  return numbers == bit_range(0, p.rows);
}

template <int Vecs>
void run_panel(const Panel& p) {
  const AttentionHead& head = p.head;
  load_queries<Vecs>(p);
  // What hidden values hold matters rarely. To look for it afterwards, in the output, costs next to nothing; scanning
  // the values of each block that hides a key cost up to 10%.
  if (attend<Vecs>(p, false) && !output_is_number<Vecs>(p)) attend<Vecs>(p, true);
  write_output<Vecs>(p);
  if (head.lse != nullptr) write_lse(p);
  if (head.weights != nullptr) write_weights<Vecs>(p);
}

void panel(const AttentionHead& head, int64_t first, float* scratch) {
  Fetch fetch(head, (head.kv_len + kTileRows - 1) / kTileRows + 1);
  const Panel p = make_panel(head, first, scratch, &fetch);
  // Half a panel of queries needs half the lanes; each lane's arithmetic is the same.
  if (p.rows <= kLanes) {
    run_panel<1>(p);
  } else {
    run_panel<2>(p);
  }
}

}  // namespace

extern "C" const PanelKernels FASTMHA_KERNEL_SYMBOL(panel) = {
    "attention_panel_f32_" FASTMHA_STRINGIZE(FASTMHA_KERNEL_ISA), kBq, kBk, panel_scratch, panel,
};

}  // namespace fastmha
