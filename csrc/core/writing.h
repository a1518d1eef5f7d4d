// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

#include <c10/util/ArrayRef.h>

#include <array>
#include <atomic>

/// Writes in progress: which storages are being written by running operators, in any thread.
///
/// A clone that is taken while another thread is inside a write must not change afterwards (I6). So each operator of
/// the barrier announces the storages that it writes before it looks whether they are shared, and `share` looks for
/// announcements after it has armed a storage:
///
///   operator                            share
///   1. announce                         1. arm
///   2. fence                            2. fence
///   3. is it armed? -> materialize      3. is it announced? -> take the share back, copy
///
/// With both fences sequentially consistent at least one of the two sees the other.
///
/// Announcing costs some nanoseconds: each thread has a few slots of its own. An operator that writes more storages
/// than there are free slots announces a list under the engine's mutex.
///
/// Ownership: a scope holds its targets by reference. Threads: a scope belongs to the thread that made it; scopes of
/// one thread nest. Failure: none.

namespace torchcow {

struct WriteTarget {
  c10::StorageImpl* storage;
  bool overwritten = false;  ///< the operator writes every byte and reads none: skip is allowed
};

/// The targets of a scope that found no free slots, on a list under the engine's mutex.
struct ListedWrites {
  c10::ArrayRef<WriteTarget> targets;
  const void* thread = nullptr;  ///< identity of the thread's slots
  ListedWrites* next = nullptr;
  ListedWrites* previous = nullptr;
};

class WritingScope {
 public:
  explicit WritingScope(c10::ArrayRef<WriteTarget> targets) noexcept;
  WritingScope(const WritingScope&) = delete;
  WritingScope& operator=(const WritingScope&) = delete;
  ~WritingScope();

 private:
  ListedWrites writes_;
  std::size_t first_slot_ = 0;
  bool listed_ = false;
};

/// Is an operator writing `storage` now? Call with the engine's mutex held, and the storage armed.
[[nodiscard]] bool being_written(const c10::StorageImpl& storage) noexcept;

}  // namespace torchcow
