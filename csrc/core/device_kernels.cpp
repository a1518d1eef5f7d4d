// SPDX-License-Identifier: Apache-2.0

#include "device_kernels.h"

#include "checksum.h"

#include <c10/util/Exception.h>

#include <array>
#include <atomic>

namespace torchcow {
namespace {

constexpr std::size_t device_type_count = static_cast<std::size_t>(c10::COMPILE_TIME_MAX_DEVICE_TYPES);

std::array<std::atomic<DeviceKernels*>, device_type_count> registered{};

// One word at a time is about 17 instructions; the same loop compiled for wide registers is two to four times as fast.
// Chosen by hand and not by target_clones, whose resolvers run before a sanitizer's runtime is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TORCHCOW_SPAN_FOR(name, isa)                                                                     \
  __attribute__((target(isa), optimize("O3"))) std::uint64_t name(const void* data, std::size_t bytes) { \
    return checksum_span(data, bytes, 0);                                                                \
  }
TORCHCOW_SPAN_FOR(span_avx512, "avx512f,avx512dq,avx512vl,prefer-vector-width=512")
TORCHCOW_SPAN_FOR(span_avx2, "avx2")
#undef TORCHCOW_SPAN_FOR

std::uint64_t span(const void* data, std::size_t bytes) noexcept {
  static const bool avx512 = __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool avx2 = __builtin_cpu_supports("avx2");
  return avx512 ? span_avx512(data, bytes) : avx2 ? span_avx2(data, bytes) : checksum_span(data, bytes, 0);
}
#else
std::uint64_t span(const void* data, std::size_t bytes) noexcept { return checksum_span(data, bytes, 0); }
#endif

}  // namespace

void set_device_kernels(c10::DeviceType type, DeviceKernels* kernels) {
  TORCH_CHECK(c10::isValidDeviceType(type), "torchcow: expected a device type, got ", static_cast<int>(type));
  // Release: whoever sees the pointer sees the object behind it.
  registered[static_cast<std::size_t>(type)].store(kernels, std::memory_order_release);
}

DeviceKernels* device_kernels(c10::DeviceType type) noexcept {
  const auto index = static_cast<std::size_t>(type);
  return index < device_type_count ? registered[index].load(std::memory_order_acquire) : nullptr;
}

std::uint64_t host_checksum(const void* data, std::size_t bytes) noexcept {
  return checksum_finish(span(data, bytes), bytes);
}

}  // namespace torchcow
