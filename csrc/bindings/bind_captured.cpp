// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "captured.h"

#include <ATen/core/Tensor.h>

namespace py = pybind11;

namespace torchcow {

void bind_captured(py::module_& module) {
  module.def("graph_was_captured", &captured::note);
  module.def(
      "mark_captured", [](const at::Tensor& tensor) { captured::mark(*tensor.storage().unsafeGetStorageImpl()); },
      py::arg("tensor"));
}

}  // namespace torchcow
