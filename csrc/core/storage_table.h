// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "storage.h"

#include <algorithm>
#include <cstddef>
#include <unordered_map>
#include <utility>
#include <vector>

/// A table by storage, whose entries are of no use once their storage has died.
///
/// Invariant: an address in the table means one storage. The entry holds it weakly, so no other storage can get that
/// address before the entry is removed.
///
/// Dead entries are removed when the table has doubled since the last time, so each costs constant time.
///
/// Ownership: the weak reference keeps the struct of a dead storage, not its memory. Threads: guarded by the owner's
/// mutex. Removed entries are returned, as freeing a struct can run foreign code: destroy them without the mutex.
///
/// Failure: `insert` and `remove_dead` may throw std::bad_alloc, and then nothing has changed. `find` cannot fail.

namespace torchcow {

template <typename Value>
class StorageTable {
  struct Entry {
    WeakStorage storage;
    Value value;
  };
  using Entries = std::unordered_map<const c10::StorageImpl*, Entry>;

 public:
  using Removed = std::vector<typename Entries::node_type>;

  [[nodiscard]] Value* find(const c10::StorageImpl* storage) noexcept {
    const auto entry = entries_.find(storage);
    return entry != entries_.end() ? &entry->second.value : nullptr;
  }

  /// Does nothing if the storage has an entry.
  void insert(c10::StorageImpl& storage, Value value) {
    if (!entries_.contains(&storage)) entries_.emplace(&storage, Entry{weak_reference(storage), std::move(value)});
  }

  /// The entries of dead storages, if it is time to look for them.
  [[nodiscard]] Removed remove_dead() {
    Removed removed;
    if (entries_.size() < next_removal_) return removed;
    const auto is_dead = [](const auto& entry) { return entry.second.storage.use_count() == 0; };
    removed.reserve(static_cast<std::size_t>(std::count_if(entries_.begin(), entries_.end(), is_dead)));
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      const auto current = entry++;
      if (removed.size() < removed.capacity() && is_dead(*current)) removed.push_back(entries_.extract(current));
    }
    next_removal_ = std::max(fewest, 2 * entries_.size());
    return removed;
  }

 private:
  static constexpr std::size_t fewest = 256;

  Entries entries_;
  std::size_t next_removal_ = fewest;
};

}  // namespace torchcow
