// Attention for short sequences: a group of heads at a time, with the heads in the lanes.
//
// A panel (attention_panel.cpp) has queries in its lanes; five queries leave most of a register empty, and
// transposing them in and out costs more than the arithmetic. Here a register holds one query of each of
// kGroup heads (two queries where it has 16 lanes), which all have the same lengths and their own keys:
//
//   lane = (query % kQueries) * kGroup + head
//   S[row][key][lane] += Q^T[d][row][lane] * K^T[d][key][head]     row: a register of queries
//   m, P, sum          lane-vertical
//   O[query][d ..]    += P[query][key] * V[key][d ..]              per head, features in the lanes
//
// So Q and K are transposed, kLanes columns at a time into a few KiB, while V and O keep the order they have
// in memory.
//
// The arithmetic of a (query, head) is the panel's, bit for bit: the score is one chain over d from 0 of the
// scaled query times the key, sums and outputs are chains over the keys in their order. That holds as long as
// the panel takes all keys in one block, which max_keys stays below.
#include "attention.h"

#include "attention_common.h"

namespace fastmha {
namespace {

constexpr int kGroup = HeadGroup::kHeads < kLanes ? HeadGroup::kHeads : kLanes;
constexpr int kQueries = kLanes / kGroup;  // of each head in a register
// From 15 on a panel is as fast: at 14 x 14 x 64 it takes 1.10 of a group's time per head, at 16 x 16 0.94 (AVX2 1.03
// and 0.88), at 8 x 8 1.8.
constexpr int kMaxQueries = 14;
constexpr int kMaxKeys = 14;
constexpr int kMaxRows = (kMaxQueries + kQueries - 1) / kQueries;

// Score tile: 5 x 5 accumulators, 5 registers of queries and one of keys fill 32 registers; 3 x 4 fill 16.
constexpr int kScoreRows = Vec::kRegisters == 32 ? 5 : 3;
constexpr int kScoreKeys = Vec::kRegisters == 32 ? 5 : 4;
// Output tile: 5 queries x 4 vectors of features, 4 of a value row and a broadcast weight; 5 x 2.
constexpr int kOutRows = 5;
constexpr int kOutVecs = Vec::kRegisters == 32 ? 4 : 2;

// Rows of Q, then rows of K, of all heads of the group side by side; then a register may read past the last.
constexpr int kMaxColumn = (kMaxQueries + kMaxKeys) * kGroup + kLanes;

struct Scratch {
  float column[kLanes][kMaxColumn];         // columns of Q^T, scaled, and K^T
  float score[kMaxRows][kMaxKeys][kLanes];  // scores, then weights
  // Relative bias of the heads by i - j, from the last key's up; the row of two queries is two neighbours.
  float bias[kMaxQueries + kMaxKeys][kGroup];
  float max[kMaxRows][kLanes];
  float sum[kMaxRows][kLanes];
  float inverse[kMaxRows][kLanes];
};

// ---- the group that comes next ---------------------------------------------------------------------------

constexpr int kLineFloats = 16;

FASTMHA_INLINE void prefetch_row(const float* row, int64_t columns) {
  int64_t d = 0;
  for (; d + 4 * kLineFloats <= columns; d += 4 * kLineFloats) {
    FASTMHA_UNROLL
    for (int line = 0; line < 4; ++line) __builtin_prefetch(row + d + line * kLineFloats);
  }
  for (; d < columns; d += kLineFloats) __builtin_prefetch(row + d);
}

// Fetches the rows of one or two arrays of a group, head by head in the order of memory, in `steps` even shares. Without
// it 1,024 sequences of 5 in main memory took twice as long (the kernel's own order, a line of each row, is none that
// the hardware follows); all of it at once, in the output phase, cost half of the gain.
class Ahead {
 public:
  FASTMHA_INLINE Ahead(const HeadGroup* next, bool values, int64_t steps) : next_(next), values_(values) {
    if (next_ == nullptr) return;
    first_rows_ = values ? next_->shared.kv_len : next_->shared.q_len;
    rows_ = values ? first_rows_ : first_rows_ + next_->shared.kv_len;
    share_ = (rows_ * next_->count + steps - 1) / larger(1, steps);
  }
  FASTMHA_INLINE void step() {
    if (next_ == nullptr) return;
    const AttentionHead& shared = next_->shared;
    for (int64_t left = share_; left > 0 && head_ < next_->count; --left) {
      if (values_) {
        prefetch_row(next_->value[head_] + row_ * shared.value_stride, shared.value_dim);
      } else if (row_ < first_rows_) {
        prefetch_row(next_->query[head_] + row_ * shared.query_stride, shared.head_dim);
      } else {
        prefetch_row(next_->key[head_] + (row_ - first_rows_) * shared.key_stride, shared.head_dim);
      }
      if (++row_ == rows_) {
        row_ = 0;
        ++head_;
      }
    }
  }

