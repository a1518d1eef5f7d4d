// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <c10/core/StorageImpl.h>

#include <cstdint>

/// The bindings: what Python sees of the engine. Nothing is decided here.
///
/// Each `bind_x.cpp` binds the functions of the engine's header `x.h` and the records that they return. Three gather
/// functions of several headers, and say so in their names: `bind_names` and `bind_listener` let the engine call
/// Python, `bind_build` and `bind_testing` serve diagnostics and tests. module.cpp calls them all.
///
/// A record is a class with read-only fields. No function returns a tuple: a field has a name and a type, and
/// `_C.pyi` repeats both.

namespace torchcow {

void bind_accounting(pybind11::module_& module);
void bind_build(pybind11::module_& module);
void bind_captured(pybind11::module_& module);
void bind_clone(pybind11::module_& module);
void bind_events(pybind11::module_& module);
void bind_invariant(pybind11::module_& module);
void bind_listener(pybind11::module_& module);
void bind_materialize(pybind11::module_& module);
void bind_names(pybind11::module_& module);
void bind_reading(pybind11::module_& module);
void bind_reserve(pybind11::module_& module);
void bind_reshare(pybind11::module_& module);
void bind_testing(pybind11::module_& module);

/// The storage that holds the bytes of `tensor`, or nullptr: sparse tensors have none, and those of meta and symbolic
/// tensors hold no bytes.
[[nodiscard]] c10::StorageImpl* storage_with_bytes(const at::Tensor& tensor);

/// How Python sees a storage or a block: an integer that is equal for the same one, and 0 for none. A storage that
/// dies may leave its number to another one.
[[nodiscard]] inline std::uintptr_t identity_of(const void* object) noexcept {
  return reinterpret_cast<std::uintptr_t>(object);
}

/// Throws ImportError unless the torch that is loaded is of the minor release that this was compiled with: C++
/// interfaces and layouts stay the same within a minor release only. Comes first, before anything of torch is called.
void refuse_other_torch();

/// Tells the core how to wait without the interpreter lock, and whether other threads run Python.
void install_gil_hooks();

}  // namespace torchcow
