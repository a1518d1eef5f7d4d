// SPDX-License-Identifier: Apache-2.0
#include "reading.h"

#include "allocate.h"
#include "claims.h"
#include "device_copy.h"
#include "host_copy.h"
#include "materialize.h"
#include "numpy_mark.h"
#include "pin.h"
#include "relocate.h"
#include "stream_order.h"
#include "verify.h"
#include "write_hook.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

namespace torchcow {

namespace {

bool overlap(const Sharer& before, const Sharer& after) {
  return before.block == after.block && after.offset < before.offset + before.bytes;
}

/// The sharers of `storages`, without those that overlap an earlier one in their block.
std::vector<Sharer*> sharers_to_cover(c10::ArrayRef<c10::StorageImpl*> storages, std::unique_lock<std::mutex>& lock) {
  std::vector<Sharer*> sharers;
  sharers.reserve(storages.size());
  // Waiting gives up the mutex: all are looked at again after it.
  for (auto* storage : storages) static_cast<void>(wait_until_unclaimed(*storage, lock));
  for (auto* storage : storages) {
    auto* sharer = write_hook::sharer_of(*storage);
    if (sharer != nullptr && !engine().claimed(*sharer)) sharers.push_back(sharer);
  }
  std::sort(sharers.begin(), sharers.end(), [](auto* a, auto* b) {
    return std::tie(a->block->id, a->offset, a->storage) < std::tie(b->block->id, b->offset, b->storage);
  });
  const Sharer* last = nullptr;
  std::erase_if(sharers, [&](const Sharer* sharer) {
    if (last != nullptr && overlap(*last, *sharer)) return true;
    last = sharer;
    return false;
  });
  return sharers;
}

/// Whatever can fail in covering a sharer, ahead of it.
void prepare_exposure(Sharer& sharer) {
  if (!sharer.exposure) sharer.exposure = std::make_shared<Exposure>();
  auto& blocks = sharer.exposure->blocks;
  if (!sharer.exposure->pointers_may_be_in_use()) blocks.clear();
  if (blocks.empty() || blocks.back() != sharer.block->id) blocks.push_back(sharer.block->id);
}

CoveredStorage cover(Sharer& sharer) noexcept {
  auto& storage = *sharer.storage;
  auto& exposure = *sharer.exposure;
  if (exposure.scopes++ == 0) {
    exposure.seen_by_numpy = numpy_mark::is_set(storage);
    numpy_mark::clear(storage);
    write_hook::suspend(storage);
  }
  return {WeakStorage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&storage)), sharer.block->id, sharer.exposure};
}

void uncover(CoveredStorage& covered, std::unique_lock<std::mutex>& lock) noexcept {
  covered.held = covered.storage.lock();
  auto& exposure = *covered.exposure;
  if (!covered.held) {
    --exposure.scopes;
    return;
  }
  auto& storage = *covered.held;
  Sharer* sharer = wait_until_unclaimed(storage, lock);
  covered.stayed = sharer != nullptr && sharer->block->id == covered.block;
  covered.seen_by_numpy = numpy_mark::is_set(storage);
  covered.still_covered = --exposure.scopes > 0;
  if (covered.still_covered) return;
  exposure.outlived = true;
  if (sharer != nullptr && sharer->exposure == covered.exposure) write_hook::resume(storage);
  if (exposure.seen_by_numpy) numpy_mark::set(storage);
}

}  // namespace

std::vector<CoveredStorage> suspend_hooks(c10::ArrayRef<c10::StorageImpl*> storages) {
  std::vector<CoveredStorage> covered;
  covered.reserve(storages.size());
  std::unique_lock lock(engine().mutex);
  const auto sharers = sharers_to_cover(storages, lock);
  for (auto* sharer : sharers) prepare_exposure(*sharer);
  // Nothing after this point can fail.
  for (auto* sharer : sharers) covered.push_back(cover(*sharer));
  return covered;
}

void resume_hooks(std::vector<CoveredStorage>& covered) noexcept {
  std::unique_lock lock(engine().mutex);
  for (auto& storage : covered) uncover(storage, lock);
}

void set_outlived(Exposure& exposure, bool outlived) noexcept {
  std::lock_guard lock(engine().mutex);
  exposure.outlived = outlived;
}