 private:
  const HeadGroup* next_;
  bool values_;
  int head_ = 0;
  int64_t row_ = 0, rows_ = 0, first_rows_ = 0, share_ = 0;
};

// ---- scores ----------------------------------------------------------------------------------------------

// column[c][row * kGroup + head] = element first + c of that row: the rows of Q, scaled, then those of K. 16 lanes
// take two rows at a time, and where the number of queries is odd the last of Q comes with the first of K (which makes
// five and five rows five transposes, not six). A row past the last repeats the last; heads that are not there repeat
// the first.
void transpose_columns(const HeadGroup& group, Ahead& ahead, int64_t first, int width, Scratch& s) {
  const AttentionHead& head = group.shared;
  const float *query[kGroup], *key[kGroup];
  FASTMHA_UNROLL
  for (int h = 0; h < kGroup; ++h) {
    const int live = h < group.count ? h : 0;
    query[h] = group.query[live] + first;
    key[h] = group.key[live] + first;
  }
  const int64_t rows = head.q_len + head.kv_len;
  for (int64_t row = 0; row < rows; row += kQueries) {
    ahead.step();
    Vec block[kLanes];
    Vec factor = Vec::set1(head.scale);
    FASTMHA_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      const int64_t at = smaller(row + q, rows - 1);
      const bool of_query = at < head.q_len;
      const float* const* heads = of_query ? query : key;
      const int64_t offset = of_query ? at * head.query_stride : (at - head.q_len) * head.key_stride;
      if (!of_query) factor = select(Mask::from_bits((1u << q * kGroup) - 1), factor, Vec::set1(1.0f));
      FASTMHA_UNROLL
      for (int h = 0; h < kGroup; ++h) {
        const float* from = heads[h] + offset;
        block[q * kGroup + h] = width == kLanes ? Vec::load(from) : Vec::load_n(from, width);
      }
    }
    transpose(block);
    FASTMHA_UNROLL
    for (int c = 0; c < kLanes; ++c) (block[c] * factor).store(s.column[c] + row * kGroup);
  }
}

// score[row][key] += sum over columns of query[column][row] * key[column][key]
template <int Rows, int Keys>
void score_tile(const float* query, const float* key, int columns, bool first, float* score,
                int64_t score_stride) {
  Vec acc[Rows][Keys];
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    FASTMHA_UNROLL
    for (int k = 0; k < Keys; ++k)
      acc[r][k] = first ? Vec::zero() : Vec::load(score + r * score_stride + k * kLanes);
  }
  for (int c = 0; c < columns; ++c) {
    Vec q[Rows];
    FASTMHA_UNROLL
    for (int r = 0; r < Rows; ++r) q[r] = Vec::load(query + c * kMaxColumn + r * kLanes);
    FASTMHA_UNROLL
    for (int k = 0; k < Keys; ++k) {
      const Vec one = Vec::repeat<kGroup>(key + c * kMaxColumn + k * kGroup);
      FASTMHA_UNROLL
      for (int r = 0; r < Rows; ++r) acc[r][k] = fma(one, q[r], acc[r][k]);
    }
  }
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    FASTMHA_UNROLL
    for (int k = 0; k < Keys; ++k) acc[r][k].store(score + r * score_stride + k * kLanes);
  }
}

