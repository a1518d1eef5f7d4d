// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "reading_scope.h"

#include <memory>

namespace py = pybind11;

namespace torchcow {

void bind_reading(py::module_& module) {
  using Outcome = ReadingScope::Outcome;
  py::class_<Outcome>(module, "ReadingOutcome")
      .def_readonly("stayed", &Outcome::stayed)
      .def_readonly("damaged", &Outcome::damaged)
      .def_readonly("referenced", &Outcome::referenced);
  py::class_<ReadingScope>(module, "ReadingScope")
      .def("covered", &ReadingScope::covered)
      .def("end", &ReadingScope::end)
      .def("isolate", &ReadingScope::isolate, py::arg("indices"));
  module.def(
      "begin_reading",
      [](const py::list& tensors, bool checksum) { return std::make_unique<ReadingScope>(tensors, checksum); },
      py::arg("tensors"), py::arg("checksum"));
}

}  // namespace torchcow
