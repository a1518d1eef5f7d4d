// SPDX-License-Identifier: Apache-2.0

#include "walk.h"

namespace torchcow {

// list: `copy` grows; `position` is the next member; `pending` the member that is being copied.
PyObject* Walk::resume_list(PyObject* result) {
  PyObject* const source = top().source.ptr();
  PyObject* const copy = top().copy.ptr();
  auto member_copy = py::reinterpret_steal<py::object>(result);
  Py_ssize_t position = top().position;
  for (;;) {
    if (member_copy) {
      check(PyList_Append(copy, member_copy.ptr()));
      member_copy = {};
      ++position;
    }
    if (position >= PyList_GET_SIZE(source)) break;
    auto member = borrow(PyList_GET_ITEM(source, position));
    const auto depth = frames_.size();
    member_copy = py::reinterpret_steal<py::object>(enter(member.ptr()));
    if (!member_copy) {
      auto& frame = frames_[depth - 1];
      frame.position = position;
      frame.pending = std::move(member);
      return nullptr;
    }
  }
  return finish_frame();
}

PyObject* Walk::enter_tuple(PyObject* source) {
  if (memo_.hidden()) {
    Py_ssize_t atomic = 0;
    while (atomic < PyTuple_GET_SIZE(source) && protocol_.plainly_atomic(Py_TYPE(PyTuple_GET_ITEM(source, atomic)))) {
      ++atomic;
    }
    if (atomic == PyTuple_GET_SIZE(source)) return borrow(source).release().ptr();
  }
  push(Frame::Kind::tuple, source).base = values_.size();
  return nullptr;
}

// tuple: the copies of members wait in `values_`; `position` counts them.
PyObject* Walk::resume_tuple(PyObject* result) {
  const auto source = top().source;
  const auto base = top().base;
  const auto size = PyTuple_GET_SIZE(source.ptr());
  auto member_copy = py::reinterpret_steal<py::object>(result);
  for (;;) {
    if (member_copy) values_.push_back(std::move(member_copy));
    const auto position = static_cast<Py_ssize_t>(values_.size() - base);
    if (position == size) break;
    member_copy = py::reinterpret_steal<py::object>(enter(PyTuple_GET_ITEM(source.ptr(), position)));
    if (!member_copy) return nullptr;
  }
  // A member that refers back to the tuple has copied it already.
  if (PyObject* existing = memo_.find(source.ptr())) {
    auto copy = borrow(existing);
    values_.resize(base);
    return finish_frame_with(std::move(copy));
  }
  bool same = true;
  for (Py_ssize_t i = 0; i < size; ++i) same = same && values_[base + i].ptr() == PyTuple_GET_ITEM(source.ptr(), i);
  if (same) {
    values_.resize(base);
    return finish_frame_with(source);
  }
  auto copy = steal(PyTuple_New(size));
  for (Py_ssize_t i = 0; i < size; ++i) PyTuple_SET_ITEM(copy.ptr(), i, values_[base + i].release().ptr());
  values_.resize(base);
  return finish_frame_with(std::move(copy));
}

// dict: `copy` grows; `position` is PyDict_Next's; `pending` is the key under way. Python evaluates
// `y[deepcopy(key)] = deepcopy(value)` from the right: phase 0 copies a value; phase 1 its key, with the copied value
// in `extra`.
PyObject* Walk::resume_dict(PyObject* result) {
  const auto depth = frames_.size();
  const auto frame = [&]() -> Frame& { return frames_[depth - 1]; };
  PyObject* const source = top().source.ptr();
  PyObject* const copy = top().copy.ptr();
  auto member_copy = py::reinterpret_steal<py::object>(result);
  for (;;) {
    if (member_copy && frame().phase == 0) {
      const auto key = frame().pending;
      frame().extra = std::move(member_copy);
      frame().phase = 1;
      member_copy = py::reinterpret_steal<py::object>(enter(key.ptr()));
      if (!member_copy) return nullptr;
    }
    if (member_copy) {
      const auto value = std::move(frame().extra);
      check(PyDict_SetItem(copy, member_copy.ptr(), value.ptr()));
      member_copy = {};
      frame().phase = 0;
    }
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    auto& current = frame();
    if (PyDict_GET_SIZE(source) != current.size) raise_changed("changed size");
    if (!PyDict_Next(source, &current.position, &key, &value)) break;
    if (current.base++ == static_cast<std::size_t>(current.size)) raise_changed("keys changed");
    current.pending = borrow(key);
    const auto reference = borrow(value);
    member_copy = py::reinterpret_steal<py::object>(enter(value));
    if (!member_copy) {
      // The frame above holds the value from now on.
      return nullptr;
    }
  }
  return finish_frame();
}

PyObject* Walk::enter_ordered_dict(PyObject* source) {
  if (has_attributes(source)) return ask(source);
  if (memo_.hidden() && PyDict_GET_SIZE(source) == 0) return finish_object(source, steal(PyODict_New()));
  // What its `__reduce_ex__` would answer.
  const auto items = steal(PyObject_CallMethodNoArgs(source, protocol_.names.items));
  const auto iterator = steal(PyObject_GetIter(items.ptr()));
  return rebuild(source,
                 steal(PyTuple_Pack(5, Py_TYPE(source), protocol_.empty_tuple, Py_None, Py_None, iterator.ptr())));
}

PyObject* Walk::enter_set(PyObject* source) {
  if (!memo_.hidden()) {  // the list of its members has an entry: what its `__reduce_ex__` would answer
    const auto arguments = steal(PyTuple_Pack(1, steal(PySequence_List(source)).ptr()));
    return rebuild(source, steal(PyTuple_Pack(3, Py_TYPE(source), arguments.ptr(), Py_None)));
  }
  if (PySet_GET_SIZE(source) == 0 && PySet_CheckExact(source)) return finish_object(source, steal(PySet_New(nullptr)));
  auto members = steal(PySequence_List(source));
  auto& frame = push(Frame::Kind::set, source);
  frame.extra = std::move(members);
  return nullptr;
}

// set: `extra` is a list of the members, which are replaced by their copies; `position` is the next one. A set of them
// in the same order is what `type(source)(members)` makes.
PyObject* Walk::resume_set(PyObject* result) {
  const auto depth = frames_.size();
  const auto members = top().extra;
  auto position = top().position;
  auto member_copy = py::reinterpret_steal<py::object>(result);
  for (;;) {
    if (member_copy) check(PyList_SetItem(members.ptr(), position++, member_copy.release().ptr()));
    if (position >= PyList_GET_SIZE(members.ptr())) break;
    member_copy = py::reinterpret_steal<py::object>(enter(PyList_GET_ITEM(members.ptr(), position)));
    if (!member_copy) {
      frames_[depth - 1].position = position;
      return nullptr;
    }
  }
  auto copy = steal(PySet_CheckExact(top().source.ptr()) ? PySet_New(members.ptr()) : PyFrozenSet_New(members.ptr()));
  return finish_frame_with(std::move(copy));
}

// method: `source.__self__` is being copied.
PyObject* Walk::resume_method(PyObject* result) {
  const auto source = top().source;
  auto self = py::reinterpret_steal<py::object>(result);
  if (!self) self = py::reinterpret_steal<py::object>(enter(PyMethod_GET_SELF(source.ptr())));
  if (!self) return nullptr;
  return finish_frame_with(steal(PyObject_CallFunctionObjArgs(
      reinterpret_cast<PyObject*>(&PyMethod_Type), PyMethod_GET_FUNCTION(source.ptr()), self.ptr(), nullptr)));
}

}  // namespace torchcow
