// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

#include <condition_variable>
#include <cstdint>
#include <mutex>

/// The engine state: the mutex that guards all blocks and sharers, and the lists of blocks.
///
/// Why one mutex for all of them: critical sections only move pointers and counts, and allocate small records of
/// bookkeeping. They neither allocate nor copy nor free the memory of tensors, and call no deleter, no torch operator
/// and no Python. What a critical section wants freed goes into a `Garbage`, which outlives the lock.
///
/// A materialization takes long and runs foreign code, so it does not hold the mutex. It *claims* its sharers, and a
/// thread that needs a claimed sharer waits for `claims_changed`. Several sharers are claimed in the order of their
/// storages' addresses, so that two batches cannot wait for each other.
///
/// Lock order: a thread takes a lock only while it holds locks of earlier rows, and only if the row allows it.
///
///   lock                          guards                                  taken while holding
///   interpreter lock              Python                                  nothing of what follows
///   engine state (this file)      blocks, sharers, reserves, marks of     the interpreter lock, or nothing
///                                 captured storages, long lists of
///                                 written storages (writing.h)
///   event ring (events.cpp)       events, last events                     the engine state, or nothing
///   kept pages (host_pages.cpp)   freed memory for the next first write   nothing of ours
///   StreamOrder, one per block    streams and events of the block         nothing of ours; it calls the device
///   listener queue (bindings)     events of threads without Python        nothing of ours
///   Device (cuda/driver.h)        context and kernels of one GPU          nothing of ours; it calls the driver
///
/// Only a fork holds more than these rows allow: it takes them in one stated order (fork.h). A claim of a thread that
/// the child does not have is void there: `fork_epoch` tells. The thread that forked keeps its own claims.
///
/// Ownership: the state lives until the process ends, as storages may die after static destructors ran. It owns the
/// blocks on its lists. Threads: all members are guarded by `mutex`, but for `claims_changed`.

namespace torchcow {

/// Blocks, sharers and former sharers to be destroyed after the mutex is given up. Declare it before the lock. Adding
/// to it cannot fail: what is added carries its own links, and is on no other list any more.
struct Garbage {
  Block* blocks = nullptr;
  Sharer* sharers = nullptr;
  FormerSharers former_sharers;
  bool nothing_shared = false;  ///< the last block is gone: kept pages are of no use (host_pages.h)
  Garbage() = default;
  Garbage(const Garbage&) = delete;
  Garbage& operator=(const Garbage&) = delete;
  ~Garbage();
  void add(Block& block) noexcept;
  void add(Sharer& sharer) noexcept;
};

/// What a thread does before and after it waits for another one. The bindings release the interpreter lock here, so
/// the core needs no Python.
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
  /// The list of blocks without sharers that may still be read (retire.h).
  void add_retired(Block& block) noexcept;
  void remove_retired(Block& block) noexcept;

  /// Is `sharer` claimed by a thread of this process?
  [[nodiscard]] bool claimed(const Sharer& sharer) const noexcept {
    return sharer.claimed && sharer.claim_epoch == fork_epoch;
  }
};

EngineState& engine() noexcept;

/// Waits until a claim has changed, without `lock` and within the blocking hooks. The caller has to look at everything
/// again afterwards.
void wait_for_claims(std::unique_lock<std::mutex>& lock);

}  // namespace torchcow
