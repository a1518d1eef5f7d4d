// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "materialize.h"
#include "storage.h"

#include <ATen/core/Tensor.h>

#include <vector>

namespace py = pybind11;

namespace torchcow {

namespace {

void materialize_tensors(const std::vector<at::Tensor>& tensors) {
  std::vector<WriteTarget> targets;
  for (const auto& tensor : tensors) {
    if (auto* storage = storage_of(tensor)) targets.push_back({storage});
  }
  py::gil_scoped_release unlocked;
  materialize(targets, {"torchcow.materialize", false});
}

}  // namespace

void bind_materialize(py::module_& module) { module.def("materialize", &materialize_tensors, py::arg("tensors")); }

}  // namespace torchcow
