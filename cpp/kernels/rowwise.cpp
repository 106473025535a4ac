// Normalisations, softmax and activation functions of rows, one row after the other.
//
// A row is read two or three times; from the second time on it comes from L1 (12,000 features fit). Sums run
// in four interleaved vectors that are added as a tree at the end, so their order depends on the number of
// features alone.
#include "rowwise.h"

#include "activation.h"
#include "math.h"
#include "vec.h"

namespace fastmha {
namespace {

constexpr int64_t kLanes = Vec::kLanes;

// Whole vectors have lanes == kLanes, a constant after inlining; only the last one of a row may have fewer.
FASTMHA_INLINE Vec load(const float* p, int64_t lanes) {
  return lanes == kLanes ? Vec::load(p) : Vec::load_n(p, static_cast<int>(lanes));
}
FASTMHA_INLINE void store(Vec v, float* p, int64_t lanes) {
  if (lanes == kLanes) {
    v.store(p);
  } else {
    v.store_n(p, static_cast<int>(lanes));
  }
}
// v with zeros past the row's end.
FASTMHA_INLINE Vec clip(Vec v, int64_t lanes) {
  return lanes == kLanes ? v : select(Mask::from_bits((1u << lanes) - 1u), v, Vec::zero());
}

// body(first, lanes) for the vectors of a row.
template <class Body>
FASTMHA_INLINE void for_each_vec(int64_t features, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= features; i += kLanes) body(i, kLanes);
  if (i < features) body(i, features - i);
}

// The sum of term(first, lanes) over a row. Four sums at a time hide the latency of the addition.
template <class Term>
FASTMHA_INLINE float sum_over(int64_t features, Term term) {
  Vec a = Vec::zero(), b = Vec::zero(), c = Vec::zero(), d = Vec::zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= features; i += 4 * kLanes) {
    a = a + term(i, kLanes);
    b = b + term(i + kLanes, kLanes);
    c = c + term(i + 2 * kLanes, kLanes);
    d = d + term(i + 3 * kLanes, kLanes);
  }
  for (; i + kLanes <= features; i += kLanes) a = a + term(i, kLanes);
  if (i < features) b = b + term(i, features - i);
  return reduce_add((a + b) + (c + d));
}

// The row to normalise: x, or out after x + residual was written there.
FASTMHA_INLINE const float* add_residual(const NormRows& n, int64_t row) {
  const MapRows& m = n.map;
  const float* x = m.x + row * m.x_stride;
  if (n.residual == nullptr) return x;
  const float* residual = n.residual + row * n.residual_stride;
  float* out = m.out + row * m.out_stride;
  for_each_vec(m.features, [&](int64_t i, int64_t lanes) {
    store(load(x + i, lanes) + load(residual + i, lanes), out + i, lanes);
  });
  return out;
}

void layer_norm(const NormRows& n) {
  const MapRows& m = n.map;
  const float count = static_cast<float>(m.features);
  for (int64_t row = 0; row < m.rows; ++row) {
    const float* z = add_residual(n, row);
    float* out = m.out + row * m.out_stride;
    const float sum = sum_over(m.features, [&](int64_t i, int64_t lanes) { return load(z + i, lanes); });
    const Vec mean = Vec::set1(sum / count);
    const float squares = sum_over(m.features, [&](int64_t i, int64_t lanes) {
      const Vec d = clip(load(z + i, lanes) - mean, lanes);
      return d * d;
    });
    const Vec scale = Vec::set1(1.0f / __builtin_sqrtf(squares / count + n.eps));
    for_each_vec(m.features, [&](int64_t i, int64_t lanes) {
      const Vec unit = (load(z + i, lanes) - mean) * scale;
      const Vec weight = load(n.weight + i, lanes);
      store(n.bias == nullptr ? unit * weight : fma(unit, weight, load(n.bias + i, lanes)), out + i, lanes);
    });
  }
}

void rms_norm(const NormRows& n) {
  const MapRows& m = n.map;
  const float count = static_cast<float>(m.features);
  for (int64_t row = 0; row < m.rows; ++row) {
    const float* z = add_residual(n, row);
    float* out = m.out + row * m.out_stride;
    const float squares = sum_over(m.features, [&](int64_t i, int64_t lanes) {
      const Vec v = load(z + i, lanes);
      return v * v;
    });
    const Vec scale = Vec::set1(1.0f / __builtin_sqrtf(squares / count + n.eps));
    for_each_vec(m.features, [&](int64_t i, int64_t lanes) {
      store(load(z + i, lanes) * scale * load(n.weight + i, lanes), out + i, lanes);
    });
  }
}

// The largest number of a row; -infinity for a row of NaN (x second: max returns it when it is NaN, first:
// drops it).
FASTMHA_INLINE float row_max(const float* x, int64_t features) {
  const Vec lowest = Vec::set1(-kInfinity);
  Vec a = lowest, b = lowest;
  int64_t i = 0;
  for (; i + 2 * kLanes <= features; i += 2 * kLanes) {
    a = max(Vec::load(x + i), a);
    b = max(Vec::load(x + i + kLanes), b);
  }
  if (i + kLanes <= features) {
    a = max(Vec::load(x + i), a);
    i += kLanes;
  }
  if (i < features) {
    const int lanes = static_cast<int>(features - i);
    b = max(select(Mask::from_bits((1u << lanes) - 1u), Vec::load_n(x + i, lanes), lowest), b);
  }
  return reduce_max(max(a, b));
}

void softmax(const MapRows& m) {
  for (int64_t row = 0; row < m.rows; ++row) {
    const float* x = m.x + row * m.x_stride;
    float* out = m.out + row * m.out_stride;
    const float largest = row_max(x, m.features);
    // -infinity - -infinity is NaN: a row of them alone keeps 0 as its reference and sums to exactly 0.
    const Vec reference = Vec::set1(largest == -kInfinity ? 0.0f : largest);
    const float sum = sum_over(m.features, [&](int64_t i, int64_t lanes) {
      const Vec e = clip(exp(load(x + i, lanes) - reference), lanes);
      store(e, out + i, lanes);
      return e;
    });
    const Vec scale = Vec::set1(sum == 0.0f ? 0.0f : 1.0f / sum);
    for_each_vec(m.features,
                 [&](int64_t i, int64_t lanes) { store(load(out + i, lanes) * scale, out + i, lanes); });
  }
}

template <class Function>
FASTMHA_INLINE void map(const MapRows& m, Function function) {
  for (int64_t row = 0; row < m.rows; ++row) {
    const float* x = m.x + row * m.x_stride;
    float* out = m.out + row * m.out_stride;
    for_each_vec(m.features,
                 [&](int64_t i, int64_t lanes) { store(function(load(x + i, lanes)), out + i, lanes); });
  }
}

void run_activation(Activation function, const MapRows& m) {
  switch (function) {
    case Activation::kNone:
      return map(m, [](Vec x) { return x; });
    case Activation::kRelu:
      return map(m, [](Vec x) { return activate<Activation::kRelu>(x); });
    case Activation::kGelu:
      return map(m, [](Vec x) { return activate<Activation::kGelu>(x); });
    case Activation::kGeluTanh:
      return map(m, [](Vec x) { return activate<Activation::kGeluTanh>(x); });
    case Activation::kSilu:
      return map(m, [](Vec x) { return activate<Activation::kSilu>(x); });
  }
}

void run_exp(const MapRows& m) {
  map(m, [](Vec x) { return exp(x); });
}

void run_tanh(const MapRows& m) {
  map(m, [](Vec x) { return tanh(x); });
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
};

}  // namespace fastmha
