// Linear layers: every kernel table against double precision, and bit for bit against itself.
#include <algorithm>
#include <thread>

#include "fastmha/linear.h"
#include "fastmha/runtime.h"
#include "src/isa.h"
#include "src/linear_plan.h"
#include "src/packed_weight.h"
#include "tests/test.h"

using namespace fastmha;
using namespace fastmha::test;

namespace {

double reference_activation(Activation function, double x) {
  switch (function) {
    case Activation::kRelu:
      return x > 0 ? x : 0;
    case Activation::kGelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

constexpr Activation kAll[] = {Activation::kNone, Activation::kRelu, Activation::kGelu, Activation::kGeluTanh,
                               Activation::kSilu};

// A layer and its input; rows of x, residual and out stand `gap` floats further apart than they are long.
struct Problem {
  int64_t rows, depth, columns, gap;
  std::vector<float> x, weight, bias, residual;

  Problem(int64_t rows_, int64_t depth_, int64_t columns_, int64_t gap_, uint32_t seed)
      : rows(rows_), depth(depth_), columns(columns_), gap(gap_) {
    Random random(seed);
    x = random.normals(rows * (depth + gap));
    weight = random.normals(columns * depth);
    bias = random.normals(columns);
    residual = random.normals(rows * (columns + gap));
  }

  ConstView x_view() const { return {x.data(), {rows, depth}, {depth + gap, 1}}; }
  ConstView weight_view() const { return {weight.data(), {columns, depth}}; }
  ConstView bias_view() const { return {bias.data(), {columns}}; }
  ConstView residual_view() const { return {residual.data(), {rows, columns}, {columns + gap, 1}}; }
  MutableView out_view(std::vector<float>& out) const {
    return {out.data(), {rows, columns}, {columns + gap, 1}};
  }
  std::vector<float> make_out() const { return std::vector<float>(rows * (columns + gap), 12345.0f); }

  // The exact result and how far rounding may lead away from it: a chain of kDepthBlock additions, then one
  // of blocks, a few more for bias, activation (none of which has a slope above 1.13) and residual.
  void expect(int64_t row, int64_t column, Activation function, bool with_bias, bool with_residual,
              double* value, double* tolerance) const {
    double sum = with_bias ? bias[column] : 0, magnitude = std::fabs(sum);
    for (int64_t k = 0; k < depth; ++k) {
      const double term = static_cast<double>(x[row * (depth + gap) + k]) * weight[column * depth + k];
      sum += term;
      magnitude += std::fabs(term);
    }
    const double added = with_residual ? residual[row * (columns + gap) + column] : 0;
    *value = reference_activation(function, sum) + added;
    // Rounding errors of a chain grow like its square root times the size of the sums, not like its length: 8
    // standard deviations, far below the bound of the worst case.
    const double chain =
        std::sqrt(static_cast<double>(std::min(depth, kDepthBlock))) + std::sqrt(depth / 256.0) + 4;
    *tolerance = 8 * 6e-8 *
                 (chain * magnitude / std::sqrt(static_cast<double>(depth + 1)) + std::fabs(*value) +
                  std::fabs(added) + std::fabs(sum));
  }
};

void check_problem(const Isa& isa, const Problem& p, Activation function, bool with_bias,
                   bool with_residual) {
  const std::string what = concat(isa.gemm->name, " ", p.rows, "x", p.depth, "->", p.columns, " gap ", p.gap,
                                  " activation ", static_cast<int>(function));
  const PackedWeight packed(*isa.gemm, p.weight_view(), with_bias ? p.bias_view() : ConstView{});
  std::vector<float> out = p.make_out();
  run_linear(packed, function, p.x_view(), p.out_view(out), with_residual ? p.residual_view() : ConstView{});
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t column = 0; column < p.columns; ++column) {
      double expected, tolerance;
      p.expect(row, column, function, with_bias, with_residual, &expected, &tolerance);
      const float got = out[row * (p.columns + p.gap) + column];
      CHECK(std::fabs(got - expected) <= tolerance, what, " at (", row, ", ", column, "): got ", got,
            ", expected ", expected, " +- ", tolerance);
    }
    for (int64_t i = 0; i < p.gap; ++i) {
      CHECK(out[row * (p.columns + p.gap) + p.columns + i] == 12345.0f, what, ": wrote past row ", row);
    }
  }
}

}  // namespace

