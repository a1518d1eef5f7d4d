// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// fork(): what each part of the core does before and after it, in one order.
///
/// The child has one thread, and the memory of all others as it was. A mutex that another thread held stays locked
/// there for ever, and what it guarded is half changed. So each mutex of the core is locked before a fork and unlocked
/// in both processes after it.
///
/// Before a fork the stages run in the order of `ForkStage`, which is the order in which the locks may be nested. After
/// it they run in the opposite order, so that everything under the engine's mutex is repaired before that is unlocked.
///
/// Not covered: the mutexes of `StreamOrder` and of the device kernels, as no device can be used in the child of a
/// process that has used it.
///
/// Threads: a source registers its handlers once, by an `AtFork` of static storage duration, when the library is
/// loaded. The handlers run in the thread that forks.

namespace torchcow {

enum class ForkStage : std::uint8_t {
  engine,      ///< engine_state.cpp: locked; claims of other threads are void in the child
  writing,     ///< writing.cpp: announcements of other threads are void in the child
  events,      ///< events.cpp: locked
  host_pages,  ///< host_pages.cpp: locked
  host_copy,   ///< host_copy.cpp: the child has no pool of threads
};

/// Null: nothing to do.
struct ForkHandlers {
  void (*before)() = nullptr;
  void (*in_parent)() = nullptr;
  void (*in_child)() = nullptr;
};

/// Registers the handlers of one stage.
class AtFork {
 public:
  AtFork(ForkStage stage, const ForkHandlers& handlers) noexcept;
};

}  // namespace torchcow
