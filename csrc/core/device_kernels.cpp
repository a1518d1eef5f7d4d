#include "core/device_kernels.h"

#include "core/checksum.h"

#include <c10/util/Exception.h>

#include <array>
#include <atomic>

namespace torchcow {
namespace {

constexpr std::size_t kDeviceTypes = static_cast<std::size_t>(c10::COMPILE_TIME_MAX_DEVICE_TYPES);

std::array<std::atomic<DeviceKernels*>, kDeviceTypes> registered{};

} // namespace

void set_device_kernels(c10::DeviceType type, DeviceKernels* kernels) {
  TORCH_CHECK(c10::isValidDeviceType(type), "torchcow: expected a device type, got ", static_cast<int>(type));
  // Release: whoever sees the pointer sees the object behind it.
  registered[static_cast<std::size_t>(type)].store(kernels, std::memory_order_release);
}

DeviceKernels* device_kernels(c10::DeviceType type) noexcept {
  const auto index = static_cast<std::size_t>(type);
  return index < kDeviceTypes ? registered[index].load(std::memory_order_acquire) : nullptr;
}

std::uint64_t host_checksum(const void* data, std::size_t bytes) noexcept {
  return checksum_finish(checksum_span(data, bytes, 0), bytes);
}

} // namespace torchcow