TEST(sizes_around_tile_edges) {
  for (const Isa* isa : runnable_isas()) {
    const int64_t mr = isa->gemm->mr, nr = isa->gemm->nr;
    uint32_t seed = 1;
    for (int64_t rows :
         {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}, int64_t{5}, mr - 1, mr, mr + 1, 2 * mr + 3}) {
      for (int64_t columns : {int64_t{1}, nr / 2, nr - 1, nr, nr + 1, 3 * nr + 5, 4 * nr, 9 * nr}) {
        for (int64_t depth : {1, 7, 255, 256, 257}) {
          const bool odd = (rows + columns + depth) % 2 != 0;
          check_problem(*isa, Problem(rows, depth, columns, odd ? 3 : 0, seed++), Activation::kNone, odd,
                        !odd);
        }
      }
    }
  }
}

TEST(every_epilogue) {
  for (const Isa* isa : runnable_isas()) {
    const Problem p(9, 40, 2 * isa->gemm->nr + 3, 2, 7);
    for (Activation function : kAll) {
      for (int flags = 0; flags < 4; ++flags) check_problem(*isa, p, function, flags & 1, flags & 2);
    }
  }
}

TEST(long_depth_and_aliased_rows) {
  for (const Isa* isa : runnable_isas()) {
    check_problem(*isa, Problem(70, 1024, 300, 0, 3), Activation::kNone, true, false);  // rows 4 KiB apart
    check_problem(*isa, Problem(20, 3000, 33, 5, 4), Activation::kGelu, true, true);
  }
}

TEST(empty_extents) {
  for (const Isa* isa : runnable_isas()) {
    // depth 0: the sum is empty, bias, activation and residual are not.
    check_problem(*isa, Problem(5, 0, 19, 1, 5), Activation::kGelu, true, true);
    check_problem(*isa, Problem(0, 8, 19, 0, 5), Activation::kNone, true, false);
    check_problem(*isa, Problem(5, 8, 0, 0, 5), Activation::kNone, true, false);
  }
}

// Rows of one big product, recomputed alone, in other companies, with other strides and numbers of threads.
TEST(a_row_is_the_same_bits_everywhere) {
  const int threads_before = get_num_threads();
  for (const Isa* isa : runnable_isas()) {
    for (const Activation function : {Activation::kNone, Activation::kGelu}) {
      const Problem p(97, 600, 5 * isa->gemm->nr + 7, 0, 11);
      const PackedWeight packed(*isa->gemm, p.weight_view(), p.bias_view());
      std::vector<float> all = p.make_out();
      set_num_threads(1);
      run_linear(packed, function, p.x_view(), p.out_view(all), p.residual_view());
      for (int threads : {1, 2, 3, 4}) {
        set_num_threads(threads);
        for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 14, 15, 29, 97}) {
          for (int64_t first : {int64_t{0}, (p.rows - rows) / 2, p.rows - rows}) {
            // Copied to rows 1024 floats apart, which takes another way to the same sums.
            const int64_t stride = rows % 2 == 0 ? 1024 : p.depth + 1;
            std::vector<float> x(rows * stride), out(rows * p.columns);
            for (int64_t row = 0; row < rows; ++row) {
              std::copy_n(p.x.data() + (first + row) * p.depth, p.depth, x.data() + row * stride);
            }
            const ConstView residual(p.residual.data() + first * p.columns, {rows, p.columns});
            run_linear(packed, function, {x.data(), {rows, p.depth}, {stride, 1}},
                       {out.data(), {rows, p.columns}}, residual);
            for (int64_t i = 0; i < rows * p.columns; ++i) {
              CHECK(same_bits(out[i], all[first * p.columns + i]), isa->gemm->name, ": ", rows, " rows from ",
                    first, " on ", threads, " threads: element ", i, " is ", out[i], ", not ",
                    all[first * p.columns + i]);
            }
          }
        }
      }
    }
  }
  set_num_threads(threads_before);
}

