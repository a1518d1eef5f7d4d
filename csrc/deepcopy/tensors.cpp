// SPDX-License-Identifier: Apache-2.0

#include "tensors.h"

#include "accounting.h"
#include "protocol.h"
#include "write_hook.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/Storage.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>

namespace torchcow {

namespace {

bool is_plain(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  return tensor.layout() == at::kStrided && impl->has_storage() && !tensor.is_quantized() && !tensor.is_nested() &&
         !impl->has_symbolic_sizes_strides() && !impl->is_python_dispatch() &&
         !impl->key_set().has_any(c10::functorch_transforms_ks | c10::functorch_batched_ks) &&
         impl->key_set().has(c10::DispatchKey::Dense);
}

/// Does a mode or a tracer see each operator of this thread, or each function that is called with a tensor? It must see
/// what a deep copy runs, too: a fake tensor mode returns fake tensors, a tracer records.
bool operators_are_watched() {
  if (c10::impl::TorchDispatchModeTLS::any_modes_set() ||
      c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
      c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Tracer)) {
    return true;
  }
  // torch.set_default_device leaves a mode behind for good, and that looks only at what makes tensors from nothing.
  for (int64_t i = 0; i < at::impl::PythonTorchFunctionTLS::stack_len(); ++i) {
    PyObject* mode = at::impl::PythonTorchFunctionTLS::get_stack_at(i)->ptr(getPyInterpreter());
    if (!PyType_IsSubtype(Py_TYPE(mode), Protocol::get().device_mode_type)) return true;
  }
  return false;
}

void record_copy(Reason reason, const c10::Storage& copy) {
  auto* storage = copy.unsafeGetStorageImpl();
  // Why a tiny storage is not shared can be seen from its size.
  record(Way::eager, reason, "torchcow.clone", storage->nbytes(), storage->device(),
         reason == Reason::tiny ? nullptr : storage);
}

void record_copy(Reason reason, const at::Tensor& copy) {
  if (copy.unsafeGetTensorImpl()->has_storage()) {
    record_copy(reason, copy.unsafeGetTensorImpl()->unsafe_storage());
  } else {
    record(Way::eager, reason, "torchcow.clone", 0, copy.device());
  }
}

/// A deep copy of a parameter starts at an aligned address, and kernels look at that: MKL's matrix-vector product
/// rounds differently where the matrix does not start at a multiple of 16 bytes (measured; at 16 it does not), and CUDA
/// kernels load vectors of 16 bytes. A clone that starts elsewhere would compute other last bits.
constexpr std::size_t vector_bytes = 16;

/// On the CPU, what is too small to share is copied here. A zero tensor has bytes to copy, but no memory.
bool copies_eagerly(Reason reason, const c10::StorageImpl& source) {
  return reason == Reason::tiny && source.device().is_cpu() && (source.nbytes() == 0 || source.data() != nullptr);
}

/// A storage of its own with the bytes [offset, offset + bytes) of `source`, on the CPU.
c10::Storage copy_of_bytes(const c10::StorageImpl& source, std::size_t offset, std::size_t bytes) {
  auto* allocator = c10::GetCPUAllocator();
  auto data = allocator->allocate(bytes);
  if (bytes > 0) std::memcpy(data.get(), static_cast<const char*>(source.data()) + offset, bytes);
  return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes, std::move(data), allocator,
                                               /*resizable=*/true);
}

at::Tensor tensor_over(c10::Storage storage, const c10::TensorImpl& like, std::int64_t offset) {
  const auto key = c10::computeDispatchKey(like.dtype().toScalarType(), at::kStrided, like.device());
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), offset);
  return made;
}

/// torch has no kernel that copies these types, so a deep copy of such a parameter raises.
bool has_copy_kernel(c10::ScalarType type) {
  using c10::ScalarType;
  const bool sub_byte = (type >= ScalarType::UInt1 && type <= ScalarType::UInt7) ||
                        (type >= ScalarType::Int1 && type <= ScalarType::Int7);
  return !sub_byte && !c10::isQIntType(type);
}

/// `source.data.clone(memory_format=torch.preserve_format)`, sharing if it can.
at::Tensor parameter_data(Call& call, const at::Tensor& source) {
  auto* impl = source.unsafeGetTensorImpl();
  const auto bytes = static_cast<std::size_t>(impl->numel()) * impl->itemsize();
  const auto offset = static_cast<std::size_t>(impl->storage_offset()) * impl->itemsize();
  auto reason = Reason::layout;
  auto& storage = *impl->unsafe_storage().unsafeGetStorageImpl();
  if (!source.is_conj() && !source.is_neg() && impl->is_non_overlapping_and_dense() &&
      has_copy_kernel(source.scalar_type())) {
    if (offset % vector_bytes == 0) {
      if (auto shared = call.sharing.share(storage, offset, bytes, reason)) {
        call.note_seen(*impl);
        return tensor_over(c10::Storage(std::move(shared)), *impl, 0);
      }
    }
    if (copies_eagerly(reason, storage) && offset + bytes <= storage.nbytes()) {
      auto copy = copy_of_bytes(storage, offset, bytes);
      record_copy(reason, copy);
      return tensor_over(std::move(copy), *impl, 0);
    }
  }
  const py::gil_scoped_release unlocked;
  auto copy = source.variable_data().clone(at::MemoryFormat::Preserve);
  record_copy(reason, copy);
  return copy;
}