using ScoreTile = void (*)(const float*, const float*, int, bool, float*, int64_t);
#if defined(FASTMHA_KERNEL_ISA_AVX512)
#define FASTMHA_SCORE_ROW(rows) \
  {score_tile<rows, 1>, score_tile<rows, 2>, score_tile<rows, 3>, score_tile<rows, 4>, score_tile<rows, 5>}
constexpr ScoreTile kScoreTiles[kScoreRows][kScoreKeys] = {FASTMHA_SCORE_ROW(1), FASTMHA_SCORE_ROW(2),
                                                           FASTMHA_SCORE_ROW(3), FASTMHA_SCORE_ROW(4),
                                                           FASTMHA_SCORE_ROW(5)};
#else
#define FASTMHA_SCORE_ROW(rows) \
  {score_tile<rows, 1>, score_tile<rows, 2>, score_tile<rows, 3>, score_tile<rows, 4>}
constexpr ScoreTile kScoreTiles[kScoreRows][kScoreKeys] = {FASTMHA_SCORE_ROW(1), FASTMHA_SCORE_ROW(2),
                                                           FASTMHA_SCORE_ROW(3)};
#endif

// ---- outputs ---------------------------------------------------------------------------------------------

// out[row][..] = (sum over keys of weights[row][key] * values[key][..]) * inverse[row]
template <int Rows, int Vecs, bool Whole>
FASTMHA_INLINE void output_tile(const float* values, int64_t value_stride, const float* const* weights,
                                const float* const* inverse, int64_t keys, int width, bool streamed,
                                float* out, int64_t out_stride) {
  Vec acc[Rows][Vecs];
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) acc[r][v] = Vec::zero();
  }
  for (int64_t key = 0; key < keys; ++key) {
    Vec value[Vecs];
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      const float* at = values + key * value_stride + v * kLanes;
      value[v] = Whole ? Vec::load(at) : Vec::load_n(at, width);
    }
    FASTMHA_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Vec weight = Vec::set1(weights[r][key * kLanes]);
      FASTMHA_UNROLL
      for (int v = 0; v < Vecs; ++v) acc[r][v] = fma(value[v], weight, acc[r][v]);
    }
  }
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const Vec factor = Vec::set1(*inverse[r]);
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      // + 0: a sum that underflowed to -0 becomes +0, as in a panel.
      const Vec result = acc[r][v] * factor + Vec::zero();
      float* at = out + r * out_stride + v * kLanes;
      if (!Whole) {
        result.store_n(at, width);
      } else if (streamed) {
        result.stream_unaligned(at);
      } else {
        result.store(at);
      }
    }
  }
}

// Where the weights of a query of one head begin, and its 1 / sum.
FASTMHA_INLINE int64_t lane_of(int64_t query, int head) { return query % kQueries * kGroup + head; }

// O of queries [first, first + Rows) of one head from keys [low, high).
template <int Rows>
void output_rows(const HeadGroup& group, const Scratch& s, int h, int64_t first, int64_t low, int64_t high) {
  const AttentionHead& head = group.shared;
  const float* weights[Rows];
  const float* inverse[Rows];
  FASTMHA_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const int64_t lane = lane_of(first + r, h);
    weights[r] = s.score[(first + r) / kQueries][low] + lane;
    inverse[r] = s.inverse[(first + r) / kQueries] + lane;
  }
  const float* values = group.value[h] + low * head.value_stride;
  const int64_t stride = head.value_stride, keys = high - low, out_stride = head.out_stride;
  float* out = group.out[h] + first * out_stride;
  const bool streamed =
      group.stream && (reinterpret_cast<uintptr_t>(out) | static_cast<uintptr_t>(4 * out_stride)) % 16 == 0;
  int64_t d = 0;
  for (; d + kOutVecs * kLanes <= head.value_dim; d += kOutVecs * kLanes) {
    output_tile<Rows, kOutVecs, true>(values + d, stride, weights, inverse, keys, kLanes, streamed, out + d,
                                      out_stride);
  }
  for (; d + kLanes <= head.value_dim; d += kLanes) {
    output_tile<Rows, 1, true>(values + d, stride, weights, inverse, keys, kLanes, streamed, out + d,
                               out_stride);
  }
  if (d < head.value_dim) {
    output_tile<Rows, 1, false>(values + d, stride, weights, inverse, keys,
                                static_cast<int>(head.value_dim - d), false, out + d, out_stride);
  }
}

