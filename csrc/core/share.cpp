// SPDX-License-Identifier: Apache-2.0
#include "share.h"

#include "captured.h"
#include "claims.h"
#include "engine_state.h"
#include "host_pages.h"
#include "invariant.h"
#include "materialize.h"
#include "numpy_mark.h"
#include "torch_internals.h"
#include "verify.h"
#include "write_hook.h"
#include "writing.h"

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <bitset>
#include <memory>
#include <thread>

namespace torchcow {

namespace {

std::atomic<std::size_t> tiny_bytes{1024};
std::atomic<std::uint64_t> last_call{0};
std::bitset<c10::COMPILE_TIME_MAX_DEVICE_TYPES> allowed{(1ULL << static_cast<int>(c10::DeviceType::CPU)) |
                                                        (1ULL << static_cast<int>(c10::DeviceType::CUDA))};

/// Memory that torch's own allocator of the device, or ours, handed out, and will take back.
bool own_memory(const c10::StorageImpl& storage) {
  const auto deleter = write_hook::deleter_of(storage);
  const auto* allocator = c10::GetAllocator(storage.device_type());
  const auto torchs = allocator == nullptr ? nullptr : allocator->raw_deleter();
  return host::are_pages(deleter) || (torchs != nullptr && deleter == torchs);
}

/// Why a storage that is no sharer yet may not become one.
Reason refusal_reason(c10::StorageImpl& storage) {
  if (captured::is_marked(storage)) return Reason::capture;
  if (torch_internals::is_torch_copy_on_write(write_hook::deleter_of(storage))) return Reason::hook;
  if (!own_memory(storage)) return Reason::foreign;
  // One tensor holds it; the base of an array is another one.
  if (numpy_mark::is_set(storage) && c10::raw::intrusive_ptr::use_count(&storage) > 1 + python_references(storage))
    return Reason::numpy;
  return write_hook::readiness(storage) == write_hook::Readiness::ready ? Reason::none : Reason::hook;
}

/// What can be said without the mutex.
Reason preflight(const c10::StorageImpl& source, std::size_t bytes) {
  const auto device = source.device();
  if (!allowed[static_cast<std::size_t>(device.type())]) return Reason::device;
  if (tiny(device, bytes)) return Reason::tiny;
  static_cast<void>(source.data());  // raises if torch has forbidden to read it
  if (!device.is_cpu() && capturing(current_stream(device))) return Reason::capture;
  return Reason::none;
}

/// As `wait_until_unclaimed`. In addition a storage that has just been materialized through its hook is waited for
/// until it could be armed again: the thread on its way out of the hook needs some nanoseconds more, and perhaps the
/// mutex.
Sharer* wait_until_armable(c10::StorageImpl& storage, std::unique_lock<std::mutex>& lock) {
  for (int spin = 1;; ++spin) {
    Sharer* sharer = wait_until_unclaimed(storage, lock);
    if (sharer != nullptr || write_hook::readiness(storage) != write_hook::Readiness::busy || spin == 1000)
      return sharer;
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  }
}

c10::intrusive_ptr<c10::StorageImpl> storage_for(Sharer& sharer, c10::Allocator* allocator) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<std::int64_t>(sharer.bytes),
      c10::DataPtr(nullptr, sharer.block->device()), allocator, /*resizable=*/true);
  sharer.storage = storage.get();
  return storage;
}

/// A block for the memory of `source`, which it does not own before the source is armed.
std::unique_ptr<Block> new_block(c10::StorageImpl& source, std::shared_ptr<StreamOrder> order) {
  auto block = std::make_unique<Block>();
  auto* allocator = write_hook::allocator_of(source);
  block->bytes = source.nbytes();
  block->allocator = allocator != nullptr ? allocator : c10::GetAllocator(source.device_type());
  block->order = std::move(order);
  // A sharer points into the block, and so do its device and address.
  block->data = c10::DataPtr(source._mutable_data_ptr_no_checks().get(), source.device());
  return block;
}

void enlist(Sharer& sharer) noexcept {
  sharer.block->link(sharer);
  ++engine().sharer_count;
}

}  // namespace

