// SPDX-License-Identifier: Apache-2.0

#include "events.h"

#include "fork.h"
#include "storage_table.h"

#include <deque>
#include <mutex>
#include <new>
#include <utility>

namespace torchcow {

namespace {

struct LastEvent {
  std::uint64_t first;  ///< number of the storage's first event; those before it were of another one at that address
  Event event;
};

using LastEvents = StorageTable<LastEvent>;

struct Ring {
  std::mutex mutex;
  std::deque<Event> events;
  std::uint64_t recorded = 0;
  std::size_t forgotten = 0;
  bool complete = true;  ///< no event was lost for want of memory
  LastEvents last_events;

  void remember(c10::StorageImpl& storage, const Event& event) {
    if (auto* last = last_events.find(&storage)) {
      last->event = event;
    } else {
      last_events.insert(storage, {recorded, event});
    }
  }
};

Ring& ring() {
  static auto* instance = new Ring();
  return *instance;
}

void lock_ring() { ring().mutex.lock(); }
void unlock_ring() { ring().mutex.unlock(); }

const AtFork at_fork(ForkStage::events, {.before = &lock_ring, .in_parent = &unlock_ring, .in_child = &unlock_ring});

}  // namespace

const char* to_string(Way way) noexcept {
  switch (way) {
    case Way::steal:
      return "steal";
    case Way::copy:
      return "copy";
    case Way::skip:
      return "skip";
    case Way::eager:
      return "eager";
  }
  return "?";
}

namespace {

struct Words {
  const char* word;
  const char* sentence;
};

Words words_for(Reason reason) noexcept {
  switch (reason) {
    case Reason::none:
      return {"", ""};
    case Reason::tiny:
      return {"tiny", "a copy is cheaper than sharing"};
    case Reason::device:
      return {"device", "tensors are shared on cpu and cuda"};
    case Reason::foreign:
      return {"foreign",
              "the memory does not come from torch's own allocator (NumPy, a mapped file, shared or pinned memory, "
              "DLPack)"};
    case Reason::numpy:
      return {"numpy", "an array or a buffer may look into the memory"};
    case Reason::outside:
      return {"outside",
              "something that is no Python tensor refers to the memory (a consumer of DLPack, a live autograd graph)"};
    case Reason::strict:
      return {"strict", "strict=True, and something outside of the cloned object refers to the memory"};
    case Reason::writing:
      return {"writing", "another thread is writing or cloning it right now"};
    case Reason::capture:
      return {
          "capture",
          "a graph is being captured on the stream, or was captured when the tensor was there and may use its address"};
    case Reason::hook:
      return {"hook", "torch's own copy-on-write or another write hook is on the storage"};
    case Reason::layout:
      return {"layout", "deepcopy gives the parameter other strides, or resolves a conjugate or negative view"};
    case Reason::excluded:
      return {"excluded", "torchcow.patch(exclude=...) names the class of an object that holds the tensor"};
    case Reason::kind:
      return {"kind", "the tensor is quantized, sparse, nested, or of a subclass that copies itself"};
  }
  return {"?", "?"};
}

}  // namespace

const char* to_string(Reason reason) noexcept { return words_for(reason).word; }
const char* describe(Reason reason) noexcept { return words_for(reason).sentence; }

void record(Way way, Reason reason, std::string_view operator_name, std::size_t bytes, c10::Device device,
            c10::StorageImpl* storage) noexcept {
  auto& self = ring();
  std::lock_guard lock(self.mutex);
  if (self.events.size() == event_capacity) {
    self.events.pop_front();
    ++self.forgotten;
  }
  try {
    self.events.emplace_back(way, reason, operator_name, bytes, device, storage);
  } catch (const std::bad_alloc&) {
    ++self.forgotten;
    self.complete = false;
    return;
  }
  ++self.recorded;
  try {
    if (storage != nullptr) self.remember(*storage, self.events.back());
  } catch (const std::bad_alloc&) {
    self.complete = false;  // the event is in the ring all the same
  }
}

std::vector<Event> events(bool clear) {
  auto& self = ring();
  std::lock_guard lock(self.mutex);
  std::vector<Event> copy(self.events.begin(), self.events.end());
  auto number = self.recorded - copy.size();
  for (auto& event : copy) {
    ++number;
    const auto* last = self.last_events.find(event.storage);
    if (last == nullptr || number < last->first) event.storage = nullptr;
  }
  if (clear) self.events.clear();
  return copy;
}

std::optional<Event> last_event(const c10::StorageImpl& storage) {
  auto& self = ring();
  std::lock_guard lock(self.mutex);
  const auto* last = self.last_events.find(&storage);
  return last != nullptr ? std::optional(last->event) : std::nullopt;
}

bool has_event(const c10::StorageImpl& storage) noexcept {
  auto& self = ring();
  std::lock_guard lock(self.mutex);
  return !self.complete || self.last_events.find(&storage) != nullptr;
}

void trim_last_events() {
  LastEvents::Removed removed;  // destroyed without the mutex
  auto& self = ring();
  std::lock_guard lock(self.mutex);
  removed = self.last_events.remove_dead();
}

void forget_last_events() {
  LastEvents removed;
  auto& self = ring();
  std::lock_guard lock(self.mutex);
  std::swap(removed, self.last_events);
}

std::size_t forgotten_events() {
  auto& self = ring();
  std::lock_guard lock(self.mutex);
  return self.forgotten;
}

}  // namespace torchcow
