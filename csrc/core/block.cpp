#include "block.h"

#include "probation.h"

namespace torchcow {

bool Block::on_probation() const noexcept { return probation != nullptr && !probation->passed; }

void Block::link(Sharer& sharer) noexcept {
  sharer.previous = nullptr;
  sharer.next = sharers;
  if (sharers != nullptr) sharers->previous = &sharer;
  sharers = &sharer;
  ++sharer_count;
}

void Block::unlink(Sharer& sharer) noexcept {
  (sharer.previous != nullptr ? sharer.previous->next : sharers) = sharer.next;
  if (sharer.next != nullptr) sharer.next->previous = sharer.previous;
  sharer.next = sharer.previous = nullptr;
  --sharer_count;
}

}  // namespace torchcow
