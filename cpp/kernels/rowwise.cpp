// Normalisations, softmax and activation functions of rows.
//
// A row is read two or three times; from the second time on it comes from L1 (12,000 features fit). Sums run
// in several interleaved vectors that are added as a tree at the end, so their order depends on the number of
// features alone: not on where the row lies, on its neighbours, or on how its results are stored.
//
// Rows come from L3 or main memory and what is computed of them from L1. The hardware fetches along a row,
// but a row is short and it stops while sums are reduced; so lines are asked for one phase ahead: the next
// rows while these are written, and the lines of out while x is read a second time (plain stores fetch them
// too). Two threads, AVX-512: layer_norm of 4096 x 768 from L3 0.33 -> 0.27 ms, softmax 0.36 -> 0.28;
// of 4096 x 3072 from memory 2.13 -> 1.70 and 2.79 -> 1.75 ms.
#include "rowwise.h"

#include "activation.h"
#include "math.h"
#include "vec.h"
#include "vec_group.h"

namespace fastmha {
namespace {

constexpr int64_t kLanes = Vec::kLanes;
constexpr int64_t kLineFloats = 16;

// As many as there are registers for. silu from L1 takes 9.2 cycles per AVX-512 vector alone, 8.0 in fours,
// 6.8 in sixes, 7.3 in eights; AVX2's is best in fours.
constexpr int kGroup = Vec::kRegisters == 32 ? 6 : 4;
using Group = VecGroup<kGroup>;

// Intermediate results of rows up to this wait on the stack: 16 KB a row, and L1 holds two with what is read
// besides.
constexpr int64_t kLongestScratchRow = 4096;

// One step along a row: whole vectors (V is a Vec or a group), or `lanes` floats, fewer than a vector.
template <class V, Rows kWhere>
struct Whole {
  static FASTMHA_INLINE V load(const float* p) { return V::load(p); }
  static FASTMHA_INLINE void store(V v, float* p) {
    if constexpr (kWhere == Rows::kMemory) {
      v.stream(p);
    } else {
      v.store(p);
    }
  }
  // v with `other` in the lanes that are not there.
  static FASTMHA_INLINE V clip(V v, float) { return v; }
  static FASTMHA_INLINE void will_read(const float* p) {
    FASTMHA_UNROLL
    for (int64_t i = 0; i < V::kLanes; i += kLineFloats) __builtin_prefetch(p + i);
  }
  static FASTMHA_INLINE void will_write(const float* p) {
    FASTMHA_UNROLL
    for (int64_t i = 0; i < V::kLanes; i += kLineFloats) __builtin_prefetch(p + i, 1);
  }
};
struct Part {
  int64_t lanes;
  FASTMHA_INLINE Vec load(const float* p) const { return Vec::load_n(p, static_cast<int>(lanes)); }
  FASTMHA_INLINE void store(Vec v, float* p) const { v.store_n(p, static_cast<int>(lanes)); }
  FASTMHA_INLINE Vec clip(Vec v, float other) const {
    return select(Mask::from_bits((1u << lanes) - 1u), v, Vec::set1(other));
  }
  FASTMHA_INLINE void will_read(const float* p) const { __builtin_prefetch(p); }
  FASTMHA_INLINE void will_write(const float* p) const { __builtin_prefetch(p, 1); }
};

// body(step, first) along a row, for steps of which each concerns its own elements alone. Streaming stores
// begin where out + first is a multiple of the vector's size.
template <Rows kWhere, bool kGroups, class Body>
FASTMHA_INLINE void for_each(const float* out, int64_t features, Body body) {
  int64_t i = 0;
  if constexpr (kWhere == Rows::kMemory) {
    i = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(out) / sizeof(float) % kLanes);
    if (i > features) i = features;
    if (i > 0) body(Part{i}, 0);
  }
  if constexpr (kGroups) {
    for (; i + Group::kLanes <= features; i += Group::kLanes) body(Whole<Group, kWhere>{}, i);
  }
  for (; i + kLanes <= features; i += kLanes) body(Whole<Vec, kWhere>{}, i);
  if (i < features) body(Part{features - i}, i);
}

// term(sum so far, step, first) along a row, in one sum for each member of a group: they hide the latency.
template <class Term>
FASTMHA_INLINE Group accumulate(int64_t features, Group sums, Term term) {
  int64_t i = 0;
  for (; i + Group::kLanes <= features; i += Group::kLanes)
    sums = term(sums, Whole<Group, Rows::kCache>{}, i);
  for (; i + kLanes <= features; i += kLanes)
    sums.member[0] = term(sums.member[0], Whole<Vec, Rows::kCache>{}, i);
  if (i < features) sums.member[1] = term(sums.member[1], Part{features - i}, i);
  return sums;
}
template <class Term>
FASTMHA_INLINE float sum_over(int64_t features, Term term) {
  Group sums = accumulate(features, Group::zero(), term);
  FASTMHA_UNROLL
  for (int width = 1; width < kGroup; width *= 2) {
    FASTMHA_UNROLL
    for (int i = 0; i + width < kGroup; i += 2 * width)
      sums.member[i] = sums.member[i] + sums.member[i + width];
  }
  return reduce_add(sums.member[0]);
}

// ---- normalisations ---------------------------------------------------------------------------------------

enum class Norm { kLayer, kLayerNoBias, kRms };

// Row z to normalise, its mean and 1 / sqrt(variance + eps).
struct NormRow {
  const float* z;
  float mean;
  float scale;
};

FASTMHA_INLINE bool on_a_vector(const float* p) {
  return reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(float)) == 0;
}

