#include "share.h"

#include "host_memory.h"
#include "materialize.h"
#include "registry.h"
#include "retire.h"
#include "verify.h"
#include "write_hook.h"
#include "writing.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/COWDeleter.h>

#include <algorithm>
#include <atomic>
#include <bitset>
#include <thread>

namespace torchcow {

namespace {

std::atomic<std::size_t> tiny_bytes{1024};
std::bitset<c10::COMPILE_TIME_MAX_DEVICE_TYPES> allowed{(1ULL << static_cast<int>(c10::DeviceType::CPU)) |
                                                        (1ULL << static_cast<int>(c10::DeviceType::CUDA))};

/// Memory that torch's own allocator of the device handed out, and will take back.
bool own_memory(const c10::StorageImpl& storage) {
  const auto* allocator = c10::GetAllocator(storage.device_type());
  const auto deleter = allocator == nullptr ? nullptr : allocator->raw_deleter();
  return deleter != nullptr && write_hook::deleter_of(storage) == deleter;
}

/// Why a storage that is no sharer yet may not become one.
Reason obstacle(c10::StorageImpl& storage) {
  if (write_hook::deleter_of(storage) == &c10::impl::cow::cow_deleter) return Reason::hook;
  if (!own_memory(storage)) return Reason::foreign;
  // One tensor holds it; NumPy's view is another one, and has made the storage unresizable.
  if (!storage.resizable() && c10::raw::intrusive_ptr::use_count(&storage) > 1 + python_references(storage))
    return Reason::numpy;
  return write_hook::readiness(storage) == write_hook::Readiness::ready ? Reason::none : Reason::hook;
}

/// The storage's sharer, or nullptr, once no other thread is in the middle of a first write.
Sharer* settled_sharer(c10::StorageImpl& storage, std::unique_lock<std::mutex>& lock) {
  // A thread on its way out of the hook needs some nanoseconds more, and perhaps the mutex.
  for (int spin = 0;;) {
    Sharer* sharer = write_hook::sharer_of(storage);
    if (sharer != nullptr) {
      if (!registry().claimed(*sharer)) return sharer;
      wait_for_claims(lock);
    } else {
      if (write_hook::readiness(storage) != write_hook::Readiness::busy || ++spin == 1000) return nullptr;
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
  }
}

c10::intrusive_ptr<c10::StorageImpl> storage_for(Sharer& sharer, c10::Allocator* allocator) {
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<std::int64_t>(sharer.bytes),
      c10::DataPtr(nullptr, sharer.block->device()), allocator, /*resizable=*/true);
  sharer.storage = storage.get();
  return storage;
}

Sharer* new_sharer(Block& block, std::size_t offset, std::size_t bytes, c10::StorageImpl* storage) {
  auto* sharer = new Sharer{&block, offset, bytes, storage};
  if (!block.device().is_cpu()) sharer->home = current_stream(block.device());
  return sharer;
}

void enlist(Sharer& sharer) {
  sharer.block->link(sharer);
  ++registry().sharer_count;
}

}  // namespace

StreamOrder::Ready SharingCall::ready_on(c10::Device device) {
  auto& ready = ready_[device.index()];
  if (!ready) ready = StreamOrder::record_ready(device);
  return ready;
}

c10::intrusive_ptr<c10::StorageImpl> SharingCall::share(c10::StorageImpl& source, std::size_t offset, std::size_t bytes,
                                                        Reason& reason) {
  reason = Reason::none;
  const auto device = source.device();
  if (!allowed[static_cast<std::size_t>(device.type())]) {
    reason = Reason::device;
    return {};
  }
  if (bytes == 0 || (device.is_cpu() && bytes < tiny_bytes)) {
    reason = Reason::tiny;
    return {};
  }
  std::shared_ptr<StreamOrder> order;
  if (!device.is_cpu()) {
    if (capturing(current_stream(device))) {
      reason = Reason::capture;
      return {};
    }
    order = std::make_shared<StreamOrder>(ready_on(device));
  }

  auto& state = registry();
  std::unique_lock lock(state.mutex);
  Sharer* origin = settled_sharer(source, lock);
  if (origin != nullptr && origin->block->probation != nullptr && origin->block->probation != this) {
    reason = Reason::writing;
    return {};
  }
  const bool fresh = origin == nullptr;
  if (fresh) {
    // Asked before as well: on torch 2.11 and 2.12 arming memory of a device under a running writer can make torch
    // throw there.
    reason = being_written(source) ? Reason::writing : obstacle(source);
    if (reason != Reason::none) return {};
    auto* block = new Block();
    block->bytes = source.nbytes();
    block->allocator = write_hook::allocator_of(source) != nullptr ? write_hook::allocator_of(source)
                                                                   : c10::GetAllocator(device.type());
    block->order = std::move(order);
    block->probation = this;
    block->probation_index = made_.size();
    origin = new_sharer(*block, 0, block->bytes, &source);
    // The block must know address and device before a sharer can point into it.
    block->data = c10::DataPtr(source._mutable_data_ptr_no_checks().get(), device);
    block->data = write_hook::arm(source, *origin);
    if (being_written(source)) {  // the order is writing.h's: armed first, then looked
      write_hook::reseat(source, std::move(block->data), false);
      reason = Reason::writing;
      delete origin;
      delete block;
      return {};
    }
    enlist(*origin);
    state.add(*block);
  }
  Block& block = *origin->block;
  auto* sharer = new_sharer(block, origin->offset + offset, bytes, nullptr);
  auto clone = storage_for(*sharer, block.allocator);
  write_hook::arm(*clone, *sharer);
  enlist(*sharer);
  if (fresh) made_.push_back({c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&source), {}});
  if (block.probation == this) made_[block.probation_index].clones.push_back(clone);
  lock.unlock();
  if (fresh) fingerprint(block);
  // Where the clone is at home it may be read without a word, and be dropped with reads pending.
  if (block.order) {
    block.order->record_stream(block.data, *sharer->home);
    // The source is at home where it was allocated, which nothing tells; most often it is here.
    const auto usual = fresh ? default_stream(device) : std::nullopt;
    if (usual) block.order->record_stream(block.data, *usual);
  }
  return clone;
}

