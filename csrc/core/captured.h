// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

/// Storages whose addresses a captured CUDA graph may use.
///
/// A graph records addresses and runs without operators. If a replay wrote a shared block, the write would reach all
/// sharers, and no layer of the barrier could notice. So the storages that were on a device when a graph was captured
/// are not shared afterwards; clones of them are eager copies.
///
/// A capture leaves only a note, and the next clone marks the storages that exist then (deepcopy/clone.cpp). These may
/// be more than the graph uses, which costs copies but never a wrong number.
///
/// Ownership: marks hold storages weakly. Threads: any; the engine's mutex guards the marks. Failure: `mark` may throw
/// std::bad_alloc.

namespace torchcow::captured {

/// A graph has been captured.
void note() noexcept;

/// Has one been captured since the last call?
[[nodiscard]] bool take_note() noexcept;

/// A graph may use the address of `storage`, as long as that lives.
void mark(c10::StorageImpl& storage);

/// Call with the engine's mutex held.
[[nodiscard]] bool is_marked(const c10::StorageImpl& storage) noexcept;

}  // namespace torchcow::captured
