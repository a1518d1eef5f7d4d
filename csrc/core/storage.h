// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/TensorBase.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <cstddef>

/// The storage of a tensor, and who refers to it.
///
/// Ownership: pointers to storages own nothing; they are valid as long as the tensor is.

namespace torchcow {

/// Keeps the address of a storage from being used for another one, but not the storage alive.
using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

[[nodiscard]] inline WeakStorage weak_reference(c10::StorageImpl& storage) {
  return WeakStorage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&storage));
}

/// The storage of a tensor that has one, or nullptr.
[[nodiscard]] inline c10::StorageImpl* storage_of(const c10::TensorImpl& tensor) noexcept {
  return tensor.has_storage() ? tensor.unsafe_storage().unsafeGetStorageImpl() : nullptr;
}

[[nodiscard]] inline c10::StorageImpl* storage_of(const at::TensorBase& tensor) noexcept {
  return storage_of(*tensor.unsafeGetTensorImpl());
}

/// Does the tensor cover every byte of its storage?
[[nodiscard]] inline bool covers_storage(const at::TensorBase& tensor) {
  const auto& impl = *tensor.unsafeGetTensorImpl();
  return !impl.has_symbolic_sizes_strides() && impl.storage_offset() == 0 && impl.is_non_overlapping_and_dense() &&
         static_cast<std::size_t>(impl.numel()) * impl.itemsize() == storage_of(impl)->nbytes();
}

/// References to a storage that its Python object accounts for: that object lives as long as the storage,
/// and holds it once.
[[nodiscard]] inline std::size_t python_references(const c10::StorageImpl& storage) noexcept {
  return storage.pyobj_slot()->load_pyobj() != nullptr ? 1 : 0;
}

}  // namespace torchcow
