// The maps inside the tuples that say a block.
#pragma once

#include "arrays.h"
#include "fastmha/linear.h"

namespace fastmha::python {

// Or null for None.
inline const PackedLinear* map_input(const char* op, py::handle object) {
  if (object.is_none()) return nullptr;
  if (!py::isinstance<PackedLinear>(object)) {
    throw py::type_error(
        concat(op, ": a block's maps must be packed linear layers, got ", type_name(object)));
  }
  return py::cast<const PackedLinear*>(object);
}

// A block's tuple of so many parts.
inline py::tuple block_input(const char* op, py::handle object, size_t parts) {
  if (!py::isinstance<py::tuple>(object) || py::len(object) != parts) {
    throw py::type_error(
        concat(op, ": a block must be a tuple of ", parts, " parts, got ", type_name(object)));
  }
  return py::reinterpret_borrow<py::tuple>(object);
}

// A list, which another Python thread may change meanwhile: what is taken from it must be held.
inline py::list list_input(const char* op, const char* name, py::handle object) {
  if (!py::isinstance<py::list>(object)) {
    throw py::type_error(concat(op, ": ", name, " must be a list, got ", type_name(object)));
  }
  return py::reinterpret_borrow<py::list>(object);
}

}  // namespace fastmha::python
