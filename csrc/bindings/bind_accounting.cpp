// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "accounting.h"

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace py = pybind11;

namespace torchcow {

namespace {

/// What the storage of one tensor takes, with the identity of that storage.
struct TensorUsage {
  std::uintptr_t storage;
  Usage usage;

  [[nodiscard]] std::uintptr_t block() const { return identity_of(usage.block); }
  [[nodiscard]] bool shared() const { return usage.block_sharers > 1; }
  /// What holds the bytes: the block, or else the storage.
  [[nodiscard]] std::uintptr_t memory() const { return usage.block != nullptr ? block() : storage; }
  [[nodiscard]] std::size_t allocated() const { return usage.block != nullptr ? usage.block_bytes : usage.bytes; }
};

std::optional<TensorUsage> tensor_usage(const at::Tensor& tensor) {
  const auto* storage = storage_with_bytes(tensor);
  if (storage == nullptr) return std::nullopt;
  return TensorUsage{identity_of(storage), usage(*storage)};
}

std::vector<std::optional<TensorUsage>> tensor_usages(const py::iterable& tensors) {
  std::vector<std::optional<TensorUsage>> usages;
  for (const auto tensor : tensors) usages.push_back(tensor_usage(tensor.cast<at::Tensor>()));
  return usages;
}

}  // namespace

void bind_accounting(py::module_& module) {
  py::class_<TensorUsage>(module, "Usage")
      .def_readonly("storage", &TensorUsage::storage)
      .def_property_readonly("block", &TensorUsage::block)
      .def_property_readonly("block_bytes", [](const TensorUsage& self) { return self.usage.block_bytes; })
      .def_property_readonly("sharers", [](const TensorUsage& self) { return self.usage.block_sharers; })
      .def_property_readonly("bytes", [](const TensorUsage& self) { return self.usage.bytes; })
      .def_property_readonly("offset", [](const TensorUsage& self) { return self.usage.offset; })
      .def_property_readonly("shared", &TensorUsage::shared)
      .def_property_readonly("memory", &TensorUsage::memory)
      .def_property_readonly("allocated", &TensorUsage::allocated);
  module.def("usage", &tensor_usage, py::arg("tensor"));
  module.def("usages", &tensor_usages, py::arg("tensors"));

  py::class_<Totals>(module, "Totals")
      .def_readonly("blocks", &Totals::blocks)
      .def_readonly("sharers", &Totals::sharers)
      .def_readonly("logical_bytes", &Totals::logical_bytes)
      .def_readonly("unique_bytes", &Totals::unique_bytes)
      .def_readonly("retired_blocks", &Totals::retired_blocks)
      .def_readonly("retired_bytes", &Totals::retired_bytes)
      .def_readonly("kept_bytes", &Totals::kept_bytes)
      .def_readonly("reserved_bytes", &Totals::reserved_bytes)
      .def_readonly("forgotten_events", &Totals::forgotten_events);
  module.def("totals", &totals);
}

}  // namespace torchcow