/// `source.clone()`, sharing if it can.
c10::Storage new_storage(Memo& memo, const c10::Storage& source) {
  auto& impl = *source.unsafeGetStorageImpl();
  auto reason = Reason::none;
  if (auto shared = memo.call().sharing.share(impl, 0, impl.nbytes(), reason)) return c10::Storage(std::move(shared));
  c10::Storage copy = copies_eagerly(reason, impl)
                          ? copy_of_bytes(impl, 0, impl.nbytes())
                          : THPStorage_Unpack(steal(THPStorage_Wrap(source)).attr("clone")().ptr());
  record_copy(reason, copy);
  return copy;
}

/// For a hidden memo: the copy of a storage, made once.
c10::Storage storage_once(Memo& memo, const c10::Storage& source) {
  if (const auto* known = memo.find_storage(source.unsafeGetStorageImpl())) return *known;
  auto copy = new_storage(memo, source);
  memo.put_storage(source, copy);
  return copy;
}

/// Is this Python object of a storage one that torch has made, with nothing added?
bool is_bare(PyObject* storage) { return Py_TYPE(storage) == Protocol::get().storage.type && !has_attributes(storage); }

/// The copy of a tensor's storage, or an empty one if torch's method must make it.
c10::Storage storage_copy(Memo& memo, const c10::Storage& source) {
  PyObject* known = source.unsafeGetStorageImpl()->pyobj_slot()->load_pyobj();
  if (memo.hidden() && (known == nullptr || is_bare(known))) return storage_once(memo, source);
  const auto object = steal(THPStorage_Wrap(source));
  auto copy = borrow(memo.find(object.ptr()));
  if (!copy) {
    copy = copy_storage(memo, object.ptr());
    if (!copy) return {};
    memo.finish(object.ptr(), copy.ptr());
  }
  return THPStorage_CheckTypeExact(Py_TYPE(copy.ptr())) ? THPStorage_Unpack(copy.ptr()) : c10::Storage();
}

/// Attributes that a deep copy of the tensor keeps, if they are no more than a few flags.
bool has_simple_attributes(PyObject* source) {
  PyObject* dict = existing_dict(source);
  if (dict == nullptr) return true;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) {
    if (!PyUnicode_CheckExact(key) || !Protocol::get().plainly_atomic(Py_TYPE(value))) return false;
    // `__deepcopy__` itself, and what torch keeps for tensors with symbolic sizes.
    if (PyUnicode_GET_LENGTH(key) == 0 || PyUnicode_READ_CHAR(key, 0) == '_') {
      if (PyUnicode_CompareWithASCIIString(key, "_is_buffer") != 0) return false;
    }
  }
  return true;
}

/// torch 2.13 has no named tensors any more.
template <class T>
bool has_names(const T& tensor) {
  if constexpr (requires { tensor.has_names(); }) return tensor.has_names();
  return false;
}

/// torch's method counts one version more for the copy of an inference tensor, if new memory is filled.
bool counts_another_version(const at::Tensor& tensor) {
  return tensor.is_inference() && at::globalContext().deterministicAlgorithms();
}

/// torch's method makes the copy's storage larger if the tensor's memory was freed (`untyped_storage().resize_(0)`).
bool fits_storage(const at::Tensor& tensor) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  return at::detail::computeStorageNbytes(impl->sizes(), impl->strides(), impl->itemsize(), impl->storage_offset()) <=
         impl->unsafe_storage().nbytes();
}

bool copies_like_plain_memory(const at::Tensor& tensor, PyObject* object) {
  return is_plain(tensor) && !counts_another_version(tensor) && fits_storage(tensor) &&
         (tensor.is_cpu() || tensor.is_cuda()) && !tensor.is_conj() && !tensor.is_neg() && !has_names(tensor) &&
         tensor.is_leaf() && has_simple_attributes(object);
}

py::object new_tensor(Memo& memo, const at::Tensor& source, PyObject* object) {
  auto* impl = source.unsafeGetTensorImpl();
  auto storage = storage_copy(memo, impl->unsafe_storage());
  if (!storage) return {};
  memo.call().note_seen(*impl);
  auto copy = tensor_over(std::move(storage), *impl, impl->storage_offset());
  copy.unsafeGetTensorImpl()->bump_version();  // torch makes it with set_
  if (source.requires_grad()) copy.set_requires_grad(true);
  auto result = steal(THPVariable_Wrap(copy));
  if (has_attributes(object)) {
    PyObject* attributes = existing_dict(object);
    auto copied_attributes = borrow(memo.find(attributes));
    if (!copied_attributes) {
      copied_attributes = steal(PyDict_Copy(attributes));
      memo.finish(attributes, copied_attributes.ptr());
    }
    check(PyObject_SetAttr(result.ptr(), Protocol::get().names.dict, copied_attributes.ptr()));
  }
  return result;
}

}  // namespace

