// SPDX-License-Identifier: Apache-2.0

#include "walk.h"

namespace torchcow {

/// `copyreg.__newobj__(cls)`, with the state in `__dict__`, as object.__reduce_ex__ would have it.
PyObject* Walk::enter_instance(PyObject* source, bool module) {
  auto attributes = steal(PyObject_GenericGetDict(source, nullptr));
  PyObject* dict = attributes.ptr();
  auto* type = Py_TYPE(source);
  const auto base = values_.size();
  // Of a hidden memo's modules the state is taken here; a class can be in the caller's memo as well.
  const bool plain = (module ? protocol_.plain_module(dict, values_) : protocol_.plain_attributes(dict)) &&
                     PyDict_GET_SIZE(dict) > 0 && protocol_.plainly_atomic(&PyUnicode_Type) &&
                     (memo_.hidden() || memo_.find(reinterpret_cast<PyObject*>(type)) == nullptr);
  if (!plain || !memo_.hidden()) values_.resize(base);
  if (!plain) return ask(source);
  auto copy = steal(PyBaseObject_Type.tp_new(type, protocol_.empty_tuple, nullptr));
  memo_.put(source, copy.ptr());

  auto& frame = push(Frame::Kind::instance, source);
  frame.copy = std::move(copy);
  frame.base = base;
  if (module) {
    // The state of a module is a copy of its __dict__: what becomes of that in the meantime does not matter.
    if (memo_.hidden()) {
      frame.kind = Frame::Kind::module;
      return nullptr;
    }
    attributes = steal(PyDict_Copy(dict));
    dict = attributes.ptr();
  }
  // If nobody but the instance and we hold the dict, the copied attributes need no dict beside the copy's own.
  frame.phase = memo_.hidden() && has_references(dict, 2) ? 0 : 1;
  frame.size = PyDict_GET_SIZE(dict);
  frame.extra = std::move(attributes);
  return nullptr;
}

PyObject* Walk::enter_slotted(PyObject* source) {
  if (!memo_.hidden()) return ask(source);  // its state is a tuple with a dict, which have entries in the memo
  const auto slots = borrow(protocol_.slots_of(Py_TYPE(source)));
  auto copy = steal(PyBaseObject_Type.tp_new(Py_TYPE(source), protocol_.empty_tuple, nullptr));
  memo_.put(source, copy.ptr());
  auto& frame = push(Frame::Kind::slotted, source);
  frame.copy = std::move(copy);
  frame.base = values_.size();
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(slots.ptr()); ++i) {
    PyObject* name = PyList_GET_ITEM(slots.ptr(), i);
    PyObject* value = nullptr;
    if (check(PyObject_GetOptionalAttr(source, name, &value)) == 0) continue;
    values_.push_back(borrow(name));
    values_.push_back(steal(value));
  }
  return nullptr;
}

// module, slotted: names and values wait in `values_` from the start; the value at `position` is being copied.
PyObject* Walk::resume_state(PyObject* result) {
  const auto base = top().base;
  auto member_copy = py::reinterpret_steal<py::object>(result);
  auto position = static_cast<std::size_t>(top().position);
  if (member_copy) {
    values_[base + position + 1] = std::move(member_copy);
    position += 2;
  }
  for (; base + position < values_.size(); position += 2) {
    const auto depth = frames_.size();
    member_copy = py::reinterpret_steal<py::object>(enter(values_[base + position + 1].ptr()));
    if (!member_copy) {
      frames_[depth - 1].position = static_cast<Py_ssize_t>(position);
      return nullptr;
    }
    values_[base + position + 1] = std::move(member_copy);
  }
  if (top().kind == Frame::Kind::module) return finish_instance();
  const auto copy = top().copy;
  for (auto i = base; i < values_.size(); i += 2) {
    check(PyObject_SetAttr(copy.ptr(), values_[i].ptr(), values_[i + 1].ptr()));
  }
  values_.resize(base);
  return finish_frame();
}

// instance: `extra` is the source's `__dict__`. Phase 0: its names and copied values gather in `values_`. Phase 1: the
// dict itself is being copied, and then updates the attributes of the copy.
PyObject* Walk::resume_instance(PyObject* result) {
  const auto depth = frames_.size();
  const auto frame = [&]() -> Frame& { return frames_[depth - 1]; };
  PyObject* const dict = top().extra.ptr();
  auto member_copy = py::reinterpret_steal<py::object>(result);
  if (top().phase == 1) {
    if (!member_copy) member_copy = py::reinterpret_steal<py::object>(enter(dict));
    if (!member_copy) return nullptr;
    const auto attributes = steal(PyObject_GenericGetDict(frame().copy.ptr(), nullptr));
    check(PyDict_Update(attributes.ptr(), member_copy.ptr()));
    return finish_frame();
  }
  for (;;) {
    if (member_copy) values_.push_back(std::move(member_copy));
    auto& current = frame();
    if (PyDict_GET_SIZE(dict) != current.size) raise_changed("changed size");
    PyObject *key, *value;
    if (!PyDict_Next(dict, &current.position, &key, &value)) break;
    if (values_.size() - current.base == 2 * static_cast<std::size_t>(current.size)) raise_changed("keys changed");
    const auto reference = borrow(value);
    auto name = borrow(key);
    values_.push_back(PyUnicode_CheckExact(key) ? std::move(name) : Walk(memo_).deep_copy(key));
    member_copy = py::reinterpret_steal<py::object>(enter(value));
    if (!member_copy) return nullptr;
  }
  return finish_instance();
}

/// The names and copied values at the end of `values_` become the attributes of the copy, all at once.
PyObject* Walk::finish_instance() {
  const auto base = top().base;
  const auto copy = top().copy;
  const auto attributes = steal(PyObject_GenericGetDict(copy.ptr(), nullptr));
  for (auto i = base; i < values_.size(); i += 2) {
    check(PyDict_SetItem(attributes.ptr(), values_[i].ptr(), values_[i + 1].ptr()));
  }
  values_.resize(base);
  return finish_frame();
}

}  // namespace torchcow
