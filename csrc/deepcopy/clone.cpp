// SPDX-License-Identifier: Apache-2.0

#include "clone.h"

#include "captured.h"
#include "census.h"
#include "stack.h"
#include "tensors.h"
#include "walk.h"

#include <torch/csrc/Exceptions.h>

#include <exception>
#include <optional>
#include <utility>
#include <vector>

namespace torchcow {

namespace {

PyObject* excluded_classes = nullptr;    // a tuple while a patch is on
py::function* remember_named = nullptr;  // lives as long as the process, as does the tuple
PyObject* named_classes = nullptr;

using Copier = py::object (*)(Memo&, PyObject*);

/// Calls `act`. Errors of torch become those that torch's own functions raise in Python.
template <class Act>
py::object with_python_errors(const Act& act) {
  try {
    return act();
  } catch (py::error_already_set&) {
    throw;
  } catch (...) {
    torch::translate_exception_to_python(std::current_exception());
    raise();
  }
}

/// An entry of copy._deepcopy_dispatch: it shares for the memo of a running clone, and else does what was done before.
template <Copier copier>
py::object dispatch_entry(const py::object& source, const py::object& memo) {
  check_stack();
  auto& protocol = Protocol::get();
  Call* call = Call::running(memo.ptr());
  if (call == nullptr || !PyDict_CheckExact(memo.ptr())) return protocol.inherited(source.ptr(), memo.ptr());
  Memo call_memo(*call, memo);
  py::object copy;
  if (call->shares() && protocol.treatment_of(Py_TYPE(source.ptr())) != Treatment::entry) {
    copy = with_python_errors([&] { return copier(call_memo, source.ptr()); });
  }
  if (!copy) {
    copy = protocol.inherited(source.ptr(), memo.ptr());
    if (Py_TYPE(source.ptr()) != protocol.storage.type) note_seen_or_record(call_memo, source.ptr(), copy.ptr());
  }
  return copy;
}

/// Records the tensor subclasses in the memo that user code copied: they copy themselves, so they may share nothing.
void record_subclasses(const Call& call, PyObject* memo) {
  if (!call.shares()) return;
  const auto& protocol = Protocol::get();
  const auto copies = steal(PyDict_Values(memo));
  for (const auto copy : py::reinterpret_borrow<py::list>(copies)) {
    auto* type = Py_TYPE(copy.ptr());
    if (type != protocol.tensor.type && type != protocol.parameter.type &&
        PyType_IsSubtype(type, protocol.tensor.type)) {
      record_if_copied(copy.ptr());
    }
  }
}

/// Walks with a memo of our own, or with that of the caller.
py::object walk_with_memo(Call& call, const py::object& source, const py::object& caller_memo) {
  if (caller_memo.is_none()) {
    Memo memo(call);
    auto copy = Walk(memo).deep_copy(source.ptr());
    if (!memo.hidden()) record_subclasses(call, memo.dict());
    return copy;
  }
  const Running running(caller_memo.ptr(), call);
  Memo memo(call, caller_memo);
  auto copy = Walk(memo).deep_copy(source.ptr());
  record_subclasses(call, caller_memo.ptr());
  return copy;
}

/// One whole call: the walk, and then the check of the blocks that it made, also when it failed.
py::object run_call(Call& call, const py::object& source, const py::object& memo) {
  if (captured::take_note()) {
    visit_tracked_tensors([](auto&, auto& storage) {
      if (!storage.device().is_cpu()) captured::mark(storage);
    });
  }
  py::object copy;
  try {
    copy = with_python_errors([&] { return walk_with_memo(call, source, memo); });
  } catch (...) {
    call.finish();
    throw;
  }
  call.finish();
  return copy;
}

/// A memo that is no dict is left to Python's own deepcopy.
bool is_unusual(const py::object& memo) { return !memo.is_none() && !PyDict_CheckExact(memo.ptr()); }

bool is_named(PyObject* object) {
  // No isinstance: it would ask the object for its __class__, which runs foreign code.
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(named_classes); ++i) {
    if (PyType_IsSubtype(Py_TYPE(object), reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(named_classes, i)))) {
      return true;
    }
  }
  return false;
}

