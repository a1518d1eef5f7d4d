// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>

/// Memory for storages that will be written.
///
/// Large memory on the host consists of huge pages where the allocator is torch's default (host_pages.h). When an
/// allocator fails, kept pages are given back to the system and it is asked again.
///
/// Threads: any; without the engine's mutex, as allocators take long and may run foreign code.
///
/// Streams: memory of a device belongs to the current stream.
///
/// Failure: throws what the allocator throws.

namespace torchcow {

[[nodiscard]] c10::DataPtr allocate_for(c10::Device device, c10::Allocator& allocator, std::size_t bytes);

/// Tests: lets allocation number `after` (from now on, 0-based) fail once; -1 for never.
void fail_allocation(std::int64_t after) noexcept;

}  // namespace torchcow