// The sum of term(sum, z) over a row of z = x + residual. What is read again is written to `kept` (or null),
// also an x whose vectors cross cache lines, as those of NumPy's arrays do: rms_norm from L1 took 6.3 cycles
// per AVX-512 vector instead of 4.4.
template <class Term>
FASTMHA_INLINE float sum_row(const NormRows& n, int64_t index, float* kept, NormRow& row, Term term) {
  const float* x = n.map.x + index * n.map.x_stride;
  row.z = kept;
  if (n.residual != nullptr) {
    const float* residual = n.residual + index * n.residual_stride;
    return sum_over(n.map.features, [&](auto sum, auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
      const auto z = step.load(x + i) + step.load(residual + i);
      step.store(z, kept + i);
      return term(sum, z);
    });
  }
  if (kept == nullptr || on_a_vector(x)) {
    row.z = x;
    return sum_over(n.map.features, [&](auto sum, auto step, int64_t i)
                                        FASTMHA_INLINE_LAMBDA { return term(sum, step.load(x + i)); });
  }
  return sum_over(n.map.features, [&](auto sum, auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
    const auto z = step.load(x + i);
    step.store(z, kept + i);
    return term(sum, z);
  });
}

template <Norm kNorm, Rows kWhere, int kRows>
FASTMHA_INLINE void write_rows(const NormRows& n, int64_t first, const NormRow (&row)[kRows]) {
  const MapRows& m = n.map;
  float* out = m.out + first * m.out_stride;
  for_each<kWhere, false>(out, m.features, [&](auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
    const auto weight = step.load(n.weight + i);
    auto bias = weight;
    if constexpr (kNorm == Norm::kLayer) bias = step.load(n.bias + i);
    FASTMHA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      auto unit = step.load(row[r].z + i);
      if constexpr (kNorm != Norm::kRms) unit = unit - decltype(unit)::set1(row[r].mean);
      unit = unit * decltype(unit)::set1(row[r].scale);
      step.store(kNorm == Norm::kLayer ? fma(unit, weight, bias) : unit * weight, out + r * m.out_stride + i);
      if constexpr (kWhere == Rows::kCache) continue;
      step.will_read(m.x + (first + kRows + r) * m.x_stride + i);
      if (n.residual != nullptr) step.will_read(n.residual + (first + kRows + r) * n.residual_stride + i);
    }
  });
}

