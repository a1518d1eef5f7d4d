// SPDX-License-Identifier: Apache-2.0

#include "reserve.h"

#include "allocate.h"
#include "engine_state.h"
#include "write_hook.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace torchcow {

namespace {

std::size_t all_bytes = 0;

/// Makes the system find the pages.
void touch(const c10::DataPtr& memory, std::size_t bytes) noexcept {
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  auto* at = static_cast<volatile char*>(memory.get());
  for (std::size_t i = 0; i < bytes; i += page) at[i] = 0;
}

struct Want {
  std::size_t bytes;
  c10::Device device;
  c10::Allocator* allocator;
};

std::vector<Want> wants_of(c10::ArrayRef<c10::StorageImpl*> storages, const std::vector<bool>& pieces) {
  std::vector<Want> wants;
  wants.reserve(storages.size());
  std::lock_guard lock(engine().mutex);
  for (std::size_t i = 0; i < storages.size(); ++i) {
    const auto* sharer = write_hook::sharer_of(*storages[i]);
    if (!pieces[i] || sharer == nullptr) continue;
    wants.push_back({sharer->bytes, sharer->block->device(), sharer->block->allocator});
  }
  return wants;
}

}  // namespace

Reserve::Reserve(Pieces&& pieces) noexcept {
  std::lock_guard lock(engine().mutex);
  put_back(std::move(pieces));
}

Reserve::~Reserve() {
  std::lock_guard lock(engine().mutex);
  all_bytes -= bytes_;
}

Reserve::Pieces Reserve::take(std::size_t bytes, Pieces& given_back) noexcept {
  Pieces taken;
  const auto before = bytes_;
  const auto fits = std::find_if(pieces_.begin(), pieces_.end(), [&](auto& piece) { return piece.bytes == bytes; });
  if (fits != pieces_.end()) {
    taken.splice(taken.end(), pieces_, fits);
    bytes_ -= bytes;
  } else {
    while (before - bytes_ < bytes && !pieces_.empty()) {
      bytes_ -= pieces_.back().bytes;
      given_back.splice(given_back.end(), pieces_, std::prev(pieces_.end()));
    }
  }
  all_bytes -= before - bytes_;
  return taken;
}

void Reserve::put_back(Pieces&& pieces) noexcept {
  for (const auto& piece : pieces) {
    bytes_ += piece.bytes;
    all_bytes += piece.bytes;
  }
  pieces_.splice(pieces_.end(), pieces);
}

Reserve::Pieces Reserve::release() noexcept {
  all_bytes -= std::exchange(bytes_, 0);
  return std::exchange(pieces_, {});
}

std::shared_ptr<Reserve> reserve(c10::ArrayRef<c10::StorageImpl*> storages, const std::vector<bool>& pieces) {
  Reserve::Pieces made;
  for (const auto& want : wants_of(storages, pieces)) {
    auto memory = allocate_for(want.device, *want.allocator, want.bytes);
    if (want.device.is_cpu()) touch(memory, want.bytes);
    made.push_back({want.bytes, std::move(memory)});
  }
  auto reserve = std::make_shared<Reserve>(std::move(made));
  std::vector<std::shared_ptr<Reserve>> replaced;  // may end here, without the mutex
  replaced.reserve(storages.size());
  bool attached = false;
  auto& state = engine();
  std::lock_guard lock(state.mutex);
  for (auto* storage : storages) {
    auto* sharer = write_hook::sharer_of(*storage);
    if (sharer == nullptr || state.claimed(*sharer)) continue;
    replaced.push_back(std::exchange(sharer->reserve, reserve));
    attached = true;
  }
  return attached ? reserve : nullptr;
}

std::size_t reserved_bytes() noexcept { return all_bytes; }

}  // namespace torchcow
