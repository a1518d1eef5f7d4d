// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "engine_state.h"

/// Relocation: a sharer moves to another block that holds the same bytes.
///
/// The storage becomes a former sharer of the block that it leaves: pointers into that block stay valid as long as they
/// may be read (retire.h). The storage's next write is noticed as before.
///
/// Threads: the engine's mutex is held, and no thread has claimed the sharer. Failure: may throw std::bad_alloc, and
/// then nothing has changed.

namespace torchcow {

/// Makes the storage of `sharer` read `block` from `offset` on. `sharer` itself goes into the garbage.
void relocate(Sharer& sharer, Block& block, std::size_t offset, Garbage& garbage);

}  // namespace torchcow
