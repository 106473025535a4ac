// PackedLinear for Python.
#include "fastmha/linear.h"

#include <optional>

#include "activation.h"
#include "arrays.h"
#include "module.h"
#include "rows.h"

namespace fastmha::python {
namespace {

std::unique_ptr<PackedLinear> make_linear(py::handle weight, py::handle bias, py::handle activation) {
  const char* op = "PackedLinear";
  const Input packed = float_input(op, "weight", weight, 2);
  std::optional<Input> added;
  if (!bias.is_none()) added = float_input(op, "bias", bias, 1);
  const Activation function =
      activation.is_none() ? Activation::kNone : activation_named(op, activation).value;
  // Packing reads memory only: other Python threads may run.
  py::gil_scoped_release release;
  return std::make_unique<PackedLinear>(packed.view, added ? added->view : ConstView{}, function);
}

py::array call_linear(const PackedLinear& layer, py::handle x, py::handle residual, py::handle out) {
  const char* op = "linear";
  const Input input = rows_input(op, "x", x);
  FASTMHA_CHECK(input.view.shape[1] == layer.in_features(), op, ": x must have ", layer.in_features(),
                " features (in_features) on its last axis, got shape ", shape_text(input.array));
  const std::vector<py::ssize_t> shape = shape_of(input.array, layer.out_features());
  RowsOutput output(op, out, shape);
  output.refuse("x", py::reinterpret_borrow<py::array>(x));
  LinearParams params;
  std::optional<Input> added;
  if (!residual.is_none()) {
    added = rows_input(op, "residual", residual);
    require_shape(op, "residual", added->array, shape);
    output.allow_in_place("residual", py::reinterpret_borrow<py::array>(residual));
    params.residual = added->view;
  }
  {
    // The arrays are held by this frame and every check is done: other Python threads may run.
    py::gil_scoped_release release;
    linear(layer, input.view, output.view(), params);
  }
  return output.finish();
}

py::array_t<float> unpack(const PackedLinear& layer) {
  py::array_t<float> weight({layer.out_features(), layer.in_features()});
  layer.unpack({weight.mutable_data(), {layer.out_features(), layer.in_features()}});
  return weight;
}

}  // namespace

void bind_linear(py::module_& module) {
  py::class_<PackedLinear>(module, "PackedLinear")
      .def(py::init(&make_linear), py::arg("weight"), py::arg("bias"), py::arg("activation"))
      .def_property_readonly("in_features", &PackedLinear::in_features)
      .def_property_readonly("out_features", &PackedLinear::out_features)
      .def_property_readonly("activation",
                             [](const PackedLinear& layer) { return activation_name(layer.activation()); })
      .def_property_readonly("nbytes", &PackedLinear::nbytes)
      .def("__call__", &call_linear, py::arg("x"), py::arg("residual"), py::arg("out"))
      .def("unpack", &unpack)
      // pickle and copy.deepcopy ask for it
      .def("__reduce__", [](const PackedLinear&) -> py::object {
        throw py::type_error(
            "packed weights cannot be pickled or copied deeply: in another process load the model from its "
            "files, or give a new one the state_dict()");
      });
}

}  // namespace fastmha::python
