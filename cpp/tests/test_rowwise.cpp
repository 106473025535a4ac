// Row-wise operations: every kernel table against double precision, and the public functions' promises.
#include <algorithm>
#include <functional>

#include "fastmha/norm.h"
#include "fastmha/runtime.h"
#include "src/isa.h"
#include "tests/test.h"

using namespace fastmha;
using namespace fastmha::test;

namespace {

constexpr int64_t kFeatures[] = {1,  2,  3,  4,  5,  7,   8,   9,   15,  16,  17,
                                 31, 33, 63, 64, 65, 127, 128, 200, 768, 1000};

// Rows stand `gap` floats further apart than they are long.
struct Matrix {
  int64_t rows, features, gap;
  std::vector<float> data;
  Matrix(int64_t rows_, int64_t features_, int64_t gap_, Random& random)
      : rows(rows_), features(features_), gap(gap_), data(random.normals(rows_ * (features_ + gap_))) {}
  int64_t stride() const { return features + gap; }
  float* row(int64_t i) { return data.data() + i * stride(); }
  const float* row(int64_t i) const { return data.data() + i * stride(); }
  ConstView view() const { return {data.data(), {rows, features}, {stride(), 1}}; }
  MutableView view() { return {data.data(), {rows, features}, {stride(), 1}}; }
};

MapRows as_rows(const Matrix& x, Matrix& out) {
  MapRows rows;
  rows.x = x.data.data();
  rows.x_stride = x.stride();
  rows.out = out.data.data();
  rows.out_stride = out.stride();
  rows.rows = x.rows;
  rows.features = x.features;
  return rows;
}

NormRows as_norm(const Matrix& x, Matrix& out, const float* weight, const float* bias,
                 const Matrix* residual) {
  NormRows rows;
  rows.map = as_rows(x, out);
  rows.weight = weight;
  rows.bias = bias;
  rows.eps = 1e-5f;
  if (residual != nullptr) {
    rows.residual = residual->data.data();
    rows.residual_stride = residual->stride();
  }
  return rows;
}

std::vector<double> norm_reference(const Matrix& x, int64_t row, const float* weight, const float* bias,
                                   const Matrix* residual, bool centre) {
  std::vector<double> z(x.features);
  double mean = 0, squares = 0;
  for (int64_t i = 0; i < x.features; ++i) {
    z[i] = x.row(row)[i];
    if (residual != nullptr) z[i] = static_cast<float>(x.row(row)[i] + residual->row(row)[i]);
    mean += z[i] / x.features;
  }
  if (!centre) mean = 0;
  for (double value : z) squares += (value - mean) * (value - mean) / x.features;
  for (int64_t i = 0; i < x.features; ++i) {
    z[i] = (z[i] - mean) / std::sqrt(squares + 1e-5f) * weight[i] + (bias == nullptr ? 0 : bias[i]);
  }
  return z;
}

std::vector<double> softmax_reference(const Matrix& x, int64_t row) {
  const double largest = *std::max_element(x.row(row), x.row(row) + x.features);
  std::vector<double> result(x.features);
  double sum = 0;
  for (int64_t i = 0; i < x.features; ++i) sum += result[i] = std::exp(x.row(row)[i] - largest);
  for (double& value : result) value /= sum;
  return result;
}

bool gap_untouched(const Matrix& before, const Matrix& after) {
  for (int64_t row = 0; row < before.rows; ++row) {
    if (!std::equal(before.row(row) + before.features, before.row(row) + before.stride(),
                    after.row(row) + after.features)) {
      return false;
    }
  }
  return true;
}

}  // namespace

