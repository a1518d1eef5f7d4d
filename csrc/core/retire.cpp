// SPDX-License-Identifier: Apache-2.0

#include "retire.h"

#include "exposure.h"
#include "inter_op.h"

#include <algorithm>
#include <chrono>

namespace torchcow {

namespace {

bool (*other_threads)() = nullptr;

bool still_reads(const FormerSharer& former_sharer) noexcept {
  const auto references = former_sharer.storage.use_count();
  if (references == 0) return false;
  if (former_sharer.exposure && former_sharer.exposure->pointers_may_be_in_use()) return true;
  // The weak reference keeps the struct readable, dead or alive.
  if (references > 1 + python_references(*former_sharer.storage._unsafe_get_target())) return true;
  return steady_seconds() - former_sharer.left_at < grace_seconds && !alone();
}

}  // namespace

bool alone() noexcept { return other_threads != nullptr && !inter_op::started() && !other_threads(); }

double steady_seconds() noexcept {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

bool read_by_former_sharers(const Block& block) noexcept {
  return std::any_of(block.former_sharers.begin(), block.former_sharers.end(), still_reads);
}

void prune_former_sharers(Block& block, Garbage& garbage) noexcept {
  if (block.former_sharers.size() < block.prune_former_sharers_at) return;
  for (auto former_sharer = block.former_sharers.begin(); former_sharer != block.former_sharers.end();) {
    const auto here = former_sharer++;
    if (!still_reads(*here)) garbage.former_sharers.splice(garbage.former_sharers.end(), block.former_sharers, here);
  }
  block.prune_former_sharers_at = std::max<std::size_t>(8, 2 * block.former_sharers.size());
}

void retire(Block& block, Garbage& garbage) noexcept {
  if (block.data && read_by_former_sharers(block)) {
    engine().add_retired(block);
  } else {
    garbage.add(block);
  }
}

void sweep_retired(Garbage& garbage) noexcept {
  auto& state = engine();
  for (auto* block = state.retired; block != nullptr;) {
    auto* next = block->next;
    if (!read_by_former_sharers(*block)) {
      state.remove_retired(*block);
      garbage.add(*block);
    }
    block = next;
  }
}

void set_other_threads_probe(bool (*probe)()) noexcept { other_threads = probe; }

}  // namespace torchcow
