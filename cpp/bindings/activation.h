// Activations by name.
#pragma once

#include "arrays.h"
#include "fastmha/activation.h"

namespace fastmha::python {

struct NamedActivation {
  const char* name;
  const char* operation;  // of the public function, for error messages
  Activation value;
};

inline constexpr NamedActivation kActivations[] = {
    {"relu", "relu", Activation::kRelu},
    {"gelu", "gelu", Activation::kGelu},
    {"gelu_tanh", "gelu", Activation::kGeluTanh},
    {"silu", "silu", Activation::kSilu},
};

inline const NamedActivation& activation_named(const char* op, py::handle name) {
  if (!py::isinstance<py::str>(name)) {
    throw py::type_error(concat(op, ": activation must be a str, got ", type_name(name)));
  }
  const auto wanted = py::cast<std::string>(name);
  for (const NamedActivation& activation : kActivations) {
    if (wanted == activation.name) return activation;
  }
  throw std::invalid_argument(
      concat(op, ": activation must be relu, gelu, gelu_tanh or silu, got '", wanted, "'"));
}

// None for no activation.
inline py::object activation_name(Activation value) {
  for (const NamedActivation& activation : kActivations) {
    if (value == activation.value) return py::str(activation.name);
  }
  return py::none();
}

}  // namespace fastmha::python
