// Rows on their way through the sub-layers of blocks, in steps that all threads of one parallel region take together.
//
// Few rows leave no slice for a thread of its own: products are shared out by columns, norms by rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear_plan.h"
#include "parallel.h"
#include "sublayer.h"
#include "workspace.h"

namespace fastmha {

class TeamRows {
 public:
  // Floats from row to row of the matrices between the steps, the widest of all blocks.
  struct Strides {
    int64_t stream = 0, hidden = 0, gate = 0;
    int64_t row_floats() const { return 2 * stream + hidden + gate; }
    // What a thread needs for itself, for norms before and behind a sub-layer: the rows that come from the one are
    // added behind the other.
    int64_t own_floats() const { return 2 * kOwnRows * stream; }
  };

  // The matrices begin at `at`, which moves behind them. A thread's own rows are `own` floats into its slice.
  TeamRows(int64_t rows, int64_t features, const Strides& strides, const Workspace& scratch, int64_t own,
           float*& at);

  int64_t rows() const { return rows_; }
  // What a sub-layer writes to.
  const MutableView& stream() const { return stream_; }
  // Weights of so many bytes pass before any of them comes again.
  void pass_weights(size_t bytes);
  LinearPlan plan(const LinearLayer& layer, int threads) const { return plan(layer, rows_, threads); }
  // Of other rows than these.
  LinearPlan plan(const LinearLayer& layer, int64_t rows, int threads) const;

  // layer(x) + residual.
  struct Product {
    const LinearLayer& layer;
    const LinearPlan& plan;
    const ConstView& x;
    const MutableView& out;
    const ConstView& residual;
  };
  void linear(Team& team, const LinearLayer& layer, const LinearPlan& plan, const ConstView& x,
              const MutableView& out, const ConstView& residual) const;
  // Two products that do not need each other, in one step.
  void linear(Team& team, const Product& first, const Product& second) const;
  // linear2(activation(linear1(x)) * gate(x)) + residual, without the gate if that is null, to the stream.
  struct FeedForward {
    const LinearLayer &linear1, &linear2, *gate;
    const LinearPlan &plan1, &plan2;
  };
  void feed_forward(Team& team, const FeedForward& layers, const ConstView& x,
                    const ConstView& residual) const;

  // norm(x + f(x)) or x + f(norm(x)). The result is the stream, or the thread's own rows.
  // sublayer(input, residual) writes f(input) + residual to the stream.
  template <class Sublayer>
  ConstView around(Team& team, const SublayerNorm& norm, bool norm_first, const ConstView& x,
                   Sublayer&& sublayer) const {
    if (norm_first) {
      sublayer(normalised(team, norm, x, staged_, own_ + kOwnRows * strides_.stream), x);
      return stream_;
    }
    sublayer(x, x);
    return normalised(team, norm, stream_, stream_, own_);
  }
  // One row to its place in the result, through a last norm if there is one.
  static void finish(const SublayerNorm& norm, const ConstView& x, const MutableView& out, int64_t row);

  // Time of a product on one thread.
  static double nanoseconds(const LinearLayer& layer, int64_t rows);
  // Threads worth using for steps that take `nanoseconds` in all on one thread.
  static int threads(double nanoseconds, int64_t steps);

 private:
  // Up to so many rows every thread normalises all of them for itself, in less time than a barrier takes.
  static constexpr int64_t kOwnRows = 4;

  // To out, or, few rows, to the thread's slice from `own` on.
  ConstView normalised(Team& team, const SublayerNorm& norm, const ConstView& x, const MutableView& out,
                       int64_t own) const;
  GemmBlock part_of(const Product& product, const LinearTask& task) const;
  void run(const Product& product, int64_t task) const;

  int64_t rows_, features_;
  Strides strides_;
  const Workspace& scratch_;
  int64_t own_;
  bool far_weights_ = false;
  MutableView stream_, staged_;
  float *hidden_, *gate_;
};

}  // namespace fastmha
