// Vec over AVX2 + FMA: 8 float lanes, masks as all-ones or all-zero lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fastmha {
namespace {

// 8 ones then 8 zeros: reading at 8 - n gives a mask of the first n lanes.
alignas(64) constexpr int32_t kFirstLanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct Mask {
  __m256 lanes;
  static FASTMHA_INLINE Mask from_bits(uint32_t word) {
    const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i hit = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(word)), lane_bit);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(hit, lane_bit))};
  }
};

struct Vec {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  // exp2_small clamps here: adding -127 to the exponent field of 1.0f leaves exactly 0, so a masked score
  // (-inf) weighs exactly nothing.
  static constexpr float kExp2Floor = -127.0f;
  static constexpr bool kLdexpSaturates = false;

  __m256 reg;

  static FASTMHA_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
  static FASTMHA_INLINE Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  static FASTMHA_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FASTMHA_INLINE __m256i first(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirstLanes + 8 - n));
  }
  // Lanes n.. are zero and their memory is not touched.
  static FASTMHA_INLINE Vec load_n(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
  // The first N floats at p, again and again.
  template <int N>
  static FASTMHA_INLINE Vec repeat(const float* p) {
    static_assert(N == kLanes, "the only one in use");
    return load(p);
  }
  FASTMHA_INLINE void store(float* p) const { _mm256_storeu_ps(p, reg); }
  // Past the caches; p must be a multiple of the vector's size. See stream_fence.
  FASTMHA_INLINE void stream(float* p) const { _mm256_stream_ps(p, reg); }
  // The same for p a multiple of 16 bytes.
  FASTMHA_INLINE void stream_unaligned(float* p) const {
    if (reinterpret_cast<uintptr_t>(p) % 32 == 0) {
      _mm256_stream_ps(p, reg);
      return;
    }
    _mm_stream_ps(p, _mm256_castps256_ps128(reg));
    _mm_stream_ps(p + 4, _mm256_extractf128_ps(reg, 1));
  }
  FASTMHA_INLINE void store_n(float* p, int n) const { _mm256_maskstore_ps(p, first(n), reg); }
};

// What was streamed before is seen by other cores before what is stored after.
FASTMHA_INLINE void stream_fence() { _mm_sfence(); }

FASTMHA_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.reg, b.reg, c.reg)}; }
FASTMHA_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.reg, b.reg, c.reg)}; }
// 1 / a. The estimate that AVX2 has (12 bits, not the same on Intel and AMD) would need two steps of
// Newton's.
FASTMHA_INLINE Vec reciprocal(Vec a) { return Vec::set1(1.0f) / a; }
FASTMHA_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.reg)}; }
FASTMHA_INLINE Vec copysign(Vec magnitude, Vec sign) {
  const __m256 sign_bit = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_andnot_ps(sign_bit, magnitude.reg), _mm256_and_ps(sign.reg, sign_bit))};
}
FASTMHA_INLINE Vec round(Vec a) {
  return {_mm256_round_ps(a.reg, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for a in [0.5, 2) and n in [-127, 127]: added to the exponent field. A NaN n adds 0 (cvt gives
// 0x80000000).
FASTMHA_INLINE Vec ldexp(Vec a, Vec n) {
  const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n.reg), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.reg), shift))};
}

FASTMHA_INLINE Mask less(Vec a, Vec b) { return {_mm256_cmp_ps(a.reg, b.reg, _CMP_LT_OQ)}; }
FASTMHA_INLINE Mask equal(Vec a, Vec b) { return {_mm256_cmp_ps(a.reg, b.reg, _CMP_EQ_OQ)}; }
FASTMHA_INLINE uint32_t to_bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m.lanes)); }
FASTMHA_INLINE Vec select(Mask m, Vec if_set, Vec if_clear) {
  return {_mm256_blendv_ps(if_clear.reg, if_set.reg, m.lanes)};
}

// ((l0+l4) + (l2+l6)) + ((l1+l5) + (l3+l7)): the same tree on every call.
FASTMHA_INLINE float reduce_add(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.reg), _mm256_extractf128_ps(a.reg, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
FASTMHA_INLINE float reduce_max(Vec a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.reg), _mm256_extractf128_ps(a.reg, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// Bit i: whether byte i of 32 is not 0.
FASTMHA_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
}

// Lane i <- the sum of row i's lanes, by the same tree in each.
FASTMHA_INLINE Vec add_lanes(const Vec (&rows)[8]) {
  __m256 a[4], b[2];
  FASTMHA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m256 even = rows[2 * i].reg, odd = rows[2 * i + 1].reg;
    a[i] = _mm256_add_ps(_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
  }
  FASTMHA_UNROLL
  for (int i = 0; i < 2; ++i) {
    b[i] = _mm256_add_ps(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                         _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
  }
  return {_mm256_add_ps(_mm256_permute2f128_ps(b[0], b[1], 0x20), _mm256_permute2f128_ps(b[0], b[1], 0x31))};
}

// Row i, lane j <-> row j, lane i. Three rounds: pairs of floats, pairs of doubles, 128-bit halves.
FASTMHA_INLINE void transpose(Vec (&rows)[8]) {
  __m256 a[8], b[8];
  FASTMHA_UNROLL
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].reg, rows[i + 1].reg);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].reg, rows[i + 1].reg);
  }
  FASTMHA_UNROLL
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  FASTMHA_UNROLL
  for (int i = 0; i < 4; ++i) {
    rows[i].reg = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4].reg = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

}  // namespace
}  // namespace fastmha
