// Elementary functions over Vec. Each states its error bound; tests/test_exp.py sweeps the exponential's.
#pragma once

#include "vec.h"

namespace fastmha {
namespace {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kInfinity = __builtin_inff();

// 2^x for x <= 0, the softmax weight of a score x below the running maximum.
// x = n + r, |r| <= 1/2, 2^r = 1 + r q(r) with q of degree 4 (minimax, 9.2e-8 relative before rounding).
// Relative error <= 2e-7 down to x = -126, absolute error <= 2e-38 below; exactly 1 at 0, exactly 0 at -infinity,
// NaN at NaN (max returns its second argument when one is NaN).
FASTMHA_INLINE Vec exp2_small(Vec x) {
  x = max(Vec::set1(Vec::kExp2Floor), x);
  const Vec n = round(x);
  const Vec r = x - n;
  Vec p = fma(Vec::set1(0x1.5bba14p-10f), r, Vec::set1(0x1.3cea88p-7f));
  p = fma(p, r, Vec::set1(0x1.c6b752p-5f));
  p = fma(p, r, Vec::set1(0x1.ebf9bcp-3f));
  p = fma(p, r, Vec::set1(0x1.62e42ap-1f));
  p = fma(p, r, Vec::set1(1.0f));
  return ldexp(p, n);
}

// e^x for every x. x = n ln2 + r with ln2 in two parts (Cody and Waite), e^r = 1 + r q(r), q of degree 5
// (minimax, 2e-9 before rounding). Relative error <= 2e-7 where the result is a normal number; 0 below, infinity
// above, NaN at NaN.
FASTMHA_INLINE Vec exp(Vec x) {
  const Mask underflow = less(x, Vec::set1(-0x1.5d589ep+6f));  // -126 ln2
  x = max(Vec::set1(-88.0f), min(Vec::set1(89.0f), x));
  const Vec n = round(x * Vec::set1(kLog2e));
  Vec r = fnma(n, Vec::set1(0x1.63p-1f), x);        // ln2, its first 9 bits: n * this is exact
  r = fnma(n, Vec::set1(-0x1.bd0106p-13f), r);      // ln2 - 0x1.63p-1
  Vec p = fma(Vec::set1(0x1.6ae73p-10f), r, Vec::set1(0x1.126782p-7f));
  p = fma(p, r, Vec::set1(0x1.555822p-5f));
  p = fma(p, r, Vec::set1(0x1.55541ap-3f));
  p = fma(p, r, Vec::set1(0x1.fffffcp-2f));
  p = fma(p, r, Vec::set1(1.0f));
  p = fma(p, r, Vec::set1(1.0f));
  // n reaches 128, one more than an exponent field holds: the last doubling is a multiplication, which overflows
  // to infinity as it should.
  const Vec y = ldexp(p, n - Vec::set1(1.0f)) * Vec::set1(2.0f);
  return select(underflow, Vec::zero(), y);
}

}  // namespace
}  // namespace fastmha
