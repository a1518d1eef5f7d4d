// SPDX-License-Identifier: Apache-2.0

#include "writing.h"

#include "engine_state.h"
#include "fork.h"
#include "intrusive_list.h"

#include <utility>

namespace torchcow {

namespace {

constexpr std::size_t slot_count = 8;

/// Slots [0, used) are announced; operators nest, so they are taken and given back like a stack.
struct Slots {
  std::array<std::atomic<const c10::StorageImpl*>, slot_count> storages{};
  std::size_t used = 0;
  Slots* next = nullptr;
  Slots* previous = nullptr;

  Slots();
  ~Slots();
};

// All guarded by the engine's mutex; the atomics within are read by it and written by their owners.
Slots* all_slots = nullptr;
ListedWrites* listed = nullptr;

// A plain pointer: the child of a fork asks for it under the mutex, where no Slots can be constructed.
thread_local Slots* own_slots = nullptr;

Slots::Slots() {
  own_slots = this;
  std::lock_guard lock(engine().mutex);
  push_front(all_slots, *this);
}

Slots::~Slots() {
  own_slots = nullptr;
  std::lock_guard lock(engine().mutex);
  remove_from(all_slots, *this);
}

Slots& slots() noexcept {
  thread_local Slots mine;
  return mine;
}

/// In the child of a fork the other threads' announcements have no owner.
void forget_other_writers() {
  all_slots = nullptr;
  if (own_slots != nullptr) push_front(all_slots, *own_slots);
  for (auto* writes = std::exchange(listed, nullptr); writes != nullptr;) {
    auto* current = std::exchange(writes, writes->next);
    if (own_slots != nullptr && current->thread == own_slots) push_front(listed, *current);
  }
}

const AtFork at_fork(ForkStage::writing, {.in_child = &forget_other_writers});

}  // namespace

WritingScope::WritingScope(c10::ArrayRef<WriteTarget> targets) noexcept : writes_{.targets = targets} {
  auto& mine = slots();
  writes_.thread = &mine;
  if (targets.size() <= slot_count - mine.used) {
    first_slot_ = mine.used;
    for (const auto& target : targets) {
      mine.storages[mine.used++].store(target.storage, std::memory_order_relaxed);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return;
  }
  listed_ = true;
  std::lock_guard lock(engine().mutex);
  push_front(listed, writes_);
}

WritingScope::~WritingScope() {
  if (!listed_) {
    auto& mine = slots();
    // Release: whoever sees the slot empty sees the bytes that were written.
    while (mine.used > first_slot_) mine.storages[--mine.used].store(nullptr, std::memory_order_release);
    return;
  }
  std::lock_guard lock(engine().mutex);
  remove_from(listed, writes_);
}

bool being_written(const c10::StorageImpl& storage) noexcept {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  for (auto* thread = all_slots; thread != nullptr; thread = thread->next) {
    for (auto& slot : thread->storages) {
      if (slot.load(std::memory_order_acquire) == &storage) return true;
    }
  }
  for (const auto* writes = listed; writes != nullptr; writes = writes->next) {
    for (const auto& target : writes->targets) {
      if (target.storage == &storage) return true;
    }
  }
  return false;
}

}  // namespace torchcow
