// Row-wise operations: checks and sharing out the rows. The arithmetic is in kernels/rowwise.cpp.
#include "fastmha/norm.h"

#include <algorithm>

#include "isa.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"

namespace fastmha {
namespace {

// Enough tasks to even out cores of unequal speed, each a run of whole rows.
constexpr int64_t kTasksPerThread = 4;

// body(first row, rows). cost: that of one float, in units of the cheapest operation's.
template <class Body>
void for_row_blocks(int64_t rows, int64_t features, double cost, Body&& body) {
  if (rows == 0 || features == 0) return;
  const double nanoseconds =
      static_cast<double>(rows) *
      (static_cast<double>(features) * cost / active_isa().rowwise->floats_per_ns + 10);
  const int threads = threads_for(rows, nanoseconds);
  const int64_t blocks = threads == 1 ? 1 : std::min(rows, threads * kTasksPerThread);
  parallel_for(blocks, threads, [&](int64_t block, int) {
    const int64_t first = block * rows / blocks;
    body(first, (block + 1) * rows / blocks - first);
  });
}

// Up to this many bytes of all arrays together the rows are expected in L2.
constexpr int64_t kCacheBytes = kL2Bytes;
// From here on the arrays do not fit L3 together, and a reader of the result will not find it there. relu of
// 4096 x 768 (25 MB, half of it written): 0.16 ms with plain stores, 0.29 past the caches; of 5461 x 768 (34
// MB): 0.47 and 0.39, also when another operation reads the result at once (1.18 and 1.07 for two).
constexpr int64_t kMemoryBytes = kL3Bytes;

// Where the rows of a call with so many arrays of x's size are; in place, the lines to write are in L1
// already.
Rows where_rows_are(const ConstView& x, int arrays, bool in_place) {
  const int64_t bytes = x.size() * arrays * static_cast<int64_t>(sizeof(float));
  if (bytes <= kCacheBytes) return Rows::kCache;
  return bytes <= kMemoryBytes || in_place ? Rows::kL3 : Rows::kMemory;
}

MapRows map_rows(const ConstView& x, const MutableView& out, int64_t first, int64_t rows) {
  MapRows part;
  part.x = x.data + first * x.strides[0];
  part.x_stride = x.strides[0];
  part.out = out.data + first * out.strides[0];
  part.out_stride = out.strides[0];
  part.rows = rows;
  part.features = x.shape[1];
  part.where = where_rows_are(x, 2, x.data == out.data);
  return part;
}

void check_map(const char* op, const ConstView& x, const MutableView& out) {
  check_rows(op, "x", x);
  check_same_shape(op, "out", out, "x", x);
  check_out(op, out);
  check_in_place(op, out, "x", x);
}

void check_norm(const char* op, const ConstView& x, const ConstView& weight, const ConstView& bias,
                const ConstView& residual, float eps, const MutableView& out) {
  check_map(op, x, out);
  check_parameter(op, "weight", weight, x.shape[1], out);
  if (!bias.empty()) check_parameter(op, "bias", bias, x.shape[1], out);
  if (!residual.empty()) {
    check_same_shape(op, "residual", residual, "x", x);
    check_in_place(op, out, "residual", residual);
  }
  FASTMHA_CHECK(eps >= 0.0f, op, ": eps must be 0 or more, got ", eps);
}

NormRows norm_rows(const ConstView& x, const MutableView& out, const ConstView& weight, const ConstView& bias,
                   const ConstView& residual, int64_t first, int64_t rows, float eps) {
  NormRows part;
  part.map = map_rows(x, out, first, rows);
  if (!residual.empty()) {
    part.residual = residual.data + first * residual.strides[0];
    part.residual_stride = residual.strides[0];
    part.map.where = where_rows_are(x, 3, x.data == out.data || residual.data == out.data);
  }
  part.weight = weight.data;
  part.bias = bias.empty() ? nullptr : bias.data;
  part.eps = eps;
  return part;
}

// Element-wise operations see one long row when the rows touch; pieces of this length are what threads share.
constexpr int64_t kPiece = 4096;

// body(MapRows part) for pieces of x, in parallel; each element's result depends on itself alone.
template <class Body>
void for_elements(const ConstView& x, const MutableView& out, double cost, Body&& body) {
  const int64_t size = x.size();
  const auto dense = [](const ConstView& view) {
    return view.shape[0] <= 1 || view.strides[0] == view.shape[1];
  };
  if (!dense(x) || !dense(out)) {
    for_row_blocks(x.shape[0], x.shape[1], cost,
                   [&](int64_t first, int64_t rows) { body(map_rows(x, out, first, rows)); });
    return;
  }
  const int64_t pieces = ceil_div(size, kPiece);
  for_row_blocks(pieces, std::min(size, kPiece), cost, [&](int64_t first, int64_t count) {
    MapRows part;
    part.x = x.data + first * kPiece;
    part.out = out.data + first * kPiece;
    part.rows = 1;
    part.features = std::min(size - first * kPiece, count * kPiece);
    part.where = where_rows_are(x, 2, x.data == out.data);
    body(part);
  });
}

double activation_cost(Activation function) {
  switch (function) {
    case Activation::kGelu:
      return 6;
    case Activation::kGeluTanh:
      return 5;
    case Activation::kSilu:
      return 4;
    default:
      return 1;
  }
}

}  // namespace

void layer_norm(const ConstView& x, const ConstView& weight, const MutableView& out,
                const LayerNormParams& params) {
  check_norm("layer_norm", x, weight, params.bias, params.residual, params.eps, out);
  const RowwiseKernels& kernels = *active_isa().rowwise;
  for_row_blocks(x.shape[0], x.shape[1], 3, [&](int64_t first, int64_t rows) {
    kernels.layer_norm(norm_rows(x, out, weight, params.bias, params.residual, first, rows, params.eps));
  });
}

void rms_norm(const ConstView& x, const ConstView& weight, const MutableView& out,
              const RmsNormParams& params) {
  check_norm("rms_norm", x, weight, {}, params.residual, params.eps, out);
  const RowwiseKernels& kernels = *active_isa().rowwise;
  for_row_blocks(x.shape[0], x.shape[1], 2, [&](int64_t first, int64_t rows) {
    kernels.rms_norm(norm_rows(x, out, weight, {}, params.residual, first, rows, params.eps));
  });
}

void softmax(const ConstView& x, const MutableView& out) {
  check_map("softmax", x, out);
  const RowwiseKernels& kernels = *active_isa().rowwise;
  for_row_blocks(x.shape[0], x.shape[1], 5,
                 [&](int64_t first, int64_t rows) { kernels.softmax(map_rows(x, out, first, rows)); });
}

void activation(Activation function, const ConstView& x, const MutableView& out) {
  check_map("activation", x, out);
  const RowwiseKernels& kernels = *active_isa().rowwise;
  for_elements(x, out, activation_cost(function),
               [&](const MapRows& part) { kernels.activation(function, part); });
}

void exp(const ConstView& x, const MutableView& out) {
  check_map("exp", x, out);
  const RowwiseKernels& kernels = *active_isa().rowwise;
  for_elements(x, out, 4, [&](const MapRows& part) { kernels.exp(part); });
}

}  // namespace fastmha
