// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"
#include "engine_state.h"
#include "events.h"
#include "writing.h"

#include <c10/util/ArrayRef.h>

#include <string_view>
#include <vector>

/// Materialization: memory of its own for a sharer, at its first write.
///
///   steal   it was the block's last sharer, and reads all of it: take the block's memory. No copy. A sharer that has
///           to keep its address takes the memory if it reads a span, too.
///   copy    allocate and copy the sharer's span.
///   skip    the operator overwrites every byte, and no other thread can look: allocate, copy nothing.
///
/// The order of steps is what makes a failure harmless (I5): claim; allocate everything; copy
/// everything; and only then, under the mutex, give up the blocks. Nothing after the copies can fail:
/// whatever the bookkeeping needs was allocated before. So
/// after an exception source and clones are unchanged and still share, and a retry works. A batch is
/// materialized whole or not at all.
///
/// Threads: many threads may make the first write to one tensor: the first claims, the others wait and
/// find memory of their own. Materializations of different sharers of one block do not wait for each
/// other; each remains a sharer until its copy is complete, so nobody can steal under it.
///
/// Streams: copies are queued on the current stream of the device, after the events of `StreamOrder`.
/// During graph capture only a steal without pending readers is possible; everything else raises.

namespace torchcow {

/// Who writes, for the ledger and for error messages.
struct Cause {
  std::string_view operator_name;
  bool raw_pointer = false;  ///< the pointer may be used on any stream at once: wait on the host
  bool visible = true;       ///< false: nobody has seen the sharers yet (no event, no former sharers)
  bool stays = false;        ///< the storage keeps its address, which somebody holds: steal, whoever else reads there
};

/// A skipped copy, until its operator has returned: what the storage held can still be restored.
struct Skipped {
  c10::intrusive_ptr<c10::StorageImpl> storage;
  Sharer* keeper;               ///< stays on the block, and keeps the bytes readable
  FormerSharers former_sharer;  ///< the storage, for the day on which the keeper leaves
};

/// Can a storage take the memory of its block, of which it is the last sharer, and keep its address? An allocator of a
/// device knows memory by its first byte, so a span cannot be taken there.
[[nodiscard]] bool can_take_memory(const Sharer& sharer) noexcept;

/// Materializes those of `targets` that are sharers. Appends to `skipped`; without it nothing is skipped.
/// Throws what the allocator throws, with the tensors' sizes added, and then nothing has changed.
void materialize(c10::ArrayRef<WriteTarget> targets, const Cause& cause, std::vector<Skipped>* skipped = nullptr);

/// The operator succeeded and wrote all but the bytes from `written` on: copies those, and forgets.
void finish_skipped(Skipped& skipped, std::size_t written);

/// Called by the write hook. False: another thread was first, or the storage is no sharer any more.
bool first_write(c10::StorageImpl* storage);

/// Installs the write hook. Once, before the first storage is armed.
void install_write_hook();

/// Installed by the bindings: told of each materialization, when its claims are given back and before the write goes
/// on, by the thread that writes. It must not throw.
void set_listener(void (*listener)(const Event& event) noexcept) noexcept;

/// Tests: fills skipped memory with a pattern, so that a byte that was not overwritten shows.
void poison_skipped(bool on) noexcept;

}  // namespace torchcow
