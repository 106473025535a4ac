// Checks of (rows, features) views that the linear and row-wise operations share.
#pragma once

#include <cstdint>

#include "check.h"
#include "fastmha/types.h"

namespace fastmha {

// A matrix whose rows are contiguous.
void check_rows(const char* op, const char* name, const ConstView& view);
// The same with as many rows and features as `like`, which is called `like_name`.
void check_same_shape(const char* op, const char* name, const ConstView& view, const char* like_name,
                      const ConstView& like);
// (features), contiguous.
void check_vector(const char* op, const char* name, const ConstView& view, int64_t features);
// A vector of the features of a call that writes to out: the same, and not in out.
void check_parameter(const char* op, const char* name, const ConstView& view, int64_t features,
                     const ConstView& out);
// Rows of out must not overlap each other.
void check_out(const char* op, const ConstView& out);

// Whether they are the same memory in the same order.
bool same_rows(const ConstView& a, const ConstView& b);
// Whether an element of a may lie in b. Exact for rows of equal stride (columns of one matrix do not
// overlap); other views overlap when their extents do.
bool overlap(const ConstView& a, const ConstView& b);
// out may be the input itself, or must not overlap it.
void check_in_place(const char* op, const ConstView& out, const char* name, const ConstView& input);

}  // namespace fastmha
