// SPDX-License-Identifier: Apache-2.0

#include "captured.h"

#include "engine_state.h"
#include "storage_table.h"

#include <atomic>
#include <mutex>

namespace torchcow::captured {

namespace {

std::atomic<bool> noted{false};

/// Made when the library is loaded, as `is_marked` may not throw; lives until the process ends.
StorageTable<bool>& marks = *new StorageTable<bool>();

}  // namespace

void note() noexcept { noted = true; }

bool take_note() noexcept { return noted.exchange(false); }

void mark(c10::StorageImpl& storage) {
  StorageTable<bool>::Removed removed;  // destroyed without the mutex
  std::lock_guard lock(engine().mutex);
  removed = marks.remove_dead();
  marks.insert(storage, true);
}

bool is_marked(const c10::StorageImpl& storage) noexcept { return marks.find(&storage) != nullptr; }

}  // namespace torchcow::captured
