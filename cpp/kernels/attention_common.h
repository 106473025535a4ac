// What the attention kernels have in common.
#pragma once

#include "attention.h"
#include "math.h"

namespace fastmha {
namespace {

constexpr int kLanes = Vec::kLanes;

FASTMHA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTMHA_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Items in even tiles of at most `most`: the first `high` tiles have `rows + 1`, the others `rows`.
struct EvenTiles {
  int64_t count, rows, high;
  FASTMHA_INLINE EvenTiles(int64_t total, int64_t most)
      : count((total + most - 1) / most), rows(count ? total / count : 0), high(count ? total % count : 0) {}
  FASTMHA_INLINE int64_t height(int64_t tile) const { return rows + (tile < high ? 1 : 0); }
};

// The keys that a query may see: [first_visible, after_visible), none where the second is not greater.
FASTMHA_INLINE int64_t first_visible(const AttentionHead& head, int64_t query) {
  return larger(0, query + head.offset - head.left);
}
FASTMHA_INLINE int64_t after_visible(const AttentionHead& head, int64_t query) {
  return larger(0, smaller(head.kv_len, query + head.offset + head.right + 1));
}

// log(sum(exp(score))) from the largest score, in units of log2, and the sum of 2^(score - max).
FASTMHA_INLINE float log_sum_exp(float max, float sum) {
  return sum == 0.0f ? -kInfinity : max * kLn2 + __builtin_logf(sum);
}

}  // namespace
}  // namespace fastmha
