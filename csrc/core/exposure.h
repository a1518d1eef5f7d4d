// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

/// An exposure: the time in which one storage hands out raw pointers into shared memory (reading.h).
///
/// It begins with the first `torchcow.reading` scope that covers a sharer. All scopes that cover that sharer at the
/// same time share the exposure. It follows the storage: when the sharer moves to another block, the exposure goes with
/// it, and the former sharer in the block that it left refers to the exposure as well. So a block knows, without a
/// search, whether raw pointers may be in use there.
///
/// Ownership: scopes, the sharer and the former sharers own an exposure together.
///
/// Threads: guarded by the engine's mutex.

namespace torchcow {

struct Exposure {
  std::size_t scopes = 0;             ///< open scopes that cover the storage
  bool outlived = false;              ///< pointers of a scope that has ended may still be in use
  bool seen_by_numpy = false;         ///< NumPy's mark, as the first scope found it (numpy_mark.h)
  std::vector<std::uint64_t> blocks;  ///< ids of the blocks into which pointers were handed out, in order

  [[nodiscard]] bool pointers_may_be_in_use() const noexcept { return scopes > 0 || outlived; }
};

}  // namespace torchcow
