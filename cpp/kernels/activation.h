// Activation functions over V, a Vec or a VecGroup, for the epilogue of linear layers and for whole rows.
#pragma once

#include "fastmha/activation.h"
#include "math.h"

namespace fastmha {
namespace {

// Below these, gelu (both) and silu are 0 in float32. Arguments are held there, so that -infinity gives the
// limit and not -infinity * 0.
constexpr float kGeluFloor = -20.0f;
constexpr float kSiluFloor = -200.0f;

// NaN gives NaN: max and min return their second argument when one is NaN.
template <Activation F, class V>
FASTMHA_INLINE V activate(V x) {
  const V one = V::set1(1.0f);
  if constexpr (F == Activation::kRelu) {
    return max(V::zero(), x);
  } else if constexpr (F == Activation::kGelu) {
    // x Phi(x) = max(x, 0) - |x| Q(|x|), Q the upper tail of the normal distribution: no cancellation on
    // either side.
    const V magnitude = min(V::set1(-kGeluFloor), abs(x));
    return fnma(magnitude, normal_tail(magnitude), max(V::zero(), x));
  } else if constexpr (F == Activation::kGeluTanh) {
    // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u) holds its relative accuracy for u far below 0, where 1 + tanh(u)
    // has none. -2u = x (a + b x^2), a = -2 sqrt(2/pi), b = 0.044715 a.
    x = max(V::set1(kGeluFloor), x);
    const V u = x * fma(V::set1(-0.0713548162726f), x * x, V::set1(-1.5957691216057f));
    return x / (one + exp(u));
  } else if constexpr (F == Activation::kSilu) {
    x = max(V::set1(kSiluFloor), x);
    return x / (one + exp(V::zero() - x));
  } else {
    return x;
  }
}

}  // namespace
}  // namespace fastmha
