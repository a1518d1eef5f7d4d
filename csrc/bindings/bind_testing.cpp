#include "bindings.h"

#include "allocate.h"
#include "captured.h"
#include "materialize.h"
#include "retire.h"
#include "share.h"
#include "verify.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

namespace py = pybind11;

namespace torchcow {

namespace {

/// What CUDA's multi-tensor kernels do: take the address for reading, and write there.
void write_through_const(const at::Tensor& self, const at::Scalar& value) {
  auto address = const_cast<void*>(self.const_data_ptr());
  at::from_blob(address, self.sizes(), self.strides(), self.options()).fill_(value);
}

void write_const_(at::Tensor& self, const at::Scalar& value) { write_through_const(self, value); }

void write_const_list_(at::TensorList self, const at::Scalar& value) {
  for (const auto& tensor : self) write_through_const(tensor, value);
}

/// Defines the operators again if they were removed; a test of late registration may ask twice.
void load_test_operators() {
  static torch::Library* library = nullptr;
  if (library != nullptr) return;
  library = new torch::Library(torch::Library::DEF, "torchcow_test", std::nullopt, __FILE__, __LINE__);
  library->def("write_const_(Tensor(a!) self, Scalar value) -> ()");
  library->def("write_const_list_(Tensor(a!)[] self, Scalar value) -> ()");
  library->impl("write_const_", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(write_const_)));
  library->impl("write_const_list_",
                torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(write_const_list_)));
}

py::tuple verify_blocks() {
  std::size_t looked_at = 0;
  py::list damaged;
  for (const auto& damage : verify(looked_at)) {
    damaged.append(py::make_tuple(damage.block, damage.bytes, damage.device.str()));
  }
  return py::make_tuple(looked_at, damaged);
}

}  // namespace

void bind_testing(py::module_& module) {
  module.def("set_tiny_bytes", &set_tiny_bytes, py::arg("bytes"));
  module.def("fail_allocation", &fail_allocation, py::arg("after"));
  module.def("poison_skipped", &poison_skipped, py::arg("on"));
  module.def("arm_fingerprints", &arm_fingerprints, py::arg("on"));
  module.def("verify", &verify_blocks);
  module.def("alone", &alone);
  module.def("load_test_operators", &load_test_operators);
  module.def(
      "mark_captured", [](const at::Tensor& tensor) { captured::mark(*tensor.storage().unsafeGetStorageImpl()); },
      py::arg("tensor"));
  module.def(
      "allow_device", [](const std::string& type) { allow_device(c10::Device(type).type()); }, py::arg("type"));
}

}  // namespace torchcow
