// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/StorageImpl.h>

#include <cstddef>

/// Accounting: what is shared now, in bytes.
///
/// Threads: any; each function takes the engine's mutex, so its numbers belong to one moment.

namespace torchcow {

/// Sums over all live blocks. Fair shares (a block's bytes divided by its sharers) add up to
/// `unique_bytes` by definition; `fair_share` of one sharer is computed where objects are known.
struct Totals {
  std::size_t blocks = 0;
  std::size_t sharers = 0;
  std::size_t logical_bytes = 0;  ///< sum over sharers: what deep copies would take
  std::size_t unique_bytes = 0;   ///< sum over blocks
  std::size_t retired_blocks = 0;
  std::size_t retired_bytes = 0;
  std::size_t kept_bytes = 0;      ///< freed, but kept for the next first write (host_pages.h)
  std::size_t reserved_bytes = 0;  ///< set aside for first writes (reserve.h)
  std::size_t forgotten_events = 0;
};

Totals totals();

/// What one storage takes.
struct Usage {
  const void* block = nullptr;  ///< identity of the block; nullptr: private memory
  std::size_t block_bytes = 0;
  std::size_t block_sharers = 0;
  std::size_t bytes = 0;
  std::size_t offset = 0;  ///< in the block
};

Usage usage(const c10::StorageImpl& storage);

}  // namespace torchcow
