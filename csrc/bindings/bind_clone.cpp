#include "bindings.h"

#include "captured.h"
#include "clone.h"
#include "first_write_error.h"
#include "materialize.h"

#include <ATen/core/Tensor.h>

namespace py = pybind11;

namespace torchcow {

namespace {

void materialize_tensors(const std::vector<at::Tensor>& tensors) {
  std::vector<WriteTarget> targets;
  for (const auto& tensor : tensors) {
    if (tensor.unsafeGetTensorImpl()->has_storage()) {
      targets.push_back({tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()});
    }
  }
  py::gil_scoped_release unlocked;
  materialize(targets, {"torchcow.materialize", false});
}

/// A Python function from the identity of a storage to a dotted name or None; lives as long as the process.
py::function* name_finder = nullptr;

std::string find_name(const c10::StorageImpl* storage) {
  if (name_finder == nullptr || !Py_IsInitialized()) return {};
  const py::gil_scoped_acquire locked;
  try {
    const py::object name = (*name_finder)(reinterpret_cast<std::uintptr_t>(storage));
    return name.is_none() ? std::string() : name.cast<std::string>();
  } catch (py::error_already_set&) {
    return {};  // the error that is being described matters more
  }
}

void set_name_finder(const py::function& finder) {
  name_finder = new py::function(finder);
  set_name_resolver(&find_name);
}

}  // namespace

void bind_clone(py::module_& module) {
  module.def("clone", &clone, py::arg("source"), py::arg("memo"), py::arg("strict"), py::arg("reducers") = py::none());
  module.def("patched_deepcopy", &patched_deepcopy, py::arg("source"), py::arg("memo"));
  module.def("ordinary_deepcopy", &ordinary_deepcopy, py::arg("source"), py::arg("memo"));
  module.def("set_patch", &set_patch, py::arg("excluded"));
  module.def("set_remember", &set_remember, py::arg("remember"), py::arg("classes"));
  module.def("materialize", &materialize_tensors, py::arg("tensors"));
  module.def("graph_was_captured", &captured::note);
  module.def("set_name_finder", &set_name_finder, py::arg("finder"));
}

}  // namespace torchcow
