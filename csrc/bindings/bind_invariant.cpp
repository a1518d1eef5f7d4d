// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "invariant.h"

#include <torch/csrc/Exceptions.h>
#include <torch/library.h>

namespace py = pybind11;

namespace torchcow {

namespace {

/// What torch and pybind11 turn into torchcow.errors.InternalError.
class PythonInternalError final : public torch::PyTorchError {
 public:
  using torch::PyTorchError::PyTorchError;
  PyObject* python_type() override {
    try {
      return py::module_::import("torchcow.errors").attr("InternalError").ptr();  // the module keeps it
    } catch (const py::error_already_set&) {
      return PyExc_AssertionError;  // the interpreter is going down
    }
  }
};

void fail_in_python(const std::string& message) { throw PythonInternalError(message); }

py::dict sentences() {
  py::dict dict;
  for (std::size_t number = 1; number <= invariant::count; ++number) {
    dict[py::str("I" + std::to_string(number))] = invariant::sentence(static_cast<Invariant>(number));
  }
  return dict;
}

void break_invariant(std::int64_t number) {
  const int value = static_cast<int>(number);
  invariant::fail(invariant::Check{static_cast<Invariant>(number), "false", "number", __FILE__, __LINE__}, value);
}

}  // namespace

void bind_invariant(py::module_& module) {
  invariant::set_failure_handler(&fail_in_python);
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (PythonInternalError& internal) {
      PyErr_SetString(internal.python_type(), internal.what());
    }
  });
  module.def("invariants", &sentences);
  module.def("checks_invariants", [] { return invariant::enabled; });
  module.def("break_invariant", &break_invariant, py::arg("number"));
}

}  // namespace torchcow
