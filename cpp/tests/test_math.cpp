// Elementary functions of every kernel table against double precision, over dense sweeps of their whole
// range.
#include <algorithm>

#include "src/isa.h"
#include "tests/test.h"

using namespace fastmha;
using namespace fastmha::test;

namespace {

// Every step-th float of [low, high].
std::vector<float> sweep(double low, double high, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(low + (high - low) * i / (count - 1));
  return values;
}

MapRows as_rows(const std::vector<float>& x, std::vector<float>& out) {
  MapRows rows;
  rows.x = x.data();
  rows.out = out.data();
  rows.rows = 1;
  rows.features = static_cast<int64_t>(x.size());
  return rows;
}

struct Worst {
  double error = 0;
  float at = 0;
  void see(double value, float x) {
    if (!(value <= error)) error = value, at = x;
  }
};

// The largest of |got - expected| / scale(x, expected).
template <class Run, class Reference, class Scale>
Worst worst_error(Run run, const std::vector<float>& x, Reference reference, Scale scale) {
  std::vector<float> out(x.size());
  run(as_rows(x, out));
  Worst worst;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = reference(static_cast<double>(x[i]));
    worst.see(std::fabs(out[i] - expected) / scale(x[i], expected), x[i]);
  }
  return worst;
}

double relative(double, double expected) { return std::max(std::fabs(expected), 1.2e-38); }
double to_argument(double x, double) { return std::max(std::fabs(x), 1e-37); }

double gelu(double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double gelu_tanh(double x) {
  return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double silu(double x) { return x / (1 + std::exp(-x)); }

std::vector<float> one(float x, void (*run)(const MapRows&)) {
  std::vector<float> in{x}, out{0};
  run(as_rows(in, out));
  return out;
}

}  // namespace

TEST(exp_is_within_its_bound) {
  for (const Isa* isa : runnable_isas()) {
    const Worst worst = worst_error(
        isa->rowwise->exp, sweep(-87.33654, 88.72283, 4000001), [](double x) { return std::exp(x); },
        relative);
    CHECK(worst.error <= 2e-7, isa->name, ": ", worst.error, " at ", worst.at);
    const float special[][2] = {{0, 1},        {-0.0f, 1},   {kInf, kInf}, {-kInf, 0},  {88.73f, kInf},
                                {1e30f, kInf}, {-104.0f, 0}, {-1e30f, 0},  {kNan, kNan}};
    for (const auto& pair : special) {
      const float got = one(pair[0], isa->rowwise->exp)[0];
      CHECK(same_bits(got, pair[1]), isa->name, ": exp(", pair[0], ") = ", got);
    }
  }
}

TEST(tanh_is_within_its_bound) {
  for (const Isa* isa : runnable_isas()) {
    for (double range : {1e-6, 0.7, 12.0}) {
      const Worst worst = worst_error(
          isa->rowwise->tanh, sweep(-range, range, 1000001), [](double x) { return std::tanh(x); }, relative);
      CHECK(worst.error <= 2e-7, isa->name, ": ", worst.error, " at ", worst.at);
    }
    const float special[][2] = {{0, 0},     {-0.0f, -0.0f}, {kInf, 1},   {-kInf, -1},
                                {1e30f, 1}, {-50, -1},      {kNan, kNan}};
    for (const auto& pair : special) {
      const float got = one(pair[0], isa->rowwise->tanh)[0];
      CHECK(same_bits(got, pair[1]), isa->name, ": tanh(", pair[0], ") = ", got);
    }
  }
}

TEST(activations_are_within_their_bounds) {
  struct Bound {
    Activation function;
    double (*reference)(double);
    double low;
    double relative, to_argument;  // the largest |error| / |f(x)| from low on, and |error| / |x| everywhere
  };
  const Bound bounds[] = {
      {Activation::kGelu, gelu, -12.9, 1e-5, 2.5e-7},
      {Activation::kGeluTanh, gelu_tanh, -9.9, 1.5e-5, 2.5e-7},
      {Activation::kSilu, silu, -87.0, 3e-7, 2.5e-7},
  };
  for (const Isa* isa : runnable_isas()) {
    for (const Bound& bound : bounds) {
      const auto run = [&](const MapRows& rows) { isa->rowwise->activation(bound.function, rows); };
      const int which = static_cast<int>(bound.function);
      const Worst near = worst_error(run, sweep(bound.low, 20, 2000001), bound.reference, relative);
      CHECK(near.error <= bound.relative, isa->name, " ", which, ": relative ", near.error, " at ", near.at);
      const Worst wide = worst_error(run, sweep(-100, 100, 2000001), bound.reference, to_argument);
      CHECK(wide.error <= bound.to_argument, isa->name, " ", which, ": ", wide.error, " of |x| at ", wide.at);
      const Worst tiny = worst_error(run, sweep(-1e-5, 1e-5, 100001), bound.reference, to_argument);
      CHECK(tiny.error <= bound.to_argument, isa->name, " ", which, ": ", tiny.error, " of |x| at ", tiny.at);
    }
  }
}

TEST(activations_of_special_numbers) {
  for (const Isa* isa : runnable_isas()) {
    for (Activation function : {Activation::kRelu, Activation::kGelu, Activation::kGeluTanh,
                                Activation::kSilu, Activation::kNone}) {
      std::vector<float> in{kInf, 0.0f, kNan, -kInf, -1e30f, 3e38f}, out(in.size());
      isa->rowwise->activation(function, as_rows(in, out));
      const int which = static_cast<int>(function);
      CHECK(out[0] == kInf, isa->name, " ", which, " of infinity: ", out[0]);
      CHECK(out[1] == 0, isa->name, " ", which, " of 0: ", out[1]);
      CHECK(std::isnan(out[2]), isa->name, " ", which, " of NaN: ", out[2]);
      CHECK(out[5] == 3e38f, isa->name, " ", which, " of 3e38: ", out[5]);
      if (function == Activation::kNone) continue;
      CHECK(out[3] == 0, isa->name, " ", which, " of -infinity: ", out[3]);
      CHECK(out[4] == 0, isa->name, " ", which, " of -1e30: ", out[4]);
    }
  }
}

TEST_MAIN()
