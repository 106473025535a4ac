// Threads, instruction sets and build facts for Python.
#include "fastmha/runtime.h"

#include <pybind11/stl.h>

#include "arrays.h"
#include "module.h"

namespace fastmha::python {

void bind_runtime(py::module_& module) {
  try {
    fastmha::isa();
    fastmha::get_num_threads();  // reads FASTMHA_NUM_THREADS and OMP_NUM_THREADS
  } catch (const std::invalid_argument& error) {
    throw py::import_error(error.what());
  }
  module.def("set_num_threads", [](py::object num_threads) {
    const int64_t n = integer("set_num_threads", "num_threads", num_threads);
    fastmha::set_num_threads(static_cast<int>(std::max<int64_t>(INT32_MIN, std::min<int64_t>(n, INT32_MAX))));
  });
  module.def("get_num_threads", &fastmha::get_num_threads);
  module.def("isa", [] { return std::string(fastmha::isa()); });
  module.def("available_isas", &fastmha::available_isas);
  module.def("build_info", [] {
    const BuildInfo info = fastmha::build_info();
    py::dict facts;
    facts["version"] = info.version;
    facts["compiler"] = info.compiler;
    facts["build_type"] = FASTMHA_BUILD_TYPE;
    facts["isa"] = std::string(fastmha::isa());
    facts["available_isas"] = fastmha::available_isas();
    facts["num_threads"] = fastmha::get_num_threads();
    facts["openmp"] = info.openmp != 0;
    facts["openmp_version"] = info.openmp;
    facts["cpu"] = info.cpu;
    facts["idle_memory"] = idle_memory() + fastmha::kept_scratch();
    return facts;
  });
  module.def(
      "release_memory", [] { return release_idle_memory() + fastmha::release_scratch(); },
      py::call_guard<py::gil_scoped_release>());
  module.def("empty", &result_array);
}

}  // namespace fastmha::python
