// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>

/// Pages: host memory for large first writes.
///
/// Fresh memory is bound by page faults: with 4 KB pages a first write runs at a fifth of memcpy's speed, and a block
/// that does not begin on a huge page pays that for its head and its tail. So memory of `huge_page_bytes` and more is
/// mapped here, on a boundary of huge pages. Smaller memory, and that of a storage with another allocator, comes from
/// that allocator.
///
/// Freed pages are *kept* for the next first write of the same size, which then has no page faults at all: clones of
/// one prototype come and go with the same sizes. Kept pages, but for a short tail, are marked MADV_FREE: a kernel that
/// runs short of memory takes them, without swapping. At most `max_kept_bytes` are kept. The oldest are freed first,
/// and all of them when no block is left (engine_state.cpp).
///
/// Ownership: a DataPtr owns its pages; the list of kept pages owns the rest.
///
/// Threads: any; a mutex guards the kept pages. It is taken without the engine's, except by a fork (fork.h).
///
/// Failure: `allocate_pages` returns an empty DataPtr where it cannot help; the caller asks the allocator.

namespace torchcow::host {

inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;
inline constexpr std::size_t max_kept_bytes = std::size_t{1} << 30;

/// Pages for `bytes` bytes. Empty if `bytes` is small, or if there is no room for a mapping.
[[nodiscard]] c10::DataPtr allocate_pages(std::size_t bytes);

/// Did allocate_pages make this memory?
[[nodiscard]] bool are_pages(c10::DeleterFnPtr deleter) noexcept;

/// Asks for huge pages under memory of another allocator. A hint: never fails.
void advise_huge_pages(void* data, std::size_t bytes) noexcept;

/// Whether pages that are freed from now on are kept. Those that are kept already stay until `drop_kept`.
void keep_freed(bool on) noexcept;

/// Gives kept pages back to the system; returns how many bytes.
std::size_t drop_kept() noexcept;

[[nodiscard]] std::size_t kept_bytes() noexcept;

}  // namespace torchcow::host
