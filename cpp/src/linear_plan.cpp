#include "linear_plan.h"

#include <algorithm>
#include <cstdlib>

#include "parallel.h"

namespace fastmha {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A row block of x is read once per panel of the task and should stay in L2 (1 to 2 MiB on current servers,
// shared with the panel and the output).
constexpr int64_t kRowBlockBytes = 512 << 10;
// Past this many rows the weights of a panel are reused often enough that more rows gain nothing.
constexpr int64_t kMaxRowBlock = 168;
// Tasks per thread that even out cores of unequal speed, as long as a task is not so short that sharing it
// out shows.
constexpr int64_t kTasksPerThread = 8;
constexpr double kShortestTask = 10e3;  // ns
// Weights that are used once come from memory or a cache at about this rate, bytes per ns and core.
constexpr double kStreamBytes = 20;

// Rows a multiple of 4 KiB apart (2 KiB: every other one) compete for one set of the L1 cache, 8 or 12 lines
// for all rows of a tile plus the weights. Low tiles fit.
bool rows_alias(int64_t x_stride, int64_t tile_rows) {
  return tile_rows > 6 && x_stride != 0 &&
         (std::abs(x_stride) * static_cast<int64_t>(sizeof(float))) % 2048 == 0;
}

}  // namespace

LinearTask LinearPlan::task(int64_t index) const {
  // Columns outermost: consecutive tasks share their weights.
  const int64_t row_block = index % row_blocks;
  const int64_t column_block = index / row_blocks;
  const int64_t groups = ceil_div(columns, group);
  LinearTask part;
  part.row = row_block * rows / row_blocks;
  part.rows = (row_block + 1) * rows / row_blocks - part.row;
  part.column = column_block * groups / column_blocks * group;
  part.columns = std::min(columns, (column_block + 1) * groups / column_blocks * group) - part.column;
  return part;
}

size_t LinearPlan::scratch_bytes() const {
  return static_cast<size_t>(copied_stride * ceil_div(rows, std::max<int64_t>(1, row_blocks))) *
         sizeof(float);
}

LinearPlan plan_linear(const GemmKernels& kernels, int64_t rows, int64_t x_stride, int64_t depth,
                       int64_t columns) {
  LinearPlan plan;
  plan.rows = rows;
  plan.columns = columns;
  if (rows == 0 || columns == 0) return plan;

  plan.group = kernels.nr * (rows <= kernels.mr ? kernels.panels(rows) : 1);
  const int64_t groups = ceil_div(columns, plan.group);
  const double flops =
      2.0 * static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth + 1);
  const double weight_bytes = static_cast<double>(columns) * static_cast<double>(depth + 1) * sizeof(float);
  const double nanoseconds = std::max(flops / kernels.flops_per_ns, weight_bytes / kStreamBytes);
  plan.threads = threads_for(groups * ceil_div(rows, kernels.mr), nanoseconds);

  // Whole tiles per row block.
  const int64_t fitting =
      kRowBlockBytes / (std::max<int64_t>(depth, 1) * static_cast<int64_t>(sizeof(float)));
  const int64_t block = std::max<int64_t>(1, std::min(kMaxRowBlock, fitting) / kernels.mr) * kernels.mr;
  plan.row_blocks = ceil_div(rows, block);
  plan.column_blocks = 1;
  if (plan.threads > 1) {
    const int64_t most = std::max<int64_t>(plan.threads, static_cast<int64_t>(nanoseconds / kShortestTask));
    const int64_t wanted = std::min(plan.threads * kTasksPerThread, most);
    if (plan.row_blocks < wanted) plan.column_blocks = std::min(groups, ceil_div(wanted, plan.row_blocks));
    // Few columns: more, lower row blocks.
    if (plan.tasks() < wanted) {
      plan.row_blocks = std::min(ceil_div(rows, kernels.mr), ceil_div(wanted, plan.column_blocks));
    }
  }

  // The copy brings the rows into L2, where they are needed anyway. It made no difference here (12-way L1);
  // with 8 ways rows 4 KiB apart cost a third of the speed. Few panels would not pay for it.
  const int64_t tile_rows = std::min<int64_t>(ceil_div(rows, plan.row_blocks), kernels.mr);
  if (groups / plan.column_blocks >= 8 && rows_alias(x_stride, tile_rows)) {
    constexpr int64_t line = 16;
    plan.copied_stride = ceil_div(depth, line) * line + line;
  }
  return plan;
}

}  // namespace fastmha
