// SPDX-License-Identifier: Apache-2.0

#include "bindings.h"

#include "barrier.h"
#include "clone.h"
#include "cuda_kernels.h"
#include "inter_op.h"
#include "materialize.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "The native engine of torchcow.";
  torchcow::refuse_other_torch();
  torchcow::install_gil_hooks();
  torchcow::inter_op::watch();
  torchcow::install_write_hook();
  torchcow::install_barrier();
  torchcow::install_cuda_kernels();
  torchcow::install_entries();
  torchcow::bind_clone(module);
  torchcow::bind_invariant(module);
  torchcow::bind_materialize(module);
  torchcow::bind_captured(module);
  torchcow::bind_reading(module);
  torchcow::bind_reshare(module);
  torchcow::bind_reserve(module);
  torchcow::bind_accounting(module);
  torchcow::bind_events(module);
  torchcow::bind_names(module);
  torchcow::bind_listener(module);
  torchcow::bind_build(module);
  torchcow::bind_testing(module);
}
