// SPDX-License-Identifier: Apache-2.0
#include "claims.h"

#include "engine_state.h"
#include "write_hook.h"

#include <thread>

namespace torchcow {

Sharer* wait_until_unclaimed(const c10::StorageImpl& storage, std::unique_lock<std::mutex>& lock) {
  for (;;) {
    Sharer* sharer = write_hook::sharer_of(storage);
    if (sharer == nullptr || !engine().claimed(*sharer)) return sharer;
    if (sharer->claimant == std::this_thread::get_id()) return sharer;
    wait_for_claims(lock);
  }
}

}  // namespace torchcow
