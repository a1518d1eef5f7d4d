// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

/// A pin keeps a block from being stolen or freed. It is a sharer without a storage and without bytes.
///
/// Why: work on a block that takes long or runs torch operators cannot hold the engine's mutex.
///
/// Ownership: a pin owns its sharer, and with it a part of the block. Threads: a pin belongs to one thread. Failure:
/// only the constructor can throw, std::bad_alloc, and then nothing has changed.

namespace torchcow {

class Pin {
 public:
  /// With the engine's mutex held, and only if `may_be_pinned`. A further sharer would come too late for a steal that
  /// is under way; and a share on probation that is taken back would move its source instead of stealing for it.
  explicit Pin(Block& block);
  Pin(Pin&& other) noexcept : sharer_(other.sharer_) { other.sharer_ = nullptr; }
  Pin& operator=(Pin&&) = delete;
  /// Without the mutex.
  ~Pin();

  [[nodiscard]] Block& block() const noexcept { return *sharer_->block; }
  [[nodiscard]] const Sharer* sharer() const noexcept { return sharer_; }

 private:
  Sharer* sharer_;
};

/// May `block` be pinned? With the engine's mutex held.
[[nodiscard]] inline bool may_be_pinned(const Block& block) noexcept { return !block.taken && !block.on_probation(); }

}  // namespace torchcow
