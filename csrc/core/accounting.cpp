// SPDX-License-Identifier: Apache-2.0
#include "accounting.h"

#include "engine_state.h"
#include "events.h"
#include "host_pages.h"
#include "invariant.h"
#include "reserve.h"
#include "retire.h"
#include "write_hook.h"

#include <mutex>

namespace torchcow {

Totals totals() {
  write_hook::sweep();
  Totals sum;
  {
    Garbage garbage;
    auto& state = engine();
    std::lock_guard lock(state.mutex);
    sweep_retired(garbage);
    for (auto* block = state.blocks; block != nullptr; block = block->next) {
      ++sum.blocks;
      sum.unique_bytes += block->bytes;
      const auto sharers_before = sum.sharers;
      for (auto* sharer = block->sharers; sharer != nullptr; sharer = sharer->next) {
        ++sum.sharers;
        sum.logical_bytes += sharer->bytes;
      }
      TORCHCOW_INVARIANT(I9, sum.sharers - sharers_before == block->sharer_count, sum.sharers - sharers_before,
                         block->sharer_count);
    }
    TORCHCOW_INVARIANT(I9, sum.blocks == state.block_count && sum.sharers == state.sharer_count, sum.blocks,
                       state.block_count, sum.sharers, state.sharer_count);
    sum.reserved_bytes = reserved_bytes();
    for (auto* block = state.retired; block != nullptr; block = block->next) {
      ++sum.retired_blocks;
      sum.retired_bytes += block->bytes;
    }
  }
  sum.kept_bytes = host::kept_bytes();
  sum.forgotten_events = forgotten_events();
  return sum;
}

Usage usage(const c10::StorageImpl& storage) {
  std::lock_guard lock(engine().mutex);
  const Sharer* sharer = write_hook::sharer_of(storage);
  if (sharer == nullptr) return {nullptr, 0, 0, storage.nbytes()};
  return {sharer->block, sharer->block->bytes, sharer->block->sharer_count, sharer->bytes, sharer->offset};
}

}  // namespace torchcow
