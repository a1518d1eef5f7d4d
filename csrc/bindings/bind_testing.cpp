// SPDX-License-Identifier: Apache-2.0

#include "bindings.h"

#include "allocate.h"
#include "census.h"
#include "materialize.h"
#include "retire.h"
#include "share.h"
#include "verify.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <torch/csrc/autograd/python_variable.h>
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

/// What `verify` found.
struct Verification {
  std::size_t blocks = 0;  ///< that were compared
  std::vector<Damage> damages;
};

Verification verify_blocks() {
  Verification verification;
  verification.damages = verify(verification.blocks);
  return verification;
}

struct ReferenceCounts {
  std::size_t counted, python_object, grad_accumulator, views, census, storage_counted, storage_tensors,
      storage_python_object;
  bool accounts_for_all;
};

/// A census of `tensors`, which share a storage: for the first one, the references that torch counts and those that the
/// census knows, by holder; and the same for the storage.
ReferenceCounts count_references(const py::list& tensors) {
  // Unpacked from Python, as the conversion to a tensor would hold one reference more.
  const auto impl = [](py::handle object) { return THPVariable_Unpack(object.ptr()).unsafeGetTensorImpl(); };
  const auto* tensor = impl(tensors[0]);
  auto& storage = *storage_of(*tensor);
  Census census;
  for (auto object : tensors) census.note_seen(storage, *impl(object));
  const auto known = census.references_to(storage, *tensor);
  ReferenceCounts counts;
  counts.counted = census.seen(storage).front().use_count();
  counts.python_object = known.python_object;
  counts.grad_accumulator = known.grad_accumulator;
  counts.views = known.views;
  counts.census = known.census;
  counts.storage_counted = c10::raw::intrusive_ptr::use_count(&storage);
  counts.storage_tensors = census.seen(storage).size();
  counts.storage_python_object = python_references(storage);
  counts.accounts_for_all = census.accounts_for_all_references(storage, 0);
  return counts;
}

}  // namespace

void bind_testing(py::module_& module) {
  module.def("set_tiny_bytes", &set_tiny_bytes, py::arg("bytes"));
  module.def("fail_allocation", &fail_allocation, py::arg("after"));
  module.def("poison_skipped", &poison_skipped, py::arg("on"));
  module.def("arm_checksums", &arm_fingerprints, py::arg("on"));
  py::class_<Damage>(module, "Damage")
      .def_readonly("block", &Damage::block)
      .def_readonly("bytes", &Damage::bytes)
      .def_property_readonly("device", [](const Damage& self) { return self.device.str(); });
  py::class_<Verification>(module, "Verification")
      .def_readonly("blocks", &Verification::blocks)
      .def_readonly("damages", &Verification::damages);
  module.def("verify", &verify_blocks);
  module.def("alone", &alone);
  py::class_<ReferenceCounts>(module, "ReferenceCounts")
      .def_readonly("counted", &ReferenceCounts::counted)
      .def_readonly("python_object", &ReferenceCounts::python_object)
      .def_readonly("grad_accumulator", &ReferenceCounts::grad_accumulator)
      .def_readonly("views", &ReferenceCounts::views)
      .def_readonly("census", &ReferenceCounts::census)
      .def_readonly("storage_counted", &ReferenceCounts::storage_counted)
      .def_readonly("storage_tensors", &ReferenceCounts::storage_tensors)
      .def_readonly("storage_python_object", &ReferenceCounts::storage_python_object)
      .def_readonly("accounts_for_all", &ReferenceCounts::accounts_for_all);
  module.def("count_references", &count_references, py::arg("tensors"));
  module.def("load_test_operators", &load_test_operators);
  module.def(
      "allow_device", [](const std::string& type) { allow_device(c10::Device(type).type()); }, py::arg("type"));
}

}  // namespace torchcow
