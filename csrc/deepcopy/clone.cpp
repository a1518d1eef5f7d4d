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

/// What `act` returns; errors of torch become those that torch's own functions raise in Python.
template <class Act>
py::object translated(const Act& act) {
  try {
    return act();
  } catch (py::error_already_set&) {
    throw;
  } catch (...) {
    torch::translate_exception_to_python(std::current_exception());
    raise();
  }
}

template <Copier copier>
py::object entry(const py::object& source, const py::object& memo) {
  check_stack();
  auto& protocol = Protocol::get();
  Call* call = Call::running(memo.ptr());
  if (call == nullptr || !PyDict_CheckExact(memo.ptr())) return protocol.inherited(source.ptr(), memo.ptr());
  Memo known(*call, memo);
  py::object copy;
  if (call->shares() && protocol.treatment_of(Py_TYPE(source.ptr())) != Treatment::entry) {
    copy = translated([&] { return copier(known, source.ptr()); });
  }
  if (!copy) {
    copy = protocol.inherited(source.ptr(), memo.ptr());
    if (Py_TYPE(source.ptr()) != protocol.storage.type) note_seen_or_record(known, source.ptr(), copy.ptr());
  }
  return copy;
}

/// Tensor subclasses that user code copied with the memo copy themselves.
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

py::object walk(Call& call, const py::object& source, const py::object& given) {
  if (given.is_none()) {
    Memo memo(call);
    auto copy = Walk(memo).copy(source.ptr());
    if (!memo.hidden()) record_subclasses(call, memo.dict());
    return copy;
  }
  const Running running(given.ptr(), call);
  Memo memo(call, given);
  auto copy = Walk(memo).copy(source.ptr());
  record_subclasses(call, given.ptr());
  return copy;
}

/// A copy with a memo of its own, or the caller's.
py::object copy_by(Call& call, const py::object& source, const py::object& memo) {
  if (captured::take_note()) {
    visit_tracked_tensors([](auto&, auto& storage) {
      if (!storage.device().is_cpu()) captured::mark(storage);
    });
  }
  py::object copy;
  try {
    copy = translated([&] { return walk(call, source, memo); });
  } catch (...) {
    call.finish();
    throw;
  }
  call.finish();
  return copy;
}

/// With a mapping of somebody's own, or no mapping at all, copy knows what to do.
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

/// Remembers `object`, or what lies directly in it: a dict of model and optimizer has no name of its own.
void remember(PyObject* object) {
  if (remember_named == nullptr) return;
  std::vector<py::object> found;
  const auto look = [&](PyObject* one) {
    if (is_named(one)) found.push_back(borrow(one));
  };
  PyObject* dict = PyDict_CheckExact(object) ? object : existing_dict(object);
  if (is_named(object)) {
    found.push_back(borrow(object));
  } else if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); ++i) look(PySequence_Fast_GET_ITEM(object, i));
  } else if (dict != nullptr) {
    PyObject *key, *value;
    for (Py_ssize_t position = 0; PyDict_Next(dict, &position, &key, &value);) look(value);
  }
  for (const auto& one : found) (*remember_named)(one);
}

struct How {
  bool strict = false;
  bool apart = false;  ///< an ordinary deep copy
  py::object excluded = {};
  py::object reducers = {};
};

py::object deep_copy(const py::object& source, const py::object& memo, const How& how) {
  check_stack();
  if (is_unusual(memo)) return borrow(Protocol::get().python_deepcopy)(source, memo);
  std::optional<Apart> apart;
  if (Call* running = Call::running(memo.ptr())) {
    if (how.apart) apart.emplace(*running);
    Memo known(*running, memo);
    return translated([&] { return Walk(known).copy(source.ptr()); });
  }
  Call call(how.strict, how.excluded, how.reducers);
  if (how.apart) apart.emplace(call);
  auto copy = copy_by(call, source, memo);
  if (!how.apart) {
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
  if (reducers.is_none()) return deep_copy(source, memo, {.strict = strict});
  if (!are_reducers(reducers.ptr()))
    throw py::type_error("reducers: expected a tuple of pairs of a class and a function");
  return deep_copy(source, memo, {.strict = strict, .reducers = reducers});
}

py::object patched_deepcopy(const py::object& source, const py::object& memo) {
  if (excluded_classes == nullptr) return ordinary_deepcopy(source, memo);
  return deep_copy(source, memo, {.excluded = borrow(excluded_classes)});
}

py::object ordinary_deepcopy(const py::object& source, const py::object& memo) {
  return deep_copy(source, memo, {.apart = true});
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
  Protocol::get().install(py::cpp_function(&entry<copy_parameter>, py::arg("source"), py::arg("memo")),
                          py::cpp_function(&entry<copy_tensor>, py::arg("source"), py::arg("memo")),
                          py::cpp_function(&entry<copy_storage>, py::arg("source"), py::arg("memo")));
}

}  // namespace torchcow
