// Small arithmetic on sizes, and the caches that sizes of blocks are made for.
#pragma once

#include <cstdint>

namespace fastmha {

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Floats of a cache line, and as many as fill whole lines: what lies behind begins one.
inline constexpr int64_t kLineFloats = 16;
inline constexpr int64_t line_floats(int64_t floats) { return ceil_div(floats, kLineFloats) * kLineFloats; }

// What current servers have at least: 1 to 2 MiB of L2 for each core (Zen 4 and 5 the one, Golden Cove the
// other), 32 MiB of L3 for a group of 8 cores of Zen. Larger ones are not asked for: blocks that fit the
// small ones lose nothing there.
inline constexpr int64_t kL2Bytes = int64_t{1} << 20;
inline constexpr int64_t kL3Bytes = int64_t{32} << 20;

}  // namespace fastmha