// kRows rows, phase by phase: while one row's sum is reduced to a number (50 cycles in which its next phase
// cannot start) the next row's is added up. Weight and bias are loaded once for all of them.
template <Norm kNorm, Rows kWhere, int kRows>
FASTMHA_INLINE void norm_rows(const NormRows& n, int64_t first, float* scratch) {
  const int64_t features = n.map.features;
  const float count = static_cast<float>(features);
  NormRow row[kRows];
  float squares[kRows];
  for (int r = 0; r < kRows; ++r) {
    float* kept = nullptr;
    if (scratch != nullptr) {
      kept = scratch + r * kLongestScratchRow;
    } else if (n.residual != nullptr) {
      kept = n.map.out + (first + r) * n.map.out_stride;
    }
    if constexpr (kNorm == Norm::kRms) {
      squares[r] = sum_row(n, first + r, kept, row[r],
                           [](auto sum, auto z) FASTMHA_INLINE_LAMBDA { return fma(z, z, sum); });
    } else {
      row[r].mean = sum_row(n, first + r, kept, row[r],
                            [](auto sum, auto z) FASTMHA_INLINE_LAMBDA { return sum + z; }) /
                    count;
    }
  }
  if constexpr (kNorm != Norm::kRms) {
    for (int r = 0; r < kRows; ++r) {
      const float* out = n.map.out + (first + r) * n.map.out_stride;
      squares[r] = sum_over(features, [&](auto sum, auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
        if constexpr (kWhere == Rows::kL3) step.will_write(out + i);
        auto d = step.load(row[r].z + i);
        d = step.clip(d - decltype(d)::set1(row[r].mean), 0.0f);
        return fma(d, d, sum);
      });
    }
  }
  for (int r = 0; r < kRows; ++r) row[r].scale = 1.0f / __builtin_sqrtf(squares[r] / count + n.eps);
  write_rows<kNorm, kWhere>(n, first, row);
}

// Two rows at a time; four were as fast from L3 and slower with a residual (0.50 against 0.46 ms for 4096 x
// 768): with the next rows on their way they no longer fit L1. On Zen 5 four save 6% without a residual and
// cost 8% with one. What is left there is not waiting: of 158 us for 4096 x 768 on two threads the arithmetic
// from L1 takes 118, a copy from L3 101; rows asked for two or four steps ahead take 161 and 185, out asked
// for while the rows before are written 180. Of rows 16 bytes off a line (204 us): next rows asked for in the variance
// pass, one or both, 0 and 3% slower; x not copied to where its vectors lie on lines 8% slower.
template <Norm kNorm, Rows kWhere>
void norm(const NormRows& n) {
  constexpr int kRows = 2;
  alignas(64) float kept[kRows * kLongestScratchRow];
  float* scratch = n.map.features <= kLongestScratchRow ? kept : nullptr;
  int64_t row = 0;
  for (; row + kRows <= n.map.rows; row += kRows) norm_rows<kNorm, kWhere, kRows>(n, row, scratch);
  for (; row < n.map.rows; ++row) norm_rows<kNorm, kWhere, 1>(n, row, scratch);
  if constexpr (kWhere == Rows::kMemory) stream_fence();
}

// Rows that are streamed together must begin alike. The sums of longer rows wait in out, for which streaming
// it would be wasted.
template <Norm kNorm>
void norm_where(const NormRows& n) {
  const bool streams =
      n.map.out_stride % kLanes == 0 && (n.residual == nullptr || n.map.features <= kLongestScratchRow);
  if (n.map.where == Rows::kCache) return norm<kNorm, Rows::kCache>(n);
  return n.map.where == Rows::kMemory && streams ? norm<kNorm, Rows::kMemory>(n) : norm<kNorm, Rows::kL3>(n);
}

void layer_norm(const NormRows& n) {
  n.bias == nullptr ? norm_where<Norm::kLayerNoBias>(n) : norm_where<Norm::kLayer>(n);
}

void rms_norm(const NormRows& n) { norm_where<Norm::kRms>(n); }

// ---- softmax ----------------------------------------------------------------------------------------------

// The largest number of a row; -infinity for a row of NaN (x second: max returns it when it is NaN, first:
// drops it). Asks for the lines of out, if they will be stored to.
template <Rows kWhere>
FASTMHA_INLINE float row_max(const float* x, const float* out, int64_t features) {
  Group top = accumulate(features, Group::set1(-kInfinity),
                         [&](auto most, auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
                           if constexpr (kWhere == Rows::kL3) step.will_write(out + i);
                           return max(step.clip(step.load(x + i), -kInfinity), most);
                         });
  FASTMHA_UNROLL
  for (int i = 1; i < kGroup; ++i) top.member[0] = max(top.member[0], top.member[i]);
  return reduce_max(top.member[0]);
}

