// SPDX-License-Identifier: Apache-2.0

#include "reshare.h"

#include "captured.h"
#include "invariant.h"
#include "relocate.h"
#include "stream_order.h"
#include "write_hook.h"

#include <cstring>
#include <optional>

namespace torchcow {

namespace {

bool same_span(const Sharer& a, const Sharer& b) {
  return a.block == b.block && a.offset == b.offset && a.bytes == b.bytes;
}

void record_stream(Block& block, const c10::Stream& stream) {
  if (block.order) block.order->record_stream(block.data, stream);
}

}  // namespace

bool join(c10::StorageImpl& joiner, const c10::StorageImpl& joiner_clone, const c10::StorageImpl& keeper_clone) {
  std::optional<c10::Stream> here;
  if (!joiner.device().is_cpu()) {
    here = current_stream(joiner.device());
    if (capturing(*here)) return false;
  }
  Garbage garbage;
  auto& state = engine();
  std::unique_lock lock(state.mutex);
  const auto* old_clone = write_hook::sharer_of(joiner_clone);
  const auto* new_clone = write_hook::sharer_of(keeper_clone);
  Sharer* old = write_hook::sharer_of(joiner);
  if (old == nullptr || old_clone == nullptr || new_clone == nullptr || state.claimed(*old)) return false;
  if (captured::is_marked(joiner)) return false;
  if (!same_span(*old, *old_clone) || new_clone->bytes != old->bytes || new_clone->block == old->block ||
      new_clone->block->device() != old->block->device() || new_clone->block->on_probation()) {
    return false;
  }
  TORCHCOW_INVARIANT(
      I11, !old->block->device().is_cpu() || std::memcmp(old->data(), new_clone->data(), old->bytes) == 0, old->bytes);
  Block& left = *old->block;
  Block& block = *new_clone->block;
  const auto home = old->home;
  relocate(*old, block, new_clone->offset, garbage);
  lock.unlock();
  // Both blocks live as long as the clones: what is queued still reads the old one, what comes reads the new one.
  for (const auto& stream : {here, home}) {
    if (!stream) continue;
    record_stream(left, *stream);
    record_stream(block, *stream);
  }
  return true;
}

}  // namespace torchcow
