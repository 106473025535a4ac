// NumPy arrays in, views out: every check of a Python argument's type, dtype and layout.
//
// An array whose last axis is contiguous is viewed where it lies, whatever its other strides; any other one
// is copied first. A wrong type or dtype is a TypeError that shows the cast; nothing is cast silently.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "../src/check.h"
#include "fastmha/types.h"
#include "output_pool.h"

namespace fastmha::python {

namespace py = pybind11;

inline std::string type_name(py::handle object) {
  return py::cast<std::string>(py::type::handle_of(object).attr("__name__"));
}

inline py::array checked_array(const char* op, const char* name, py::handle object) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(concat(op, ": ", name, " must be a numpy.ndarray, got ", type_name(object),
                                "; convert it: np.asarray(", name, ", dtype=np.float32)"));
  }
  return py::reinterpret_borrow<py::array>(object);
}

// The array's own description: its accessors in py::array make an object each, 20 ns that a short call feels.
inline const py::detail::PyArray_Proxy& fields(const py::array& array) {
  return *py::detail::array_proxy(array.ptr());
}

// NumPy's one description of native float32; equal types may have others.
inline PyObject* float32_descr() {
  static PyObject* const descr = py::dtype::of<float>().release().ptr();
  return descr;
}

inline bool is_float32(const py::array& array) {
  if (fields(array).descr == float32_descr()) return true;
  return array.dtype().num() == py::detail::npy_api::NPY_FLOAT_ && array.dtype().byteorder() == '=';
}

inline bool is_bool(const py::array& array) { return array.dtype().num() == py::detail::npy_api::NPY_BOOL_; }

inline void require_float32(const char* op, const char* name, const py::array& array) {
  if (is_float32(array)) return;
  throw py::type_error(concat(op, ": ", name, " must be float32, got ",
                              py::cast<std::string>(py::str(array.dtype())), "; cast it: ", name,
                              ".astype(np.float32)"));
}

inline std::string shape_text(const py::array& array) {
  return py::cast<std::string>(py::str(array.attr("shape")));
}

// Whether kernels can read the array in place: whole elements apart, aligned, last axis without gaps.
inline bool viewable(const py::array& array) {
  const auto item = static_cast<py::ssize_t>(array.itemsize());
  const py::ssize_t* strides = array.strides();
  if (reinterpret_cast<uintptr_t>(array.data()) % item != 0) return false;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (strides[i] % item != 0) return false;
  }
  const py::ssize_t last = array.ndim() - 1;
  if (last < 0 || strides[last] == item || array.shape()[last] <= 1) return true;
  return array.size() == 0;
}

template <class T, class Pointer>
View<T> view_of(const py::array& array, Pointer data) {
  View<T> view;
  view.data = data;
  view.rank = static_cast<int>(array.ndim());
  const py::ssize_t item = array.itemsize();
  for (int i = 0; i < view.rank; ++i) {
    view.shape[i] = array.shape()[i];
    view.strides[i] = array.strides()[i] / item;
  }
  return view;
}

// An input that stays alive as long as its view is used.
struct Input {
  py::array array;
  ConstView view;
};

inline py::array contiguous_copy(const py::array& array) {
  return py::reinterpret_steal<py::array>(
      py::module_::import("numpy").attr("ascontiguousarray")(array).release());
}

// A float32 array of min_rank to max_rank axes.
inline Input float_input(const char* op, const char* name, py::handle object, int min_rank,
                         int max_rank = -1) {
  if (max_rank < 0) max_rank = min_rank;
  py::array array = checked_array(op, name, object);
  require_float32(op, name, array);
  FASTMHA_CHECK(array.ndim() >= min_rank && array.ndim() <= max_rank, op, ": ", name, " must have ", min_rank,
                min_rank == max_rank ? "" : concat(" to ", max_rank), " axes, got shape ", shape_text(array));
  if (!viewable(array)) array = contiguous_copy(array);
  ConstView view = view_of<const float>(array, static_cast<const float*>(array.data()));
  return {std::move(array), view};
}

// All axes but the last folded into one. Axes of extent 1 count for nothing: NumPy gives them any stride.
struct RowFold {
  py::ssize_t rows = 1;
  py::ssize_t stride = 0;  // bytes from row to row
  bool even = true;        // whether one stride reaches all rows
};

inline RowFold fold_rows(const py::array& array) {
  RowFold fold;
  for (py::ssize_t i = array.ndim() - 2; i >= 0; --i) {
    if (array.shape(i) == 1) continue;
    if (fold.rows == 1) fold.stride = array.strides(i);
    fold.even = fold.even && (fold.rows == 1 || array.strides(i) == fold.stride * fold.rows);
    fold.rows *= array.shape(i);
  }
  fold.even = fold.even || fold.rows == 0;
  return fold;
}

