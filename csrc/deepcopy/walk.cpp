// SPDX-License-Identifier: Apache-2.0

#include "walk.h"

#include "tensors.h"

#include <algorithm>
#include <cassert>

namespace torchcow {

namespace {

/// Nesting beyond this and beyond Python's own limit is taken for endless, as in an object whose `__reduce__` always
/// makes another one.
constexpr std::size_t max_depth = 100'000;

constexpr std::uint32_t polls_per_lock_release = 16;

}  // namespace

Walk::Walk(Memo& memo) : memo_(memo), protocol_(Protocol::get()) {
  // Room for most models.
  frames_.reserve(24);
  values_.reserve(256);
}

Walk::~Walk() {
  // Objects in them may run user code when they die.
  frames_.clear();
  values_.clear();
}

py::object Walk::deep_copy(PyObject* source) {
  PyObject* result = enter(source);
  while (!frames_.empty()) result = resume(result);
  assert(values_.empty() && result != nullptr);
  return py::reinterpret_steal<py::object>(result);
}

PyObject* Walk::enter_compound(PyObject* source) {
  auto* type = Py_TYPE(source);
  if (PyObject* existing = memo_.find(source)) return borrow(existing).release().ptr();
  if (memo_.call().excludes(type)) {
    const UnsharedCopyScope unshared(memo_.call());
    return Walk(memo_).deep_copy(borrow(source).ptr()).release().ptr();
  }
  if (PyObject* reducer = memo_.call().reducer_of(type)) return ask_reducer(source, reducer);
  const auto treatment = protocol_.treatment_of(type);
  switch (treatment) {
    case Treatment::atomic:
      return borrow(source).release().ptr();
    case Treatment::list: {
      auto& frame = push(Frame::Kind::list, source);
      frame.copy = steal(new_list_with_room(PyList_GET_SIZE(source)));
      memo_.put(source, frame.copy.ptr());
      return nullptr;
    }
    case Treatment::tuple:
      return enter_tuple(source);
    case Treatment::dict: {
      if (memo_.hidden() && PyDict_GET_SIZE(source) == 0) return finish_object(source, steal(PyDict_New()));
      auto& frame = push(Frame::Kind::dict, source);
      frame.copy = steal(PyDict_New());
      frame.size = PyDict_GET_SIZE(source);
      memo_.put(source, frame.copy.ptr());
      return nullptr;
    }
    case Treatment::method:
      push(Frame::Kind::method, source);
      return nullptr;
    case Treatment::ordered_dict:
      return enter_ordered_dict(source);
    case Treatment::set:
    case Treatment::frozenset:
      return enter_set(source);
    case Treatment::instance:
      return enter_instance(source, false);
    case Treatment::slotted:
      return enter_slotted(source);
    case Treatment::module:
      return enter_instance(source, true);
    case Treatment::parameter:
    case Treatment::tensor:
    case Treatment::storage:
      return enter_tensor(source, treatment);
    case Treatment::entry: {
      const auto reference = borrow(source);
      const auto entry = borrow(protocol_.entry_of(type));
      if (!entry) return ask(source);
      return finish_object(source, steal(PyObject_CallFunctionObjArgs(entry.ptr(), source, memo_.dict(), nullptr)));
    }
    case Treatment::ask:
      return ask(source);
  }
  return nullptr;
}

PyObject* Walk::resume(PyObject* result) {
  switch (top().kind) {
    case Frame::Kind::list:
      return resume_list(result);
    case Frame::Kind::tuple:
      return resume_tuple(result);
    case Frame::Kind::dict:
      return resume_dict(result);
    case Frame::Kind::set:
      return resume_set(result);
    case Frame::Kind::instance:
      return resume_instance(result);
    case Frame::Kind::module:
    case Frame::Kind::slotted:
      return resume_state(result);
    case Frame::Kind::method:
      return resume_method(result);
    case Frame::Kind::rebuild:
      return resume_rebuild(result);
  }
  return nullptr;
}

Walk::Frame& Walk::push(Frame::Kind kind, PyObject* source) {
  if (frames_.size() >= std::max<std::size_t>(max_depth, static_cast<std::size_t>(Py_GetRecursionLimit()))) {
    PyErr_SetString(PyExc_RecursionError, "maximum recursion depth exceeded in a deep copy");
    raise();
  }
  return frames_.emplace_back(kind, source);
}

PyObject* Walk::finish_frame() {
  const auto source = std::move(top().source);
  auto copy = std::move(top().copy);
  frames_.pop_back();
  if (copy.ptr() != source.ptr()) memo_.finish_started(source.ptr(), copy.ptr());
  return copy.release().ptr();
}

PyObject* Walk::finish_frame_with(py::object copy) {
  const auto source = std::move(top().source);
  frames_.pop_back();
  return finish_object(source.ptr(), std::move(copy));
}

PyObject* Walk::finish_object(PyObject* source, py::object copy) {
  if (copy.ptr() != source) memo_.finish(source, copy.ptr());
  return copy.release().ptr();
}

PyObject* Walk::enter_tensor(PyObject* source, Treatment treatment) {
  const auto reference = borrow(source);
  py::object copy;
  if (memo_.call().shares()) {
    copy = treatment == Treatment::parameter ? copy_parameter(memo_, source)
           : treatment == Treatment::tensor  ? copy_tensor(memo_, source)
                                             : copy_storage(memo_, source);
  }
  if (!copy) {
    copy = protocol_.inherited(source, memo_.dict());
    if (treatment != Treatment::storage) note_seen_or_record(memo_, source, copy.ptr());
  }
  return finish_object(source, std::move(copy));
}

void Walk::raise_changed(const char* what) {
  PyErr_Format(PyExc_RuntimeError, "dictionary %s during iteration", what);
  raise();
}

void Walk::poll_interpreter() {
  check(PyErr_CheckSignals());
  if (ticks_ % (objects_per_poll * polls_per_lock_release) == 0) {
    const py::gil_scoped_release others;
  }
}

}  // namespace torchcow