TEST(norms_match_double_precision) {
  for (const Isa* isa : runnable_isas()) {
    Random random(3);
    for (int64_t features : kFeatures) {
      const Matrix x(3, features, 2, random), residual(3, features, 1, random), empty(3, features, 2, random);
      const std::vector<float> weight = random.normals(features), bias = random.normals(features);
      for (int flags = 0; flags < 8; ++flags) {
        const bool centre = flags & 1;
        const float* b = flags & 2 ? bias.data() : nullptr;
        const Matrix* r = flags & 4 ? &residual : nullptr;
        if (!centre && b != nullptr) continue;
        Matrix out = empty;
        const NormRows rows = as_norm(x, out, weight.data(), b, r);
        centre ? isa->rowwise->layer_norm(rows) : isa->rowwise->rms_norm(rows);
        CHECK(gap_untouched(empty, out), isa->name, ": wrote past a row of ", features);
        for (int64_t row = 0; row < 3; ++row) {
          const std::vector<double> expected = norm_reference(x, row, weight.data(), b, r, centre);
          for (int64_t i = 0; i < features; ++i) {
            // Two features may cancel to a difference near eps: the mean's rounding counts there.
            const double tolerance =
                4e-6 * (std::fabs(weight[i]) + std::fabs(expected[i])) * (features < 4 ? 40 : 1);
            CHECK(std::fabs(out.row(row)[i] - expected[i]) <= tolerance, isa->name, " centre ", centre,
                  " features ", features, " at (", row, ", ", i, "): ", out.row(row)[i], " expected ",
                  expected[i]);
          }
        }
      }
    }
  }
}

// E[x^2] - E[x]^2 would have no correct digit here.
TEST(layer_norm_survives_a_large_mean) {
  for (const Isa* isa : runnable_isas()) {
    Random random(5);
    Matrix x(2, 512, 0, random), out(2, 512, 0, random);
    for (float& value : x.data) value = 10000.0f + value;
    const std::vector<float> weight(512, 1.0f);
    isa->rowwise->layer_norm(as_norm(x, out, weight.data(), nullptr, nullptr));
    for (int64_t row = 0; row < 2; ++row) {
      const std::vector<double> expected = norm_reference(x, row, weight.data(), nullptr, nullptr, true);
      for (int64_t i = 0; i < 512; ++i) {
        CHECK(std::fabs(out.row(row)[i] - expected[i]) <= 2e-3, isa->name, ": ", out.row(row)[i],
              " expected ", expected[i]);
      }
    }
  }
}

TEST(softmax_matches_double_precision) {
  for (const Isa* isa : runnable_isas()) {
    Random random(7);
    for (int64_t features : kFeatures) {
      Matrix x(4, features, 3, random);
      for (int64_t i = 0; i < features; ++i) {
        x.row(1)[i] *= 40;
        x.row(2)[i] += 1000;
        if (i % 3 == 1) x.row(3)[i] = -kInf;
      }
      const Matrix empty(4, features, 2, random);
      Matrix out = empty;
      isa->rowwise->softmax(as_rows(x, out));
      CHECK(gap_untouched(empty, out), isa->name, ": wrote past a row of ", features);
      for (int64_t row = 0; row < 4; ++row) {
        const std::vector<double> expected = softmax_reference(x, row);
        for (int64_t i = 0; i < features; ++i) {
          // x - max is rounded: half a unit in the last place of it, which exp turns into a relative error.
          const double exponent = expected[i] > 0 ? std::fabs(std::log(expected[i])) : 0;
          const double error = std::fabs(out.row(row)[i] - expected[i]);
          CHECK(error <= (5e-7 + 1.2e-7 * exponent) * expected[i] + 1e-37, isa->name, " features ", features,
                " at (", row, ", ", i, "): ", out.row(row)[i], " expected ", expected[i]);
        }
      }
    }
  }
}

TEST(softmax_of_special_rows) {
  for (const Isa* isa : runnable_isas()) {
    for (int64_t features : {1, 3, 4, 20, 64}) {
      Random random(11);
      Matrix x(4, features, 0, random), out(4, features, 0, random);
      std::fill_n(x.row(0), features, -kInf);
      x.row(1)[features / 2] = kNan;
      std::fill_n(x.row(2), features, -kInf);
      x.row(2)[features - 1] = kNan;
      x.row(3)[0] = kInf;
      isa->rowwise->softmax(as_rows(x, out));
      for (int64_t i = 0; i < features; ++i) {
        CHECK(out.row(0)[i] == 0, isa->name, ": a row of -infinity gives ", out.row(0)[i]);
        for (int64_t row : {1, 2, 3}) {
          CHECK(std::isnan(out.row(row)[i]), isa->name, " row ", row, ": ", out.row(row)[i]);
        }
      }
    }
  }
}

