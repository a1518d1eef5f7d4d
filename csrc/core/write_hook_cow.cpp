#include "materialize.h"
#include "registry.h"
#include "write_hook.h"

#include <c10/core/impl/COW.h>
#include <c10/core/impl/COWDeleter.h>
#include <c10/util/Exception.h>

#include <thread>
#include <typeinfo>
#include <unordered_map>

/// The write hook on torch 2.11 and 2.12.
///
/// These have no hook of their own. But a storage whose DataPtr has torch's `cow_deleter` asks its
/// *allocator* for new memory before it hands out a mutable pointer:
///
///   mutable_data() -> materialize_cow_storage() -> context->decrement_refcount()
///                  -> storage.allocator()->clone(data, nbytes): allocate(nbytes), copy_data(...)
///                  -> the storage's DataPtr is exchanged, and the old context forgotten
///
/// So an armed storage gets a context (a COWDeleterContext whose count never runs out) and an allocator
/// of ours, both in a `Hook`. `Hook::allocate` materializes, and returns the memory.
///
///   1. The allocator stays on the storage after the first write, and forwards: a thread that read
///      `storage.allocator()` just before must find it alive. The Hook dies with its storage.
///   2. `cow_deleter` tells nobody that a storage died. An armed storage therefore gets the virtual
///      table of `HookedStorage`, whose destructor does.
///   3. A storage that is resized forgets its context without a word. `sharer_of` sees that the DataPtr
///      is no longer ours, and `sweep` looks for such storages.
///      Moving a storage to shared memory also takes our allocator off it, so hooks are found by storage.
///   4. Two threads inside of `clone` at once: each would exchange the DataPtr. `allocate` lets the second
///      go on only when the first has finished, and hands it the same memory under another context
///      (`Handle`), so that what torch forgets and what it keeps are different things.

namespace torchcow::write_hook {

const char* const name = "cow";
const bool racing_readers_break = true;

namespace {

using Context = c10::impl::cow::COWDeleterContext;
using Count = std::atomic<std::int64_t>;

/// Naming a private member in an explicit instantiation is legal C++.
template <auto Member>
struct Expose {
  friend Count& count_of(Context& context) { return context.*Member; }
};
Count& count_of(Context& context);
template struct Expose<&Context::refcount_>;

constexpr std::int64_t endless = std::int64_t{1} << 40;

/// The same memory under a further context: owns the DataPtr that torch has forgotten.
struct Handle {
  c10::DataPtr inner;
};

void delete_handle(void* handle) { delete static_cast<Handle*>(handle); }

class Hook;
std::mutex hooks_mutex;
using Hooks = std::unordered_map<const c10::StorageImpl*, Hook*>;
Hooks& all_hooks() {
  static auto* hooks = new Hooks();
  return *hooks;
}

class Hook final : public c10::Allocator {
 public:
  Hook(c10::StorageImpl& storage, c10::Allocator* original) : storage_(storage), original_(original) {
    std::lock_guard lock(hooks_mutex);
    all_hooks()[&storage] = this;
  }

  ~Hook() override {
    std::lock_guard lock(hooks_mutex);
    all_hooks().erase(&storage_);
  }

  c10::DataPtr allocate(std::size_t bytes) override;

  bool is_simple_data_ptr(const c10::DataPtr& data) const override { return original_->is_simple_data_ptr(data); }
  c10::DeleterFnPtr raw_deleter() const override { return original_->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    // After `allocate` has materialized there is nothing left to copy.
    if (to != last_.data) original_->copy_data(to, from, bytes);
  }

  [[nodiscard]] bool armed() const {
    const auto& data = storage_._mutable_data_ptr_no_checks();
    return context_ != nullptr && data.get_context() == context_ && data.get_deleter() == &c10::impl::cow::cow_deleter;
  }

  [[nodiscard]] Sharer* sharer() const { return armed() ? sharer_ : nullptr; }
  [[nodiscard]] c10::Allocator* original() const { return original_; }

