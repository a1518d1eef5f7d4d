#include "retire.h"

#include <algorithm>
#include <chrono>

namespace torchcow {

namespace {

bool (*other_threads)() = nullptr;

bool still_reads(const Leaver& leaver) {
  const auto references = leaver.storage.use_count();
  if (references == 0) return false;
  // The weak reference keeps the struct readable, dead or alive.
  if (references > 1 + python_references(*leaver.storage._unsafe_get_target())) return true;
  return steady_seconds() - leaver.left_at < grace_seconds && !alone();
}

}  // namespace

bool alone() noexcept { return other_threads != nullptr && !other_threads(); }

double steady_seconds() noexcept {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

bool read_by_leavers(const Block& block) {
  return std::any_of(block.leavers.begin(), block.leavers.end(), still_reads);
}

void retire(Block& block, Garbage& garbage) {
  if (block.data && read_by_leavers(block)) {
    registry().retired.push_back(&block);
  } else {
    garbage.blocks.push_back(&block);
  }
}

void sweep_retired(Garbage& garbage) {
  std::erase_if(registry().retired, [&](Block* block) {
    if (read_by_leavers(*block)) return false;
    garbage.blocks.push_back(block);
    return true;
  });
}

void set_other_threads_probe(bool (*probe)()) noexcept { other_threads = probe; }

}  // namespace torchcow