TEST(norms_pass_nan_on) {
  for (const Isa* isa : runnable_isas()) {
    Random random(13);
    Matrix x(2, 37, 0, random), out(2, 37, 0, random);
    const std::vector<float> weight(37, 1.0f);
    x.row(0)[36] = kNan;
    for (auto norm : {isa->rowwise->layer_norm, isa->rowwise->rms_norm}) {
      norm(as_norm(x, out, weight.data(), nullptr, nullptr));
      for (int64_t i = 0; i < 37; ++i) {
        CHECK(std::isnan(out.row(0)[i]) && std::isfinite(out.row(1)[i]), isa->name, " at ", i);
      }
    }
  }
}

// Every public operation, by name: x -> out.
struct Operation {
  const char* name;
  std::function<void(const ConstView&, const MutableView&)> run;
};

static std::vector<Operation> operations(const std::vector<float>& weight) {
  const int64_t features = static_cast<int64_t>(weight.size());
  const ConstView w(weight.data(), {features});
  std::vector<Operation> all{
      {"layer_norm", [w](const ConstView& x, const MutableView& out) { layer_norm(x, w, out); }},
      {"rms_norm", [w](const ConstView& x, const MutableView& out) { rms_norm(x, w, out); }},
      {"softmax", [](const ConstView& x, const MutableView& out) { softmax(x, out); }},
      {"exp", [](const ConstView& x, const MutableView& out) { fastmha::exp(x, out); }},
  };
  for (Activation function :
       {Activation::kNone, Activation::kRelu, Activation::kGelu, Activation::kGeluTanh, Activation::kSilu}) {
    all.push_back({"activation",
                   [function](const ConstView& x, const MutableView& out) { activation(function, x, out); }});
  }
  return all;
}

TEST(rows_are_the_same_bits_everywhere) {
  const int before = get_num_threads();
  Random random(17);
  const Matrix x(400, 333, 0, random);
  const std::vector<float> weight = random.normals(333);
  for (const Operation& operation : operations(weight)) {
    Matrix all(400, 333, 0, random);
    set_num_threads(1);
    operation.run(x.view(), all.view());
    for (int threads : {1, 2, 4}) {
      set_num_threads(threads);
      Matrix again(400, 333, 5, random), in_place = x;
      operation.run(x.view(), again.view());
      operation.run(in_place.view(), in_place.view());
      for (int64_t row = 0; row < 400; ++row) {
        std::vector<float> alone(333);
        if (row % 50 == 0) operation.run({x.row(row), {1, 333}}, {alone.data(), {1, 333}});
        for (int64_t i = 0; i < 333; ++i) {
          const float expected = all.row(row)[i];
          CHECK(same_bits(again.row(row)[i], expected), operation.name, " on ", threads, " threads at (", row,
                ", ", i, ")");
          CHECK(same_bits(in_place.row(row)[i], expected), operation.name, " in place at (", row, ", ", i,
                ")");
          CHECK(row % 50 != 0 || same_bits(alone[i], expected), operation.name, " alone at (", row, ", ", i,
                ")");
        }
      }
    }
  }
  set_num_threads(before);
}

