// SPDX-License-Identifier: Apache-2.0

#include "engine_state.h"
#include "invariant.h"
#include "retire.h"
#include "torch_internals.h"
#include "write_hook.h"

#include <c10/core/impl/COW.h>
#include <c10/core/impl/COWDeleter.h>

#include <atomic>
#include <memory>
#include <shared_mutex>
#include <typeinfo>
#include <unordered_map>
#include <vector>

/// The write hook on torch 2.11 and 2.12.
///
/// These have no hook of their own. But a storage whose DataPtr has torch's `cow_deleter` asks its
/// *allocator* for new memory before it hands out a mutable pointer:
///
///   a. mutable_data() sees that the storage's flag is set and that its deleter is `cow_deleter`;
///   b. materialize_cow_storage() throws unless that is still so, and reads the context;
///   c. context->decrement_refcount() takes the context's mutex, shared;
///   d. storage.allocator()->clone() calls allocate(), then copy_data();
///   e. what allocate() returned goes into the storage; what the storage held is forgotten, not freed;
///   f. the context's mutex is given back.
///
/// So an armed storage has `cow_deleter`, a context, and an allocator of ours, which live in a `Hook`.
/// `Hook::allocate` materializes. Threads may be at any of these steps at once:
///
///   1. A storage has one context, whose count never runs out, from its first arming until it dies. Whoever
///      has seen it in (b) finds it valid in (c), and comes to `allocate`.
///   2. `allocate` answers with what the storage holds already, so (e) replaces it by itself. It makes no
///      difference how many threads do that, and in which order. (The x86 builds of 2.11 and 2.12 store new
///      parts over the old ones; the null that the source puts in between is optimized away.)
///   3. That holds as long as what the storage holds does not change between (d) and (e). Only a storage
///      that is armed changes, and a thread between (c) and (f) keeps it from being armed: it has the mutex,
///      and `readiness` says busy. A thread before (c) comes to `allocate` later, and finds it armed.
///   4. (b) throws in a thread that was there when the deleter changed. So it does not change while other
///      threads may be about (`alone`): a storage that was materialized *lingers*, with the same context,
///      which owns its memory now. Its flag is cleared, so that (a) costs nothing; (e) sets the flag again,
///      and the next operator that writes the storage, or the next clone, clears it, or ends the lingering.
///   5. Memory of a device does not linger, as the device's allocator knows it by its deleter only. There
///      (b) throws in a thread that is between (a) and (b), some nanoseconds, at the moment in which
///      another one materializes. Nothing has happened then, and asking again is right. The same goes for
///      a thread that `alone` does not see, as it never ran Python.
///   6. `allocate` is also called by a resize, which frees what the storage held. Only (c) gives up a
///      reference before it asks for memory: `gave_up` counts them.
///   7. `cow_deleter` tells nobody that a storage died. A storage that was armed therefore gets the
///      virtual table of `HookedStorage`, whose destructor does. The Hook dies with its storage.
///   8. A storage that is resized forgets its context without a word. `sharer_of` sees that the DataPtr
///      is no longer ours, and `sweep` looks for such storages.
///      Moving a storage to shared memory also takes our allocator off it, so hooks are found by storage.
///   9. A suspended storage (reading.h) has its flag cleared, so that (a) never comes to (b). Torch sets it again when
///      it exchanges the DataPtr, which is harmless: a read un-shares then.
///  10. Exchanging what two storages hold exchanges their allocators too (torch 2.12). A Hook that was not where
///      it had been put may be the allocator of any storage: when its own dies it is `orphaned`, not deleted.
///
/// The engine's mutex guards all Hooks, and each change of a DataPtr but (e).

