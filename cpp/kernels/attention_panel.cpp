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
#include "attention_panel.h"
#include "attention_mask.h"
#include "attention_tiles.h"

namespace fastmha {
namespace {

// ---- one block of keys -----------------------------------------------------------------------------------

// Scores of keys [from, to) of the block that starts at `key` for the queries from register `lane` on, and their
// maximum into `top`.
template <int Vecs>
void compute_scores(const Panel& p, int64_t key, int64_t from, int64_t to, int lane, float* top) {
  if (from == to) return;
  const float* rows = p.key_rows + (key - p.rows_from) * p.key_stride;
  const EvenTiles tiles(to - from, p.strides.tile_rows);
  for (int64_t tile = 0; tile < tiles.count; ++tile) {
    const int64_t height = tiles.height(tile);
    Tiles<Vecs>::kScore[height](rows + from * p.key_stride, p.key_stride, p.strides.key_ahead, p.query + lane,
                                p.head.head_dim, p.fetch, p.score + from * kBq + lane, top + lane);
    from += height;
  }
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
  finish_scores<Vecs>(p, key, range->both, clear_from, 0, true);
  if (changes) finish_scores<Vecs>(p, key, clear_from, clear_to, 0, false);
  finish_scores<Vecs>(p, key, clear_to, range->late, 0, true);
  if (Vecs == 2) {
    finish_scores<1>(p, key, 0, range->both, 0, true);
    hide_register(p, 0, range->both, kLanes);
    finish_scores<1>(p, key, range->late, range->keys, kLanes, true);
    hide_register(p, range->late, range->keys, 0);
  }
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
  const float* values = p.value_rows + (key - p.rows_from) * p.value_stride;
  int64_t row = 0;
  if (head.value_dim >= kWeighRows) {
    weigh_tile<Vecs>(values, p.value_stride, p.strides.value_ahead, p.score, range.keys, shift, p.alpha,
                     first, p.sum, p.out);
    row = kWeighRows;
  } else {
    weigh_scores<Vecs>(p, shift, range.keys);
  }
  if (row == head.value_dim) return;
  const EvenTiles tiles(head.value_dim - row, kTileRows);
  for (int64_t tile = 0; tile < tiles.count; ++tile) {
    const int64_t height = tiles.height(tile);
    Tiles<Vecs>::kOutput[height](values + row, p.value_stride, p.strides.value_ahead, p.score, range,
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

// What a panel has met so far.
struct Progress {
  bool hides = false;  // a key hidden from a query
  bool first = true;   // no block is in out yet
};

template <int Vecs>
void start(const Panel& p) {
  for (int v = 0; v < Vecs; ++v) {
    Vec::set1(-kInfinity).store(p.max + v * kLanes);
    Vec::set1(-kInfinity).store(p.top + v * kLanes);
    Vec::zero().store(p.sum + v * kLanes);
    Vec::zero().store(p.alpha + v * kLanes);
  }
}

// The keys of the block that starts at `block` into max, sum and out. A hidden key has the weight 0, and 0 * NaN and
// 0 * infinity are NaN: a careful pass looks for such values and steps over them.
template <int Vecs>
void attend_block(const Panel& p, int64_t block, bool careful, Progress* progress) {
  const int64_t key = larger(block, p.key_low);
  KeyRange range = {0, 0, smaller(block + kBk, p.key_high) - key};
  const Visible visible = score_block<Vecs>(p, key, &range);
  if (visible == Visible::kNothing) return;
  progress->hides = progress->hides || visible == Visible::kSome;
  float shift[kBq];
  raise_maximum<Vecs>(p, shift);
  if (careful && visible == Visible::kSome && !values_are_finite(p.head, key, range.keys)) {
    add_visible_values<Vecs>(p, shift, key, range.keys, progress->first);
  } else {
    add_values<Vecs>(p, shift, key, range, progress->first);
  }
  progress->first = false;
}

template <int Vecs>
Progress attend(const Panel& p, bool careful) {
  start<Vecs>(p);
  Progress progress;
  for (int64_t block = p.key_low / kBk * kBk; block < p.key_high; block += kBk)
    attend_block<Vecs>(p, block, careful, &progress);
  return progress;
}

// Whether no query's output has a NaN.
template <int Vecs>
bool output_is_number(const Panel& p) {
  Vec probe[2][Vecs];  // two chains each, that their latencies overlap
  clear_tile(probe);
  for (int64_t d = 0; d < p.head.value_dim; ++d) {
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      probe[d & 1][v] = fma(Vec::load(p.out + d * kBq + v * kLanes), Vec::zero(), probe[d & 1][v]);
    }
  }
  uint32_t numbers = 0;
  for (int v = 0; v < Vecs; ++v) {
    const Vec both = probe[0][v] + probe[1][v];
    numbers |= to_bits(equal(both, both)) << (v * kLanes);
  }
  const uint32_t all = bit_range(0, p.rows);
  return (numbers & all) == all;
}

// What is left to do when all blocks have been attended to.
template <int Vecs>
void finish_panel(const Panel& p, Progress progress) {
  const AttentionHead& head = p.head;
  // What hidden values hold matters rarely. To look for it afterwards, in the output, costs next to nothing; scanning
  // the values of each block that hides a key cost up to 10%.
  if (progress.hides && !output_is_number<Vecs>(p)) progress = attend<Vecs>(p, true);
  if (progress.first) {
    for (int64_t d = 0; d < head.value_dim; ++d) {
      for (int v = 0; v < Vecs; ++v) Vec::zero().store(p.out + d * kBq + v * kLanes);
    }
  }
  write_output<Vecs>(p);
  if (head.lse != nullptr) write_lse(p);
  if (head.weights != nullptr) write_weights<Vecs>(p);
}

template <int Vecs>
void run_panel(const Panel& p) {
  load_queries<Vecs>(p);
  finish_panel<Vecs>(p, attend<Vecs>(p, false));
}

void panel(const AttentionHead& head, int64_t first, float* scratch) {
  Fetch fetch;
  const Panel p =
      make_panel(head, first, scratch, scratch + kept_floats(head.head_dim, head.value_dim), &fetch);
  fetch = Fetch(head.upcoming, 4, (p.key_high - p.key_low + kTileRows - 1) / kTileRows + 1, head.head_dim);
  // Half a panel of queries needs half the lanes; each lane's arithmetic is the same.
  if (p.rows <= kLanes) {
    run_panel<1>(p);
  } else {
    run_panel<2>(p);
  }
}

// ---- several panels over copied rows -----------------------------------------------------------------------

// Rows that are a multiple of 4 KiB apart push each other out of the first-level cache. Panels that share a copy of
// each block of K and V, row after row, read it without that; the arithmetic is the same. (2048, 8 heads, 128), AVX2:
// 85.6 ms without copies, 71.7 with, contiguous rows 69.4. AVX-512: 37.8 to 38.3 and 36.5 to 37.7 ms; causal 19.8 to
// 21.3 and 19.4 to 19.5. Groups of 8 share each copy half as often: 38.1 ms. 16 keep 0.5 MB there.
constexpr int kGroup = 16;

size_t group_scratch(int64_t head_dim, int64_t value_dim) {
  return kGroup * kept_floats(head_dim, value_dim) + kBlockFloats +
         static_cast<size_t>(kBk) * static_cast<size_t>(head_dim + value_dim);
}

void copy_rows(const float* from, int64_t stride, int64_t rows, int64_t width, float* to) {
  for (int64_t row = 0; row < rows; ++row, from += stride, to += width) {
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) Vec::load(from + d).store(to + d);
    if (d < width) {
      const int rest = static_cast<int>(width - d);
      Vec::load_n(from + d, rest).store_n(to + d, rest);
    }
  }
}

// Rows [from, to) of K and V, as far as the head has them.
void set_rows(const AttentionHead& head, int64_t from, int64_t to, UpcomingRows (&rows)[2]) {
  const int64_t count = larger(0, smaller(to, head.kv_len) - from);
  rows[0] = {head.key + from * head.key_stride, head.key_stride, count, head.head_dim};
  rows[1] = {head.value + from * head.value_stride, head.value_stride, count, head.value_dim};
}

void group(const AttentionHead& head, int64_t first, int count, float* scratch) {
  float* const block_scratch = scratch + kGroup * kept_floats(head.head_dim, head.value_dim);
  float* const keys = block_scratch + kBlockFloats;
  float* const values = keys + kBk * head.head_dim;
  Fetch fetch;
  const auto make = [&](int i) {
    const int at = i < count ? i : 0;
    return make_panel(head, first + at * kBq, scratch + at * kept_floats(head.head_dim, head.value_dim),
                      block_scratch, &fetch);
  };
  Panel panels[kGroup] = {make(0), make(1), make(2),  make(3),  make(4),  make(5),  make(6),  make(7),
                          make(8), make(9), make(10), make(11), make(12), make(13), make(14), make(15)};
  Progress progress[kGroup];
  // Both bounds grow with the panel, but a panel that sees nothing has none.
  int64_t low = head.kv_len, high = 0;
  for (int i = 0; i < count; ++i) {
    Panel& p = panels[i];
    if (p.rows <= kLanes) {
      load_queries<1>(p), start<1>(p);
    } else {
      load_queries<2>(p), start<2>(p);
    }
    if (p.key_low == p.key_high) continue;
    low = smaller(low, p.key_low);
    high = larger(high, p.key_high);
    p.key_rows = keys;
    p.value_rows = values;
    p.key_stride = head.head_dim;
    p.value_stride = head.value_dim;
    p.strides = Strides(p.key_stride, p.value_stride);
  }
  for (int64_t block = low / kBk * kBk; block < high; block += kBk) {
    const int64_t from = larger(block, low), to = smaller(block + kBk, high);
    copy_rows(head.key + from * head.key_stride, head.key_stride, to - from, head.head_dim, keys);
    copy_rows(head.value + from * head.value_stride, head.value_stride, to - from, head.value_dim, values);
    UpcomingRows next[2];
    set_rows(head, to, smaller(to + kBk, high), next);
    fetch = Fetch(next, 2, count * (kBk / kTileRows), head.head_dim);
    for (int i = 0; i < count; ++i) {
      Panel& p = panels[i];
      if (block + kBk <= p.key_low || block >= p.key_high) continue;
      p.rows_from = from;
      if (p.rows <= kLanes) {
        attend_block<1>(p, block, false, &progress[i]);
      } else {
        attend_block<2>(p, block, false, &progress[i]);
      }
    }
  }
  fetch = Fetch();
  for (int i = 0; i < count; ++i) {
    Panel& p = panels[i];
    // What is computed again reads the head's own rows.
    p.rows_from = 0;
    p.key_rows = head.key;
    p.value_rows = head.value;
    p.key_stride = head.key_stride;
    p.value_stride = head.value_stride;
    p.strides = Strides(head.key_stride, head.value_stride);
    if (p.rows <= kLanes) {
      finish_panel<1>(p, progress[i]);
    } else {
      finish_panel<2>(p, progress[i]);
    }
  }
}

}  // namespace

extern "C" const PanelKernels FASTMHA_KERNEL_SYMBOL(panel) = {
    "attention_panel_f32_" FASTMHA_STRINGIZE(FASTMHA_KERNEL_ISA),
    kBq,
    kBk,
    panel_scratch,
    panel,
    kGroup,
    group_scratch,
    group,
};

}  // namespace fastmha
