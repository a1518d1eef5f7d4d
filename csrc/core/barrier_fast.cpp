// SPDX-License-Identifier: Apache-2.0

#include "barrier.h"
#include "write_hook.h"

#include <ATen/Operators.h>
#include <torch/library.h>

#include <type_traits>

/// Unboxed barrier kernels for the operators that loops over small tensors call most. Boxing the arguments
/// costs a quarter of a microsecond, which such a call would feel; here a write to memory that nobody
/// shares costs some nanoseconds.

namespace torchcow {

namespace {

template <typename T>
const at::Tensor* as_tensor(const T& argument) {
  if constexpr (std::is_same_v<T, at::Tensor>) return &argument;
  return nullptr;
}

/// All operators here write `self`, their first argument, and nothing else.
template <typename Op, typename Signature = Op::schema>
struct Fast;

template <typename Op, typename Result, typename... Rest>
struct Fast<Op, Result(at::Tensor&, Rest...)> {
  static Result call(c10::DispatchKeySet keys, at::Tensor& self, Rest... rest) {
    const auto below = below_barrier(keys);
    auto* storage = storage_of(self);
    if (storage == nullptr) return Op::redispatch(below, self, rest...);
    const WriteTarget target{storage};
    const WritingScope scope({&target, 1});
    if (write_hook::looks_armed(*storage)) {
      write_through(traits(), writes_of(self, storage, rest...), [&] { Op::redispatch(below, self, rest...); });
      return self;
    }
    return Op::redispatch(below, self, rest...);
  }

  static const OperatorTraits& traits() {
    static const OperatorTraits found =
        *traits_of(c10::Dispatcher::singleton().findSchemaOrThrow(Op::name, Op::overload_name));
    return found;
  }

 private:
  static Writes writes_of(const at::Tensor& self, c10::StorageImpl* storage, const std::decay_t<Rest>&... rest) {
    [[maybe_unused]] const auto reads = [&](const at::Tensor* other) {
      return other != nullptr && storage_of(*other) == storage;
    };
    const bool alone = !(reads(as_tensor(rest)) || ...);
    Writes writes;
    const bool whole = traits().overwrites && alone && covers_storage(self);
    if (whole) writes.overwritten.push_back(self);
    writes.targets.push_back({storage, whole});
    return writes;
  }
};

template <typename... Ops>
void register_all(torch::Library& library) {
  (library.impl((std::string(Ops::name) + (*Ops::overload_name != '\0' ? "." : "") + Ops::overload_name).c_str(),
                torch::dispatch(barrier_key, TORCH_FN((Fast<Ops>::call)))),
   ...);
}

}  // namespace

void install_fast_barrier() {
  static auto* library = new torch::Library(torch::Library::IMPL, "aten", barrier_key, __FILE__, __LINE__);
  using namespace at::_ops;
  register_all<add__Tensor, add__Scalar, sub__Tensor, sub__Scalar, mul__Tensor, mul__Scalar, div__Tensor, div__Scalar,
               copy_, fill__Scalar, fill__Tensor, zero_, addcmul_, addcdiv_, lerp__Scalar, lerp__Tensor, clamp_,
               clamp_min_, relu_, sqrt_, exp_, neg_, sigmoid_, tanh_, masked_fill__Scalar, masked_fill__Tensor,
               pow__Scalar, normal_, uniform_>(*library);
}

}  // namespace torchcow
