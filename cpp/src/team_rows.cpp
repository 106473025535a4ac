// Products, feed-forward and norms of a team.
#include "team_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa.h"
#include "packed_weight.h"
#include "rows.h"
#include "sizes.h"

namespace fastmha {

TeamRows::TeamRows(int64_t rows, int64_t features, const Strides& strides, const Workspace& scratch,
                   int64_t own, float*& at)
    : rows_(rows), features_(features), strides_(strides), scratch_(scratch), own_(own) {
  const auto take = [&](int64_t stride) {
    float* taken = at;
    at += rows_ * stride;
    return taken;
  };
  stream_ = {take(strides.stream), {rows, features}, {strides.stream, 1}};
  staged_ = {take(strides.stream), {rows, features}, {strides.stream, 1}};
  hidden_ = take(strides.hidden);
  gate_ = take(strides.gate);
}

void TeamRows::pass_weights(size_t bytes) { far_weights_ = bytes > static_cast<size_t>(kL3Bytes); }

LinearPlan TeamRows::plan(const LinearLayer& layer, int64_t rows, int threads) const {
  constexpr int64_t kTasksPerThread = 4;  // of a map that is too small for a region of its own
  const PackedWeight& weight = layer.weight;
  LinearPlan plan =
      plan_linear(weight.kernels(), rows, strides_.stream, weight.in_features(), weight.out_features());
  if (threads > 1 && plan.tasks() < threads) {
    const int64_t groups = ceil_div(plan.columns, plan.group);
    plan.column_blocks = std::min(groups, kTasksPerThread * threads);
  }
  return plan;
}

// ---- steps -------------------------------------------------------------------------------------------------

GemmBlock TeamRows::part_of(const Product& product, const LinearTask& task) const {
  const LinearLayer& layer = product.layer;
  GemmBlock block =
      gemm_block(layer.weight, layer.activation, product.x, product.out, product.residual, task);
  block.far_weight = far_weights_;
  if (product.plan.row_blocks > 1) block.weight_end = nullptr;  // as in run_linear
  return block;
}

void TeamRows::run(const Product& product, int64_t task) const {
  product.layer.weight.kernels().block(part_of(product, product.plan.task(task)));
}

void TeamRows::linear(Team& team, const LinearLayer& layer, const LinearPlan& plan, const ConstView& x,
                      const MutableView& out, const ConstView& residual) const {
  team.each(plan.tasks(), [&](int64_t task) { run({layer, plan, x, out, residual}, task); });
}

void TeamRows::linear(Team& team, const Product& first, const Product& second) const {
  const int64_t tasks = first.plan.tasks();
  team.each(tasks + second.plan.tasks(),
            [&](int64_t task) { task < tasks ? run(first, task) : run(second, task - tasks); });
}

void TeamRows::feed_forward(Team& team, const FeedForward& layers, const ConstView& x,
                            const ConstView& residual) const {
  const LinearLayer& layer = layers.linear1;
  const LinearPlan& plan = layers.plan1;
  const MutableView hidden(hidden_, {rows_, layer.weight.out_features()}, {strides_.hidden, 1});
  const MutableView factors(gate_, {rows_, layer.weight.out_features()}, {strides_.gate, 1});
  team.each(plan.tasks(), [&](int64_t task) {
    const LinearTask part = plan.task(task);
    const GemmKernels& kernels = layer.weight.kernels();
    const GemmBlock rows = part_of({layer, plan, x, hidden, {}}, part);
    kernels.block(rows);
    if (layers.gate == nullptr) return;
    // A task multiplies its part of the rows by the gate at once.
    const GemmBlock factor = part_of({*layers.gate, plan, x, factors, {}}, part);
    kernels.block(factor);
    active_isa().rowwise->multiply(
        {factor.out, factor.out_stride, rows.out, rows.out_stride, part.rows, part.columns});
  });
  linear(team, layers.linear2, layers.plan2, hidden, stream_, residual);
}

ConstView TeamRows::normalised(Team& team, const SublayerNorm& norm, const ConstView& x,
                               const MutableView& out, int64_t own) const {
  if (norm.weight.empty()) return x;
  if (rows_ <= kOwnRows) {
    const MutableView rows(scratch_.slice(team.thread()) + own, {rows_, features_}, {strides_.stream, 1});
    return Here::normalised(norm, x, rows);
  }
  team.each(rows_, [&](int64_t row) { Here::normalised(norm, rows_of(x, row, 1), rows_of(out, row, 1)); });
  return out;
}

void TeamRows::finish(const SublayerNorm& norm, const ConstView& x, const MutableView& out, int64_t row) {
  if (norm.weight.empty()) {
    std::memcpy(out.data + row * out.strides[0], x.data + row * x.strides[0],
                static_cast<size_t>(out.shape[1]) * sizeof(float));
  } else {
    Here::normalised(norm, rows_of(x, row, 1), rows_of(out, row, 1));
  }
}

double TeamRows::nanoseconds(const LinearLayer& layer, int64_t rows) {
  // Weights that are used once come from memory or a cache at about this rate, bytes per ns and core.
  constexpr double kStreamBytes = 20;
  const double weights = static_cast<double>(layer.weight.nbytes()) / sizeof(float);
  const double flops = 2 * weights * static_cast<double>(rows);
  return std::max(weights * sizeof(float) / kStreamBytes, flops / layer.weight.kernels().flops_per_ns);
}

int TeamRows::threads(double nanoseconds, int64_t steps) {
  // A barrier of two threads takes 0.3 us. It is taken to grow with their number, as every thread that comes writes to
  // the same line: the sum of the work of a thread and of the barriers is least for so many.
  constexpr double kBarrierNanoseconds = 150;  // for each thread
  const double best = std::sqrt(nanoseconds / (kBarrierNanoseconds * static_cast<double>(steps)));
  return threads_for(std::max<int64_t>(1, std::llround(best)), nanoseconds);
}

}  // namespace fastmha
