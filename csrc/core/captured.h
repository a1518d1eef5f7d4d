#pragma once

#include "block.h"

/// Storages whose addresses a captured graph may use.
///
/// A graph records addresses and runs without operators. A replay that writes a shared block would reach all who share
/// it, and nothing could notice. So what was on a device when a graph was captured is not shared afterwards.
///
/// A capture leaves only a note; whoever clones next marks what is there then (deepcopy/clone.cpp). That may be more
/// than the graph knows, which costs copies and is right.
///
/// Threads: any.

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