namespace torchcow::write_hook {

const char* const name = "cow";
const bool racing_readers_break = true;

namespace {

Handlers handlers{};

using Context = torch_internals::CowContext;
using Memory = std::unique_ptr<void, c10::DeleterFnPtr>;

using torch_internals::address_of;
using torch_internals::count_of;
using torch_internals::flag_of;
using torch_internals::memory_of;
using torch_internals::mutex_of;

/// What the Hook itself holds of its context's count; each DataPtr adds one.
constexpr std::int64_t endless = std::int64_t{1} << 40;

/// What this thread's `allocate` has answered: `copy_data` follows, and must leave it alone.
thread_local const void* answered = nullptr;

/// How many storages are suspended.
std::atomic<std::size_t> suspended{0};

class Hook;
using Hooks = std::unordered_map<const c10::StorageImpl*, Hook*>;
Hooks& all_hooks() {
  static auto* hooks = new Hooks();
  return *hooks;
}

class Hook final : public c10::Allocator {
 public:
  Hook(c10::StorageImpl& storage, c10::Allocator* original) : storage_(&storage), original_(original) {
    Memory context(new Context(Memory(nullptr, &c10::detail::deleteNothing)), &c10::impl::cow::cow_deleter);
    all_hooks()[&storage] = this;
    context_ = static_cast<Context*>(context.release());
    count_of(*context_) = endless;
    storage.set_allocator(this);
  }

  Hook(const Hook&) = delete;
  Hook& operator=(const Hook&) = delete;
  ~Hook() override { orphan(); }

  /// The storage is dead. Whoever took a DataPtr out of it keeps the context, and its memory, as torch's own would be.
  void orphan() {
    {
      std::lock_guard lock(engine().mutex);
      all_hooks().erase(std::exchange(storage_, nullptr));
    }
    count_of(*context_) -= endless - 1;
    c10::impl::cow::cow_deleter(std::exchange(context_, nullptr));
  }

  c10::DataPtr allocate(std::size_t bytes) override {
    {
      std::unique_lock lock(engine().mutex);
      if (storage_ == nullptr || !gave_up()) {
        lock.unlock();
        return original_->allocate(bytes);
      }
      if (sharer() == nullptr) return answer();
    }
    handlers.first_write(storage_);
    std::lock_guard lock(engine().mutex);
    return answer();
  }

  bool is_simple_data_ptr(const c10::DataPtr& data) const override { return original_->is_simple_data_ptr(data); }
  c10::DeleterFnPtr raw_deleter() const override { return original_->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    if (std::exchange(answered, nullptr) != to) original_->copy_data(to, from, bytes);
  }

  [[nodiscard]] Sharer* sharer() const { return ours() ? sharer_ : nullptr; }
  [[nodiscard]] c10::Allocator* original() const { return original_; }
  [[nodiscard]] bool serves(const c10::StorageImpl& storage) const { return &storage == storage_; }
  [[nodiscard]] bool strayed() const { return strayed_ || storage_->allocator() != this; }
  [[nodiscard]] c10::DeleterFnPtr deleter() const {
    return lingers() ? memory_of(*context_).get_deleter() : storage_->_mutable_data_ptr_no_checks().get_deleter();
  }

  /// A storage that has left is occupied until `sweep` (8).
  [[nodiscard]] Readiness readiness() const {
    if (!ours() && (sharer_ != nullptr || memory_of(*context_))) return Readiness::occupied;
    return quiet() ? Readiness::ready : Readiness::busy;
  }

  c10::DataPtr arm(Sharer& sharer) {
    strayed_ = strayed();
    storage_->set_allocator(this);
    c10::DataPtr old;
    if (lingers()) {
      old = take_memory();
      set_flag(true);
    } else {
      old = std::move(storage_->_mutable_data_ptr_no_checks());
      storage_->set_data_ptr_noswap(reference(const_cast<void*>(sharer.data()), sharer.block->device()));
    }
    sharer_ = &sharer;
    TORCHCOW_INVARIANT(I2, ours() && flag_of(*storage_), sharer.bytes);
    return old;
  }

  /// An armed storage gets another address, and keeps everything else: whoever is at (b) must find its context.
  void move(Sharer& sharer) {
    auto*& address = address_of(storage_->_mutable_data_ptr_no_checks());
    std::atomic_ref(address).store(const_cast<void*>(sharer.data()), std::memory_order_release);
    sharer_ = &sharer;
  }

  void reseat(c10::DataPtr memory) {
    end_suspension();
    sharer_ = nullptr;
    if (!ours()) return;  // resized by another thread meanwhile
    const bool simple = memory.get() == memory.get_context() && memory.device().is_cpu();
    if (!simple || alone()) {
      leave_context(std::move(memory));
      return;
    }
    storage_->set_data_ptr_noswap(reference(memory.get(), memory.device()));
    const auto deleter = memory.get_deleter();
    memory_of(*context_) = Memory(memory.release_context(), deleter);
    set_flag(false);
  }

