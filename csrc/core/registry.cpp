#include "registry.h"

#include "host_pages.h"
#include "retire.h"
#include "stream_order.h"
#include "writing.h"

#include <pthread.h>

namespace torchcow {

namespace {

void before_fork() { registry().mutex.lock(); }
void after_fork_in_parent() { registry().mutex.unlock(); }

void after_fork_in_child() {
  auto& self = registry();
  ++self.fork_epoch;
  // Waiters of the parent do not exist here; a condition variable that remembers them is replaced.
  new (&self.claims_changed) std::condition_variable();
  forget_other_writers();
  self.mutex.unlock();
}

}  // namespace

Registry& registry() noexcept {
  static Registry& instance = []() -> Registry& {
    auto* made = new Registry();
    pthread_atfork(&before_fork, &after_fork_in_parent, &after_fork_in_child);
    return *made;
  }();
  return instance;
}

Garbage::~Garbage() {
  for (auto* sharer : sharers) delete sharer;
  for (auto* block : blocks) {
    if (block->order) block->order->before_free(block->data);
    delete block;
  }
  if (nothing_shared) host::drop_kept();
}

void Registry::add(Block& block) noexcept {
  block.id = next_id++;
  block.previous = nullptr;
  block.next = blocks;
  if (blocks != nullptr) blocks->previous = &block;
  blocks = &block;
  if (++block_count == 1) host::keep_freed(true);
}

void Registry::remove(Block& block) noexcept {
  (block.previous != nullptr ? block.previous->next : blocks) = block.next;
  if (block.next != nullptr) block.next->previous = block.previous;
  if (--block_count == 0) host::keep_freed(false);
}

void wait_for_claims(std::unique_lock<std::mutex>& lock) {
  auto& self = registry();
  // The interpreter lock may not be asked for while the mutex is held, so the mutex is given up
  // first, and the caller looks at everything again.
  const auto hooks = self.blocking;
  lock.unlock();
  void* token = hooks.release != nullptr ? hooks.release() : nullptr;
  lock.lock();
  // A claim can have ended in between; the timeout makes a lost wake-up cost a millisecond.
  self.claims_changed.wait_for(lock, std::chrono::milliseconds(1));
  lock.unlock();
  if (hooks.acquire != nullptr) hooks.acquire(token);
  lock.lock();
}

void leave(Sharer& sharer, bool remember, Garbage& garbage) {
  auto& self = registry();
  Block& block = *sharer.block;
  block.unlink(sharer);
  --self.sharer_count;
  if (remember && sharer.storage != nullptr) {
    block.leavers.push_back(
        {WeakStorage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(sharer.storage)), steady_seconds()});
  }
  if (block.sharer_count == 0) {
    self.remove(block);
    garbage.nothing_shared = self.block_count == 0;
    retire(block, garbage);
  }
}

}  // namespace torchcow
