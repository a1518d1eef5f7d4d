#pragma once

#include "block.h"

/// A pin holds a block as a sharer without a storage would: nobody steals it, and it is not freed.
///
/// For work on a block that takes long or runs torch operators, which the engine's mutex forbids.

namespace torchcow {

class Pin {
 public:
  /// With the engine's mutex held. Not for a block that is about to be stolen, or on probation: a further sharer
  /// would come too late for the one, and make a share that is taken back move its source in the other.
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