TEST(plans_cover_every_element_once) {
  for (const Isa* isa : runnable_isas()) {
    for (int threads : {1, 2, 64}) {
      set_num_threads(threads);
      for (int64_t rows : {1, 5, 128, 1000, 5120}) {
        for (int64_t columns : {1, 100, 768, 3072}) {
          const LinearPlan plan = plan_linear(*isa->gemm, rows, 4096, 4096, columns);
          std::vector<int> hits(rows * columns);
          int64_t shortest = rows * columns, longest = 0;
          for (int64_t i = 0; i < plan.tasks(); ++i) {
            const LinearTask task = plan.task(i);
            CHECK(task.column % isa->gemm->nr == 0, "a task must start at a panel");
            CHECK(task.rows * plan.copied_stride * 4 <= static_cast<int64_t>(plan.scratch_bytes()),
                  "scratch");
            shortest = std::min(shortest, task.rows * task.columns);
            longest = std::max(longest, task.rows * task.columns);
            for (int64_t row = 0; row < task.rows; ++row) {
              for (int64_t column = 0; column < task.columns; ++column) {
                ++hits[(task.row + row) * columns + task.column + column];
              }
            }
          }
          CHECK(std::all_of(hits.begin(), hits.end(), [](int n) { return n == 1; }), rows, "x", columns,
                " on ", threads, " threads");
          CHECK(shortest > 0, rows, "x", columns, " on ", threads, " threads: an empty task");
          if (threads == 64 && rows >= 1000 && columns >= 768) {
            CHECK(plan.tasks() >= 64, "tasks for 64 threads: ", plan.tasks());
          }
        }
      }
    }
  }
  set_num_threads(2);
}

// A block of any height: more rows than wait together for a unit of weights, and panels that are longer than
// a unit.
TEST(a_block_of_many_rows_and_deep_panels) {
  for (const Isa* isa : runnable_isas()) {
    for (const Activation function : {Activation::kRelu, Activation::kSilu}) {
      for (int64_t depth : {int64_t{300}, int64_t{5000}}) {
        const Problem p(20 * isa->gemm->mr + 3, depth, 2 * isa->gemm->nr + 5, 0, 53);
        const PackedWeight packed(*isa->gemm, p.weight_view(), p.bias_view());
        std::vector<float> out = p.make_out(), alone = p.make_out();
        const LinearTask all{0, p.rows, 0, p.columns};
        isa->gemm->block(gemm_block(packed, function, p.x_view(), p.out_view(out), p.residual_view(), all));
        for (int64_t row = 0; row < p.rows; ++row) {
          isa->gemm->block(gemm_block(packed, function, p.x_view(), p.out_view(alone), p.residual_view(),
                                      {row, 1, 0, p.columns}));
        }
        for (size_t i = 0; i < out.size(); ++i) {
          CHECK(same_bits(out[i], alone[i]), isa->gemm->name, " depth ", depth, " at ", i, ": ", out[i],
                ", alone ", alone[i]);
        }
        if (depth == 300) check_problem(*isa, p, function, true, true);
      }
    }
  }
}

// 24 panels for two threads: 16 column blocks would be of one panel and of two.
TEST(threads_get_equal_shares) {
  set_num_threads(2);
  for (const Isa* isa : runnable_isas()) {
    const LinearPlan plan = plan_linear(*isa->gemm, 10 * isa->gemm->mr, 768, 768, 24 * isa->gemm->nr);
    CHECK(plan.threads == 2 && plan.tasks() % 2 == 0, isa->gemm->name, ": ", plan.tasks(), " tasks");
    for (int64_t i = 0; i < plan.tasks(); ++i) {
      CHECK(plan.task(i).columns == plan.task(0).columns, isa->gemm->name, ": columns of task ", i);
    }
  }
}

