#pragma once

#include "engine_state.h"

/// A sharer moves to another block that holds the same bytes.
///
/// The storage moves as in a first write: pointers into the memory that it leaves stay valid as long as anybody may
/// read through them (retire.h), and its next write is noticed as before.

namespace torchcow {

/// Makes the storage of `sharer` read `block` from `offset` on. `sharer` itself goes into the garbage. The engine's
/// mutex is held, and nobody has claimed the sharer. If memory for the bookkeeping is missing, nothing has changed.
void relocate(Sharer& sharer, Block& block, std::size_t offset, Garbage& garbage);

}  // namespace torchcow
