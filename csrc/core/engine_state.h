#pragma once

#include "block.h"

#include <condition_variable>
#include <cstdint>
#include <mutex>

/// The engine state: the one lock of the engine, and the list of live blocks.
///
/// Why one lock: critical sections only move pointers and counts (some tens of nanoseconds); they call
/// neither an allocator, nor a deleter, nor torch operators, nor Python. Memory is allocated, copied
/// and freed outside of it. What is to be freed is put into a `Garbage`, which outlives the lock.
///
/// A materialization takes long and runs foreign code, so it does not hold the lock: it *claims* its
/// sharers, and whoever needs a claimed sharer waits on `claims_changed`. Several sharers are claimed
/// in the order of their storages' addresses, so that two batches cannot wait for each other.
///
/// fork(): the lock is held across the fork, so the child finds the state whole. Claims of the
/// parent's other threads have no owner in the child; `fork_epoch` tells, and they are void. The thread that
/// forked keeps its own.

namespace torchcow {

/// Things to be destroyed after the lock is given up. Declare it before the lock. Adding to it cannot fail: what is
/// added is linked, and on no other list any more.
struct Garbage {
  Block* blocks = nullptr;
  Sharer* sharers = nullptr;
  FormerSharers former_sharers;
  bool nothing_shared = false;  ///< the last block is gone, and with it the use of kept pages (host_pages.h)
  Garbage() = default;
  Garbage(const Garbage&) = delete;
  Garbage& operator=(const Garbage&) = delete;
  ~Garbage();
  void add(Block& block) noexcept;
  void add(Sharer& sharer) noexcept;
};

/// What a thread does before and after it blocks for another one; the bindings install the release of
/// the interpreter lock here, which keeps the core free of Python.
struct BlockingHooks {
  void* (*release)() = nullptr;
  void (*acquire)(void*) = nullptr;
};

struct EngineState {
  std::mutex mutex;
  std::condition_variable claims_changed;
  std::uint64_t fork_epoch = 0;
  Block* blocks = nullptr;
  std::size_t block_count = 0;
  std::size_t sharer_count = 0;
  std::uint64_t next_id = 1;
  Block* retired = nullptr;
  BlockingHooks blocking;

  void add(Block& block) noexcept;
  void remove(Block& block) noexcept;
  /// Of blocks that were removed.
  void add_retired(Block& block) noexcept;
  void remove_retired(Block& block) noexcept;

  /// Is `sharer` claimed by a thread that lives?
  [[nodiscard]] bool claimed(const Sharer& sharer) const noexcept {
    return sharer.claimed && sharer.claim_epoch == fork_epoch;
  }
};

/// Lives until the process ends: storages may die after static destructors ran.
EngineState& engine() noexcept;

/// Waits, with `lock` given up and the blocking hooks around it, until some claim has changed.
void wait_for_claims(std::unique_lock<std::mutex>& lock);

}  // namespace torchcow
