// SPDX-License-Identifier: Apache-2.0
#include "detach.h"

#include "events.h"
#include "invariant.h"
#include "retire.h"
#include "stream_order.h"
#include "write_hook.h"

namespace torchcow {

void detach(Sharer& sharer, FormerSharers&& former_sharer, Garbage& garbage) noexcept {
  auto& self = engine();
  Block& block = *sharer.block;
  // A storage that lives on has another sharer, or memory of its own and an event. One on probation nobody has seen.
  TORCHCOW_INVARIANT(I10,
                     sharer.storage == nullptr || block.on_probation() ||
                         write_hook::sharer_of(*sharer.storage) != nullptr || has_event(*sharer.storage),
                     block.id, sharer.bytes);
  block.unlink(sharer);
  --self.sharer_count;
  garbage.add(sharer);
  if (!former_sharer.empty()) {
    former_sharer.front().left_at = steady_seconds();
    block.former_sharers.splice(block.former_sharers.end(), former_sharer);
    prune_former_sharers(block, garbage);
  }
  if (block.sharer_count == 0) {
    self.remove(block);
    garbage.nothing_shared = self.block_count == 0;
    retire(block, garbage);
  }
}

void storage_dropped(Sharer* sharer) noexcept {
  if (auto& order = sharer->block->order) {
    try {
      order->record_stream(sharer->block->data, current_stream(sharer->block->device()));
    } catch (...) {
      // At exit the device may be gone.
    }
  }
  Garbage garbage;
  auto& state = engine();
  std::lock_guard lock(state.mutex);
  sharer->storage = nullptr;
  if (state.claimed(*sharer)) return;  // the claimant cleans up
  detach(*sharer, {}, garbage);
  sweep_retired(garbage);
}

}  // namespace torchcow