py::object copy_parameter(Memo& memo, PyObject* source) {
  if (!check(inherits_method(source, Protocol::get().names.deepcopy)) == 1) return {};
  const auto& tensor = THPVariable_Unpack(source);
  if (!is_plain(tensor) || operators_are_watched()) return {};
  auto& protocol = Protocol::get();
  auto data = parameter_data(memo.call(), tensor);
  const bool requires_grad = tensor.requires_grad();
  if (Py_TYPE(source) == protocol.parameter.type && protocol.constructs_parameters()) {
    data.unsafeGetTensorImpl()->set_allow_tensor_metadata_change(true);
    if (requires_grad) data.set_requires_grad(true);
    return steal(THPVariable_Wrap(data, protocol.parameter.type));
  }
  return steal(PyObject_CallFunctionObjArgs(reinterpret_cast<PyObject*>(Py_TYPE(source)),
                                            steal(THPVariable_Wrap(data)).ptr(), requires_grad ? Py_True : Py_False,
                                            nullptr));
}

py::object copy_tensor(Memo& memo, PyObject* source) {
  auto& protocol = Protocol::get();
  if (protocol.treatment_of(protocol.storage.type) != Treatment::storage) return {};  // torch asks it for its copy
  const auto& tensor = THPVariable_Unpack(source);
  if (!copies_like_plain_memory(tensor, source) || c10::InferenceMode::is_enabled() || operators_are_watched())
    return {};
  const auto grad = tensor.grad();
  if (!grad.defined()) return new_tensor(memo, tensor, source);

  const auto object = steal(THPVariable_Wrap(grad));
  if (Py_TYPE(object.ptr()) != protocol.tensor.type || !copies_like_plain_memory(grad, object.ptr()) ||
      grad.grad().defined()) {
    return {};
  }
  auto result = new_tensor(memo, tensor, source);
  if (!result) return {};
  auto copy = borrow(memo.find(object.ptr()));
  if (!copy) {
    copy = new_tensor(memo, grad, object.ptr());
    if (!copy) return {};
    memo.put(object.ptr(), copy.ptr());
  }
  check(PyObject_SetAttrString(result.ptr(), "grad", copy.ptr()));
  return result;
}

py::object copy_storage(Memo& memo, PyObject* source) {
  if (!is_bare(source) || operators_are_watched()) return {};
  const auto& storage = THPStorage_Unpack(source);
  if (memo.hidden()) return steal(THPStorage_Wrap(storage_once(memo, storage)));
  PyObject* dict = memo.dict();
  const auto key = steal(PyLong_FromVoidPtr(storage.unsafeGetStorageImpl()));
  const auto torch = steal(PyObject_CallMethod(dict, "setdefault", "ON", Protocol::get().names.torch, PyDict_New()));
  if (!PyDict_CheckExact(torch.ptr())) return {};
  if (PyObject* known = PyDict_GetItemWithError(torch.ptr(), key.ptr())) return borrow(known);
  if (PyErr_Occurred()) raise();
  auto copy = steal(THPStorage_Wrap(new_storage(memo, storage)));
  check(PyDict_SetItem(torch.ptr(), key.ptr(), copy.ptr()));
  return copy;
}

void note_seen_or_record(Memo& memo, PyObject* source, PyObject* copy) {
  const auto& protocol = Protocol::get();
  auto* type = Py_TYPE(source);
  const bool plain = type == protocol.tensor.type || type == protocol.parameter.type;  // for others record_if_copied
  if (!plain || Py_TYPE(copy) != type) return;
  const auto& tensor = THPVariable_Unpack(source);
  if (!memo.call().shares()) {
    if (memo.call().excludes_any()) record_copy(Reason::excluded, THPVariable_Unpack(copy));
  } else if (type == protocol.tensor.type && tensor.layout() == at::kStrided && !tensor.is_quantized()) {
    memo.call().note_seen(*tensor.unsafeGetTensorImpl());
  } else {
    record_if_copied(copy);
  }
}

void record_if_copied(PyObject* tensor) {
  const auto& copy = THPVariable_Unpack(tensor);
  if (!copy.defined()) return;
  auto* impl = copy.unsafeGetTensorImpl();
  if (impl->has_storage()) {
    const auto used = usage(*impl->unsafe_storage().unsafeGetStorageImpl());
    if (used.block != nullptr && used.block_sharers > 1) return;
  }
  record_copy(Reason::kind, copy);
}

}  // namespace torchcow
