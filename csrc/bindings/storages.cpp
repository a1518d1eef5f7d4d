// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "storage.h"

#include <ATen/core/Tensor.h>

namespace torchcow {

c10::StorageImpl* storage_with_bytes(const at::Tensor& tensor) {
  auto* storage = storage_of(tensor);
  const bool holds_bytes = storage != nullptr && storage->device_type() != c10::DeviceType::Meta &&
                           !storage->sym_nbytes().is_heap_allocated();
  return holds_bytes ? storage : nullptr;
}

}  // namespace torchcow
