// The k largest of each row: every kernel table against double precision and a full sort.
#include <algorithm>
#include <numeric>

#include "fastmha/runtime.h"
#include "fastmha/top_k.h"
#include "src/isa.h"
#include "tests/test.h"

using namespace fastmha;
using namespace fastmha::test;

namespace {

// The columns of a row in the order of the result.
std::vector<int64_t> sorted_columns(const float* row, int64_t columns) {
  std::vector<int64_t> ids(columns);
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) {
    if (std::isnan(row[a]) || std::isnan(row[b])) return !std::isnan(row[a]) && std::isnan(row[b]);
    return row[a] > row[b];
  });
  return ids;
}

double log_sum(const float* row, int64_t columns) {
  const double largest = *std::max_element(row, row + columns);
  double sum = 0;
  for (int64_t i = 0; i < columns; ++i) sum += std::exp(row[i] - largest);
  return largest + std::log(sum);
}

// Runs a table's kernel on a whole row: the columns of its k largest, in order.
struct KernelResult {
  std::vector<int64_t> ids;
  std::vector<ExpSum> sums;
};

KernelResult run_kernel(const TopKKernels& kernels, const float* row, int64_t columns, int64_t k) {
  std::vector<int64_t> keys(k);
  std::vector<float> maxima((columns + kTopKBlock - 1) / kTopKBlock);
  KernelResult result;
  result.sums.resize((columns + kTopKPiece - 1) / kTopKPiece);
  TopKRange range;
  range.row = row;
  range.columns = columns;
  range.k = k;
  range.keys = keys.data();
  range.maxima = maxima.data();
  range.sums = result.sums.data();
  keys.resize(kernels.run(range));
  std::sort(keys.begin(), keys.end(), std::greater<int64_t>());
  for (int64_t key : keys) result.ids.push_back(top_k_column(key));
  return result;
}

constexpr int64_t kColumns[] = {1,   2,   3,   4,   7,   15,   16,   17,   63,   64,   65,   255,
                                256, 257, 300, 511, 513, 1000, 5000, 8191, 8192, 8193, 20000};

}  // namespace

TEST(keys_order_as_results_do) {
  const float values[] = {-kInf, -1e38f, -1.0f, -1e-40f, 0.0f, 1e-40f, 1.0f, 1e38f, kInf};
  for (size_t i = 0; i < std::size(values); ++i) {
    CHECK(top_k_key(values[i], 5) > top_k_key(values[i], 6), "equal numbers by column: ", values[i]);
    CHECK(i == 0 || top_k_key(values[i - 1], 0) < top_k_key(values[i], INT32_MAX), "order at ", values[i]);
    CHECK(top_k_column(top_k_key(values[i], 1234567)) == 1234567, "column of ", values[i]);
  }
  CHECK(top_k_key(-0.0f, 3) == top_k_key(0.0f, 3), "-0 is 0");
}

TEST(kernels_find_the_largest) {
  for (const Isa* isa : runnable_isas()) {
    Random random(3);
    for (int64_t columns : kColumns) {
      std::vector<float> row = random.normals(columns);
      for (int kind = 0; kind < 4; ++kind) {
        if (kind == 1) std::sort(row.begin(), row.end());  // every number is the largest so far
        if (kind == 2) std::reverse(row.begin(), row.end());
        if (kind == 3)
          for (float& value : row) value = std::floor(value);  // many ties
        const std::vector<int64_t> expected = sorted_columns(row.data(), columns);
        for (int64_t k : {int64_t{1}, int64_t{2}, int64_t{8}, int64_t{50}, columns / 256, columns}) {
          if (k < 1 || k > columns) continue;
          const KernelResult found = run_kernel(*isa->top_k, row.data(), columns, k);
          CHECK(found.ids == std::vector<int64_t>(expected.begin(), expected.begin() + k), isa->top_k->name,
                ": ", k, " of ", columns, ", kind ", kind);
        }
      }
    }
  }
}

// Each piece's sum alone: 2^(x log2(e) - shift) adds up 16 to 64 chains of at most 8192 / 16 terms of at most
// 1.
TEST(kernels_sum_exponentials) {
  for (const Isa* isa : runnable_isas()) {
    Random random(5);
    for (int64_t columns : kColumns) {
      for (float scale : {0.0f, 1.0f, 30.0f, 1000.0f}) {
        std::vector<float> row = random.normals(columns);
        for (float& value : row) value = value * scale - 3.0f;
        const KernelResult found = run_kernel(*isa->top_k, row.data(), columns, 1);
        for (size_t piece = 0; piece < found.sums.size(); ++piece) {
          const int64_t first = static_cast<int64_t>(piece) * kTopKPiece;
          const int64_t count = std::min(kTopKPiece, columns - first);
          const ExpSum& sum = found.sums[piece];
          CHECK(sum.largest == *std::max_element(row.begin() + first, row.begin() + first + count),
                isa->top_k->name, ": largest of piece ", piece, " of ", columns);
          const double got = (sum.shift + std::log2(sum.sum)) * std::log(2.0);
          const double expected = log_sum(row.data() + first, count);
          CHECK(std::fabs(got - expected) <= 1e-6 + 1e-7 * std::fabs(sum.largest), isa->top_k->name,
                ": piece ", piece, " of ", columns, " scale ", scale, ": ", got, " expected ", expected);
        }
      }
    }
  }
}