  void suspend() {
    if (!std::exchange(suspended_, true)) ++suspended;  // before the flag: `looks_armed` misses no sharer
    set_flag(false);
  }

  void resume() {
    set_flag(true);
    end_suspension();
  }

  /// Ends what lingering costs, and the lingering itself if nobody else can be about (4).
  void settle() {
    if (!lingers() || !quiet()) return;
    set_flag(false);
    if (alone()) leave_context(take_memory());
  }

  /// The storage dies.
  Sharer* close() {
    end_suspension();
    closed_ = true;
    return std::exchange(sharer_, nullptr);
  }

  /// The memory of a storage that has given up its DataPtr, unless somebody took that over.
  c10::DataPtr abandoned_memory() {
    const bool abandoned = !ours() && count_of(*context_) == endless && quiet();
    return abandoned ? take_memory() : c10::DataPtr();
  }

  void sweep(std::vector<Sharer*>& gone, std::vector<c10::DataPtr>& garbage) {
    if (closed_) return;
    if (ours()) {
      settle();
      return;
    }
    end_suspension();
    if (sharer_ != nullptr) gone.push_back(std::exchange(sharer_, nullptr));
    garbage.push_back(abandoned_memory());
  }

 private:
  [[nodiscard]] bool ours() const {
    const auto& data = storage_->_mutable_data_ptr_no_checks();
    return data.get_context() == context_ && data.get_deleter() == &c10::impl::cow::cow_deleter;
  }
  [[nodiscard]] bool lingers() const { return sharer_ == nullptr && memory_of(*context_) && ours(); }

  /// Is no thread between (c) and (f)?
  [[nodiscard]] bool quiet() const {
    const std::unique_lock lock(mutex_of(*context_), std::try_to_lock);
    return lock.owns_lock();
  }

  void end_suspension() {
    if (std::exchange(suspended_, false)) --suspended;
  }

  void set_flag(bool on) {
    // Release: whoever sees it cleared sees the new address.
    std::atomic_ref(flag_of(*storage_)).store(on, std::memory_order_release);
  }

  c10::DataPtr take_memory() {
    auto& memory = memory_of(*context_);
    const auto deleter = memory.get_deleter();
    auto* address = memory.release();
    return {address, address, deleter, c10::DeviceType::CPU};
  }

  c10::DataPtr reference(void* address, c10::Device device) {
    ++count_of(*context_);
    return {address, context_, &c10::impl::cow::cow_deleter, device};
  }

  /// Has torch given up the reference of a DataPtr that the storage still holds? Takes it back (6).
  bool gave_up() {
    auto& count = count_of(*context_);
    const auto whole = endless + (ours() ? 1 : 0);
    auto now = count.load();
    while (now < whole) {
      if (count.compare_exchange_weak(now, now + 1)) return true;
    }
    return false;
  }

  [[nodiscard]] c10::DataPtr answer() const {
    const auto& data = storage_->_mutable_data_ptr_no_checks();
    answered = data.get();
    return {data.get(), data.get_context(), data.get_deleter(), data.device()};
  }

  void leave_context(c10::DataPtr memory) {
    auto& data = storage_->_mutable_data_ptr_no_checks();
    // The deleter first: in (b) nobody may take another context for ours (5).
    if (data.compare_exchange_deleter(&c10::impl::cow::cow_deleter, memory.get_deleter())) {
      std::atomic_thread_fence(std::memory_order_release);
      static_cast<void>(data.release_context());
      --count_of(*context_);
    }
    storage_->set_data_ptr_noswap(std::move(memory));
  }

