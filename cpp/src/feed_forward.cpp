// The feed-forward sub-layer: checks, slices of rows.
#include <algorithm>

#include "check.h"
#include "packed_weight.h"
#include "parallel.h"
#include "sizes.h"
#include "sublayer.h"
#include "workspace.h"

namespace fastmha {
namespace {

const char* const kOp = "feed_forward";

// A call after its checks.
struct FeedForward {
  LinearLayer linear1, linear2;
  const LinearLayer* gate;  // or null
  ConstView x;
  MutableView out;
  const FeedForwardParams& params;

  int64_t rows() const { return x.shape[0]; }
  int64_t hidden() const { return linear1.weight.out_features(); }
  // Columns of the gate that are in scratch memory at a time.
  int64_t gate_columns(bool shared) const {
    return gate == nullptr ? 0 : shared ? hidden() : std::min(hidden(), kGateColumns);
  }
  int64_t row_floats(bool shared) const {
    return scratch_stride(x.shape[1]) + scratch_stride(hidden()) + scratch_stride(gate_columns(shared));
  }
  double flops() const {
    const int64_t inputs = gate == nullptr ? x.shape[1] : 2 * x.shape[1];
    return 2.0 * static_cast<double>(rows()) * static_cast<double>(hidden() + 1) *
           static_cast<double>(inputs + out.shape[1] + 1);
  }
};

// Rows [first, first + rows) from x to out.
template <class Steps>
void run_rows(const FeedForward& f, int64_t first, int64_t rows, float* scratch) {
  const MutableView staged(scratch, {rows, f.x.shape[1]}, {scratch_stride(f.x.shape[1]), 1});
  const MutableView hidden(scratch + rows * staged.strides[0], {rows, f.hidden()},
                           {scratch_stride(f.hidden()), 1});
  const MutableView gate(hidden.data + rows * hidden.strides[0], {rows, f.gate_columns(Steps::kShared)},
                         {scratch_stride(f.gate_columns(Steps::kShared)), 1});
  const MutableView out = rows_of(f.out, first, rows);
  const ConstView x = Steps::normalised(f.params.norm_before, rows_of(f.x, first, rows), staged);
  Steps::linear(f.linear1, x, hidden, {});
  if (f.gate != nullptr) Steps::multiply(*f.gate, x, hidden, gate);
  Steps::linear(f.linear2, hidden, out, rows_of(f.params.residual, first, rows));
  Steps::normalise(f.params.norm_after, out);
}

size_t scratch_bytes(const FeedForward& f, int64_t rows, bool shared) {
  return static_cast<size_t>(rows * f.row_floats(shared)) * sizeof(float);
}

void run(const FeedForward& f) {
  const GemmKernels& kernels = f.linear1.weight.kernels();
  const int64_t tiles = ceil_div(f.rows(), kernels.mr) * f.linear1.weight.panels();
  const int threads = threads_for(tiles, f.flops() / kernels.flops_per_ns);
  if (threads > 1 && f.rows() < threads * least_slice_rows(kernels)) {
    const Workspace scratch(1, scratch_bytes(f, f.rows(), true));
    return run_rows<Shared>(f, 0, f.rows(), scratch.slice(0));
  }
  // x and hidden in scratch memory, and the rows of out.
  const int64_t row_bytes = (f.row_floats(false) + f.out.shape[1]) * static_cast<int64_t>(sizeof(float));
  const int64_t most = ceil_div(f.rows(), slice_rows(kernels, row_bytes));
  const int64_t count = std::min(f.rows(), ceil_div(most, threads) * threads);  // every thread as many
  const Workspace scratch(threads, scratch_bytes(f, ceil_div(f.rows(), count), false));
  parallel_for(count, threads, [&](int64_t slice, int thread) {
    const int64_t first = slice * f.rows() / count;
    run_rows<Here>(f, first, (slice + 1) * f.rows() / count - first, scratch.slice(thread));
  });
}

}  // namespace

void feed_forward(const PackedLinear& linear1, const PackedLinear& linear2, const ConstView& x,
                  const MutableView& out, const FeedForwardParams& params) {
  const LinearLayer gate = held_by(params.gate == nullptr ? linear1 : *params.gate);
  const FeedForward f{
      held_by(linear1), held_by(linear2), params.gate == nullptr ? nullptr : &gate, x, out, params};
  FASTMHA_CHECK(f.linear2.weight.in_features() == f.hidden(), kOp,
                ": linear2 must take the features that linear1 gives, ", f.hidden(), ", but takes ",
                f.linear2.weight.in_features());
  FASTMHA_CHECK(
      gate.weight.in_features() == f.linear1.weight.in_features() && gate.weight.out_features() == f.hidden(),
      kOp, ": gate must have the shape of linear1, ", f.linear1.weight.in_features(), " -> ", f.hidden(),
      ", got ", gate.weight.in_features(), " -> ", gate.weight.out_features());
  check_sublayer_input(kOp, "x", x, f.linear1, "linear1");
  check_sublayer(kOp, x, out, f.linear2, "linear2", params.norm_before, params.norm_after, params.residual);
  if (x.shape[0] != 0) run(f);
}

}  // namespace fastmha
