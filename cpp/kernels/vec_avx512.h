// Vec over AVX-512F/BW/DQ/VL: 16 float lanes, masks in k registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fastmha {
namespace {

struct Mask {
  __mmask16 bits;
  static FASTMHA_INLINE Mask from_bits(uint32_t word) { return {static_cast<__mmask16>(word)}; }
};

struct Vec {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  // exp2_small clamps here: scalef(1, -200) is exactly 0, so a masked score (-inf) weighs exactly nothing.
  static constexpr float kExp2Floor = -200.0f;
  static constexpr bool kLdexpSaturates = true;  // ldexp gives 0 and infinity where float32 ends

  __m512 reg;

  static FASTMHA_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
  static FASTMHA_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static FASTMHA_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FASTMHA_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  // Lanes n.. are zero and their memory is not touched.
  static FASTMHA_INLINE Vec load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  // The first N floats at p, again and again.
  template <int N>
  static FASTMHA_INLINE Vec repeat(const float* p) {
    static_assert(N == 8, "the only one in use");
    return {_mm512_broadcast_f32x8(_mm256_loadu_ps(p))};
  }
  FASTMHA_INLINE void store(float* p) const { _mm512_storeu_ps(p, reg); }
  // Past the caches; p must be a multiple of the vector's size. See stream_fence.
  FASTMHA_INLINE void stream(float* p) const { _mm512_stream_ps(p, reg); }
  // The same for p a multiple of 16 bytes. Quarters of a line
  // are joined again on their way (NumPy's large arrays begin 16 bytes into a line): copying through a buffer
  // so that all stores are whole lines took 0.70 ms for a call that takes 0.63 so.
  FASTMHA_INLINE void stream_unaligned(float* p) const {
    if (reinterpret_cast<uintptr_t>(p) % 64 == 0) {
      _mm512_stream_ps(p, reg);
      return;
    }
    _mm_stream_ps(p, _mm512_castps512_ps128(reg));
    _mm_stream_ps(p + 4, _mm512_extractf32x4_ps(reg, 1));
    _mm_stream_ps(p + 8, _mm512_extractf32x4_ps(reg, 2));
    _mm_stream_ps(p + 12, _mm512_extractf32x4_ps(reg, 3));
  }
  FASTMHA_INLINE void store_n(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), reg); }
};

// What was streamed before is seen by other cores before what is stored after.
FASTMHA_INLINE void stream_fence() { _mm_sfence(); }

FASTMHA_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.reg, b.reg, c.reg)}; }
FASTMHA_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.reg, b.reg, c.reg)}; }
// 1 / a to 1 unit in the last place for finite, normal a: an estimate of 14 bits and a step of Newton's. A
// division takes 16 cycles and as long as it runs there is no other.
FASTMHA_INLINE Vec reciprocal(Vec a) {
  const Vec estimate = {_mm512_rcp14_ps(a.reg)};
  return fma(estimate, fnma(a, estimate, Vec::set1(1.0f)), estimate);
}
FASTMHA_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.reg, b.reg)}; }
FASTMHA_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.reg)}; }
FASTMHA_INLINE Vec copysign(Vec magnitude, Vec sign) {
  return {_mm512_or_ps(_mm512_abs_ps(magnitude.reg), _mm512_and_ps(sign.reg, _mm512_set1_ps(-0.0f)))};
}
FASTMHA_INLINE Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.reg, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FASTMHA_INLINE Vec ldexp(Vec a, Vec n) { return {_mm512_scalef_ps(a.reg, n.reg)}; }

FASTMHA_INLINE Mask less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.reg, b.reg, _CMP_LT_OQ)}; }
FASTMHA_INLINE Mask equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.reg, b.reg, _CMP_EQ_OQ)}; }
FASTMHA_INLINE uint32_t to_bits(Mask m) { return m.bits; }
FASTMHA_INLINE Vec select(Mask m, Vec if_set, Vec if_clear) {
  return {_mm512_mask_blend_ps(m.bits, if_clear.reg, if_set.reg)};
}

// ((l0+l8) + (l4+l12)) ...: the same tree on every call.
FASTMHA_INLINE float reduce_add(Vec a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.reg), _mm512_extractf32x8_ps(a.reg, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
FASTMHA_INLINE float reduce_max(Vec a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.reg), _mm512_extractf32x8_ps(a.reg, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// Bit i: whether byte i of 32 is not 0.
FASTMHA_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_test_epi8_mask(bytes, bytes);
}

// Lane i <- the sum of row i's lanes, by the same tree in each: 45 instructions for all 16 sums, where
// reduce_add takes 8 for one.
FASTMHA_INLINE Vec add_lanes(const Vec (&rows)[16]) {
  __m512 a[8], b[4], c[2];
  FASTMHA_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m512 even = rows[2 * i].reg, odd = rows[2 * i + 1].reg;
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(even, odd), _mm512_unpackhi_ps(even, odd));
  }
  FASTMHA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512d even = _mm512_castps_pd(a[2 * i]), odd = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(even, odd)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd)));
  }
  FASTMHA_UNROLL
  for (int i = 0; i < 2; ++i) {
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x44),
                         _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xee));
  }
  return {_mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd))};
}

// Row i, lane j <-> row j, lane i. Four rounds: pairs of floats, pairs of doubles, 128-bit quarters twice.
FASTMHA_INLINE void transpose(Vec (&rows)[16]) {
  __m512 a[16], b[16];
  FASTMHA_UNROLL
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].reg, rows[i + 1].reg);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].reg, rows[i + 1].reg);
  }
  FASTMHA_UNROLL
  for (int i = 0; i < 16; i += 4) {
    const __m512d lo0 = _mm512_castps_pd(a[i]), hi0 = _mm512_castps_pd(a[i + 1]);
    const __m512d lo1 = _mm512_castps_pd(a[i + 2]), hi1 = _mm512_castps_pd(a[i + 3]);
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo0, lo1));
    b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo0, lo1));
    b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(hi0, hi1));
    b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(hi0, hi1));
  }
  FASTMHA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    rows[i].reg = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[i + 8].reg = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    rows[i + 4].reg = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[i + 12].reg = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

}  // namespace
}  // namespace fastmha