  c10::DataPtr arm(Sharer& sharer) {
    // Nothing of an earlier arming is in use: `readiness` saw that all exchanges are over.
    if (context_ == nullptr) {
      context_ = new Context(std::unique_ptr<void, c10::DeleterFnPtr>(
          nullptr, +[](void*) {}));
    }
    count_of(*context_) = endless;
    sharer_ = &sharer;
    last_ = {};
    c10::DataPtr old = std::move(storage_._mutable_data_ptr_no_checks());
    storage_.set_data_ptr_noswap(
        c10::DataPtr(const_cast<void*>(sharer.data()), context_, &c10::impl::cow::cow_deleter, sharer.block->device()));
    return unwrap(std::move(old));
  }

  void reseat(c10::DataPtr memory, bool from_hook) {
    sharer_ = nullptr;
    if (from_hook) {
      handed_over_ = std::move(memory);
    } else {
      storage_._mutable_data_ptr_no_checks().release_context();
      storage_.set_data_ptr_noswap(std::move(memory));
    }
  }

  /// The storage has left its block without telling (3), or dies (2).
  Sharer* forget() { return std::exchange(sharer_, nullptr); }
  [[nodiscard]] bool left() const { return sharer_ != nullptr && !armed() && !exchanging(); }
  /// Is torch between our return and the exchange? The DataPtr is still torch's copy-on-write one, or has the
  /// new address already; after a resize it is neither.
  [[nodiscard]] bool exchanging() const {
    const auto& data = storage_._mutable_data_ptr_no_checks();
    return last_.data != nullptr && !arrived() &&
           (data.get_deleter() == &c10::impl::cow::cow_deleter || data.get() == last_.data);
  }

  /// The block's memory, whatever contexts racing threads have put around it.
  static c10::DataPtr unwrap(c10::DataPtr data) {
    while (data.get_deleter() == &delete_handle) {
      auto* handle = static_cast<Handle*>(data.release_context());
      data = std::move(handle->inner);
      delete handle;
    }
    return data;
  }

  void free_context() {
    // The storage's DataPtr is gone; the count is ours alone.
    if (context_ == nullptr) return;
    count_of(*context_) = 1;
    c10::impl::cow::cow_deleter(context_);
    context_ = nullptr;
  }

 private:
  struct Parts {
    void* data = nullptr;
    void* context = nullptr;
    c10::DeleterFnPtr deleter = nullptr;
  };

  [[nodiscard]] bool arrived() const {
    const auto& data = storage_._mutable_data_ptr_no_checks();
    return data.get() == last_.data && data.get_context() == last_.context && data.get_deleter() == last_.deleter;
  }

  c10::DataPtr first_exchange() {
    c10::DataPtr memory = std::move(handed_over_);
    last_ = {memory.get(), memory.get_context(), memory.get_deleter()};
    return memory;
  }

  c10::DataPtr late_exchange(std::size_t bytes) {
    std::lock_guard one_at_a_time(exchange_);
    for (int spin = 0; exchanging(); ++spin) {
      if (spin > 1 << 20) return original_->allocate(bytes);  // the storage was resized meanwhile
      std::this_thread::yield();
    }
    // torch forgets the context that the storage has now, and keeps the new one, which owns it.
    auto& data = storage_._mutable_data_ptr_no_checks();
    auto* handle = new Handle{c10::DataPtr(data.get(), data.get_context(), data.get_deleter(), data.device())};
    last_ = {data.get(), handle, &delete_handle};
    return c10::DataPtr(data.get(), handle, &delete_handle, data.device());
  }

  c10::StorageImpl& storage_;
  c10::Allocator* original_;
  Context* context_ = nullptr;
  Sharer* sharer_ = nullptr;
  c10::DataPtr handed_over_;
  Parts last_;  ///< what the last exchange puts into the storage
  std::mutex exchange_;
};

/// Set while this thread is below `Allocator::clone`; `allocate` alone cannot tell it from a resize, but
/// a resize asks for another number of bytes, or reads the old bytes itself, and both are served.
c10::DataPtr Hook::allocate(std::size_t bytes) {
  if (bytes != storage_.nbytes()) return original_->allocate(bytes);
  if (first_write(&storage_)) return first_exchange();
  if (last_.data != nullptr && (exchanging() || storage_._mutable_data_ptr_no_checks().get() == last_.data)) {
    return late_exchange(bytes);
  }
  return original_->allocate(bytes);
}

/// The hook of a storage that has one: usually its allocator.
Hook* find_hook(c10::StorageImpl& storage) {
  auto* allocator = storage.allocator();
  if (allocator != nullptr && typeid(*allocator) == typeid(Hook)) return static_cast<Hook*>(allocator);
  std::lock_guard lock(hooks_mutex);
  return all_hooks().at(&storage);
}

/// What a StorageImpl becomes when it is armed; adds no members, so that the memory fits (2).
class HookedStorage final : public c10::StorageImpl {
 public:
  using c10::StorageImpl::StorageImpl;
  ~HookedStorage() override {
    leave_block();
    auto* hook = find_hook(*this);
    if (allocator() == hook) set_allocator(hook->original());
    _mutable_data_ptr_no_checks().clear();
    hook->free_context();
    delete hook;
  }
  void release_resources() override {
    leave_block();
    c10::StorageImpl::release_resources();
  }

