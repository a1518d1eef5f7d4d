// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"
#include "exposure.h"

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <memory>
#include <vector>

/// Reading: what a `torchcow.reading` scope needs under the engine's mutex. The scope itself is
/// deepcopy/reading_scope.h.
///
/// Compiled kernels and writers of files ask for mutable pointers and only read through them. A scope suspends the
/// write hooks (L2) of the storages that it covers, so such a request materializes nothing. The barrier (L1) goes on:
/// operators that write materialize as ever. A write through a raw pointer reaches all storages that share the block.
///
/// Two covered storages never show the same address: code that saves a model takes equal addresses for ties. Where
/// storages overlap in a block, only the first is covered.
///
/// Invariants
///   - The hook of a sharer is suspended exactly as long as its exposure has open scopes (exposure.h).
///   - A block into which pointers were handed out is not freed, and not given to another storage, while they may be in
///     use: until the last scope has ended, and after that as long as the storage lives if something outlives the
///     scope.
///   - When the last scope of an exposure ends, the caller looks for pointers that outlive it. `isolate` then removes
///     all other sharers from each block that was exposed, wherever the storage has moved meanwhile.
///
/// Ownership: a scope holds storages weakly.
///
/// Threads: scopes may overlap in any way, in several threads. `isolate` does not protect operators in other threads
/// that still read a sibling when the covered storage is written later; the scope's contract forbids such a pointer.
///
/// Streams: `isolate` waits on the host, as siblings may be read on any stream afterwards.
///
/// Failure: each function says what has happened if it throws.

namespace torchcow {

using Storages = std::vector<c10::intrusive_ptr<c10::StorageImpl>>;

/// A storage that a scope covers.
struct CoveredStorage {
  WeakStorage storage;
  std::uint64_t block;  ///< id of the block that it shared when the scope began
  std::shared_ptr<Exposure> exposure;

  // Set by `resume_hooks`:
  c10::intrusive_ptr<c10::StorageImpl> held = {};  ///< null if the storage is dead
  bool stayed = false;                             ///< it shares the same block still
  bool still_covered = false;  ///< another scope covers it, and looks for surviving pointers when it ends
  bool seen_by_numpy = false;  ///< NumPy has looked into it while it was covered
};

/// Begins a scope: suspends the hooks of those of `storages` that are sharers. If it throws, nothing is suspended.
[[nodiscard]] std::vector<CoveredStorage> suspend_hooks(c10::ArrayRef<c10::StorageImpl*> storages);

/// Ends a scope, and holds the storages that live. Pointers of an exposure without open scopes count as in use until
/// `set_outlived` says that none is.
void resume_hooks(std::vector<CoveredStorage>& covered) noexcept;

/// Says whether pointers may be in use after the last scope of the exposure.
void set_outlived(Exposure& exposure, bool outlived) noexcept;

/// Gives the memory into which pointers of `covered` may look to that storage alone, at the same address. All
/// `siblings` that share the memory move to one common copy of it.
///
/// False: the memory has sharers that are not among `siblings`; pointers were handed out into it in the scope of
/// another storage; or the storage reads a span on a device whose allocator cannot give a span away. Throws what the
/// allocator throws; then the blocks that are not isolated have not changed.
bool isolate(const CoveredStorage& covered, const Storages& siblings);

}  // namespace torchcow
