#include "share.h"

#include "captured.h"
#include "engine_state.h"
#include "host_pages.h"
#include "materialize.h"
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
#include <memory>
#include <thread>

namespace torchcow {

namespace {

std::atomic<std::size_t> tiny_bytes{1024};
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
Reason obstacle(c10::StorageImpl& storage) {
  if (captured::is_marked(storage)) return Reason::capture;
  if (write_hook::deleter_of(storage) == &c10::impl::cow::cow_deleter) return Reason::hook;
  if (!own_memory(storage)) return Reason::foreign;
  // One tensor holds it; NumPy's view is another one, and has made the storage unresizable.
  if (!storage.resizable() && c10::raw::intrusive_ptr::use_count(&storage) > 1 + python_references(storage))
    return Reason::numpy;
  return write_hook::readiness(storage) == write_hook::Readiness::ready ? Reason::none : Reason::hook;
}

/// The storage's sharer, or nullptr, once no other thread is in the middle of a first write. This one may be.
Sharer* settled_sharer(c10::StorageImpl& storage, std::unique_lock<std::mutex>& lock) {
  // A thread on its way out of the hook needs some nanoseconds more, and perhaps the mutex.
  for (int spin = 0;;) {
    Sharer* sharer = write_hook::sharer_of(storage);
    if (sharer != nullptr) {
      if (!engine().claimed(*sharer) || sharer->claimant == std::this_thread::get_id()) return sharer;
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

std::unique_ptr<Sharer> new_sharer(Block& block, std::size_t offset, std::size_t bytes, c10::StorageImpl* storage) {
  auto sharer = std::make_unique<Sharer>(Sharer{&block, offset, bytes, storage});
  if (!block.device().is_cpu()) sharer->home = current_stream(block.device());
  return sharer;
}

void enlist(Sharer& sharer) {
  sharer.block->link(sharer);
  ++engine().sharer_count;
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
  if (tiny(device, bytes)) {
    reason = Reason::tiny;
    return {};
  }
  static_cast<void>(source.data());  // raises if torch has forbidden to read it
  std::shared_ptr<StreamOrder> order;
  if (!device.is_cpu()) {
    if (capturing(current_stream(device))) {
      reason = Reason::capture;
      return {};
    }
    order = std::make_shared<StreamOrder>(ready_on(device));
  }

  c10::intrusive_ptr<c10::StorageImpl> clone;  // dies without the mutex
  auto& state = engine();
  std::unique_lock lock(state.mutex);
  Sharer* origin = settled_sharer(source, lock);
  if (origin != nullptr && state.claimed(*origin)) {  // by this thread: an allocator that calls back
    reason = Reason::writing;
    return {};
  }
  const auto* call = origin != nullptr && origin->block->on_probation() ? origin->block->probation->call : this;
  const bool adopts = call == nullptr && origin->block->sharer_count == 1;
  if (call != this && !adopts) {
    reason = call != nullptr ? Reason::writing : Reason::outside;
    return {};
  }
  const bool fresh = origin == nullptr;
  // Asked before as well: on torch 2.11 and 2.12 arming memory of a device under a running writer can make torch throw
  // there.
  if (fresh) reason = being_written(source) ? Reason::writing : obstacle(source);
  if (reason == Reason::none && offset + bytes > source.nbytes()) reason = Reason::writing;  // resized while we waited
  if (reason != Reason::none) return {};
  std::unique_ptr<Block> made_block;
  std::unique_ptr<Sharer> first;
  if (fresh) {
    made_block = new_block(source, std::move(order));
    first = new_sharer(*made_block, 0, made_block->bytes, &source);
  }
  Block& block = fresh ? *made_block : *origin->block;
  auto sharer = new_sharer(block, (fresh ? 0 : origin->offset) + offset, bytes, nullptr);
  const auto home = sharer->home;
  clone = storage_for(*sharer, block.allocator);
  if (fresh) write_hook::prepare(source);
  write_hook::prepare(*clone);
  if (fresh || adopts) {
    auto probation = std::make_shared<Probation>(Probation{this, made_.size()});
    made_.push_back({c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(&source), {clone}, probation});
    block.probation = std::move(probation);
  } else if (block.on_probation()) {
    made_[block.probation->index].clones.push_back(clone);
  }
  // Nothing after this point can fail.
  if (fresh) {
    block.data = write_hook::arm(source, *first);
    if (being_written(source)) {  // the order is writing.h's: armed first, then looked
      write_hook::reseat(source, std::move(block.data), false);
      made_.pop_back();
      reason = Reason::writing;
      return {};
    }
    enlist(*first.release());
    state.add(*made_block.release());
  }
  write_hook::arm(*clone, *sharer);
  enlist(*sharer.release());
  lock.unlock();
  if (fresh) fingerprint(block);
  // Where the clone is at home it may be read without a word, and be dropped with reads pending.
  if (block.order) {
    block.order->record_stream(block.data, *home);
    // The source is at home where it was allocated, which nothing tells; most often it is here.
    const auto usual = fresh ? default_stream(device) : std::nullopt;
    if (usual) block.order->record_stream(block.data, *usual);
  }
  return clone;
}

namespace {

/// Is the block that `storage` shares on probation with `call`? Only then its references are looked at.
bool on_probation(const c10::StorageImpl& storage, const SharingCall* call) {
  const Sharer* sharer = write_hook::sharer_of(storage);
  return sharer != nullptr && sharer->block->on_probation() && sharer->block->probation->call == call;
}

}  // namespace

void meet_once(std::vector<MetTensor>& met, c10::TensorImpl& tensor) {
  const auto same = [&](const MetTensor& other) { return other.get() == &tensor; };
  if (std::none_of(met.begin(), met.end(), same)) met.push_back(MetTensor::reclaim_copy(&tensor));
}

void SharingCall::meet(c10::TensorImpl& tensor) {
  auto* storage = storage_of(tensor);
  if (made_.empty() || storage == nullptr) return;
  {
    std::lock_guard lock(engine().mutex);
    if (!on_probation(*storage, this)) return;
  }
  meet_once(met_[storage], tensor);
}

const std::vector<MetTensor>& SharingCall::met(const c10::StorageImpl& source) const {
  static const std::vector<MetTensor> none;
  const auto found = met_.find(&source);
  return found == met_.end() ? none : found->second;
}

SharingCall::SharingCall() {
  write_hook::sweep();
  trim_causes();
}

SharingCall::~SharingCall() {
  for (const auto& made : made_) {
    try {
      if (!made.probation->passed) take_back(made, Reason::outside);
    } catch (const std::exception&) {
      // No memory for the copies. Nobody else shares the block until a later call has an answer.
      std::lock_guard lock(engine().mutex);
      made.probation->call = nullptr;
    }
  }
}

void SharingCall::confirm(const Made& made) {
  // Not through the source, which may have left the block: the clones are still there.
  std::lock_guard lock(engine().mutex);
  made.probation->passed = true;
}

void SharingCall::take_back(const Made& made, Reason reason) {
  for (const auto& clone : made.clones) {
    materialize({{clone.get()}}, {"torchcow.clone", false, false});
    record(Kind::eager, Way::eager, reason, "torchcow.clone", clone->nbytes(), clone->device(), clone.get());
  }
  materialize({{made.source.get()}}, {"torchcow.clone", false, false, /*stays=*/true});
  confirm(made);
}

std::size_t set_tiny_bytes(std::size_t bytes) noexcept { return tiny_bytes.exchange(bytes); }

bool tiny(c10::Device device, std::size_t bytes) noexcept {
  return bytes == 0 || (device.is_cpu() && bytes < tiny_bytes);
}

void allow_device(c10::DeviceType type) noexcept { allowed[static_cast<std::size_t>(type)] = true; }

}  // namespace torchcow
