#include "reading.h"

#include "allocate.h"
#include "device_copy.h"
#include "host_copy.h"
#include "materialize.h"
#include "pin.h"
#include "relocate.h"
#include "stream_order.h"
#include "verify.h"
#include "write_hook.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>

namespace torchcow {

namespace {

/// The storage's sharer, once no other thread is in the middle of its first write. This one may be.
Sharer* settled_sharer(const c10::StorageImpl& storage, std::unique_lock<std::mutex>& lock) {
  for (;;) {
    Sharer* sharer = write_hook::sharer_of(storage);
    if (sharer == nullptr || !engine().claimed(*sharer)) return sharer;
    if (sharer->claimant == std::this_thread::get_id()) return sharer;
    wait_for_claims(lock);
  }
}

bool overlap(const Sharer& before, const Sharer& after) {
  return before.block == after.block && after.offset < before.offset + before.bytes;
}

Block* find_block(std::uint64_t id, Block* list) {
  while (list != nullptr && list->id != id) list = list->next;
  return list;
}

/// Do pointers look into `block` that were handed out in the scope of another storage than `owner`?
bool others_look_into(const Block& block, const c10::StorageImpl* owner) {
  return std::any_of(block.former_sharers.begin(), block.former_sharers.end(), [&](const FormerSharer& former_sharer) {
    return former_sharer.pointers > 0 && former_sharer.storage._unsafe_get_target() != owner &&
           former_sharer.storage.use_count() > 0;
  });
}

/// No pointer of a scope is left that looks into the block which `storage` left in it.
void forget_pointers(std::uint64_t id, const c10::StorageImpl& storage) {
  auto* block = find_block(id, engine().blocks);
  if (block == nullptr) block = find_block(id, engine().retired);
  if (block == nullptr) return;
  for (auto& former_sharer : block->former_sharers) {
    if (former_sharer.storage._unsafe_get_target() == &storage && former_sharer.pointers > 0) --former_sharer.pointers;
  }
}

}  // namespace

void Reading::suspend(c10::ArrayRef<c10::StorageImpl*> storages) {
  std::vector<Sharer*> sharers;
  sharers.reserve(storages.size());
  entries_.reserve(storages.size());
  auto& state = engine();
  std::unique_lock lock(state.mutex);
  // Waiting gives up the mutex: all are looked at again after it.
  for (auto* storage : storages) settled_sharer(*storage, lock);
  for (auto* storage : storages) {
    auto* sharer = write_hook::sharer_of(*storage);
    if (sharer != nullptr && !state.claimed(*sharer)) sharers.push_back(sharer);
  }
  std::sort(sharers.begin(), sharers.end(), [](auto* a, auto* b) {
    return std::tie(a->block->id, a->offset, a->storage) < std::tie(b->block->id, b->offset, b->storage);
  });
  const Sharer* last = nullptr;
  for (auto* sharer : sharers) {
    if (last != nullptr && overlap(*last, *sharer)) continue;
    last = sharer;
    auto& storage = *sharer->storage;
    entries_.push_back({WeakStorage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&storage)), sharer->block->id,
                        storage.resizable()});
    if (sharer->readings++ > 0) continue;
    if (storage.allocator() != nullptr) storage.set_resizable(true);
    write_hook::suspend(storage);
  }
}

Reading::Reading(c10::ArrayRef<c10::StorageImpl*> storages, bool checksum) : checksum_(checksum) {
  write_hook::sweep();
  suspend(storages);
  if (!checksum_) return;
  try {
    sums_ = checksums(blocks());
  } catch (...) {
    checksum_ = false;
    end();
    throw;
  }
}

Reading::~Reading() {
  checksum_ = false;
  end();
}

std::vector<const c10::StorageImpl*> Reading::covered() const {
  std::vector<const c10::StorageImpl*> storages;
  for (const auto& entry : entries_) storages.push_back(entry.storage._unsafe_get_target());
  return storages;
}

std::unordered_set<std::uint64_t> Reading::blocks() const {
  std::unordered_set<std::uint64_t> blocks;
  for (const auto& entry : entries_) blocks.insert(entry.block);
  return blocks;
}

