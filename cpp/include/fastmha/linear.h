// Linear layers with a weight that is packed once, at load.
//
//   out = activation(x W^T + bias) + residual        x (rows, in_features), W (out_features, in_features)
//
// Bias, activation and residual are applied while a tile of the result is still in the innermost cache, so
// they cost no pass over memory of their own.
//
// Each element of out is the same sequence of roundings whatever the number of rows, its row's place among
// them, the strides and the number of threads: a row computed alone and in a batch is equal bit for bit.
//
//   fastmha::PackedLinear layer({weight, {out_features, in_features}}, {bias, {out_features}}, Activation::kGelu);
//   fastmha::linear(layer, {x, {rows, in_features}}, {out, {rows, out_features}});
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "fastmha/activation.h"
#include "fastmha/types.h"

namespace fastmha {

struct LinearParams {
  // (rows, out_features), added last; empty: none. May be out itself (exactly the same view).
  ConstView residual;
};

struct LinearLayer;  // inside the library

// A weight in the order in which the kernel reads it, with its bias and activation. Immutable: threads may
// share it. It keeps no reference to what it was made from. Only moving is allowed; a moved-from layer may
// only be assigned to or destroyed.
class PackedLinear {
 public:
  // weight (out_features, in_features) with any strides, bias (out_features) or empty. Throws
  // std::invalid_argument for other shapes, std::bad_alloc.
  explicit PackedLinear(const ConstView& weight, const ConstView& bias = {},
                        Activation activation = Activation::kNone);
  PackedLinear(PackedLinear&&) noexcept;
  PackedLinear& operator=(PackedLinear&&) noexcept;
  ~PackedLinear();

  int64_t in_features() const;
  int64_t out_features() const;
  Activation activation() const;
  bool has_bias() const;
  // How the packed weight is stored.
  DType weight_dtype() const;
  // Bytes of the packed weight and bias, padding to whole panels included.
  size_t nbytes() const;

  // The weight again, bit for bit, into a view (out_features, in_features) with any strides.
  void unpack(const MutableView& weight) const;

 private:
  struct State;
  const State& held() const;  // throws after a move
  std::unique_ptr<const State> state_;
  friend LinearLayer held_by(const PackedLinear& layer);
};

// x (rows, in_features) -> out (rows, out_features); any stride from row to row, the last axis contiguous.
// out must not overlap x. NaN and infinity propagate as in the sum they enter. Throws std::invalid_argument
// with nothing written.
void linear(const PackedLinear& layer, const ConstView& x, const MutableView& out,
            const LinearParams& params = {});

}  // namespace fastmha
