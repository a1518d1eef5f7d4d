// SPDX-License-Identifier: Apache-2.0
#include "allocate.h"

#include "host_pages.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <exception>

namespace torchcow {

namespace {

std::atomic<std::int64_t> allocations_left{-1};

c10::DataPtr allocate_on_host(c10::Allocator& allocator, std::size_t bytes) {
  if (&allocator == c10::GetDefaultCPUAllocator()) {
    if (auto pages = host::allocate_pages(bytes)) return pages;
  }
  c10::DataPtr memory;
  try {
    memory = allocator.allocate(bytes);
  } catch (const std::exception&) {
    if (host::drop_kept() == 0) throw;
    memory = allocator.allocate(bytes);
  }
  host::advise_huge_pages(memory.get(), bytes);
  return memory;
}

c10::DataPtr allocate_on_device(c10::Device device, c10::Allocator& allocator, std::size_t bytes) {
  const c10::DeviceGuard guard(device);
  return allocator.allocate(bytes);
}

}  // namespace

c10::DataPtr allocate_for(c10::Device device, c10::Allocator& allocator, std::size_t bytes) {
  if (allocations_left >= 0 && allocations_left-- == 0) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "torchcow: allocation failed on request of a test");
  }
  return device.is_cpu() ? allocate_on_host(allocator, bytes) : allocate_on_device(device, allocator, bytes);
}

void fail_allocation(std::int64_t after) noexcept { allocations_left = after; }

}  // namespace torchcow
