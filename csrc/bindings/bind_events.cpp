// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "events.h"
#include "share.h"

#include <ATen/core/Tensor.h>

#include <optional>

namespace py = pybind11;

namespace torchcow {

namespace {

std::optional<Event> tensor_cause(const at::Tensor& tensor) {
  auto* storage = storage_with_bytes(tensor);
  if (storage == nullptr) return std::nullopt;
  auto event = last_event(*storage);
  if (!event && tiny(storage->device(), storage->nbytes())) {  // not recorded: the size alone says why
    event.emplace(Way::eager, Reason::tiny, "torchcow.clone", storage->nbytes(), storage->device(), storage);
  }
  return event;
}

}  // namespace

void bind_events(py::module_& module) {
  py::class_<Event>(module, "Event")
      .def_property_readonly("way", [](const Event& self) { return to_string(self.way); })
      .def_readonly("operator", &Event::operator_name)
      .def_readonly("bytes", &Event::bytes)
      .def_property_readonly("reason", [](const Event& self) { return to_string(self.reason); })
      .def_property_readonly("explanation", [](const Event& self) { return describe(self.reason); })
      .def_property_readonly("device", [](const Event& self) { return self.device.str(); })
      .def_property_readonly("storage", [](const Event& self) { return identity_of(self.storage); });
  module.def("events", &events, py::arg("clear"));
  module.def("cause", &tensor_cause, py::arg("tensor"));
}

}  // namespace torchcow
