// SPDX-License-Identifier: Apache-2.0

#include "pin.h"

#include "detach.h"

namespace torchcow {

Pin::Pin(Block& block) : sharer_(new Sharer{&block, 0, 0, nullptr}) {
  block.link(*sharer_);
  ++engine().sharer_count;
}

Pin::~Pin() {
  if (sharer_ == nullptr) return;
  Garbage garbage;
  std::lock_guard lock(engine().mutex);
  detach(*sharer_, {}, garbage);
}

}  // namespace torchcow
