// Results of operations on rows: an array of any number of axes, computed as (rows, features).
#pragma once

#include "arrays.h"

namespace fastmha::python {

// What the operation writes, and where it has to arrive.
class RowsOutput {
 public:
  // A new array of that shape when out is None, else the caller's.
  RowsOutput(const char* op, py::handle out, const std::vector<py::ssize_t>& shape);

  // out may be this input itself (the same elements in the same place) or must not share memory with it.
  void allow_in_place(const char* name, const py::array& input) const;
  // out must not share memory with this input.
  void refuse(const char* name, const py::array& input) const;

  MutableView view() const;
  // Call after the computation: returns the result, and first copies it into an out whose rows are not evenly
  // spaced.
  py::array finish();

 private:
  const char* op_;
  bool given_;
  py::array result_;   // what the caller gets
  py::array written_;  // what is computed into
};

std::vector<py::ssize_t> shape_of(const py::array& array, py::ssize_t last);
void require_shape(const char* op, const char* name, const py::array& array,
                   const std::vector<py::ssize_t>& shape);

}  // namespace fastmha::python
