// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "engine_state.h"

/// A sharer gives up its block: because its storage was materialized, moved, resized or freed.
///
/// Invariants: a storage that lives on shares another block by then, or has memory of its own and an event that says
/// why (I10). The block of the last sharer is freed or retired (retire.h, I3).
///
/// Failure: nothing here can fail. What is to be freed goes into the garbage.

namespace torchcow {

/// Takes `sharer` off its block and puts it into the garbage.
/// `former_sharer`: the storage, if it lives on elsewhere and may still be read in the block (I3); otherwise empty.
/// The engine's mutex is held.
void detach(Sharer& sharer, FormerSharers&& former_sharer, Garbage& garbage) noexcept;

/// The storage of `sharer` is gone, or has other memory now. Without the mutex.
void storage_dropped(Sharer* sharer) noexcept;

}  // namespace torchcow
