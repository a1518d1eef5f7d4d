#include "materialize.h"

#include "device_copy.h"
#include "host_memory.h"
#include "ledger.h"
#include "retire.h"
#include "stream_order.h"
#include "write_hook.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

namespace torchcow {

namespace {

std::atomic<std::int64_t> allocations_left{-1};
std::atomic<bool> poison{false};
std::string (*resolve_name)(const c10::StorageImpl&) = nullptr;

struct Job {
  c10::StorageImpl* storage;
  Sharer* sharer;
  Way way;
  c10::Allocator* allocator;
  c10::DataPtr memory;
};

using Jobs = std::vector<Job>;

c10::DataPtr allocate(const Job& job) {
  if (allocations_left >= 0 && allocations_left-- == 0) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "torchcow: allocation failed on request of a test");
  }
  const auto device = job.sharer->block->device();
  c10::DataPtr memory = device.is_cpu() ? job.allocator->allocate(job.sharer->bytes)
                                        : allocate_on(device, *job.allocator, job.sharer->bytes);
  if (device.is_cpu()) {
    host::advise_huge_pages(memory.get(), job.sharer->bytes);
  } else if (job.sharer->home && *job.sharer->home != current_stream(device)) {
    // The memory belongs to the stream of the write; the clone may be used at home like any tensor there.
    c10::impl::VirtualGuardImpl(device.type()).recordDataPtrOnStream(memory, *job.sharer->home);
  }
  return memory;
}

/// The tensor of a job as an error calls it.
std::string describe(const Job& job) {
  const auto name = resolve_name != nullptr ? resolve_name(*job.storage) : std::string();
  return c10::str(name.empty() ? "a shared tensor" : name, " (", job.sharer->bytes, " bytes on ",
                  job.sharer->block->device(), ")");
}

bool whole(const Sharer& sharer) { return sharer.offset == 0 && sharer.bytes == sharer.block->bytes; }

/// Claims the sharers among `targets`, in the order of addresses, and decides the way of each.
void claim(std::vector<WriteTarget>& targets, bool may_skip, bool from_hook, Jobs& jobs) {
  std::sort(targets.begin(), targets.end(), [](auto& a, auto& b) { return a.storage < b.storage; });
  const auto self = std::this_thread::get_id();
  auto& state = registry();
  std::unique_lock lock(state.mutex);
  for (auto& target : targets) {
    if (!jobs.empty() && jobs.back().storage == target.storage) continue;
    Sharer* sharer = write_hook::sharer_of(*target.storage);
    while (sharer != nullptr && state.claimed(*sharer)) {
      TORCH_CHECK(sharer->claimant != self,
                  "torchcow: a tensor was written while it was being materialized in the same thread");
      wait_for_claims(lock);
      sharer = write_hook::sharer_of(*target.storage);
    }
    if (sharer == nullptr) {
      // Before the mutex is given up: a clone that arms the storage must know.
      write_hook::came_late(*target.storage, from_hook);
      continue;
    }
    sharer->claimed = true;
    sharer->claimant = self;
    sharer->claim_epoch = state.fork_epoch;
    Block& block = *sharer->block;
    // Siblings in this batch that copy leave as well; the last one may take the memory. One that skips
    // keeps the bytes until its operator has returned.
    const auto leaving = std::count_if(jobs.begin(), jobs.end(),
                                       [&](auto& job) { return job.sharer->block == &block && job.way == Way::copy; });
    const bool last = block.sharer_count == static_cast<std::size_t>(leaving) + 1;
    const bool steals = last && whole(*sharer) && !read_by_leavers(block);
    const Way way = steals ? Way::steal : may_skip && target.overwritten ? Way::skip : Way::copy;
    jobs.push_back({target.storage, sharer, way, block.allocator, {}});
  }
}

void release_claims(const Jobs& jobs) noexcept {
  Garbage garbage;
  auto& state = registry();
  std::lock_guard lock(state.mutex);
  for (auto& job : jobs) {
    job.sharer->claimed = false;
    if (job.sharer->storage == nullptr) {
      leave(*job.sharer, false, garbage);
      garbage.sharers.push_back(job.sharer);
    }
  }
  state.claims_changed.notify_all();
}

/// The current stream of each device in `jobs`; raises where a capture forbids what must be done.
std::optional<c10::Stream> stream_for(const Job& job, const Cause& cause) {
  const auto device = job.sharer->block->device();
  if (device.is_cpu()) return std::nullopt;
  const auto stream = current_stream(device);
  const bool waits = job.way != Way::steal || job.sharer->block->order->pending(stream);
  TORCH_CHECK(!waits || !capturing(stream), "torchcow: ", cause.operator_name, " makes the first write to ",
              describe(job),
              " while a graph is being captured. The copy would become a part of the graph. "
              "Call torchcow.materialize(...) on what the graph writes before the capture.");
  return stream;
}

void prepare(Jobs& jobs, const Cause& cause) {
  for (auto& job : jobs) {
    stream_for(job, cause);
    if (job.way == Way::steal) continue;
    try {
      job.memory = allocate(job);
    } catch (c10::Error& error) {
      error.add_context(c10::str("torchcow: no memory for the first write to ", describe(job), " by ",
                                 cause.operator_name, ". It is shared by ", job.sharer->block->sharer_count,
                                 " tensors. Nothing was changed: all still share and hold what they held. "
                                 "Free memory (torchcow.materialize takes it earlier) and try again."));
      throw;
    }
  }
}