using OutputRows = void (*)(const HeadGroup&, const Scratch&, int, int64_t, int64_t, int64_t);
constexpr OutputRows kOutputRows[kOutRows] = {output_rows<1>, output_rows<2>, output_rows<3>, output_rows<4>,
                                              output_rows<5>};

void compute_scores(const HeadGroup& group, const HeadGroup* next, int64_t rows, Scratch& s) {
  const AttentionHead& head = group.shared;
  Ahead ahead(next, false,
              (head.head_dim + kLanes - 1) / kLanes * ((head.q_len + head.kv_len + kQueries - 1) / kQueries));
  const EvenTiles row_tiles(rows, kScoreRows), key_tiles(head.kv_len, kScoreKeys);
  for (int64_t d = 0; d < head.head_dim; d += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, head.head_dim - d));
    transpose_columns(group, ahead, d, width, s);
    for (int64_t i = 0, row = 0; i < row_tiles.count; row += row_tiles.height(i++)) {
      for (int64_t j = 0, first = 0; j < key_tiles.count; first += key_tiles.height(j++)) {
        kScoreTiles[row_tiles.height(i) - 1][key_tiles.height(j) - 1](
            s.column[0] + row * kLanes, s.column[0] + (head.q_len + first) * kGroup, width, d == 0,
            s.score[row][first], kMaxKeys * kLanes);
      }
    }
  }
}

// bias[i - j + kv_len - 1][head] <- log2(e) * the head's bias of query i and key j, one query past the last included.
void load_biases(const HeadGroup& group, Scratch& s) {
  const AttentionHead& head = group.shared;
  const int64_t reach = head.relative.reach, distances = head.q_len + head.kv_len;
  for (int64_t at = 0; at < distances; ++at) {
    const int64_t distance = smaller(larger(head.kv_len - 1 - at - head.offset, -reach), reach);
    for (int h = 0; h < kGroup; ++h) {
      s.bias[at][h] = kLog2e * group.relative[h < group.count ? h : 0][distance];
    }
  }
}

void add_biases(int64_t keys, int64_t row, Scratch& s) {
  for (int64_t key = 0; key < keys; ++key) {
    float* at = s.score[row][key];
    (Vec::load(at) + Vec::load(s.bias[row * kQueries - key + keys - 1])).store(at);
  }
}

// Scores of keys that a lane's query does not see become -infinity.
void hide_scores(const AttentionHead& head, int64_t row, Scratch& s) {
  int64_t low[kQueries], high[kQueries];
  for (int q = 0; q < kQueries; ++q) {
    low[q] = first_visible(head, row * kQueries + q);
    high[q] = after_visible(head, row * kQueries + q);
  }
  for (int64_t key = 0; key < head.kv_len; ++key) {
    uint32_t visible = 0;
    for (int q = 0; q < kQueries; ++q) {
      visible |= (low[q] <= key && key < high[q] ? (1u << kGroup) - 1 : 0u) << (q * kGroup);
    }
    float* at = s.score[row][key];
    select(Mask::from_bits(visible), Vec::load(at), Vec::set1(-kInfinity)).store(at);
  }
}

