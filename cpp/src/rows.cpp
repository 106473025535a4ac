// Checks of (rows, features) views: shapes, layouts, and whether two views share memory.
#include "rows.h"

#include <algorithm>
#include <cstdlib>

namespace fastmha {
namespace {

// Addresses [first, last) that a view touches.
struct Extent {
  uintptr_t first;
  uintptr_t last;
};

Extent extent_of(const ConstView& view) {
  int64_t low = 0, high = 1;
  for (int axis = 0; axis < view.rank; ++axis) {
    const int64_t reach = view.strides[axis] * (view.shape[axis] - 1);
    (reach < 0 ? low : high) += reach;
  }
  const uintptr_t base = reinterpret_cast<uintptr_t>(view.data);
  return {base + low * sizeof(float), base + high * sizeof(float)};
}

}  // namespace

void check_rows(const char* op, const char* name, const ConstView& view) {
  FASTMHA_CHECK(view.rank == 2, op, ": ", name, " must have 2 axes (rows, features), got shape ",
                shape_text(view));
  FASTMHA_CHECK(view.shape[0] >= 0 && view.shape[1] >= 0, op, ": ", name,
                " must not have a negative extent, got shape ", shape_text(view));
  FASTMHA_CHECK(view.strides[1] == 1 || view.shape[1] <= 1, op, ": ", name,
                " must be contiguous along its last axis, got stride ", view.strides[1]);
  FASTMHA_CHECK(view.dtype == DType::kFloat32, op, ": ", name, " must be float32");
  FASTMHA_CHECK(view.data != nullptr || view.size() == 0, op, ": ", name, " must point to its ", view.size(),
                " elements, got null");
}

void check_same_shape(const char* op, const char* name, const ConstView& view, const char* like_name,
                      const ConstView& like) {
  check_rows(op, name, view);
  FASTMHA_CHECK(view.shape[0] == like.shape[0] && view.shape[1] == like.shape[1], op, ": ", name,
                " must have the shape of ", like_name, ", ", shape_text(like), ", got ", shape_text(view));
}

void check_vector(const char* op, const char* name, const ConstView& view, int64_t features) {
  FASTMHA_CHECK(view.rank == 1 && view.shape[0] == features, op, ": ", name, " must have shape (", features,
                ",), got shape ", shape_text(view));
  FASTMHA_CHECK(view.strides[0] == 1 || features <= 1, op, ": ", name, " must be contiguous, got stride ",
                view.strides[0]);
  FASTMHA_CHECK(view.dtype == DType::kFloat32, op, ": ", name, " must be float32");
  FASTMHA_CHECK(view.data != nullptr || features == 0, op, ": ", name, " must point to its ", features,
                " elements, got null");
}

void check_parameter(const char* op, const char* name, const ConstView& view, int64_t features,
                     const ConstView& out) {
  check_vector(op, name, view, features);
  FASTMHA_CHECK(!overlap(view, out), op, ": out must not overlap ", name);
}

void check_out(const char* op, const ConstView& out) {
  FASTMHA_CHECK(out.shape[0] <= 1 || std::abs(out.strides[0]) >= out.shape[1], op,
                ": rows of out must not overlap, got ", out.shape[1], " features at a row stride of ",
                out.strides[0]);
}

bool same_rows(const ConstView& a, const ConstView& b) {
  return a.data == b.data && a.shape[0] == b.shape[0] && a.shape[1] == b.shape[1] &&
         (a.shape[0] <= 1 || a.strides[0] == b.strides[0]);
}

bool overlap(const ConstView& a, const ConstView& b) {
  if (a.size() == 0 || b.size() == 0) return false;
  const Extent x = extent_of(a), y = extent_of(b);
  if (x.last <= y.first || y.last <= x.first) return false;
  const int64_t stride = std::abs(a.strides[0]);
  if (a.rank != 2 || b.rank != 2 || stride == 0 || std::abs(b.strides[0]) != stride) return true;
  const int64_t bytes =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(b.data) - reinterpret_cast<uintptr_t>(a.data));
  const int64_t unit = sizeof(float);
  // Where b's rows start within the period of a's: [0, a columns) is taken, and b must end before a's next
  // row.
  const int64_t place = ((bytes % (stride * unit)) + stride * unit) % (stride * unit);
  return place < a.shape[1] * unit || place + b.shape[1] * unit > stride * unit;
}

void check_in_place(const char* op, const ConstView& out, const char* name, const ConstView& input) {
  FASTMHA_CHECK(same_rows(out, input) || !overlap(out, input), op, ": out must be ", name,
                " itself or must not overlap it");
}

}  // namespace fastmha
