#include "walk.h"

#include "tensors.h"

#include <algorithm>
#include <cassert>

namespace torchcow {

namespace {

/// Nesting beyond this and beyond Python's own limit is taken for endless: an object whose `__reduce__` makes another
/// one.
constexpr std::size_t deepest = 100'000;

constexpr std::uint32_t breaths_per_turn = 16;

}  // namespace

Walk::Walk(Memo& memo) : memo_(memo), protocol_(Protocol::get()) {
  // Room for most models.
  frames_.reserve(24);
  values_.reserve(256);
}

Walk::~Walk() {
  // Their objects may run user code when they go.
  frames_.clear();
  values_.clear();
}

py::object Walk::copy(PyObject* source) {
  PyObject* result = enter(source);
  while (!frames_.empty()) result = resume(result);
  assert(values_.empty() && result != nullptr);
  return py::reinterpret_steal<py::object>(result);
}

PyObject* Walk::enter_compound(PyObject* source) {
  auto* type = Py_TYPE(source);
  if (PyObject* known = memo_.find(source)) return borrow(known).release().ptr();
  if (memo_.call().excludes(type)) {
    const Apart apart(memo_.call());
    return Walk(memo_).copy(borrow(source).ptr()).release().ptr();
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
      if (memo_.hidden() && PyDict_GET_SIZE(source) == 0) return settled(source, steal(PyDict_New()));
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
      const auto held = borrow(source);
      const auto entry = borrow(protocol_.entry_of(type));
      if (!entry) return ask(source);
      return settled(source, steal(PyObject_CallFunctionObjArgs(entry.ptr(), source, memo_.dict(), nullptr)));
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
  if (frames_.size() >= std::max<std::size_t>(deepest, static_cast<std::size_t>(Py_GetRecursionLimit()))) {
    PyErr_SetString(PyExc_RecursionError, "maximum recursion depth exceeded in a deep copy");
    raise();
  }
  return frames_.emplace_back(kind, source);
}

PyObject* Walk::finish() {
  const auto source = std::move(top().source);
  auto copy = std::move(top().copy);
  frames_.pop_back();
  if (copy.ptr() != source.ptr()) memo_.settle_again(source.ptr(), copy.ptr());
  return copy.release().ptr();
}

PyObject* Walk::finish_with(py::object copy) {
  const auto source = std::move(top().source);
  frames_.pop_back();
  return settled(source.ptr(), std::move(copy));
}

PyObject* Walk::settled(PyObject* source, py::object copy) {
  if (copy.ptr() != source) memo_.settle(source, copy.ptr());
  return copy.release().ptr();
}

PyObject* Walk::enter_tensor(PyObject* source, Treatment treatment) {
  const auto held = borrow(source);
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
  return settled(source, std::move(copy));
}

void Walk::raise_changed(const char* what) {
  PyErr_Format(PyExc_RuntimeError, "dictionary %s during iteration", what);
  raise();
}

void Walk::breathe() {
  check(PyErr_CheckSignals());
  if (ticks_ % (objects_per_breath * breaths_per_turn) == 0) {
    const py::gil_scoped_release others;
  }
}

}  // namespace torchcow
