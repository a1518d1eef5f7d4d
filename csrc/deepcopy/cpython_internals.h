// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/python_headers.h>

#include <c10/macros/Macros.h>

#include <algorithm>
#include <array>
#include <cstdint>

/// All that the engine uses of CPython beyond its documented C interface, and what replaces it where it is gone.
///
/// Each entry says for which versions of Python it holds, and which test fails when it does not hold any more.
/// `tests/package/test_internals.py` fails if another file of csrc names a private part.
///
/// Threads: under the interpreter lock, where an entry does not say otherwise.

namespace torchcow {

/// A number that changes whenever the class or one of its bases does, and is never used twice. 0: the class has no
/// number, since it never had one, has run out of them (3.13: 1000 for each class), or was changed and not looked at.
///
/// Versions: `tp_version_tag` is in every release; until 3.12 it counts only while a flag is set. PyType_Watch (3.12)
/// is no better: it notifies only where such a number is taken away, and eight libraries at most can use it.
/// Test: deepcopy/test_walk.py, test_a_class_that_is_patched_later.
[[nodiscard]] inline std::uint32_t version_of(const PyTypeObject* type) noexcept {
#if PY_VERSION_HEX < 0x030D0000
  if (!PyType_HasFeature(const_cast<PyTypeObject*>(type), Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
  return type->tp_version_tag;
}

/// Notices changes of two dicts, which live as long as the process.
///
/// Versions: 3.11 gives each change of any dict a number of its own. 3.12 deprecates that and 3.14 has it no more, but
/// they notify a watcher, of which a process has eight. Where none is left, every look counts as a change.
/// Test: deepcopy/test_walk.py, test_tables_that_are_changed_later,
/// test_a_class_is_asked_again_only_when_a_table_has_changed, and
/// test_where_no_dict_watcher_is_left_tables_are_asked_each_time.
class DictChanges {
 public:
  DictChanges(PyObject* first, PyObject* second) noexcept : dicts_{first, second} {
#if PY_VERSION_HEX >= 0x030C0000
    static const int watcher = PyDict_AddWatcher(&note);
    watched_ = watcher >= 0 && PyDict_Watch(watcher, first) == 0 && PyDict_Watch(watcher, second) == 0;
    PyErr_Clear();
#endif
  }

  /// A number that it has not returned before if one of the dicts has changed since.
  [[nodiscard]] std::uint64_t count() const noexcept {
#if PY_VERSION_HEX < 0x030C0000
    const auto version = [](PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; };
    return std::max(version(dicts_[0]), version(dicts_[1]));
#else
    return watched_ ? changes : ++changes;
#endif
  }

 private:
#if PY_VERSION_HEX >= 0x030C0000
  static int note(PyDict_WatchEvent, PyObject*, PyObject*, PyObject*) noexcept {
    ++changes;
    return 0;
  }

  static inline std::uint64_t changes = 0;
  bool watched_ = false;
#endif
  std::array<PyObject*, 2> dicts_;
};

/// The attribute `name` of a class or its bases, borrowed, or nullptr: no descriptor is called, no metaclass asked.
/// Gives the class a version, if it can have one.
///
/// Versions: all up to 3.14. Test: deepcopy/test_differential.py, which asks for every method of the protocol.
[[nodiscard]] inline PyObject* find_in_class(PyTypeObject* type, PyObject* name) noexcept {
  return _PyType_Lookup(type, name);
}

/// The instance's `__dict__` if it has one by now, borrowed, or nullptr. Without it, an instance that keeps its
/// attributes elsewhere would be given a dict, and with it grow.
///
/// Versions: all up to 3.14; from 3.12 on an instance of a Python class that has attributes is given its dict.
/// Test: deepcopy/test_walk.py.
[[nodiscard]] inline PyObject* existing_dict(PyObject* object) noexcept {
  PyObject** dict = _PyObject_GetDictPtr(object);
  return dict == nullptr ? nullptr : *dict;
}

/// 1 if `object.name` is the class's function, bound to the object, and nothing that the instance has in its place; 0
/// if not; -1 with an error set.
///
/// Versions: 3.13 hides the function that makes no bound method. Test: deepcopy/test_differential.py.
[[nodiscard]] inline int inherits_method(PyObject* object, PyObject* name) noexcept {
#if PY_VERSION_HEX < 0x030D0000
  PyObject* method = nullptr;
  const bool unbound = _PyObject_GetMethod(object, name, &method) != 0;
  if (method == nullptr) return -1;
  PyObject* function = unbound ? method : nullptr;
#else
  PyObject* method = PyObject_GetAttr(object, name);
  if (method == nullptr) return -1;
  PyObject* function = PyMethod_Check(method) ? PyMethod_GET_FUNCTION(method) : nullptr;
#endif
  const bool inherits = function != nullptr && function == find_in_class(Py_TYPE(object), name);
  Py_DECREF(method);
  return inherits ? 1 : 0;
}

/// An empty list with room for `size` members, so that appending them moves nothing; or nullptr with an error set.
///
/// Versions: all up to 3.14, with the interpreter lock. Test: deepcopy/test_walk.py.
[[nodiscard]] inline PyObject* new_list_with_room(Py_ssize_t size) noexcept {
  PyObject* list = PyList_New(size);
  if (list != nullptr) Py_SET_SIZE(reinterpret_cast<PyVarObject*>(list), 0);
  return list;
}

/// Do only `count` references to the object exist?
///
/// Versions: all up to 3.14, with the interpreter lock and for objects that are not immortal.
/// Test: deepcopy/test_walk.py.
[[nodiscard]] inline bool has_references(PyObject* object, Py_ssize_t count) noexcept {
  return Py_REFCNT(object) == count;
}

/// The class of weak references, which has no public name.
///
/// Versions: all up to 3.14. Test: deepcopy/test_differential.py.
inline PyTypeObject* weak_reference_type() noexcept { return &_PyWeakref_RefType; }

/// False once the interpreter is going down: a thread that asks for its lock then would hang. Any thread may ask.
///
/// Versions: 3.13 made the function public. Test: engine/test_threads.py.
inline bool interpreter_runs() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsInitialized() && !Py_IsFinalizing();
#else
  return Py_IsInitialized() && !_Py_IsFinalizing();
#endif
}

}  // namespace torchcow
