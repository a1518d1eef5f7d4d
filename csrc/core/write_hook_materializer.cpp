// SPDX-License-Identifier: Apache-2.0

#include "invariant.h"
#include "write_hook.h"

#include "storage_table.h"

namespace torchcow::write_hook {

const char* const name = "materializer";
const bool racing_readers_break = false;

namespace {

Handlers handlers{};

void on_drop(void* context) {
  auto* sharer = static_cast<Sharer*>(context);
  // A resized storage lives on with other memory, and torch leaves the hook on it.
  if (sharer->storage != nullptr) sharer->storage->clear_materializer();
  handlers.dropped(sharer);
}

/// Storages whose hook may still be cleared by a thread that lost the race for a first write. torch clears
/// the hook after the call returned: if the storage were armed again in between, that clear would
/// remove the new hook. They are not armed again, as nothing tells when that thread is through.
///
/// Made when the library is loaded, as `readiness` may not throw; lives until the process ends.
StorageTable<bool>& late_clears = *new StorageTable<bool>();

c10::DataPtr pointer_to(Sharer& sharer) {
  return {const_cast<void*>(sharer.data()), &sharer, &on_drop, sharer.block->device()};
}

void on_first_write(c10::StorageImpl* storage) { handlers.first_write(storage); }

}  // namespace

void install(const Handlers& engine_handlers) { handlers = engine_handlers; }

Sharer* sharer_of(const c10::StorageImpl& storage) noexcept {
  const auto& data = const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks();
  return data.get_deleter() == &on_drop ? static_cast<Sharer*>(data.get_context()) : nullptr;
}

bool looks_armed(const c10::StorageImpl& storage) noexcept {
  // The deleter alone: the context is gone for a moment while the address is still the block's.
  return const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks().get_deleter() == &on_drop;
}

void lost_race(c10::StorageImpl& storage, bool from_hook) {
  if (!from_hook) return;
  static_cast<void>(late_clears.remove_dead());  // structs without memory or hook: freeing them calls nothing
  late_clears.insert(storage, true);
}

Readiness readiness(c10::StorageImpl& storage) noexcept {
  if (late_clears.find(&storage) != nullptr) return Readiness::occupied;
  return storage.has_materializer() ? Readiness::busy : Readiness::ready;
}

void prepare(c10::StorageImpl&) {}

c10::DataPtr arm(c10::StorageImpl& storage, Sharer& sharer) noexcept {
  // The hook first: a writer that comes in between waits for the mutex, and finds a sharer.
  storage.set_materializer(&on_first_write);
  c10::DataPtr old = std::move(storage._mutable_data_ptr_no_checks());
  storage.set_data_ptr_noswap(pointer_to(sharer));
  TORCHCOW_INVARIANT(I2, storage.has_materializer() && sharer_of(storage) == &sharer, sharer.bytes);
  return old;
}

void move(c10::StorageImpl& storage, Sharer& sharer) noexcept {
  storage._mutable_data_ptr_no_checks().release_context();
  storage.set_data_ptr_noswap(pointer_to(sharer));
}

void suspend(c10::StorageImpl& storage) noexcept { storage.clear_materializer(); }

void resume(c10::StorageImpl& storage) noexcept {
  if (!storage.has_materializer()) storage.set_materializer(&on_first_write);
}

void reseat(c10::StorageImpl& storage, c10::DataPtr memory, bool from_hook) noexcept {
  storage._mutable_data_ptr_no_checks().release_context();
  storage.set_data_ptr_noswap(std::move(memory));
  if (from_hook) {
    // Until torch has cleared the hook, `readiness` is busy: nobody arms a storage that is about to lose it. The hook
    // may have been suspended since torch called it.
    resume(storage);
  } else {
    storage.clear_materializer();
  }
  TORCHCOW_INVARIANT(I2, sharer_of(storage) == nullptr && storage.has_materializer() == from_hook, from_hook);
}

c10::Allocator* allocator_of(const c10::StorageImpl& storage) noexcept {
  return const_cast<c10::Allocator*>(storage.allocator());
}

c10::DeleterFnPtr deleter_of(const c10::StorageImpl& storage) noexcept {
  return const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks().get_deleter();
}

void sweep() {}

}  // namespace torchcow::write_hook
