// How a linear layer's result is cut into tasks. Only speed depends on it: every element is summed in the
// same order in any plan.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels/gemm.h"
#include "fastmha/types.h"

namespace fastmha {

class PackedWeight;
class PackedLinear;

// What a PackedLinear holds.
struct LinearLayer {
  const PackedWeight& weight;
  Activation activation;
};
LinearLayer held_by(const PackedLinear& layer);

// Rows [row, row + rows) of columns [column, column + columns); column is the start of a panel.
struct LinearTask {
  int64_t row, rows;
  int64_t column, columns;
};

// A grid of row blocks by column blocks, all of nearly the same size.
struct LinearPlan {
  int64_t rows = 0, columns = 0;  // of the result
  int64_t row_blocks = 0, column_blocks = 0;
  int64_t group = 1;          // columns that stay together: one panel, or as many as run side by side
  int64_t copied_stride = 0;  // floats from row to row of a private copy of x; 0: x is read in place
  int threads = 1;

  int64_t tasks() const { return row_blocks * column_blocks; }
  LinearTask task(int64_t index) const;
  // Per thread.
  size_t scratch_bytes() const;
};

LinearPlan plan_linear(const GemmKernels& kernels, int64_t rows, int64_t x_stride, int64_t depth,
                       int64_t columns);

// Whether rows of x that far apart get in each other's way in the L1 cache when tiles of so many are read.
bool rows_alias(int64_t x_stride, int64_t tile_rows);

// That part of a layer's result, for the kernel: x, out and residual (or empty) are the whole matrices.
GemmBlock gemm_block(const PackedWeight& weight, Activation activation, const ConstView& x,
                     const MutableView& out, const ConstView& residual, const LinearTask& part);

// The layer without its argument checks.
void run_linear(const PackedWeight& weight, Activation activation, const ConstView& x, const MutableView& out,
                const ConstView& residual);

}  // namespace fastmha
