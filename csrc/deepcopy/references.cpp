#include "references.h"

#include "call.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <unordered_map>
#include <unordered_set>

namespace torchcow {

namespace {

/// The tensors over one storage, and whether all references to them can be explained.
struct References {
  std::size_t tensors = 0;
  bool all_explained = true;
};

/// A tensor is held by its Python object; by its gradient accumulator, which is harmless; and by the views
/// of it that we know. A consumer of DLPack, or a graph that saved it, holds one reference more.
References references_to(const c10::StorageImpl& source, const std::vector<MetTensor>& tensors) {
  std::unordered_map<const c10::TensorImpl*, std::size_t> bases;
  for (const auto& tensor : tensors) {
    if (tensor->autograd_meta() == nullptr) continue;
    const auto* view = dynamic_cast<torch::autograd::DifferentiableViewMeta*>(tensor->autograd_meta());
    if (view == nullptr) continue;
    if (view->has_bw_view()) ++bases[view->get_backward_view().base_.unsafeGetTensorImpl()];
    if (view->has_fw_view() && !view->shared_view_info()) ++bases[view->get_forward_view().base_.unsafeGetTensorImpl()];
  }
  References found;
  for (const auto& tensor : tensors) {
    // User code within the clone may have given it another storage.
    if (!tensor->has_storage() || tensor->unsafe_storage().unsafeGetStorageImpl() != &source) continue;
    ++found.tensors;
    // Its Python object, and the call.
    std::size_t explained = (tensor->pyobj_slot()->load_pyobj() != nullptr ? 1 : 0) + 1 + bases[tensor.get()];
    const auto* meta = static_cast<torch::autograd::AutogradMeta*>(tensor->autograd_meta());
    if (meta != nullptr && !meta->grad_accumulator_.expired()) ++explained;
    found.all_explained = found.all_explained && tensor.use_count() <= explained;
  }
  return found;
}

}  // namespace

bool explained(const c10::StorageImpl& storage, const std::vector<MetTensor>& tensors, std::size_t own) {
  const auto references = references_to(storage, tensors);
  return references.all_explained && c10::raw::intrusive_ptr::use_count(const_cast<c10::StorageImpl*>(&storage)) <=
                                         references.tensors + python_references(storage) + own;
}

void visit_tracked_tensors(c10::function_ref<void(c10::TensorImpl&, c10::StorageImpl&)> visit) {
  auto* tensor_type = reinterpret_cast<PyTypeObject*>(THPVariableClass);
  for (auto object : py::list(py::module_::import("gc").attr("get_objects")())) {
    // No isinstance: it would ask each object for its __class__, which runs foreign code.
    if (!PyType_IsSubtype(Py_TYPE(object.ptr()), tensor_type)) continue;
    const auto& tensor = THPVariable_Unpack(object.ptr());
    if (!tensor.defined() || !tensor.unsafeGetTensorImpl()->has_storage()) continue;
    auto* impl = tensor.unsafeGetTensorImpl();
    if (auto* storage = impl->unsafe_storage().unsafeGetStorageImpl()) visit(*impl, *storage);
  }
}

namespace {

bool confirmed(const SharingCall& call, const SharingCall::Made& made) {
  return explained(*made.source, call.met(*made.source), 1);  // `made` itself holds it
}

}  // namespace

void Call::finish() {
  std::vector<const SharingCall::Made*> doubtful;
  std::unordered_set<const c10::StorageImpl*> storages;
  for (const auto& made : sharing.made()) {
    // An array whose tensor is among the met ones leaves no other trace than a storage that NumPy has seen.
    const bool unseen = !strict_ || made.source->resizable();
    if (unseen && confirmed(sharing, made)) {
      SharingCall::confirm(made);
    } else {
      doubtful.push_back(&made);
      storages.insert(made.source.get());
    }
  }
  if (doubtful.empty()) return;
  // All that the garbage collector tracks: slow, so at most once.
  if (!strict_) {
    visit_tracked_tensors([&](auto& tensor, auto& storage) {
      if (storages.contains(&storage)) sharing.meet(tensor);
    });
  }
  for (const auto* made : doubtful) {
    if (!strict_ && made->source->resizable() && confirmed(sharing, *made)) {
      SharingCall::confirm(*made);
    } else {
      SharingCall::take_back(*made, strict_ ? Reason::strict : Reason::outside);
    }
  }
}

}  // namespace torchcow