TEST(rows_of_special_numbers) {
  const int64_t columns = 9000;
  Random random(7);
  std::vector<float> x = random.normals(9 * columns);
  const auto row = [&](int64_t i) { return x.data() + i * columns; };
  std::fill_n(row(0), columns, -kInf);
  std::fill_n(row(1), columns, kNan);
  row(2)[8999] = kNan;
  row(3)[100] = kInf;
  row(4)[100] = kInf;
  row(4)[200] = kNan;
  std::fill_n(row(5), columns, -kInf);
  row(5)[8500] = 2.5f;
  std::fill_n(row(6), columns, -3e38f);
  std::fill_n(row(7), columns, 3e38f);
  std::fill_n(row(8), columns, -kInf);
  row(8)[3] = kNan;
  const double logs[] = {-kInf, kNan, kNan, kInf, kNan, 2.5, -3e38f, 3e38f, kNan};
  for (int64_t k : {int64_t{1}, int64_t{40}, columns}) {
    std::vector<float> values(9 * k), lse(9);
    std::vector<int64_t> ids(9 * k);
    top_k({x.data(), {9, columns}}, {values.data(), {9, k}}, ids.data(), lse.data());
    for (int64_t i = 0; i < 9; ++i) {
      CHECK(same_bits(lse[i], static_cast<float>(logs[i])), "lse of row ", i, ": ", lse[i]);
      const std::vector<int64_t> expected = sorted_columns(row(i), columns);
      for (int64_t j = 0; j < k; ++j) {
        CHECK(ids[i * k + j] == expected[j], "row ", i, " place ", j, " of ", k, ": ", ids[i * k + j]);
        CHECK(same_bits(values[i * k + j], row(i)[expected[j]]), "value of row ", i, " at ", j);
      }
    }
  }
}

TEST(top_k_is_the_same_bits_everywhere) {
  const int before = get_num_threads();
  Random random(11);
  const int64_t rows = 40, columns = 30011, k = 7, stride = columns + 5;
  const std::vector<float> x = random.normals(rows * stride);
  const ConstView view(x.data(), {rows, columns}, {stride, 1});
  std::vector<float> values(rows * k), lse(rows);
  std::vector<int64_t> ids(rows * k);
  set_num_threads(1);
  top_k(view, {values.data(), {rows, k}}, ids.data(), lse.data());
  for (int threads : {1, 2, 4, 64}) {
    set_num_threads(threads);
    // 5 rows take long enough to be shared out in parts.
    for (int64_t count : {int64_t{1}, int64_t{5}, rows}) {
      std::vector<float> some_values(count * (k + 2)), some_lse(count);
      std::vector<int64_t> some_ids(count * k);
      const ConstView last(x.data() + (rows - count) * stride, {count, columns}, {stride, 1});
      top_k(last, {some_values.data(), {count, k}, {k + 2, 1}}, some_ids.data(), some_lse.data());
      for (int64_t row = 0; row < count; ++row) {
        const int64_t same = rows - count + row;
        CHECK(same_bits(some_lse[row], lse[same]), threads, " threads, ", count, " rows: lse of row ", same);
        for (int64_t i = 0; i < k; ++i) {
          CHECK(some_ids[row * k + i] == ids[same * k + i] &&
                    same_bits(some_values[row * (k + 2) + i], values[same * k + i]),
                threads, " threads, ", count, " rows: row ", same, " place ", i);
        }
      }
      std::vector<int64_t> alone(count * k);
      top_k(last, {some_values.data(), {count, k}}, alone.data());
      CHECK(alone == some_ids, "without lse");
    }
  }
  set_num_threads(before);
}

TEST(errors_of_top_k) {
  std::vector<float> data(100, 1.0f);
  std::vector<int64_t> ids(100);
  const ConstView x(data.data(), {4, 10});
  CHECK_THROWS(top_k(x, {data.data() + 50, {4, 11}}, ids.data()),
               "top_k: k must be from 1 to the number of columns, 10, got 11");
  CHECK_THROWS(top_k(x, {data.data() + 50, {4, 0}}, ids.data()), "top_k: k must be from 1");
  CHECK_THROWS(top_k(x, {data.data() + 50, {3, 2}}, ids.data()), "top_k: values must have as many rows");
  CHECK_THROWS(top_k(x, {data.data() + 39, {4, 2}}, ids.data()), "top_k: values must not overlap x");
  CHECK_THROWS(top_k({data.data(), {40}}, {data.data() + 50, {4, 2}}, ids.data()),
               "top_k: x must have 2 axes");
  CHECK_THROWS(top_k(x, {data.data() + 50, {4, 2}}, nullptr), "top_k: ids must point to");
  CHECK(data == std::vector<float>(100, 1.0f), "a refused call wrote to out");
  top_k({data.data(), {0, 10}}, {data.data() + 50, {0, 2}}, nullptr);
}

TEST_MAIN()
