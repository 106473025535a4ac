// VecGroup: several Vecs that go through the same arithmetic side by side.
//
// An elementary function is one long chain of dependent operations: 60 to 80 cycles for a result of which the
// units need 5 to 10. The out-of-order window holds too few vectors to fill the gap, so functions of math.h
// and activation.h are templates over V, a Vec or a group: each step is issued for all members before the
// next. Each member's bits are those that a Vec alone would get. (silu of 4096 x 768 from L3, 2 threads,
// AVX-512: 0.29 ms as Vecs, 0.19 as groups.)
#pragma once

#include "vec.h"

namespace fastmha {
namespace {

template <int N>
struct MaskGroup {
  Mask member[N];
};

template <int N>
struct VecGroup {
  static constexpr int kLanes = N * Vec::kLanes;
  static constexpr float kExp2Floor = Vec::kExp2Floor;
  static constexpr bool kLdexpSaturates = Vec::kLdexpSaturates;

  Vec member[N];

  // Each step below is a loop over members.
  template <class Make>
  static FASTMHA_INLINE VecGroup each(Make make) {
    VecGroup made;
    FASTMHA_UNROLL
    for (int i = 0; i < N; ++i) made.member[i] = make(i);
    return made;
  }
  static FASTMHA_INLINE VecGroup zero() {
    return each([](int) { return Vec::zero(); });
  }
  static FASTMHA_INLINE VecGroup set1(float x) {
    return each([x](int) { return Vec::set1(x); });
  }
  static FASTMHA_INLINE VecGroup load(const float* p) {
    return each([p](int i) { return Vec::load(p + i * Vec::kLanes); });
  }
  FASTMHA_INLINE void store(float* p) const {
    FASTMHA_UNROLL
    for (int i = 0; i < N; ++i) member[i].store(p + i * Vec::kLanes);
  }
  FASTMHA_INLINE void stream(float* p) const {
    FASTMHA_UNROLL
    for (int i = 0; i < N; ++i) member[i].stream(p + i * Vec::kLanes);
  }
};

#define FASTMHA_GROUP_UNARY(name)                                       \
  template <int N>                                                      \
  FASTMHA_INLINE VecGroup<N> name(VecGroup<N> a) {                      \
    return VecGroup<N>::each([&](int i) { return name(a.member[i]); }); \
  }
#define FASTMHA_GROUP_BINARY(name)                                                   \
  template <int N>                                                                   \
  FASTMHA_INLINE VecGroup<N> name(VecGroup<N> a, VecGroup<N> b) {                    \
    return VecGroup<N>::each([&](int i) { return name(a.member[i], b.member[i]); }); \
  }
#define FASTMHA_GROUP_TERNARY(name)                                                               \
  template <int N>                                                                                \
  FASTMHA_INLINE VecGroup<N> name(VecGroup<N> a, VecGroup<N> b, VecGroup<N> c) {                  \
    return VecGroup<N>::each([&](int i) { return name(a.member[i], b.member[i], c.member[i]); }); \
  }
FASTMHA_GROUP_BINARY(operator+)
FASTMHA_GROUP_BINARY(operator-)
FASTMHA_GROUP_BINARY(operator*)
FASTMHA_GROUP_BINARY(operator/)
FASTMHA_GROUP_BINARY(max)
FASTMHA_GROUP_BINARY(min)
FASTMHA_GROUP_BINARY(copysign)
FASTMHA_GROUP_BINARY(ldexp)
FASTMHA_GROUP_TERNARY(fma)
FASTMHA_GROUP_TERNARY(fnma)
FASTMHA_GROUP_UNARY(abs)
FASTMHA_GROUP_UNARY(round)
FASTMHA_GROUP_UNARY(reciprocal)
#undef FASTMHA_GROUP_UNARY
#undef FASTMHA_GROUP_BINARY
#undef FASTMHA_GROUP_TERNARY

template <int N>
FASTMHA_INLINE MaskGroup<N> less(VecGroup<N> a, VecGroup<N> b) {
  MaskGroup<N> mask;
  FASTMHA_UNROLL
  for (int i = 0; i < N; ++i) mask.member[i] = less(a.member[i], b.member[i]);
  return mask;
}
template <int N>
FASTMHA_INLINE VecGroup<N> select(MaskGroup<N> m, VecGroup<N> if_set, VecGroup<N> if_clear) {
  return VecGroup<N>::each([&](int i) { return select(m.member[i], if_set.member[i], if_clear.member[i]); });
}

}  // namespace
}  // namespace fastmha
