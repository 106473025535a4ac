// What the top-k kernel takes and what an instruction set has of it.
#pragma once

#include <cstdint>

namespace fastmha {

// A row's sum of exponentials is added up in pieces of this many columns, counted from column 0: its bits
// depend neither on how rows are shared out nor on what runs beside them. A piece fits L1.
constexpr int64_t kTopKPiece = 8192;
// Columns of which the largest number is kept, so that few of them are looked at twice. A piece is a whole
// number of blocks.
constexpr int64_t kTopKBlock = 256;

// A number of a row as one integer, greater for what comes first: numbers in descending order, the same
// numbers (0 and -0 are the same) by column. NaN has no key.
inline int64_t top_k_key(float value, int64_t column) {
  const float sum = value + 0.0f;  // -0 becomes 0
  int32_t bits;
  __builtin_memcpy(&bits, &sum, sizeof bits);
  bits ^= (bits >> 31) & INT32_MAX;  // the order of floats as the order of integers
  return static_cast<int64_t>((static_cast<uint64_t>(static_cast<uint32_t>(bits)) << 32) |
                              (UINT32_MAX - static_cast<uint32_t>(column)));
}
inline int64_t top_k_column(int64_t key) { return UINT32_MAX - static_cast<uint32_t>(key); }

// Of a piece: sum = sum of 2^(x log2(e) - shift), where shift belongs to `largest` and is near largest *
// log2(e).
struct ExpSum {
  float largest;  // -infinity for NaN alone
  float shift;
  double sum;
};

// Columns [first, first + columns) of a row, `first` the start of a piece.
struct TopKRange {
  const float* row = nullptr;
  int64_t first = 0;
  int64_t columns = 0;
  int64_t k = 0;
  int64_t* keys = nullptr;  // out: the keys of the k largest, in no order
  float* maxima = nullptr;  // scratch: a float for each block
  ExpSum* sums = nullptr;   // out: one for each piece; null: not wanted
};

struct TopKKernels {
  const char* name;
  double floats_per_ns;  // of one core, for estimates of time
  // How many keys there are: fewer than k where the range has fewer numbers that are not NaN.
  int64_t (*run)(const TopKRange& range);
};

extern "C" {
extern const TopKKernels fastmha_top_k_generic;
extern const TopKKernels fastmha_top_k_avx2;
extern const TopKKernels fastmha_top_k_avx512;
}

}  // namespace fastmha
