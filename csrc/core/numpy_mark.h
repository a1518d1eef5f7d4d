// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/StorageImpl.h>

/// NumPy's mark: the one trace that `Tensor.numpy()` leaves in a storage.
///
/// torch makes the storage unresizable, and never resizable again, as an array cannot follow when the memory moves. The
/// array itself holds a tensor of its own over the storage, which Python's garbage collector can see like any other; so
/// the references to the storage add up although an array can write its memory. The mark says that there may be one.
///
/// `torch.load` leaves the same mark. What it makes has no allocator, and without one torch lets nobody clear the mark.

namespace torchcow::numpy_mark {

[[nodiscard]] inline bool is_set(const c10::StorageImpl& storage) noexcept { return !storage.resizable(); }

inline void set(c10::StorageImpl& storage) noexcept { storage.set_resizable(false); }

/// Clears the mark if torch allows it, so that it shows whether NumPy looks again.
inline void clear(c10::StorageImpl& storage) noexcept {
  if (storage.allocator() != nullptr) storage.set_resizable(true);
}

}  // namespace torchcow::numpy_mark