// As raise_maximum, weigh_scores and write_output in attention_panel.cpp, for one block of keys.
void softmax_row(int64_t keys, int64_t row, Scratch& s) {
  Vec top = Vec::set1(-kInfinity), sum = Vec::zero();
  // In this order a NaN score leaves the maximum alone; its own weight becomes NaN below.
  for (int64_t key = 0; key < keys; ++key) top = max(Vec::load(s.score[row][key]), top);
  top.store(s.max[row]);
  // No key seen: -infinity - -infinity would be NaN, -infinity - 0 weighs nothing.
  top = select(equal(top, Vec::set1(-kInfinity)), Vec::zero(), top);
  for (int64_t key = 0; key < keys; ++key) {
    const Vec weight = exp2_small(Vec::load(s.score[row][key]) - top);
    sum = sum + weight;
    weight.store(s.score[row][key]);
  }
  sum.store(s.sum[row]);
  select(equal(sum, Vec::zero()), Vec::zero(), Vec::set1(1.0f) / sum).store(s.inverse[row]);
}

void compute_output(const HeadGroup& group, bool hides, const Scratch& s, int h) {
  const AttentionHead& head = group.shared;
  if (hides) {  // query by query: a hidden value row is not read
    for (int64_t i = 0; i < head.q_len; ++i) {
      const int64_t high = after_visible(head, i);
      output_rows<1>(group, s, h, i, smaller(first_visible(head, i), high), high);
    }
    return;
  }
  const EvenTiles tiles(head.q_len, kOutRows);
  for (int64_t tile = 0, first = 0; tile < tiles.count; first += tiles.height(tile++)) {
    kOutputRows[tiles.height(tile) - 1](group, s, h, first, 0, head.kv_len);
  }
}

void write_outputs(const HeadGroup& group, const HeadGroup* next, bool hides, const Scratch& s) {
  Ahead ahead(next, true, group.count);
  for (int h = 0; h < group.count; ++h) {
    ahead.step();
    compute_output(group, hides, s, h);
  }
}

void write_extras(const HeadGroup& group, const Scratch& s) {
  const AttentionHead& head = group.shared;
  for (int h = 0; h < group.count; ++h) {
    for (int64_t i = 0; i < head.q_len; ++i) {
      const int64_t row = i / kQueries, lane = lane_of(i, h);
      if (group.lse[h] != nullptr) {
        group.lse[h][i * head.lse_stride] = log_sum_exp(s.max[row][lane], s.sum[row][lane]);
      }
      if (group.weights[h] == nullptr) continue;
      for (int64_t key = 0; key < head.kv_len; ++key) {
        const bool visible = first_visible(head, i) <= key && key < after_visible(head, i);
        group.weights[h][i * head.weights_stride + key] =
            visible ? s.score[row][key][lane] * s.inverse[row][lane] : 0.0f;
      }
    }
  }
}

void run_group(const HeadGroup& group, const HeadGroup* next, float* scratch) {
  Scratch& s = *reinterpret_cast<Scratch*>(scratch);
  const AttentionHead& head = group.shared;
  const int64_t rows = (head.q_len + kQueries - 1) / kQueries;
  // Both bounds grow with the query.
  const bool hides = first_visible(head, head.q_len - 1) > 0 || after_visible(head, 0) < head.kv_len;
  const bool biased = head.relative.by_key != nullptr;
  compute_scores(group, next, rows, s);
  if (biased) load_biases(group, s);
  for (int64_t row = 0; row < rows; ++row) {
    if (biased) add_biases(head.kv_len, row, s);
    if (hides) hide_scores(head, row, s);
    softmax_row(head.kv_len, row, s);
  }
  write_outputs(group, next, hides, s);
  if (head.lse != nullptr || head.weights != nullptr) write_extras(group, s);
  if (group.stream && (next == nullptr || next->count == 0)) stream_fence();
}

}  // namespace

extern "C" const ShortKernels FASTMHA_KERNEL_SYMBOL(short) = {
  "attention_short_f32_" FASTMHA_STRINGIZE(FASTMHA_KERNEL_ISA),
  kGroup,
  kMaxQueries,
  kMaxKeys,
  sizeof(Scratch) / sizeof(float),
  run_group,
};

}  // namespace fastmha