// Whole panels leave from the registers, the rest and the other activations pass through a buffer: the same
// bits.
TEST(a_column_is_the_same_bits_in_any_panel) {
  for (const Isa* isa : runnable_isas()) {
    for (const Activation function : {Activation::kNone, Activation::kRelu}) {
      const int64_t nr = isa->gemm->nr;
      const Problem p(3 * isa->gemm->mr + 1, 520, 2 * nr, 0, 41);
      const PackedWeight whole(*isa->gemm, p.weight_view(), p.bias_view());
      std::vector<float> expected = p.make_out();
      run_linear(whole, function, p.x_view(), p.out_view(expected), p.residual_view());
      const int64_t columns = 2 * nr - 1;
      const PackedWeight part(*isa->gemm, {p.weight.data(), {columns, p.depth}}, {p.bias.data(), {columns}});
      std::vector<float> out(p.rows * columns);
      run_linear(part, function, p.x_view(), {out.data(), {p.rows, columns}},
                 {p.residual.data(), {p.rows, columns}, {p.columns, 1}});
      for (int64_t i = 0; i < p.rows * columns; ++i) {
        const float other = expected[i / columns * p.columns + i % columns];
        CHECK(same_bits(out[i], other), isa->gemm->name, ": element ", i, " is ", out[i], ", not ", other);
      }
    }
  }
}

TEST(nan_and_infinity_stay_in_their_rows_and_columns) {
  for (const Isa* isa : runnable_isas()) {
    Problem p(20, 300, 50, 0, 13);
    p.x[3 * 300 + 299] = kNan;
    p.x[5 * 300] = kInf;
    p.weight[7 * 300 + 10] = kNan;
    const PackedWeight packed(*isa->gemm, p.weight_view(), p.bias_view());
    for (Activation function : kAll) {
      std::vector<float> out = p.make_out();
      run_linear(packed, function, p.x_view(), p.out_view(out), {});
      for (int64_t row = 0; row < 20; ++row) {
        for (int64_t column = 0; column < 50; ++column) {
          const float got = out[row * 50 + column];
          if (row == 3 || column == 7) {
            CHECK(std::isnan(got), isa->gemm->name, " at (", row, ", ", column, "): ", got);
          } else if (row == 5) {
            const bool positive = p.weight[column * 300] > 0;
            CHECK(positive                        ? got == kInf
                  : function == Activation::kNone ? got == -kInf
                                                  : got == 0 || std::isnan(got),
                  isa->gemm->name, " at (", row, ", ", column, "): ", got);
          } else {
            CHECK(std::isfinite(got), isa->gemm->name, " at (", row, ", ", column, "): ", got);
          }
        }
      }
    }
  }
}

TEST(unpack_gives_the_weight_back) {
  for (const Isa* isa : runnable_isas()) {
    Problem p(1, 37, 2 * isa->gemm->nr + 5, 0, 17);
    p.weight[0] = -0.0f;
    p.weight[1] = 1e-42f;
    // Packed from a transposed view: strides of any kind.
    std::vector<float> transposed(p.weight.size());
    for (int64_t row = 0; row < p.columns; ++row) {
      for (int64_t k = 0; k < p.depth; ++k) transposed[k * p.columns + row] = p.weight[row * p.depth + k];
    }
    const PackedWeight packed(*isa->gemm, {transposed.data(), {p.columns, p.depth}, {1, p.columns}}, {});
    std::vector<float> back(p.weight.size());
    packed.unpack({back.data(), {p.columns, p.depth}});
    for (size_t i = 0; i < back.size(); ++i)
      CHECK(same_bits(back[i], p.weight[i]), isa->gemm->name, " at ", i);
    CHECK(packed.nbytes() == static_cast<size_t>(3 * isa->gemm->nr * (p.depth + 1) * 4), packed.nbytes());
  }
}

TEST(residual_may_be_out) {
  const Problem p(11, 64, 70, 3, 19);
  const PackedLinear layer(p.weight_view(), p.bias_view(), Activation::kRelu);
  std::vector<float> separate = p.make_out(), in_place = p.residual;
  LinearParams params;
  params.residual = p.residual_view();
  linear(layer, p.x_view(), p.out_view(separate), params);
  params.residual = p.out_view(in_place);
  linear(layer, p.x_view(), p.out_view(in_place), params);
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t column = 0; column < p.columns; ++column) {
      const int64_t i = row * (p.columns + p.gap) + column;
      CHECK(same_bits(separate[i], in_place[i]), "element ", i);
    }
  }
}

