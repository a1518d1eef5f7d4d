// SPDX-License-Identifier: Apache-2.0

#include "verify.h"

#include "device_copy.h"
#include "device_kernels.h"
#include "engine_state.h"
#include "pin.h"
#include "stream_order.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>

#include <atomic>

namespace torchcow {

namespace {

std::atomic<bool> armed{false};

std::uint64_t checksum(const Block& block) {
  const auto device = block.device();
  if (device.is_cpu()) return host_checksum(block.data.get(), block.bytes);
  const c10::DeviceGuard guard(device);
  const auto stream = current_stream(device);
  block.order->before_copy(stream);
  if (auto* kernels = device_kernels(device.type())) {
    return kernels->checksums({{block.data.get(), block.bytes}}, stream).front();
  }
  const auto bytes = at::from_blob(
      block.data.get(), {static_cast<std::int64_t>(block.bytes)}, [](void*) {}, at::device(device).dtype(at::kByte),
      device);
  const auto host = bytes.to(at::kCPU);
  return host_checksum(host.const_data_ptr(), block.bytes);
}

/// The live blocks that `wanted` says yes to, held: checksums take long and may run torch operators.
template <typename Wanted>
std::vector<Pin> pin_blocks(Wanted&& wanted) {
  std::vector<Pin> pins;
  std::lock_guard lock(engine().mutex);
  pins.reserve(engine().block_count);  // a pin that finds no room would ask for the mutex again
  for (auto* block = engine().blocks; block != nullptr; block = block->next) {
    if (may_be_pinned(*block) && wanted(*block)) pins.emplace_back(*block);
  }
  return pins;
}

void set_fingerprint(Block& block) {
  const auto sum = checksum(block);
  std::lock_guard lock(engine().mutex);
  block.fingerprint = sum;
}

}  // namespace

void arm_fingerprints(bool on) {
  armed = on;
  if (!on) return;
  for (const auto& pin : pin_blocks([](const Block& block) { return !block.fingerprint; }))
    set_fingerprint(pin.block());
}

void fingerprint(Block& block) {
  if (armed) set_fingerprint(block);
}

std::unordered_map<std::uint64_t, std::uint64_t> checksums(const std::unordered_set<std::uint64_t>& blocks) {
  std::unordered_map<std::uint64_t, std::uint64_t> sums;
  for (const auto& pin : pin_blocks([&](const Block& block) { return blocks.contains(block.id); })) {
    sums.emplace(pin.block().id, checksum(pin.block()));
  }
  return sums;
}

std::vector<Damage> verify(std::size_t& looked_at) {
  std::vector<Damage> damages;
  looked_at = 0;
  for (const auto& pin : pin_blocks([](const Block& block) { return block.fingerprint.has_value(); })) {
    const Block& block = pin.block();
    ++looked_at;
    if (checksum(block) != *block.fingerprint) damages.push_back({block.id, block.bytes, block.device()});
  }
  return damages;
}

}  // namespace torchcow
