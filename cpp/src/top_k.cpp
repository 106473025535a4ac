// The k largest of each row: checks, sharing out rows and parts of rows, and what joins the parts. The passes
// over numbers are in kernels/top_k.cpp.
#include "fastmha/top_k.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "isa.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"
#include "workspace.h"

namespace fastmha {
namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr double kLn2 = 0.69314718055994530942;

// A call after its checks. Each row is cut into `parts` runs of whole pieces, of which a task takes one.
struct TopK {
  ConstView x;
  MutableView values;
  int64_t* ids;
  float* lse;
  int64_t parts = 1;

  int64_t rows() const { return x.shape[0]; }
  int64_t columns() const { return x.shape[1]; }
  int64_t k() const { return values.shape[1]; }
  int64_t pieces() const { return ceil_div(columns(), kTopKPiece); }
  int64_t first_piece(int64_t part) const { return part * pieces() / parts; }
  const float* row(int64_t index) const { return x.data + index * x.strides[0]; }
};

// Scratch memory: per task k keys and their number, and per row a sum for each piece. With one part the keys
// of a row wait where its ids will be.
struct Scratch {
  ExpSum* sums;    // (rows, pieces)
  int64_t* keys;   // (rows, parts, k)
  int64_t* count;  // (rows, parts)
};

size_t scratch_bytes(const TopK& call) {
  const size_t parts = static_cast<size_t>(call.rows() * call.parts);
  return static_cast<size_t>(call.rows() * call.pieces()) * sizeof(ExpSum) + parts * sizeof(int64_t) +
         (call.parts == 1 ? 0 : parts * static_cast<size_t>(call.k()) * sizeof(int64_t));
}

Scratch scratch_of(const TopK& call, const Workspace& workspace) {
  Scratch scratch;
  scratch.sums = workspace.shared<ExpSum>();
  scratch.count = reinterpret_cast<int64_t*>(scratch.sums + call.rows() * call.pieces());
  scratch.keys = call.parts == 1 ? call.ids : scratch.count + call.rows() * call.parts;
  return scratch;
}

bool has_nan(const float* row, int64_t columns) {
  return std::any_of(row, row + columns, [](float value) { return std::isnan(value); });
}

// log(sum(exp(row))) from the sums of its pieces, in their order.
float log_sum(const ExpSum* sums, int64_t pieces, const float* row, int64_t columns) {
  const ExpSum* const top = std::max_element(
      sums, sums + pieces, [](const ExpSum& a, const ExpSum& b) { return a.largest < b.largest; });
  // Up here adding log(columns) changes nothing, and products with log2(e) overflow.
  if (std::fabs(top->largest) > 1e30f) {
    return has_nan(row, columns) ? std::numeric_limits<float>::quiet_NaN() : top->largest;
  }
  double sum = 0;
  for (int64_t i = 0; i < pieces; ++i) {
    sum += sums[i].sum * std::exp2(static_cast<double>(sums[i].shift) - static_cast<double>(top->shift));
  }
  return static_cast<float>((static_cast<double>(top->shift) + std::log2(sum)) * kLn2);
}

// A row's result from its parts.
void finish(const TopK& call, const Scratch& scratch, int64_t index) {
  const float* row = call.row(index);
  const int64_t k = call.k();
  int64_t* const ids = call.ids + index * k;
  int64_t* const keys = scratch.keys + index * call.parts * k;
  const int64_t* const counts = scratch.count + index * call.parts;
  int64_t count = counts[0];
  for (int64_t part = 1; part < call.parts; ++part) {
    std::copy_n(keys + part * k, counts[part], keys + count);
    count += counts[part];
  }
  const int64_t found = std::min(count, k);
  std::partial_sort(keys, keys + found, keys + count, std::greater<int64_t>());
  for (int64_t i = 0; i < found; ++i) ids[i] = top_k_column(keys[i]);
  int64_t filled = found;
  for (int64_t column = 0; filled < k && column < call.columns(); ++column) {
    if (std::isnan(row[column])) ids[filled++] = column;
  }
  std::fill(ids + filled, ids + k, 0);  // only where somebody writes the row meanwhile
  float* const values = call.values.data + index * call.values.strides[0];
  for (int64_t i = 0; i < k; ++i) values[i] = row[ids[i]];
  if (call.lse != nullptr) {
    call.lse[index] = log_sum(scratch.sums + index * call.pieces(), call.pieces(), row, call.columns());
  }
}

void run_part(const TopK& call, const Scratch& scratch, int64_t task, float* maxima) {
  const int64_t index = task / call.parts, part = task % call.parts;
  const int64_t first = call.first_piece(part), last = call.first_piece(part + 1);
  TopKRange range;
  range.row = call.row(index);
  range.first = first * kTopKPiece;
  range.columns = std::min(call.columns(), last * kTopKPiece) - range.first;
  range.k = call.k();
  range.keys = scratch.keys + task * call.k();
  range.maxima = maxima;
  if (call.lse != nullptr) range.sums = scratch.sums + index * call.pieces() + first;
  scratch.count[task] = active_isa().top_k->run(range);
}

void check_top_k(const ConstView& x, const MutableView& values, const int64_t* ids) {
  const char* op = "top_k";
  check_rows(op, "x", x);
  check_rows(op, "values", values);
  FASTMHA_CHECK(x.shape[1] <= std::numeric_limits<int32_t>::max(), op,
                ": x must have fewer than 2^31 columns, got shape ", shape_text(x));
  FASTMHA_CHECK(values.shape[1] >= 1 && values.shape[1] <= x.shape[1], op,
                ": k must be from 1 to the number of columns, ", x.shape[1], ", got ", values.shape[1]);
  FASTMHA_CHECK(values.shape[0] == x.shape[0], op, ": values must have as many rows as x, ", x.shape[0],
                ", got shape ", shape_text(values));
  check_out(op, values);
  FASTMHA_CHECK(!overlap(x, values), op, ": values must not overlap x");
  FASTMHA_CHECK(ids != nullptr || x.shape[0] == 0, op, ": ids must point to rows x k numbers, got null");
}

}  // namespace

void top_k(const ConstView& x, const MutableView& values, int64_t* ids, float* lse) {
  check_top_k(x, values, ids);
  TopK call{x, values, ids, lse};
  if (call.rows() == 0) return;
  const double nanoseconds = static_cast<double>(x.size()) / active_isa().top_k->floats_per_ns;
  const int threads = threads_for(call.rows() * call.pieces(), nanoseconds);
  if (threads > 1) {
    call.parts = std::min(call.pieces(), ceil_div(threads * kTasksPerThread, call.rows()));
  }
  const int64_t longest = std::min(call.columns(), ceil_div(call.pieces(), call.parts) * kTopKPiece);
  const Workspace workspace(threads, static_cast<size_t>(ceil_div(longest, kTopKBlock)) * sizeof(float),
                            scratch_bytes(call));
  const Scratch scratch = scratch_of(call, workspace);
  parallel_for(call.rows() * call.parts, threads, [&](int64_t task, int thread) {
    run_part(call, scratch, task, workspace.slice(thread));
    if (call.parts == 1) finish(call, scratch, task);
  });
  for (int64_t row = 0; call.parts > 1 && row < call.rows(); ++row) finish(call, scratch, row);
}

}  // namespace fastmha
