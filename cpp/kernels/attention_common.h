// What the attention kernels have in common.
#pragma once

#include "math.h"

namespace fastmha {
namespace {

constexpr int kLanes = Vec::kLanes;

FASTMHA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTMHA_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace fastmha
