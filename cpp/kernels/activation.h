// Activation functions over Vec, for the epilogue of linear layers and for whole rows.
#pragma once

#include "fastmha/activation.h"
#include "math.h"

namespace fastmha {
namespace {

template <Activation F>
FASTMHA_INLINE Vec activate(Vec x) {
  if constexpr (F == Activation::kRelu) {
    return max(Vec::zero(), x);  // the second argument when one is NaN
  } else if constexpr (F == Activation::kGelu) {
    // x Phi(x) = x - x Q(x) for x >= 0 and x Q(-x) below, Q the upper tail: no cancellation on either side.
    const Vec part = x * normal_tail(abs(x));
    return select(less(x, Vec::zero()), part, x - part);
  } else if constexpr (F == Activation::kGeluTanh) {
    // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u) holds its relative accuracy for u far below 0, where 1 + tanh(u)
    // has none. -2u = x (a + b x^2), a = -2 sqrt(2/pi), b = 0.044715 a.
    const Vec u = x * fma(Vec::set1(-0.0713548162726f), x * x, Vec::set1(-1.5957691216057f));
    return x / (Vec::set1(1.0f) + exp(u));
  } else if constexpr (F == Activation::kSilu) {
    return x / (Vec::set1(1.0f) + exp(Vec::zero() - x));
  } else {
    return x;
  }
}

}  // namespace
}  // namespace fastmha
