// SPDX-License-Identifier: Apache-2.0

#include "barrier.h"

#include "engine_state.h"
#include "invariant.h"
#include "materialize.h"
#include "stream_order.h"
#include "torch_internals.h"
#include "write_hook.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <unordered_map>

namespace torchcow {

bool any_shared(const Writes& writes) noexcept {
  return std::any_of(writes.targets.begin(), writes.targets.end(),
                     [](const WriteTarget& target) { return write_hook::looks_armed(*target.storage); });
}

namespace {

/// The operator runs next. Whatever it writes was announced before anything looked whether it is shared, and is shared
/// no more.
void check_targets(const Writes& writes) {
  const std::lock_guard lock(engine().mutex);
  for (const auto& target : writes.targets) {
    TORCHCOW_INVARIANT(I6, being_written(*target.storage));
    TORCHCOW_INVARIANT(I1, write_hook::sharer_of(*target.storage) == nullptr, target.storage->nbytes());
  }
}

}  // namespace

void write_through(const OperatorTraits& traits, const Writes& writes, c10::function_ref<void()> call) {
  std::vector<Skipped> skipped;
  materialize(writes.targets, {traits.name}, writes.overwritten.empty() ? nullptr : &skipped);
  if (invariant::enabled) check_targets(writes);
  try {
    call();
  } catch (...) {
    for (auto& skip : skipped) finish_skipped(skip, 0);
    throw;
  }
  for (auto& skip : skipped) {
    const auto target = std::find_if(writes.overwritten.begin(), writes.overwritten.end(),
                                     [&](auto& tensor) { return storage_of(tensor) == skip.storage.get(); });
    // An `out=` of another size was resized, and the operator wrote no more than the tensor has now.
    const bool known = target != writes.overwritten.end();
    finish_skipped(skip,
                   known ? static_cast<std::size_t>(target->numel()) * target->itemsize() : skip.storage->nbytes());
  }
}

namespace {

std::atomic<std::size_t> covered{0};

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

class BarrierKernel final : public c10::OperatorKernel {
 public:
  explicit BarrierKernel(OperatorTraits traits) : traits_(std::move(traits)) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    const auto call = [&] { op.redispatchBoxed(below_barrier(keys), stack); };
    const auto arguments = torch::jit::last(*stack, traits_.argument_count);
    if (traits_.records_stream) {
      forward_record_stream(arguments);
      call();
      return;
    }
    const Writes writes = collect(arguments);
    const WritingScope scope(writes.targets);
    if (any_shared(writes)) {
      write_through(traits_, writes, call);
    } else {
      call();
    }
  }

 private:
  Writes collect(c10::ArrayRef<c10::IValue> arguments) const {
    Writes writes;
    if (traits_.only_if && !(arguments[*traits_.only_if].isBool() && arguments[*traits_.only_if].toBool()))
      return writes;
    const bool overwrites = traits_.overwrites && !(traits_.copies_pairs && !surely_copies(arguments));
    for (const auto index : traits_.written) {
      visit_tensors(arguments[index], [&](const at::Tensor& tensor) {
        auto* storage = storage_of(tensor);
        if (storage == nullptr || (traits_.resizes && !grows(tensor, arguments))) return;
        const bool whole = overwrites && covers_storage(tensor) && references(arguments, storage) == 1;
        if (whole) writes.overwritten.push_back(tensor);
        writes.targets.push_back({storage, whole});
      });
    }
    return writes;
  }

  /// How many tensors among the arguments lie on `storage`.
  static std::size_t references(c10::ArrayRef<c10::IValue> arguments, const c10::StorageImpl* storage) {
    std::size_t count = 0;
    for (const auto& argument : arguments) {
      visit_tensors(argument, [&](const at::Tensor& tensor) { count += storage_of(tensor) == storage ? 1 : 0; });
    }
    return count;
  }

  /// No pair for which `_foreach_copy_` could raise when it has copied others already.
  static bool surely_copies(c10::ArrayRef<c10::IValue> arguments) {
    const auto targets = arguments[0].toTensorList();
    const auto sources = arguments[1].toTensorList();
    if (targets.size() != sources.size()) return false;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      const at::Tensor& target = targets[i];
      const at::Tensor& source = sources[i];
      const bool plain = target.layout() == at::kStrided && source.layout() == at::kStrided && !target.is_quantized() &&
                         !source.is_quantized() && !source.is_meta();
      if (!plain || target.sizes() != source.sizes() || !target.is_non_overlapping_and_dense()) return false;
    }
    return true;
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
    Block* block = nullptr;
    if (storage != nullptr) {
      std::lock_guard lock(engine().mutex);
      if (auto* sharer = write_hook::sharer_of(*storage)) block = sharer->block;
    }
    // The caller holds the tensor, its storage holds the sharer, and the sharer holds the block.
    if (block != nullptr && block->order) block->order->record_stream(block->data, arguments[1].toStream());
  }

  OperatorTraits traits_;
};

using torch_internals::operator_definition;

class CoverOperators final : public c10::OpRegistrationListener {
 public:
  void onOperatorRegistered(const c10::OperatorHandle& op) override {
    if (op.hasKernelForDispatchKey(barrier_key)) return;
    auto traits = traits_of(op);
    if (!traits) return;
    kernels_[op.operator_name()] = operator_definition(op)->op.registerKernel(
        c10::Dispatcher::singleton(), barrier_key,
        c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<BarrierKernel>(std::move(*traits))), std::nullopt,
        nullptr, "torchcow write barrier");
    ++covered;
  }

  /// The operator may be defined again, with another schema, while kernels of other libraries keep its entry.
  void onOperatorDeregistered(const c10::OperatorHandle& op) override {
    const auto kernel = kernels_.find(op.operator_name());
    if (kernel == kernels_.end()) return;
    operator_definition(op)->op.deregisterKernel_(c10::Dispatcher::singleton(), barrier_key, kernel->second);
    kernels_.erase(kernel);
    --covered;
  }

 private:
  // Guarded by the dispatcher's lock, under which a listener runs.
  std::unordered_map<c10::OperatorName, c10::impl::OperatorEntry::AnnotatedKernelContainerIterator> kernels_;
};

}  // namespace

void install_barrier() {
  install_fast_barrier();
  // Registrations live as long as the process. The listener is called for what is registered already.
  static auto* handle = new c10::RegistrationHandleRAII(
      c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<CoverOperators>()));
  static_cast<void>(handle);
}

std::size_t covered_operators() noexcept { return covered; }

}  // namespace torchcow
