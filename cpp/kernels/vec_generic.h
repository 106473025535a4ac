// Vec for any CPU: 4 float lanes in the compiler's own vector type (SSE2 on x86-64, NEON on AArch64, scalars
// elsewhere).
#pragma once

#include <cstdint>

namespace fastmha {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef float UnalignedFloat4 __attribute__((vector_size(16), aligned(4), may_alias));

struct Mask {
  Int4 lanes;
  static FASTMHA_INLINE Mask from_bits(uint32_t word) {
    const Int4 lane_bit = {1, 2, 4, 8};
    const int32_t bits = static_cast<int32_t>(word);
    return {(Int4{bits, bits, bits, bits} & lane_bit) != 0};
  }
};

struct Vec {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;
  // exp2_small clamps here: adding -127 to the exponent field of 1.0f leaves exactly 0, so a masked score
  // (-inf) weighs exactly nothing.
  static constexpr float kExp2Floor = -127.0f;
  static constexpr bool kLdexpSaturates = false;

  Float4 reg;

  static FASTMHA_INLINE Vec zero() { return {Float4{0, 0, 0, 0}}; }
  // x - 0 and not 0 + x: the first folds to a plain broadcast, the second is a real addition (-0 + 0 = +0).
  static FASTMHA_INLINE Vec set1(float x) { return {x - Float4{0, 0, 0, 0}}; }
  static FASTMHA_INLINE Vec load(const float* p) { return {*reinterpret_cast<const UnalignedFloat4*>(p)}; }
  // Lanes n.. are zero and their memory is not touched.
  static FASTMHA_INLINE Vec load_n(const float* p, int n) {
    Vec r = zero();
    for (int lane = 0; lane < 4; ++lane) {
      if (lane < n) r.reg[lane] = p[lane];
    }
    return r;
  }
  // The first N floats at p, again and again.
  template <int N>
  static FASTMHA_INLINE Vec repeat(const float* p) {
    static_assert(N == kLanes, "the only one in use");
    return load(p);
  }
  FASTMHA_INLINE void store(float* p) const { *reinterpret_cast<UnalignedFloat4*>(p) = reg; }
  FASTMHA_INLINE void stream(float* p) const { store(p); }  // no portable way past the caches
  FASTMHA_INLINE void stream_unaligned(float* p) const { store(p); }
  FASTMHA_INLINE void store_n(float* p, int n) const {
    for (int lane = 0; lane < 4; ++lane) {
      if (lane < n) p[lane] = reg[lane];
    }
  }
};

FASTMHA_INLINE void stream_fence() {}

FASTMHA_INLINE Vec operator+(Vec a, Vec b) { return {a.reg + b.reg}; }
FASTMHA_INLINE Vec operator-(Vec a, Vec b) { return {a.reg - b.reg}; }
FASTMHA_INLINE Vec operator*(Vec a, Vec b) { return {a.reg * b.reg}; }
FASTMHA_INLINE Vec operator/(Vec a, Vec b) { return {a.reg / b.reg}; }
// Two roundings: without hardware FMA a fused one would be a library call per lane.
FASTMHA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.reg * b.reg + c.reg}; }
FASTMHA_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {c.reg - a.reg * b.reg}; }
FASTMHA_INLINE Vec reciprocal(Vec a) { return Vec::set1(1.0f) / a; }
FASTMHA_INLINE Vec select(Mask m, Vec if_set, Vec if_clear) {
  return {reinterpret_cast<Float4>((m.lanes & reinterpret_cast<Int4>(if_set.reg)) |
                                   (~m.lanes & reinterpret_cast<Int4>(if_clear.reg)))};
}
FASTMHA_INLINE Mask less(Vec a, Vec b) { return {a.reg < b.reg}; }
FASTMHA_INLINE Mask equal(Vec a, Vec b) { return {a.reg == b.reg}; }
FASTMHA_INLINE uint32_t to_bits(Mask m) {
  return static_cast<uint32_t>((m.lanes[0] & 1) | (m.lanes[1] & 2) | (m.lanes[2] & 4) | (m.lanes[3] & 8));
}
// As the x86 instructions: b when either is NaN.
FASTMHA_INLINE Vec max(Vec a, Vec b) { return select(less(b, a), a, b); }
FASTMHA_INLINE Vec min(Vec a, Vec b) { return select(less(a, b), a, b); }
FASTMHA_INLINE Vec abs(Vec a) {
  return {reinterpret_cast<Float4>(reinterpret_cast<Int4>(a.reg) & INT32_MAX)};
}
FASTMHA_INLINE Vec copysign(Vec magnitude, Vec sign) {
  return {reinterpret_cast<Float4>((reinterpret_cast<Int4>(magnitude.reg) & INT32_MAX) |
                                   (reinterpret_cast<Int4>(sign.reg) & INT32_MIN))};
}
// Adding 1.5 * 2^23 leaves no bits for the fraction; |a| must stay below 2^22 (NaN and infinity pass
// through).
FASTMHA_INLINE Vec round(Vec a) {
  const Vec magic = Vec::set1(12582912.0f);
  return (a + magic) - magic;
}
// a * 2^n for a in [0.5, 2) and n in [-127, 127]: added to the exponent field. A NaN n leaves the NaN in a
// alone.
FASTMHA_INLINE Vec ldexp(Vec a, Vec n) {
  const Int4 is_number = n.reg == n.reg;
  const Float4 number = reinterpret_cast<Float4>(reinterpret_cast<Int4>(n.reg) & is_number);
  const Int4 shift = __builtin_convertvector(number, Int4) << 23;
  return {reinterpret_cast<Float4>(reinterpret_cast<Int4>(a.reg) + shift)};
}

FASTMHA_INLINE float reduce_add(Vec a) { return (a.reg[0] + a.reg[2]) + (a.reg[1] + a.reg[3]); }
FASTMHA_INLINE float reduce_max(Vec a) {
  const float low = a.reg[0] > a.reg[2] ? a.reg[0] : a.reg[2];
  const float high = a.reg[1] > a.reg[3] ? a.reg[1] : a.reg[3];
  return low > high ? low : high;
}

// Bit i: whether byte i of 32 is not 0.
FASTMHA_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(p[i] != 0) << i;
  return bits;
}

// Lane i <- the sum of row i's lanes, by the same tree in each.
FASTMHA_INLINE Vec add_lanes(const Vec (&rows)[4]) {
  const Float4 a = rows[0].reg, b = rows[1].reg, c = rows[2].reg, d = rows[3].reg;
  return {(Float4{a[0], b[0], c[0], d[0]} + Float4{a[2], b[2], c[2], d[2]}) +
          (Float4{a[1], b[1], c[1], d[1]} + Float4{a[3], b[3], c[3], d[3]})};
}

// Row i, lane j <-> row j, lane i.
FASTMHA_INLINE void transpose(Vec (&rows)[4]) {
  const Float4 a = rows[0].reg, b = rows[1].reg, c = rows[2].reg, d = rows[3].reg;
  rows[0].reg = Float4{a[0], b[0], c[0], d[0]};
  rows[1].reg = Float4{a[1], b[1], c[1], d[1]};
  rows[2].reg = Float4{a[2], b[2], c[2], d[2]};
  rows[3].reg = Float4{a[3], b[3], c[3], d[3]};
}

}  // namespace
}  // namespace fastmha
