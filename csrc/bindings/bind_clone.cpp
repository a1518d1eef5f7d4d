#include "bindings.h"

#include "materialize.h"
#include "share.h"
#include "write_hook.h"

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Storage.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <unordered_map>
#include <unordered_set>

namespace py = pybind11;

namespace torchcow {

namespace {

bool is_plain(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  return tensor.layout() == at::kStrided && impl->has_storage() && !tensor.is_quantized() && !tensor.is_nested() &&
         !impl->has_symbolic_sizes_strides() && !impl->is_python_dispatch() &&
         !impl->key_set().has_any(c10::functorch_transforms_ks | c10::functorch_batched_ks) &&
         impl->key_set().has(c10::DispatchKey::Dense);
}

/// Does a mode or a function transform see each operator of this thread? What a deep copy runs is its business
/// then: a fake tensor mode answers with fake tensors, a tracer records.
bool watched() {
  return c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

void copied(Reason reason, std::size_t bytes, c10::Device device) {
  record(Kind::eager, Way::eager, reason, "torchcow.clone", bytes, device);
}

/// A deep copy of a parameter starts at an aligned address, and kernels look at that: MKL's matrix-vector product
/// rounds differently where the matrix does not start at a multiple of 16 bytes (measured; at 16 it does not), and CUDA
/// kernels load vectors of 16 bytes. A clone that starts elsewhere would compute other last bits.
constexpr std::size_t vector_bytes = 16;

/// The data of the clone of a parameter over its own span, as `data.clone(preserve_format)` lays it
/// out, or None: then the caller makes that call.
py::object share_parameter(SharingCall& call, const at::Tensor& source) {
  if (!is_plain(source) || watched()) {
    copied(Reason::kind, 0, source.device());
    return py::none();
  }
  auto* impl = source.unsafeGetTensorImpl();
  const auto bytes = static_cast<std::size_t>(impl->numel()) * impl->itemsize();
  const auto offset = static_cast<std::size_t>(impl->storage_offset()) * impl->itemsize();
  if (source.is_conj() || source.is_neg() || !impl->is_non_overlapping_and_dense() || offset % vector_bytes != 0) {
    copied(Reason::layout, bytes, source.device());
    return py::none();
  }
  auto& storage = *impl->unsafe_storage().unsafeGetStorageImpl();
  Reason reason;
  auto shared = call.share(storage, offset, bytes, reason);
  if (!shared) {
    copied(reason, bytes, source.device());
    return py::none();
  }
  call.meet(*impl);
  const auto backend = c10::computeDispatchKey(impl->dtype().toScalarType(), at::kStrided, source.device());
  auto clone = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(shared)), c10::DispatchKeySet(backend),
                                                        impl->dtype());
  clone.unsafeGetTensorImpl()->set_sizes_and_strides(impl->sizes(), impl->strides());
  return py::cast(clone);
}

/// A storage that shares the memory of `source`, or None.
py::object share_storage(SharingCall& call, py::handle source) {
  const auto& storage = THPStorage_Unpack(source.ptr());
  auto& impl = *storage.unsafeGetStorageImpl();
  if (watched()) {
    copied(Reason::kind, impl.nbytes(), impl.device());
    return py::none();
  }
  Reason reason;
  auto shared = call.share(impl, 0, impl.nbytes(), reason);
  if (!shared) {
    copied(reason, impl.nbytes(), impl.device());
    return py::none();
  }
  return py::reinterpret_steal<py::object>(THPStorage_Wrap(c10::Storage(std::move(shared))));
}

void meet(SharingCall& call, const at::Tensor& source) { call.meet(*source.unsafeGetTensorImpl()); }

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

/// Meets every tensor among `objects` (all that the garbage collector tracks) that lies on one of `storages`.
void meet_all(SharingCall& call, const py::list& objects, const std::unordered_set<const c10::StorageImpl*>& storages) {
  auto* tensor_type = reinterpret_cast<PyTypeObject*>(THPVariableClass);
  for (auto object : objects) {
    // No isinstance: it would ask each object for its __class__, which runs foreign code.
    if (!PyType_IsSubtype(Py_TYPE(object.ptr()), tensor_type)) continue;
    const auto& tensor = THPVariable_Unpack(object.ptr());
    if (!tensor.defined() || !tensor.unsafeGetTensorImpl()->has_storage()) continue;
    if (storages.contains(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl())) meet(call, tensor);
  }
}

bool explained(const SharingCall& call, const SharingCall::Made& made) {
  const auto references = references_to(*made.source, call.met(*made.source));
  // One more: `made` itself.
  return references.all_explained &&
         made.source.use_count() <= references.tensors + python_references(*made.source) + 1;
}

/// Ends the call: confirms each block that it made, or takes the share back where somebody may hold a
/// raw pointer. `tracked_objects` is called at most once, as it is slow.
void finish(SharingCall& call, bool strict, const py::function& tracked_objects) {
  std::vector<const SharingCall::Made*> doubtful;
  std::unordered_set<const c10::StorageImpl*> storages;
  for (const auto& made : call.made()) {
    // An array whose tensor is among the met ones leaves no other trace than a storage that NumPy has seen.
    const bool unseen = !strict || made.source->resizable();
    if (unseen && explained(call, made)) {
      SharingCall::confirm(made);
    } else {
      doubtful.push_back(&made);
      storages.insert(made.source.get());
    }
  }
  if (doubtful.empty()) return;
  if (!strict) meet_all(call, tracked_objects(), storages);
  for (const auto* made : doubtful) {
    if (!strict && made->source->resizable() && explained(call, *made)) {
      SharingCall::confirm(*made);
    } else {
      SharingCall::take_back(*made, strict ? Reason::strict : Reason::outside);
    }
  }
}

void materialize_tensors(const std::vector<at::Tensor>& tensors) {
  std::vector<WriteTarget> targets;
  for (const auto& tensor : tensors) {
    if (tensor.unsafeGetTensorImpl()->has_storage()) {
      targets.push_back({tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()});
    }
  }
  py::gil_scoped_release unlocked;
  materialize(targets, {"torchcow.materialize", false});
}

/// A Python function from the identity of a storage to a dotted name or None; lives as long as the process.
py::function* name_finder = nullptr;

std::string find_name(const c10::StorageImpl& storage) {
  if (name_finder == nullptr || !Py_IsInitialized()) return {};
  const py::gil_scoped_acquire locked;
  try {
    const py::object name = (*name_finder)(reinterpret_cast<std::uintptr_t>(&storage));
    return name.is_none() ? std::string() : name.cast<std::string>();
  } catch (py::error_already_set&) {
    return {};  // the error that is being described matters more
  }
}

void set_name_finder(const py::function& finder) {
  name_finder = new py::function(finder);
  set_name_resolver(&find_name);
}

void copied_tensor(const at::Tensor& tensor) {
  copied(Reason::kind, tensor.unsafeGetTensorImpl()->has_storage() ? tensor.nbytes() : 0, tensor.device());
}

}  // namespace

void bind_clone(py::module_& module) {
  py::class_<SharingCall>(module, "SharingCall")
      .def(py::init<>())
      .def("share_parameter", &share_parameter, py::arg("source"))
      .def("share_storage", &share_storage, py::arg("source"))
      .def("meet", &meet, py::arg("source"))
      .def("finish", &finish, py::arg("strict"), py::arg("tracked_objects"));
  module.def("record_copied_tensor", &copied_tensor, py::arg("tensor"));
  module.def("materialize", &materialize_tensors, py::arg("tensors"));
  module.def("set_name_finder", &set_name_finder, py::arg("finder"));
}

}  // namespace torchcow
