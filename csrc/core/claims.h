// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

#include <mutex>

/// Waiting for a claimed sharer.
///
/// A materialization claims its sharers and does its work without the engine's mutex (engine_state.h). Code that wants
/// to change such a sharer waits until the claim has ended, and looks at the storage again: it may be no sharer any
/// more.

namespace torchcow {

/// The sharer of `storage`, or nullptr, once no other thread claims it. `lock` holds the engine's mutex, and is given
/// up while this waits. A sharer that the calling thread itself has claimed is returned at once, as that claim would
/// never end: the caller asks `engine().claimed`.
[[nodiscard]] Sharer* wait_until_unclaimed(const c10::StorageImpl& storage, std::unique_lock<std::mutex>& lock);

}  // namespace torchcow