/// What the source is when the mutex is taken, and so where the clone's memory comes from.
struct SharingCall::Origin {
  enum class Case {
    refused,    ///< nothing is shared
    fresh,      ///< the source is no sharer: its memory becomes a block, on probation with this call
    confirmed,  ///< it shares a block that has passed its probation
    own,        ///< it shares a block on probation with this call
    abandoned,  ///< it alone shares a block whose call ended without an answer: this call looks again
  };
  Case kind;
  Reason refusal = Reason::none;
  Sharer* sharer = nullptr;  ///< of the source

  static Origin refused(Reason reason) { return {Case::refused, reason}; }
};

/// All that one share needs, before anything has changed.
struct SharingCall::Draft {
  std::shared_ptr<StreamOrder> order;  ///< on a device
  std::optional<c10::Stream> home;     ///< on a device
  std::unique_ptr<Block> block;        ///< of a fresh source
  std::unique_ptr<Sharer> first;       ///< the sharer of a fresh source
  std::unique_ptr<Sharer> sharer;      ///< the clone's
  c10::intrusive_ptr<c10::StorageImpl> clone;

  /// Makes the source, if it is fresh, and the clone sharers. False: an operator is writing the source, which has its
  /// memory back.
  bool publish(c10::StorageImpl& source) noexcept;
};

std::shared_ptr<StreamOrder> SharingCall::new_order(c10::Device device) {
  auto& ready = ready_[device.index()];
  if (!ready) ready = StreamOrder::record_ready(device);
  return std::make_shared<StreamOrder>(ready);
}

SharingCall::Origin SharingCall::classify(c10::StorageImpl& source, std::unique_lock<std::mutex>& lock) const {
  using Case = Origin::Case;
  Sharer* sharer = wait_until_armable(source, lock);
  // Case 1: the source is no sharer.
  if (sharer == nullptr) {
    // Looked at before arming as well: on torch 2.11 and 2.12 arming memory of a device under a running writer can make
    // torch throw there.
    const auto reason = being_written(source) ? Reason::writing : refusal_reason(source);
    return reason == Reason::none ? Origin{Case::fresh} : Origin::refused(reason);
  }
  // Case 2: this thread itself is materializing the source, and its allocator called back.
  if (engine().claimed(*sharer)) return Origin::refused(Reason::writing);
  const Block& block = *sharer->block;
  // Case 3: a block that is known to be safe.
  if (!block.on_probation()) return {Case::confirmed, Reason::none, sharer};
  // Case 4: a block that this call made.
  if (block.probation->call == number_) return {Case::own, Reason::none, sharer};
  // Case 5: a block of another call, which has not answered yet.
  if (block.probation->call != 0) return Origin::refused(Reason::writing);
  // Case 6: a block of a call that ended without an answer, and with clones that it could not take back.
  if (block.sharer_count > 1) return Origin::refused(Reason::outside);
  // Case 7: the same, and these clones are gone.
  return {Case::abandoned, Reason::none, sharer};
}

void SharingCall::make(Draft& draft, const Origin& origin, c10::StorageImpl& source, std::size_t offset,
                       std::size_t bytes) {
  using Case = Origin::Case;
  if (origin.kind == Case::fresh) {
    draft.block = new_block(source, std::move(draft.order));
    draft.first = std::make_unique<Sharer>(Sharer{draft.block.get(), 0, draft.block->bytes, &source, draft.home});
  }
  const Sharer& first = origin.kind == Case::fresh ? *draft.first : *origin.sharer;
  Block& block = *first.block;
  draft.sharer = std::make_unique<Sharer>(Sharer{&block, first.offset + offset, bytes, nullptr, draft.home});
  draft.clone = storage_for(*draft.sharer, block.allocator);
  if (origin.kind == Case::fresh) write_hook::prepare(source);
  write_hook::prepare(*draft.clone);
  switch (origin.kind) {
    case Case::fresh:
    case Case::abandoned:
      probations_.push_back(std::make_shared<Probation>(
          Probation{number_, false, c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&source), {draft.clone}}));
      block.probation = probations_.back();
      break;
    case Case::own:
      block.probation->clones.push_back(draft.clone);
      break;
    case Case::confirmed:
    case Case::refused:
      break;
  }
}