std::vector<Reading::Outcome> Reading::end() {
  std::vector<Outcome> outcomes;
  outcomes.reserve(entries_.size());
  const auto looked_at = blocks();
  std::vector<c10::intrusive_ptr<c10::StorageImpl>> held;  // may end here, without the mutex
  held.reserve(entries_.size());
  std::unique_lock lock(engine().mutex);
  for (const auto& entry : std::exchange(entries_, {})) {
    auto storage = entry.storage.lock();
    if (!storage) continue;
    auto& impl = *held.emplace_back(std::move(storage));
    Sharer* sharer = settled_sharer(impl, lock);
    if (sharer != nullptr && sharer->readings > 0 && --sharer->readings == 0) write_hook::resume(impl);
    const bool stayed = sharer != nullptr && sharer->block->id == entry.block;
    const bool goes_on = stayed && sharer->readings > 0;
    const bool seen_by_numpy = !impl.resizable();
    if (!seen_by_numpy && !stayed) forget_pointers(entry.block, impl);
    if (!entry.resizable) impl.set_resizable(false);
    outcomes.push_back({entry.storage, entry.block, stayed, goes_on, seen_by_numpy, false});
  }
  lock.unlock();
  if (!checksum_) return outcomes;
  const auto sums = checksums(looked_at);
  for (auto& outcome : outcomes) {
    const auto now = sums.find(outcome.block);
    const auto before = sums_.find(outcome.block);
    outcome.damaged = now != sums.end() && before != sums_.end() && now->second != before->second;
  }
  return outcomes;
}

namespace {

/// A copy of a pinned block, in the list of blocks and pinned as well.
Pin copy_of(const Block& block) {
  const auto device = block.device();
  TORCH_CHECK(device.is_cpu() || !capturing(current_stream(device)),
              "torchcow: a pointer that was taken within torchcow.reading is still in use, and its tensor cannot be "
              "parted from those that share with it while a graph is being captured. End the scope after the capture.");
  auto made = std::make_unique<Block>();
  made->bytes = block.bytes;
  made->allocator = block.allocator;
  made->data = allocate_for(device, *block.allocator, block.bytes);
  if (device.is_cpu()) {
    host::copy(made->data.get(), block.data.get(), block.bytes);
  } else {
    copy_on_device({{made->data.get(), block.data.get(), block.bytes, const_cast<Block*>(&block)}});
    wait_on_host(device);
    made->order = std::make_shared<StreamOrder>(StreamOrder::record_ready(device));
  }
  std::lock_guard lock(engine().mutex);
  Pin pin(*made);
  engine().add(*made.release());
  return pin;
}

}  // namespace

bool isolate(std::uint64_t number, const std::vector<c10::intrusive_ptr<c10::StorageImpl>>& siblings,
             c10::StorageImpl* owner) {
  Garbage garbage;
  auto& state = engine();
  std::optional<Pin> pin;
  {
    std::lock_guard lock(state.mutex);
    auto* block = find_block(number, state.blocks);
    if (block == nullptr) return true;
    if (!may_be_pinned(*block)) return false;
    pin.emplace(*block);
  }
  auto& block = pin->block();
  bool alone = false;
  {
    const Pin copy = copy_of(block);
    fingerprint(copy.block());
    std::unique_lock lock(state.mutex);
    for (const auto& sibling : siblings) {
      auto* sharer = settled_sharer(*sibling, lock);
      if (sharer == nullptr || state.claimed(*sharer) || sharer->block != &block || sibling.get() == owner) continue;
      const auto home = sharer->home;
      relocate(*sharer, copy.block(), sharer->offset, garbage);
      if (!home) continue;
      lock.unlock();  // device calls
      block.order->record_stream(block.data, *home);
      copy.block().order->record_stream(copy.block().data, *home);
      lock.lock();
    }
    const auto* own = owner != nullptr ? write_hook::sharer_of(*owner) : nullptr;
    alone = block.sharer_count == (own != nullptr && own->block == &block ? 2U : 1U) && !others_look_into(block, owner);
  }
  pin.reset();
  if (alone && owner != nullptr) materialize({{owner}}, {"torchcow.reading", false, true, /*stays=*/true});
  return alone;
}

}  // namespace torchcow
