#include "barrier.h"

#include "materialize.h"
#include "operators.h"
#include "registry.h"
#include "share.h"
#include "stream_order.h"
#include "write_hook.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <atomic>
#include <optional>

namespace torchcow {

namespace {

constexpr auto barrier_key = c10::DispatchKey::DeferredInit;
std::atomic<std::size_t> covered{0};

/// The storages that one running operator writes; linked while it runs.
struct Writing {
  const WriteTarget* targets;
  std::size_t count;
  Writing* next = nullptr;
  Writing* previous = nullptr;
};

Writing* writings = nullptr;  // guarded by the registry's mutex

class WritingScope {
 public:
  WritingScope(const WriteTarget* targets, std::size_t count) : writing_{targets, count} {
    std::lock_guard lock(registry().mutex);
    writing_.next = writings;
    if (writings != nullptr) writings->previous = &writing_;
    writings = &writing_;
    for (std::size_t i = 0; i < count && !any_sharer_; ++i) {
      any_sharer_ = write_hook::sharer_of(*targets[i].storage) != nullptr;
    }
  }
  WritingScope(const WritingScope&) = delete;
  WritingScope& operator=(const WritingScope&) = delete;
  ~WritingScope() {
    std::lock_guard lock(registry().mutex);
    (writing_.previous != nullptr ? writing_.previous->next : writings) = writing_.next;
    if (writing_.next != nullptr) writing_.next->previous = writing_.previous;
  }
  [[nodiscard]] bool any_sharer() const noexcept { return any_sharer_; }

 private:
  Writing writing_;
  bool any_sharer_ = false;
};

template <typename Visit>
void visit_tensors(const c10::IValue& value, Visit&& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorList()) visit(tensor);
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      if (element.isTensor()) visit(element.toTensor());
    }
  }
}

c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.unsafeGetTensorImpl()->has_storage()) return nullptr;
  return tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

/// Does the tensor cover every byte of its storage?
bool covers(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  return !impl->has_symbolic_sizes_strides() && impl->storage_offset() == 0 && impl->is_non_overlapping_and_dense() &&
      static_cast<std::size_t>(impl->numel()) * impl->itemsize() == storage_of(tensor)->nbytes();
}

/// May anything but autograd and a dense backend still handle this call?
bool goes_straight(c10::DispatchKeySet keys) {
  constexpr auto harmless = c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::BackendSelect, barrier_key});
  // Subtraction leaves the bits that name backends.
  return ((keys - harmless).raw_repr() & ~c10::full_backend_mask) == 0;
}

class BarrierKernel final : public c10::OperatorKernel {
 public:
  BarrierKernel(OperatorTraits traits, c10::DispatchKey key) : traits_(std::move(traits)), key_(key) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    const auto below = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, key_);
    const auto arguments = torch::jit::last(*stack, traits_.argument_count);
    if (traits_.records_stream) forward_record_stream(arguments);
    if (traits_.adopts_storage) {
      const at::Tensor self = arguments[0].toTensor();
      op.redispatchBoxed(below, stack);
      if (self.defined()) mark_if_shared(*self.unsafeGetTensorImpl());
      return;
    }
    c10::SmallVector<WriteTarget, 4> targets;
    c10::SmallVector<at::Tensor, 4> overwritten;
    collect(arguments, below, targets, overwritten);
    const WritingScope scope(targets.data(), targets.size());
    if (!scope.any_sharer()) {
      op.redispatchBoxed(below, stack);
      return;
    }
    std::vector<Skipped> skipped;
    materialize(targets, {traits_.name, false}, overwritten.empty() ? nullptr : &skipped);
    call(op, below, stack, overwritten, skipped);
  }

 private:
  void collect(
      c10::ArrayRef<c10::IValue> arguments, c10::DispatchKeySet below, c10::SmallVectorImpl<WriteTarget>& targets,
      c10::SmallVectorImpl<at::Tensor>& overwritten) const {
    if (traits_.records_stream) return;
    const bool may_skip = traits_.overwrites && goes_straight(below);
    for (const auto& written : traits_.written) {
      visit_tensors(arguments[written.index], [&](const at::Tensor& tensor) {
        auto* storage = storage_of(tensor);
        if (storage == nullptr || (traits_.resizes && !grows(tensor, arguments))) return;
        const bool whole = may_skip && covers(tensor) && references(arguments, storage) == 1;
        if (whole) overwritten.push_back(tensor);
        targets.push_back({storage, whole});
      });
    }
  }

  /// How many tensors among the arguments lie on `storage`.
  static std::size_t references(c10::ArrayRef<c10::IValue> arguments, const c10::StorageImpl* storage) {
    std::size_t count = 0;
    for (const auto& argument : arguments) {
      visit_tensors(argument, [&](const at::Tensor& tensor) { count += storage_of(tensor) == storage; });
    }
    return count;
  }

  static bool grows(const at::Tensor& tensor, c10::ArrayRef<c10::IValue> arguments) {
    std::size_t elements = 1;
    if (arguments[1].isTensor()) {
      elements = arguments[1].toTensor().numel();
    } else if (arguments[1].isIntList()) {
      for (const auto size : arguments[1].toDimVector()) elements *= size;
    } else {
      return true;
    }
    return (elements + tensor.storage_offset()) * tensor.itemsize() > storage_of(tensor)->nbytes();
  }

  static void forward_record_stream(c10::ArrayRef<c10::IValue> arguments) {
    auto* storage = storage_of(arguments[0].toTensor());
    if (storage == nullptr) return;
    std::shared_ptr<StreamOrder> order;
    const c10::DataPtr* data = nullptr;
    Sharer* pin = nullptr;
    {
      std::lock_guard lock(registry().mutex);
      pin = write_hook::sharer_of(*storage);
      if (pin == nullptr) return;
      order = pin->block->order;
      data = &pin->block->data;
    }
    // The caller holds the tensor, its storage holds the sharer, and the sharer holds the block.
    if (order) order->record_stream(*data, arguments[1].toStream());
  }

  static void call(
      const c10::OperatorHandle& op, c10::DispatchKeySet below, torch::jit::Stack* stack,
      const c10::SmallVectorImpl<at::Tensor>& overwritten, const std::vector<Skipped>& skipped) {
    try {
      op.redispatchBoxed(below, stack);
    } catch (...) {
      for (auto& skip : skipped) finish_skipped(skip, 0);
      throw;
    }
    for (auto& skip : skipped) {
      const auto target = std::find_if(overwritten.begin(), overwritten.end(), [&](auto& tensor) { return storage_of(tensor) == skip.storage.get(); });
      // An `out=` of another size was resized, and the operator wrote no more than the tensor has now.
      const bool known = target != overwritten.end();
      finish_skipped(skip, known ? static_cast<std::size_t>(target->numel()) * target->itemsize() : skip.storage->nbytes());
    }
  }

  OperatorTraits traits_;
  c10::DispatchKey key_;
};

