// The parts of fastmha._core, one file each.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <new>
#include <stdexcept>

namespace fastmha::python {

// What pybind11 does with an exception, for functions that Python calls without it.
inline PyObject* raise_python_error() {
  try {
    throw;
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  } catch (...) {
    PyErr_SetString(PyExc_RuntimeError, "unknown error");
  }
  return nullptr;
}

// Arguments by position as Python holds them. pybind11's own dispatch of 14 arguments (a vector of handles, a
// tuple of objects, a search for overloads) takes 0.3 us, a fifth of a short attention call.
using FastFunction = pybind11::object (*)(PyObject* const* arguments);

template <int Count, FastFunction Function>
PyObject* call_fast(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != Count) {
    PyErr_Format(PyExc_TypeError, "expected %d arguments by position, got %zd", Count, count);
    return nullptr;
  }
  try {
    return Function(arguments).release().ptr();
  } catch (...) {
    return raise_python_error();
  }
}

template <int Count, FastFunction Function>
void bind_fast(pybind11::module_& module, const char* name) {
  static PyMethodDef definition = {
      name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_fast<Count, Function>)),
      METH_FASTCALL, nullptr};
  const pybind11::object module_name = module.attr("__name__");
  PyObject* function = PyCFunction_NewEx(&definition, module.ptr(), module_name.ptr());
  if (function == nullptr) throw pybind11::error_already_set();
  module.attr(name) = pybind11::reinterpret_steal<pybind11::object>(function);
}

void bind_attention(pybind11::module_& module);
void bind_decoder(pybind11::module_& module);
void bind_encoder(pybind11::module_& module);
void bind_linear(pybind11::module_& module);
void bind_norm(pybind11::module_& module);
void bind_runtime(pybind11::module_& module);
void bind_sublayer(pybind11::module_& module);

}  // namespace fastmha::python