namespace {

Block* find_block(std::uint64_t id) {
  auto* block = engine().blocks;
  while (block != nullptr && block->id != id) block = block->next;
  return block;
}

/// The sharer of `storage` if it reads `block`, or nullptr.
const Sharer* sharer_in(const Block& block, const c10::StorageImpl* storage) {
  const auto* sharer = storage != nullptr ? write_hook::sharer_of(*storage) : nullptr;
  return sharer != nullptr && sharer->block == &block ? sharer : nullptr;
}

/// Does anything but `owner` and the pin share `block`?
bool others_share(const Block& block, const c10::StorageImpl* owner) {
  return block.sharer_count > (sharer_in(block, owner) != nullptr ? 2U : 1U);
}

/// Were pointers into `block` handed out in the scope of another storage than `owner`, which has left the block?
bool others_look_into(const Block& block, const c10::StorageImpl* owner) {
  return std::any_of(block.former_sharers.begin(), block.former_sharers.end(), [&](const FormerSharer& former_sharer) {
    return former_sharer.exposure && former_sharer.exposure->pointers_may_be_in_use() &&
           former_sharer.storage._unsafe_get_target() != owner && former_sharer.storage.use_count() > 0;
  });
}

/// A copy of a pinned block, in the list of blocks and pinned as well.
Pin copy_of(const Block& block) {
  const auto device = block.device();
  TORCH_CHECK(device.is_cpu() || !capturing(current_stream(device)),
              "torchcow: a pointer that was taken within torchcow.reading is still in use, and its memory cannot be "
              "isolated while a graph is being captured. End the scope after the capture.");
  auto copy = std::make_unique<Block>();
  copy->bytes = block.bytes;
  copy->allocator = block.allocator;
  copy->data = allocate_for(device, *block.allocator, block.bytes);
  if (device.is_cpu()) {
    host::copy(copy->data.get(), block.data.get(), block.bytes);
  } else {
    copy_on_device({{copy->data.get(), block.data.get(), block.bytes, const_cast<Block*>(&block)}});
    wait_on_host(device);
    copy->order = std::make_shared<StreamOrder>(StreamOrder::record_ready(device));
  }
  std::lock_guard lock(engine().mutex);
  Pin pin(*copy);
  engine().add(*copy.release());
  return pin;
}

/// Moves those of `siblings` that share `block` to a copy of it, except `owner`. The block is pinned.
void move_siblings(Block& block, const Storages& siblings, const c10::StorageImpl* owner) {
  Garbage garbage;
  const Pin copy = copy_of(block);
  fingerprint(copy.block());
  std::vector<c10::Stream> homes;
  homes.reserve(siblings.size());
  {
    std::unique_lock lock(engine().mutex);
    for (const auto& sibling : siblings) {
      auto* sharer = wait_until_unclaimed(*sibling, lock);
      if (sharer == nullptr || engine().claimed(*sharer) || sharer->block != &block || sibling.get() == owner) continue;
      if (sharer->home) homes.push_back(*sharer->home);
      relocate(*sharer, copy.block(), sharer->offset, garbage);
    }
  }
  // Reads of the old block may be queued where the siblings are at home, and reads of the copy will be.
  for (const auto& home : homes) {
    block.order->record_stream(block.data, home);
    copy.block().order->record_stream(copy.block().data, home);
  }
}

bool isolate_block(std::uint64_t id, const Storages& siblings, c10::StorageImpl* owner) {
  std::optional<Pin> pin;
  bool shared = false;
  {
    std::lock_guard lock(engine().mutex);
    auto* block = find_block(id);
    if (block == nullptr) return true;
    if (!may_be_pinned(*block)) return false;
    pin.emplace(*block);
    shared = others_share(*block, owner);
  }
  const Block& block = pin->block();
  if (shared) move_siblings(pin->block(), siblings, owner);
  bool alone = false;
  bool takes = false;
  {
    std::lock_guard lock(engine().mutex);
    const auto* sharer = sharer_in(block, owner);
    alone = !others_share(block, owner) && !others_look_into(block, owner) &&
            (sharer == nullptr || can_take_memory(*sharer));
    takes = alone && sharer != nullptr;
  }
  pin.reset();
  if (takes) materialize({{owner}}, {"torchcow.reading", false, true, /*stays=*/true});
  return alone;
}

}  // namespace

bool isolate(const CoveredStorage& covered, const Storages& siblings) {
  const auto owner = covered.storage.lock();
  std::vector<std::uint64_t> blocks;
  {
    std::lock_guard lock(engine().mutex);
    blocks = covered.exposure->blocks;
  }
  bool isolated = true;
  for (const auto block : blocks) isolated = isolate_block(block, siblings, owner.get()) && isolated;
  return isolated;
}

}  // namespace torchcow
