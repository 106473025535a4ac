// What the sub-layers share: the two ways to run a step, norms on either side, slices, scratch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention_plan.h"
#include "fastmha/sublayer.h"
#include "linear_plan.h"

namespace fastmha {

// ---- steps -------------------------------------------------------------------------------------------------

// Here: every step runs on the calling thread alone, one of many that have a slice of the rows each.
struct Here {
  static constexpr bool kShared = false;
  // x through the norm, in `staged`, or as it is. It is copied only where its stride would slow down the
  // products that read it: a copy without need costs 1 to 2% of a sub-layer.
  static ConstView normalised(const SublayerNorm& norm, const ConstView& x, const MutableView& staged);
  static void linear(const LinearLayer& layer, const ConstView& x, const MutableView& out,
                     const ConstView& residual);
  // rows *= layer(x), with the layer's result, or a part of its columns, in `gate`.
  static void multiply(const LinearLayer& layer, const ConstView& x, const MutableView& rows,
                       const MutableView& gate);
  static void attention(const AttentionPlan& plan, float* scratch);
  static void normalise(const SublayerNorm& norm, const MutableView& rows);
};

// Shared: every step is shared out over the threads by rows, columns or heads, whatever there are enough of.
struct Shared {
  static constexpr bool kShared = true;
  static ConstView normalised(const SublayerNorm& norm, const ConstView& x, const MutableView& staged);
  static void linear(const LinearLayer& layer, const ConstView& x, const MutableView& out,
                     const ConstView& residual);
  static void multiply(const LinearLayer& layer, const ConstView& x, const MutableView& rows,
                       const MutableView& gate);
  static void attention(const AttentionPlan& plan, float* scratch);
  static void normalise(const SublayerNorm& norm, const MutableView& rows);
};

// Columns of a gate that are computed and used before the next ones: 14 rows of them are 28 KiB, in L1.
inline constexpr int64_t kGateColumns = 512;

// ---- slices ------------------------------------------------------------------------------------------------

// Rows of a slice that one thread takes through a sub-layer, given the bytes that a row needs on its way.
int64_t slice_rows(const GemmKernels& kernels, int64_t row_bytes);
// Fewer rows than this per thread are not worth a slice: every slice reads all weights.
int64_t least_slice_rows(const GemmKernels& kernels);
// What intermediate results may take per thread, in a slice that holds one long sequence or in a round of shared
// steps: with those of the other threads they stay in L3, and scratch memory does not grow with the batch.
inline constexpr int64_t kMostBytes = int64_t{8} << 20;

// ---- views and scratch -------------------------------------------------------------------------------------

template <class T>
View<T> rows_of(const View<T>& matrix, int64_t first, int64_t rows) {
  if (matrix.empty()) return {};
  View<T> part = matrix;
  part.data += first * matrix.strides[0];
  part.shape[0] = rows;
  return part;
}

// Floats from row to row of a matrix in scratch memory: whole cache lines, and not a multiple of 2 KiB, at
// which the rows of a tile would compete for one set of the L1 cache. 0 for a matrix that there is not.
int64_t scratch_stride(int64_t features);

// ---- checks ------------------------------------------------------------------------------------------------

// x must fit the layer called `layer_name`.
void check_sublayer_input(const char* op, const char* name, const ConstView& x, const LinearLayer& layer,
                          const char* layer_name);
// The norm called `name`, if there is one, must fit rows of `features`; `out` is where its result ends.
void check_norm(const char* op, const char* name, const SublayerNorm& norm, int64_t features,
                const MutableView& out);
// out must have the rows of x and the features of the last layer, called `layer_name`; norms and residual
// must fit.
void check_sublayer(const char* op, const ConstView& x, const MutableView& out, const LinearLayer& last,
                    const char* layer_name, const SublayerNorm& before, const SublayerNorm& after,
                    const ConstView& residual);

}  // namespace fastmha