void copy_bytes(Jobs& jobs, const Cause& cause) {
  std::vector<DeviceCopy> device_copies;
  for (auto& job : jobs) {
    Block& block = *job.sharer->block;
    if (job.way == Way::skip && poison && block.device().is_cpu())
      std::memset(job.memory.get(), 0xFB, job.sharer->bytes);
    if (job.way != Way::copy) continue;
    if (block.device().is_cpu()) {
      host::copy(job.memory.get(), job.sharer->data(), job.sharer->bytes);
    } else {
      device_copies.push_back({job.memory.get(), job.sharer->data(), job.sharer->bytes, &block});
    }
  }
  copy_on_device(device_copies);
  for (auto& job : jobs) {
    if (job.way != Way::steal) continue;
    if (const auto stream = stream_for(job, cause)) job.sharer->block->order->before_steal(*stream);
  }
  if (cause.raw_pointer) {
    for (auto& job : jobs) wait_on_host(job.sharer->block->device());
  }
}

/// Gives up the blocks. Nothing here can fail.
void publish(Jobs& jobs, const Cause& cause, std::vector<Skipped>* skipped, bool from_hook, Garbage& garbage) {
  auto& state = registry();
  std::lock_guard lock(state.mutex);
  for (auto& job : jobs) {
    Sharer& sharer = *job.sharer;
    sharer.claimed = false;
    if (sharer.storage == nullptr) {  // resized by another thread meanwhile
      leave(sharer, false, garbage);
      garbage.sharers.push_back(&sharer);
      continue;
    }
    Block& block = *sharer.block;
    if (cause.visible)
      record({Kind::materialize, job.way, Reason::none, cause.operator_name, sharer.bytes, block.device()});
    if (job.way == Way::steal) {
      c10::DataPtr memory = std::move(block.data);
      block.data = c10::DataPtr(nullptr, memory.device());
      write_hook::reseat(*job.storage, std::move(memory), from_hook);
      leave(sharer, false, garbage);
    } else {
      void* memory = job.memory.get();
      write_hook::reseat(*job.storage, std::move(job.memory), from_hook);
      if (job.way == Way::skip) {
        skipped->push_back({c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(job.storage), &sharer, memory});
        continue;
      }
      leave(sharer, cause.visible, garbage);
    }
    garbage.sharers.push_back(&sharer);
  }
  sweep_retired(garbage);
  state.claims_changed.notify_all();
}

bool run(std::vector<WriteTarget>& targets, const Cause& cause, std::vector<Skipped>* skipped, bool from_hook) {
  Jobs jobs;
  Garbage garbage;
  try {
    // A reader in another thread must find old or new values, never memory that nobody has written yet.
    claim(targets, skipped != nullptr && alone(), from_hook, jobs);
    if (jobs.empty()) return false;
    if (skipped != nullptr) skipped->reserve(skipped->size() + jobs.size());
    prepare(jobs, cause);
    copy_bytes(jobs, cause);
  } catch (...) {
    release_claims(jobs);
    throw;
  }
  publish(jobs, cause, skipped, from_hook, garbage);
  return true;
}

}  // namespace

void materialize(c10::ArrayRef<WriteTarget> targets, const Cause& cause, std::vector<Skipped>* skipped) {
  std::vector<WriteTarget> sorted(targets.begin(), targets.end());
  run(sorted, cause, skipped, false);
}

bool first_write(c10::StorageImpl* storage) {
  std::vector<WriteTarget> target{{storage}};
  return run(target, {"a raw pointer", true}, nullptr, true);
}

void finish_skipped(const Skipped& skipped, std::size_t written) {
  Sharer& keeper = *skipped.keeper;
  auto& data = skipped.storage->_mutable_data_ptr_no_checks();
  const bool same_memory = data.get() == skipped.memory;
  if (same_memory && written < keeper.bytes) {
    auto* to = static_cast<char*>(skipped.memory) + written;
    const auto* from = static_cast<const char*>(keeper.data()) + written;
    if (data.device().is_cpu()) {
      host::copy(to, from, keeper.bytes - written);
    } else {
      copy_on_device({{to, from, keeper.bytes - written, keeper.block}});
    }
  }
  Garbage garbage;
  std::lock_guard lock(registry().mutex);
  leave(keeper, true, garbage);
  garbage.sharers.push_back(&keeper);
}

void write_hook::dropped(Sharer* sharer) noexcept {
  if (auto& order = sharer->block->order) {
    try {
      order->record_stream(sharer->block->data, current_stream(sharer->block->device()));
    } catch (...) {
      // At exit the device may be gone.
    }
  }
  Garbage garbage;
  auto& state = registry();
  std::lock_guard lock(state.mutex);
  sharer->storage = nullptr;
  if (state.claimed(*sharer)) return;  // the claimant cleans up
  leave(*sharer, false, garbage);
  garbage.sharers.push_back(sharer);
  sweep_retired(garbage);
}

void set_name_resolver(std::string (*resolve)(const c10::StorageImpl&)) noexcept { resolve_name = resolve; }
void fail_allocation(std::int64_t after) noexcept { allocations_left = after; }
void poison_skipped(bool on) noexcept { poison = on; }

}  // namespace torchcow
