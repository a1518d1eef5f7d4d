#include "bindings.h"

#include "reading_scope.h"

#include <memory>
#include <utility>

namespace py = pybind11;

namespace torchcow {

namespace {

/// (stayed, damaged, looked into) for each tensor
py::list end(ReadingScope& scope) {
  py::list list;
  for (const auto& outcome : scope.end()) {
    list.append(py::make_tuple(outcome.stayed, outcome.damaged, outcome.looked_into));
  }
  return list;
}

}  // namespace

void bind_reading(py::module_& module) {
  py::class_<ReadingScope>(module, "ReadingScope")
      .def("covered", &ReadingScope::covered)
      .def("end", &end)
      .def("isolate", &ReadingScope::isolate, py::arg("indices"));
  module.def(
      "begin_reading",
      [](py::list tensors, bool checksum) { return std::make_unique<ReadingScope>(std::move(tensors), checksum); },
      py::arg("tensors"), py::arg("checksum"));
}

}  // namespace torchcow
