// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

#include <vector>

/// Copies on devices, through c10's device-generic interfaces and torch's own operators.
///
/// Several copies are one launch where the device has a kernel for them (device_kernels.h); otherwise each is a `copy_`
/// through the dispatcher, below autograd, Python modes and transforms.
///
/// Ownership: the caller keeps source, target and block alive until the copies are queued; after that, `StreamOrder`
/// delays the reuse of the block's memory.
///
/// Streams: copies are queued on the current stream of their device, after the block's `ready` event, and leave an
/// event on the block.
///
/// Threads: any, without the engine's mutex. Failure: throws what the device throws; targets may be half written.

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
