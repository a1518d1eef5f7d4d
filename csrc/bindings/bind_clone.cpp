// SPDX-License-Identifier: Apache-2.0

#include "bindings.h"

#include "clone.h"

namespace py = pybind11;

namespace torchcow {

void bind_clone(py::module_& module) {
  module.def("clone", &clone, py::arg("source"), py::arg("memo"), py::arg("strict"), py::arg("reducers") = py::none());
  module.def("patched_deepcopy", &patched_deepcopy, py::arg("source"), py::arg("memo"));
  module.def("ordinary_deepcopy", &ordinary_deepcopy, py::arg("source"), py::arg("memo"));
  module.def("set_patch", &set_patch, py::arg("excluded"));
  module.def("set_remember", &set_remember, py::arg("remember"), py::arg("classes"));
}

}  // namespace torchcow
