// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "engine_state.h"

/// Retirement: a block without sharers is freed only when no operator can still read it (I3).
///
/// A storage that is materialized moves away from its block. An operator that started before the move,
/// in another thread, still reads there; without us it would read memory that is being written (torn
/// values), never memory that was freed. The same holds for an alias through which somebody took a
/// pointer. So a block that lost its last sharer is freed at once only if each storage that once moved
/// away from it (its former sharers) is
///   1. dead, or
///   2. held by a single tensor, so that no alias is left, did not leave with raw pointers that may be in
///      use (exposure.h), and either
///      2a. no other thread can be inside an operator (`alone`), or
///      2b. it moved away more than `grace_seconds` ago. Nothing tells whether an operator in another
///          thread still runs: a method call on a tensor holds no reference of its own.
/// Other blocks wait in `engine().retired` and are looked at again whenever the engine runs. A block
/// that may be read by a former sharer is not stolen either: the thief could free it.

namespace torchcow {

inline constexpr double grace_seconds = 3.0;

[[nodiscard]] double steady_seconds() noexcept;

/// May a storage that left `block` still be read there?
[[nodiscard]] bool read_by_former_sharers(const Block& block) noexcept;

/// Forgets former sharers that read `block` no more, now and then: as many may come and go as the source has clones.
/// The engine's mutex is held.
void prune_former_sharers(Block& block, Garbage& garbage) noexcept;

/// Frees `block` (through `garbage`) or retires it. The engine's mutex is held.
void retire(Block& block, Garbage& garbage) noexcept;

/// Frees retired blocks that nobody can read any more. The engine's mutex is held.
void sweep_retired(Garbage& garbage) noexcept;

/// Can no other thread be inside an operator? Those that run Python, and those of inter_op.h.
[[nodiscard]] bool alone() noexcept;

/// Installed by the bindings: may a thread other than the caller be inside an operator? Called with the
/// mutex held, so it must not block. Without it: yes.
void set_other_threads_probe(bool (*probe)()) noexcept;

}  // namespace torchcow
