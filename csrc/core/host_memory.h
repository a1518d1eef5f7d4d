#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>

/// Memory and copies on the host.
///
/// Fresh memory is bound by page faults: with 4 KB pages a first write runs at a fraction of memcpy's
/// speed. The memory comes from torch's own allocator, so that resizing, pickling, sharing between
/// processes and freeing work on it as on any tensor; for large blocks the kernel is asked for huge
/// pages (madvise) before the first touch, and several threads touch and copy where that pays.
///
/// Threads are started per copy, not borrowed from OpenMP: a pool does not survive fork(), and a first
/// write can happen in a child or inside of a parallel region.

namespace torchcow::host {

/// From this size on: huge pages, and several threads.
inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;
inline constexpr std::size_t parallel_bytes = std::size_t{8} << 20;

/// Asks for huge pages under [data, data + bytes). A hint: never fails.
void advise_huge_pages(void* data, std::size_t bytes) noexcept;

/// Copies between ranges that do not overlap.
void copy(void* to, const void* from, std::size_t bytes) noexcept;

}  // namespace torchcow::host
