#pragma once

#include "block.h"

#include <vector>

/// Copies on devices, through c10's device-generic interfaces and torch's own operators.
///
/// Streams: copies are queued on the current stream of their device, after the block's `ready` event,
/// and leave an event on the block. Small copies go in one launch where the device has a kernel for it
/// (device_kernels.h); otherwise each is a `copy_` through the dispatcher.

namespace torchcow {

struct DeviceCopy {
  void* to;
  const void* from;
  std::size_t bytes;
  Block* block;
};

void copy_on_device(const std::vector<DeviceCopy>& copies);

/// Waits until the current stream of `device` is done; nothing to do on the CPU.
void wait_on_host(c10::Device device);

}  // namespace torchcow
