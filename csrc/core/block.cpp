// SPDX-License-Identifier: Apache-2.0

#include "block.h"

#include "intrusive_list.h"
#include "invariant.h"
#include "probation.h"

namespace torchcow {

bool Block::on_probation() const noexcept { return probation != nullptr && !probation->passed; }

void Block::link(Sharer& sharer) noexcept {
  TORCHCOW_INVARIANT(I4, sharer.offset <= bytes && sharer.bytes <= bytes - sharer.offset, sharer.offset, sharer.bytes,
                     bytes);
  push_front(sharers, sharer);
  ++sharer_count;
}

void Block::unlink(Sharer& sharer) noexcept {
  remove_from(sharers, sharer);
  --sharer_count;
}

}  // namespace torchcow
