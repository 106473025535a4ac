// fastmha._core: what python/fastmha/_core.pyi declares. Documentation for users is in the Python package.
#include "module.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of fastmha";
  module.attr("__version__") = FASTMHA_VERSION;
  fastmha::python::bind_runtime(module);  // first: it refuses an unknown FASTMHA_ISA
  fastmha::python::bind_attention(module);
  fastmha::python::bind_decoder(module);
  fastmha::python::bind_encoder(module);
  fastmha::python::bind_linear(module);
  fastmha::python::bind_norm(module);
  fastmha::python::bind_sublayer(module);
}
