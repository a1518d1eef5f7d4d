// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "reshare.h"

#include <ATen/core/Tensor.h>

namespace py = pybind11;

namespace torchcow {

namespace {

bool join_tensors(const at::Tensor& joiner, const at::Tensor& joiner_clone, const at::Tensor& keeper_clone) {
  auto* const storage = storage_with_bytes(joiner);
  const auto *old_clone = storage_with_bytes(joiner_clone), *new_clone = storage_with_bytes(keeper_clone);
  if (storage == nullptr || old_clone == nullptr || new_clone == nullptr) return false;
  return join(*storage, *old_clone, *new_clone);
}

}  // namespace

void bind_reshare(py::module_& module) {
  module.def("join", &join_tensors, py::arg("joiner"), py::arg("joiner_clone"), py::arg("keeper_clone"));
}

}  // namespace torchcow
