#pragma once

#include "block.h"

#include <c10/util/ArrayRef.h>

#include <array>
#include <atomic>

/// Writes in progress: which storages are being written by running operators, in any thread.
///
/// A clone taken while another thread is inside a write must not change afterwards. So each operator of
/// the barrier announces the storages that it writes before it looks whether they are shared, and
/// `share` looks for announcements after it has armed a storage:
///
///   operator                            share
///   1. announce                         1. arm
///   2. fence                            2. fence
///   3. is it armed? -> materialize      3. is it announced? -> take the share back, copy
///
/// With both fences sequentially consistent at least one of the two sees the other.
///
/// Announcing costs some nanoseconds: each thread has a few slots of its own. An operator that writes
/// more storages than there are free slots announces a list under the engine's mutex.

namespace torchcow {

struct WriteTarget {
  c10::StorageImpl* storage;
  bool overwritten = false;  ///< the operator writes every byte and reads none: skip is allowed
};

class WritingScope {
 public:
  explicit WritingScope(c10::ArrayRef<WriteTarget> targets) noexcept;
  WritingScope(const WritingScope&) = delete;
  WritingScope& operator=(const WritingScope&) = delete;
  ~WritingScope();

 private:
  friend bool being_written(const c10::StorageImpl& storage) noexcept;
  friend void forget_other_writers() noexcept;

  c10::ArrayRef<WriteTarget> targets_;
  const void* thread_;  ///< the slots of the thread
  std::size_t first_slot_ = 0;
  bool listed_ = false;
  WritingScope* next_ = nullptr;
  WritingScope* previous_ = nullptr;
};

/// Is an operator writing `storage` now? Call with the engine's mutex held, and the storage armed.
[[nodiscard]] bool being_written(const c10::StorageImpl& storage) noexcept;

/// In the child of a fork the other threads' announcements have no owner.
void forget_other_writers() noexcept;

}  // namespace torchcow
