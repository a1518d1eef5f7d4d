// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "first_write_error.h"

#include <string>

namespace py = pybind11;

namespace torchcow {

namespace {

/// A Python function from the identity of a storage to a dotted name or None. It lives as long as the process.
py::function* name_finder = nullptr;

std::string find_name(const c10::StorageImpl* storage) {
  if (name_finder == nullptr || !Py_IsInitialized()) return {};
  const py::gil_scoped_acquire locked;
  try {
    const py::object name = (*name_finder)(identity_of(storage));
    return name.is_none() ? std::string() : name.cast<std::string>();
  } catch (py::error_already_set&) {
    return {};  // the error that is being described matters more
  }
}

void set_name_finder(const py::function& finder) {
  name_finder = new py::function(finder);
  set_name_resolver(&find_name);
}

}  // namespace

void bind_names(py::module_& module) { module.def("set_name_finder", &set_name_finder, py::arg("finder")); }

}  // namespace torchcow