 private:
  void leave_block() {
    auto* hook = find_hook(*this);
    Sharer* sharer = nullptr;
    {
      const std::lock_guard lock(registry().mutex);  // `sweep` forgets too
      sharer = hook->forget();
    }
    if (sharer != nullptr) dropped(sharer);
  }
};

static_assert(sizeof(HookedStorage) == sizeof(c10::StorageImpl));

void*& table_of(c10::StorageImpl& storage) { return *reinterpret_cast<void**>(&storage); }

void* hooked_table() {
  static void* const table = [] {
    // A sample that is never destroyed: its destructor expects a Hook.
    alignas(HookedStorage) static std::byte room[sizeof(HookedStorage)];
    auto* sample =
        new (room) HookedStorage(c10::StorageImpl::use_byte_size_t(), 0, c10::DataPtr(), nullptr, /*resizable=*/false);
    return table_of(*sample);
  }();
  return table;
}

Hook* hook_of(const c10::StorageImpl& storage) {
  auto& mutable_storage = const_cast<c10::StorageImpl&>(storage);
  return table_of(mutable_storage) == hooked_table() ? find_hook(mutable_storage) : nullptr;
}

}  // namespace

void install() { hooked_table(); }

Sharer* sharer_of(const c10::StorageImpl& storage) noexcept {
  const auto* hook = hook_of(storage);
  return hook != nullptr ? hook->sharer() : nullptr;
}

bool looks_armed(const c10::StorageImpl& storage) noexcept {
  const auto& data = const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks();
  return data.get_deleter() == &c10::impl::cow::cow_deleter && hook_of(storage) != nullptr;
}

void came_late(c10::StorageImpl&) {}

Readiness readiness(c10::StorageImpl& storage) noexcept {
  if (auto* hook = hook_of(storage)) {
    if (hook->exchanging()) return Readiness::busy;
    return hook->left() ? Readiness::occupied : Readiness::ready;
  }
  return typeid(storage) == typeid(c10::StorageImpl) ? Readiness::ready : Readiness::occupied;
}

c10::DataPtr arm(c10::StorageImpl& storage, Sharer& sharer) noexcept {
  auto* hook = hook_of(storage);
  if (hook == nullptr) {
    hook = new Hook(storage, storage.allocator());
    table_of(storage) = hooked_table();
  }
  storage.set_allocator(hook);
  return hook->arm(sharer);
}

void reseat(c10::StorageImpl& storage, c10::DataPtr memory, bool from_hook) noexcept {
  hook_of(storage)->reseat(std::move(memory), from_hook);
}

c10::Allocator* allocator_of(const c10::StorageImpl& storage) noexcept {
  const auto* hook = hook_of(storage);
  return hook != nullptr ? hook->original() : const_cast<c10::Allocator*>(storage.allocator());
}

c10::DeleterFnPtr deleter_of(const c10::DataPtr& data) noexcept {
  const auto* inner = &data;
  while (inner->get_deleter() == &delete_handle) inner = &static_cast<Handle*>(inner->get_context())->inner;
  return inner->get_deleter();
}

void sweep() {
  std::vector<Sharer*> gone;
  {
    std::lock_guard state(registry().mutex);
    std::lock_guard lock(hooks_mutex);  // always the inner one
    for (const auto& [storage, hook] : all_hooks()) {
      if (hook->left()) gone.push_back(hook->forget());
    }
  }
  for (auto* sharer : gone) dropped(sharer);
}

}  // namespace torchcow::write_hook
