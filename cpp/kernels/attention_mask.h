// Which keys a panel's queries see (a word of bits for each key), and what is done to scores after the products: softcap,
// biases by distance, masks.
#pragma once

#include "attention_panel.h"

namespace fastmha {
namespace {

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

// ---- scores --------------------------------------------------------------------------------------------------

// Each lane's number.
constexpr struct LaneIndex {
  float of[kBq] = {};
  constexpr LaneIndex() {
    for (int lane = 0; lane < kBq; ++lane) of[lane] = static_cast<float>(lane);
  }
} kLaneIndex;

// What is done to scores.
enum Finish { kCap = 1, kSlope = 2, kRelative = 4, kMask = 8, kHide = 16, kMixed = 32 };

// softcap * tanh(s / softcap), then -slope * |i + offset - j|, then + relative bias, then + mask, then -infinity where
// hidden; and the maximum of what comes out. For keys [from, to) of the block and the queries from register `lane` on.
// One or two things at a time are loops of their own, kMixed asks for each: ALiBi took 7% of the time with kMixed
// alone, 4% so.
template <int Vecs, int What>
void finish_as(const Panel& p, int64_t key, int64_t from, int64_t to, int lane, bool may_hide) {
  const AttentionHead& head = p.head;
  const auto does = [](int one, bool now) { return What == kMixed ? now : (What & one) != 0; };
  const bool caps = does(kCap, head.softcap != 0), slopes = does(kSlope, head.slope != 0),
             biases = does(kRelative, head.relative.by_query != nullptr),
             masks = does(kMask, head.mask_kind == MaskKind::kFloat), hides = does(kHide, may_hide);
  const Vec hidden = Vec::set1(-kInfinity);
  const Vec cap = Vec::set1(head.softcap), inverse_cap = Vec::set1(caps ? 1.0f / head.softcap : 0.0f);
  const Vec slope = Vec::set1(head.slope);
  const RelativeBias& relative = head.relative;
  Vec top[Vecs], index[Vecs];
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    top[v] = Vec::load(p.top + lane + v * kLanes);
    index[v] = Vec::load(kLaneIndex.of + lane + v * kLanes);
  }
  for (int64_t j = from; j < to; ++j) {
    // Position of the panel's first query relative to the key; exact in float up to 2^24.
    const int64_t behind = p.first + head.offset - (key + j);
    const Vec distance = Vec::set1(static_cast<float>(behind));
    const float* bias = biases ? relative.by_query + lane - relative.low +
                                     smaller(larger(behind, relative.low), relative.high)
                               : nullptr;
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      float* at = p.score + j * kBq + lane + v * kLanes;
      Vec s = Vec::load(at);
      if (caps) s = cap * tanh_of_score(s * inverse_cap);
      if (slopes) s = fnma(slope, abs(distance + index[v]), s);
      if (biases) s = s + Vec::load(bias + v * kLanes);
      if (masks) s = s + Vec::load(p.bias + j * kBq + lane + v * kLanes);
      if (hides) s = select(Mask::from_bits(p.visible[j] >> (lane + v * kLanes)), s, hidden);
      top[v] = max(s, top[v]);
      s.store(at);
    }
  }
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) top[v].store(p.top + lane + v * kLanes);
}

template <int Vecs>
void finish_scores(const Panel& p, int64_t key, int64_t from, int64_t to, int lane, bool hides) {
  if (from == to) return;
  const AttentionHead& head = p.head;
  const int what = (head.softcap != 0 ? kCap : 0) | (head.slope != 0 ? kSlope : 0) |
                   (head.relative.by_query != nullptr ? kRelative : 0) |
                   (head.mask_kind == MaskKind::kFloat ? kMask : 0) | (hides ? kHide : 0);
  const auto finish = [what] {
    switch (what) {
      case kHide:
        return finish_as<Vecs, kHide>;
      case kSlope:
        return finish_as<Vecs, kSlope>;
      case kSlope | kHide:
        return finish_as<Vecs, kSlope | kHide>;
      case kRelative:
        return finish_as<Vecs, kRelative>;
      case kRelative | kHide:
        return finish_as<Vecs, kRelative | kHide>;
      case kMask:
        return finish_as<Vecs, kMask>;
      case kMask | kHide:
        return finish_as<Vecs, kMask | kHide>;
      default:
        return finish_as<Vecs, kMixed>;
    }
  }();
  finish(p, key, from, to, lane, hides);
}

// Keys [from, to) of the block are hidden from the queries of register `lane`, whose scores were not computed.
void hide_register(const Panel& p, int64_t from, int64_t to, int lane) {
  const Vec hidden = Vec::set1(-kInfinity);
  for (int64_t j = from; j < to; ++j) hidden.store(p.score + j * kBq + lane);
}

}  // namespace
}  // namespace fastmha
