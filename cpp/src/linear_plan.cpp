// How a linear layer is cut into tasks: blocks of rows that stay in L2, blocks of columns for enough tasks,
// all of nearly the same size so that threads end together.
#include "linear_plan.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "parallel.h"
#include "sizes.h"

#if defined(__unix__)
#include <unistd.h>
#endif

namespace fastmha {
namespace {

// A row block of x is read once per panel of the task and should stay in L2, with the panel and the output.
constexpr int64_t kRowBlockBytes = kL2Bytes / 2;
// Past this many rows the weights of a panel are reused often enough that more rows gain nothing. Half as
// many and twice as many are within the noise; low blocks leave less of a rest at the end, when the other
// threads are done.
constexpr int64_t kMaxRowBlock = 84;
// Tasks per thread that even out cores of unequal speed, as long as a task is not shorter than
// kTaskNanoseconds.
constexpr int64_t kTasksPerThread = 8;
// Weights that are used once come from memory or a cache at about this rate, bytes per ns and core.
constexpr double kStreamBytes = 20;

// Ways of the L1 cache: 12 on current servers, 8 before.
int64_t cache_ways() {
#if defined(_SC_LEVEL1_DCACHE_ASSOC)
  static const int64_t ways = sysconf(_SC_LEVEL1_DCACHE_ASSOC);
  if (ways > 0) return ways;
#endif
  return 8;
}

}  // namespace

// Rows a multiple of 4 KiB apart compete for one set of the L1 cache (each of its ways holds 4 KiB), rows 2
// KiB apart for two. The weights that stream through need a few lines of every set as well. 14 rows of 4 KiB
// in 12 ways cost 5 points of peak.
bool rows_alias(int64_t x_stride, int64_t tile_rows) {
  constexpr int64_t kWay = 4096;
  constexpr int64_t kForWeights = 4;
  if (x_stride == 0) return false;
  const int64_t sets = kWay / std::gcd(kWay, std::abs(x_stride) * static_cast<int64_t>(sizeof(float)));
  return ceil_div(tile_rows, sets) + kForWeights > cache_ways();
}

namespace {

// The work of the busiest thread, in tiles, when tasks are shared out evenly.
int64_t longest_share(int64_t row_tiles, int64_t row_blocks, int64_t groups, int64_t column_blocks,
                      int64_t threads) {
  return ceil_div(row_blocks * column_blocks, threads) * ceil_div(row_tiles, row_blocks) *
         ceil_div(groups, column_blocks);
}

// Near `wanted`, half to twice as many: how often to cut the groups so that threads end together. 24 panels
// in 16 blocks, of one and of two panels, cost 128 x 768 -> 768 on two threads 7 points of peak against 8
// blocks of three.
int64_t even_column_blocks(int64_t row_tiles, int64_t row_blocks, int64_t groups, int64_t wanted,
                           int64_t threads) {
  constexpr int64_t kMostGroups = 8;  // groups a block beyond which one more or less does not matter
  wanted = std::min(groups, wanted);
  const int64_t each_wanted = ceil_div(groups, wanted);
  if (each_wanted > kMostGroups) return wanted;
  int64_t best = wanted;
  int64_t best_share = longest_share(row_tiles, row_blocks, groups, wanted, threads);
  for (int64_t each = (each_wanted + 1) / 2; each <= 2 * each_wanted; ++each) {
    const int64_t blocks = ceil_div(groups, each);
    const int64_t share = longest_share(row_tiles, row_blocks, groups, blocks, threads);
    if (share < best_share || (share == best_share && std::abs(blocks - wanted) < std::abs(best - wanted))) {
      best = blocks;
      best_share = share;
    }
  }
  return best;
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
  const int64_t row_tiles = ceil_div(rows, kernels.mr);
  plan.row_blocks = ceil_div(rows, block);
  plan.column_blocks = 1;
  if (plan.threads > 1) {
    const int64_t most =
        std::max<int64_t>(plan.threads, static_cast<int64_t>(nanoseconds / kTaskNanoseconds));
    const int64_t wanted = std::min(plan.threads * kTasksPerThread, most);
    if (plan.row_blocks < wanted) {
      plan.column_blocks = even_column_blocks(row_tiles, plan.row_blocks, groups,
                                              ceil_div(wanted, plan.row_blocks), plan.threads);
    }
    // Few columns: more, lower row blocks.
    if (2 * plan.tasks() < wanted) plan.row_blocks = ceil_div(wanted, plan.column_blocks);
    // As many for each thread.
    if (plan.column_blocks % plan.threads != 0) {
      plan.row_blocks = ceil_div(plan.row_blocks, plan.threads) * plan.threads;
    }
    plan.row_blocks = std::min(row_tiles, plan.row_blocks);
  }

  // The copy brings the rows into L2, where they are needed anyway; few panels would not pay for it. Without
  // need it costs 2 points of peak (5120 x 512 -> 512).
  const int64_t tile_rows = std::min<int64_t>(ceil_div(rows, plan.row_blocks), kernels.mr);
  if (groups / plan.column_blocks >= 8 && rows_alias(x_stride, tile_rows)) {
    constexpr int64_t line = 16;
    plan.copied_stride = ceil_div(depth, line) * line + line;
  }
  return plan;
}

}  // namespace fastmha