template <class T, class Pointer>
View<T> rows_view(const py::array& array, Pointer data) {
  const RowFold fold = fold_rows(array);
  return View<T>(data, {fold.rows, array.shape(array.ndim() - 1)}, {fold.stride / array.itemsize(), 1});
}

// A float32 array of any number of axes as (rows, features).
inline Input rows_input(const char* op, const char* name, py::handle object) {
  py::array array = checked_array(op, name, object);
  require_float32(op, name, array);
  FASTMHA_CHECK(array.ndim() >= 1, op, ": ", name, " must have at least 1 axis, got a scalar");
  if (!viewable(array) || !fold_rows(array).even) array = contiguous_copy(array);
  ConstView view = rows_view<const float>(array, static_cast<const float*>(array.data()));
  return {std::move(array), view};
}

inline std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += concat(i ? ", " : "", shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

// Whether two elements may lie on the same bytes: an axis must step over all that the smaller steps span.
inline bool overlaps_itself(const py::array& array) {
  py::ssize_t reach = array.itemsize();
  bool in_order = true;  // the later the axis the smaller its steps: nothing to sort, which is the rule
  for (py::ssize_t i = array.ndim() - 1; i >= 0; --i) {
    if (array.shape(i) == 0) return false;
    if (array.shape(i) == 1) continue;
    in_order = in_order && std::abs(array.strides(i)) >= reach;
    reach += std::abs(array.strides(i)) * (array.shape(i) - 1);
  }
  if (in_order) return false;
  std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;  // |stride|, extent
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (array.shape(i) > 1) axes.emplace_back(std::abs(array.strides(i)), array.shape(i));
  }
  std::sort(axes.begin(), axes.end());
  py::ssize_t span = array.itemsize();
  for (const auto& [stride, extent] : axes) {
    if (stride < span) return true;
    span += stride * (extent - 1);
  }
  return false;
}

// Bytes that an array touches: [first, last).
struct Extent {
  const char* first;
  const char* last;
};

inline Extent extent_of(const py::array& array) {
  const char* first = static_cast<const char*>(array.data());
  const char* last = first;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (array.shape(i) == 0) return {first, first};
    const py::ssize_t reach = array.strides(i) * (array.shape(i) - 1);
    (reach < 0 ? first : last) += reach;
  }
  return {first, last + array.itemsize()};
}

inline bool shares_memory(const py::array& a, const py::array& b) {
  const Extent x = extent_of(a), y = extent_of(b);
  if (x.last <= y.first || y.last <= x.first) return false;
  // Interleaved views (columns of one matrix) overlap in extent alone; NumPy's own test knows.
  try {
    return py::cast<bool>(
        py::module_::import("numpy").attr("shares_memory")(a, b, py::arg("max_work") = 10000));
  } catch (py::error_already_set&) {
    return true;  // too hard to decide: treat as shared
  }
}

// out: a new array of that shape, or the caller's, which must be exactly right.
struct Output {
  py::array array;
  MutableView view;
};

// A new float32 array in C order in memory of NumPy's own. py::array_t computes strides into a vector of its
// own first.
inline py::array small_array(const std::vector<py::ssize_t>& shape) {
  const auto& numpy = py::detail::npy_api::get();
  Py_INCREF(float32_descr());  // the call takes a reference
  PyObject* array =
      numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, float32_descr(), static_cast<int>(shape.size()),
                                  shape.data(), nullptr, nullptr, 0, nullptr);
  if (array == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(array);
}

// A new float32 array in C order for a result of that shape.
inline py::array result_array(const std::vector<py::ssize_t>& shape) {
  double bytes = sizeof(float);  // a double: the product of a shape that no memory holds must not wrap
  for (py::ssize_t extent : shape) bytes *= static_cast<double>(extent);
  if (bytes < static_cast<double>(kPooledBytes) || bytes > 0x1p62) return small_array(shape);
  return pooled_array(shape, static_cast<size_t>(bytes));
}

