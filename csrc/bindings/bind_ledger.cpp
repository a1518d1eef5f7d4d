#include "bindings.h"

#include "accounting.h"
#include "barrier.h"
#include "cuda_kernels.h"
#include "engine_state.h"
#include "events.h"
#include "reserve.h"
#include "reshare.h"
#include "share.h"
#include "write_hook.h"

#include <ATen/core/Tensor.h>

namespace py = pybind11;

namespace torchcow {

namespace {

/// The storage that holds the bytes of `tensor`, or nullptr.
c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.unsafeGetTensorImpl()->has_storage()) return nullptr;
  auto* storage = tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  const bool real = storage != nullptr && storage->device_type() != c10::DeviceType::Meta &&
                    !storage->sym_nbytes().is_heap_allocated();
  return real ? storage : nullptr;
}

py::tuple event_tuple(const Event& event) {
  return py::make_tuple(event.way == Way::eager ? "eager" : "materialize", to_string(event.way), event.operator_name,
                        event.bytes, to_string(event.reason), describe(event.reason), event.device.str(),
                        reinterpret_cast<std::uintptr_t>(event.storage));
}

py::list event_list(bool clear) {
  py::list list;
  for (const auto& event : events(clear)) list.append(event_tuple(event));
  return list;
}

py::object tensor_cause(const at::Tensor& tensor) {
  auto* storage = storage_of(tensor);
  if (storage == nullptr) return py::none();
  auto event = last_event(*storage);
  if (!event && tiny(storage->device(), storage->nbytes())) {  // not remembered, as it can be seen
    event.emplace(Way::eager, Reason::tiny, "torchcow.clone", storage->nbytes(), storage->device(), storage);
  }
  return event ? py::object(event_tuple(*event)) : py::none();
}

/// (identity of the storage, of its block or 0, bytes of the block, sharers, bytes of the storage, offset in the block)
py::object tensor_usage(const at::Tensor& tensor) {
  const auto* storage = storage_of(tensor);
  if (storage == nullptr) return py::none();
  const auto used = usage(*storage);
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(storage), reinterpret_cast<std::uintptr_t>(used.block),
                        used.block_bytes, used.block_sharers, used.bytes, used.offset);
}

py::list tensor_usages(const py::iterable& tensors) {
  py::list list;
  for (const auto tensor : tensors) list.append(tensor_usage(tensor.cast<at::Tensor>()));
  return list;
}

bool join_tensors(const at::Tensor& joiner, const at::Tensor& joiner_clone, const at::Tensor& keeper_clone) {
  auto* const storage = storage_of(joiner);
  const auto *old_clone = storage_of(joiner_clone), *new_clone = storage_of(keeper_clone);
  if (storage == nullptr || old_clone == nullptr || new_clone == nullptr) return false;
  return join(*storage, *old_clone, *new_clone);
}

/// The handle of a reserve, which does not keep it.
class ReserveHandle {
 public:
  explicit ReserveHandle(const std::shared_ptr<Reserve>& reserve) : reserve_(reserve) {}

  [[nodiscard]] std::size_t bytes() const {
    const auto reserve = reserve_.lock();
    std::lock_guard lock(engine().mutex);
    return reserve ? reserve->bytes() : 0;
  }

  void release() const {
    Reserve::Pieces pieces;
    const auto reserve = reserve_.lock();
    std::lock_guard lock(engine().mutex);
    if (reserve) pieces = reserve->release();
  }

 private:
  std::weak_ptr<Reserve> reserve_;
};

ReserveHandle reserve_for(const std::vector<at::Tensor>& tensors, const std::vector<bool>& pieces) {
  std::vector<c10::StorageImpl*> storages;
  std::vector<bool> wanted;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    auto* storage = storage_of(tensors[i]);
    if (storage == nullptr) continue;
    storages.push_back(storage);
    wanted.push_back(pieces.at(i));
  }
  const py::gil_scoped_release unlocked;
  return ReserveHandle(reserve(storages, wanted));
}

py::dict total_dict() {
  const auto sum = totals();
  py::dict dict;
  dict["blocks"] = sum.blocks;
  dict["sharers"] = sum.sharers;
  dict["logical_bytes"] = sum.logical_bytes;
  dict["unique_bytes"] = sum.unique_bytes;
  dict["retired_blocks"] = sum.retired_blocks;
  dict["retired_bytes"] = sum.retired_bytes;
  dict["kept_bytes"] = sum.kept_bytes;
  dict["reserved_bytes"] = sum.reserved_bytes;
  dict["forgotten_events"] = sum.forgotten_events;
  return dict;
}

py::dict build_info() {
  py::dict dict;
  dict["torch"] = TORCHCOW_TORCH_VERSION;
  dict["write_hook"] = write_hook::name;
  dict["covered_operators"] = covered_operators();
  dict["cuda_kernels"] = cuda_kernels_status();
  return dict;
}

}  // namespace

void bind_ledger(py::module_& module) {
  module.def("events", &event_list, py::arg("clear"));
  module.def("cause", &tensor_cause, py::arg("tensor"));
  module.def("usage", &tensor_usage, py::arg("tensor"));
  module.def("usages", &tensor_usages, py::arg("tensors"));
  module.def("join", &join_tensors, py::arg("joiner"), py::arg("joiner_clone"), py::arg("keeper_clone"));
  py::class_<ReserveHandle>(module, "ReserveHandle")
      .def("bytes", &ReserveHandle::bytes)
      .def("release", &ReserveHandle::release);
  module.def("reserve", &reserve_for, py::arg("tensors"), py::arg("pieces"));
  module.def("totals", &total_dict);
  module.def("build_info", &build_info);
  module.def("cuda_kernels_status", &cuda_kernels_status);
}

}  // namespace torchcow
