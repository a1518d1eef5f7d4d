#include "verify.h"

#include "device_copy.h"
#include "device_kernels.h"
#include "registry.h"
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

/// The live blocks that are not about to go, each held by a sharer of ours, so that nobody steals or frees them:
/// checksums take long and may run torch operators, which the registry's mutex forbids.
class Pins {
 public:
  Pins() {
    std::lock_guard lock(registry().mutex);
    pins_.reserve(registry().block_count);
    for (auto* block = registry().blocks; block != nullptr; block = block->next) {
      // A further sharer would come too late for a steal, and make a share that is taken back move its source.
      if (!block->taken && !block->on_probation()) hold(*block);
    }
  }
  Pins(const Pins&) = delete;
  Pins& operator=(const Pins&) = delete;
  ~Pins() {
    Garbage garbage;
    std::lock_guard lock(registry().mutex);
    for (auto* pin : pins_) {
      leave(*pin, {}, garbage);
    }
  }

  [[nodiscard]] const std::vector<Sharer*>& all() const noexcept { return pins_; }

 private:
  void hold(Block& block) {
    auto* pin = new Sharer{&block, 0, 0, nullptr};
    block.link(*pin);
    ++registry().sharer_count;
    pins_.push_back(pin);
  }

  std::vector<Sharer*> pins_;
};

void set_fingerprint(Block& block) {
  const auto sum = checksum(block);
  std::lock_guard lock(registry().mutex);
  block.fingerprint = sum;
}

}  // namespace

void arm_fingerprints(bool on) {
  armed = on;
  if (!on) return;
  const Pins pins;
  for (const auto* pin : pins.all()) {
    if (!pin->block->fingerprint) set_fingerprint(*pin->block);
  }
}

void fingerprint(Block& block) {
  if (armed) set_fingerprint(block);
}

std::vector<Damage> verify(std::size_t& looked_at) {
  std::vector<Damage> damages;
  looked_at = 0;
  const Pins pins;
  for (const auto* pin : pins.all()) {
    const Block& block = *pin->block;
    if (!block.fingerprint) continue;
    ++looked_at;
    if (checksum(block) != *block.fingerprint) damages.push_back({block.id, block.bytes, block.device()});
  }
  return damages;
}

}  // namespace torchcow