/// Remembers `object`, or the models and optimizers directly in it: a dict of the two has no name of its own.
void remember(PyObject* object) {
  if (remember_named == nullptr) return;
  std::vector<py::object> named;
  const auto add_if_named = [&](PyObject* member) {
    if (is_named(member)) named.push_back(borrow(member));
  };
  PyObject* dict = PyDict_CheckExact(object) ? object : existing_dict(object);
  if (is_named(object)) {
    named.push_back(borrow(object));
  } else if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); ++i) add_if_named(PySequence_Fast_GET_ITEM(object, i));
  } else if (dict != nullptr) {
    PyObject *key, *value;
    for (Py_ssize_t position = 0; PyDict_Next(dict, &position, &key, &value);) add_if_named(value);
  }
  for (const auto& member : named) (*remember_named)(member);
}

struct DeepCopyOptions {
  bool strict = false;
  bool shares = true;  ///< false: an ordinary deep copy
  py::object excluded = {};
  py::object reducers = {};
};

py::object deep_copy_with(const py::object& source, const py::object& memo, const DeepCopyOptions& options) {
  check_stack();
  if (is_unusual(memo)) return borrow(Protocol::get().python_deepcopy)(source, memo);
  std::optional<UnsharedCopyScope> unshared;
  if (Call* running = Call::running(memo.ptr())) {
    if (!options.shares) unshared.emplace(*running);
    Memo call_memo(*running, memo);
    return with_python_errors([&] { return Walk(call_memo).deep_copy(source.ptr()); });
  }
  Call call(options.strict, options.excluded, options.reducers);
  if (!options.shares) unshared.emplace(call);
  auto copy = run_call(call, source, memo);
  if (options.shares) {
    remember(source.ptr());
    remember(copy.ptr());
  }
  return copy;
}

bool are_reducers(PyObject* reducers) {
  if (!PyTuple_Check(reducers)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(reducers); ++i) {
    PyObject* pair = PyTuple_GET_ITEM(reducers, i);
    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyType_Check(PyTuple_GET_ITEM(pair, 0))) return false;
  }
  return true;
}

}  // namespace

py::object clone(const py::object& source, const py::object& memo, bool strict, const py::object& reducers) {
  if (reducers.is_none()) return deep_copy_with(source, memo, {.strict = strict});
  if (!are_reducers(reducers.ptr()))
    throw py::type_error("reducers: expected a tuple of pairs of a class and a function");
  return deep_copy_with(source, memo, {.strict = strict, .reducers = reducers});
}

py::object patched_deepcopy(const py::object& source, const py::object& memo) {
  if (excluded_classes == nullptr) return ordinary_deepcopy(source, memo);
  return deep_copy_with(source, memo, {.excluded = borrow(excluded_classes)});
}

py::object ordinary_deepcopy(const py::object& source, const py::object& memo) {
  return deep_copy_with(source, memo, {.shares = false});
}

void set_patch(const py::object& excluded) {
  PyObject* classes = excluded.is_none() ? nullptr : excluded.inc_ref().ptr();
  Py_XDECREF(std::exchange(excluded_classes, classes));
}

void set_remember(const py::function& remember, const py::tuple& classes) {
  named_classes = borrow(classes.ptr()).release().ptr();
  remember_named = new py::function(remember);
}

void install_entries() {
  Protocol::get().install(py::cpp_function(&dispatch_entry<copy_parameter>, py::arg("source"), py::arg("memo")),
                          py::cpp_function(&dispatch_entry<copy_tensor>, py::arg("source"), py::arg("memo")),
                          py::cpp_function(&dispatch_entry<copy_storage>, py::arg("source"), py::arg("memo")));
}

}  // namespace torchcow
