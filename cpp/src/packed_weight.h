// A weight in the order in which the linear-layer kernel reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "../kernels/gemm.h"
#include "fastmha/types.h"

namespace fastmha {

// W (out_features, in_features) cut into panels of nr output features, each stored depth-major:
//
//   panel 0                                    panel 1
//   W[0][0]   W[1][0]   ... W[nr-1][0]         W[nr][0]  ...
//   W[0][1]   W[1][1]   ... W[nr-1][1]
//   ...
//   W[0][K-1] W[1][K-1] ... W[nr-1][K-1]       ...
//
// The kernel walks one panel, or a few side by side, from front to back: every load is a whole vector, in
// memory order. Features past out_features are zeros. nr is the ISA's, so a packed weight belongs to one
// kernel table. float32 is the one dtype so far; a panel of another dtype would differ in what an element is,
// not in this order.
class PackedWeight {
 public:
  PackedWeight(const GemmKernels& kernels, const ConstView& weight, const ConstView& bias);

  const GemmKernels& kernels() const { return kernels_; }
  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }
  int64_t panels() const { return (out_features_ + kernels_.nr - 1) / kernels_.nr; }
  DType dtype() const { return DType::kFloat32; }
  size_t nbytes() const;

  const float* panel(int64_t index) const { return panels_.get() + index * kernels_.nr * in_features_; }
  // Panels * nr floats; zeros past the last feature and without a bias.
  const float* bias() const { return bias_.get(); }

  void unpack(const MutableView& weight) const;

 private:
  using Buffer = std::shared_ptr<float>;  // or a part of memory that weights share
  static Buffer allocate(int64_t floats);

  const GemmKernels& kernels_;
  int64_t in_features_;
  int64_t out_features_;
  Buffer panels_;
  Buffer bias_;
};

}  // namespace fastmha
