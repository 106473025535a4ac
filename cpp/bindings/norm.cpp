// Row-wise operations and the largest of each row for Python.
#include "fastmha/norm.h"

#include <optional>

#include "activation.h"
#include "arrays.h"
#include "fastmha/top_k.h"
#include "module.h"
#include "rows.h"

namespace fastmha::python {
namespace {

// x and what it becomes, of the same shape.
struct Mapped {
  Input x;
  RowsOutput out;

  Mapped(const char* op, py::handle x_, py::handle out_)
      : x(rows_input(op, "x", x_)), out(op, out_, shape_of(x.array, x.view.shape[1])) {
    out.allow_in_place("x", py::reinterpret_borrow<py::array>(x_));
  }
};

// What layer_norm and rms_norm take besides x.
struct NormInputs {
  Input weight;
  std::optional<Input> bias, residual;

  NormInputs(const char* op, Mapped& rows, py::handle weight_, py::handle bias_, py::handle residual_)
      : weight(vector_input(op, rows, "weight", weight_)) {
    if (!bias_.is_none()) bias = vector_input(op, rows, "bias", bias_);
    if (residual_.is_none()) return;
    residual = rows_input(op, "residual", residual_);
    require_shape(op, "residual", residual->array, shape_of(rows.x.array, rows.x.view.shape[1]));
    rows.out.allow_in_place("residual", py::reinterpret_borrow<py::array>(residual_));
  }

  static Input vector_input(const char* op, const Mapped& rows, const char* name, py::handle object) {
    Input input = float_input(op, name, object, 1);
    require_shape(op, name, input.array, {static_cast<py::ssize_t>(rows.x.view.shape[1])});
    rows.out.refuse(name, input.array);
    return input;
  }
};

// The arrays are held by the caller's frame and every check on them is done: other Python threads may run.
template <class Body>
py::array run(Mapped& rows, Body&& body) {
  {
    py::gil_scoped_release release;
    body();
  }
  return rows.out.finish();
}

py::array layer_norm_py(py::handle x, py::handle weight, py::handle bias, py::handle eps, py::handle residual,
                        py::handle out) {
  const char* op = "layer_norm";
  Mapped rows(op, x, out);
  const NormInputs inputs(op, rows, weight, bias, residual);
  LayerNormParams params;
  params.eps = static_cast<float>(number(op, "eps", eps));
  if (inputs.bias) params.bias = inputs.bias->view;
  if (inputs.residual) params.residual = inputs.residual->view;
  return run(rows, [&] { layer_norm(rows.x.view, inputs.weight.view, rows.out.view(), params); });
}

py::array rms_norm_py(py::handle x, py::handle weight, py::handle eps, py::handle residual, py::handle out) {
  const char* op = "rms_norm";
  Mapped rows(op, x, out);
  const NormInputs inputs(op, rows, weight, py::none(), residual);
  RmsNormParams params;
  params.eps = static_cast<float>(number(op, "eps", eps));
  if (inputs.residual) params.residual = inputs.residual->view;
  return run(rows, [&] { rms_norm(rows.x.view, inputs.weight.view, rows.out.view(), params); });
}

py::array softmax_py(py::handle x, py::handle out) {
  Mapped rows("softmax", x, out);
  return run(rows, [&] { softmax(rows.x.view, rows.out.view()); });
}

// Element-wise operations take scalars too (arrays without axes), as arrays of one element.
py::object without_axes(py::handle object, const std::vector<py::ssize_t>& shape) {
  if (object.is_none()) return py::none();
  return py::reinterpret_borrow<py::array>(object).reshape(shape);
}

bool is_scalar(py::handle object) {
  return py::isinstance<py::array>(object) && py::reinterpret_borrow<py::array>(object).ndim() == 0;
}

py::array activation_py(py::handle name, py::handle x, py::handle out) {
  if (is_scalar(x) && (out.is_none() || is_scalar(out))) {
    const py::object one = without_axes(x, {1}), one_out = without_axes(out, {1});
    const py::array result = activation_py(name, one, one_out);
    return out.is_none() ? py::array(without_axes(result, {})) : py::reinterpret_borrow<py::array>(out);
  }
  const NamedActivation& function = activation_named("activation", name);
  Mapped rows(function.operation, x, out);
  return run(rows, [&] { activation(function.value, rows.x.view, rows.out.view()); });
}

py::array exp_py(py::handle x) {
  Mapped rows("exp", x, py::none());
  return run(rows, [&] { exp(rows.x.view, rows.out.view()); });
}

py::tuple top_k_py(py::handle logits, py::handle k) {
  const char* op = "top_k";
  const Input x = rows_input(op, "logits", logits);
  FASTMHA_CHECK(x.array.ndim() == 2, op, ": logits must have 2 axes, got shape ", shape_text(x.array));
  const int64_t rows = x.view.shape[0], columns = x.view.shape[1], count = integer(op, "k", k);
  FASTMHA_CHECK(count >= 1 && count <= columns, op, ": k must be from 1 to the columns of logits, ", columns,
                ", got ", count);
  py::array values = result_array({rows, count}), lse = result_array({rows});
  py::array_t<int64_t> ids({rows, count});
  const MutableView out(static_cast<float*>(values.mutable_data()), {rows, count});
  {
    // The arrays are held by this frame and the caller's, and every check on them is done.
    py::gil_scoped_release release;
    top_k(x.view, out, ids.mutable_data(), static_cast<float*>(lse.mutable_data()));
  }
  return py::make_tuple(std::move(values), std::move(ids), std::move(lse));
}

}  // namespace

void bind_norm(py::module_& module) {
  module.def("layer_norm", &layer_norm_py);
  module.def("rms_norm", &rms_norm_py);
  module.def("softmax", &softmax_py);
  module.def("activation", &activation_py);
  module.def("exp", &exp_py);
  module.def("top_k", &top_k_py);
}

}  // namespace fastmha::python
