// SPDX-License-Identifier: Apache-2.0

#include "relocate.h"

#include "detach.h"
#include "exposure.h"
#include "write_hook.h"

#include <memory>

namespace torchcow {

void relocate(Sharer& sharer, Block& block, std::size_t offset, Garbage& garbage) {
  auto moved = std::make_unique<Sharer>(Sharer{&block, offset, sharer.bytes, sharer.storage, sharer.home});
  FormerSharers former_sharer{{weak_reference(*sharer.storage)}};
  moved->reserve = sharer.reserve;
  if (sharer.exposure && sharer.exposure->pointers_may_be_in_use()) {
    if (sharer.exposure->scopes > 0) sharer.exposure->blocks.push_back(block.id);
    moved->exposure = former_sharer.front().exposure = sharer.exposure;
  }
  // Nothing after this point can fail.
  write_hook::move(*sharer.storage, *moved);
  block.link(*moved.release());
  ++engine().sharer_count;
  detach(sharer, std::move(former_sharer), garbage);
}

}  // namespace torchcow