inline Output float_output(const char* op, py::handle out, const std::vector<py::ssize_t>& shape,
                           const std::vector<const py::array*>& inputs, const char* name = "out") {
  py::array array;
  if (out.is_none()) {
    array = result_array(shape);
  } else {
    // The advice differs from an input's: the result would go into a converted copy that nobody sees.
    if (!py::isinstance<py::array>(out)) {
      throw py::type_error(concat(op, ": ", name, " must be a numpy.ndarray, got ", type_name(out),
                                  "; make it before the call: ", name, " = np.empty(", shape_text(shape),
                                  ", np.float32)"));
    }
    array = py::reinterpret_borrow<py::array>(out);
    if (!is_float32(array)) {
      throw py::type_error(concat(op, ": ", name, " must be float32, got ",
                                  py::cast<std::string>(py::str(array.dtype())),
                                  "; cast it before the call: ", name, " = ", name, ".astype(np.float32)"));
    }
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
    for (size_t i = 0; same && i < shape.size(); ++i)
      same = array.shape(static_cast<py::ssize_t>(i)) == shape[i];
    FASTMHA_CHECK(same, op, ": ", name, " must have shape ", shape_text(shape), ", got ", shape_text(array));
    FASTMHA_CHECK(array.writeable(), op, ": ", name, " must be writeable, got a read-only array");
    FASTMHA_CHECK(!overlaps_itself(array), op, ": ", name,
                  " must not be a view whose elements share memory (a broadcast); pass a new array");
    FASTMHA_CHECK(viewable(array), op, ": ", name, " must be aligned with a contiguous last axis; pass a ",
                  "C-contiguous array and copy from it");
    for (const py::array* input : inputs) {
      FASTMHA_CHECK(!shares_memory(array, *input), op, ": ", name,
                    " must not share memory with an input; pass an array of its own");
    }
  }
  MutableView view;
  if (array.ndim() <= kMaxRank) view = view_of<float>(array, static_cast<float*>(array.mutable_data()));
  return {std::move(array), view};
}

// Whole numbers from an integer array or a sequence of ints, copied (the caller may change his while we
// compute).
inline std::vector<int64_t> index_input(const char* op, const char* name, py::handle object) {
  py::object numbers = py::reinterpret_borrow<py::object>(object);
  if (!py::isinstance<py::array>(object)) {
    if (!py::isinstance<py::sequence>(object) || py::isinstance<py::str>(object)) {
      throw py::type_error(
          concat(op, ": ", name, " must be an integer array or a sequence of ints, got ", type_name(object)));
    }
    try {
      numbers = py::module_::import("numpy").attr("asarray")(object);
    } catch (py::error_already_set& error) {  // speaks of NumPy's own troubles
      if (!error.matches(PyExc_ValueError)) throw;
      throw std::invalid_argument(
          concat(op, ": ", name, " must be integers, got sequences of different lengths in one another"));
    }
  }
  const py::array array = py::reinterpret_borrow<py::array>(numbers);
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u' && array.size() > 0) {
    const bool is_array = py::isinstance<py::array>(object);  // a list has no astype()
    throw py::type_error(concat(
        op, ": ", name, " must be integers, got ", py::cast<std::string>(py::str(array.dtype())),
        "; cast it: ",
        is_array ? concat(name, ".astype(np.int64)") : concat("np.asarray(", name, ", dtype=np.int64)")));
  }
  FASTMHA_CHECK(array.ndim() == 1, op, ": ", name, " must have 1 axis, got shape ", shape_text(array));
  if (kind == 'u' && array.size() > 0) {  // would wrap to negative numbers
    const py::object largest = array.attr("max")();
    FASTMHA_CHECK(py::cast<uint64_t>(largest) <= static_cast<uint64_t>(INT64_MAX), op, ": ", name,
                  " must fit 64 bits with a sign, got ", py::cast<std::string>(py::str(largest)));
  }
  const auto wide = py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  return std::vector<int64_t>(wide.data(), wide.data() + wide.size());
}

inline bool is_integer(py::handle object) {
  return PyIndex_Check(object.ptr()) && !PyBool_Check(object.ptr()) && !py::isinstance<py::array>(object);
}

inline int64_t integer(const char* op, const char* name, py::handle object) {
  if (!is_integer(object)) {
    throw py::type_error(concat(op, ": ", name, " must be an int, got ", type_name(object)));
  }
  const Py_ssize_t value = PyNumber_AsSsize_t(object.ptr(), PyExc_OverflowError);
  if (value == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw std::invalid_argument(concat(op, ": ", name, " does not fit 64 bits"));
  }
  return value;
}

inline double number(const char* op, const char* name, py::handle object) {
  const double value = PyBool_Check(object.ptr()) ? (PyErr_SetString(PyExc_TypeError, ""), -1.0)
                                                  : PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::type_error(concat(op, ": ", name, " must be a number, got ", type_name(object)));
  }
  return value;
}

inline bool flag(const char* op, const char* name, py::handle object) {
  if (object.ptr() == Py_True) return true;
  if (object.ptr() == Py_False) return false;
  if (type_name(object) == "bool" || type_name(object) == "bool_") return PyObject_IsTrue(object.ptr()) == 1;
  throw py::type_error(concat(op, ": ", name, " must be a bool, got ", type_name(object)));
}

}  // namespace fastmha::python
