#include "bindings.h"

#include "barrier.h"
#include "cuda_kernels.h"
#include "ledger.h"
#include "write_hook.h"

#include <ATen/core/Tensor.h>

namespace py = pybind11;

namespace torchcow {

namespace {

py::list event_list(bool clear) {
  py::list list;
  for (const auto& event : events(clear)) {
    list.append(py::make_tuple(to_string(event.kind), to_string(event.way), event.operator_name, event.bytes,
                               to_string(event.reason), explain(event.reason), event.device.str()));
  }
  return list;
}

/// (identity of the storage, of its block or 0, bytes of the block, sharers, bytes of the storage)
py::object tensor_usage(const at::Tensor& tensor) {
  if (!tensor.unsafeGetTensorImpl()->has_storage()) return py::none();
  const auto& storage = *tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  if (storage.device_type() == c10::DeviceType::Meta || storage.sym_nbytes().is_heap_allocated()) return py::none();
  const auto used = usage(storage);
  return py::make_tuple(reinterpret_cast<std::uintptr_t>(&storage), reinterpret_cast<std::uintptr_t>(used.block),
                        used.block_bytes, used.block_sharers, used.bytes);
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
  module.def("usage", &tensor_usage, py::arg("tensor"));
  module.def("totals", &total_dict);
  module.def("build_info", &build_info);
  module.def("cuda_kernels_status", &cuda_kernels_status);
}

}  // namespace torchcow