  c10::StorageImpl* storage_;  ///< null once that is dead
  c10::Allocator* original_;
  Context* context_ = nullptr;  ///< owns the memory of a storage that lingers
  Sharer* sharer_ = nullptr;
  bool closed_ = false;
  bool suspended_ = false;
  bool strayed_ = false;  ///< another storage may have this as its allocator (10)
};

/// The hook of a storage that has one: usually its allocator.
Hook* find_hook(c10::StorageImpl& storage) {
  auto* allocator = storage.allocator();
  if (allocator != nullptr && typeid(*allocator) == typeid(Hook)) {
    auto* hook = static_cast<Hook*>(allocator);
    if (hook->serves(storage)) return hook;
  }
  return all_hooks().at(&storage);
}

/// What a StorageImpl becomes when it is armed; adds no members, so that the memory fits (7).
class HookedStorage final : public c10::StorageImpl {
 public:
  using c10::StorageImpl::StorageImpl;
  ~HookedStorage() override {
    std::unique_ptr<Hook> hook(leave_block());
    const bool strayed = hook->strayed();
    if (allocator() == hook.get()) set_allocator(hook->original());
    _mutable_data_ptr_no_checks().clear();
    if (strayed) hook.release()->orphan();
  }
  void release_resources() override {
    auto* hook = leave_block();
    c10::StorageImpl::release_resources();
    hook->abandoned_memory().clear();
  }

 private:
  Hook* leave_block() {
    Hook* hook = nullptr;
    Sharer* sharer = nullptr;
    {
      const std::lock_guard lock(engine().mutex);  // `sweep` forgets too
      hook = find_hook(*this);
      sharer = hook->close();
    }
    if (sharer != nullptr) handlers.dropped(sharer);
    return hook;
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

void install(const Handlers& engine_handlers) {
  handlers = engine_handlers;
  hooked_table();
}

Sharer* sharer_of(const c10::StorageImpl& storage) noexcept {
  const auto* hook = hook_of(storage);
  return hook != nullptr ? hook->sharer() : nullptr;
}

bool looks_armed(const c10::StorageImpl& storage) noexcept {
  auto& mutable_storage = const_cast<c10::StorageImpl&>(storage);
  return (std::atomic_ref(flag_of(mutable_storage)).load(std::memory_order_acquire) || suspended > 0) &&
         table_of(mutable_storage) == hooked_table();
}

void lost_race(c10::StorageImpl& storage, bool from_hook) {
  if (from_hook) return;
  if (auto* hook = hook_of(storage)) hook->settle();
}

Readiness readiness(c10::StorageImpl& storage) noexcept {
  if (const auto* hook = hook_of(storage)) return hook->readiness();
  return typeid(storage) == typeid(c10::StorageImpl) ? Readiness::ready : Readiness::occupied;
}

void prepare(c10::StorageImpl& storage) {
  if (hook_of(storage) != nullptr) return;
  new Hook(storage, storage.allocator());  // all_hooks has it
  table_of(storage) = hooked_table();
}

c10::DataPtr arm(c10::StorageImpl& storage, Sharer& sharer) noexcept { return hook_of(storage)->arm(sharer); }

void move(c10::StorageImpl& storage, Sharer& sharer) noexcept { hook_of(storage)->move(sharer); }

void suspend(c10::StorageImpl& storage) noexcept { hook_of(storage)->suspend(); }

void resume(c10::StorageImpl& storage) noexcept { hook_of(storage)->resume(); }

void reseat(c10::StorageImpl& storage, c10::DataPtr memory, bool) noexcept {
  hook_of(storage)->reseat(std::move(memory));
}

c10::Allocator* allocator_of(const c10::StorageImpl& storage) noexcept {
  const auto* hook = hook_of(storage);
  return hook != nullptr ? hook->original() : const_cast<c10::Allocator*>(storage.allocator());
}

c10::DeleterFnPtr deleter_of(const c10::StorageImpl& storage) noexcept {
  const auto* hook = hook_of(storage);
  return hook != nullptr ? hook->deleter()
                         : const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks().get_deleter();
}

void sweep() {
  std::vector<Sharer*> gone;
  std::vector<c10::DataPtr> garbage;
  {
    std::lock_guard lock(engine().mutex);
    gone.reserve(all_hooks().size());
    garbage.reserve(all_hooks().size());
    for (const auto& [storage, hook] : all_hooks()) hook->sweep(gone, garbage);
  }
  for (auto* sharer : gone) handlers.dropped(sharer);
}

}  // namespace torchcow::write_hook
