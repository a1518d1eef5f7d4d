// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "barrier.h"
#include "cuda_kernels.h"
#include "write_hook.h"

#include <string>

namespace py = pybind11;

namespace torchcow {

namespace {

/// What this extension was compiled for, and what it installed when it was loaded.
struct BuildInfo {
  std::string torch = TORCHCOW_TORCH_VERSION;
  std::string write_hook = write_hook::name;
  std::size_t covered_operators = torchcow::covered_operators();
  std::string cuda_kernels = cuda_kernels_status();
};

}  // namespace

void bind_build(py::module_& module) {
  py::class_<BuildInfo>(module, "BuildInfo")
      .def_readonly("torch", &BuildInfo::torch)
      .def_readonly("write_hook", &BuildInfo::write_hook)
      .def_readonly("covered_operators", &BuildInfo::covered_operators)
      .def_readonly("cuda_kernels", &BuildInfo::cuda_kernels);
  module.def("build_info", [] { return BuildInfo(); });
}

}  // namespace torchcow