template <Rows kWhere>
void softmax_rows(const MapRows& m) {
  alignas(64) float scratch[kWhere == Rows::kMemory ? kLongestScratchRow : 1];
  for (int64_t row = 0; row < m.rows; ++row) {
    const float* x = m.x + row * m.x_stride;
    float* out = m.out + row * m.out_stride;
    float* weights = kWhere == Rows::kMemory ? scratch : out;
    const float largest = row_max<kWhere>(x, out, m.features);
    // -infinity - -infinity is NaN: a row of them alone keeps 0 as its reference and sums to exactly 0.
    const float reference = largest == -kInfinity ? 0.0f : largest;
    const float sum = sum_over(m.features, [&](auto total, auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
      auto e = step.load(x + i);
      e = step.clip(exp_nonpositive(e - decltype(e)::set1(reference)), 0.0f);
      step.store(e, weights + i);
      if constexpr (kWhere != Rows::kCache) step.will_read(x + m.x_stride + i);
      return total + e;
    });
    const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
    for_each<kWhere, true>(out, m.features, [&](auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
      const auto e = step.load(weights + i);
      step.store(e * decltype(step.load(out))::set1(scale), out + i);
    });
  }
  if constexpr (kWhere == Rows::kMemory) stream_fence();
}

void softmax(const MapRows& m) {
  if (m.where == Rows::kCache) return softmax_rows<Rows::kCache>(m);
  const bool streams = m.features <= kLongestScratchRow;
  return m.where == Rows::kMemory && streams ? softmax_rows<Rows::kMemory>(m) : softmax_rows<Rows::kL3>(m);
}

// ---- element by element -----------------------------------------------------------------------------------

template <Rows kWhere, class Function>
FASTMHA_INLINE void map_rows(const MapRows& m, Function function) {
  for (int64_t row = 0; row < m.rows; ++row) {
    const float* x = m.x + row * m.x_stride;
    float* out = m.out + row * m.out_stride;
    for_each<kWhere, true>(out, m.features, [&](auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
      step.store(function(step.load(x + i)), out + i);
    });
  }
  if constexpr (kWhere == Rows::kMemory) stream_fence();
}

template <class Function>
FASTMHA_INLINE void map(const MapRows& m, Function function) {
  m.where == Rows::kMemory ? map_rows<Rows::kMemory>(m, function) : map_rows<Rows::kCache>(m, function);
}

void run_activation(Activation function, const MapRows& m) {
  switch (function) {
    case Activation::kNone:
      return map(m, [](auto x) FASTMHA_INLINE_LAMBDA { return x; });
    case Activation::kRelu:
      return map(m, [](auto x) FASTMHA_INLINE_LAMBDA { return activate<Activation::kRelu>(x); });
    case Activation::kGelu:
      return map(m, [](auto x) FASTMHA_INLINE_LAMBDA { return activate<Activation::kGelu>(x); });
    case Activation::kGeluTanh:
      return map(m, [](auto x) FASTMHA_INLINE_LAMBDA { return activate<Activation::kGeluTanh>(x); });
    case Activation::kSilu:
      return map(m, [](auto x) FASTMHA_INLINE_LAMBDA { return activate<Activation::kSilu>(x); });
  }
}

void run_exp(const MapRows& m) {
  map(m, [](auto x) FASTMHA_INLINE_LAMBDA { return exp(x); });
}

void run_tanh(const MapRows& m) {
  map(m, [](auto x) FASTMHA_INLINE_LAMBDA { return tanh(x); });
}

void multiply(const MapRows& m) {
  for (int64_t row = 0; row < m.rows; ++row) {
    const float* x = m.x + row * m.x_stride;
    float* out = m.out + row * m.out_stride;
    for_each<Rows::kCache, true>(out, m.features, [&](auto step, int64_t i) FASTMHA_INLINE_LAMBDA {
      step.store(step.load(out + i) * step.load(x + i), out + i);
    });
  }
}

}  // namespace

extern "C" const RowwiseKernels FASTMHA_KERNEL_SYMBOL(rowwise) = {
    "rowwise_" FASTMHA_STRINGIZE(FASTMHA_KERNEL_ISA),
    Vec::kLanes / 4.0,
    layer_norm,
    rms_norm,
    softmax,
    run_activation,
    run_exp,
    run_tanh,
    multiply,
};

}  // namespace fastmha
