#include "captured.h"

#include "engine_state.h"

#include <atomic>
#include <unordered_map>
#include <utility>
#include <vector>

namespace torchcow::captured {

namespace {

std::atomic<bool> noted{false};

using Marked = std::unordered_map<const c10::StorageImpl*, WeakStorage>;

/// The weak references keep the addresses from meaning other storages. Made when the library is loaded, as `is_marked`
/// may not throw; lives until the process ends.
Marked& marked = *new Marked();

std::size_t prune_at = 256;

}  // namespace

void note() noexcept { noted = true; }

bool take_note() noexcept { return noted.exchange(false); }

void mark(c10::StorageImpl& storage) {
  std::vector<WeakStorage> dead;  // freed without the mutex
  WeakStorage reference(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&storage));
  std::lock_guard lock(engine().mutex);
  if (marked.size() >= prune_at) {
    for (auto entry = marked.begin(); entry != marked.end();) {
      const auto here = entry++;
      if (here->second.use_count() > 0) continue;
      dead.push_back(std::move(here->second));
      marked.erase(here);
    }
    prune_at = 2 * marked.size() + 256;
  }
  marked.emplace(&storage, std::move(reference));
}

bool is_marked(const c10::StorageImpl& storage) noexcept { return marked.contains(&storage); }

}  // namespace torchcow::captured
