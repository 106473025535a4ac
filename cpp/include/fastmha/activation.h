// The function that a linear layer applies before its residual, and that activation() applies element by
// element.
#pragma once

#include <cstdint>

namespace fastmha {

enum class Activation : uint8_t {
  kNone,
  kRelu,      // max(x, 0)
  kGelu,      // x Phi(x), Phi the normal distribution function: x/2 (1 + erf(x / sqrt(2)))
  kGeluTanh,  // x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kSilu,      // x / (1 + e^-x)
};

}  // namespace fastmha