namespace {

c10::StorageImpl* storage_of(const c10::TensorImpl& tensor) {
  return tensor.has_storage() ? tensor.unsafe_storage().unsafeGetStorageImpl() : nullptr;
}

/// Did `call` make the block that `storage` shares? Only then its references are looked at.
bool on_probation(const c10::StorageImpl& storage, const SharingCall* call) {
  const Sharer* sharer = write_hook::sharer_of(storage);
  return sharer != nullptr && sharer->block->probation == call;
}

}  // namespace

void SharingCall::meet(c10::TensorImpl& tensor) {
  auto* storage = storage_of(tensor);
  if (made_.empty() || storage == nullptr) return;
  {
    std::lock_guard lock(registry().mutex);
    if (!on_probation(*storage, this)) return;
  }
  auto& known = met_[storage];
  const auto same = [&](const MetTensor& other) { return other.get() == &tensor; };
  if (std::none_of(known.begin(), known.end(), same)) known.push_back(MetTensor::reclaim_copy(&tensor));
}

const std::vector<MetTensor>& SharingCall::met(const c10::StorageImpl& source) const {
  static const std::vector<MetTensor> none;
  const auto found = met_.find(&source);
  return found == met_.end() ? none : found->second;
}

SharingCall::SharingCall() { write_hook::sweep(); }

SharingCall::~SharingCall() {
  for (const auto& made : made_) {
    const bool confirmed = [&] {
      std::lock_guard lock(registry().mutex);
      return !on_probation(*made.source, this);
    }();
    try {
      if (!confirmed) take_back(made, Reason::outside);
    } catch (const std::exception&) {
      // No memory for the copies: the block keeps its probation, so that nobody else shares it.
    }
  }
}

void SharingCall::confirm(const Made& made) {
  std::lock_guard lock(registry().mutex);
  if (const Sharer* sharer = write_hook::sharer_of(*made.source)) sharer->block->probation = nullptr;
}

void SharingCall::take_back(const Made& made, Reason reason) {
  for (const auto& clone : made.clones) {
    record({Kind::eager, Way::eager, reason, "torchcow.clone", clone->nbytes(), clone->device()});
    materialize({{clone.get()}}, {"torchcow.clone", false, false});
  }
  materialize({{made.source.get()}}, {"torchcow.clone", false, false});
}

std::size_t set_tiny_bytes(std::size_t bytes) noexcept { return tiny_bytes.exchange(bytes); }

void allow_device(c10::DeviceType type) noexcept { allowed[static_cast<std::size_t>(type)] = true; }

}  // namespace torchcow
