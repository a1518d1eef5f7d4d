// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

#include <c10/util/ArrayRef.h>

#include <list>
#include <memory>
#include <vector>

/// Reserves: memory that is set aside for first writes, so that a lack of memory shows when the reserve is made and not
/// in the middle of the work.
///
/// A reserve consists of *pieces*, each as large as one of the storages that it was made for. A first write takes a
/// piece of exactly its size. If none is left, it frees pieces of at least its size in all, and asks the allocator as
/// usual. Pieces on the host are touched when they are made, as the system may promise more memory than it has.
///
/// Ownership: its sharers own a reserve together. It ends with the last of them: when the clones die, or when all
/// storages that it was made for have been written. A holder of a weak reference may release the pieces earlier.
///
/// Streams: a piece belongs to the stream on which it was allocated; the first write that takes it records its own
/// stream (materialize.cpp).
///
/// Failure: all pieces are made before any is attached, so nothing has changed when there is no memory.
///
/// Threads: guarded by the engine's mutex.

namespace torchcow {

class Reserve {
 public:
  struct Piece {
    std::size_t bytes;
    c10::DataPtr memory;
  };
  /// A list, so that pieces move without an allocation.
  using Pieces = std::list<Piece>;

  /// The piece of exactly `bytes` bytes, or none, and then pieces go to `given_back`, to be freed without the mutex.
  /// The mutex is held, as for the next two.
  [[nodiscard]] Pieces take(std::size_t bytes, Pieces& given_back) noexcept;

  /// A piece that was taken, and not used.
  void put_back(Pieces&& piece) noexcept;

  /// All pieces.
  [[nodiscard]] Pieces release() noexcept;

  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

  explicit Reserve(Pieces&& pieces) noexcept;
  Reserve(const Reserve&) = delete;
  Reserve& operator=(const Reserve&) = delete;
  /// Without the mutex.
  ~Reserve();

 private:
  Pieces pieces_;
  std::size_t bytes_ = 0;
};

/// Makes a reserve for those of `storages` that are shared, with a piece for each that is marked in `pieces`; it takes
/// the place of the one that they had. Throws what the allocator throws. Null if none is shared.
std::shared_ptr<Reserve> reserve(c10::ArrayRef<c10::StorageImpl*> storages, const std::vector<bool>& pieces);

/// What all reserves hold. The mutex is held.
[[nodiscard]] std::size_t reserved_bytes() noexcept;

}  // namespace torchcow
