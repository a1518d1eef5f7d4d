// SPDX-License-Identifier: Apache-2.0

#include "device_copy.h"

#include "device_kernels.h"
#include "stream_order.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <set>

namespace torchcow {

namespace {

/// Our own copies are no business of autograd, of Python modes or of function transforms.
class PlainOperators {
 public:
  PlainOperators() : guard_(above_backends()) {}

 private:
  static c10::DispatchKeySet above_backends() {
    return c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::python_ks | c10::functorch_transforms_ks |
           c10::functorch_batched_ks;
  }
  c10::impl::ExcludeDispatchKeyGuard guard_;
};

at::Tensor bytes_at(const void* data, std::size_t bytes, c10::Device device) {
  return at::from_blob(
      const_cast<void*>(data), {static_cast<std::int64_t>(bytes)}, [](void*) {}, at::device(device).dtype(at::kByte),
      device);
}

void queue(const std::vector<DeviceCopy>& copies, c10::Device device, const c10::Stream& stream) {
  if (auto* kernels = device_kernels(device.type())) {
    std::vector<CopyJob> jobs;
    for (auto& copy : copies) {
      if (copy.block->device() == device) jobs.push_back({copy.to, copy.from, copy.bytes});
    }
    if (jobs.size() > 1) {
      kernels->copy(jobs, stream);
      return;
    }
  }
  PlainOperators guard;
  for (auto& copy : copies) {
    if (copy.block->device() != device) continue;
    bytes_at(copy.to, copy.bytes, device).copy_(bytes_at(copy.from, copy.bytes, device), /*non_blocking=*/true);
  }
}

}  // namespace

void copy_on_device(const std::vector<DeviceCopy>& copies) {
  std::set<c10::DeviceIndex> done;
  for (auto& first : copies) {
    const auto device = first.block->device();
    if (!done.insert(device.index()).second) continue;
    const c10::DeviceGuard guard(device);
    const auto stream = current_stream(device);
    for (auto& copy : copies) {
      if (copy.block->device() == device) copy.block->order->before_copy(stream);
    }
    queue(copies, device, stream);
    for (auto& copy : copies) {
      if (copy.block->device() == device) copy.block->order->after_copy(copy.block->data, stream);
    }
  }
}

void wait_on_host(c10::Device device) {
  if (device.is_cpu()) return;
  c10::impl::VirtualGuardImpl(device.type()).synchronizeStream(current_stream(device));
}

}  // namespace torchcow
