#include "retire.h"

#include "inter_op.h"

#include <algorithm>
#include <chrono>

namespace torchcow {

namespace {

bool (*other_threads)() = nullptr;

bool still_reads(const Leaver& leaver) noexcept {
  const auto references = leaver.storage.use_count();
  if (references == 0) return false;
  if (leaver.pointers > 0) return true;
  // The weak reference keeps the struct readable, dead or alive.
  if (references > 1 + python_references(*leaver.storage._unsafe_get_target())) return true;
  return steady_seconds() - leaver.left_at < grace_seconds && !alone();
}

}  // namespace

bool alone() noexcept { return other_threads != nullptr && !inter_op::started() && !other_threads(); }

double steady_seconds() noexcept {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

bool read_by_leavers(const Block& block) noexcept {
  return std::any_of(block.leavers.begin(), block.leavers.end(), still_reads);
}

void prune_leavers(Block& block, Garbage& garbage) noexcept {
  if (block.leavers.size() < block.prune_leavers_at) return;
  for (auto leaver = block.leavers.begin(); leaver != block.leavers.end();) {
    const auto here = leaver++;
    if (!still_reads(*here)) garbage.leavers.splice(garbage.leavers.end(), block.leavers, here);
  }
  block.prune_leavers_at = std::max<std::size_t>(8, 2 * block.leavers.size());
}

void retire(Block& block, Garbage& garbage) noexcept {
  if (block.data && read_by_leavers(block)) {
    engine().add_retired(block);
  } else {
    garbage.add(block);
  }
}

void sweep_retired(Garbage& garbage) noexcept {
  auto& state = engine();
  for (auto* block = state.retired; block != nullptr;) {
    auto* next = block->next;
    if (!read_by_leavers(*block)) {
      state.remove_retired(*block);
      garbage.add(*block);
    }
    block = next;
  }
}

void set_other_threads_probe(bool (*probe)()) noexcept { other_threads = probe; }

}  // namespace torchcow
