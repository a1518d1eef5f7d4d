// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "engine_state.h"
#include "reserve.h"

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <vector>

namespace py = pybind11;

namespace torchcow {

namespace {

/// Python's handle of a reserve. It holds the reserve weakly: the sharers own it.
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
  std::vector<bool> storage_pieces;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    auto* storage = storage_with_bytes(tensors[i]);
    if (storage == nullptr) continue;
    storages.push_back(storage);
    storage_pieces.push_back(pieces.at(i));
  }
  const py::gil_scoped_release unlocked;
  return ReserveHandle(reserve(storages, storage_pieces));
}

}  // namespace

void bind_reserve(py::module_& module) {
  py::class_<ReserveHandle>(module, "ReserveHandle")
      .def("bytes", &ReserveHandle::bytes)
      .def("release", &ReserveHandle::release);
  module.def("reserve", &reserve_for, py::arg("tensors"), py::arg("pieces"));
}

}  // namespace torchcow
