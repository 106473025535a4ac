// The norms inside sub-layers.
#pragma once

#include <optional>

#include "arrays.h"
#include "fastmha/sublayer.h"
#include "rows.h"

namespace fastmha::python {

// A norm: None, a layer norm's tuple (weight, bias or None, eps), or an RMS norm's (weight, eps).
struct NormInput {
  std::optional<Input> weight, bias;
  SublayerNorm norm;

  NormInput(const char* op, const char* name, py::handle object) {
    if (object.is_none()) return;
    const size_t count = py::isinstance<py::tuple>(object) ? py::len(object) : 0;
    if (count != 2 && count != 3) {
      throw py::type_error(concat(op, ": ", name, " must be None, (weight, bias, eps) or (weight, eps), got ",
                                  type_name(object)));
    }
    const auto parts = py::reinterpret_borrow<py::tuple>(object);
    weight = float_input(op, name, parts[0], 1);
    norm.weight = weight->view;
    norm.kind = count == 2 ? NormKind::kRmsNorm : NormKind::kLayerNorm;
    if (count == 3 && !parts[1].is_none()) {
      bias = float_input(op, name, parts[1], 1);
      norm.bias = bias->view;
    }
    norm.eps = static_cast<float>(number(op, "eps", parts[count - 1]));
  }

  // A result must not share memory with it.
  void refuse_as(const RowsOutput& out, const char* name) const {
    if (weight) out.refuse(name, weight->array);
    if (bias) out.refuse(name, bias->array);
  }
};

}  // namespace fastmha::python
