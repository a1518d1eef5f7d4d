// SPDX-License-Identifier: Apache-2.0
#include "census.h"

#include "storage.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

namespace torchcow {

namespace {

using Bases = std::unordered_map<const c10::TensorImpl*, std::size_t>;

/// How many of `tensors` hold which tensor as the base of a view.
Bases bases_of(const std::vector<SeenTensor>& tensors) {
  Bases bases;
  for (const auto& tensor : tensors) {
    if (tensor->autograd_meta() == nullptr) continue;
    const auto* view = dynamic_cast<torch::autograd::DifferentiableViewMeta*>(tensor->autograd_meta());
    if (view == nullptr) continue;
    if (view->has_bw_view()) ++bases[view->get_backward_view().base_.unsafeGetTensorImpl()];
    if (view->has_fw_view() && !view->shared_view_info()) ++bases[view->get_forward_view().base_.unsafeGetTensorImpl()];
  }
  return bases;
}

TensorReferences known_references(const c10::TensorImpl& tensor, const Bases& bases) {
  const auto views = bases.find(&tensor);
  const auto* meta = static_cast<torch::autograd::AutogradMeta*>(tensor.autograd_meta());
  return {
      .python_object = tensor.pyobj_slot()->load_pyobj() != nullptr ? 1U : 0U,
      .grad_accumulator = meta != nullptr && !meta->grad_accumulator_.expired() ? 1U : 0U,
      .views = views != bases.end() ? views->second : 0U,
  };
}

}  // namespace

void Census::note_seen(const c10::StorageImpl& storage, c10::TensorImpl& tensor) {
  auto& tensors = seen_[&storage];
  const auto is_same = [&](const SeenTensor& seen) { return seen.get() == &tensor; };
  if (std::none_of(tensors.begin(), tensors.end(), is_same)) tensors.push_back(SeenTensor::reclaim_copy(&tensor));
}

const std::vector<SeenTensor>& Census::seen(const c10::StorageImpl& storage) const {
  static const std::vector<SeenTensor> none;
  const auto tensors = seen_.find(&storage);
  return tensors == seen_.end() ? none : tensors->second;
}

TensorReferences Census::references_to(const c10::StorageImpl& storage, const c10::TensorImpl& tensor) const {
  return known_references(tensor, bases_of(seen(storage)));
}

bool Census::accounts_for_all_references(const c10::StorageImpl& storage, std::size_t held) const {
  const auto& tensors = seen(storage);
  const auto bases = bases_of(tensors);
  std::size_t over_storage = 0;
  for (const auto& tensor : tensors) {
    if (storage_of(*tensor) != &storage) continue;  // user code within a clone may have given it another storage
    ++over_storage;
    if (tensor.use_count() > known_references(*tensor, bases).total()) return false;
  }
  return c10::raw::intrusive_ptr::use_count(const_cast<c10::StorageImpl*>(&storage)) <=
         over_storage + python_references(storage) + held;
}

void visit_tracked_tensors(c10::function_ref<void(c10::TensorImpl&, c10::StorageImpl&)> visit) {
  auto* tensor_type = reinterpret_cast<PyTypeObject*>(THPVariableClass);
  for (auto object : py::list(py::module_::import("gc").attr("get_objects")())) {
    // No isinstance: it would ask each object for its __class__, which runs foreign code.
    if (!PyType_IsSubtype(Py_TYPE(object.ptr()), tensor_type)) continue;
    const auto& tensor = THPVariable_Unpack(object.ptr());
    if (!tensor.defined()) continue;
    auto* impl = tensor.unsafeGetTensorImpl();
    if (auto* storage = storage_of(*impl)) visit(*impl, *storage);
  }
}

}  // namespace torchcow
