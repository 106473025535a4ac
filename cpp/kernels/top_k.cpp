// The k largest of a row, and the sum of its exponentials: what decoding needs of its logits.
//
// One pass over the row, block by block: the largest number of each block, and the sum of exponentials
// relative to the largest so far, from L1.
//   m_new <- max(m, max(block));  s <- s * 2^(m - m_new) + sum of 2^(x - m_new)    (x in units of log2(e))
// The k-th largest of the blocks' largest is a bound that at least k numbers reach. Then only blocks that
// reach it are looked at again, about k of them, and only what reaches it goes through a heap of k keys: what
// the selection costs hardly depends on the order of the numbers.
#include "top_k.h"

#include "math.h"
#include "vec.h"
#include "vec_group.h"

namespace fastmha {
namespace {

constexpr int64_t kLanes = Vec::kLanes;
constexpr int kGroup = 4;
using Group = VecGroup<kGroup>;
static_assert(kTopKBlock % Group::kLanes == 0 && kTopKPiece % kTopKBlock == 0, "no rest");

constexpr int64_t kLine = 16;  // floats per cache line
// Floats by which a row is asked for ahead of use: 512 rows of 32,000 from memory 62 -> 78 GB/s; twice as far
// gains 4 points more, from L2 and L3 neither shows.
constexpr int64_t kAhead = 2048;

// ---- largest and sum --------------------------------------------------------------------------------------

// The largest number of a block; -infinity for NaN alone (max returns its second argument when one is NaN).
FASTMHA_INLINE float largest_of(const float* x) {
  Group top = Group::set1(-kInfinity);
  for (int64_t i = 0; i < kTopKBlock; i += Group::kLanes) {
    for (int64_t line = 0; line < Group::kLanes; line += kLine) __builtin_prefetch(x + i + line + kAhead);
    top = max(Group::load(x + i), top);
  }
  FASTMHA_UNROLL
  for (int i = 1; i < kGroup; ++i) top.member[0] = max(top.member[0], top.member[i]);
  return reduce_max(top.member[0]);
}

FASTMHA_INLINE float sum_of(const float* x, float shift) {
  const Group log2e = Group::set1(kLog2e), minus = Group::set1(-shift);
  Group sums = Group::zero();
  for (int64_t i = 0; i < kTopKBlock; i += Group::kLanes) {
    sums = sums + exp2_small(fma(Group::load(x + i), log2e, minus));
  }
  return reduce_add((sums.member[0] + sums.member[1]) + (sums.member[2] + sums.member[3]));
}

// 2^x for one x <= 0. Not inlined: a row needs it a handful of times.
__attribute__((noinline)) float power_of_2(float x) {
  alignas(64) float lanes[kLanes];
  exp2_small(Vec::set1(x)).store(lanes);
  return lanes[0];
}

// The sum so far takes up a new largest number. Finite shifts at the lower end: -infinity - -infinity would
// be NaN, and so is a lone -infinity's weight exactly 0.
FASTMHA_INLINE void raise(ExpSum& so_far, float largest) {
  const float scaled = largest * kLog2e;
  const float shift = scaled < -__FLT_MAX__ ? -__FLT_MAX__ : scaled;
  so_far.sum *= power_of_2(so_far.shift - shift);
  so_far.largest = largest;
  so_far.shift = shift;
}

// maxima[block] for all blocks of the range, and its pieces' sums. A block that the range does not fill is
// completed with -infinity.
template <bool kSums>
FASTMHA_INLINE void reduce(const TopKRange& range) {
  const float* x = range.row + range.first;
  alignas(64) float last[kTopKBlock];
  ExpSum so_far{-kInfinity, -__FLT_MAX__, 0.0};
  for (int64_t i = 0; i < range.columns; i += kTopKBlock) {
    const float* block = x + i;
    if (range.columns - i < kTopKBlock) {
      for (int64_t j = 0; j < kTopKBlock; ++j) last[j] = i + j < range.columns ? block[j] : -kInfinity;
      block = last;
    }
    const float largest = largest_of(block);
    range.maxima[i / kTopKBlock] = largest;
    if constexpr (!kSums) continue;
    // A branch that is seldom taken, and not a maximum: the exponentials need not wait for the reduction.
    if (__builtin_expect(largest > so_far.largest, 0)) raise(so_far, largest);
    so_far.sum += static_cast<double>(sum_of(block, so_far.shift));
    if ((i + kTopKBlock) % kTopKPiece == 0 || i + kTopKBlock >= range.columns) {
      range.sums[i / kTopKPiece] = so_far;
      so_far = {-kInfinity, -__FLT_MAX__, 0.0};
    }
  }
}

// ---- selection --------------------------------------------------------------------------------------------

// The `most` largest keys seen so far; once there are as many, the smallest is at the root.
struct Heap {
  int64_t* keys;
  int64_t most;
  int64_t count;
  float bound;  // smaller numbers need not be offered

  FASTMHA_INLINE void sift(int64_t at) {
    const int64_t key = keys[at];
    for (int64_t child = 2 * at + 1; child < most; child = 2 * at + 1) {
      if (child + 1 < most && keys[child + 1] < keys[child]) ++child;
      if (keys[child] >= key) break;
      keys[at] = keys[child];
      at = child;
    }
    keys[at] = key;
  }

  FASTMHA_INLINE void offer(const float* row, int64_t column) {
    const int64_t key = top_k_key(row[column], column);
    if (count == most) {
      if (key <= keys[0]) return;
      keys[0] = key;
      sift(0);
    } else {
      keys[count++] = key;
      if (count < most) return;
      for (int64_t at = most / 2 - 1; at >= 0; --at) sift(at);
    }
    bound = row[top_k_column(keys[0])];
  }
};

// Numbers [first, last) of a row go through the heap.
FASTMHA_INLINE void select_from(const float* row, int64_t first, int64_t last, Heap& heap) {
  for (int64_t i = first; i < last; i += kLanes) {
    const int lanes = static_cast<int>(last - i < kLanes ? last - i : kLanes);
    const Vec x = lanes == kLanes ? Vec::load(row + i) : Vec::load_n(row + i, lanes);
    const Vec bound = Vec::set1(heap.bound);
    uint32_t reach = (to_bits(less(bound, x)) | to_bits(equal(bound, x))) & ((1u << lanes) - 1u);
    for (; reach != 0; reach &= reach - 1) heap.offer(row, i + __builtin_ctz(reach));
  }
}

int64_t run_top_k(const TopKRange& range) {
  range.sums == nullptr ? reduce<false>(range) : reduce<true>(range);
  const int64_t blocks = (range.columns + kTopKBlock - 1) / kTopKBlock;
  Heap heap{range.keys, range.k, 0, -kInfinity};
  if (blocks >= range.k) {
    select_from(range.maxima, 0, blocks, heap);
    heap.count = 0;
  }
  const int64_t last = range.first + range.columns;
  for (int64_t block = 0; block < blocks; ++block) {
    if (!(range.maxima[block] >= heap.bound)) continue;
    const int64_t from = range.first + block * kTopKBlock;
    select_from(range.row, from, last - from < kTopKBlock ? last : from + kTopKBlock, heap);
  }
  return heap.count;
}

}  // namespace

extern "C" const TopKKernels FASTMHA_KERNEL_SYMBOL(top_k) = {
    "top_k_" FASTMHA_STRINGIZE(FASTMHA_KERNEL_ISA),
    Vec::kLanes / 3.0,
    run_top_k,
};

}  // namespace fastmha
