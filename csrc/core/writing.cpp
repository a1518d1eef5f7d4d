#include "writing.h"

#include "engine_state.h"
#include "fork.h"

#include <algorithm>

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
WritingScope* listed_scopes = nullptr;

// A plain pointer: the child of a fork asks for it under the mutex, where no Slots can be constructed.
thread_local Slots* own_slots = nullptr;

Slots::Slots() {
  own_slots = this;
  std::lock_guard lock(engine().mutex);
  next = all_slots;
  if (next != nullptr) next->previous = this;
  all_slots = this;
}

Slots::~Slots() {
  own_slots = nullptr;
  std::lock_guard lock(engine().mutex);
  (previous != nullptr ? previous->next : all_slots) = next;
  if (next != nullptr) next->previous = previous;
}

Slots& slots() noexcept {
  thread_local Slots mine;
  return mine;
}

}  // namespace

WritingScope::WritingScope(c10::ArrayRef<WriteTarget> targets) noexcept : targets_(targets) {
  auto& mine = slots();
  thread_ = &mine;
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
  next_ = listed_scopes;
  if (next_ != nullptr) next_->previous_ = this;
  listed_scopes = this;
}

WritingScope::~WritingScope() {
  if (!listed_) {
    auto& mine = slots();
    // Release: whoever sees the slot empty sees the bytes that were written.
    while (mine.used > first_slot_) mine.storages[--mine.used].store(nullptr, std::memory_order_release);
    return;
  }
  std::lock_guard lock(engine().mutex);
  (previous_ != nullptr ? previous_->next_ : listed_scopes) = next_;
  if (next_ != nullptr) next_->previous_ = previous_;
}

bool being_written(const c10::StorageImpl& storage) noexcept {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  for (auto* thread = all_slots; thread != nullptr; thread = thread->next) {
    for (auto& slot : thread->storages) {
      if (slot.load(std::memory_order_acquire) == &storage) return true;
    }
  }
  for (auto* scope = listed_scopes; scope != nullptr; scope = scope->next_) {
    for (const auto& target : scope->targets_) {
      if (target.storage == &storage) return true;
    }
  }
  return false;
}

void forget_other_writers() noexcept {
  all_slots = own_slots;
  if (own_slots != nullptr) own_slots->next = own_slots->previous = nullptr;
  auto** end = &listed_scopes;
  WritingScope* last = nullptr;
  for (auto* scope = listed_scopes; scope != nullptr; scope = scope->next_) {
    if (own_slots == nullptr || scope->thread_ != own_slots) continue;
    scope->previous_ = last;
    *end = last = scope;
    end = &scope->next_;
  }
  *end = nullptr;
}

const AtFork at_fork(ForkStage::writing, {.in_child = [] { forget_other_writers(); }});

}  // namespace torchcow