// Prefetches, stores past the caches, rows taken in pairs, the copy of a row whose vectors cross cache lines:
// none of it may show. Results and inputs at every offset from a cache line, rows one by one and together.
TEST(where_rows_are_does_not_change_bits) {
  for (const Isa* isa : runnable_isas()) {
    Random random(19);
    for (int64_t features : {1, 5, 16, 100, 336, 768, 1040, 4100}) {
      const int64_t rows = 5, stride = (features + 15) / 16 * 16;
      const std::vector<float> weight = random.normals(features), bias = random.normals(features);
      const std::vector<float> numbers = random.normals(rows * stride), more = random.normals(rows * stride);
      // Output floats of one run, at an offset from a cache line that is given by `shift`.
      const auto run = [&](int operation, Rows where, int shift, bool one_by_one) {
        std::vector<float> memory(3 * (rows * stride + 32), 7.0f);
        float* line = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / 4;
        float* x = line + shift;
        float* residual = line + rows * stride + 32;
        float* out = line + 2 * (rows * stride + 32) - 16 + (shift * 3) % 16;
        std::copy(numbers.begin(), numbers.end(), x);
        std::copy(more.begin(), more.end(), residual);
        const int64_t step = one_by_one ? 1 : rows;
        for (int64_t row = 0; row < rows; row += step) {
          NormRows n;
          n.map.x = x + row * stride;
          n.map.out = out + row * stride;
          n.map.x_stride = n.map.out_stride = stride;
          n.map.rows = step;
          n.map.features = features;
          n.map.where = where;
          n.weight = weight.data();
          n.bias = bias.data();
          n.eps = 1e-5f;
          if (operation == 1) {
            n.residual = residual + row * stride;
            n.residual_stride = stride;
          }
          if (operation <= 1) isa->rowwise->layer_norm(n);
          if (operation == 2) isa->rowwise->rms_norm(n);
          if (operation == 3) isa->rowwise->softmax(n.map);
          if (operation == 4) isa->rowwise->activation(Activation::kGelu, n.map);
        }
        return std::vector<float>(out, out + rows * stride);
      };
      for (int operation = 0; operation < 5; ++operation) {
        const std::vector<float> expected = run(operation, Rows::kCache, 0, false);
        for (Rows where : {Rows::kCache, Rows::kL3, Rows::kMemory}) {
          for (int shift : {0, 1, 4, 7, 15}) {
            for (bool one_by_one : {false, true}) {
              const std::vector<float> got = run(operation, where, shift, one_by_one);
              for (size_t i = 0; i < got.size(); ++i) {
                CHECK(same_bits(got[i], expected[i]), isa->name, " operation ", operation, " features ",
                      features, " where ", static_cast<int>(where), " shift ", shift, " at ", i, ": ", got[i],
                      " expected ", expected[i]);
              }
            }
          }
        }
      }
    }
  }
}

TEST(residual_of_a_norm_may_be_out) {
  Random random(19);
  const Matrix x(7, 50, 0, random), residual(7, 50, 0, random);
  const std::vector<float> weight = random.normals(50);
  const ConstView w(weight.data(), {50});
  Matrix expected(7, 50, 0, random), in_place = residual;
  LayerNormParams params;
  params.residual = residual.view();
  layer_norm(x.view(), w, expected.view(), params);
  params.residual = in_place.view();
  layer_norm(x.view(), w, in_place.view(), params);
  CHECK(expected.data == in_place.data, "in place differs");
}

TEST(empty_matrices) {
  std::vector<float> data(8, 5.0f);
  const std::vector<float> weight(4, 1.0f);
  for (const Operation& operation : operations(weight)) {
    operation.run({data.data(), {0, 4}}, {data.data(), {0, 4}});
  }
  softmax({data.data(), {4, 0}}, {data.data(), {4, 0}});
  CHECK(data == std::vector<float>(8, 5.0f), "an empty matrix was written to");
}

TEST(errors_say_what_was_expected) {
  std::vector<float> data(1000, 1.0f);
  const float* p = data.data();
  float* out = data.data() + 500;
  const ConstView x(p, {4, 10});
  const MutableView good(out, {4, 10});
  const ConstView w(p + 100, {10});
  LayerNormParams params;
  CHECK_THROWS(layer_norm({p, {40}}, w, good), "layer_norm: x must have 2 axes");
  CHECK_THROWS(layer_norm(x, {p, {9}}, good), "layer_norm: weight must have shape (10,), got shape (9,)");
  params.bias = ConstView(p, {11});
  CHECK_THROWS(layer_norm(x, w, good, params), "layer_norm: bias must have shape (10,)");
  params = {};
  params.residual = ConstView(p, {5, 10});
  CHECK_THROWS(layer_norm(x, w, good, params), "layer_norm: residual must have the shape of x, (4, 10)");
  params = {};
  params.eps = -1;
  CHECK_THROWS(layer_norm(x, w, good, params), "layer_norm: eps must be 0 or more");
  CHECK_THROWS(rms_norm(x, w, {out, {4, 9}}), "rms_norm: out must have the shape of x");
  CHECK_THROWS(rms_norm(x, {out, {10}}, good), "rms_norm: out must not overlap weight");
  CHECK_THROWS(softmax(x, {out, {4, 10}, {5, 1}}), "softmax: rows of out must not overlap");
  CHECK_THROWS(softmax({p, {4, 10}, {20, 2}}, good), "softmax: x must be contiguous along its last axis");
  CHECK_THROWS(activation(Activation::kRelu, x, {data.data() + 3, {4, 10}}),
               "activation: out must be x itself");
  CHECK(data == std::vector<float>(1000, 1.0f), "a refused call wrote to out");
}

TEST_MAIN()
