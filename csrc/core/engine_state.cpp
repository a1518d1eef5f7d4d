// SPDX-License-Identifier: Apache-2.0

#include "engine_state.h"

#include "exposure.h"
#include "fork.h"
#include "host_pages.h"
#include "intrusive_list.h"
#include "invariant.h"
#include "stream_order.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace torchcow {

namespace {

void before_fork() { engine().mutex.lock(); }

void after_fork_in_parent() { engine().mutex.unlock(); }

/// A claim of the thread that lives on in the child goes on, and its epoch with it.
void renew_own_claims() {
  auto& self = engine();
  for (auto* block = self.blocks; block != nullptr; block = block->next) {
    for (auto* sharer = block->sharers; sharer != nullptr; sharer = sharer->next) {
      if (self.claimed(*sharer) && sharer->claimant == std::this_thread::get_id()) ++sharer->claim_epoch;
    }
  }
}

void after_fork_in_child() {
  auto& self = engine();
  renew_own_claims();
  ++self.fork_epoch;
  // Waiters of the parent do not exist here; a condition variable that remembers them is replaced.
  new (&self.claims_changed) std::condition_variable();
  self.mutex.unlock();
}

const AtFork at_fork(ForkStage::engine,
                     {.before = &before_fork, .in_parent = &after_fork_in_parent, .in_child = &after_fork_in_child});

}  // namespace

EngineState& engine() noexcept {
  static auto* instance = new EngineState();
  return *instance;
}

Garbage::~Garbage() {
  while (sharers != nullptr) delete std::exchange(sharers, sharers->next);
  while (blocks != nullptr) {
    auto* block = std::exchange(blocks, blocks->next);
    if (block->order) block->order->before_free(block->data);
    delete block;
  }
  if (nothing_shared) host::drop_kept();
}

void Garbage::add(Block& block) noexcept {
  const auto has_pointers = [](const FormerSharer& former_sharer) {
    return former_sharer.exposure && former_sharer.exposure->pointers_may_be_in_use() &&
           former_sharer.storage.use_count() > 0;
  };
  TORCHCOW_INVARIANT(I3, block.sharer_count == 0 && block.sharers == nullptr, block.id, block.sharer_count);
  TORCHCOW_INVARIANT(I3, !block.data || std::ranges::none_of(block.former_sharers, has_pointers), block.id);
  block.next = std::exchange(blocks, &block);
}
void Garbage::add(Sharer& sharer) noexcept { sharer.next = std::exchange(sharers, &sharer); }

void EngineState::add(Block& block) noexcept {
  block.id = next_id++;
  push_front(blocks, block);
  if (++block_count == 1) host::keep_freed(true);
}

void EngineState::remove(Block& block) noexcept {
  remove_from(blocks, block);
  if (--block_count == 0) host::keep_freed(false);
}

void EngineState::add_retired(Block& block) noexcept { push_front(retired, block); }
void EngineState::remove_retired(Block& block) noexcept { remove_from(retired, block); }

void wait_for_claims(std::unique_lock<std::mutex>& lock) {
  auto& self = engine();
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

}  // namespace torchcow