bool SharingCall::Draft::publish(c10::StorageImpl& source) noexcept {
  if (block) {
    block->data = write_hook::arm(source, *first);
    TORCHCOW_INVARIANT(I6, write_hook::looks_armed(source), block->bytes);
    if (being_written(source)) {  // the order is writing.h's: armed first, then looked
      write_hook::reseat(source, std::move(block->data), false);
      return false;
    }
    enlist(*first.release());
    engine().add(*block.release());
  }
  write_hook::arm(*clone, *sharer);
  enlist(*sharer.release());
  return true;
}

c10::intrusive_ptr<c10::StorageImpl> SharingCall::share(c10::StorageImpl& source, std::size_t offset, std::size_t bytes,
                                                        Reason& reason) {
  reason = preflight(source, bytes);
  if (reason != Reason::none) return {};
  const auto device = source.device();
  Draft draft;  // what is left of it dies without the mutex
  if (!device.is_cpu()) {
    draft.order = new_order(device);
    draft.home = current_stream(device);
  }

  std::unique_lock lock(engine().mutex);
  const auto origin = classify(source, lock);
  reason = origin.refusal;
  if (reason == Reason::none && offset + bytes > source.nbytes()) reason = Reason::writing;  // resized while we waited
  if (reason != Reason::none) return {};
  make(draft, origin, source, offset, bytes);
  // Nothing after this point can fail.
  const bool fresh = origin.kind == Origin::Case::fresh;
  Block& block = *draft.sharer->block;
  if (!draft.publish(source)) {
    probations_.pop_back();
    reason = Reason::writing;
    return {};
  }
  lock.unlock();

  if (fresh) fingerprint(block);
  // Where the clone is at home it may be read at any time, and be dropped with reads pending.
  if (block.order) {
    block.order->record_stream(block.data, *draft.home);
    // The source is at home where it was allocated, which nothing tells; most often it is here.
    const auto usual = fresh ? default_stream(device) : std::nullopt;
    if (usual) block.order->record_stream(block.data, *usual);
  }
  return std::move(draft.clone);
}

bool SharingCall::answers_for(const c10::StorageImpl& storage) const {
  if (probations_.empty()) return false;
  std::lock_guard lock(engine().mutex);
  const Sharer* sharer = write_hook::sharer_of(storage);
  return sharer != nullptr && sharer->block->on_probation() && sharer->block->probation->call == number_;
}

SharingCall::SharingCall() : number_(++last_call) {
  write_hook::sweep();
  trim_last_events();
}

SharingCall::~SharingCall() {
  for (const auto& probation : probations_) {
    try {
      if (!probation->passed) take_back(*probation, Reason::outside);
    } catch (const std::exception&) {
      // No memory for the copies. Other calls do not share the block until a later call has an answer.
      std::lock_guard lock(engine().mutex);
      probation->call = 0;
    }
    // The block may hold the probation for long; the storages die without the mutex.
    probation->source.reset();
    probation->clones.clear();
  }
}

void SharingCall::confirm(Probation& probation) {
  // Not through the source, which may have left the block: the clones are still there.
  std::lock_guard lock(engine().mutex);
  probation.passed = true;
}

void SharingCall::take_back(Probation& probation, Reason reason) {
  for (const auto& clone : probation.clones) {
    materialize({{clone.get()}}, {"torchcow.clone", false, false});
    record(Way::eager, reason, "torchcow.clone", clone->nbytes(), clone->device(), clone.get());
  }
  materialize({{probation.source.get()}}, {"torchcow.clone", false, false, /*stays=*/true});
  confirm(probation);
}

std::size_t set_tiny_bytes(std::size_t bytes) noexcept { return tiny_bytes.exchange(bytes); }

bool tiny(c10::Device device, std::size_t bytes) noexcept {
  return bytes == 0 || (device.is_cpu() && bytes < tiny_bytes);
}

void allow_device(c10::DeviceType type) noexcept { allowed[static_cast<std::size_t>(type)] = true; }

}  // namespace torchcow
