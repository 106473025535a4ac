// Elementary functions over V, a Vec or a VecGroup. Each states its error bound; tests/test_exp.py sweeps the
// exponential's.
#pragma once

#include "vec.h"

namespace fastmha {
namespace {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kInfinity = __builtin_inff();

// 2^x for x <= 0, the softmax weight of a score x below the running maximum.
// x = n + r, |r| <= 1/2, 2^r = 1 + r q(r) with q of degree 4 (minimax, 9.2e-8 relative before rounding).
// Relative error <= 2e-7 down to x = -126, absolute error <= 2e-38 below; exactly 1 at 0, exactly 0 at
// -infinity, NaN at NaN (max returns its second argument when one is NaN).
template <class V>
FASTMHA_INLINE V exp2_small(V x) {
  x = max(V::set1(V::kExp2Floor), x);
  const V n = round(x);
  const V r = x - n;
  V p = fma(V::set1(0x1.5bba14p-10f), r, V::set1(0x1.3cea88p-7f));
  p = fma(p, r, V::set1(0x1.c6b752p-5f));
  p = fma(p, r, V::set1(0x1.ebf9bcp-3f));
  p = fma(p, r, V::set1(0x1.62e42ap-1f));
  p = fma(p, r, V::set1(1.0f));
  return ldexp(p, n);
}

// e^x for x from -126 ln2 to 128 ln2, and NaN. x = n ln2 + r with ln2 in two parts (Cody and Waite), e^r = 1
// + r q(r), q of degree 5 (minimax, 2e-9 before rounding). Relative error <= 2e-7.
template <class V>
FASTMHA_INLINE V exp_of_normal(V x) {
  const V n = round(x * V::set1(kLog2e));
  V r = fnma(n, V::set1(0x1.63p-1f), x);      // ln2, its first 9 bits: n * this is exact
  r = fnma(n, V::set1(-0x1.bd0106p-13f), r);  // ln2 - 0x1.63p-1
  V p = fma(V::set1(0x1.6ae73p-10f), r, V::set1(0x1.126782p-7f));
  p = fma(p, r, V::set1(0x1.555822p-5f));
  p = fma(p, r, V::set1(0x1.55541ap-3f));
  p = fma(p, r, V::set1(0x1.fffffcp-2f));
  p = fma(p, r, V::set1(1.0f));
  p = fma(p, r, V::set1(1.0f));
  return ldexp(p, n);
}

// Where ldexp gives 0 and infinity by itself, arguments need only be kept finite, or reducing them gives NaN.
constexpr float kExpLimit = 200.0f;

// e^x for every x: as above where the result is a normal number; 0 or subnormal below, infinity above, NaN at
// NaN.
template <class V>
FASTMHA_INLINE V exp(V x) {
  if constexpr (V::kLdexpSaturates) {
    return exp_of_normal(max(V::set1(-kExpLimit), min(V::set1(kExpLimit), x)));
  } else {
    const auto underflow = less(x, V::set1(-0x1.5d589ep+6f));  // -126 ln2
    const auto overflow = less(V::set1(0x1.62e42ep+6f), x);    // the largest x below 128 ln2
    x = max(V::set1(-0x1.5d589ep+6f),
            min(V::set1(0x1.62e42ep+6f), x));  // n from -126 to 128, with e^r < 1 at 128
    return select(underflow, V::zero(), select(overflow, V::set1(kInfinity), exp_of_normal(x)));
  }
}

// The same for x <= 0; exactly 0 at -infinity.
template <class V>
FASTMHA_INLINE V exp_nonpositive(V x) {
  if constexpr (V::kLdexpSaturates) {
    return exp_of_normal(max(V::set1(-kExpLimit), x));
  } else {
    const auto underflow = less(x, V::set1(-0x1.5d589ep+6f));
    x = max(V::set1(-0x1.5d589ep+6f), x);
    return select(underflow, V::zero(), exp_of_normal(x));
  }
}

// 1 / (1 + e^-x). Relative error <= 3e-7 where the result is a normal number.
template <class V>
FASTMHA_INLINE V sigmoid(V x) {
  const V one = V::set1(1.0f);
  return one / (one + exp(V::zero() - x));
}

// tanh(x). Below 5/8 x + x^3 q(x^2) with q of degree 4 (minimax, 4.4e-9 relative), so that small x keep their
// relative accuracy; above 1 - 2t / (1 + t) with t = e^-2|x|, where 1 + t <= 1.3 and reciprocal() may replace
// a division. exp2_small would reach 2.02e-7. Relative error <= 2e-7, exactly +-1 from 9.1 on.
template <class V>
FASTMHA_INLINE V tanh(V x) {
  const V magnitude = abs(x);
  const V square = x * x;
  V q = fma(V::set1(-0x1.75e04ap-8f), square, V::set1(0x1.522644p-6f));
  q = fma(q, square, V::set1(-0x1.b83c4cp-5f));
  q = fma(q, square, V::set1(0x1.110726p-3f));
  q = fma(q, square, V::set1(-0x1.555532p-2f));
  const V small = fma(q * square, x, x);
  const V one = V::set1(1.0f);
  const V decay = exp(V::zero() - (magnitude + magnitude));
  const V large = one - (decay + decay) * reciprocal(decay + one);
  return copysign(select(less(magnitude, V::set1(0.625f)), small, large), x);
}

// tanh(x) as a score's cap needs it: half the work of tanh() above (attention of 2048 x 2048 took 1.30 times
// the plain call's time with that one, 1.13 with this). x p(x^2) / q(x^2) with p and q of degree 4 (minimax
// up to 8.4, 1.1e-8 relative before rounding), x clamped to where tanh is 1 but for 1e-7. All coefficients
// are positive: nothing cancels. Relative error <= 3.5e-7; NaN at NaN.
template <class V>
FASTMHA_INLINE V tanh_of_score(V x) {
  x = max(V::set1(-8.4f), min(V::set1(8.4f), x));
  const V square = x * x;
  V p = fma(V::set1(0x1.f0c3f6p-27f), square, V::set1(0x1.66b132p-16f));
  V q = fma(V::set1(0x1.b94ddcp-21f), square, V::set1(0x1.60787ap-12f));
  p = fma(p, square, V::set1(0x1.d034d8p-9f));
  q = fma(q, square, V::set1(0x1.aad39ap-6f));
  p = fma(p, square, V::set1(0x1.12d53cp-3f));
  q = fma(q, square, V::set1(0x1.debfecp-2f));
  p = fma(p, square, V::set1(1.0f));
  q = fma(q, square, V::set1(1.0f));
  return x * p * reciprocal(q);
}

// The upper tail of the normal distribution, erfc(x / sqrt(2)) / 2, for 0 <= x <= 20: e^(-x^2/2) t p(t) with
// t = 1 / (1 + 0.4 x) and p of degree 7 on [0, 14]. The tail keeps an accuracy relative to itself, where 1 -
// erf would cancel to nothing. Absolute error <= 2e-7; relative error <= 5.1e-7 + 6.3e-8 x^2 (x^2/2 roundings
// of the square) up to x = 12.9, exactly 0 at 20. As the square's rounding grows, so may the polynomial's
// error: minimax of the relative error over 1 + x^2/4, 5.1e-8. Degree 8, 2.3e-8 everywhere, took 13.0 instead
// of 12.1 cycles per AVX-512 vector, where 20 multiply-adds and an estimate need 10.3 at two a cycle.
// Carrying the square's rounding error along made the tail 20 times better and gelu slower than PyTorch's.
template <class V>
FASTMHA_INLINE V normal_tail(V x) {
  const V t = reciprocal(fma(V::set1(0.4f), x, V::set1(1.0f)));
  V p = fma(V::set1(-0x1.2ccd56p-5f), t, V::set1(0x1.7ee6p-3f));
  p = fma(p, t, V::set1(-0x1.62bec4p-2f));
  p = fma(p, t, V::set1(0x1.c4c37ap-3f));
  p = fma(p, t, V::set1(0x1.d8afbap-8f));
  p = fma(p, t, V::set1(0x1.346ddp-3f));
  p = fma(p, t, V::set1(0x1.42d22cp-3f));
  p = fma(p, t, V::set1(0x1.4701fp-3f));
  const V gauss = exp2_small(x * (x * V::set1(-0.5f * kLog2e)));
  return gauss * (t * p);
}

}  // namespace
}  // namespace fastmha