c10::KernelFunction kernel_for(const OperatorTraits& traits, c10::DispatchKey key) {
  return c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<BarrierKernel>(traits, key));
}

std::vector<c10::DispatchKey> keys_for(const OperatorTraits& traits) {
  if (traits.adopts_storage) return {c10::DispatchKey::BackendSelect};
  if (traits.writes_list || traits.records_stream) return {barrier_key, c10::DispatchKey::BackendSelect};
  return {barrier_key};
}

/// `OperatorHandle::operatorDef_`, which torch keeps to itself: a listener runs under the dispatcher's
/// lock, so it cannot use the public registration, which takes that lock. Naming a private member in an
/// explicit instantiation is legal C++.
template <auto Member>
struct Expose {
  friend auto operator_definition(const c10::OperatorHandle& op) { return op.*Member; }
};
auto operator_definition(const c10::OperatorHandle& op);
template struct Expose<&c10::OperatorHandle::operatorDef_>;

class CoverOperators final : public c10::OpRegistrationListener {
 public:
  void onOperatorRegistered(const c10::OperatorHandle& op) override {
    const auto traits = traits_of(op);
    if (!traits) return;
    for (const auto key : keys_for(*traits)) {
      if (op.hasKernelForDispatchKey(key)) continue;
      operator_definition(op)->op.registerKernel(
          c10::Dispatcher::singleton(), key, kernel_for(*traits, key), std::nullopt, nullptr, "torchcow write barrier");
      ++covered;
    }
  }
  void onOperatorDeregistered(const c10::OperatorHandle&) override {}
};

}  // namespace

void install_barrier() {
  auto& dispatcher = c10::Dispatcher::singleton();
  // Registrations live as long as the process. The listener is called for what is registered already.
  static auto* handles = new std::vector<c10::RegistrationHandleRAII>();
  handles->push_back(dispatcher.registerFallback(
      barrier_key, c10::KernelFunction::makeFallthrough(), "torchcow: reads fall through"));
  handles->push_back(dispatcher.addRegistrationListener(std::make_unique<CoverOperators>()));
}

namespace {

/// `TensorImpl::key_set_` is protected; a derived class may name it.
struct KeyAccess : c10::TensorImpl {
  static c10::DispatchKeySet& of(c10::TensorImpl& tensor) { return tensor.*(&KeyAccess::key_set_); }
};

}  // namespace

void mark(c10::TensorImpl& tensor) noexcept {
  auto& keys = KeyAccess::of(tensor);
  if (!keys.has(barrier_key)) keys = keys.add(barrier_key);
}

bool being_written(const c10::StorageImpl& storage) noexcept {
  for (auto* writing = writings; writing != nullptr; writing = writing->next) {
    for (std::size_t i = 0; i < writing->count; ++i) {
      if (writing->targets[i].storage == &storage) return true;
    }
  }
  return false;
}

std::size_t covered_operators() noexcept { return covered; }

}  // namespace torchcow
