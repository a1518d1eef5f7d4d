// SPDX-License-Identifier: Apache-2.0

#include "walk.h"

namespace torchcow {

/// The questions that copy.deepcopy puts to an object without an entry in its table, in its order.
PyObject* Walk::ask(PyObject* object) {
  const auto reference = borrow(object);
  PyObject* const source = reference.ptr();
  const auto& names = protocol_.names;
  if (const auto method = find_attribute(source, names.deepcopy)) {
    return finish_object(source, steal(PyObject_CallOneArg(method.ptr(), memo_.dict())));
  }
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(source));
  py::object reduced;
  auto reductor = borrow(PyDict_GetItemWithError(protocol_.dispatch_table, type));
  if (!reductor && PyErr_Occurred()) raise();
  if (reductor && check(PyObject_IsTrue(reductor.ptr()))) {
    reduced = steal(PyObject_CallOneArg(reductor.ptr(), source));
  } else if (const auto reduce_ex = find_attribute(source, names.reduce_ex)) {
    static PyObject* const protocol = PyLong_FromLong(4);
    reduced = steal(PyObject_CallOneArg(reduce_ex.ptr(), protocol));
  } else if (const auto reduce = find_attribute(source, names.reduce); reduce && check(PyObject_IsTrue(reduce.ptr()))) {
    reduced = steal(PyObject_CallNoArgs(reduce.ptr()));
  } else {
    PyErr_Format(protocol_.error, "un(deep)copyable object of type %S", type);
    raise();
  }
  if (PyUnicode_Check(reduced.ptr())) return reference.inc_ref().ptr();
  return rebuild(source, std::move(reduced));
}

/// A reducer of the call answers for the object, or passes it on to the object's own protocol.
PyObject* Walk::ask_reducer(PyObject* object, PyObject* reducer) {
  const auto reference = borrow(object);
  auto reduced = steal(PyObject_CallOneArg(reducer, object));
  if (reduced.ptr() == Py_NotImplemented) return ask(object);
  if (PyUnicode_Check(reduced.ptr())) return reference.inc_ref().ptr();
  return rebuild(object, std::move(reduced), 6);
}

/// What `copy._reconstruct(source, memo, *reduced)` does. Answers of unusual shape are left to it, errors included.
PyObject* Walk::rebuild(PyObject* source, py::object reduced, Py_ssize_t most_parts) {
  const bool usual = PyTuple_CheckExact(reduced.ptr()) && PyTuple_GET_SIZE(reduced.ptr()) >= 2 &&
                     PyTuple_GET_SIZE(reduced.ptr()) <= most_parts &&
                     PyTuple_CheckExact(PyTuple_GET_ITEM(reduced.ptr(), 1));
  if (!usual) {
    return finish_object(source, steal(PyObject_CallFunctionObjArgs(protocol_.call_reconstruct, source, memo_.dict(),
                                                                    reduced.ptr(), nullptr)));
  }
  auto& frame = push(Frame::Kind::rebuild, source);
  frame.extra = std::move(reduced);
  frame.base = values_.size();
  return nullptr;
}

// rebuild: `extra` is what the object was reduced to: function, arguments, state, list items, dict items, and for a
// reducer of the call perhaps a function that sets the state. The phases
// copy them in this order; each answers whether it is done, or waits for the copy of something.
PyObject* Walk::resume_rebuild(PyObject* result) {
  const auto depth = frames_.size();
  for (;;) {
    bool done = false;
    switch (frames_[depth - 1].phase) {
      case 0:
        done = rebuild_arguments(result);
        break;
      case 1:
        done = rebuild_state(result);
        break;
      case 2:
        done = rebuild_items(result);
        break;
      case 3:
        done = rebuild_pairs(result);
        break;
      default:
        return finish_frame();
    }
    if (!done) return nullptr;
    result = nullptr;
    auto& frame = frames_[depth - 1];
    ++frame.phase;
    frame.position = 0;
    frame.pending = {};
  }
}

namespace {

/// Part `index` of what an object was reduced to, borrowed, or nullptr if it is left out or None.
PyObject* reduced_part(const py::object& reduced, Py_ssize_t index) {
  if (index >= PyTuple_GET_SIZE(reduced.ptr())) return nullptr;
  PyObject* found = PyTuple_GET_ITEM(reduced.ptr(), index);
  return found == Py_None ? nullptr : found;
}

/// `iter.__next__()`, or a null object at the end.
py::object next(PyObject* iterator) {
  PyObject* item = PyIter_Next(iterator);
  if (item == nullptr && PyErr_Occurred()) raise();
  return py::reinterpret_steal<py::object>(item);
}

/// `first, second = pair`
std::pair<py::object, py::object> unpacked(const py::object& pair) {
  const auto sequence = steal(PySequence_Fast(pair.ptr(), "cannot unpack non-iterable object"));
  const auto size = PySequence_Fast_GET_SIZE(sequence.ptr());
  if (size != 2) {
    PyErr_Format(
        PyExc_ValueError,
        size < 2 ? "not enough values to unpack (expected 2, got %zd)" : "too many values to unpack (expected 2)",
        size);
    raise();
  }
  return {borrow(PySequence_Fast_GET_ITEM(sequence.ptr(), 0)), borrow(PySequence_Fast_GET_ITEM(sequence.ptr(), 1))};
}

}  // namespace

