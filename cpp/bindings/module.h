// The parts of fastmha._core, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace fastmha::python {

void bind_attention(pybind11::module_& module);
void bind_linear(pybind11::module_& module);
void bind_norm(pybind11::module_& module);
void bind_runtime(pybind11::module_& module);

}  // namespace fastmha::python
