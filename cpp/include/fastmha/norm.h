// Operations on the rows of a matrix: normalisations, softmax, activation functions.
//
// x and out are (rows, features) with any stride from row to row and a contiguous last axis. out may be x (or
// the residual) itself, exactly the same view, and must otherwise not overlap an input. A row's result
// depends on that row alone: not on the number of rows, its place, the strides or the number of threads. All
// throw std::invalid_argument with nothing written.
//
//   fastmha::layer_norm({x, {rows, features}}, {weight, {features}}, {out, {rows, features}});
#pragma once

#include "fastmha/activation.h"
#include "fastmha/types.h"

namespace fastmha {

struct LayerNormParams {
  ConstView bias;      // (features); empty: none
  ConstView residual;  // (rows, features), added to x before the norm; empty: none
  float eps = 1e-5f;
};

// z = x + residual;  out = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias
// Mean first, then the mean of (z - mean)^2 (no E[z^2] - E[z]^2, which cancels). weight (features).
void layer_norm(const ConstView& x, const ConstView& weight, const MutableView& out,
                const LayerNormParams& params = {});

struct RmsNormParams {
  ConstView residual;  // (rows, features), added to x before the norm; empty: none
  float eps = 1e-6f;
};

// z = x + residual;  out = z / sqrt(mean(z^2) + eps) * weight        weight (features)
void rms_norm(const ConstView& x, const ConstView& weight, const MutableView& out,
              const RmsNormParams& params = {});

// out = exp(x - max(x)) / sum(exp(x - max(x))) for each row. A row of -infinity alone gives zeros; NaN or
// +infinity anywhere in a row makes the whole row NaN.
void softmax(const ConstView& x, const MutableView& out);

// out = f(x), element by element; see Activation for the formulas. The error is at most 2.5e-7 |x|; far below
// zero, where f(x) itself is tiny, it stays within 1e-5 |f(x)| for gelu (to x = -12.9), 1.5e-5 for gelu_tanh
// (to -9.9) and 3e-7 for silu (to -87). NaN gives NaN, -infinity the limit, 0.
void activation(Activation function, const ConstView& x, const MutableView& out);

// out = e^x, the exponential inside the kernels: relative error <= 2e-7 where the result is a normal number,
// 0 or subnormal below it, infinity above.
void exp(const ConstView& x, const MutableView& out);

}  // namespace fastmha
