#include "relocate.h"

#include "retire.h"
#include "write_hook.h"

#include <memory>

namespace torchcow {

void relocate(Sharer& sharer, Block& block, std::size_t offset, Garbage& garbage) {
  auto moved = std::make_unique<Sharer>(Sharer{&block, offset, sharer.bytes, sharer.storage, sharer.home});
  moved->reserve = sharer.reserve;
  moved->readings = sharer.readings;
  FormerSharers former_sharer{{WeakStorage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(sharer.storage)), 0,
                               /*pointers=*/sharer.readings}};
  // Nothing after this point can fail.
  write_hook::move(*sharer.storage, *moved);
  block.link(*moved.release());
  ++engine().sharer_count;
  detach(sharer, std::move(former_sharer), garbage);
}

}  // namespace torchcow