/// func(*[deepcopy(argument) for argument in arguments])
bool Walk::rebuild_arguments(PyObject* result) {
  const auto depth = frames_.size();
  const auto reduced = top().extra;
  const auto base = top().base;
  PyObject* arguments = PyTuple_GET_ITEM(reduced.ptr(), 1);
  auto member_copy = py::reinterpret_steal<py::object>(result);
  for (;;) {
    if (member_copy) values_.push_back(std::move(member_copy));
    const auto position = static_cast<Py_ssize_t>(values_.size() - base);
    if (position == PyTuple_GET_SIZE(arguments)) break;
    member_copy = py::reinterpret_steal<py::object>(enter(PyTuple_GET_ITEM(arguments, position)));
    if (!member_copy) return false;
  }
  const auto copies = steal(PyTuple_New(PyTuple_GET_SIZE(arguments)));
  for (auto i = base; i < values_.size(); ++i) {
    PyTuple_SET_ITEM(copies.ptr(), static_cast<Py_ssize_t>(i - base), values_[i].release().ptr());
  }
  values_.resize(base);
  auto copy = steal(PyObject_Call(PyTuple_GET_ITEM(reduced.ptr(), 0), copies.ptr(), nullptr));
  auto& frame = frames_[depth - 1];
  memo_.put(frame.source.ptr(), copy.ptr());
  frame.copy = std::move(copy);
  return true;
}

bool Walk::rebuild_state(PyObject* result) {
  const auto depth = frames_.size();
  auto state = py::reinterpret_steal<py::object>(result);
  if (!state) {
    PyObject* source = reduced_part(top().extra, 2);
    if (source == nullptr) return true;
    state = py::reinterpret_steal<py::object>(enter(source));
    if (!state) return false;
  }
  const auto copy = frames_[depth - 1].copy;
  if (PyObject* setter = reduced_part(frames_[depth - 1].extra, 5)) {
    steal(PyObject_CallFunctionObjArgs(setter, copy.ptr(), state.ptr(), nullptr));
    return true;
  }
  // hasattr, and then the call: a __setstate__ that is None is called, and fails as it does in copy.
  PyObject* setstate = PyObject_GetAttr(copy.ptr(), protocol_.names.setstate);
  if (setstate != nullptr) {
    Py_DECREF(setstate);
    steal(PyObject_CallMethodOneArg(copy.ptr(), protocol_.names.setstate, state.ptr()));
    return true;
  }
  if (!PyErr_ExceptionMatches(PyExc_AttributeError)) raise();
  PyErr_Clear();
  py::object slots;
  if (PyTuple_Check(state.ptr()) && PyTuple_GET_SIZE(state.ptr()) == 2) {
    slots = borrow(PyTuple_GET_ITEM(state.ptr(), 1));
    state = borrow(PyTuple_GET_ITEM(state.ptr(), 0));
  }
  if (!state.is_none()) {
    const auto attributes = steal(PyObject_GetAttr(copy.ptr(), protocol_.names.dict));
    steal(PyObject_CallMethodOneArg(attributes.ptr(), protocol_.names.update, state.ptr()));
  }
  if (slots && !slots.is_none()) {
    const auto pairs =
        steal(PyObject_GetIter(steal(PyObject_CallMethodNoArgs(slots.ptr(), protocol_.names.items)).ptr()));
    while (const auto pair = next(pairs.ptr())) {
      const auto [name, value] = unpacked(pair);
      check(PyObject_SetAttr(copy.ptr(), name.ptr(), value.ptr()));
    }
  }
  return true;
}

/// for item in items: copy.append(deepcopy(item)). `pending` is the iterator.
bool Walk::rebuild_items(PyObject* result) {
  const auto depth = frames_.size();
  auto member_copy = py::reinterpret_steal<py::object>(result);
  if (!member_copy) {
    PyObject* items = reduced_part(top().extra, 3);
    if (items == nullptr) return true;
    top().pending = steal(PyObject_GetIter(items));
  }
  const auto iterator = frames_[depth - 1].pending;
  for (;;) {
    if (member_copy) {
      const auto copy = frames_[depth - 1].copy;
      steal(PyObject_CallMethodOneArg(copy.ptr(), protocol_.names.append, member_copy.ptr()));
    }
    const auto item = next(iterator.ptr());
    if (!item) return true;
    member_copy = py::reinterpret_steal<py::object>(enter(item.ptr()));
    if (!member_copy) return false;
  }
}

/// for key, value in pairs: copy[deepcopy(key)] = deepcopy(value), the key first. `pending` is the iterator; what
/// waits in `values_` is the source's value, and then the copied key.
bool Walk::rebuild_pairs(PyObject* result) {
  const auto depth = frames_.size();
  auto member_copy = py::reinterpret_steal<py::object>(result);
  if (!member_copy) {
    PyObject* pairs = reduced_part(top().extra, 4);
    if (pairs == nullptr) return true;
    top().pending = steal(PyObject_GetIter(pairs));
  }
  const auto iterator = frames_[depth - 1].pending;
  for (;;) {
    if (member_copy && frames_[depth - 1].position == 0) {
      const auto value = std::exchange(values_.back(), std::move(member_copy));
      frames_[depth - 1].position = 1;
      member_copy = py::reinterpret_steal<py::object>(enter(value.ptr()));
      if (!member_copy) return false;
    }
    if (member_copy) {
      const auto key = std::move(values_.back());
      values_.pop_back();
      check(PyObject_SetItem(frames_[depth - 1].copy.ptr(), key.ptr(), member_copy.ptr()));
      frames_[depth - 1].position = 0;
    }
    const auto pair = next(iterator.ptr());
    if (!pair) return true;
    auto [key, value] = unpacked(pair);
    values_.push_back(std::move(value));
    member_copy = py::reinterpret_steal<py::object>(enter(key.ptr()));
    if (!member_copy) return false;
  }
}

}  // namespace torchcow
