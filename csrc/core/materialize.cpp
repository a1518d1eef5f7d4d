// SPDX-License-Identifier: Apache-2.0

#include "materialize.h"

#include "allocate.h"
#include "claims.h"
#include "detach.h"
#include "device_copy.h"
#include "first_write_error.h"
#include "host_copy.h"
#include "invariant.h"
#include "reserve.h"
#include "retire.h"
#include "stream_order.h"
#include "write_hook.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <unordered_map>

namespace torchcow {

namespace {

std::atomic<bool> poison{false};
std::atomic<void (*)(const Event&) noexcept> listen{nullptr};

struct Job {
  c10::StorageImpl* storage;
  Sharer* sharer;
  Way way;
  c10::Allocator* allocator;
  c10::DataPtr memory;
  FormerSharers former_sharer;
  Reserve::Pieces piece;  ///< where `memory` comes from, if it was set aside before
};

using Jobs = std::vector<Job>;

void take_reserved(Job& job) {
  if (!job.sharer->reserve) return;
  Reserve::Pieces given_back;
  std::lock_guard lock(engine().mutex);
  job.piece = job.sharer->reserve->take(job.sharer->bytes, given_back);
  if (!job.piece.empty()) job.memory = std::move(job.piece.front().memory);
}

void allocate(Job& job) {
  const auto device = job.sharer->block->device();
  take_reserved(job);
  const bool reserved = !job.piece.empty();
  if (!reserved) job.memory = allocate_for(device, *job.allocator, job.sharer->bytes);
  if (device.is_cpu()) return;
  // The memory belongs to the stream on which it was allocated; it is written here, and the clone may be used at home
  // like any tensor there.
  const c10::impl::VirtualGuardImpl guard(device.type());
  const auto here = current_stream(device);
  if (reserved) guard.recordDataPtrOnStream(job.memory, here);
  if (job.sharer->home && (reserved || *job.sharer->home != here)) {
    guard.recordDataPtrOnStream(job.memory, *job.sharer->home);
  }
}

bool whole(const Sharer& sharer) { return sharer.offset == 0 && sharer.bytes == sharer.block->bytes; }

/// Claims the sharers among `targets`, in the order of addresses, and decides the way of each.
void claim(std::vector<WriteTarget>& targets, bool may_skip, const Cause& cause, bool from_hook, Jobs& jobs) {
  std::sort(targets.begin(), targets.end(), [](auto& a, auto& b) { return a.storage < b.storage; });
  jobs.reserve(targets.size());                           // a claim that is in no job would never end
  std::unordered_map<const Block*, std::size_t> leaving;  // siblings in this batch that copy
  if (targets.size() > 1) leaving.reserve(targets.size());
  const auto self = std::this_thread::get_id();
  auto& state = engine();
  std::unique_lock lock(state.mutex);
  for (auto& target : targets) {
    if (!jobs.empty() && jobs.back().storage == target.storage) continue;
    Sharer* sharer = wait_until_unclaimed(*target.storage, lock);
    TORCH_CHECK(sharer == nullptr || !state.claimed(*sharer),
                "torchcow: a tensor was written while it was being materialized in the same thread");
    if (sharer == nullptr) {
      // Before the mutex is given up: a clone that arms the storage must know.
      write_hook::lost_race(*target.storage, from_hook);
      continue;
    }
    sharer->claimed = true;
    sharer->claimant = self;
    sharer->claim_epoch = state.fork_epoch;
    Block& block = *sharer->block;
    // Siblings in this batch that copy leave as well; the last one may take the memory. One that skips
    // keeps the bytes until its operator has returned.
    const auto siblings = leaving.find(&block);
    const bool last = block.sharer_count == (siblings == leaving.end() ? 0 : siblings->second) + 1;
    const bool steals =
        last && (cause.stays ? can_take_memory(*sharer) : whole(*sharer) && !read_by_former_sharers(block));
    block.taken = block.taken || steals;
    const Way way = steals ? Way::steal : may_skip && target.overwritten ? Way::skip : Way::copy;
    jobs.push_back({target.storage, sharer, way, block.allocator, {}, {}, {}});
    if (way == Way::copy && targets.size() > 1) ++leaving[&block];
  }
}

/// Does the storage still share what it shared before the claim? Another thread may have resized it.
bool as_before(const Job& job) {
  const Sharer& sharer = *job.sharer;
  if (sharer.storage == nullptr || job.storage->nbytes() != sharer.bytes) return true;
  return write_hook::sharer_of(*job.storage) == &sharer &&
         job.storage->_mutable_data_ptr_no_checks().get() == sharer.data();
}

void release_claims(Jobs& jobs) noexcept {
  Garbage garbage;
  auto& state = engine();
  std::lock_guard lock(state.mutex);
  for (auto& job : jobs) {
    if (!job.piece.empty()) {
      job.piece.front().memory = std::move(job.memory);
      job.sharer->reserve->put_back(std::move(job.piece));
    }
    job.sharer->claimed = false;
    if (job.way == Way::steal) job.sharer->block->taken = false;
    TORCHCOW_INVARIANT(I5, as_before(job), job.sharer->block->id, job.sharer->bytes, to_string(job.way));
    if (job.sharer->storage == nullptr) detach(*job.sharer, {}, garbage);
  }
  state.claims_changed.notify_all();
}

bool forbidden_by_capture(const Job& job) {
  const auto device = job.sharer->block->device();
  if (device.is_cpu()) return false;
  const auto stream = current_stream(device);
  const bool waits = job.way != Way::steal || job.sharer->block->order->pending(stream);
  return waits && capturing(stream);
}

void prepare(Jobs& jobs, const Cause& cause, std::optional<FailureContext>& failure) {
  for (auto& job : jobs) {
    if (forbidden_by_capture(job)) {
      failure = failure_context(*job.sharer, job.storage, true);
      TORCH_CHECK(false, "torchcow: a first write while a graph is being captured");
    }
    if (job.way == Way::steal) continue;
    if (cause.visible) {
      job.former_sharer.push_back({WeakStorage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(job.storage))});
    }
    try {
      allocate(job);
    } catch (const c10::Error&) {
      failure = failure_context(*job.sharer, job.storage, false);
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
    const Block& block = *job.sharer->block;
    if (!block.device().is_cpu()) block.order->before_steal(current_stream(block.device()));
  }
  if (cause.raw_pointer) {
    for (auto& job : jobs) wait_on_host(job.sharer->block->device());
  }
}

/// The block's memory, as the sharer sees it.
c10::DataPtr take_memory(Sharer& sharer) noexcept {
  auto& data = sharer.block->data;
  const auto device = data.device();
  const auto deleter = data.get_deleter();
  auto* address = const_cast<void*>(sharer.data());
  c10::DataPtr memory(address, data.release_context(), deleter, device);
  data = c10::DataPtr(nullptr, device);
  return memory;
}

/// Gives up the blocks. There is room in `skipped`.
void publish(Jobs& jobs, const Cause& cause, std::vector<Skipped>* skipped, bool from_hook, Garbage& garbage) noexcept {
  auto& state = engine();
  std::lock_guard lock(state.mutex);
  for (auto& job : jobs) {
    Sharer& sharer = *job.sharer;
    sharer.claimed = false;
    if (sharer.storage == nullptr) {  // resized by another thread meanwhile
      detach(sharer, {}, garbage);
      continue;
    }
    Block& block = *sharer.block;
    if (cause.visible) record(job.way, Reason::none, cause.operator_name, sharer.bytes, block.device(), job.storage);
    TORCHCOW_INVARIANT(I7, job.way != Way::skip || alone(), cause.operator_name);
    for (auto& former_sharer : job.former_sharer) former_sharer.exposure = sharer.exposure;
    if (job.way == Way::steal) {
      TORCHCOW_INVARIANT(I1, block.sharer_count == 1, block.id, block.sharer_count, sharer.bytes);
      TORCHCOW_INVARIANT(I8, !block.order || block.order->ready_to_steal(), block.id, block.device());
      write_hook::reseat(*job.storage, take_memory(sharer), from_hook);
      detach(sharer, {}, garbage);
    } else {
      write_hook::reseat(*job.storage, std::move(job.memory), from_hook);
      if (job.way == Way::skip) {
        skipped->push_back(
            {c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(job.storage), &sharer, std::move(job.former_sharer)});
        continue;
      }
      detach(sharer, std::move(job.former_sharer), garbage);
    }
  }
  sweep_retired(garbage);
  state.claims_changed.notify_all();
}

/// What the listener will be told; made while a failure is still harmless.
std::vector<Event> news_of(const Jobs& jobs, const Cause& cause) {
  std::vector<Event> news;
  if (listen == nullptr || !cause.visible) return news;
  news.reserve(jobs.size());
  for (const auto& job : jobs) {
    news.emplace_back(job.way, Reason::none, cause.operator_name, job.sharer->bytes, job.sharer->block->device(),
                      job.storage);
  }
  return news;
}

void tell(const std::vector<Event>& news) noexcept {
  if (news.empty()) return;
  if (auto* listener = listen.load()) std::for_each(news.begin(), news.end(), listener);
}

bool run(std::vector<WriteTarget>& targets, const Cause& cause, std::vector<Skipped>* skipped, bool from_hook) {
  Jobs jobs;
  Garbage garbage;
  std::optional<FailureContext> failure;
  std::vector<Event> news;
  try {
    // A reader in another thread must find old or new values, never memory that nobody has written yet.
    claim(targets, skipped != nullptr && alone(), cause, from_hook, jobs);
    if (jobs.empty()) return false;
    if (skipped != nullptr) skipped->reserve(skipped->size() + jobs.size());
    prepare(jobs, cause, failure);
    copy_bytes(jobs, cause);
    news = news_of(jobs, cause);
  } catch (c10::Error& error) {
    release_claims(jobs);
    if (failure) error.add_context(describe(*failure, cause.operator_name));
    throw;
  } catch (...) {
    release_claims(jobs);
    throw;
  }
  publish(jobs, cause, skipped, from_hook, garbage);
  tell(news);
  return true;
}

}  // namespace

bool can_take_memory(const Sharer& sharer) noexcept { return sharer.offset == 0 || sharer.block->device().is_cpu(); }

void materialize(c10::ArrayRef<WriteTarget> targets, const Cause& cause, std::vector<Skipped>* skipped) {
  std::vector<WriteTarget> sorted(targets.begin(), targets.end());
  run(sorted, cause, skipped, false);
}

bool first_write(c10::StorageImpl* storage) {
  std::vector<WriteTarget> target{{storage}};
  return run(target, {"a raw pointer", true}, nullptr, true);
}

void finish_skipped(Skipped& skipped, std::size_t written) {
  Sharer& keeper = *skipped.keeper;
  auto& data = skipped.storage->_mutable_data_ptr_no_checks();
  // A result of another size: the storage may have grown or shrunk since.
  const auto bytes = std::min(keeper.bytes, skipped.storage->nbytes());
  if (written < bytes) {
    auto* to = static_cast<char*>(data.get()) + written;
    const auto* from = static_cast<const char*>(keeper.data()) + written;
    if (data.device().is_cpu()) {
      host::copy(to, from, bytes - written);
    } else {
      copy_on_device({{to, from, bytes - written, keeper.block}});
    }
  }
  Garbage garbage;
  std::lock_guard lock(engine().mutex);
  detach(keeper, std::move(skipped.former_sharer), garbage);
}

void install_write_hook() { write_hook::install({.first_write = &first_write, .dropped = &storage_dropped}); }

void set_listener(void (*listener)(const Event&) noexcept) noexcept { listen = listener; }
void poison_skipped(bool on) noexcept { poison = on; }

}  // namespace torchcow
