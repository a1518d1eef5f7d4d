// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpython_internals.h"

#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/pythoncapi_compat.h>

#include <cstdint>

/// Small helpers around Python's C interface. Errors of Python travel as py::error_already_set.

namespace torchcow {

namespace py = pybind11;

[[noreturn]] inline void raise() { throw py::error_already_set(); }

/// Owns what a function of the C interface returned, or raises what it raised.
[[nodiscard]] inline py::object steal(PyObject* made) {
  if (made == nullptr) raise();
  return py::reinterpret_steal<py::object>(made);
}

[[nodiscard]] inline py::object borrow(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

/// A string for names, which lives as long as the process.
[[nodiscard]] inline PyObject* intern(const char* name) {
  return steal(PyUnicode_InternFromString(name)).release().ptr();
}

/// For functions of the C interface that answer -1 for an error.
inline int check(int answer) {
  if (answer < 0) raise();
  return answer;
}

/// `getattr(object, name, None)`, but a null object instead of None.
[[nodiscard]] inline py::object find_attribute(PyObject* object, PyObject* name) {
  PyObject* found = nullptr;
  check(PyObject_GetOptionalAttr(object, name, &found));
  if (found == Py_None) Py_CLEAR(found);
  return py::reinterpret_steal<py::object>(found);
}

/// Has the instance anything in its `__dict__`?
[[nodiscard]] inline bool has_attributes(PyObject* object) noexcept {
  PyObject* dict = existing_dict(object);
  return dict != nullptr && PyDict_GET_SIZE(dict) > 0;
}

/// Of an object's identity; the upper bits are the good ones.
[[nodiscard]] inline std::uint64_t hash_of(const void* object) noexcept {
  return (reinterpret_cast<std::uintptr_t>(object) >> 4) * 0x9E3779B97F4A7C15ULL;
}

}  // namespace torchcow
