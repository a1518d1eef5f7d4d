// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "block.h"

/// The write hook: layer L2 of the barrier, which notices any request for a mutable pointer.
///
/// This is the one seam between the engine and the version of torch. Two implementations:
///   write_hook_materializer.cpp   torch >= 2.13, on StorageImpl::set_materializer
///   write_hook_cow.cpp            torch 2.11 and 2.12, on torch's copy-on-write DataPtr
/// The rest of the engine does not know which.
///
/// An *armed* storage's DataPtr points into a block, and its context is the sharer. When torch asks it
/// for a mutable pointer, `Handlers::first_write` runs before the pointer is handed out; if that
/// throws, the storage stays armed. When the storage drops its DataPtr, `Handlers::dropped` runs.
///
/// Ownership: an armed storage owns its sharer, by its DataPtr. Threads: arm, move and reseat are called with the
/// engine's mutex held. They change the storage so that a thread that reads it at this moment sees either the old or
/// the new address, and both are valid then (I3). Failure: all that can fail is in `prepare`.

namespace torchcow::write_hook {

/// Which implementation was built.
extern const char* const name;

/// Can two threads that ask one storage for a mutable pointer at once make torch itself throw?
extern const bool racing_readers_break;

/// What the engine does when the hook is called.
struct Handlers {
  bool (*first_write)(c10::StorageImpl* storage);  ///< materialize.h
  void (*dropped)(Sharer* sharer) noexcept;        ///< retire.h
};

/// Once, before the first storage is armed.
void install(const Handlers& handlers);

/// The sharer of an armed storage, or nullptr. Without the engine's mutex the answer is a hint.
Sharer* sharer_of(const c10::StorageImpl& storage) noexcept;

/// A hint that needs no lock, and never misses a sharer: it may say yes while the storage is being reseated.
bool looks_armed(const c10::StorageImpl& storage) noexcept;

/// The writer found no sharer: another thread materialized the storage first, or it was never shared. `from_hook`: the
/// writer came through the hook, and torch has not finished there. Call with the engine's mutex held.
void lost_race(c10::StorageImpl& storage, bool from_hook);

/// May the storage be armed? busy: not yet, as another thread is on its way out of the hook; retry. occupied: never, as
/// a hook of other code is on the storage.
enum class Readiness { ready, busy, occupied };
Readiness readiness(c10::StorageImpl& storage) noexcept;

/// Does in advance whatever can fail in arming `storage`. Call with the engine's mutex held.
void prepare(c10::StorageImpl& storage);

/// Arms a prepared `storage` for `sharer`; returns the memory that it owned (empty for a new clone's storage).
c10::DataPtr arm(c10::StorageImpl& storage, Sharer& sharer) noexcept;

/// Makes an armed `storage` read what `sharer` reads. The caller takes its former sharer off its block.
void move(c10::StorageImpl& storage, Sharer& sharer) noexcept;

/// Disables the hook of an armed `storage` until `resume` (reading.h). The storage remains a sharer, and looks armed.
void suspend(c10::StorageImpl& storage) noexcept;
void resume(c10::StorageImpl& storage) noexcept;

/// Gives `storage` memory of its own and disarms it. `from_hook`: torch called us, and finishes the
/// disarming itself after our return.
void reseat(c10::StorageImpl& storage, c10::DataPtr memory, bool from_hook) noexcept;

/// The allocator that the storage would use if it were not armed.
c10::Allocator* allocator_of(const c10::StorageImpl& storage) noexcept;

/// The deleter of the storage's memory, whatever this hook has put around it.
c10::DeleterFnPtr deleter_of(const c10::StorageImpl& storage) noexcept;

/// Drops sharers whose storages have left without a call, and the memory of such storages: torch 2.11 and 2.12 do not
/// notify the hook of each resize.
void sweep();

}  // namespace torchcow::write_hook
