// What the attention kernels have in common.
#pragma once

#include "math.h"

namespace fastmha {
namespace {

constexpr int kLanes = Vec::kLanes;

FASTMHA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTMHA_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// log(sum(exp(score))) from the largest score, in units of log2, and the sum of 2^(score - max).
FASTMHA_INLINE float log_sum_exp(float max, float sum) {
  return sum == 0.0f ? -kInfinity : max * kLn2 + __builtin_logf(sum);
}

}  // namespace
}  // namespace fastmha