// Columns of one matrix: x in front, out behind it.
TEST(out_beside_x_in_one_buffer) {
  const Problem p(6, 8, 8, 0, 23);
  std::vector<float> buffer(6 * 16);
  for (int64_t row = 0; row < 6; ++row) std::copy_n(p.x.data() + row * 8, 8, buffer.data() + row * 16);
  const PackedLinear layer(p.weight_view());
  linear(layer, {buffer.data(), {6, 8}, {16, 1}}, {buffer.data() + 8, {6, 8}, {16, 1}});
  std::vector<float> alone = p.make_out();
  linear(layer, p.x_view(), p.out_view(alone));
  for (int64_t i = 0; i < 48; ++i) CHECK(same_bits(alone[i], buffer[i / 8 * 16 + 8 + i % 8]), "element ", i);
}

TEST(threads_share_a_layer) {
  const Problem p(33, 128, 96, 0, 29);
  const PackedLinear layer(p.weight_view(), p.bias_view());
  std::vector<float> expected = p.make_out();
  linear(layer, p.x_view(), p.out_view(expected));
  std::vector<std::vector<float>> results(4, p.make_out());
  std::vector<std::thread> threads;
  for (std::vector<float>& out : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) linear(layer, p.x_view(), p.out_view(out));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& out : results) CHECK(out == expected, "another thread's result differs");
}

TEST(layers_move) {
  const Problem p(3, 16, 24, 0, 31);
  PackedLinear first(p.weight_view(), p.bias_view(), Activation::kSilu);
  PackedLinear second(std::move(first));
  CHECK(second.in_features() == 16 && second.out_features() == 24 && second.has_bias() &&
            second.activation() == Activation::kSilu && second.weight_dtype() == DType::kFloat32,
        "properties");
  std::vector<float> out = p.make_out();
  CHECK_THROWS(linear(first, p.x_view(), p.out_view(out)), "moved from");
  linear(second, p.x_view(), p.out_view(out));
}

TEST(errors_say_what_was_expected) {
  const Problem p(4, 16, 24, 0, 37);
  const PackedLinear layer(p.weight_view(), p.bias_view());
  std::vector<float> out = p.make_out();
  const std::vector<float> untouched = out;
  const auto call = [&](const ConstView& x, const MutableView& o, const ConstView& residual = {}) {
    LinearParams params;
    params.residual = residual;
    linear(layer, x, o, params);
  };
  std::vector<float> many(4096);
  const MutableView good = p.out_view(out);
  CHECK_THROWS(call({many.data(), {4, 15}}, good), "linear: x must have 16 features");
  CHECK_THROWS(call({many.data(), {2, 2, 16}}, good), "linear: x must have 2 axes");
  CHECK_THROWS(call({many.data(), {4, 16}, {40, 2}}, good),
               "linear: x must be contiguous along its last axis");
  CHECK_THROWS(call({nullptr, {4, 16}}, good), "linear: x must point to");
  CHECK_THROWS(call(p.x_view(), {many.data(), {4, 23}}), "linear: out must have shape (4, 24)");
  CHECK_THROWS(call(p.x_view(), {many.data(), {4, 24}, {20, 1}}), "rows of out must not overlap");
  CHECK_THROWS(call({many.data(), {4, 16}}, {many.data() + 40, {4, 24}}), "out must not overlap x");
  CHECK_THROWS(call(p.x_view(), good, {many.data(), {3, 24}}), "residual must have the shape of out");
  CHECK_THROWS(call(p.x_view(), {many.data() + 1, {4, 24}}, {many.data(), {4, 24}}),
               "out must be residual itself");
  CHECK_THROWS(PackedLinear({many.data(), {4}}), "weight must have 2 axes");
  CHECK_THROWS(PackedLinear(p.weight_view(), {many.data(), {23}}),
               "bias must have shape (out_features,) = (24,)");
  CHECK_THROWS(layer.unpack({many.data(), {16, 24}}), "weight must have shape (24, 16)");
  CHECK(out == untouched, "a refused call wrote to out");
}

TEST_MAIN()
